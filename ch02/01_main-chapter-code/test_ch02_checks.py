"""Each check of chapter 2 takes its solution and its stub, and names planted mistakes.

The solutions here are the ones of `exercise-solutions.ipynb`. An exercise whose check
accepts a wrong answer, or refuses a right one, is worse than none.
"""

import ast
import codecs
import inspect
import json
import re
from pathlib import Path

import pytest
import tiktoken
import torch

import ch02_checks
from course.exercises import verify
from dataloader import create_dataloader_v1, split_into_tokens


def stub(*arguments):
    return ...


# --- 2.1 ------------------------------------------------------------------------------


def byte_pair_pieces(text, tokenizer):
    return [(i, tokenizer.decode_single_token_bytes(i)) for i in tokenizer.encode(text)]


def pieces_as_text(text, tokenizer):
    return [(i, tokenizer.decode([i])) for i in tokenizer.encode(text)]


def pieces_by_way_of_text(text, tokenizer):
    return [(i, tokenizer.decode([i]).encode()) for i in tokenizer.encode(text)]


def pieces_of_words(text, tokenizer):
    return [pair for word in text.split() for pair in byte_pair_pieces(word, tokenizer)]


def pieces_of_characters(text, tokenizer):
    return [pair for char in text for pair in byte_pair_pieces(char, tokenizer)]


def pieces_numbered(text, tokenizer):
    return [(n, p) for n, (_, p) in enumerate(byte_pair_pieces(text, tokenizer))]


def test_exercise_2_1_pieces_of_unknown_words():
    wrong = {
        "strings": (pieces_as_text, "a piece is a string"),
        "bytes of decoded text": (pieces_by_way_of_text, "replacement character"),
        "word by word": (pieces_of_words, "lost its spaces"),
        "character by character": (pieces_of_characters, "fewer and longer ones"),
        "counted": (pieces_numbered, "is not the id of its piece"),
        "ids alone": (
            lambda text, tokenizer: tokenizer.encode(text),
            "a pair (id, piece)",
        ),
        "first token missing": (
            lambda text, tokenizer: byte_pair_pieces(text, tokenizer)[1:],
            "are not the bytes of",
        ),
    }
    verify(ch02_checks.check_2_1, byte_pair_pieces, stub, wrong)


# --- 2.2 ------------------------------------------------------------------------------


def make_loader(text, max_length, stride):
    return create_dataloader_v1(
        text,
        batch_size=4,
        max_length=max_length,
        stride=stride,
        shuffle=False,
        drop_last=False,
    )


def loader_with(**changes):
    def make(text, max_length, stride):
        settings = {"max_length": max_length, "stride": stride, "batch_size": 4}
        settings |= {"shuffle": False, "drop_last": False} | changes
        return create_dataloader_v1(text, **settings)

    return make


def loader_exchanged(text, max_length, stride):
    return make_loader(text, stride, max_length)


def test_exercise_2_2_loaders_with_other_windows():
    wrong = {
        "shuffled": (loader_with(shuffle=True), "come in random order"),
        "rest dropped": (loader_with(drop_last=True), "last windows of the text"),
        "stride not passed": (loader_with(stride=1), "is the stride passed on"),
        "length not passed": (loader_with(max_length=4), "is max_length passed on"),
        "batches of 8": (loader_with(batch_size=8), "holds 8 windows"),
        "a batch": (
            lambda *sizes, **names: tuple(next(iter(make_loader(*sizes, **names)))),
            "not one batch",
        ),
    }
    verify(ch02_checks.check_2_2, make_loader, stub, wrong)


@pytest.mark.filterwarnings("ignore:stride=")
def test_exercise_2_2_tells_exchanged_arguments_from_right_ones():
    with pytest.raises(AssertionError, match="is max_length passed on"):
        ch02_checks.check_2_2(loader_exchanged)


# --- 2.3 ------------------------------------------------------------------------------


def count_windows(num_tokens, max_length, stride):
    largest_start = num_tokens - max_length - 1
    if largest_start < 0:
        return 0, num_tokens
    windows = largest_start // stride + 1
    covered = max_length + (windows - 1) * min(stride, max_length)
    return windows, num_tokens - covered


def windows_without_target(num_tokens, max_length, stride):
    windows = (num_tokens - max_length) // stride + 1
    covered = max_length + (windows - 1) * min(stride, max_length)
    return windows, num_tokens - covered


def windows_side_by_side(num_tokens, max_length, stride):
    windows, _ = count_windows(num_tokens, max_length, stride)
    return windows, num_tokens - windows * max_length


