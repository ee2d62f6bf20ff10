"""Five implementations of GPT-2's tokenizer give the same ids; where they differ."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from course.testing.experiment_scripts import script_in
from dataloader import END_OF_TEXT

ENCODERS = script_in(Path(__file__).parent).ENCODERS
LOADED = {name: load() for name, (load, _) in ENCODERS.items()}
HARD = [
    "",
    " ",
    "  \n\n\t \r\n  x  ",
    "a--b   c \u00a0 d\u3000e",
    "I'm he'll we've they're you'd it's 'tis O'Neil I'M",
    "3.14159 1234567 x_1 __init__ \u00b2\u00bd\u2167\u0663",
    "caf\u00e9 cafe\u0301 na\u00efve \ufb01 \u01c5",
    "\U0001f352 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ef\U0001f1f5",
    "\u5ead\u3067\u672c\u3092\u8aad\u3080\u3002 \u05e9\u05dc\u05d5\u05dd",
    "\u0e44\u0e17\u0e22 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\x00\x07\x1b[0m\u200b\ufeff\ufffd\uffff\U0010ffff",
    f"{END_OF_TEXT} <|endoftext|<|endoftext|>>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 20,
]
# The packages know Unicode in different versions: see the test of the newest script.
planes = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)
blanks = st.text(" \t\n\r\x0b\x0c\x1c\u0085\u00a0\u2003\u2028\u3000", max_size=12)
words = st.sampled_from(
    [" the", "Half", "'s", "'LL", "12345", END_OF_TEXT, "--", "def"]
)
texts = st.lists(planes | blanks | words, max_size=6).map("".join)


def all_ids(text):
    return {name: ids(LOADED[name], text) for name, (_, ids) in ENCODERS.items()}


def same(found):
    return all(ids == found["tiktoken"] for ids in found.values())


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_the_same_ids_on_hard_text(text):
    found = all_ids(text)
    assert same(found), found
    assert LOADED["tiktoken"].decode(found["ours"]) == text


@settings(max_examples=300, deadline=None)
@given(texts)
@example("\n\n  a \t b")
def test_the_same_ids_on_any_text(text):
    found = all_ids(text)
    assert same(found), found


def test_a_letter_of_the_newest_script_is_none_to_older_tables():
    """The package regex knows Unicode 18, the libraries in Rust do not yet."""
    found = all_ids("\U0003d000't")  # the first character of the Seal script
    python = {"transformers, in Python", "ours"}
    assert {name for name in found if found[name] == found["ours"]} == python
    assert len({tuple(ids) for ids in found.values()}) == 2


def test_a_change_of_the_rule_would_be_seen():
    """The comparison is not blind: another pattern gives other ids."""
    import tokenizers

    other = ENCODERS["tokenizers"][0]()
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=True, use_regex=True
    )
    ids = ENCODERS["tokenizers"][1](other, "Half a ladder")
    assert ids != LOADED["tiktoken"].encode_ordinary("Half a ladder")


def test_what_is_special_by_default():
    """Known mistake: a stranger's <|endoftext|> becomes the mark, unasked."""
    text = f"See? {END_OF_TEXT}"
    for name in ("tiktoken", "ours"):
        with pytest.raises(ValueError, match="special token"):
            LOADED[name].encode(text)
        assert LOADED[name].encode(text, allowed_special="all")[-1] == 50256
    for name in ("transformers", "transformers, in Python"):
        assert LOADED[name](text)["input_ids"][-1] == 50256
    assert ENCODERS["tokenizers"][0]().encode(text).ids[-1] == 50256


def test_half_a_surrogate_pair():
    text = "a\ud800b"
    for name in ("tiktoken", "ours"):
        ids = ENCODERS[name][1](LOADED[name], text)
        assert LOADED[name].decode(ids) == "a\ufffdb"
    for name in ("tokenizers", "transformers", "transformers, in Python"):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            ENCODERS[name][1](LOADED[name], text)


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_every_text_comes_back(text):
    for name, ids in all_ids(text).items():
        assert LOADED[name].decode(ids) == text
