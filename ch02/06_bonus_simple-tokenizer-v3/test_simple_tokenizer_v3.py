"""The tokenizer that loses nothing: any text comes back, and stays what it was."""

import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from course import assets
from dataloader import (
    END_OF_TEXT,
    build_vocabulary,
    create_dataloader_v1,
    encode_text,
)
from simple_tokenizer_v3 import SimpleTokenizerV3, split_keeping_white_space

TEXT = 'He said:\n\n"It isn\'t hard -- is it?"  A well-kept foot, a boot.\tEnd.\n'
VOCAB = build_vocabulary(split_keeping_white_space(TEXT), [END_OF_TEXT])
TOKENIZER = SimpleTokenizerV3(VOCAB)
# Every plane of Unicode, white space of all kinds in runs, and the pieces themselves.
planes = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
blanks = st.text(" \t\n\r\x0b\x0c\x1c\u0085\u00a0\u2003\u2028\u3000", max_size=8)
words = st.sampled_from([*VOCAB, "a--b", "<|unk|>", "\r\n", "\u0301", "\U0001f352"])
texts = st.lists(planes | blanks | words, max_size=12).map("".join)
some = settings(max_examples=300, deadline=None)


@some
@given(texts)
@example("  a--b\n\n  c \t")
@example("\ufffd\x00\ufeff")
def test_every_text_comes_back(text):
    """Known mistakes: line breaks dropped because text was split on white space; blanks
    at the start moved to another word; spaces put into "a--b".
    """
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text, {END_OF_TEXT})) == text


@some
@given(texts)
def test_pieces_join_and_stay_whole(text):
    pieces = split_keeping_white_space(text)
    assert "".join(pieces) == text
    assert all(pieces)
    for piece in pieces:
        assert split_keeping_white_space(piece) == [piece]
        assert len(piece.split()) <= 1, "two words in one piece"


@pytest.mark.parametrize(
    "blank", ["\n", "\r\n", "\t", "  ", "\u3000", "\u2028", "\x1c", "\x85"]
)
@pytest.mark.parametrize("pattern", ["{0}foot", "foot{0}boot", "foot{0}", "{0}{0}foot"])
def test_white_space_stays_where_it_was(blank, pattern):
    text = pattern.format(blank)
    pieces = split_keeping_white_space(text)
    assert "".join(pieces) == text
    assert [piece.strip() for piece in pieces if piece.strip()] == text.split()


def test_every_piece_of_the_vocabulary_is_reached():
    """Known mistake: tokens that encoding never produces."""
    for piece, number in VOCAB.items():
        assert TOKENIZER.encode(piece, {END_OF_TEXT}) == [number]
    used = set(TOKENIZER.encode(TEXT))
    assert used == set(VOCAB.values()) - {VOCAB[END_OF_TEXT]}


def test_ids_are_dense_and_counted():
    assert TOKENIZER.first_byte == len(VOCAB)
    assert TOKENIZER.n_vocab == len(VOCAB) + 256
    every = TOKENIZER.encode("".join(map(chr, range(0x250))) + "\u5ead\U0001f352")
    assert set(every) <= set(range(TOKENIZER.n_vocab))
    for value in range(256):
        expected = bytes([value]).decode("utf-8", errors="replace")
        assert TOKENIZER.decode([TOKENIZER.first_byte + value]) == expected


def test_known_pieces_keep_the_ids_of_the_vocabulary():
    assert TOKENIZER.encode(" foot") == [VOCAB[" foot"]]
    assert TOKENIZER.encode("foot") == [TOKENIZER.first_byte + byte for byte in b"foot"]
    gaps = SimpleTokenizerV3({"a": 7, " b": 3})
    assert gaps.encode("a b") == [7, 3]
    assert gaps.encode("\n") == [8 + 10]
    assert gaps.decode([7, 3, 18]) == "a b\n"


@some
@given(planes)
def test_without_a_vocabulary_the_ids_are_the_bytes(text):
    assert SimpleTokenizerV3({}).encode(text) == list(text.encode())


def test_a_mark_counts_only_where_it_is_allowed():
    """Known mistake: special tokens honoured although nobody allowed them."""
    text = f"End.{END_OF_TEXT} A foot"
    as_text, as_mark = TOKENIZER.encode(text), TOKENIZER.encode(text, {END_OF_TEXT})
    assert VOCAB[END_OF_TEXT] not in as_text
    assert as_mark.count(VOCAB[END_OF_TEXT]) == 1
    assert as_mark == encode_text(text, TOKENIZER)
    assert TOKENIZER.decode(as_text) == TOKENIZER.decode(as_mark) == text


def test_of_two_marks_the_longer_one_wins():
    vocab = {"<|a|>": 0, "<|a|><|a|>": 1, "x": 2}
    tokenizer = SimpleTokenizerV3(vocab)
    assert tokenizer.encode("<|a|><|a|>x<|a|>", {"<|a|>", "<|a|><|a|>"}) == [1, 2, 0]
    assert tokenizer.encode("x", ["<|a|>"]) == [2]


def test_a_text_in_place_of_marks_is_refused():
    with pytest.raises(TypeError, match="not one string"):
        TOKENIZER.encode("a", allowed_special=END_OF_TEXT)

    with pytest.raises(TypeError, match="is a set of tokens"):
        TOKENIZER.encode("a", allowed_special="all")


def test_an_allowed_mark_without_an_id_is_text():
    """Known mistake: it was spelled in bytes as a whole."""
    tokenizer = SimpleTokenizerV3({"<": 0, "a": 1})
    assert tokenizer.encode("<a", {"<a", ""}) == [0, 1]


def test_a_mark_that_the_rule_leaves_whole_is_a_word():
    """Why special tokens are written `<|...|>`, as the docstring says."""
    tokenizer = SimpleTokenizerV3({"EOS": 0, "<|eos|>": 1})
    assert tokenizer.encode("EOS") == [0]
    assert split_keeping_white_space("<|eos|>") != ["<|eos|>"]
    assert 1 not in tokenizer.encode("<|eos|>")
    assert tokenizer.encode("<|eos|>", {"<|eos|>"}) == [1]


def test_half_a_character_is_shown_as_such():
    ids = TOKENIZER.encode("\U0001f352")
    assert len(ids) == 4
    assert TOKENIZER.decode(ids[:3]) == "\ufffd"
    with pytest.raises(UnicodeEncodeError):
        TOKENIZER.encode("\ud83c")


@pytest.mark.parametrize("number", [-1, TOKENIZER.n_vocab, 10**9])
def test_an_id_that_does_not_exist_is_refused(number):
    with pytest.raises((KeyError, ValueError)):
        TOKENIZER.decode([number])


def test_the_story_and_a_loader_over_it():
    story = assets.fetch("short-story").read_text(encoding="utf-8")
    vocab = build_vocabulary(split_keeping_white_space(story), [END_OF_TEXT])
    tokenizer = SimpleTokenizerV3(vocab)
    ids = tokenizer.encode(story)
    assert max(ids) < tokenizer.first_byte
    assert tokenizer.decode(ids) == story
    options = {"batch_size": 4, "max_length": 16, "stride": 16, "shuffle": False}
    loader = create_dataloader_v1(story, tokenizer=tokenizer, **options)
    inputs, targets = next(iter(loader))
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    text = tokenizer.decode(inputs.flatten().tolist())
    assert story.startswith(text)
    assert re.search(r"\n\n", text)
