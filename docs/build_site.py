"""Turn the course into pages for a browser: what `python3 -m course read` shows.

    python docs/build_site.py --out FOLDER [--only ch02 ...]

It needs the packages of docs/requirements.txt and no others: notebooks are not run, the
pages show their stored outputs. First the pages are laid out in ``FOLDER/source`` as
Sphinx wants them: the tree's own layout, links led to pages of the site, figures with
their descriptions, chapters in the order in which they are read. Then Sphinx builds
``FOLDER/html``, anew only what has changed. Every machine makes the same site.

Standard library and `course` only, up to the start of Sphinx.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import html
import importlib.util
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
if str(ROOT) not in sys.path:  # started by a Python that has no path file
    sys.path.insert(0, str(ROOT))

from course import folders, markdown, paths  # noqa: E402

MATHJAX = "sphinx-mathjax-offline"  # the package that carries the files
MATHJAX_FILES = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
#: Files that are shown as a page with colours; others are offered for download.
LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".json": "json",
    ".cff": "yaml",
    ".yml": "yaml",
    ".txt": "text",
    ".html": "html",
    "": "text",
}
LARGEST_SHOWN = 60_000  # bytes of such a file; more is a download
#: What the side bar calls pages whose own title says too little there.
TITLES = {"README.ja.md": "\u65e5\u672c\u8a9e", "data/README.md": "Data"}
FIGURES = "figures"  # below the site's root
# What stands before the target of a link, in each of the ways to write one.
_BEFORE_TARGET = r"(?:\]\(\s*<?|\]:\s*|(?:href|src)\s*=\s*[\"']?)"
#: Whoever asks for the site without a page gets the first one.
INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>GPT by Hand</title>
<meta http-equiv="refresh" content="0; url=README.html"></head>
<body><p><a href="README.html">GPT by Hand</a></p></body></html>
"""
_FRONT = "---\norphan: true\n---\n\n"


