"""COURSE_OFFLINE also closes tiktoken's own door; what is here it reads as always."""

import sys

from course.testing.programs import right, run

ASK = (
    "import tiktoken, tiktoken.load as load\n"
    "print(len(tiktoken.get_encoding('gpt2').encode('a stone')))\n"
    "load.read_file_cached('https://example.org/other.tiktoken')"
)


def test_tiktoken_fetches_nothing_and_says_what_to_do():
    done = run(sys.executable, "-c", ASK, COURSE_OFFLINE="1")
    assert done.stdout == "2\n"
    last = done.stderr.splitlines()[-1]
    said = "tiktoken wants to fetch https://example.org/other.tiktoken, and COURSE_OFFL"
    assert said in last
    assert "run `python3 -m course setup` once" in last
    # Of the network's libraries there is nothing in it.
    assert "urllib3" not in done.stderr
    assert "requests" not in done.stderr


def test_without_the_variable_tiktoken_is_left_alone():
    code = (
        "import tiktoken.load, inspect\n"
        "print(inspect.getmodule(tiktoken.load.read_file).__name__)"
    )
    for value, owner in {"": "tiktoken.load", "1": "course.offline"}.items():
        said = right(run(sys.executable, "-c", code, COURSE_OFFLINE=value))
        assert said.strip() == owner
