"""Folders describe themselves, and the pages that are made from it are up to date."""

import re
from collections.abc import Iterator

from course import CourseError, assets, folders
from course.folders import FILE, MAIN_FOLDER, Folder
from course.gates.tree import Finding, Tree, folder
from course.running import ledger, made_parts

PAGE = "README.md"
#: What the first pages show in both languages.
PARTS = ("contents", "bonus")
_DESCRIBED = re.compile(rf"(?:({folders.PLACE})/)?{PAGE}")


def folders_describe_themselves(tree: Tree) -> Iterator[Finding]:
    """A folder with a README has a `folder.toml` beside it, and the other way round."""
    for path in tree.files:
        here = folder(path)
        match = _DESCRIBED.fullmatch(path)
        if match and not path.endswith(f"{MAIN_FOLDER}/{PAGE}"):
            if here not in tree.folders:
                yield Finding(
                    f"{path}:1: has no {FILE} beside it; add one with title, title_ja "
                    "and what CONTRIBUTING.md lists, so that the contents name the "
                    "folder."
                )
        elif path.rpartition("/")[2] == FILE and (
            here not in tree.folders or here.endswith(MAIN_FOLDER)
        ):
            yield Finding(
                f"{path}:1: is not read there; a chapter or bonus folder has its one "
                "beside its README."
            )
    for one in tree.folders.values():
        if one.place_of(PAGE) not in tree.entries:
            yield Finding(f"{one.place_of(FILE)}:1: has no {PAGE} beside it; add one.")


def what_folders_name_is_there(tree: Tree) -> Iterator[Finding]:
    """Files, folders and assets that a `folder.toml` names exist."""
    known = {*tree.folders, *folders.plans(tree.folders)}
    try:
        manifest = set(assets.manifest(tree.root / "course" / "assets.toml"))
    except CourseError:
        manifest = set()  # another gate says so
    for one in tree.folders.values():
        for problem in _problems(one, tree, known, manifest):
            yield Finding(f"{one.place_of(FILE)}:1: {problem}")


def _problems(
    one: Folder, tree: Tree, known: set[str], manifest: set[str]
) -> Iterator[str]:
    named = {
        "contents": one.contents,
        "pages": [page.file for page in one.pages],
        "apps": [f"{name}.py" for name in one.apps],
        "support": [f"{name}.py" for name in one.support],
        "seconds": one.seconds,
        "makes": [run.script for run in one.makes.values()],
    }
    for field, files in named.items():
        for name in files:
            if one.place(name) not in tree.entries:
                yield f"{field} names {name}, and there is no {one.place(name)}."
    for needed in one.needs:
        if needed not in known:
            yield f"needs names {needed}, which is not a folder of the course."
    for name in one.summaries:
        if name not in one.contents:
            yield f"summaries names {name}, which contents lacks; add it there."
    for name in one.assets:
        if name not in manifest:
            yield f"assets names {name}, which course/assets.toml does not know."


def assets_are_listed(tree: Tree) -> Iterator[Finding]:
    """A folder lists the assets that its code uses; budget tables count them."""
    code = {path: source.text for path, source in tree.sources.items()}
    code |= {path: tree.text(path).replace('\\"', '"') for path in tree.notebooks}
    for path, text in code.items():
        used = set(re.findall(r"\bfetch\(\s*[\"']([^\"']+)[\"']", text))
        if re.search(r"get_encoding\(\s*[\"']gpt2[\"']", text):
            used |= {"gpt2-vocab.bpe", "gpt2-encoder.json"}
        known = folders.assets_for(path, tree.folders)
        for name in sorted(used - known) if folders.owner(path, tree.folders) else ():
            yield Finding(
                f"{path}:1: uses {name}, which assets in the {FILE} of its folder "
                "lacks; add it."
            )


def pages_show_the_folders(tree: Tree) -> Iterator[Finding]:
    """The first pages in both languages, and the chapters', have marks for contents."""
    parents = {one.parent for one in tree.folders.values()}
    chapters = filter(folders.CHAPTER.fullmatch, sorted(parents))
    required = {f"{chapter}/{PAGE}": ("bonus",) for chapter in chapters}
    required |= {PAGE: PARTS, "README.ja.md": PARTS}
    for path, parts in required.items():
        text = tree.pages[path].text if path in tree.pages else ""
        there = made_parts.names(text, "folders")
        for part in parts:
            if part not in there:
                yield Finding(
                    f"{path}:1: does not show the folders' {part}; put <!-- folders: "
                    f"{part} --> and <!-- /folders --> where it belongs, then run "
                    "`python3 -m course refresh --pages`."
                )


def made_parts_are_up_to_date(tree: Tree) -> Iterator[Finding]:
    """What is made from the folders or the ledger says what they say."""
    for path in (*tree.pages, *tree.notebooks):
        try:
            stale = made_parts.filled(tree.root / path, tree.root) is not None
        except (CourseError, ValueError) as problem:
            yield Finding(f"{path}:1: {problem}")
            continue
        if stale:
            yield Finding(
                f"{path}:1: differs from what {ledger.FILE} and the {FILE} of the "
                "folders say; run `python3 -m course refresh --pages`."
            )
