"""Tests of the tokenizer: equal to tiktoken and tokenizers, lossless, hard to fool.

Known mistakes are those that readers of other courses have reported.
"""

import codecs
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe import (
    GPT2_PATTERN,
    BPETokenizer,
    BPETokenizerSimple,
    byte_alphabet,
    count_chunks,
    cut_out,
    find_freq_pair,
    load_tokenizer,
    load_vocab_and_merges_from_openai,
    merge_chunk,
    pair_counts,
    replace_pair,
    save_tokenizer,
    tokenizer_from_json,
    train_incremental,
    train_naive,
    train_tokenizer,
)
from course.assets import fetch
from course.testing.experiment_scripts import script_in
from gpt import GPTModel, count_parameters
from gpt_train import QUICK_CONFIG

FOLDER = Path(__file__).parent
END = "<|endoftext|>"
STORY = fetch("short-story").read_text(encoding="utf-8")
GPT2_FILES = fetch("gpt2-encoder.json"), fetch("gpt2-vocab.bpe")
EXPERIMENTS = script_in(FOLDER)
# Any character but halves of surrogate pairs, and those that this Python does not know:
# regex and tiktoken follow different editions of Unicode. Planes 4 to 13 are empty.
CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs", "Cn"]),
    st.integers(0x40000, 0xDFFFF).map(chr),
)
PIECES = st.one_of(
    st.text(CHARACTERS, max_size=60),
    st.text(EXPERIMENTS.BLANKS, max_size=6),
    st.sampled_from(EXPERIMENTS.PIECES),
    st.text(EXPERIMENTS.LETTERS, max_size=12),
)
HARD_TEXTS = st.lists(PIECES, max_size=20).map(lambda parts: "".join(parts)[:200])
HARD_CORPUS = [
    "",
    " ",
    "\n",
    "\r\n",
    "a\r\nb\n\n\nc \n d\t\te",
    "   leading", "trailing   ", "in   the    middle", "\t\ttabs\t", " \n \n ",
    "x\u00a0y\u2003z\u3000w",  # white space that is not ASCII
    "I'm you'll WE'LL it's 's ''' don''t",
    "2026 12345678901234567890 3.14159 1,000,000 \u00bd\u0661\u06f2",
    "def f(x):\n    return x ** 2  # \u03c0\n",
    "https://example.org/?a=1&b=%20#frag",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "caf\u00e9 cafe\u0301 \u01c5 \ufb01",
    "\u732b\u304c\u597d\u304d\u3002 \u1e9e\u00df \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f352",
    "\x00\x01\x7f\x80\xad\ufeff\ufffd\U0010ffff\U000e0001",
    "<|endoftext|><|endoftext |>",
    "half a pair: \ud83c and \udf52 and both: \ud83c\udf52",
    "This is some text",
]  # fmt: skip
# Few letters, so that pairs overlap and tie all the time.
TIES = st.text("ab c", max_size=40)


@pytest.fixture(scope="module")
def gpt2():
    return load_vocab_and_merges_from_openai(*GPT2_FILES)


@pytest.fixture(scope="module")
def reference():
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(STORY, vocab_size=1000)


def in_tiktoken(tokenizer):
    """The same vocabulary in tiktoken's engine."""
    special = tokenizer.special_tokens
    ranks = {
        token: i
        for i, token in tokenizer.token_bytes.items()
        if i not in special.values()
    }
    return tiktoken.Encoding(
        "ours",
        pat_str=tokenizer.pattern,
        mergeable_ranks=ranks,
        special_tokens=special,
    )


# --- equal to tiktoken ----------------------------------------------------------------


@settings(max_examples=2000, deadline=None)
@given(text=HARD_TEXTS)
def test_ids_are_those_of_tiktoken_and_give_the_text_back(gpt2, reference, text):
    """Known mistakes: newlines dropped; leading spaces moved to another word."""
    ids = gpt2.encode_ordinary(text)
    assert ids == reference.encode_ordinary(text)
    assert gpt2.decode(ids) == text


