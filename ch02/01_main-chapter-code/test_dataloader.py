"""What chapter 2's pipeline promises, from text to batches.

Texts come from hypothesis, which is good at the ones nobody thinks of: other scripts,
emoji, control characters, runs of spaces, half of a special token.
"""

import os
import random
import re
import subprocess
import sys
import warnings
from itertools import groupby
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import assume, example, given, settings

from course.assets import fetch
from dataloader import (
    END_OF_TEXT,
    UNKNOWN,
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    build_vocabulary,
    create_dataloader_v1,
    encode_text,
    split_into_tokens,
    split_text,
)

# What goes wrong in tokenizers sits in white space, marks and special tokens, so these
# come more often than chance would bring them. Surrogates are no text (category Cs).
CHARACTERS = st.characters(exclude_categories=["Cs"])
SNIPPETS = st.sampled_from(
    [
        "--",
        "a--b",
        "don't",
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "_",
        "<|",
        "|>",
        "Hello",
        " lamp",
    ]
    + [END_OF_TEXT, UNKNOWN, "<|fim_prefix|>", "\u3042\u5ead", "\U0001f4a1", "e\u0301"]
)
TEXTS = st.lists(SNIPPETS | CHARACTERS | st.text(CHARACTERS, max_size=9)).map("".join)
ordinary = settings(deadline=None, max_examples=200)


class NumberTokenizer:
    """A stand-in whose ids are the numbers in the text, so that windows can be read."""

    def encode(self, text):
        return [int(number) for number in text.split()]


def numbers(count):
    return " ".join(map(str, range(count)))


def windows_by_hand(num_tokens, max_length, stride):
    starts = range(0, num_tokens, stride)
    fitting = [i for i in starts if i + max_length + 1 <= num_tokens]
    return [list(range(i, i + max_length)) for i in fitting]


def number_dataset(count, max_length, stride):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stride=")
        return GPTDatasetV1(numbers(count), NumberTokenizer(), max_length, stride)


def number_loader(count, **arguments):
    arguments = {
        "max_length": 4,
        "stride": 4,
        "tokenizer": NumberTokenizer(),
    } | arguments
    return create_dataloader_v1(numbers(count), **arguments)


def first_ids(loader):
    """Return the first id of each window in the order of the loader."""
    return [row[0] for inputs, _ in loader for row in inputs.tolist()]


@pytest.fixture(scope="module")
def gpt2():
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def story():
    return fetch("short-story").read_text(encoding="utf-8")


SHAPES = st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(1, 15))


# --- Tokens by rule -------------------------------------------------------------------


def test_split_knows_words_dashes_marks_and_special_tokens():
    text = "\"Don't,\" she said--well-kept 'lamps' (2)!<|endoftext|>New"
    expected = ['"', "Don't", ",", '"', "she", "said", "--", "well-kept", "'", "lamps"]
    expected += ["'", "(", "2", ")", "!", "<|endoftext|>", "New"]
    assert split_into_tokens(text) == expected


@given(TEXTS)
@ordinary
def test_split_loses_white_space_and_nothing_else(text):
    """A tokenizer that drops characters silently: each must end up in one token."""
    tokens = split_into_tokens(text)
    assert "".join(tokens) == re.sub(r"\s", "", text)
    assert all(token and not re.search(r"\s", token) for token in tokens)


@given(TEXTS)
@ordinary
def test_split_cuts_where_a_slow_reader_would(text):
    """A slip in the regular expression: compare with going through the characters."""
    by_hand = []
    for is_word, run in groupby(text, key=lambda c: c.isalnum() or c == "_"):
        marks = [character for character in run if is_word or not character.isspace()]
        by_hand += ["".join(marks)] if is_word else marks
    # Special tokens, dashes and words with inner marks are the only longer ones.
    tokens = split_into_tokens(text)
    parts = [part for token in tokens for part in re.findall(r"\w+|\W", token)]
    assert parts == by_hand


