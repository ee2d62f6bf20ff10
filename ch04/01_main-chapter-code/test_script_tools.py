"""What the scripts share: options, files, the bar, and how a script fails."""

import argparse
import builtins
import io
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

import script_tools
from course import CourseError

OPTIONS = argparse.Namespace()


def read(*arguments, **kind):
    parser = argparse.ArgumentParser(prog="script.py")
    parser.add_argument("--value", **kind)
    return parser.parse_args(arguments).value


@pytest.fixture
def outside_the_course(monkeypatch):
    """As in a copy of the files: there is no `course` to import."""
    genuine = builtins.__import__

    def without_course(name, *rest):
        if name.partition(".")[0] == "course":
            raise ImportError(name)
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_course)


# --- options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("seed", str(2**63), "--value: has too many digits"),
        ("preset", "huge", "--value: invalid choice: 'huge' (choose from quick, full)"),
    ],
)
def test_wrong_options_are_named(kind, text, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--value", text, type=getattr(script_tools, kind))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_environment_chooses_the_preset(monkeypatch, capsys):
    option = {"type": script_tools.preset, "default": ""}
    monkeypatch.delenv("COURSE_PRESET", raising=False)
    assert read(**option) == script_tools.preset() == "quick"
    monkeypatch.setenv("COURSE_PRESET", " Full ")
    assert read(**option) == script_tools.preset() == "full"
    assert read("--value", "quick", **option) == "quick"
    monkeypatch.setenv("COURSE_PRESET", "huge")
    assert read("--value", "quick", **option) == "quick"
    with pytest.raises(SystemExit):
        read(**option)
    assert "COURSE_PRESET is 'huge': set it to quick or full" in capsys.readouterr().err


# --- what the reader chose, and what the course holds ---------------------------------


def test_the_environment_chooses_the_device(monkeypatch):
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    assert script_tools.device() == torch.device("cpu")
    monkeypatch.setenv("COURSE_DEVICE", "best")
    assert isinstance(script_tools.device(), torch.device)
    monkeypatch.setenv("COURSE_DEVICE", "abacus")
    with pytest.raises(ValueError, match="COURSE_DEVICE.*abacus"):
        script_tools.device()


def test_runs_go_where_the_course_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    assert script_tools.runs_folder() == tmp_path
    monkeypatch.delenv("COURSE_RUNS")
    assert script_tools.runs_folder().name == "runs"
    assert script_tools.runs_folder().is_absolute()


@pytest.mark.parametrize(
    ("value", "closed"), [("1", True), ("0", False), ("No", False), ("", False)]
)
def test_the_network_is_closed_where_the_reader_says_so(monkeypatch, value, closed):
    monkeypatch.setenv("COURSE_OFFLINE", value)
    assert script_tools.offline() is closed


def test_the_network_is_closed_outside_the_course_too(outside_the_course, monkeypatch):
    for value, closed in {"1": True, "false": False}.items():
        monkeypatch.setenv("COURSE_OFFLINE", value)
        assert script_tools.offline() is closed


def test_a_copy_works_outside_the_course(outside_the_course, monkeypatch):
    monkeypatch.delenv("COURSE_RUNS", raising=False)
    assert script_tools.runs_folder() == Path("runs")
    with pytest.raises(ValueError, match="story is not here: give a text with --data"):
        script_tools.read_text(None)


def test_the_story_is_fetched_by_name():
    text, name = script_tools.read_text(None)
    assert name == "half-a-ladder.txt"
    assert len(text) > 20_000


def test_a_text_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\ufeffThe lamp", encoding="utf-8")
    assert script_tools.read_text(path) == ("The lamp", "text.txt")


def test_what_is_no_text_is_named(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not text in UTF-8 \(byte 3"):
        script_tools.read_text(latin)
    with pytest.raises(ValueError, match=r"none cannot be read \(No such file"):
        script_tools.read_text(tmp_path / "none")


def test_a_missing_vocabulary_is_named(monkeypatch):
    assert script_tools.gpt2_tokenizer().n_vocab == 50257

    def fail(name):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(ValueError, match=r"\(no route to gpt2\): run the set-up"):
        script_tools.gpt2_tokenizer()


# --- while it runs --------------------------------------------------------------------


def test_the_bar_follows_the_steps_and_lines_stay_whole(capsys):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with script_tools.progress_bar(optimizer, 3):
        for step in range(3):
            optimizer.step()
            print(f"step {step}")
    assert len(optimizer._optimizer_step_post_hooks) == 0
    assert capsys.readouterr() == ("step 0\nstep 1\nstep 2\n", "")


def test_the_exit_code_is_that_of_the_body():
    assert script_tools.run(lambda options: None, OPTIONS) == 0
    assert (
        script_tools.run(lambda options: options.code, argparse.Namespace(code=3)) == 3
    )


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ValueError, 2),
        (FileNotFoundError, 2),
        (OSError, 1),
        (RuntimeError, 1),
        (CourseError, 1),
    ],
)
def test_a_problem_is_one_line_and_a_mistake_is_told_from_others(kind, code, capsys):
    def body(options):
        raise kind("The text is too short.")

    assert script_tools.run(body, OPTIONS) == code
    assert capsys.readouterr() == ("", "test_script_tools.py: The text is too short.\n")
    assert script_tools.run(body, OPTIONS, name="train.py") == code
    assert capsys.readouterr().err == "train.py: The text is too short.\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    def body(options):
        return options.nonsense

    with pytest.raises(AttributeError, match="nonsense"):
        script_tools.run(body, OPTIONS)