@pytest.mark.parametrize("text", HARD_CORPUS)
def test_ids_of_the_hard_corpus_are_those_of_tiktoken(gpt2, reference, text):
    ids = gpt2.encode_ordinary(text)
    assert ids == reference.encode_ordinary(text)
    assert gpt2.decode(ids) == reference.decode(ids)


def test_known_ids_of_gpt2(gpt2):
    assert gpt2.n_vocab == 50257
    assert gpt2.eot_token == 50256
    assert gpt2.encode("This is some text") == [1212, 318, 617, 2420]
    assert gpt2.encode("\n") == [198]
    assert gpt2.encode("\r") == [201]


@settings(max_examples=200, deadline=None)
@given(text=HARD_TEXTS)
def test_a_trained_tokenizer_is_tiktoken_with_its_ranks(trained, text):
    """Known mistake: merges applied from left to right instead of by rank."""
    ids = trained.encode_ordinary(text)
    assert ids == in_tiktoken_once(trained).encode_ordinary(text)
    assert trained.decode(ids) == text


def in_tiktoken_once(tokenizer, made={}):  # noqa: B006  (kept on purpose)
    if id(tokenizer) not in made:
        made[id(tokenizer)] = in_tiktoken(tokenizer)
    return made[id(tokenizer)]


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from([END, "<|x|>", "<|", "a b", " ", "\n"])).map("".join),
    allowed=st.sampled_from(["all", set(), {END}, {"<|x|>"}, {"<|x|>", END}, {"no"}]),
    disallowed=st.sampled_from(["all", (), {END}, {"<|x|>"}, {"a b"}]),
)
def test_special_tokens_are_treated_as_in_tiktoken(text, allowed, disallowed):
    """Known mistake: special tokens not refused by default, or not honoured."""
    ours = special_tokenizer()
    options = {"allowed_special": allowed, "disallowed_special": disallowed}
    expected = ids_or_refusal(in_tiktoken_once(ours), text, options)
    assert ids_or_refusal(ours, text, options) == expected


def ids_or_refusal(tokenizer, text, options):
    try:
        return tokenizer.encode(text, **options)
    except ValueError as error:
        return type(error)


def test_a_refusal_is_one_sentence_that_names_the_token(trained):
    with pytest.raises(ValueError, match=r"special token '<\|endoftext\|>'") as caught:
        trained.encode(f"a {END}")
    assert "\n" not in str(caught.value)


def special_tokenizer(made=[]):  # noqa: B006  (kept on purpose)
    if not made:
        made.append(train_tokenizer("a b a b a b", 258, [END, "<|x|>"]))
    return made[0]


def test_the_longer_of_two_special_tokens_is_found():
    tokenizer = BPETokenizer(special_tokens=["<|a|>", "<|a|><|b|>"])
    assert tokenizer.encode("<|a|><|b|><|a|>", allowed_special="all") == [257, 256]
    assert cut_out("x<|a|>", ["<|a|>"]) == ["x", "<|a|>", ""]


@pytest.mark.parametrize("special", [["a", "a"], [""], ["<b>", ""]])
def test_special_tokens_are_given_once_and_none_is_empty(special):
    """Else an id is missing below n_vocab, or a token stands between all letters."""
    with pytest.raises(ValueError, match="each once, and none empty"):
        BPETokenizer((), special)
    with pytest.raises(ValueError, match="each once, and none empty"):
        train_tokenizer("low lower", 300, (token for token in special))


def test_special_tokens_that_look_like_patterns_are_texts():
    tokenizer = BPETokenizer(special_tokens=["[.*]", "a|b"])
    assert tokenizer.encode("[.*]a|b[xx]", allowed_special="all")[:2] == [256, 257]
    assert len(tokenizer.encode("[xx]", allowed_special="all")) == 4


# --- training -------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(st.lists(TIES, max_size=6).map(" ".join), st.integers(0, 40))
def test_both_trainers_learn_the_same_merges_ties_included(text, num_merges):
    chunks = count_chunks(text)
    assert train_incremental(chunks, num_merges) == train_naive(chunks, num_merges)


@settings(max_examples=100, deadline=None)
@given(st.lists(HARD_TEXTS, max_size=4).map(lambda parts: 2 * "".join(parts)))
def test_both_trainers_learn_the_same_from_hard_texts(text):
    chunks = count_chunks(text)
    assert train_incremental(chunks, 30) == train_naive(chunks, 30)