def windows_without_gaps(num_tokens, max_length, stride):
    windows, _ = count_windows(num_tokens, max_length, stride)
    if windows == 0:
        return 0, num_tokens
    return windows, num_tokens - max(windows - 1, 0) * stride - max_length


def windows_and_targets(num_tokens, max_length, stride):
    windows, unused = count_windows(num_tokens, max_length, stride)
    return windows, unused - (windows > 0 and stride <= max_length)


def windows_of_any_text(num_tokens, max_length, stride):
    windows = (num_tokens - max_length - 1) // stride + 1
    return windows, num_tokens - max_length - (windows - 1) * min(stride, max_length)


def test_exercise_2_3_windows_by_arithmetic():
    wrong = {
        "target forgotten": (windows_without_target, "is too high"),
        "one too few": (
            lambda *case: (count_windows(*case)[0] - 1, count_windows(*case)[1]),
            "is too low",
        ),
        "overlap counted twice": (windows_side_by_side, "still one token"),
        "gaps forgotten": (windows_without_gaps, "leave gaps"),
        "last target counted": (windows_and_targets, "the final target among them"),
        "division": (
            lambda n, size, stride: ((n - size) / stride, 0),
            "// does not",
        ),
        "short text": (windows_of_any_text, "too short for a window"),
        "short text wholly used": (
            lambda n, size, stride: (
                (0, 0) if n <= size else count_windows(n, size, stride)
            ),
            "when no window fits",
        ),
    }
    verify(ch02_checks.check_2_3, count_windows, stub, wrong)


# --- 2.4 ------------------------------------------------------------------------------


def split_without_loss(text):
    return re.findall(r"\s?\w+|\s?[^\w\s]|\s", text)


def test_exercise_2_4_a_tokenizer_that_loses_nothing():
    """A word tokenizer that inserts spaces into "a--b" or drops line breaks."""
    wrong = {
        "the chapter's": (split_into_tokens, "is lost or changed"),
        "characters": (list, "a word is cut between 'S' and 'h'"),
        "one token": (lambda text: [text] * bool(text), "more than one word"),
        "ASCII words": (
            lambda text: re.findall(r"[A-Za-z]+|[^A-Za-z]", text),
            r"cut between 'f' and '\xe9'",
        ),
        "few marks": (
            lambda text: re.findall(r"\w+|\s|[.,;:?!'\"-]", text),
            "must cover every character",
        ),
        "empty tokens": (
            lambda text: re.split(r"(\s|[^\w\s])", text),
            "an empty token",
        ),
        "marks stay with words": (
            lambda text: re.findall(r"\s+|\S+", text),
            "together with a punctuation mark",
        ),
        "one string": (lambda text: text, "a list of strings"),
    }
    verify(ch02_checks.check_2_4, split_without_loss, stub, wrong)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\w+|\s+|[^\w\s]",
        r"\w+|\W",
        r"\s*\w+\s*|\s*[^\w\s]\s*|\s+",
        r"\w+(?:[-']\w+)*|\W",
    ],
)
def test_exercise_2_4_takes_other_right_answers(pattern, capsys):
    ch02_checks.check_2_4(re.compile(pattern).findall)
    assert "correct" in capsys.readouterr().out


# --- 2.5 ------------------------------------------------------------------------------


def token_cost(text, tokenizer):
    num_tokens = len(tokenizer.encode(text))
    return num_tokens / len(text), num_tokens / len(text.encode("utf-8"))


def cost_upside_down(text, tokenizer):
    by_character, by_byte = token_cost(text, tokenizer)
    return 1 / by_character, 1 / by_byte


def cost_per_word(text, tokenizer):
    num_tokens = len(tokenizer.encode(text))
    return num_tokens / len(text.split()), num_tokens / len(text.encode("utf-8"))


def test_exercise_2_5_the_price_of_a_language():
    wrong = {
        "upside down": (cost_upside_down, "upside down"),
        "exchanged": (lambda *a: token_cost(*a)[::-1], "in each other's place"),
        "no bytes": (
            lambda *a: (token_cost(*a)[0],) * 2,
            "characters instead of bytes",
        ),
        "words": (cost_per_word, "counts words"),
        "own tokenizer": (
            lambda text, _: token_cost(text, tiktoken.get_encoding("gpt2")),
            "is not the one in use",
        ),
        "counts": (
            lambda text, tokenizer: (len(tokenizer.encode(text)), len(text)),
            "not the price",
        ),
        "one number": (lambda *a: token_cost(*a)[0], "should be two numbers"),
    }
    verify(ch02_checks.check_2_5, token_cost, stub, wrong)


# --- 2.6 ------------------------------------------------------------------------------


