"""The command `lab`, with the real JupyterLab."""

import asyncio
import json
import os
import re
import signal
import time
import types

import pytest
import requests

from course import CourseError, copying, lab, paths
from course.testing import servers
from course.testing.running_lab import READY, WAIT, Lab

posix = pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """JupyterLab as a reader starts it, without a browser."""
    started = Lab(tmp_path_factory.mktemp("jupyter"), "--no-browser")
    yield started
    started.process.kill()
    started.process.communicate()


def test_it_says_where_it_is_when_it_can_be_used(running):
    assert "/lab/tree/README.md?token=" in running.url
    assert "Ctrl-C" in running.lines[-1]
    # Jupyter's own lines about addresses and extensions would bury this one.
    assert len(running.lines) <= 3


def test_it_serves_the_tree_with_the_kernel_of_the_environment_to_nobody_else(running):
    content = running.get("/api/contents/").json()["content"]
    assert {"README.md", "course", "ch02"} <= {entry["name"] for entry in content}
    kernels = running.get("/api/kernelspecs").json()
    assert kernels["default"] == "python3"
    assert "python3" in kernels["kernelspecs"]
    assert running.get("/api/contents/", token=False).status_code == 403


def test_markdown_opens_rendered_and_no_news_are_fetched(running):
    """From the settings in the tree: nothing was written into the environment."""
    plugin = "@jupyterlab/docmanager-extension:plugin"
    setting = running.get(f"/lab/api/settings/{plugin}").json()
    viewers = setting["schema"]["properties"]["defaultViewers"]["default"]
    assert viewers == {"markdown": "Markdown Preview"}
    page = running.get("/lab/tree/README.md").text
    config = json.loads(
        re.search(r"jupyter-config-data[^>]*>(.*?)</script", page, re.S)[1]
    )
    news = "@jupyterlab/apputils-extension:announcements"
    assert news in config["disabledExtensions"]


@posix
def test_its_own_folder_and_port_reach_jupyterlab_and_a_start_is_quick(
    running, tmp_path
):
    """Second start: the environment is there. Five seconds are promised for it."""
    folder = tmp_path / "my \u8cc7\u6599"
    folder.mkdir()
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    started = Lab(tmp_path / "j", "--no-browser", "--port=18765", str(folder))
    assert ":187" in started.url  # the next ones, if somebody has that port
    content = started.get("/api/contents/").json()["content"]
    assert [entry["name"] for entry in content] == ["README.md"]
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    assert min(running.seconds, started.seconds) <= 5 * max(1, load)
    started.stop(signal.SIGTERM)


@posix
def test_ctrl_c_ends_it(running):
    assert running.stop(signal.SIGINT).splitlines()[-1] == "Stopping JupyterLab ..."


@posix
def test_a_copy_is_opened_with_the_course_that_its_links_lead_to(tmp_path):
    copying.copy("ch03", tmp_path / "my work")
    opened = tmp_path / "my work" / "ch03"
    started = Lab(tmp_path / "j", "--no-browser", str(opened))
    try:
        page, _, secret = started.url.partition("?token=")
        base, _, inside = page.partition("/lab/tree/")
        assert inside.endswith("my%20work/ch03/README.md")
        text = (opened / "README.md").read_text(encoding="utf-8")
        target = re.search(r"\[chapter 2\]\((\.\./[^)]+)\)", text)[1]
        for link in ("01_main-chapter-code/ch03.ipynb", target):
            place = os.path.normpath(f"/{inside}/../{link}")
            answer = requests.get(
                f"{base}/api/contents{place}",
                headers={"Authorization": f"token {secret}"},
                timeout=WAIT,
            )
            assert answer.json()["name"] == os.path.basename(link)
    finally:
        started.stop(signal.SIGTERM)


@pytest.mark.parametrize(
    ("folder", "holds", "together"),
    [
        ("mine/ch03", "folder.toml", True),
        ("mine", "ch03/folder.toml", True),
        ("mine", "README.md", False),
        (".mine/ch03", "folder.toml", False),
    ],
)
def test_only_a_copy_is_served_together_with_the_course(
    tmp_path, folder, holds, together
):
    file = tmp_path / folder / holds
    file.parent.mkdir(parents=True)
    file.touch()
    arguments = lab._arguments(["--port=1", str(tmp_path / folder)])
    root = os.path.commonpath([tmp_path, paths.ROOT]) if together else tmp_path / folder
    assert f"--ServerApp.root_dir={root}" in arguments
    assert (str(tmp_path / folder) in arguments) is not together
    assert "--port=1" in arguments


# --- Slips on the command line --------------------------------------------------------

OPTIONS = {"--port": True, "--app-dir": True, "--debug": False, "-y": False}