def test_both_trainers_learn_the_same_from_the_story(trained):
    merges = train_naive(count_chunks(STORY), 743)
    assert list(trained.new_ids) == merges


def test_merges_are_those_of_the_package_tokenizers():
    """Ties included: it, too, takes the smallest ids; its bytes have GPT-2's order."""
    theirs = EXPERIMENTS.merges_in_rust([STORY], 700)
    assert EXPERIMENTS.merges_of_ours([STORY], 700) == theirs


@given(st.lists(TIES, max_size=6).map(" ".join), st.randoms())
def test_the_order_of_the_chunks_changes_nothing(text, rng):
    chunks = list(count_chunks(text).items())
    shuffled = rng.sample(chunks, len(chunks))
    assert train_incremental(dict(shuffled), 20) == train_incremental(dict(chunks), 20)


def test_places_that_overlap_are_counted_as_in_the_package_tokenizers():
    """So the one place in "aaa" where a pair can be merged is enough."""
    assert pair_counts({(97, 97, 97): 1}) == {(97, 97): 2}
    merges = EXPERIMENTS.merges_in_rust(["aaa"], 1)
    assert EXPERIMENTS.merges_of_ours(["aaa"], 1) == merges == [(b"a", b"a")]


def test_ties_go_to_the_smallest_ids():
    """Known mistake: the rule and the worked example disagree."""
    counts = pair_counts({(98, 97): 3, (97, 98): 3, (97, 99): 3, (97, 97): 2})
    assert find_freq_pair(counts) == (97, 98)
    assert train_naive({(98, 97): 3, (97, 98): 3}, 1) == [(97, 98)]


def test_what_occurs_once_is_not_merged():
    assert find_freq_pair(Counter({(1, 2): 1})) is None
    assert find_freq_pair(Counter()) is None
    assert train_tokenizer("abc", 300).n_vocab == 257
    assert train_incremental({(97, 98): 2, (99, 100): 1}, 9) == [(97, 98)]


@pytest.mark.parametrize("size", [257, 258, 300, 999, 1000])
def test_vocabulary_sizes_add_up(size):
    """Known mistake: 742, 743 or 744 merges for 1,000 entries."""
    tokenizer = train_tokenizer(STORY, vocab_size=size)
    assert tokenizer.n_vocab == size == 256 + len(tokenizer.new_ids) + 1
    assert sorted(tokenizer.token_bytes) == list(range(size))
    assert tokenizer.eot_token == size - 1
    assert len(set(tokenizer.token_bytes.values())) == size


def test_a_smaller_vocabulary_is_the_start_of_a_larger_one(trained):
    small = train_tokenizer(STORY, vocab_size=500)
    assert list(small.new_ids) == list(trained.new_ids)[:243]


def test_every_learned_token_is_reached(trained):
    """By encoding some chunk of the training text on the way, and by its own bytes.

    Known mistake: merges across borders that encoding never crosses.
    """
    left = set(trained.new_ids.values())
    for chunk in count_chunks(STORY):
        ids = tuple(chunk)
        for pair, new_id in trained.new_ids.items():
            if pair[0] in ids and pair in zip(ids, ids[1:]):
                ids = tuple(replace_pair(ids, pair, new_id))
                left.discard(new_id)
        assert list(ids) == merge_chunk(chunk, trained.new_ids)
    assert not left
    for new_id in trained.new_ids.values():
        own = trained.token_bytes[new_id]
        assert merge_chunk(own, trained.new_ids) == [new_id]


def test_no_token_reaches_across_chunks(trained):
    """Known mistake: tokens that end in a space, or hold one between two words."""
    for i in trained.new_ids.values():
        token = trained.decode([i], errors="ignore")
        assert " " not in token.strip(" ") or token.isspace()
        assert not token.endswith(" ") or token.isspace()


def test_special_tokens_in_a_training_text_are_cut_out():
    text = f"ab{END}ab{END}ab"
    assert count_chunks(text, [END]) == {(97, 98): 3}
    assert train_tokenizer(text, 300).n_vocab == 258
    assert len(count_chunks(text)) > 1


