"""A file is read as it was meant, or refused with the place and the fix."""

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from argument_checks import LONGEST_RUN, check_runs
from dataloader import encode_text
from text_files import read_text_file


def said_of(path):
    with pytest.raises(ValueError, match=str(path.name)) as caught:
        read_text_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path)).strip()


TEXT = "caf\u00e9 \u2013 \u4f60\u597d\nand more\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (TEXT.encode(), TEXT),
        (TEXT.encode("utf-8-sig"), TEXT),
        (("\ufeff" + TEXT).encode("utf-8-sig"), TEXT),
        (TEXT.encode("utf-8-sig") * 2, TEXT * 2),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"", ""),
    ],
)
def test_a_text_is_read_without_its_marks(tmp_path, content, text):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert read_text_file(path) == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TEXT.encode("utf-16"), "is not text in UTF-8 but in UTF-16: save it as UTF-8"),
        (TEXT.encode("utf-32"), "is not text in UTF-8 but in UTF-32"),
        ("the lamp".encode("utf-16-le"), "it seems to be in UTF-16: save it as UTF-8"),
        ("the lamp".encode("utf-16-be"), "it seems to be in UTF-16"),
        (b"the lamp\nwas\x00 lit again", "NUL, byte 12, line 2; remove it"),
        (b"lamp\ncaf\xe9", "is not text in UTF-8 (byte 8, line 2): save it as such"),
        (b"half a pair: \xed\xa0\x80", "is not text in UTF-8 (byte 13, line 1)"),
    ],
)
def test_what_is_no_text_in_utf_8_is_told_with_the_place(tmp_path, content, said):
    """Known mistake: UTF-16 without a mark is valid UTF-8, and full of NULs."""
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert said in said_of(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    assert "cannot be read (No such file" in said_of(tmp_path / "none")
    assert "directory" in said_of(tmp_path)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_text_survives_or_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    try:
        found = read_text_file(path)
    except ValueError:
        assert "\x00" in text
    else:
        kept = text.replace("\r\n", "\n").replace("\r", "\n")
        assert found.replace("\ufeff", "") == kept.replace("\ufeff", "")


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000", " \n"])
def test_a_run_that_no_pattern_can_read_is_told_with_its_place(blank):
    """Known mistake: tiktoken's own words name neither the place nor the fix."""
    tokenizer = tiktoken.get_encoding("gpt2")
    run = (blank * 1_000_000)[:1_000_000]
    with pytest.raises(ValueError, match="Max stack size exceeded"):
        tokenizer.encode(f"one\ntwo{run}three")
    said = "1,000,000 white-space characters in a row, from character 7 in line 2 on"
    with pytest.raises(ValueError, match=f"The text has {said}.*shorten them"):
        encode_text(f"one\ntwo{run}three", tokenizer)


def test_a_run_that_can_be_read_is_read():
    tokenizer = tiktoken.get_encoding("gpt2")
    text = "a" + " " * LONGEST_RUN + "b"
    assert tokenizer.decode(encode_text(text, tokenizer)) == text
    check_runs("word " * 300_000)