class Site:
    """The pages of one tree, or of some of its chapters, and where each belongs."""

    def __init__(self, root: Path = ROOT, only: Sequence[str] = ()) -> None:
        self.root, self.only = root, tuple(only)
        self.known = folders.read_all(root)
        files = (p.relative_to(root).as_posix() for p in paths.tree_files(root))
        self.files = {name for name in files if self._belongs(name)}
        self.shown: set[str] = set()  # files that a page links, each to become a page
        self.offered: set[str] = set()  # files that a page links for download

    def _belongs(self, name: str) -> bool:
        top = name.partition("/")[0]
        chapter = folders.CHAPTER.fullmatch(top) is not None
        return not (self.only and chapter) or top in self.only

    @property
    def pages(self) -> list[str]:
        """The Markdown files and notebooks that become pages."""
        named = (n for n in self.files if n.endswith((".md", ".ipynb")))
        return sorted(n for n in named if not n.startswith("."))  # forms, for one

    # -- what stands where

    @functools.cached_property
    def below(self) -> dict[str, list[str]]:
        """{page: the pages under it in the side bar, in the order of reading}."""
        return {
            one.place_of("README.md"): [
                *self._own_pages(one),
                *(self._readmes(one) if one.path != folders.ROOT_FOLDER else ()),
            ]
            for one in self.known.values()
        }

    def _own_pages(self, one: folders.Folder) -> Iterator[str]:
        """The pages of a folder: as its row lists them, the quiz, then all others."""
        listed = [one.place(name) for name in one.contents]
        listed += [one.place(page.file) for page in one.pages]
        listed.sort(key=lambda name: name.endswith("exercise-solutions.ipynb"))
        first = [n for n in listed if n in self.files and n.endswith((".md", ".ipynb"))]
        quiz = one.place_of("quiz.md")
        if quiz in self.files:
            place = next((i for i, n in enumerate(first) if "solutions" in n), None)
            first.insert(len(first) if place is None else place, quiz)
        rest = (n for n in self.pages if self._is_in(one, n))
        readme = one.place_of("README.md")
        yield from dict.fromkeys(n for n in [*first, *rest] if n != readme)

    def _is_in(self, one: folders.Folder, page: str) -> bool:
        """Whether a page lies in the folder, or below it where no other folder is."""
        above = [place.as_posix() for place in PurePosixPath(page).parents]
        homes = {other.home for other in self.known.values()}
        nearest = next((home for home in above if home in homes), None)
        beside = above[0] == one.home
        return beside or (nearest == one.home and "/" in one.home)

    def _readmes(self, one: folders.Folder) -> Iterator[str]:
        for path, other in sorted(self.known.items()):
            page = other.place_of("README.md")
            if other.parent == one.path and path != one.path and page in self.files:
                yield page

    def parts(self) -> Iterator[tuple[str, list[str]]]:
        """The side bar: (caption, pages), and nothing twice."""
        order = [f"{path}/README.md" for path in folders.reading_order(self.known)]
        order = [page for page in order if page in self.files]
        yield "Chapters", [page for page in order if page.startswith("ch")]
        rest = [f"{p}/README.md" for p in self.known if folders.CHAPTER.fullmatch(p)]
        appendices = {*order, *rest}
        there = [p for p in appendices & self.files if p.startswith("appendix")]
        yield "Appendices", sorted(there)
        more = ["setup/README.md", "data/README.md", "docs/terms.md"]
        more += ["CONTRIBUTING.md", "README.ja.md"]
        yield "More", [page for page in more if page in self.files]

    # -- links

    @functools.cache  # noqa: B019 - a site lives as long as its build
    def anchors(self, page: str) -> dict[str, str]:
        """{anchor as GitHub or JupyterLab writes it: anchor on the site} of a page."""
        seen: Counter[str] = Counter()
        found: dict[str, str] = {}
        for text in self._texts(page):
            for heading in markdown.Page(page, text).headings:
                slug = markdown.github_slug(heading.text)
                unique = f"{slug}-{seen[slug]}" if seen[slug] else slug
                seen[slug] += 1
                found.setdefault(unique, unique)
                found.setdefault(markdown.jupyter_anchor(heading.text), unique)
        return found

    def _texts(self, page: str) -> Iterator[str]:
        text = (self.root / page).read_text(encoding="utf-8")
        if not page.endswith(".ipynb"):
            yield text
            return
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "markdown":
                yield "".join(cell["source"])

    def lead(self, page: str, target: str, finished: bool = False) -> str | None:
        """Where a link on a page leads on the site; None if the site has no such place.

        As Sphinx reads it, or with `finished` as a browser does.
        """
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            return target
        path, _, anchor = target.partition("#")
        anchor = unquote(anchor)
        here = posixpath.dirname(page)
        place = posixpath.normpath(posixpath.join(here, unquote(path)))
        place = place if path else page
        if f"{place}/README.md".removeprefix("./") in self.files:
            place = f"{place}/README.md".removeprefix("./")
        if place not in self.files:
            return None
        ending = PurePosixPath(place).suffix
        if ending in (".md", ".ipynb"):
            anchor = self.anchors(place).get(anchor, anchor) if anchor else ""
            if finished:
                place = str(PurePosixPath(place).with_suffix(".html"))
        elif self._is_shown(place, ending):
            self.shown.add(place)
            place, anchor = f"{place}{'.html' if finished else '.md'}", ""
        else:
            self.offered.add(place)
            anchor = ""
        if not path and anchor:
            return f"#{anchor}"
        led = quote(posixpath.relpath(place, here or "."), safe="/()")
        return f"{led}#{anchor}" if anchor else led

    def _is_shown(self, place: str, ending: str) -> bool:
        size = (self.root / place).stat().st_size
        return ending in LANGUAGES and size <= LARGEST_SHOWN

    def relinked(self, page: str, text: str) -> str:
        """A page's Markdown with its links led to pages of the site."""
        parsed = markdown.Page(page, text)
        for link in sorted(parsed.links, key=lambda one: -one.offset):
            if link.image:
                continue
            pattern = re.compile(f"{_BEFORE_TARGET}({re.escape(link.target)})")
            match = pattern.search(text, link.offset)
            if match is None:
                continue
            start, end = match.span(1)
            led = self.lead(page, link.target, text[link.offset] == "<")
            if led is not None:
                text = text[:start] + led + text[end:]
            elif text[link.offset] == "[":  # what the site lacks is named, not linked
                closing = text.index(")", end) + 1
                text = text[: link.offset] + link.text + text[closing:]
        return text

    # -- pages

    def page(self, name: str) -> tuple[str, str, dict[str, bytes]]:
        """(file, text, figures) of one page as Sphinx is to read it."""
        text = (self.root / name).read_text(encoding="utf-8")
        if name.endswith(".ipynb"):
            made, figures = self.notebook(name, text)
            return name, made, figures
        text = self.relinked(name, text)
        return name, text + self.menu(name), {}

    def menu(self, name: str) -> str:
        """The lines that put other pages under this one in the side bar."""
        if name == "README.md":
            parts = list(self.parts())
        else:
            parts = [("", self.below.get(name, []))]
        lines = []
        for caption, pages in parts:
            if pages:
                here = posixpath.dirname(name) or "."
                ways = [(p, posixpath.relpath(p, here)) for p in pages]
                entries = [
                    f"{TITLES[p]} <{way}>" if p in TITLES else way for p, way in ways
                ]
                options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
                lines += ["", "```{toctree}", *options, "", *entries, "```"]
        return "\n".join([*lines, ""]) if lines else ""

    def notebook(self, name: str, text: str) -> tuple[str, dict[str, bytes]]:
        """A notebook for the site, and its figures by the name of their file."""
        content, figures = json.loads(text), {}
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = self.relinked(name, "".join(cell["source"]))
                continue
            if cell["metadata"].get("jupyter", {}).get("source_hidden"):
                cell["metadata"].setdefault("tags", []).append("hide-input")
            for output in cell.get("outputs", ()):
                if "image/png" in output.get("data", {}):
                    self._describe(name, output, figures)
        return json.dumps(content, ensure_ascii=False, sort_keys=True), figures

    def _describe(self, name: str, output: dict, figures: dict[str, bytes]) -> None:
        """Put a figure with its description in the place of an image's output."""
        data, meta = output["data"], output.get("metadata", {})
        meta = meta.get("image/png", {})
        picture = base64.b64decode("".join(data["image/png"]))
        file = f"{hashlib.sha256(picture).hexdigest()[:20]}.png"
        figures[file] = picture
        way = posixpath.relpath(f"{FIGURES}/{file}", posixpath.dirname(name) or ".")
        alt = html.escape(meta.get("alt") or "".join(data.get("text/plain", "")))
        across, down = (int.from_bytes(picture[n : n + 4], "big") for n in (16, 20))
        width = meta.get("width") or across
        height = round(width * down / across)
        output["data"] = {
            "text/html": (
                f'<figure class="course-figure"><img src="{way}" alt="{alt}" '
                f'width="{width}" height="{height}" loading="lazy"/>'
                "<details><summary>Description of the figure</summary>"
                f"<p>{alt}</p></details></figure>"
            )
        }
        output["metadata"] = {}

    def source_page(self, name: str) -> str:
        """A page that shows a file of code in colours and offers it for download."""
        text = (self.root / name).read_text(encoding="utf-8")
        language = LANGUAGES[PurePosixPath(name).suffix]
        fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
        base = posixpath.basename(name)
        says = f"The file `{name}` of the course."
        if language != "html":  # a copy elsewhere would miss what stands beside it
            self.offered.add(name)
            says += f" [Download it]({quote(base)})."
        code = f"{fence}{language}\n{text}\n{fence}"
        return f"{_FRONT}# {base}\n\n{says}\n\n{code}\n"

    def lay_out(self, folder: Path) -> str:
        """Write everything that Sphinx reads into a folder; return its fingerprint.

        A file whose content is as before keeps its time, so that Sphinx passes over it;
        files that no page needs any more are deleted.
        """
        texts: dict[str, bytes] = {}
        for name in self.pages:
            file, text, figures = self.page(name)
            texts[f"pages/{file}"] = text.encode()
            texts |= {f"extra/{FIGURES}/{one}": png for one, png in figures.items()}
            for image in self._images(name):
                texts[f"pages/{image}"] = (self.root / image).read_bytes()
        for name in sorted(self.shown):
            texts[f"pages/{name}.md"] = self.source_page(name).encode()
        for name in sorted(self.offered):
            texts[f"pages/{name}"] = (self.root / name).read_bytes()
        for name in ("conf.py", "static/site.css", "static/site.js"):
            texts[name] = (DOCS / name).read_bytes()
        texts["extra/index.html"] = INDEX.encode()
        texts |= {f"extra/mathjax/{n}": text for n, text in _mathjax()}
        written = {folder / name for name in texts}
        for old in [p for p in folder.rglob("*") if p.is_file() and p not in written]:
            old.unlink()
        whole = hashlib.sha256((DOCS / "requirements.txt").read_bytes())
        for name, content in sorted(texts.items()):
            whole.update(f"{name} {len(content)} ".encode() + content)
            place = folder / name
            if place.is_file() and place.read_bytes() == content:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return whole.hexdigest()

    def _images(self, name: str) -> Iterator[str]:
        """The image files that a page shows."""
        for text in self._texts(name):
            for link in markdown.Page(name, text).links:
                place = posixpath.join(posixpath.dirname(name), unquote(link.target))
                place = posixpath.normpath(place)
                if link.image and place in self.files:
                    yield place