@pytest.mark.parametrize(
    ("text", "comes_back_as"),
    [
        ("a--b", "a -- b"),
        ("one\ntwo\n\nthree", "one two three"),
        ("two  spaces", "two spaces"),
        ('"Go," he said.', '" Go, " he said.'),
        ("(yes)", "( yes)"),
    ],
)
def test_rule_based_decoding_is_lossy_as_the_docstring_says(text, comes_back_as):
    """Spaces inserted into "a--b" and line breaks lost: stated, and exactly so."""
    tokenizer = SimpleTokenizerV1(build_vocabulary(split_into_tokens(text)))
    assert tokenizer.decode(tokenizer.encode(text)) == comes_back_as


@given(TEXTS)
@ordinary
def test_rule_based_decoding_keeps_every_token(text):
    """White space is all that decoding changes: the ids survive the round trip."""
    tokens = split_into_tokens(text)
    assume(tokens)
    tokenizer = SimpleTokenizerV1(build_vocabulary(tokens))
    ids = tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


# --- Vocabulary and the two tokenizers ------------------------------------------------


@given(st.lists(st.text(min_size=1), min_size=1))
@ordinary
def test_vocabulary_ids_are_dense_sorted_and_specials_last(tokens):
    """Wrong arithmetic of vocabulary sizes: ids are 0 to V - 1 without a gap."""
    vocab = build_vocabulary(tokens, [END_OF_TEXT, UNKNOWN])
    words = sorted(set(tokens) - {END_OF_TEXT, UNKNOWN})
    assert list(vocab) == [*words, END_OF_TEXT, UNKNOWN]
    assert list(vocab.values()) == list(range(len(vocab)))


def test_vocabulary_lists_a_special_token_once():
    vocab = build_vocabulary(["b", UNKNOWN, "a", "b"], [UNKNOWN, UNKNOWN])
    assert vocab == {"a": 0, "b": 1, UNKNOWN: 2}


def test_v1_names_the_unknown_word_and_v2_writes_unk():
    vocab = build_vocabulary(["a", "lamp"], [END_OF_TEXT, UNKNOWN])
    with pytest.raises(KeyError, match="'ladder'"):
        SimpleTokenizerV1(vocab).encode("a ladder")
    tokenizer = SimpleTokenizerV2(vocab)
    ids = tokenizer.encode("a ladder <|endoftext|> a <|pad|>")
    assert ids == [0, 3, 2, 0, 3]
    assert tokenizer.decode(ids) == "a <|unk|> <|endoftext|> a <|unk|>"


@given(TEXTS, TEXTS)
@ordinary
def test_v2_encodes_any_text_and_only_unknown_words_become_unk(known, text):
    tokens = split_into_tokens(known)
    tokenizer = SimpleTokenizerV2(build_vocabulary(tokens, [END_OF_TEXT, UNKNOWN]))
    kept = {*tokens, END_OF_TEXT}
    expected = [
        token if token in kept else UNKNOWN for token in split_into_tokens(text)
    ]
    assert [tokenizer.int_to_str[i] for i in tokenizer.encode(text)] == expected


def test_tokenizers_keep_their_own_copy_of_the_vocabulary():
    vocab = {"a": 0}
    tokenizer = SimpleTokenizerV1(vocab)
    vocab["b"] = 1
    assert tokenizer.str_to_int == {"a": 0}


def test_the_story_survives_up_to_white_space(story):
    tokenizer = SimpleTokenizerV1(build_vocabulary(split_into_tokens(story)))
    decoded = tokenizer.decode(tokenizer.encode(story))
    assert decoded.split() != story.split()
    assert "".join(decoded.split()) == "".join(story.split())


# --- Byte pair encoding and special tokens --------------------------------------------


@given(TEXTS)
@example("   three spaces, then\n\n\n   three more\t\t\ttabs   ")
@example("\n")
@example("")
@ordinary
def test_byte_pairs_give_back_any_text(gpt2, text):
    """Line breaks dropped, leading spaces moved to another word, other scripts lost."""
    ids = encode_text(text, gpt2)
    assert gpt2.decode(ids) == text
    assert all(0 <= i < 50257 for i in ids)