def test_what_jupyterlab_gets(tmp_path, monkeypatch):
    """A value is no folder, and a chapter is found from everywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    given = ["--port", "9", "--debug", "mine", "-y", "--LabApp.x=1", "--port=8", "ch02"]
    found = [*given[:-1], str(paths.ROOT / "ch02")]
    assert lab.understood(given, OPTIONS) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--prot", "9"], r"knows the option --prot\. Did you mean --port\?"),
        (["--zebra=9"], r"knows the option --zebra\. `python3"),
        (["nosuchfolder"], "no chapter, folder or file called 'nosuchfolder'"),
        (["--port"], "--port needs a value: --port VALUE"),
        (["--app-dir", "--debug"], "--app-dir needs a value"),
    ],
)
def test_what_jupyterlab_would_answer_with_a_page(given, words):
    with pytest.raises(CourseError, match=words):
        lab.understood(given, OPTIONS)


def test_the_options_of_jupyterlab_are_known():
    from jupyter_server.serverapp import ServerApp
    from jupyterlab.labapp import LabApp

    names = lab._names(ServerApp()) | lab._names(LabApp())
    assert names["--port"]
    assert names["--app-dir"]
    assert not names["--no-browser"]
    assert not names["--allow-root"]


def test_the_next_step_after_the_set_up_uses_the_same_environment(monkeypatch, capsys):
    """With --here: `python3` may be another Python, which would make a second one."""
    monkeypatch.setattr(lab, "fetch_offline_files", lambda announce: None)
    assert lab.setup() == 0
    own = "py -m course lab" if os.name == "nt" else "python3 -m course lab"
    assert capsys.readouterr().out.endswith(f"Next: {own}\n")
    monkeypatch.setattr(lab.paths, "ENV", paths.ROOT / "another")
    monkeypatch.setattr(lab.sys, "executable", "/a b/python")
    lab.setup()
    next_line = capsys.readouterr().out.splitlines()[-1]
    assert next_line.startswith('Next: "/a b/python" ')
    assert str(paths.ROOT / "course") in next_line
    assert next_line.endswith(" lab")


# --- Parts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "system", "page"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "en_GB", "README.ja.md"),
        ({"LC_ALL": "en_GB.UTF-8", "LANG": "ja_JP.UTF-8"}, "ja_JP", "README.md"),
        ({"LC_ALL": "", "LANG": "ja"}, None, "README.ja.md"),
        ({}, "Japanese_Japan", "README.ja.md"),
        ({}, "de_DE", "README.md"),
        ({}, None, "README.md"),
    ],
)
def test_a_japanese_machine_opens_the_japanese_page(
    monkeypatch, tmp_path, variables, system, page
):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lab.locale, "getlocale", lambda: (system, "UTF-8"))
    assert f"--LabApp.default_url=/lab/tree/{page}" in lab._arguments(())
    (tmp_path / "README.md").touch()  # a folder of the reader's, in one language
    first = "--LabApp.default_url=/lab/tree/README.md"
    assert first in lab._arguments([str(tmp_path)])


@pytest.mark.parametrize(
    ("chosen", "preset", "expected"),
    [({}, None, ("best", None)), ({"COURSE_DEVICE": "cpu"}, "full", ("cpu", "full"))],
)
def test_device_and_preset_of_notebooks(monkeypatch, chosen, preset, expected):
    """The best device and the quick preset, unless the reader chooses others."""
    from jupyterlab.labapp import LabApp

    for name in ("COURSE_DEVICE", "COURSE_PRESET"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_TOKEN", "t")
    loop = types.SimpleNamespace(add_callback=lambda *_: None)
    app = types.SimpleNamespace(settings={})
    server = types.SimpleNamespace(start=lambda: None, io_loop=loop, web_app=app)
    monkeypatch.setattr(LabApp, "initialize_server", lambda argv: server)
    monkeypatch.setattr(lab.signal, "signal", lambda *_: None)
    for name in ("IPYTHONDIR", "MPLBACKEND"):
        monkeypatch.setenv(name, "mine")
    assert lab.open_lab(preset=preset) == 0
    found = os.environ.get("COURSE_DEVICE"), os.environ.get("COURSE_PRESET")
    assert found == expected
    # No start-up files and settings of the reader's other notebooks.
    assert "mine" not in (os.environ["IPYTHONDIR"], os.environ.get("MPLBACKEND"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "w"}, True)],
)
def test_no_browser_takes_over_a_terminal(monkeypatch, variables, expected):
    monkeypatch.setattr(lab.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert lab.has_display() is expected


@pytest.mark.parametrize(
    ("step", "lives", "browser", "display"),
    [
        (servers.answer("a page"), True, True, True),
        (servers.answer("", status=403), True, False, True),
        (servers.answer("a page"), True, True, False),
        (servers.stay_silent, False, True, True),
        (servers.refuse(500), False, True, True),
    ],
)
def test_the_browser_opens_when_the_page_is_there(
    monkeypatch, capsys, step, lives, browser, display
):
    opened = []
    monkeypatch.setattr(lab, "PATIENCE", 0.2)
    monkeypatch.setattr(lab, "has_display", lambda: display)
    with servers.Server() as answering:
        answering.default = step
        started = types.SimpleNamespace(
            connection_url=f"{answering.address}/",
            default_url="/lab/tree/README.md",
            identity_provider=types.SimpleNamespace(token="secret"),
            launch_browser=lambda: opened.append(1),
        )
        asyncio.run(lab._announce(started, browser, time.time() - 2))
    address = f"{answering.address}/lab/tree/README.md?token=secret"
    captured = capsys.readouterr()
    if lives:
        assert READY.match(captured.out)[2] == address
    else:
        assert f"JupyterLab does not answer at {address}." in captured.err
    assert bool(opened) == (lives and browser and display)