def test_special_tokens_may_come_from_a_generator():
    assert train_tokenizer("", 257, (t for t in [END])).eot_token == 256


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 256, .* are 257"):
        train_tokenizer("abc", vocab_size=256)


def test_training_on_another_pattern_changes_the_chunks():
    digits = r"\p{N}|\P{N}+"
    tokenizer = train_tokenizer("1212 1212", 300, pattern=digits)
    assert tokenizer.encode("12") == [49, 50]
    assert train_tokenizer("1212 1212", 300).encode("12") == [256]


# --- one merge ------------------------------------------------------------------------


@given(st.text("abc", max_size=30), st.sampled_from(["aa", "ab", "cb"]))
def test_merging_replaces_as_text_does(text, pair):
    """Known mistake: overlapping repeats ("aaaa") merged twice."""
    left, right = pair.encode()
    replaced = replace_pair(text.encode(), (left, right), 256)
    assert replaced == [256 if c == "X" else ord(c) for c in text.replace(pair, "X")]


@given(TIES, st.integers(0, 20))
def test_encoding_applies_the_merges_in_their_order(text, num_merges):
    chunks = count_chunks(text * 2)
    merges = train_naive(chunks, num_merges)
    new_ids = {pair: 256 + i for i, pair in enumerate(merges)}
    for chunk in chunks:
        ids = list(chunk)
        for pair, new_id in new_ids.items():
            ids = replace_pair(ids, pair, new_id)
        assert merge_chunk(chunk, new_ids) == ids


# --- nothing is lost ------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_come_back(gpt2, trained, data):
    """GPT-2's ids of bytes are in another order than the bytes."""
    for tokenizer in (gpt2, trained):
        ids = merge_chunk(data.translate(tokenizer.id_of_byte), tokenizer.new_ids)
        assert tokenizer.decode_bytes(ids) == data


@given(st.sampled_from([" ", "\t", "\n", " \t", "\r\n"]), st.integers(1, 9))
def test_runs_of_white_space_come_back(trained, blank, times):
    run = times * blank
    for text in (run + "a b", "a" + run + "b", "a b" + run, run):
        assert trained.decode(trained.encode(text)) == text


def test_a_stream_of_tokens_gives_the_text(trained):
    """Known mistake: half a character is shown as a replacement character."""
    text = "caf\u00e9 \u732b \U0001f352\u200d\U0001f352"
    decoder = codecs.getincrementaldecoder("utf-8")()
    ids = trained.encode(text)
    pieces = [decoder.decode(trained.decode_single_token_bytes(i)) for i in ids]
    assert "".join(pieces) == text
    assert "" in pieces
    assert "\ufffd" in "".join(trained.decode([i]) for i in ids)


def test_an_id_without_a_token_is_an_error(trained):
    for bad in (1000, -1):
        with pytest.raises(KeyError):
            trained.decode([bad])
        with pytest.raises(KeyError):
            trained.decode_single_token_bytes(bad)


def test_the_cache_stays_small_and_changes_nothing(trained, monkeypatch):
    before = trained.encode(STORY)
    monkeypatch.setattr("bpe.CACHED_CHUNKS", 10)
    trained.cache.clear()
    assert trained.encode(STORY) == before
    assert len(trained.cache) <= 10


def test_merges_that_make_the_same_token_are_refused():
    with pytest.raises(ValueError, match="same token"):
        BPETokenizerSimple([(97, 98), (97, 98)])
    with pytest.raises(ValueError, match="same token"):
        BPETokenizer([(97, 98), (98, 99), (256, 99), (97, 257)])


# --- files ----------------------------------------------------------------------------


@given(
    text=TIES,
    special=st.lists(st.text(min_size=1), unique=True, max_size=3),
    pattern=st.sampled_from([GPT2_PATTERN, r"\p{N}|\P{N}+"]),
)
def test_a_saved_tokenizer_comes_back(text, special, pattern):
    merges = list(train_tokenizer(text * 3, 400, [], pattern).new_ids)
    first_bytes = random.Random(0).sample(range(256), 256)
    tokenizer = BPETokenizer(merges, special, pattern, first_bytes)
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.token_bytes == tokenizer.token_bytes
    assert again.new_ids == tokenizer.new_ids
    assert again.special_tokens == tokenizer.special_tokens
    assert again.pattern == pattern
    assert again.encode_ordinary(text) == tokenizer.encode_ordinary(text)


