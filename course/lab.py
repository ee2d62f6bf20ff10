"""The commands `setup` and `lab`, from the moment when the environment is there."""

import json
import locale
import os
import secrets
import signal
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course import CourseError, command_line, locks, paths, settings
from course.installation import environment
from course.running import targets

SETTINGS = Path(__file__).resolve().parent / "lab_settings"
EXTENSIONS = Path(__file__).resolve().parent / "lab_extensions"
FIRST_PAGE = "README.md"
FIRST_PAGE_JA = "README.ja.md"
# Of the kernels: their notes about their own workings would alarm a reader, such as the
# one on the missing encryption between two programs of the same machine.
KERNEL_SETTINGS = {"IPKernelApp": {"log_level": "ERROR"}}
# A slow disk at the first start may need this long; then something is wrong.
PATIENCE = 180


def fetch_offline_files(announce: bool = False, strict: bool = True) -> None:
    """Fetch every file that the chapters need offline, where it is not there yet.

    With `announce` it appears as the last step of the set-up.  Unless `strict`, a
    failure is told and forgiven: what needs the file will say so itself.
    """
    from course import assets

    names = [name for name, asset in assets.manifest().items() if asset.offline]
    began = time.monotonic()
    if announce:
        number = environment.STEPS
        print(f"[{number}/{number}] Files for working offline", flush=True)
    try:
        for name in names:
            assets.fetch(name)
    except CourseError as problem:
        if strict:
            raise
        print(f"course: {problem}", file=sys.stderr, flush=True)
        return
    if announce:
        seconds = time.monotonic() - began
        print(f"      {len(names)} in place, done in {seconds:.0f} s", flush=True)


def setup() -> int:
    """Finish the set-up inside the environment and say what to do next."""
    fetch_offline_files(announce=True)
    print(f"The environment {sys.prefix} is complete: everything works offline now.")
    print(f"Next: {_start()} lab")
    return 0


def _start() -> str:
    """Return how the commands are started that use the running environment.

    With the reader's own environment, `python3` may be another Python, which would make
    a second environment.
    """
    if environment.is_running(paths.ENV):
        return "py -m course" if os.name == "nt" else "python3 -m course"
    parts = (sys.executable, paths.ROOT / "course")
    return " ".join(f'"{part}"' if " " in str(part) else str(part) for part in parts)


def _names(app: Any) -> dict[str, bool]:
    """Return an application's options, and for each whether a value follows it."""
    names: dict[str, bool] = {}
    for known, valued in ((app.flags, False), (app.aliases, True)):
        for key in known:
            for name in (key,) if isinstance(key, str) else key:
                names.setdefault(f"{'-' if len(name) == 1 else '--'}{name}", valued)
    return names


def understood(extra: Sequence[str], names: dict[str, bool]) -> list[str]:
    """Return the reader's arguments for JupyterLab, folders as it finds them.

    `names` are the options that it has. Raises `CourseError` for one that it has not,
    and for a folder that is not there: what it says itself runs to a page.
    """
    result, valued = [], ""  # the option whose value comes next
    for word in extra:
        name = word.partition("=")[0]
        if word.startswith("-"):
            _need_value(valued)
            valued = word if names.get(word) else ""
            if name not in names and "." not in name:
                hint = command_line.meant(name, names)
                raise CourseError(
                    f"Neither `lab` nor JupyterLab knows the option {name}.{hint} "
                    "`python3 -m course lab --help` lists those of the course."
                )
        elif valued:
            valued = ""
        elif not os.path.exists(word):
            word = str(targets.find(word))
        result.append(word)
    _need_value(valued)
    return result


def _need_value(option: str) -> None:
    if option:
        raise CourseError(f"The option {option} needs a value: {option} VALUE.")