@given(TEXTS)
@example(f"{END_OF_TEXT}{END_OF_TEXT}")
@example(f"<{END_OF_TEXT}>")
@ordinary
def test_special_tokens_are_exactly_tiktokens(gpt2, text):
    """Special tokens not honoured: one id each, and the text between them as ever."""
    expected = []
    for part in text.split(END_OF_TEXT):
        expected += [*gpt2.encode_ordinary(part), gpt2.eot_token]
    assert encode_text(text, gpt2) == expected[:-1]


def test_other_text_that_looks_special_is_plain_text(gpt2):
    for text in (
        UNKNOWN,
        "<|endofprompt|>",
        "<|im_start|>",
        "<|ENDOFTEXT|>",
        "<|endof",
    ):
        ids = encode_text(text, gpt2)
        assert ids == gpt2.encode_ordinary(text)
        assert gpt2.eot_token not in ids


def test_tiktoken_itself_refuses_what_encode_text_allows(gpt2):
    """Special tokens not refused by default: the reason why encode_text exists."""
    with pytest.raises(ValueError, match="disallowed special token"):
        gpt2.encode(f"a{END_OF_TEXT}b")
    assert encode_text(f"a{END_OF_TEXT}b", gpt2) == [64, 50256, 65]


def test_encode_text_works_with_the_rule_based_tokenizers():
    tokenizer = SimpleTokenizerV2(build_vocabulary(["a", "b"], [END_OF_TEXT, UNKNOWN]))
    assert encode_text(f"a{END_OF_TEXT}c", tokenizer) == [0, 2, 3]


# --- Training and validation text -----------------------------------------------------

RATIOS = st.floats(0.01, 0.99)
WORDS = st.text("ab .\n\u3042", min_size=1, max_size=30).filter(str.strip)


def holds_text(part):
    return bool(part.replace(END_OF_TEXT, "").strip())


@given(TEXTS, RATIOS)
@example("a b", 0.5)
@example(f"a{END_OF_TEXT}", 0.5)
@example(f"{END_OF_TEXT}a b{END_OF_TEXT}", 0.99)
@example("word" + "\n" * 50, 0.5)
@settings(deadline=None, max_examples=300)
def test_both_parts_hold_text_and_joined_they_are_the_text(text, ratio):
    """An empty validation part: never, and nothing is lost between the parts."""
    if len(text.replace(END_OF_TEXT, " ").split()) < 2:  # one word has no cut
        with pytest.raises(ValueError, match="cannot be cut"):
            split_text(text, ratio)
        return
    train, validation = split_text(text, ratio)
    assert train + validation == text
    assert holds_text(train)
    assert holds_text(validation)


@given(st.lists(WORDS, min_size=2, max_size=8), RATIOS)
@ordinary
def test_documents_stay_whole_and_both_parts_hold_a_separator(documents, ratio):
    """An end of text that only ever occurs in the validation part."""
    train, validation = split_text(END_OF_TEXT.join(documents), ratio)
    assert train.endswith(END_OF_TEXT)
    assert train.split(END_OF_TEXT)[:-1] + validation.split(END_OF_TEXT) == documents
    assert (END_OF_TEXT in validation) == (len(documents) > 2)


@given(st.lists(WORDS, min_size=3, max_size=8), RATIOS)
@ordinary
def test_the_cut_is_the_document_end_closest_to_the_ratio(documents, ratio):
    text = END_OF_TEXT.join(documents)
    train, _ = split_text(text, ratio)
    ends = [match.end() for match in re.finditer(re.escape(END_OF_TEXT), text)]
    distances = [abs(end - ratio * len(text)) for end in ends[:-1]]
    assert abs(len(train) - ratio * len(text)) == min(distances)


def test_a_single_document_is_cut_after_a_line_if_one_ends_nearby():
    text = "word " * 17 + "end.\n" + "word " * 2  # the line ends at 90 of 100
    assert split_text(text, 0.87) == (text[:90], text[90:])


