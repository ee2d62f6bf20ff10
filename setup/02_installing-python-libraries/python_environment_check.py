"""Check the Python that runs this: are the packages there, as pinned, and do they work?

Each line begins with [OK] or [FAIL]. The list of packages is ``requirements.txt`` at
the course's root and nothing else. ``python3 -m course doctor`` looks at more: machine,
disk, files, settings.

Usage, with any Python::

    python3 python_environment_check.py
"""

import argparse
import functools
import importlib
import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # also for a Python that was never set up
    sys.path.insert(0, str(ROOT))

from course import python_problem  # noqa: E402
from course.installation import pip_runs  # noqa: E402

FIX = (
    "Run `python3 -m course setup`. If that does not help, delete the folder .venv and "
    "run it again: it makes the environment anew."
)
SENTENCE = "Half a ladder, he said, is no ladder."


def get_requirements_dict():
    """Return {package: version} of requirements.txt, in its order."""
    return pip_runs.pins(pip_runs.BASE)


def get_packages(names):
    """Return {package: installed version}, with "" for what is not installed."""
    return pip_runs.installed(names)


@functools.cache
def _owners():
    """Return {module: packages that bring it}; reading this takes half a second."""
    return importlib.metadata.packages_distributions()


def modules_of(name):
    """Return the names under which an installed package is imported."""
    wanted = name.lower().replace("_", "-")
    found = [
        module
        for module, owners in _owners().items()
        if any(owner.lower().replace("_", "-") == wanted for owner in owners)
    ]
    return [module for module in found if module.isidentifier() and module[0] != "_"]


def import_problem(name):
    """Return why an installed package cannot be imported, or ""."""
    for module in modules_of(name)[:1]:
        try:
            importlib.import_module(module)
        except Exception as problem:  # a broken package may raise anything
            return f"{type(problem).__name__}: {problem}"
    return ""


def check_packages(requirements):
    """Print a line for each of {package: version}; return whether all are right."""
    installed, right = get_packages(requirements), True
    for name, wanted in requirements.items():
        have = installed[name]
        problem = import_problem(name) if have else ""
        if have == wanted and not problem:
            print(f"[OK]   {name} {wanted}")
            continue
        right = False
        if problem:
            print(f"[FAIL] {name} {have} is installed but not usable: {problem}")
        else:
            found = f"{have} is installed" if have else "nothing is installed"
            print(f"[FAIL] {name} {wanted} is wanted, {found}")
    return right


def gradient_works():
    """Return whether PyTorch finds that the slope of x * x at 3 is 6."""
    import torch

    x = torch.tensor(3.0, requires_grad=True)
    (x * x).backward()
    return x.grad.item() == 6.0


def tokenizer_works():
    """Return whether GPT-2's tokenizer gives a sentence back as it was."""
    import tiktoken

    from course import assets, paths

    # Without the files that the set-up fetched, tiktoken would ask the network.
    folder = assets.check("gpt2-vocab.bpe").parent
    if folder != paths.cache_dir() / "tiktoken":
        return False
    tokenizer = tiktoken.get_encoding("gpt2")
    return tokenizer.decode(tokenizer.encode(SENTENCE)) == SENTENCE


def check_work():
    """Let the two packages that everything rests on do something small."""
    works = True
    for text, test in {
        "PyTorch computes a gradient": gradient_works,
        "tiktoken takes a sentence apart and puts it together": tokenizer_works,
    }.items():
        try:
            reason = "" if test() else "the result is wrong"
        except Exception as problem:  # whatever it is, the reader has to see it
            reason = f"{type(problem).__name__}: {problem}"
        works = works and not reason
        print(f"[FAIL] {text}: {reason}" if reason else f"[OK]   {text}")
    return works


def check_environment():
    """Print the whole report; return whether everything is in order."""
    problem = python_problem(sys.version_info)
    version = "{}.{}.{}".format(*sys.version_info)
    print(f"[FAIL] {problem}" if problem else f"[OK]   Python {version}")
    right = check_packages(get_requirements_dict())
    # Where packages are missing, the work would only repeat their names.
    return right and check_work() and not problem


def main(arguments=None):
    """Run the check; return 0 if everything is in order, else 1."""
    parser = argparse.ArgumentParser(
        description="Check whether this Python has what the course needs."
    )
    parser.parse_args(arguments)
    right = check_environment()
    print("Everything is in order." if right else FIX)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
