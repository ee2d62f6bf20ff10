"""Running pip: its failures in sentences, and what is installed.

`test_environment` runs the real pip; here are the parts that need no process.
"""

import os
from pathlib import Path

import pytest

from course import settings
from course.installation import pip_runs

# What pip 23 to 26 print; shortened in the middle of lines.
NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object>: Failed \
to establish a new connection: [Errno -3] Temporary failure in name resolution')'
ERROR: Could not find a version that satisfies the requirement torch==2.13.0
ERROR: No matching distribution found for torch==2.13.0
"""
NOTHING = """\
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from \
versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""
NO_BUILD = """\
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from \
versions: 2.6.0, 2.7.1)
ERROR: No matching distribution found for torch==2.13.0
"""
DISK_FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space \
left on device"
CERTIFICATE = (
    "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] \
certificate verify failed: unable to get local issuer certificate'))\n"
    + NO_BUILD
)
PROXY = (
    "ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 \
Proxy Authentication Required'))\n"
    + NO_NETWORK
)
CONFLICT = "ERROR: ResolutionImpossible: for help visit ...\n"
QUOTA = "ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota \
exceeded"
SOCKS = "ERROR: Could not install packages due to an OSError: Missing dependencies for \
SOCKS support."
TLS = "SSLError(SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number'))"
PERMISSION = "ERROR: Could not install packages due to an OSError: [WinError 5] Access \
is denied: 'C:\\\\course\\\\.venv\\\\torch'"


@pytest.mark.parametrize(
    ("output", "fragment"),
    [
        (NO_NETWORK, "name cannot be resolved; is there a network. Then start again"),
        (NO_BUILD, "no build of torch==2.13.0 for Python"),
        (NOTHING, "check the network and pip's index settings"),
        (DISK_FULL, "no room is left in /env (3 GB are needed with the CPU build of"),
        (QUOTA, "or in the share of it that you may use"),
        (SOCKS, "give HTTPS_PROXY an address that begins with http://"),
        (TLS, "give HTTPS_PROXY an address that begins with http://"),
        (CERTIFICATE, "PIP_CERT"),
        (PROXY, "HTTPS_PROXY"),
        (CONFLICT, "without --here"),
        (PERMISSION, "/env cannot be written; close programs that use it"),
        ("ERROR: {something} new\n", "its last lines say why"),
        ("a line\n\n" * 9, "its last lines say why"),
    ],
)
def test_a_failure_becomes_sentences_and_pips_last_lines(output, fragment, monkeypatch):
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    text = pip_runs.explain_failure(output, "/env")
    sentences, _, lines = text.partition(" pip said:\n")
    assert fragment in sentences
    assert sentences.endswith(".")
    assert "{" not in sentences
    printed = [line.strip() for line in output.splitlines() if line]
    assert [line.strip() for line in lines.splitlines()] == printed[-6:]


def test_settings_for_other_environments_do_not_reach_pip(monkeypatch):
    foreign = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", *settings.FOREIGN}
    for name in foreign:
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mine.example/simple")
    environ = pip_runs.clean_environ()
    assert environ["PIP_USER"] == "0"
    assert environ["PIP_INDEX_URL"] == "https://mine.example/simple"
    assert not foreign & set(environ)


# --- What is installed ----------------------------------------------------------------


def install(folder, name, version):
    """Make it look as if a package were installed in `folder`."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(head, encoding="utf-8")


def test_what_is_installed_is_compared_with_the_pins(tmp_path, monkeypatch):
    install(tmp_path, "whole", "1.0+cpu")
    install(tmp_path, "torch", "2.13.0+cpu")
    pins = {"whole": "1.0", "torch": "2.13.1", "tiny": "1.0"}
    monkeypatch.setattr(pip_runs, "pins", lambda name: pins)
    wrong = pip_runs.not_as_pinned(pip_runs.BASE, tmp_path)
    assert wrong == {"torch": "2.13.0", "tiny": ""}


@pytest.fixture
def calls(monkeypatch):
    """What would be given to pip, with the content of the files."""
    found = []

    def pip(python, arguments, lock):
        given = [
            Path(part).read_text(encoding="utf-8") if os.path.isfile(part) else part
            for part in arguments
        ]
        found.append(given)

    monkeypatch.setattr(pip_runs, "_pip", pip)
    return found


def test_torch_comes_first_and_what_is_kept_is_neither_asked_for_nor_changed(
    calls, tmp_path
):
    pip_runs.install_torch("python", tmp_path, {}, None)
    pip_runs.install_others("python", {}, False, None)
    kept = {"torch": "2.9.0+cu126", "numpy": "1.26.4"}
    pip_runs.install_others("python", kept, True, None)
    (first, second, third) = calls
    pins = pip_runs.pins(pip_runs.BASE)
    assert first[0] == f"torch=={pins['torch']}"
    assert "torch==" not in first[2]
    assert f"numpy=={pins['numpy']}" in first[2]
    assert len(second[1].split()) == len(pins)
    assert second[3] == ""
    assert "numpy==" not in third[1]
    assert third[3].split() == ["torch==2.9.0+cu126", "numpy==1.26.4"]


@pytest.mark.parametrize(
    ("platform", "version", "told"),
    [("linux", "2.9", True), ("darwin", "2.9", False), ("linux", "pinned", False)],
)
def test_the_size_of_torch_is_told_where_it_has_to_be_downloaded(
    calls, tmp_path, capsys, monkeypatch, platform, version, told
):
    monkeypatch.setattr(pip_runs.sys, "platform", platform)
    pinned = pip_runs.pins(pip_runs.BASE)["torch"]
    install(tmp_path, "torch", version.replace("pinned", f"{pinned}+cpu"))
    pip_runs.install_torch("python", tmp_path, {}, None)
    text = capsys.readouterr().out
    assert ("several GB" in text) is ("setup/02_installing" in text) is told
    assert len(calls) == 1
