"""The pages for reading: complete, linked, described, and pleasant in a real browser.

Built are two chapters and everything that is no chapter; what only needs the order of
the pages looks at all of them. ``python docs/build_site.py --strict`` builds the whole.
"""

import json
import posixpath
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import build_site
import pytest

import real_browser
from course import folders, markdown, paths, reading
from course.installation import pip_runs

CHAPTERS = ("ch01", "ch02")
MAIN = "ch02/01_main-chapter-code/ch02"
PAGES = ("README.html", f"{MAIN}.html", "ch02/quiz.html", "search.html?q=token")


class Parsed(HTMLParser):
    """What one page holds: anchors, links, images, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.loads = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id"), found.get("name")}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        if tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") not in ("next", "prev", "index"):
            self.loads.append(found["href"])


def parse(folder):
    """{name: what it holds} of every page below a folder."""
    return {
        file.relative_to(folder).as_posix(): Parsed(file.read_text(encoding="utf-8"))
        for file in folder.rglob("*.html")
        if "_static" not in file.parts
    }


def dead_links(folder):
    """Every link, and everything loaded, that leads nowhere on the site."""
    pages = parse(folder)
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            place = posixpath.join(posixpath.dirname(name), unquote(parts.path))
            place = posixpath.normpath(place) if parts.path else name
            anchor = unquote(parts.fragment)
            known = pages[place].ids if place in pages else {anchor}
            if not (folder / place).is_file() or (anchor and anchor not in known):
                yield f"{name}: {link}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder in which the site was built; nobody may change it."""
    out = tmp_path_factory.mktemp("site")
    build_site.build(out, CHAPTERS, strict=True)
    return out


@pytest.fixture(scope="module")
def pages(built):
    return parse(built / "html")


# --- What is on the site --------------------------------------------------------------


def test_the_packages_are_those_of_the_tests():
    tests = pip_runs.pins(pip_runs.TESTING)
    wanted = pip_runs.pins(pip_runs.READING)
    assert len(wanted) > 5
    assert wanted.items() <= tests.items()


def test_every_page_of_the_tree_has_one_place_in_the_order():
    site = build_site.Site()
    placed = Counter(page for _, part in site.parts() for page in part)
    placed.update(page for part in site.below.values() for page in part)
    placed["README.md"] += 1
    assert set(site.pages) == set(placed)
    twice = {page for page, times in placed.items() if times > 1}
    assert not {p for p in twice if p.startswith(("ch", "appendix"))}


def test_chapters_follow_one_another_as_they_are_read():
    """Folders say the order; in each the chapter, then its quiz, then solutions."""
    site = build_site.Site()
    chapters = dict(site.parts())["Chapters"]
    order = folders.reading_order(site.known)
    assert chapters == [f"{p}/README.md" for p in order if p.startswith("ch")]
    first = [PurePosixPath(page).name for page in site.below["ch02/README.md"][:4]]
    assert first == [
        "ch02.ipynb",
        "dataloader.ipynb",
        "quiz.md",
        "exercise-solutions.ipynb",
    ]


def test_previous_and_next_lead_through_a_chapter(built):
    text = (built / "html" / f"{MAIN}.html").read_text(encoding="utf-8")
    ways = dict(re.findall(r'class="(left-prev|right-next)"\s+href="([^"]+)"', text))
    assert ways == {"left-prev": "../README.html", "right-next": "dataloader.html"}


def test_no_link_of_the_site_is_dead(built):
    assert list(dead_links(built / "html")) == []


def test_a_dead_link_or_anchor_would_be_found(built, tmp_path):
    quiz = tmp_path / "ch02" / "quiz.html"
    quiz.parent.mkdir(parents=True)
    text = (built / "html" / "ch02" / "quiz.html").read_text(encoding="utf-8")
    quiz.write_text(text, encoding="utf-8")
    (tmp_path / "README.html").write_text("<h1 id='here'></h1>", encoding="utf-8")
    quiz.write_text(
        '<a href="../README.html#here"></a><a href="../README.html#there"></a>'
        '<a href="gone.html"></a><a href="https://elsewhere.example/x"></a>',
        encoding="utf-8",
    )
    assert list(dead_links(tmp_path)) == [
        "ch02/quiz.html: ../README.html#there",
        "ch02/quiz.html: gone.html",
    ]