def test_a_tokenizer_goes_to_a_file_and_back(trained, tmp_path):
    path = tmp_path / "W\u00f6rter.json"
    save_tokenizer(trained, path)
    assert load_tokenizer(path).encode(STORY) == trained.encode(STORY)
    assert load_tokenizer(str(path)).to_json() == trained.to_json()
    assert path.read_bytes().count(b"\n") == 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_in_one_sentence(data):
    """Known mistake: a loader that takes broken or old files."""
    whole = train_tokenizer("ab ab abc abc", 260).to_json().encode()
    place = data.draw(st.integers(0, len(whole) - 2))
    if data.draw(st.booleans()):
        broken = whole[:place]
    else:
        other = data.draw(st.integers(0, 255).filter(lambda b: b != whole[place]))
        broken = whole[:place] + bytes([other]) + whole[place + 1 :]
    try:
        loaded = tokenizer_from_json(broken, "words.json")
    except ValueError as error:
        message = str(error)
        assert message.startswith("words.json is not a whole tokenizer")
        assert "\n" not in message
    else:  # white space outside of strings, or the like, which says the same
        assert loaded.to_json().encode() == whole


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "3", "null", '{"sha256": "", "tokenizer": {}}', "[" * 100_000],
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="other.json is not a whole tokenizer"):
        load_tokenizer(path)


def test_binary_files_and_forged_ones_are_refused(tmp_path):
    with pytest.raises(ValueError, match="UnicodeDecodeError"):
        tokenizer_from_json(b"\x80\x04\x95")
    forged = BPETokenizer([(97, 98)])
    forged.new_ids = {(97, 999): 256}
    with pytest.raises(ValueError, match="KeyError"):
        tokenizer_from_json(forged.to_json())
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "missing.json")


def test_the_byte_alphabet_is_that_of_the_package_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = byte_alphabet()
    assert set(alphabet) == set(ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["\u0120"] == ord(" ")


def gpt2_files(tmp_path, vocab=None, merges=None):
    """Copies of GPT-2's files, changed."""
    paths = []
    for path, change in zip(GPT2_FILES, (vocab, merges)):
        text = path.read_text(encoding="utf-8")
        paths.append(tmp_path / f"{len(paths)}.txt")
        paths[-1].write_text(change(text) if change else text, encoding="utf-8")
    return paths


def swap_two_ids(text):
    vocab = json.loads(text)
    vocab["hello"], vocab["world"] = vocab["world"], vocab["hello"]
    return json.dumps(vocab)


def drop_line(text):
    lines = text.split("\n")
    return "\n".join(lines[:1000] + lines[1001:])


@pytest.mark.parametrize(
    ("vocab", "merges", "reason"),
    [
        (lambda text: text[:-100], None, "JSONDecodeError"),
        (lambda text: "[]", None, "TypeError"),
        (lambda text: "{}", None, "KeyError"),
        (swap_two_ids, None, "do not make the tokens"),
        (None, lambda text: text[: len(text) // 2], "ValueError"),
        (None, drop_line, "do not make the tokens|KeyError"),
        (None, lambda text: "", "do not make the tokens"),
        (None, lambda text: text.replace("\u0120 t\n", "\u0120 t t\n"), "ValueError"),
    ],
)
def test_damaged_files_of_gpt2_are_refused(tmp_path, vocab, merges, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        load_vocab_and_merges_from_openai(*gpt2_files(tmp_path, vocab, merges))
    assert "fetch both again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_small_vocabulary_makes_the_quick_preset_about_eight_times_smaller():
    """What the notebook's last section says of chapter 5's preset."""
    sizes = []
    for vocab_size in (50257, 1000):
        with torch.device("meta"):  # counted, not filled
            model = GPTModel({**QUICK_CONFIG, "vocab_size": vocab_size})
        sizes.append(count_parameters(model))
    assert 7 < sizes[0] / sizes[1] < 9