def _arguments(extra: Sequence[str]) -> list[str]:
    """Return JupyterLab's arguments: the course's, then the reader's, which win."""
    folders = [argument for argument in extra if os.path.isdir(argument)]
    opened = Path(os.path.abspath(folders[0])) if folders else paths.ROOT
    root = opened
    if folders and _reaches_the_course(opened):
        # Links of a copy lead to the course, so that has to be served, too.
        root = Path(os.path.commonpath([opened, paths.ROOT]))
        extra = [argument for argument in extra if argument != folders[0]]
    pages = (FIRST_PAGE_JA, FIRST_PAGE) if reads_japanese() else (FIRST_PAGE,)
    found = [opened / page for page in pages if (opened / page).is_file()]
    first = "/lab"
    if found:
        first = f"/lab/tree/{urllib.parse.quote(found[0].relative_to(root).as_posix())}"
    arguments = [
        f"--ServerApp.root_dir={root}",
        f"--ContentsManager.preferred_dir={opened}",
        f"--LabApp.default_url={first}",
        f"--LabApp.app_settings_dir={SETTINGS}",
        f"--LabApp.extra_labextensions_path={EXTENSIONS}",
        "--ServerApp.open_browser=False",  # it is opened when the page can be served
        # Browsers in a box of their own (snap, WSL) may not read Jupyter's files.
        "--ServerApp.use_redirect_file=False",
        "--ServerApp.kernel_spec_manager_class=course.running.kernels.ThisEnvironment",
        "--ServerApp.contents_manager_class="
        "course.running.saved_notebooks.ReadersFiles",
        "--Application.log_level=WARN",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # containers: there is nobody else to be
    return arguments + list(extra)


def reads_japanese() -> bool:
    """Tell whether the reader's machine is set to Japanese."""
    chosen = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    language = next(filter(None, chosen), None) or locale.getlocale()[0] or ""
    return language.startswith(("ja", "Japanese"))


def _reaches_the_course(folder: Path) -> bool:
    """Whether a folder holds what `copy` made, and a server can show it and the course.

    JupyterLab shows no hidden folder, and on Windows no second drive.
    """
    copied = (*folder.glob("folder.toml"), *folder.glob("*/folder.toml"))
    try:
        inside = folder.relative_to(os.path.commonpath([folder, paths.ROOT]))
    except ValueError:
        return False
    hidden = any(part.startswith(".") for part in inside.parts)
    return bool(copied) and not hidden


def _address(server: Any) -> str:
    """Return the address of the first page, with the token that opens it."""
    page = server.connection_url.rstrip("/") + server.default_url
    token = server.identity_provider.token
    return f"{page}?token={token}" if token else page


async def _announce(server: Any, browser: bool, began: float) -> None:
    """Ask for the first page, say that it is there, and open the browser."""
    from tornado.httpclient import AsyncHTTPClient, HTTPError

    url = _address(server)
    try:
        # A reader's own certificate will do, and a refusal shows that the server lives.
        answer = await AsyncHTTPClient().fetch(
            url, request_timeout=PATIENCE, validate_cert=False, raise_error=False
        )
        alive = answer.code in (200, 401, 403)
    except (HTTPError, OSError, ValueError):
        alive = False
    if not alive:
        print(f"course: JupyterLab does not answer at {url}.", file=sys.stderr)
        return
    seconds = time.time() - began
    print(f"ready after {seconds:.1f} s: {url}  (Ctrl-C stops it)", flush=True)
    if browser and has_display():
        server.launch_browser()


def has_display() -> bool:
    """Tell whether a browser has a display; without one it would take the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _configure_kernels(ipython_folder: Path) -> None:
    profile = ipython_folder / "profile_default"
    profile.mkdir()
    text = json.dumps(KERNEL_SETTINGS)
    (profile / "ipython_kernel_config.json").write_text(text, encoding="utf-8")


def written() -> dict[str, Path]:
    """Return the folders that JupyterLab writes, by what moves them."""
    from jupyter_core import paths as jupyter

    return {
        "HOME or JUPYTER_CONFIG_DIR": Path(jupyter.jupyter_config_dir()),
        "HOME or JUPYTER_DATA_DIR": Path(jupyter.jupyter_data_dir()),
        "HOME or JUPYTER_RUNTIME_DIR": Path(jupyter.jupyter_runtime_dir()),
    }


def open_lab(
    extra: Sequence[str] = (),
    preset: str | None = None,
    browser: bool = True,
    began: float | None = None,
) -> int:
    """Run JupyterLab in this process until it is stopped; return the exit code.

    `extra` goes to JupyterLab, `preset` becomes ``COURSE_PRESET`` for the notebooks,
    and `began` (seconds since the epoch) is when the reader gave the command.
    """
    began = time.time() if began is None else began
    profile = tempfile.TemporaryDirectory(prefix="gpt-by-hand-")
    _configure_kernels(Path(profile.name))
    os.environ.pop("MPLBACKEND", None)
    os.environ |= settings.environment_of_readers(profile.name)
    os.environ.setdefault("COURSE_DEVICE", "best")
    if preset:
        os.environ["COURSE_PRESET"] = preset
    # A token of ours keeps Jupyter from printing its own lines about the address.
    os.environ.setdefault("JUPYTER_TOKEN", secrets.token_hex(24))
    print("Starting JupyterLab ...", flush=True)
    try:
        from jupyter_server.base.websocket import WS_PING_INTERVAL
        from jupyter_server.serverapp import ServerApp
        from jupyterlab.labapp import LabApp
    except ImportError as problem:
        raise CourseError(
            f"JupyterLab cannot be imported ({problem}). Run `python3 -m course "
            "setup`, which repairs the environment."
        ) from None
    for variable, place in written().items():
        locks.try_writing(place, variable)
    names = _names(ServerApp()) | _names(LabApp())
    server = LabApp.initialize_server(argv=_arguments(understood(extra, names)))
    # Its own default, three times as long, is what tornado warns of.
    server.web_app.settings.setdefault("ws_ping_timeout", WS_PING_INTERVAL)

    def stop() -> None:
        print("\nStopping JupyterLab ...", flush=True)
        server.stop()

    def soon(*_: object) -> None:  # a signal may have come in the middle of a print
        server.io_loop.add_callback_from_signal(stop)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), soon)
    server.io_loop.add_callback(_announce, server, browser, began)
    server.start()
    return 0
