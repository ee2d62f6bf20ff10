"""Short reviews of other things: films again, goods, restaurants (chapter 6, bonus).

Support: nothing here is taught. 500 sentences of each label and kind are Kotzias et
al., "From Group to Individual Labels using Deep Features", 2015
(DOI 10.1145/2783258.2783380). They come out of a package for Node.js, which npm
downloads and nobody installs; they are not part of the
course. `read_sentences` also takes them from a folder.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> for name in GROUPS:
...     one = '[{"text": "Good.", "class": 1}, {"text": "", "class": null}]'
...     _ = (folder / f"{name}.json").write_text(one)
>>> read_sentences(folder)["group"].tolist()
['films again', 'goods', 'restaurants']
"""

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from books import check_sha256, only_one, run_client, write_whole
from download_prepare_dataset import LABELS, plain_text

PACKAGE = "sentiment@5.0.2"
SHA256 = "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f"
GROUPS = {"imdb": "films again", "amazon": "goods", "yelp": "restaurants"}


def fetch_sentences(folder: Path) -> Path:
    """Let npm bring the three files into a folder, if they are not there; return it.

    Raises:
        ValueError: npm is not there or fails, or brings another file.
    """
    names = [f"{name}.json" for name in GROUPS]
    if all((folder / name).exists() for name in names):
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        run_client(["npm", "pack", "--silent", PACKAGE], Path(scratch))
        archive = only_one(Path(scratch).glob("*.tgz"))
        check_sha256(archive.read_bytes(), SHA256, archive.name)
        with tarfile.open(archive) as members:
            for name in names:
                held: Any = members.extractfile(f"package/test/fixtures/{name}")
                write_whole(folder / name, held.read())
    return folder


def read_sentences(folder: Path) -> Any:
    """A data frame with the columns text, label and group, each text once.

    Raises:
        ValueError: a file is missing or is not of that form.
    """
    rows = []
    for name, group in GROUPS.items():
        path = folder / f"{name}.json"
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
            rows += [
                (plain_text(one["text"]), LABELS[one["class"]], group)
                for one in records
                if one["text"].strip()  # each file has a record without a text
            ]
        except OSError as problem:
            raise ValueError(
                f"{path} cannot be read ({problem.strerror}): fetch_sentences brings "
                "it."
            ) from None
        except (ValueError, KeyError, TypeError, IndexError) as problem:
            raise ValueError(
                f"{path} is damaged or another file ({problem!r}): delete it, and "
                "fetch_sentences brings it again."
            ) from None
    frame = pd.DataFrame(rows, columns=["text", "label", "group"])
    return frame.drop_duplicates(["text", "group"]).reset_index(drop=True)