def stream_text(ids, tokenizer):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token_id in ids:
        yield decoder.decode(tokenizer.decode_single_token_bytes(token_id))
    yield decoder.decode(b"", final=True)


def stream_each_token(ids, tokenizer):
    for token_id in ids:
        yield tokenizer.decode([token_id])


def stream_at_the_end(ids, tokenizer):
    yield tokenizer.decode(list(ids))


def stream_until_no_replacement(ids, tokenizer):
    waiting = []
    for token_id in ids:
        waiting.append(token_id)
        text = tokenizer.decode(waiting)
        if not text.endswith("\ufffd"):
            yield text
            waiting = []
    yield tokenizer.decode(waiting)


def stream_without_rest(ids, tokenizer):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token_id in ids:
        yield decoder.decode(tokenizer.decode_single_token_bytes(token_id))


def stream_ignoring_halves(ids, tokenizer):
    for token_id in ids:
        yield tokenizer.decode([token_id], errors="ignore")


def stream_strictly(ids, tokenizer):
    waiting = b""
    for token_id in ids:
        waiting += tokenizer.decode_single_token_bytes(token_id)
        try:
            text, waiting = waiting.decode(), b""
        except UnicodeDecodeError:
            continue
        yield text
    yield waiting.decode(errors="replace")


def stream_one_late(ids, tokenizer):
    late = ""
    for piece in stream_text(ids, tokenizer):
        yield late
        late = piece
    yield late


def stream_word_by_word(ids, tokenizer):
    word = ""
    for piece in stream_text(ids, tokenizer):
        if piece.startswith(" "):
            yield word
            word = ""
        word += piece
    yield word


def stream_everything_again(ids, tokenizer):
    taken = []
    for token_id in ids:
        taken.append(token_id)
        text = tokenizer.decode(taken)
        if not text.endswith("\ufffd"):
            yield text


def test_exercise_2_6_streaming_without_half_characters():
    """Streaming that decodes token by token shows half of an emoji as U+FFFD."""
    wrong = {
        "token by token": (stream_each_token, "half a character is shown"),
        "all at the end": (stream_at_the_end, "nothing is shown before the last id"),
        "a replacement character ends the line": (
            stream_until_no_replacement,
            r"'\ufffd' is complete with token 2",
        ),
        "rest forgotten": (stream_without_rest, "end inside a character"),
        "halves ignored": (stream_ignoring_halves, "no byte may be dropped"),
        "a string": (lambda ids, tokenizer: tokenizer.decode(list(ids)), "bit by bit"),
        "one token late": (stream_one_late, "'The' is complete with token 1"),
        "first id only": (
            lambda ids, tokenizer: stream_text([next(ids)], tokenizer),
            "not all ids are taken",
        ),
    }
    verify(ch02_checks.check_2_6, stream_text, stub, wrong)


@pytest.mark.parametrize(
    "attempt", [stream_strictly, stream_word_by_word, stream_everything_again]
)
def test_exercise_2_6_refuses_subtler_mistakes(attempt):
    with pytest.raises(AssertionError, match=r"Exercise 2\.6: "):
        ch02_checks.check_2_6(attempt)


# --- 2.7 ------------------------------------------------------------------------------


def embed(token_ids, token_embedding, position_embedding):
    num_tokens = token_ids.shape[-1]
    if num_tokens > position_embedding.num_embeddings:
        raise ValueError(
            f"{num_tokens} tokens do not fit into "
            f"{position_embedding.num_embeddings} positions; shorten the text."
        )
    positions = torch.arange(num_tokens, device=token_ids.device)
    # (T, D) is added to each of the B rows of (B, T, D).
    return token_embedding(token_ids) + position_embedding(positions)


def embed_unchecked(token_ids, token_embedding, position_embedding):
    positions = torch.arange(token_ids.shape[-1])
    return token_embedding(token_ids) + position_embedding(positions)


def embed_rows(token_ids, token_embedding, position_embedding):
    rows = position_embedding(torch.arange(token_ids.shape[0]))
    return token_embedding(token_ids) + rows.unsqueeze(1)


def embed_from_one(token_ids, token_embedding, position_embedding):
    length = token_ids.shape[-1]
    positions = (torch.arange(length) + 1) % position_embedding.num_embeddings
    return token_embedding(token_ids) + position_embedding(positions)


def embed_joined(token_ids, token_embedding, position_embedding):
    tokens = token_embedding(token_ids)
    positions = position_embedding(torch.arange(token_ids.shape[-1]))
    return torch.cat([tokens, positions.expand_as(tokens)], dim=-1)


def embed_whole_table(token_ids, token_embedding, position_embedding):
    return token_embedding(token_ids) + position_embedding.weight


