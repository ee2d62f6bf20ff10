"""The command `read`: which page, which port, which environment, and its sentences."""

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from course import CourseError, command_line, commands, paths, reading
from course.installation import environment, pip_runs, reading_environment
from course.testing import servers


@pytest.mark.parametrize(
    ("target", "page"),
    [
        (None, "README.html"),
        ("ch01", "ch01/ch01.html"),
        ("ch02/", "ch02/01_main-chapter-code/ch02.html"),
        ("ch04/03_kv-cache", "ch04/03_kv-cache/README.html"),
        ("appendix-B", "appendix-B/README.html"),
        ("setup", "setup/README.html"),
        ("ch02/quiz.md", "ch02/quiz.html"),
    ],
)
def test_what_is_asked_for_is_opened(target, page, monkeypatch):
    monkeypatch.setattr(reading.lab, "reads_japanese", lambda: False)
    assert reading.first_page(target) == page


def test_a_japanese_reader_gets_the_japanese_first_page(monkeypatch):
    monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    assert reading.first_page(None) == "README.ja.html"
    assert reading.first_page("setup") == "setup/README.html"


def test_a_near_miss_is_answered():
    with pytest.raises(CourseError, match="no page ch3. Did you mean ch03[?] Name a "):
        reading.first_page("ch3")


@pytest.mark.parametrize("target", ["ch99", "ch02/gone.ipynb", "course/lab.py", ".."])
def test_a_page_that_is_not_there_gets_a_sentence(target):
    with pytest.raises(CourseError, match="has no page .*Name a chapter \\(ch01, ch02"):
        reading.first_page(target)


def test_a_port_in_use_is_told_or_passed_over(tmp_path):
    with socket.create_server((reading.HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CourseError, match=f"Port {port} cannot be used .*--port"):
            reading.serve(tmp_path, port)
    with (
        reading.serving(tmp_path, None) as first,
        reading.serving(tmp_path, None) as second,
    ):
        assert first.server_port != second.server_port


@pytest.mark.parametrize("port", ["0", "70000", "eighty"])
def test_what_is_no_port_gets_one_line(port, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.parse(["read", "--port", port])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{port} is no port" in line


def test_pages_are_served_to_this_machine_only_and_not_kept(tmp_path):
    (tmp_path / "README.html").write_text("<p>here</p>", encoding="utf-8")
    with reading.serving(tmp_path, None) as server:
        assert server.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{server.server_port}/README.html"
        with urllib.request.urlopen(address) as answer:
            assert answer.headers["Cache-Control"] == "no-cache"
            assert answer.read() == b"<p>here</p>"


def test_the_command_makes_the_pages_says_where_and_stops(tmp_path):
    """A process as a reader starts it, with a builder that is done at once."""
    builder = tmp_path / "builder.py"
    builder.write_text(
        "import pathlib, sys\n"
        "out = pathlib.Path(sys.argv[2], 'html')\n"
        "out.mkdir(parents=True)\n"
        "(out / 'README.html').write_text('made')\n",
        encoding="utf-8",
    )
    code = (
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(paths.ROOT)!r})\n"
        "from course import commands, reading\n"
        f"reading.BUILDER = pathlib.Path({str(builder)!r})\n"
        "reading.reading_environment.ensure = lambda: sys.executable\n"
        "sys.exit(commands.main(['read', '--no-browser']))\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=environment.pip_runs.clean_environ() | {"COURSE_RUNS": str(tmp_path / "r")},
    )
    try:
        line = started.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[1]) as answer:
            assert answer.read() == b"made"
        started.send_signal(signal.SIGINT)
        assert started.communicate(timeout=30)[0].strip() == "Stopped."
        assert started.returncode == 0
    finally:
        started.kill()


def test_pages_that_cannot_be_made_end_with_a_sentence(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('line 3 is wrong')", encoding="utf-8")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(reading, "BUILDER", broken)
    monkeypatch.setattr(reading_environment, "ensure", lambda: sys.executable)
    assert commands.main(["read", "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("course: The pages could not be made")


# --- The small environment ------------------------------------------------------------


def test_an_environment_that_has_the_packages_is_used(monkeypatch, tmp_path):
    """That of the tests has them: nothing is installed a second time."""
    monkeypatch.setattr(reading_environment, "READING_ENV", tmp_path / ".venv-read")
    assert not pip_runs.not_as_pinned(pip_runs.READING)
    found = reading_environment.ensure()
    assert found == environment.python_of(environment.chosen_prefix())
    assert not (tmp_path / ".venv-read").exists()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """The small environment at another place, for one tiny package."""
    prefix = tmp_path / ".venv-read"
    monkeypatch.setattr(reading_environment, "READING_ENV", prefix)
    monkeypatch.setattr(reading_environment, "_has_packages", lambda prefix: False)
    monkeypatch.setattr(pip_runs, "pins", lambda name: {"tiny": "1.0"})
    return prefix


def test_it_is_made_once_and_again_when_the_requirements_change(
    elsewhere, monkeypatch, tmp_path, capsys
):
    (tmp_path / "links").mkdir()
    servers.wheel(tmp_path / "links", "tiny", "1.0", {"tiny.py": ""}, needs="")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    python = reading_environment.ensure()
    assert "for reading: once" in capsys.readouterr().out
    done = subprocess.run([python, "-c", "import tiny"], check=False)
    assert done.returncode == 0
    assert reading_environment.ensure() == python
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(environment, "digest", lambda name: "another")
    reading_environment.ensure()
    assert "for reading: once" in capsys.readouterr().out


def test_without_a_network_and_with_nothing_kept_it_says_what_to_do(
    elsewhere, monkeypatch
):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(CourseError, match="tiny.*COURSE_OFFLINE forbids the network"):
        reading_environment.ensure()
    # It is not complete: the next attempt begins anew.
    assert not (elsewhere / environment.STAMP).exists()


def test_too_full_a_disk_is_told_first(elsewhere, monkeypatch):
    monkeypatch.setattr(reading_environment.preflight, "NEEDED_BYTES_READING", 10**18)
    with pytest.raises(CourseError, match="needs .* GB of disk space"):
        reading_environment.ensure()
    assert not elsewhere.exists()