def _mathjax() -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of MathJax that pages with formulas load."""
    found = importlib.util.find_spec(MATHJAX)
    if found is None or found.origin is None:
        raise SystemExit(
            f"The package {MATHJAX} is missing: see docs/requirements.txt."
        )
    carried = Path(found.origin).parent / "static" / "mathjax"
    for name in MATHJAX_FILES:
        place = carried / name
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            yield file.relative_to(carried).as_posix(), file.read_bytes()


def build(
    out: Path, only: Sequence[str] = (), root: Path = ROOT, strict: bool = False
) -> Path:
    """Build the site below `out`, or what has changed of it; return its folder.

    Raises `RuntimeError` with Sphinx's words if it fails, `strict` also if it warns. A
    reader who has changed a page gets it all the same.
    """
    began = time.monotonic()
    site = Site(root, only)
    source, pages, stamp = out / "source", out / "html", out / "built.txt"
    fingerprint = site.lay_out(source)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint:
        return pages
    stamp.unlink(missing_ok=True)
    print(f"Making {len(site.pages) + len(site.shown)} pages ...", flush=True)
    settings = hashlib.sha256((source / "conf.py").read_bytes()).hexdigest()
    known = out / "settings.txt"
    # Sphinx does not see when a function of its settings has changed.
    same = known.is_file() and known.read_text(encoding="utf-8") == settings
    command = [] if same else ["--fresh-env", "--write-all"]
    # One process where outputs are compared, and all cores where somebody waits.
    command += ["--fail-on-warning"] if strict else ["--jobs", "auto"]
    _run_sphinx(source, out / "doctrees", pages, command)
    known.write_text(settings, encoding="utf-8")
    stamp.write_text(fingerprint, encoding="utf-8")
    print(f"      done in {time.monotonic() - began:.0f} s", flush=True)
    return pages


def _run_sphinx(source: Path, doctrees: Path, pages: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--builder", "html"]
    command += ["--conf-dir", source, "--doctree-dir", doctrees, "--no-color"]
    command += more
    done = subprocess.run(
        [*map(str, command), str(source / "pages"), str(pages)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        raise RuntimeError(f"The pages could not be made. Sphinx said:\n{done.stdout}")


def main(arguments: Iterable[str] | None = None) -> int:
    """Build the site as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the pages for reading.")
    parser.add_argument("--out", type=Path, default=paths.runs_dir() / "site")
    chapters = sorted(filter(folders.CHAPTER.fullmatch, folders.read_all(ROOT)))
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="CHAPTER", choices=chapters
    )
    parser.add_argument("--strict", action="store_true", help="fail at a warning")
    parser.add_argument("--clean", action="store_true", help="build everything anew")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.clean:
        shutil.rmtree(options.out, ignore_errors=True)
    try:
        build(options.out.absolute(), options.only, strict=options.strict)
    except RuntimeError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
