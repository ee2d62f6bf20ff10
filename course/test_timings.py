"""Claims about time: measured again, said, and on an idle machine under test raised."""

import time

import pytest

from course import timings


@pytest.fixture
def idle(monkeypatch):
    """A machine that has nothing else to do, as far as the helper can see."""
    monkeypatch.setattr(timings, "_others_wait", lambda: False)
    monkeypatch.setattr(timings, "ALONE", 1e9)


@pytest.fixture
def reader(monkeypatch):
    monkeypatch.setenv("COURSE_GUARD", "")


def test_a_claim_that_holds_says_what_it_was_given(reader, capsys):
    pause = lambda: time.sleep(0.001)  # noqa: E731
    timings.check_faster(lambda: None, pause, times=3)
    assert capsys.readouterr().out == ""
    timings.check_faster(lambda: None, pause, times=3, says="it is so")
    assert capsys.readouterr().out == "it is so\n"


def test_a_machine_that_was_busy_for_a_moment_is_asked_again(idle, capsys):
    answers = iter([False, False, True])
    timings.check_time(lambda: next(answers), "It is fast")
    assert next(answers, None) is None
    assert capsys.readouterr().out == "It is fast\n"


def test_who_reads_is_told_and_goes_on(reader, idle, capsys):
    calls = []
    timings.check_time(lambda: bool(calls.append(1)), "it is fast", lambda: " No.")
    assert len(calls) == timings.ATTEMPTS
    said = capsys.readouterr().out
    assert said.startswith("Measured 5 times, and not seen here: it is fast. No. Is")
    timings.check_faster(lambda: time.sleep(0.002), lambda: None, times=2)
    said = capsys.readouterr().out
    assert "the claim about time that this cell checks. Here it was 0." in said


def test_under_test_a_wrong_claim_is_an_error_on_an_idle_machine(idle, monkeypatch):
    monkeypatch.setenv("COURSE_GUARD", "1")
    with pytest.raises(AssertionError, match="not seen here: it is fast"):
        timings.check_time(lambda: False, "it is fast")


@pytest.mark.parametrize("why", ["others wait", "this process waits"])
def test_under_test_a_busy_machine_fails_nobody_and_changes_no_output(
    monkeypatch, capsys, why
):
    monkeypatch.setenv("COURSE_GUARD", "1")
    monkeypatch.setattr(timings, "_others_wait", lambda: why == "others wait")
    timings.check_time(lambda: bool(time.sleep(0.01)), "It is fast")
    assert capsys.readouterr().out == "It is fast\n"  # as it is stored
