"""The command `lab`, with the real JupyterLab."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request

import pytest

from course import lab, paths

WAIT = 90  # seconds, for what takes three on an idle machine
READY = re.compile(r"^ready after ([\d.]+) s: (http://\S+)")

posix = pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")


class Lab:
    """A running `lab` command and what it has printed."""

    def __init__(self, home, *arguments, **variables):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
        for name in ("COURSE_DEVICE", "COURSE_PRESET", "DISPLAY", "BROWSER"):
            environ.pop(name, None)
        # A reader's settings and workspaces are none of a test's business.
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            environ[f"JUPYTER_{name}"] = str(home / name.lower())
        self.process = subprocess.Popen(
            [sys.executable, paths.ROOT / "course", "lab", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**environ, **variables},
            cwd=os.sep,
        )
        self.lines, self.seconds, self.url = [], None, None
        watchdog = threading.Timer(WAIT, self.process.kill)
        watchdog.start()
        for line in self.process.stdout:
            self.lines.append(line)
            if ready := READY.match(line):
                self.seconds, self.url = float(ready[1]), ready[2]
                break
        watchdog.cancel()
        assert self.url, "".join(self.lines)

    def get(self, place):
        """Return what the server answers at `place`, with the token."""
        base, _, token = self.url.partition("/lab/tree/README.md?token=")
        headers = {"Authorization": f"token {token}"}
        request = urllib.request.Request(base + place, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=WAIT) as answer:
            return answer.read().decode("utf-8")

    def stop(self, number):
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=WAIT)
        return rest


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """JupyterLab as a reader starts it, without a browser."""
    started = Lab(tmp_path_factory.mktemp("jupyter"), "--no-browser")
    yield started
    started.process.kill()
    started.process.communicate()


def test_it_says_where_it_is_when_it_can_be_used(running):
    assert len([line for line in running.lines if READY.match(line)]) == 1
    assert "/lab/tree/README.md?token=" in running.url
    assert "Ctrl-C" in running.lines[-1]
    # Jupyter's own lines about addresses and extensions would bury this one.
    assert len(running.lines) <= 3


def test_it_is_closed_to_others(running):
    place = running.url.partition("?")[0].replace("/lab/tree/", "/api/contents/")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refusal:
        opener.open(place, timeout=WAIT)
    assert refusal.value.code == 403


def test_it_serves_the_tree_with_the_kernel_of_the_environment(running):
    content = json.loads(running.get("/api/contents/"))["content"]
    assert {"README.md", "course", "ch02"} <= {entry["name"] for entry in content}
    kernels = json.loads(running.get("/api/kernelspecs"))
    assert kernels["default"] == "python3"
    assert "python3" in kernels["kernelspecs"]


def test_markdown_opens_rendered_and_no_news_are_fetched(running):
    """From the settings in the tree: nothing was written into the environment."""
    plugin = "@jupyterlab/docmanager-extension:plugin"
    setting = json.loads(running.get(f"/lab/api/settings/{plugin}"))
    viewers = setting["schema"]["properties"]["defaultViewers"]["default"]
    assert viewers == {"markdown": "Markdown Preview"}
    page = running.get("/lab/tree/README.md")
    config = json.loads(
        re.search(r"jupyter-config-data[^>]*>(.*?)</script", page, re.S)[1]
    )
    news = "@jupyterlab/apputils-extension:announcements"
    assert news in config["disabledExtensions"]


@posix
def test_a_second_start_is_quick_and_ctrl_c_ends_it(tmp_path):
    """Second start: the environment is there. Five seconds are promised for it."""
    attempts = []
    for number in range(3):  # the machine may be busy with other tests
        started = Lab(tmp_path / str(number), "--no-browser")
        attempts.append(started.seconds)
        began = time.monotonic()
        rest = started.stop(signal.SIGINT)
        assert started.process.returncode == 0, rest
        assert rest.strip() == "Stopping JupyterLab ..."
        assert time.monotonic() - began < 30
        if min(attempts) <= 5:
            break
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    assert min(attempts) <= 5 * max(1, load)


@posix
def test_its_own_folder_and_port_reach_jupyterlab(tmp_path):
    folder = tmp_path / "my \u8cc7\u6599"
    folder.mkdir()
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    started = Lab(tmp_path / "j", "--no-browser", "--port=18765", str(folder))
    assert ":187" in started.url  # the next ones, if somebody has that port
    content = json.loads(started.get("/api/contents/"))["content"]
    assert [entry["name"] for entry in content] == ["README.md"]
    started.stop(signal.SIGTERM)
    assert started.process.returncode == 0


# --- Parts ----------------------------------------------------------------------------


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
    server = types.SimpleNamespace(start=lambda: None)
    monkeypatch.setattr(LabApp, "initialize_server", lambda argv: server)
    monkeypatch.setattr(lab, "_announce", lambda *_: None)
    monkeypatch.setattr(lab.signal, "signal", lambda *_: None)
    assert lab.open_lab(preset=preset) == 0
    found = os.environ.get("COURSE_DEVICE"), os.environ.get("COURSE_PRESET")
    assert found == expected


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
    assert lab._has_display() is expected


@pytest.fixture
def server():
    """A server that was started; `opened` holds what the browser was told to open."""
    opened = []
    return types.SimpleNamespace(
        connection_url="http://localhost:8888/",
        default_url="/lab/tree/README.md",
        identity_provider=types.SimpleNamespace(token="secret"),
        launch_browser=lambda: opened.append(1),
        opened=opened,
    )


ADDRESS = "http://localhost:8888/lab/tree/README.md?token=secret"


@pytest.mark.parametrize(("display", "browser"), [(1, 1), (1, 0), (0, 1)])
def test_the_browser_opens_when_the_page_is_there(
    server, monkeypatch, capsys, display, browser
):
    answers = iter([False, False, True])
    monkeypatch.setattr(lab, "_answers", lambda url: next(answers))
    monkeypatch.setattr(lab, "_has_display", lambda: bool(display))
    lab._announce(server, bool(browser), time.time() - 2)
    assert READY.match(capsys.readouterr().out)[2] == ADDRESS
    assert len(server.opened) == (display and browser)


def test_a_server_that_never_answers_is_told(server, monkeypatch, capsys):
    monkeypatch.setattr(lab, "_answers", lambda url: False)
    monkeypatch.setattr(lab, "PATIENCE", 0.2)
    lab._announce(server, True, time.time())
    captured = capsys.readouterr()
    assert f"does not answer at {ADDRESS}." in captured.err
    assert captured.out == ""
    assert server.opened == []
