"""What the first page says is so, in both languages."""

import json
import re

import pytest
import torch

from course import folders, paths
from course.markdown import Page
from gpt import GPT_CONFIG_124M, GPTModel

PAGES = ("README.md", "README.ja.md")
MOST_WORDS = 1200  # above the table of contents


def text(name):
    return (paths.ROOT / name).read_text(encoding="utf-8")


def above_the_contents(name):
    return text(name).partition("<!-- folders: contents")[0]


def words(markdown):
    """The words that a reader sees."""
    seen = re.sub(r"<!--.*?-->|!\[.*?\]\(.*?\)", "", markdown, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", seen).split()


def printed(notebook):
    cells = json.loads((paths.ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    outputs = (output for cell in cells for output in cell.get("outputs", ()))
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_the_way_to_the_contents_is_short():
    assert 400 < len(words(above_the_contents("README.md"))) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_the_model_that_is_promised_has_as_many_parameters(page):
    with torch.device("meta"):  # shapes, without the numbers
        model = GPTModel({**GPT_CONFIG_124M, "qkv_bias": False})
    sizes = {id(p): p.numel() for p in model.parameters()}
    tied = sum(sizes.values()) - model.out_head.weight.numel()
    assert f"{tied:,}" == "124,412,160"
    assert f"{tied:,}" in above_the_contents(page)


@pytest.mark.parametrize("page", PAGES)
def test_the_answer_that_is_quoted_was_given(page):
    answer = "The capital of France is Paris."
    assert f"*{answer}*" in above_the_contents(page)
    assert answer in printed("ch05/07_gpt_to_llama/gpt-to-llama.ipynb")


@pytest.mark.parametrize("page", PAGES)
def test_every_other_measured_number_there_is_filled_from_a_table(page):
    """The made parts are; `course.gates.contents` compares them with their tables."""
    top = above_the_contents(page).partition("\n## ")[0]
    assert len(re.findall(r"<!-- result: ", top)) == 5
    by_hand = re.sub(r"<!-- (\w+): .*?<!-- /\1 -->", "", top, flags=re.DOTALL)
    by_hand = re.sub(r"!\[.*?\]|\]\(.*?\)", "", by_hand, flags=re.DOTALL)
    numbers = set(re.findall(r"\d[\d,.]*\d|\d", by_hand))
    # The GPT and its size, cores and memory.
    assert numbers <= {"2", "8", "124,412,160"}


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_of_an_address_is_shown(page):
    for name in (page, "setup/cloud.md"):
        assert "OWNER" not in text(name)


def test_the_address_is_the_same_wherever_it_stands():
    address = folders.read_all(paths.ROOT)[folders.ROOT_FOLDER].address
    found = re.search(r"^repository-code: (.*)$", text("CITATION.cff"), re.MULTILINE)
    assert (found[1].strip('"') if found else "") == address


def test_the_pages_of_the_set_up_are_linked_and_hold_the_long_tables():
    links = {link.target for link in Page("README.md", text("README.md")).links}
    assert {"setup/costs.md", "setup/settings.md"} <= links
    assert "<!-- ledger: all -->" in text("setup/costs.md")
    assert "<!-- ledger" not in text("README.md")