def test_an_interruption_says_how_to_go_on(capsys):
    def body(options):
        raise KeyboardInterrupt

    assert script_tools.run(body, OPTIONS, stopped="use --resume.") == 130
    assert capsys.readouterr().err == "\ntest_script_tools.py: use --resume.\n"


def test_a_terminal_that_knows_few_characters_shows_codes(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert script_tools.run(lambda options: print("caf\u00e9"), OPTIONS) == 0
    terminal.flush()
    assert rb"caf\xe9" in terminal.buffer.getvalue()


# --- Places and texts that are tried first --------------------------------------------


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    folder, file = tmp_path / "a" / "b", tmp_path / "c" / "text.txt"
    assert script_tools.folder_to_write(folder) == folder
    assert not folder.exists()
    folder.mkdir()
    assert list(script_tools.folder_to_write(folder).iterdir()) == []
    assert script_tools.file_to_write(file) == file
    assert not file.exists()
    file.write_text("mine", encoding="utf-8")
    script_tools.file_to_write(file)
    assert file.read_text(encoding="utf-8") == "mine"
    for attempt in (
        lambda: script_tools.folder_to_write(file),
        lambda: script_tools.folder_to_write(file / "below"),
        lambda: script_tools.file_to_write(folder),
    ):
        with pytest.raises(ValueError, match=r"cannot be written \(.+\): choose"):
            attempt()


def test_dtype_and_device_are_the_reader_s(monkeypatch, outside_the_course):
    monkeypatch.delenv("COURSE_DTYPE", raising=False)
    assert script_tools.dtype() == torch.float32
    monkeypatch.setenv("COURSE_DTYPE", " BFloat16")
    assert script_tools.dtype() == torch.bfloat16
    monkeypatch.setenv("COURSE_DTYPE", "int3")
    with pytest.raises(ValueError, match="'int3': set it to float32 or bfloat16"):
        script_tools.dtype()
    monkeypatch.setenv("COURSE_DEVICE", "banana")
    with pytest.raises(ValueError, match="'banana', but PyTorch finds no such device"):
        script_tools.device()


@pytest.mark.parametrize("resume", [None, "go on"])
def test_a_run_goes_on_or_begins_anew_and_not_both(resume, capsys):
    parser = argparse.ArgumentParser()
    script_tools.add_again(parser, "a model", resume)
    assert parser.parse_args(["--overwrite"]).overwrite
    assert hasattr(parser.parse_args([]), "resume") == (resume is not None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--overwrite", "--resume"])
    said = "not allowed with" if resume else "unrecognized arguments: --resume"
    assert said in capsys.readouterr().err
    assert "where a model is already" in parser.format_help()
