"""What pip and the libraries for the network say, in words for the reader.

The table is ``failures.toml``, one for the set-up and for fetching files, so that each
cause is known to both. Standard library only.
"""

import platform
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


class Cause(NamedTuple):
    """Cause and fix in one clause, whether to try again, and which package it names."""

    says: str
    again: bool
    package: str


def cause(said: str, place: object, needs: str = "") -> Cause | None:
    """Return why something failed by what a program has `said`; None if unknown.

    `place` is where files were to go, `needs` says in brackets how large they are.
    """
    facts = {"place": place, "needs": needs, "package": ""}
    facts["python"] = "{}.{}".format(*sys.version_info)
    facts["machine"] = f"{platform.system()} {platform.machine()}"
    for known in _TABLE["failures"]:
        if sign := re.search(known["pattern"], said):
            facts |= sign.groupdict()
            says = known["says"].format_map(facts)
            return Cause(says, "again" in known, facts["package"])
    return None
