"""List the exercises of the course: all of them, or those that fit.

    python3 -m course run appendix-C/exercise_list.py --level 1 --minutes 10

They are read from the notebooks. The table in the README beside this file is made from
the same list; `--write` brings it up to date, as every `refresh` does.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable

from course.running import notebooks, statements
from course.running.statements import Statement


def fitting(
    asked: Iterable[Statement],
    *,
    chapter: str | None = None,
    level: int | None = None,
    minutes: int | None = None,
) -> list[Statement]:
    """Return the exercises that fit, in the order given.

    Args:
        asked: exercises, as `statements.everywhere` returns them.
        chapter: what stands before the point of the number, such as "3", "A" or "L".
        level: 1, 2 or 3.
        minutes: how many there are; longer exercises are left out.
    """
    return [
        one
        for one in asked
        if (chapter is None or one.number.partition(".")[0] == chapter.upper())
        and (level is None or one.level == level)
        and (minutes is None or one.minutes <= minutes)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the list or write the table; return 1 if no exercise fits, else 0."""
    parser = argparse.ArgumentParser(description="List the exercises that fit.")
    parser.add_argument("--chapter", help="such as 3; L is from GPT to Llama")
    parser.add_argument("--level", type=int, choices=(1, 2, 3))
    parser.add_argument("--minutes", type=int, help="how many you have")
    parser.add_argument("--write", action="store_true", help="write the README's table")
    options = parser.parse_args(arguments)
    if options.write:
        return notebooks.fill_pages()
    found = fitting(
        statements.everywhere(),
        chapter=options.chapter,
        level=options.level,
        minutes=options.minutes,
    )
    if not found:
        print("No exercise fits; leave an option out.", file=sys.stderr)
        return 1
    for one in found:
        place = one.place.partition("#")[0]
        print(f"{one.number:>5}  {one.level}  {one.minutes:3} min  {one.title}")
        print(f"{'':16}{place}")
    levels = Counter(one.level for one in found)
    counted = ", ".join(f"{levels[level]} of level {level}" for level in sorted(levels))
    ending = "" if len(found) == 1 else "s"
    total = sum(one.minutes for one in found)
    print(f"{len(found)} exercise{ending} ({counted}), {total} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
