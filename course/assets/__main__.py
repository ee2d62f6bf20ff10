"""`python -m course.assets hash NAME` and `... fetch NAME ...`."""

from __future__ import annotations

import argparse
import sys

from course import CourseError, assets
from course.assets.store import say


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m course.assets")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "print the lines of assets.toml for a file in the tree"
    commands.add_parser("hash", help=text).add_argument("name", nargs="+")
    text = "fetch files and print where they are"
    fetching = commands.add_parser("fetch", help=text)
    fetching.add_argument("name", nargs="+")
    text = "accept the terms of use that a file comes with"
    fetching.add_argument("--accept-terms", action="store_true", help=text)
    options = parser.parse_args(arguments)
    try:
        for name in options.name:
            if options.command == "hash":
                file = assets.find(name).place()
                print(f"size = {file.stat().st_size}")
                print(f'sha256 = "{assets.sha256_of(file)}"')
            else:
                print(assets.fetch(name, accept_terms=options.accept_terms))
    except ModuleNotFoundError as error:
        say(
            f"this Python has no package {error.name}. Run `python3 -m course setup`, "
            "then use the Python of the environment that it names."
        )
        return 1
    except (CourseError, OSError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
