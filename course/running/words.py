"""The words of the parts that are made for pages, in the language of the page."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("words.toml")
_WORDS = tomllib.loads(_FILE.read_text(encoding="utf-8"))


def words_for(page: Path) -> dict[str, Any]:
    """Return the words for a page: Japanese where its name says so, else English."""
    return _WORDS["ja" if page.name.endswith(".ja.md") else "en"]
