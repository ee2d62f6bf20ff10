"""What the scripts of all chapters share: options, files, a bar, and one way to fail.

Support: nothing here is taught. A script reads its options and hands them to its body;
what goes wrong there becomes one line on the error stream and an exit code:

>>> def train(options):
...     raise ValueError("The text is too short: take a longer one.")
>>> with contextlib.redirect_stderr(sys.stdout):
...     run(train, argparse.Namespace(), name="train.py")
train.py: The text is too short: take a longer one.
2

The kinds of options are for argparse, which names the option and the fix:

>>> parser = argparse.ArgumentParser()
>>> _ = parser.add_argument("--seed", type=seed, default=123)
>>> _ = parser.add_argument("--epochs", type=positive_int, default=2)
>>> _ = parser.add_argument("--preset", type=preset, default="")  # COURSE_PRESET's
>>> parser.parse_args(["--epochs", "5"]).epochs
5

A copy of this file works outside the course; it then lacks the course's own data.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch.optim import Optimizer
from tqdm import tqdm

from bpe import load_tokenizer
from option_kinds import (  # noqa: F401  (scripts take them from here)
    parse,
    positive_float,
    positive_int,
    seed,
)
from text_files import read_text_file

PRESETS = ("quick", "full")

# --- Options -------------------------------------------------------------------------


def whole_text(text: str) -> str:
    """A kind of option: a text. Bytes that are none come as halves of characters."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(
            f"{ascii(text)} holds bytes that are not text in UTF-8"
        )
    return text


def model_name(text: str) -> str:
    """A kind of option: a model's name, or a folder, whose whole path is kept.

    What is trained on a model in a folder is read again from anywhere.
    """
    return str(Path(text).resolve()) if Path(text).is_dir() else text


def preset(text: str = "") -> str:
    """A kind of option: "quick" or "full"; for "" what `COURSE_PRESET` says, or quick.

    Give the option the default "": argparse sends that through this function, too.
    """
    chosen = text or _environment("COURSE_PRESET", "quick")
    if chosen in PRESETS:
        return chosen
    if text:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {', '.join(PRESETS)})"
        )
    raise argparse.ArgumentTypeError(
        f"COURSE_PRESET is {chosen!r}: set it to quick or full"
    )


def add_again(
    parser: argparse.ArgumentParser, what: str, resume: str | None = None
) -> None:
    """Add `--overwrite`, and `--resume` if its help is given; `place_for` asks them.

    Args:
        what: is made in --out, such as "a model".
        resume: the help of `--resume`.
    """
    again = parser.add_mutually_exclusive_group()
    if resume is not None:
        again.add_argument("--resume", action="store_true", help=resume)
    begin = f"start over where {what} is already"
    again.add_argument("--overwrite", action="store_true", help=begin)


def _environment(variable, default):
    """What the reader chose for the whole course, as `course.settings` reads it."""
    return os.environ.get(variable, "").strip().lower() or default


# --- What the reader chose, and what the course holds --------------------------------


def device() -> torch.device:
    """The reader's device: the CPU unless `COURSE_DEVICE` says otherwise.

    Raises `ValueError` if there is no such device here.
    """
    try:
        from course import settings
    except ImportError:
        name = _environment("COURSE_DEVICE", "cpu")
    else:
        return _chosen(settings.device)
    found = torch.accelerator.current_accelerator(check_available=True)
    here = torch.device("cpu") if found is None else found
    if name not in ("cpu", "best", here.type):
        raise ValueError(
            f"COURSE_DEVICE is {name!r}, but PyTorch finds no such device: set it to "
            f"cpu, or to best for {here.type}."
        )
    return torch.device("cpu") if name == "cpu" else here


def dtype() -> torch.dtype:
    """The reader's number type for weights: float32 unless `COURSE_DTYPE` says so.

    Raises `ValueError` for one that is not known.
    """
    try:
        from course import settings
    except ImportError:
        name = _environment("COURSE_DTYPE", "float32")
    else:
        return _chosen(settings.dtype)
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"COURSE_DTYPE is {name!r}: set it to float32 or bfloat16.")
    return getattr(torch, name)


def _chosen(setting):
    """A setting of the course; a variable that holds another word is a mistake."""
    from course import CourseError

    try:
        return setting()
    except CourseError as problem:
        raise ValueError(str(problem)) from None


def offline() -> bool:
    """Whether the reader has forbidden the network, with `COURSE_OFFLINE`."""
    try:
        from course import settings
    except ImportError:
        return _environment("COURSE_OFFLINE", "") not in ("", "0", "false", "no")
    return settings.offline()


def runs_folder() -> Path:
    """Where the course keeps what its scripts make; elsewhere the folder runs."""
    try:
        from course.paths import runs_dir
    except ImportError:
        return Path(os.environ.get("COURSE_RUNS") or "runs")
    return runs_dir()