def test_a_single_document_is_otherwise_cut_before_a_space():
    text = "one\n" + "word " * 40
    train, validation = split_text(text, 0.3)
    assert re.fullmatch(r"one\n(word )*word", train)
    assert validation.startswith(" word")
    assert abs(len(train) - 0.3 * len(text)) <= 5


@given(st.lists(st.sampled_from(["lamp", "a", "went,"]), min_size=2), RATIOS)
@ordinary
def test_cutting_between_words_changes_no_token(gpt2, words, ratio):
    """Cut after the space, the parts would have a lone space and a bare word."""
    text = " ".join(words)
    train, validation = split_text(text, ratio)
    assert gpt2.encode(train) + gpt2.encode(validation) == gpt2.encode(text)


def test_the_story_is_split_at_nine_tenths(story):
    train, validation = split_text(story)
    assert train + validation == story
    assert train.endswith("\n")
    assert 0.85 < len(train) / len(story) < 0.95


def test_a_long_text_is_split_without_quadratic_work():
    text = "some words and a line\n" * 50_000
    train, validation = split_text(text)
    assert len(train) + len(validation) == len(text)


# --- Windows --------------------------------------------------------------------------


@given(SHAPES)
@example((5, 4, 4))
@example((9, 4, 4))
@example((4, 4, 1))
@ordinary
def test_windows_are_all_that_fit_and_targets_are_shifted_by_one(shape):
    """Off by one: the last window that fits is there, and no window runs over."""
    num_tokens, max_length, stride = shape
    expected = windows_by_hand(num_tokens, max_length, stride)
    if not expected:
        with pytest.raises(ValueError, match="too short"):
            number_dataset(*shape)
        return
    dataset = number_dataset(*shape)
    assert len(dataset) == len(expected)
    assert dataset.input_ids.tolist() == expected
    assert dataset.target_ids.tolist() == [[i + 1 for i in row] for row in expected]
    inputs, targets = dataset[len(dataset) - 1]
    assert inputs.tolist() == expected[-1]
    assert targets.tolist() == [i + 1 for i in expected[-1]]
    assert inputs.dtype == targets.dtype == torch.int64


def test_a_text_of_one_window_and_its_target_gives_one_window():
    dataset = number_dataset(5, max_length=4, stride=4)
    assert [tensor.tolist() for tensor in dataset[0]] == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert len(dataset) == 1
    with pytest.raises(IndexError):
        dataset[1]


@given(st.integers(2, 80), st.integers(1, 12))
@ordinary
def test_every_token_is_read_once_if_stride_is_the_window(num_tokens, max_length):
    """Skipped or repeated tokens: once as input, once as target, but for the rest."""
    assume(num_tokens > max_length)
    dataset = number_dataset(num_tokens, max_length, stride=max_length)
    read = dataset.input_ids.flatten().tolist()
    assert read == list(range(len(read)))
    assert dataset.target_ids.flatten().tolist() == [i + 1 for i in read]
    assert num_tokens - 1 - len(read) < max_length  # the rest is less than one window