def embed_wrapped(token_ids, token_embedding, position_embedding):
    positions = torch.arange(token_ids.shape[-1]) % position_embedding.num_embeddings
    return token_embedding(token_ids) + position_embedding(positions)


def embed_from_copies(token_ids, token_embedding, position_embedding):
    length = token_ids.shape[-1]
    return (
        token_embedding.weight.data[token_ids] + position_embedding.weight.data[:length]
    )


def embed_half_frozen(token_ids, token_embedding, position_embedding):
    length = token_ids.shape[-1]
    return token_embedding(token_ids) + position_embedding.weight.detach()[:length]


def embed_batches_only(token_ids, token_embedding, position_embedding):
    _batch_size, length = token_ids.shape
    return token_embedding(token_ids) + position_embedding(torch.arange(length))


def embed_silently(token_ids, token_embedding, position_embedding):
    if token_ids.shape[-1] > position_embedding.num_embeddings:
        raise ValueError("too long")
    return embed_unchecked(token_ids, token_embedding, position_embedding)


def test_exercise_2_7_tokens_and_positions():
    """An input longer than the context ends in an IndexError that names nothing."""
    wrong = {
        "rows numbered": (embed_rows, "positions count along T"),
        "from one": (embed_from_one, "does not have position 0"),
        "joined": (embed_joined, "joined end to end"),
        "whole table": (embed_whole_table, "raises RuntimeError"),
        "no positions": (lambda ids, tokens, _: tokens(ids), "have no effect"),
        "wrapped": (embed_wrapped, "get a result"),
        "copies": (embed_from_copies, "no gradient can flow"),
        "half frozen": (embed_half_frozen, "only one of the two layers"),
        "unchecked": (embed_unchecked, "end in IndexError"),
        "message without numbers": (embed_silently, "should name its length"),
        "batches only": (embed_batches_only, "raises ValueError"),
    }
    verify(ch02_checks.check_2_7, embed, stub, wrong)


# --- The notebooks --------------------------------------------------------------------

HERE = Path(__file__).parent
SOLUTIONS = {
    "2.1": byte_pair_pieces,
    "2.2": make_loader,
    "2.3": count_windows,
    "2.4": split_without_loss,
    "2.5": token_cost,
    "2.6": stream_text,
    "2.7": embed,
}


def cells(name, kind):
    notebook = json.loads((HERE / name).read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def statements(name):
    """Return the text of each exercise by its number, without marks and hint."""
    found = {}
    for text in cells(name, "markdown"):
        if match := re.match(r"#+ (Exercise (\d\.\d) .*)", text, re.DOTALL):
            found[match[2]] = " ".join(match[1].partition("<details>")[0].split())
    return found


@pytest.mark.parametrize("number", SOLUTIONS)
def test_the_solutions_notebook_shows_the_solution_that_is_tested(number):
    solution = SOLUTIONS[number]
    trees = [ast.parse(source) for source in cells("exercise-solutions.ipynb", "code")]
    definitions = [
        node
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == solution.__name__
    ]
    tested = ast.parse(inspect.getsource(solution)).body
    assert [ast.dump(node) for node in definitions] == [ast.dump(n) for n in tested]


def test_the_solutions_notebook_repeats_the_chapters_statements():
    in_chapter = statements("ch02.ipynb")
    assert list(in_chapter) == list(SOLUTIONS)
    assert statements("exercise-solutions.ipynb") == in_chapter


@pytest.mark.parametrize("number", SOLUTIONS)
def test_the_chapters_stub_has_the_name_and_the_arguments_of_the_solution(number):
    solution = SOLUTIONS[number]
    wanted = f"def {solution.__name__}{inspect.signature(solution)}:"
    check_call = f"check_{number.replace('.', '_')}({solution.__name__})"
    stubs = [source for source in cells("ch02.ipynb", "code") if wanted in source]
    assert len(stubs) == 1
    assert stubs[0].endswith(check_call)


# --- What all exercises share ---------------------------------------------------------


def test_sentences_are_one_line_each_in_eight_scripts_or_languages():
    sentences = ch02_checks.SENTENCES.values()
    assert len(set(sentences)) == 8
    assert all(sentence.strip() == sentence for sentence in sentences)
    assert not any("\n" in sentence for sentence in sentences)
    assert sum(sentence.isascii() for sentence in sentences) == 3


def test_words_of_exercise_2_2_are_one_distinct_token_each():
    ids = tiktoken.get_encoding("gpt2").encode(ch02_checks._WORDS)
    assert len(set(ids)) == len(ids) == len(ch02_checks._WORDS.split())