def folder_to_write(path: Path) -> Path:
    """Try to make a folder and write in it; `ValueError` before the work, not after."""
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        if new:
            path.rmdir()
        return path
    except OSError as problem:
        raise _unwritable(path, problem) from None


def file_to_write(path: Path) -> Path:
    """Make the folder of a file and try to write it, leaving what is in it."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
        if new:
            path.unlink()
        return path
    except OSError as problem:
        raise _unwritable(path, problem) from None


def place_for(out: Path, file: str, options: argparse.Namespace) -> Path:
    """A folder that can be written, and in which no trained model would be lost.

    Args:
        out: the folder.
        file: the name of what is made there.
        options: with `overwrite`, and `resume` if the script knows it.

    Raises:
        ValueError: the folder cannot be written, or holds such a file already and
            neither option is given.
    """
    folder_to_write(out)
    resumes = hasattr(options, "resume")
    allowed = options.overwrite or (resumes and options.resume)
    if (out / file).exists() and not allowed:
        raise ValueError(
            f"{out} holds a trained model, {file}: "
            f"{'--resume goes on with the run, ' * resumes}--overwrite starts over, or "
            "choose another --out."
        )
    return out


def _unwritable(path, problem):
    return ValueError(
        f"{path} cannot be written ({problem.strerror}): choose another place with "
        "--out."
    )


def read_text(path: Path | None) -> tuple[str, str]:
    """A text and what to call it: the file `path`, or the course's short story.

    Raises:
        ValueError: as `read_text_file`; or no path is given outside the course.
        course.CourseError: the short story is neither here nor can it be fetched.
    """
    if path is None:
        try:
            from course.assets import fetch
        except ImportError:
            raise ValueError(
                "The course's short story is not here: give a text with --data FILE."
            ) from None
        path = fetch("short-story")
    return read_text_file(path, "give a text with --data"), path.name


def gpt2_tokenizer() -> tiktoken.Encoding:
    """GPT-2's tokenizer; `ValueError` if its vocabulary is not on this machine."""
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, RuntimeError) as problem:
        raise ValueError(
            f"GPT-2's vocabulary cannot be loaded ({problem}): run the set-up of the "
            "course once, or connect to the network."
        ) from None


def tokenizer(path: Path | None) -> Any:
    """The tokenizer in a file that `bpe.save_tokenizer` wrote; GPT-2's without one.

    Raises `ValueError` for a file that is missing, damaged or another kind of file.
    """
    if path is None:
        return gpt2_tokenizer()
    try:
        return load_tokenizer(path)
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be read ({problem.strerror}): give a tokenizer that bpe.py "
            "saved, or none to use GPT-2's."
        ) from None


# --- While it runs -------------------------------------------------------------------


@contextlib.contextmanager
def progress_bar(optimizer: Optimizer, num_steps: int) -> Iterator[None]:
    """A bar that follows the optimizer's steps; what is printed appears above it.

    Silent when the error stream is not a terminal.
    """
    # It would load a progress bar for notebooks, which warns where there is none.
    from tqdm.contrib import DummyTqdmFile

    with tqdm(total=num_steps, unit="step", disable=None) as bar:
        hook = optimizer.register_step_post_hook(lambda *_: _advance(bar))
        out: Any = sys.stdout if bar.disable else DummyTqdmFile(sys.stdout)
        try:
            with contextlib.redirect_stdout(out):
                yield
        finally:
            hook.remove()


def _advance(bar: tqdm) -> None:
    bar.update()


def run(
    main_body: Callable[[argparse.Namespace], Any],
    options: argparse.Namespace,
    *,
    name: str | None = None,
    stopped: str = "stopped.",
) -> int:
    """Run the body of a script; return its exit code.

    A problem that the reader can fix becomes one line, "NAME: problem", on the error
    stream; any other exception is a mistake of ours and comes with its traceback.

    Args:
        main_body: takes the options; what it returns is the exit code, None means 0.
        options: as argparse read them.
        name: the script's name; None takes that of the file that `main_body` is in.
        stopped: what to say after Ctrl-C, such as how to go on.

    Returns:
        0 or what `main_body` returned; 2 for a mistake of the reader, as for a wrong
        option; 1 for another problem; 130 after Ctrl-C.
    """
    name = name or Path(main_body.__code__.co_filename).name
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may know few characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main_body(options) or 0
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        return 130
    except Exception as problem:
        # The course's own error goes by its name: a copy of this file has no course.
        fixable = isinstance(problem, (ValueError, OSError, RuntimeError, ImportError))
        if not fixable and type(problem).__name__ != "CourseError":
            raise
        print(f"{name}: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, _MISTAKES) else 1


# What the reader gave is wrong; others are problems of a disk, a network, a server.
_MISTAKES = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
