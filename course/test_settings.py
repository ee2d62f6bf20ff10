"""The reader's choices: defaults, allowed values, and a sentence for the others."""

import pytest
import torch

from course import CourseError, settings

VARIABLES = {
    "COURSE_PRESET": (settings.preset, settings.PRESETS),
    "COURSE_DTYPE": (settings.dtype, settings.DTYPES),
    "COURSE_MODEL": (settings.model_name, settings.models()),
    "COURSE_DEVICE": (settings.device, settings.DEVICES),
}


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this machine has the given devices."""

    def having(*devices):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(torch.mps, "is_available", lambda: "mps" in devices)

    return having


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("COURSE_DEVICE", "", torch.device("cpu")),
        ("COURSE_DTYPE", "", torch.float32),
        ("COURSE_MODEL", "", "smollm2-135m"),
        ("COURSE_PRESET", " Full ", "full"),
        ("COURSE_PRESET", "", "quick"),
        ("COURSE_MODEL", "GPT2-small-124m", "gpt2-small-124M"),
        ("COURSE_DTYPE", "bfloat16", torch.bfloat16),
    ],
)
def test_defaults_and_case_and_stray_blanks_are_forgiven(
    monkeypatch, machine, variable, value, found
):
    machine("cuda", "mps")
    monkeypatch.setenv(variable, value)
    assert VARIABLES[variable][0]() == found


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_unknown_value_is_answered_with_the_allowed_ones(monkeypatch, variable):
    read, allowed = VARIABLES[variable]
    monkeypatch.setenv(variable, "fulll")
    with pytest.raises(CourseError) as caught:
        read()
    message = str(caught.value)
    assert variable in message
    assert "'fulll'" in message
    for value in allowed:
        assert repr(value) in message


def test_choose_returns_the_preset(monkeypatch):
    assert settings.choose(quick=3, full=7) == 3
    monkeypatch.setenv("COURSE_PRESET", "full")
    assert settings.choose(quick=3, full=7) == 7


def test_choose_refuses_presets_that_differ_in_more_than_size(monkeypatch):
    with pytest.raises(ValueError, match=r"quick has \['a', 'b'\], full has \['a'\]"):
        settings.choose(quick=dict(b=1, a=2), full=dict(a=9))
    with pytest.raises(ValueError, match=r"quick has \['a'\], full has none"):
        settings.choose(quick=dict(a=1), full=9)


@pytest.mark.parametrize(
    ("present", "best"),
    [("", "cpu"), ("mps", "mps"), ("cuda", "cuda"), ("cuda mps", "cuda")],
)
def test_best_is_the_fastest_device_there_is(monkeypatch, machine, present, best):
    machine(*present.split())
    monkeypatch.setenv("COURSE_DEVICE", "best")
    assert settings.device() == torch.device(best)


@pytest.mark.parametrize(
    ("present", "wanted", "fix"),
    [((), "cuda", "'cpu', or"), ((), "mps", "'cpu', or"), (("cuda",), "mps", "'cuda'")],
)
def test_a_lacking_device_is_answered_with_those_that_are_there(
    monkeypatch, machine, present, wanted, fix
):
    machine(*present)
    monkeypatch.setenv("COURSE_DEVICE", wanted)
    with pytest.raises(CourseError, match=f"'{wanted}'.*Set COURSE_DEVICE to .*{fix}"):
        settings.device()


@pytest.mark.parametrize(
    ("value", "forbidden"),
    [(None, False), ("", False), ("0", False), ("false", False), (" No ", False)]
    + [("1", True), ("true", True), ("yes", True), ("on", True), ("nein", True)],
)
def test_the_network_is_forbidden_by_anything_but_a_no(monkeypatch, value, forbidden):
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("COURSE_OFFLINE", value)
    assert settings.offline() is forbidden


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_slip_is_told_before_a_notebook_that_might_never_ask(monkeypatch, variable):
    settings.check_choices()
    monkeypatch.setenv(variable, "fulll")
    with pytest.raises(CourseError, match=f"{variable} is 'fulll'"):
        settings.check_choices()