@given(SHAPES)
@ordinary
def test_how_often_a_token_is_read_for_any_stride(shape):
    """A stride below the window repeats tokens, one above it skips some."""
    num_tokens, max_length, stride = shape
    assume(num_tokens > max_length)
    read = number_dataset(*shape).input_ids.flatten().tolist()
    counts = np.bincount(read, minlength=num_tokens)
    last_start = (num_tokens - 1 - max_length) // stride * stride
    for token, count in enumerate(counts):
        starts = range(0, last_start + 1, stride)
        assert count == sum(start <= token < start + max_length for start in starts)
    inside = counts[: last_start + max_length]
    assert inside.min() == (0 if stride > max_length and last_start else 1)
    assert inside.max() <= -(-max_length // stride)


def test_a_stride_above_the_window_warns_with_the_numbers():
    """A stride larger than the window silently skips tokens: not silently here."""
    with pytest.warns(UserWarning, match="of every 5 tokens 1 are never an input"):
        GPTDatasetV1(numbers(30), NumberTokenizer(), max_length=4, stride=5)


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_a_stride_up_to_the_window_does_not_warn(stride):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = GPTDatasetV1(numbers(30), NumberTokenizer(), 4, stride)
    assert len(dataset) == len(windows_by_hand(30, 4, stride))


def test_overlapping_windows_share_one_tensor_of_ids():
    dataset = number_dataset(1000, max_length=100, stride=1)
    storage = dataset.input_ids.untyped_storage()
    assert dataset.input_ids.numel() == 90_000
    assert storage.nbytes() == 1000 * 8
    assert dataset.target_ids.untyped_storage().data_ptr() == storage.data_ptr()


def test_windows_can_be_sliced_and_looped_over():
    dataset = number_dataset(13, max_length=4, stride=4)
    inputs, targets = dataset[:2]
    assert inputs.shape == targets.shape == (2, 4)
    assert [row.tolist() for row, _ in dataset] == windows_by_hand(13, 4, 4)


def test_the_separator_of_documents_is_one_token_of_the_data_set(gpt2):
    dataset = GPTDatasetV1(f"one{END_OF_TEXT}two", gpt2, max_length=2, stride=1)
    assert dataset[0][0].tolist() == [505, gpt2.eot_token]


# --- Batches --------------------------------------------------------------------------


@given(st.integers(5, 80), st.integers(1, 9), st.booleans(), st.booleans())
@ordinary
def test_loader_honours_batch_size_and_drop_last(num_tokens, batch_size, drop, shuffle):
    """A batch_size that is ignored: whatever the sizes, batches are as asked."""
    windows = len(windows_by_hand(num_tokens, 4, 4))
    assume(windows >= batch_size)
    loader = number_loader(
        num_tokens, batch_size=batch_size, drop_last=drop, shuffle=shuffle, seed=1
    )
    sizes = [len(inputs) for inputs, _ in loader]
    full, rest = divmod(windows, batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0 and not drop)
    assert len(loader) == len(sizes)


def test_loader_without_shuffling_follows_the_text():
    loader = number_loader(41, batch_size=3, shuffle=False, drop_last=False)
    for _epoch in range(2):
        assert first_ids(loader) == list(range(0, 40, 4))


def test_batches_are_inputs_and_targets_shifted_by_one():
    loader = number_loader(41, batch_size=3, shuffle=True, seed=3)
    for inputs, targets in loader:
        assert inputs.shape == targets.shape == (3, 4)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)


def test_shuffling_changes_the_order_and_loses_nothing():
    loader = number_loader(401, batch_size=7, drop_last=False, seed=0)
    order = first_ids(loader)
    assert order != sorted(order)
    assert sorted(order) == list(range(0, 400, 4))


def test_one_seed_gives_one_order_whatever_else_draws_numbers():
    """A seed that is not used: the same order, untouched by the global generator."""

    def epochs(seed):
        loader = number_loader(401, drop_last=False, seed=seed)
        torch.rand(random.randrange(50))
        return [first_ids(loader) for _epoch in range(2)]

    first, second = epochs(5)
    assert epochs(5) == [first, second]
    assert first != second  # each epoch has its own order
    assert epochs(6) != [first, second]


def test_a_seeded_loader_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    loader = number_loader(41, seed=5)
    first_ids(loader)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_the_global_generator_decides():
    loader = number_loader(401, drop_last=False)
    torch.manual_seed(1)
    first = first_ids(loader)
    torch.manual_seed(1)
    assert first_ids(loader) == first
    assert first_ids(loader) != first


def test_without_a_tokenizer_the_loader_takes_gpt2s(gpt2, story):
    loader = create_dataloader_v1(story, shuffle=False)
    inputs, targets = next(iter(loader))
    ids = gpt2.encode(story)
    assert inputs.shape == (4, 256)  # the defaults of batch_size and max_length
    assert inputs[1].tolist() == ids[128 : 128 + 256]  # and of stride
    assert targets[1].tolist() == ids[129 : 129 + 256]
    assert loader.drop_last


