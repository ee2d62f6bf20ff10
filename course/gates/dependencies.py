"""What the course takes from outside: packages and data files.

That files come through `course.assets.fetch` alone is ruff's business: pyproject.toml
names the modules that go to the network by another door.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions

from packaging.utils import canonicalize_name

from course import assets, folders
from course.gates.tree import Finding, Tree, folder, in_main_folder
from course.installation import pip_runs
from course.installation.pip_runs import BASE, TESTING

MANIFEST = "course/assets.toml"

# Packages that are the public face of a pinned one, and arrive with it.
COMES_WITH = {
    "IPython": "ipykernel",
    "PIL": "matplotlib",
    "httpx2": "huggingface-hub",
    "jupyter_client": "nbclient",
    "jupyter_core": "nbclient",
    "jupyter_server": "jupyterlab",
    "packaging": "pytest",
    "urllib3": "requests",
}

_INSTALLS = re.compile(
    r"\b(?:(?:pip3?|pipx|uv|conda|mamba|apt|apt-get|brew|npm)\s+(?:pip\s+)?install"
    r"|wget|curl|git\s+clone)\b"
)


def pinned(tree: Tree, *files: str) -> frozenset:
    """The normal names of the distributions in `files`, by default in both."""
    return frozenset(
        canonicalize_name(name)
        for path in files or (BASE, TESTING)
        for name, _ in pip_runs.PIN.findall(tree.text(path))
    )


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def covers(names: frozenset, package: str) -> bool:
    """Whether importing `package` needs no more than Python and `names`.

    The import name may differ from the distribution's (``yaml`` is in PyYAML).
    """
    if package in sys.stdlib_module_names or canonicalize_name(package) in names:
        return True
    if package in COMES_WITH:
        return COMES_WITH[package] in names
    found = _distributions().get(package, ())
    return any(canonicalize_name(distribution) in names for distribution in found)


def requirements_are_exact(tree: Tree) -> Iterator[Finding]:
    """Every package in both files has one exact version and stands there once.

    As the set-up reads it: with a marker or extras it would be left out.
    """
    seen = {}
    for path in (BASE, TESTING):
        for number, line in enumerate(tree.text(path).split("\n"), start=1):
            match = pip_runs.PIN.fullmatch(line)
            if not line.partition("#")[0].strip():
                continue
            if match is None:
                yield Finding(
                    f"{path}:{number}: `{line}` names no exact version; write "
                    "NAME==VERSION, with the version that the stored outputs came from."
                )
                continue
            name = canonicalize_name(match[1])
            if name in seen:
                yield Finding(
                    f"{path}:{number}: {match[1]} is already in {seen[name]}; delete "
                    "one."
                )
            seen[name] = f"{path}, line {number}"


def imports_are_required(tree: Tree) -> Iterator[Finding]:
    """What the tree imports, a requirements file names.

    Chapters proper, summary modules and the course itself run with the base. Tests,
    experiments, bonus folders, gates and the running of tests may use what testing
    adds. So may the modules of a bonus folder use the `packages` of its folder.toml.
    """
    base, everything = pinned(tree, BASE), pinned(tree)
    for path, place, one in tree.imports():
        extended = not _base_only(tree, path)
        if _is_local(tree, path, one.package):
            continue
        packages = everything if extended else base | (_listed(tree, path) & everything)
        if not covers(packages, one.package):
            file = f"{BASE} or {TESTING}" if extended else BASE
            yield Finding(
                f"{place}: imports {one.package}, which is not in {file}; add it there "
                "with its exact version, or do without it."
            )


def _base_only(tree: Tree, path: str) -> bool:
    name = path.rpartition("/")[2]
    if name.startswith("test_") or name in ("conftest.py", "experiments.py"):
        return False
    if path.startswith("course/"):
        wings = ("course/gates/", "course/running/", "course/testing/")
        return not path.startswith(wings)
    is_module = path in {module.path for module in tree.modules.values()}
    return in_main_folder(path) or is_module


def _listed(tree: Tree, path: str) -> frozenset:
    """The normal names of the packages that a file's folder lists."""
    one = folders.owner(path, tree.folders)
    return frozenset(map(canonicalize_name, one.packages if one else ()))


def _is_local(tree: Tree, path: str, package: str) -> bool:
    """Whether `package` is part of the project: course, a module, a file beside."""
    here = folder(path)
    beside = f"{package}.py" if here == "." else f"{here}/{package}.py"
    return (
        package in ("course", "conftest")
        or package in tree.modules
        or beside in tree.entries
    )


def assets_match(tree: Tree) -> Iterator[Finding]:
    """The manifest is complete, and files of the tree are what it says they are."""
    if MANIFEST not in tree.entries:
        return
    wrong = list(assets.check_tree(tree.root))
    yield from (Finding(f"{path}:1: {problem}") for path, problem in wrong)
    if any(path == MANIFEST for path, _ in wrong):
        return  # it cannot be read
    named = set()
    for asset in assets.manifest(tree.root / MANIFEST).values():
        named |= {source.path for source in asset.sources}
    for path in tree.files:
        is_data = path.startswith("data/") and not path.endswith((".md", ".py"))
        if is_data and path not in named and not path.endswith("/LICENSE"):
            yield Finding(
                f"{path}:1: is data that {MANIFEST} does not name; add an entry with "
                "its size, hash and licence."
            )


def nothing_is_installed(tree: Tree) -> Iterator[Finding]:
    """Notebooks install and download nothing from a shell."""
    for cell in tree.code_cells():
        in_shell = re.match(r"\s*%%(?:bash|sh|script|!)", cell.source)
        for line in cell.source.splitlines():
            tool = _INSTALLS.search(line)
            if tool and (in_shell or re.match(r"\s*(?:\w+\s*=\s*)?[!%]", line)):
                yield Finding(
                    f"{cell.place}: calls {tool.group()}; packages belong in {BASE}, "
                    "and files come from course.assets.fetch(name)."
                )