def test_read_again_leads_to_the_section(built, pages):
    """Each answer of a quiz names its section; the link opens it, not the chapter."""
    links = pages["ch02/quiz.html"].links
    again = [link for link in links if f"{MAIN[5:]}.html#" in link]
    assert len(again) > 15
    text = (built / "html" / f"{MAIN}.html").read_text(encoding="utf-8")
    for link in set(again):
        anchor = re.escape(link.partition("#")[2])
        places = rf'(?:<section|<span)[^>]* id="{anchor}"[^>]*>.{{0,200}}?<h[23]>(.*?)<'
        (heading,) = re.findall(places, text, re.DOTALL)
        slug = markdown.github_slug(heading)
        assert slug.endswith(link.partition("#")[2].lstrip("0123456789")), heading


def test_every_figure_is_there_with_its_description(pages):
    notebook = json.loads((paths.ROOT / f"{MAIN}.ipynb").read_text(encoding="utf-8"))
    described = [
        output["metadata"]["image/png"]["alt"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]
    figures = [i for i in pages[f"{MAIN}.html"].images if "figures/" in i["src"]]
    assert [figure["alt"] for figure in figures] == described
    assert len(described) > 5
    assert all(figure["width"] for figure in figures)  # the page does not jump
    for name, page in pages.items():
        assert all(image.get("alt") for image in page.images), name


def test_answers_are_folded_as_in_the_page(built):
    text = (built / "html" / "ch02" / "quiz.html").read_text(encoding="utf-8")
    page = (paths.ROOT / "ch02" / "quiz.md").read_text(encoding="utf-8")
    folds = "<details><summary>Answer</summary>"
    assert text.count(folds) == page.count(folds) > 15


def test_drawing_code_that_is_folded_in_the_notebook_is_folded_here(built):
    notebook = json.loads((paths.ROOT / f"{MAIN}.ipynb").read_text(encoding="utf-8"))
    folded = sum(
        bool(cell["metadata"].get("jupyter", {}).get("source_hidden"))
        for cell in notebook["cells"]
    )
    text = (built / "html" / f"{MAIN}.html").read_text(encoding="utf-8")
    assert text.count("tag_hide-input") == folded


def test_files_of_code_are_pages_and_tables_are_downloads(pages, built):
    shown = built / "html" / "ch02" / "01_main-chapter-code" / "dataloader.py.html"
    assert "create_dataloader_v1" in shown.read_text(encoding="utf-8")
    linked = [link for page in pages.values() for link in page.links]
    assert any(link.endswith(".csv") and "_downloads/" in link for link in linked)


def test_a_page_in_japanese_says_so(built):
    for name, language in (("README.ja.html", "ja"), ("README.html", "en")):
        text = (built / "html" / name).read_text(encoding="utf-8")
        assert f'<html lang="{language}"' in text


def test_nothing_is_loaded_from_elsewhere(pages):
    """Whatever a browser fetches by itself: scripts, styles, fonts, images."""
    assert "mathjax" in " ".join(pages[f"{MAIN}.html"].loads)
    for name, page in pages.items():
        outside = [at for at in page.loads if urlsplit(at).netloc]
        assert outside == [], name


def test_a_chapter_that_is_not_there_is_not_left_out_in_silence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        build_site.main(["--out", str(tmp_path / "site"), "--only", "ch2"])
    assert "invalid choice: 'ch2' (choose from" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_only_what_changed_is_made_again(built, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(built, tmp_path / "site", copy_function=shutil.copy2)
    starts = []
    monkeypatch.setattr(build_site, "_run_sphinx", lambda *given: starts.append(given))
    build_site.build(out, CHAPTERS)
    assert starts == []
    assert capsys.readouterr().out == ""
    laid_out = {p: p.stat().st_mtime_ns for p in (out / "source").rglob("*.ipynb")}
    monkeypatch.setitem(build_site.TITLES, "data/README.md", "Files")
    build_site.build(out, CHAPTERS)
    assert len(starts) == 1
    assert "--fresh-env" not in starts[0][-1]
    assert {p: p.stat().st_mtime_ns for p in laid_out} == laid_out


@pytest.mark.parametrize(
    ("target", "finished", "led"),
    [
        ("../data/README.md", False, "../data/README.md"),
        ("../data", True, "../data/README.html"),
        ("01_main-chapter-code/ch02.ipynb#2.8-Positions", False, "#28-positions"),
        ("01_main-chapter-code/dataloader.py", False, "dataloader.py.md"),
        ("01_main-chapter-code/dataloader.py", True, "dataloader.py.html"),
        ("https://example.org/a.md", False, "https://example.org/a.md"),
        ("#quiz-for-chapter-2", False, "#quiz-for-chapter-2"),
        ("../ch09/ch09.ipynb", False, None),
    ],
)
def test_where_a_link_leads(target, finished, led):
    found = build_site.Site(only=CHAPTERS).lead("ch02/quiz.md", target, finished)
    assert found == led or (led and found and found.endswith(led)), found


# --- In a real browser ----------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(built):
    """(page, address) of a browser beside the server that readers have."""
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    with reading.serving(built / "html", None) as server:
        address = f"http://{reading.HOST}:{server.server_port}/"
        with real_browser.page(address) as page:
            page.wait_for_url("**/README.html")  # where the first page leads at once
            yield page, address


@pytest.fixture
def opened(browser):
    """The same, wide and light again, with every request recorded."""
    page, address = browser
    page.set_viewport_size({"width": 1280, "height": 860})
    page.emulate_media(color_scheme="light")
    asked = []

    def record(request):
        asked.append(request.url)

    page.on("request", record)
    yield page, address
    page.remove_listener("request", record)
    own = (address, "data:", "blob:")
    assert asked
    assert [url for url in asked if not url.startswith(own)] == []


def test_the_search_finds_a_word(opened):
    page, address = opened
    page.goto(f"{address}{MAIN}.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("stride")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_text_contents()
    assert any("Chapter 2" in title for title in found)


def test_formulas_are_set_without_another_machine(opened):
    page, address = opened
    page.goto(f"{address}ch01/ch01.html")
    page.wait_for_selector("mjx-container mjx-math")
    page.evaluate("document.fonts.ready")
    loaded = "[...document.fonts].filter(font => font.status == 'loaded').length"
    assert page.evaluate(loaded) > 0


def test_dark_mode_follows_the_system_and_the_switch(opened):
    page, address = opened

    def brightness():
        style = "getComputedStyle(document.body).backgroundColor"
        return sum(map(int, re.findall(r"\d+", page.evaluate(style))[:3]))

    page.goto(f"{address}{MAIN}.html")
    assert brightness() > 700
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert brightness() < 150
    figure = page.locator(".course-figure img").first
    assert "brightness" in figure.evaluate("e => getComputedStyle(e).filter")
    page.emulate_media(color_scheme="light")
    page.reload()
    page.locator("button.theme-switch-button:visible").first.click()
    page.locator(".theme-change-button[data-mode=dark]:visible").first.click()
    page.wait_for_selector("html[data-theme=dark]")
    assert brightness() < 150
    page.evaluate("localStorage.clear()")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_everybody_can_read_it(opened, name, dark, width):
    """No violation that axe-core finds; nothing is wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    page, address = opened
    page.set_viewport_size({"width": width, "height": 860})
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.goto(address + name)
    if "search" in name:
        page.wait_for_selector("#search-results li a")
    inner, outer = page.evaluate(
        "[document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert inner <= outer
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_the_keyboard_reaches_the_text_first_and_opens_a_fold(opened):
    page, address = opened
    page.goto(f"{address}ch02/quiz.html")
    page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert "Skip to main content" in page.evaluate(f"{focused}.textContent")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"
    for _ in range(30):
        page.keyboard.press("Tab")
        inside = f"document.querySelector('#main-content').contains({focused})"
        if page.evaluate(f"{inside} && {focused}.matches('article summary')"):
            break
    fold = page.locator("article details").first
    assert fold.get_attribute("open") is None
    page.keyboard.press("Enter")
    assert fold.get_attribute("open") is not None
    outline = page.evaluate(f"getComputedStyle({focused}).outlineStyle")
    assert outline != "none"