def test_defaults_shuffle(story):
    loader = create_dataloader_v1(story, seed=0, max_length=16, stride=16)
    windows = [row.tolist() for row in loader.dataset.input_ids]
    order = [windows.index(row) for inputs, _ in loader for row in inputs.tolist()]
    assert order != sorted(order)


def test_two_workers_bring_the_same_batches():
    """num_workers that is ignored, or workers that each bring the whole text."""
    alone = number_loader(401, seed=2)
    helped = number_loader(401, seed=2, num_workers=2)
    assert helped.num_workers == 2
    assert first_ids(helped) == first_ids(alone)


SPAWN_SCRIPT = """
import multiprocessing
from dataloader import SimpleTokenizerV2, build_vocabulary, create_dataloader_v1

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    words = [str(i) for i in range(41)]
    tokenizer = SimpleTokenizerV2(build_vocabulary(words, ["<|unk|>"]))
    loader = create_dataloader_v1(
        " ".join(words), 5, 4, 4, shuffle=False, num_workers=2, tokenizer=tokenizer
    )
    rows = [row for inputs, _ in loader for row in inputs.tolist()]
    print([tokenizer.decode(row) for row in rows] == [
        " ".join(words[i : i + 4]) for i in range(0, 40, 4)
    ])
"""


def test_workers_start_where_processes_are_spawned(tmp_path):
    """Windows and macOS start workers afresh: all that a worker needs is sent along."""
    script = tmp_path / "load.py"
    script.write_text(SPAWN_SCRIPT, encoding="utf-8")
    folder = str(Path(__file__).parent)
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


# --- Bad input, one clear sentence each -----------------------------------------------

VOCABULARY = {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: number_loader(4), ValueError, "has 4 tokens, but one .* needs 5"),
        (lambda: number_loader(0), ValueError, "has 0 tokens"),
        (lambda: number_loader(9, stride=0), ValueError, "stride is 0: give a whole"),
        (lambda: number_loader(9, stride=1.5), ValueError, r"stride is 1\.5"),
        (lambda: number_loader(9, max_length=0), ValueError, "max_length is 0"),
        (lambda: number_loader(9, batch_size=0), ValueError, "batch_size should be"),
        (lambda: number_loader(41, num_workers=-1), ValueError, "num_workers option"),
        (
            lambda: number_loader(13, batch_size=4),
            ValueError,
            "3 for batch_size=4, and drop_last=True would leave no batch",
        ),
        (lambda: build_vocabulary("a text"), TypeError, "call split_into_tokens"),
        (lambda: build_vocabulary(["a"], UNKNOWN), TypeError, "tokens into a list"),
        (lambda: SimpleTokenizerV1({"a": 0, "b": 0}), ValueError, "share an id"),
        (
            lambda: SimpleTokenizerV1(VOCABULARY).encode("a c"),
            KeyError,
            "'c' is not in the vocabulary: make it with split_into_tokens",
        ),
        (lambda: SimpleTokenizerV1(VOCABULARY).decode([0, 2]), KeyError, "2"),
        (lambda: SimpleTokenizerV2(VOCABULARY).encode("a"), KeyError, "unk"),
        (lambda: split_text("a b", 0.0), ValueError, "is 0.0: give a share"),
        (lambda: split_text("a b", 1), ValueError, "is 1: give a share such as 0.9"),
        (lambda: split_text("a b", 90), ValueError, "is 90: give a share"),
        (lambda: split_text("a b", float("nan")), ValueError, "is nan: give a share"),
        (lambda: split_text("word"), ValueError, "cannot be cut in two"),
        (lambda: split_text(""), ValueError, "cannot be cut in two"),
        (lambda: split_text(END_OF_TEXT * 3), ValueError, "cannot be cut in two"),
    ],
)
def test_what_would_give_wrong_batches_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_too_few_windows_are_fine_without_drop_last():
    loader = number_loader(13, batch_size=4, drop_last=False, shuffle=False)
    assert [inputs.tolist() for inputs, _ in loader] == [windows_by_hand(13, 4, 4)]
