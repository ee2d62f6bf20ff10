"""The checks of chapter 2's exercises; `course.exercises` says how a check answers.

A check tries a function on inputs that no cell of the notebook shows. It names the
likely mistake, never the answer. Expected values come from the plainest way to get
them.
"""

import codecs
import random
import re
from numbers import Integral

import tiktoken
import torch

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_equal,
)
from word_checks import expect_one_word, expect_words_whole

# One sentence, written for this course, in eight languages (exercise 2.5). Escapes keep
# the file ASCII; print one to read it.
SENTENCES = {
    "English": "The children are reading a book in the garden.",
    "German": "Die Kinder lesen im Garten ein Buch.",
    "Finnish": "Lapset lukevat kirjaa puutarhassa.",
    "Greek": "\u03a4\u03b1 \u03c0\u03b1\u03b9\u03b4\u03b9\u03ac "
    "\u03b4\u03b9\u03b1\u03b2\u03ac\u03b6\u03bf\u03c5\u03bd \u03ad\u03bd\u03b1 "
    "\u03b2\u03b9\u03b2\u03bb\u03af\u03bf \u03c3\u03c4\u03bf\u03bd "
    "\u03ba\u03ae\u03c0\u03bf.",
    "Russian": "\u0414\u0435\u0442\u0438 \u0447\u0438\u0442\u0430\u044e\u0442 "
    "\u043a\u043d\u0438\u0433\u0443 \u0432 \u0441\u0430\u0434\u0443.",
    "Arabic": "\u0627\u0644\u0623\u0637\u0641\u0627\u0644 "
    "\u064a\u0642\u0631\u0624\u0648\u0646 \u0643\u062a\u0627\u0628\u0627 "
    "\u0641\u064a \u0627\u0644\u062d\u062f\u064a\u0642\u0629.",
    "Hindi": "\u092c\u091a\u094d\u091a\u0947 \u092c\u0917\u0940\u091a\u0947 "
    "\u092e\u0947\u0902 \u0915\u093f\u0924\u093e\u092c \u092a\u0922\u093c "
    "\u0930\u0939\u0947 \u0939\u0948\u0902\u0964",
    "Japanese": "\u5b50\u3069\u3082\u305f\u3061\u306f\u5ead\u3067\u672c\u3092\u8aad"
    "\u3093\u3067\u3044\u307e\u3059\u3002",
}
EMOJI = "\U0001f4a1"  # a light bulb; GPT-2 needs several tokens for it
REPLACEMENT = "\ufffd"  # what Python shows for bytes that are no character


# --- 2.1 What is left of a word nobody has ever written -------------------------------


@check("2.1")
def check_2_1(attempt):
    tokenizer = tiktoken.get_encoding("gpt2")
    texts = ["Quorlamp", "all the Quorlamps went out", f"a {EMOJI} by night"]
    texts += [SENTENCES["Japanese"], ""]
    for text in texts:
        pairs = _pairs_of_bytes(call(attempt, text, tokenizer))
        joined = b"".join(piece for _, piece in pairs)
        _expect_bytes_of_text(joined, text)
        expect(
            len(pairs) <= len(tokenizer.encode(text)),
            f"the pieces of {ascii(text)} join to the text, but the tokenizer makes "
            "fewer and longer ones; encode the whole text at once",
        )
        expect(
            all(_is_piece(i, piece, tokenizer) for i, piece in pairs),
            f"the first member of a pair is not the id of its piece in {ascii(text)}; "
            "an id is the token's number in the vocabulary",
        )
    return "The pieces of an invented word, an emoji and Japanese join to their bytes."


def _pairs_of_bytes(pairs):
    expect(
        isinstance(pairs, list | tuple),
        f"the result is {describe(pairs)}, not a list of pairs",
    )
    expect(
        all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs),
        "each element of the list should be a pair (id, piece)",
    )
    expect(
        not any(isinstance(i, bytes | bytearray) for i, _ in pairs),
        "a pair begins with the piece; the id comes first",
    )
    expect(
        not any(isinstance(piece, str) for _, piece in pairs),
        "a piece is a string, but a token may hold only part of a character; "
        "ask the tokenizer for the bytes of the token",
    )
    pairs = [(_plain(token_id), piece) for token_id, piece in pairs]
    for token_id, piece in pairs:
        expect(
            isinstance(token_id, Integral) and isinstance(piece, bytes | bytearray),
            f"a pair holds {describe(token_id)} and {describe(piece)}; it should hold "
            "a whole number and bytes",
        )
    return pairs


def _plain(number):
    """Return Python's own number for that of an array or a tensor without an axis."""
    return number.item() if getattr(number, "shape", None) == () else number


def _two(result, message):
    """Return two plain numbers from a pair, an array or a tensor of two."""
    pair = isinstance(result, tuple | list) and len(result) == 2
    expect(pair or tuple(getattr(result, "shape", ())) == (2,), message)
    return tuple(_plain(number) for number in result)


def _expect_bytes_of_text(joined, text):
    expected = text.encode("utf-8")
    expect(
        REPLACEMENT.encode() not in joined,
        f"a piece of {ascii(text)} holds the replacement character U+FFFD; the token "
        "was turned into text and back, and half a character does not survive that",
    )
    expect(
        joined == expected or joined.replace(b" ", b"") != expected.replace(b" ", b""),
        f"the pieces of {ascii(text)} have lost its spaces; in GPT-2's vocabulary a "
        "space belongs to the token that follows it",
    )
    expect(joined == expected, f"the joined pieces are not the bytes of {ascii(text)}")


def _is_piece(token_id, piece, tokenizer):
    known = 0 <= token_id < tokenizer.n_vocab
    return known and tokenizer.decode_single_token_bytes(int(token_id)) == piece


# --- 2.2 The same text through other windows ------------------------------------------

# Each word is one GPT-2 token and occurs once, so a token tells its place in the text.
_WORDS = (
    "one two three four five six seven eight nine ten red green blue black white north "
    "south east west spring summer autumn winter bread water stone glass paper iron"
)


@check("2.2")
def check_2_2(attempt):
    tokenizer = tiktoken.get_encoding("gpt2")
    place = {token: i for i, token in enumerate(tokenizer.encode(_WORDS))}
    for max_length, stride in ((2, 2), (8, 2), (4, 4), (5, 3)):
        loader = call(attempt, _WORDS, max_length, stride)
        batches = _batches(loader)
        _expect_size(batches[0][0], max_length)
        inputs = [row for batch, _ in batches for row in batch.tolist()]
        starts = [place.get(row[0], -1) for row in inputs]
        _expect_order(starts, stride)
        fitting = range(0, len(place) - max_length, stride)
        expect(
            len(starts) >= len(fitting),
            "the last windows of the text are missing; a loader for training drops an "
            "incomplete last batch",
        )
        rows = [[place.get(token, -1) for token in row] for row in inputs]
        expected = [list(range(start, start + max_length)) for start in fitting]
        expect_equal(rows, expected, "the windows do not lie over the text as asked")
        _expect_batches_of_4(batches)
        targets = [row for _, batch in batches for row in batch.tolist()]
        targets = [[place.get(token, -1) for token in row] for row in targets]
        _expect_targets(targets, expected)
    return "Windows of four sizes, with targets, come in order, 4 in a batch."


def _batches(loader):
    expect(
        not isinstance(loader, tuple),
        "the result should be the loader itself, not one batch of it",
    )
    expect(hasattr(loader, "__iter__"), "the result should be a data loader")
    batches = list(loader)
    pairs = all(
        isinstance(batch, list | tuple) and len(batch) == 2 for batch in batches
    )
    expect(batches and pairs, "the loader should yield pairs (inputs, targets)")
    return [tuple(torch.as_tensor(part) for part in batch) for batch in batches]


def _expect_size(inputs, max_length):
    expect(
        inputs.dim() == 2 and inputs.shape[1] == max_length,
        f"for max_length={max_length} the inputs have the shape {tuple(inputs.shape)}; "
        "is max_length passed on, and in its own place?",
    )
    expect(
        inputs.shape[0] == 4,
        f"the first batch holds {inputs.shape[0]} windows, which is not what is asked",
    )


def _expect_batches_of_4(batches):
    sizes = [len(inputs) for inputs, _ in batches[:-1]]
    expect(
        all(size == 4 for size in sizes),
        "a batch in the middle does not hold 4 windows",
    )


def _expect_targets(targets, inputs):
    expect(
        targets != inputs,
        "the targets are the inputs themselves; a target is one token further",
    )
    expected = [[place + 1 for place in row] for row in inputs]
    expect_equal(targets, expected, "the targets are not the tokens that come next")


def _expect_order(starts, stride):
    expect(len(starts) > 1, "the loader yields a single window")
    expect(
        starts == sorted(starts),
        "the windows come in random order; a loader for training shuffles them",
    )
    step = starts[1] - starts[0]
    expect(
        step == stride,
        f"for stride={stride} the second window starts {step} tokens after the first; "
        "is the stride passed on?",
    )


# --- 2.3 Windows by arithmetic --------------------------------------------------------


@check("2.3")
def check_2_3(attempt):
    sizes = [
        (n, size, stride)
        for n in range(5, 24)
        for size in (1, 3, 4)
        for stride in (1, 2, 3, 4, 7)
    ]
    long_enough = [case for case in sizes if case[0] > case[1]]
    answers = {case: _two_whole_numbers(call(attempt, *case)) for case in long_enough}
    for case, (windows, _) in answers.items():
        _expect_windows(windows, case)
    for case, (_, unused) in answers.items():
        _expect_unused(unused, case)
    for n in range(5):
        windows, unused = _two_whole_numbers(call(attempt, n, 4, 2))
        expect(
            windows == 0,
            f"a text of {n} tokens is too short for a window of 4 and its target, but "
            f"{windows} windows are counted",
        )
        expect(
            unused == n,
            f"when no window fits, as for num_tokens={n} and max_length=4, which "
            "tokens are in none?",
        )
    return f"Both numbers agree with counting by hand in {len(answers) + 5} cases."


def _two_whole_numbers(result):
    message = "the result should be two numbers, the windows and the unused tokens"
    result = _two(result, message)
    for number in result:
        expect(
            not isinstance(number, float),
            f"{number} is a float, and both results should be whole numbers; where / "
            "gives a float, // does not",
        )
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        expect(whole, f"a result is {describe(number)}, not a whole number")
    return result


def _windows_by_hand(case):
    num_tokens, max_length, stride = case
    starts = [i for i in range(0, num_tokens, stride) if i + max_length < num_tokens]
    return [range(start, start + max_length) for start in starts]


def _in_words(case):
    return "for num_tokens={}, max_length={}, stride={}".format(*case)


def _expect_windows(windows, case):
    expected = len(_windows_by_hand(case))
    without_targets = len(_windows_by_hand((case[0] + 1, *case[1:])))
    expect(
        windows <= expected or windows != without_targets,
        f"{_in_words(case)}, a count of {windows} is too high; the last window's "
        "target reaches one token further than the window",
    )
    expect(
        windows <= expected,
        f"{_in_words(case)}, a count of {windows} is more than there are",
    )
    expect(
        windows == expected,
        f"{_in_words(case)}, a count of {windows} is too low; one more still fits, "
        "with its target",
    )


def _expect_unused(unused, case):
    num_tokens, max_length, stride = case
    covered = {i for window in _windows_by_hand(case) for i in window}
    if stride < max_length:
        why = "the windows overlap, and a token in two windows is still one token"
    elif stride > max_length:
        why = "the windows leave gaps between them, and not only a rest at the end"
    else:
        why = "look at the tokens after the last window, the final target among them"
    expect(
        unused == num_tokens - len(covered),
        f"{_in_words(case)}, {unused} is not the number of unused tokens; {why}",
    )


# --- 2.4 A tokenizer by rule that loses nothing ---------------------------------------


@check("2.4")
def check_2_4(attempt):
    texts = ['She said:\n\n"No."  Then,\tnothing. ', "a--b", "  x\r\ny\u00a0z\n", ""]
    texts += [
        "caf\u00e9, na\u00efve?",
        f"so {EMOJI}! (50 %) * 2 = x_1",
        *SENTENCES.values(),
    ]
    texts += [_random_text(seed) for seed in range(20)]
    for text in texts:
        tokens = call(attempt, text)
        kinds = isinstance(tokens, list | tuple)
        kinds = kinds and all(isinstance(token, str) for token in tokens)
        expect(kinds, "the result should be a list of strings")
        _expect_nothing_lost("".join(tokens), text)
        expect(
            "" not in tokens,
            f"there is an empty token in {ascii(text)}; re.split leaves empty strings "
            "between neighbouring separators",
        )
        expect_words_whole(tokens, text)
        for token in tokens:
            expect_one_word(token)
    return f"{len(texts)} texts in many scripts come back exactly."


def _random_text(seed):
    alphabet = "ab Z9_.,?!'-\"()\t\n\r\u00a0\u00e9\u3042\u5ead\u0431\u0301" + EMOJI
    return "".join(random.Random(seed).choices(alphabet, k=30))


def _expect_nothing_lost(joined, text):
    expect(
        joined == text or "".join(joined.split()) != "".join(text.split()),
        f"white space of {ascii(text)} is lost or changed; keep it as a token or as "
        "part of one",
    )
    lost = next((c for c in text if text.count(c) > joined.count(c)), None)
    expect(
        lost is None,
        f"the character {ascii(lost)} of {ascii(text)} is in no token; a pattern must "
        "cover every character there is",
    )
    expect(joined == text, f"joined, the tokens of {ascii(text)} are another text")


# --- 2.5 The price of a language ------------------------------------------------------


class _ThreeBytesAToken:
    """A stand-in tokenizer with a price that can be computed by hand."""

    def encode(self, text):
        return list(text.encode("utf-8"))[::3]


@check("2.5")
def check_2_5(attempt):
    texts = SENTENCES | {"emoji": f"{EMOJI} {EMOJI}"}
    for tokenizer in (tiktoken.get_encoding("gpt2"), _ThreeBytesAToken()):
        for language, text in texts.items():
            result = call(attempt, text, tokenizer)
            result = _two(result, "the result should be two numbers")
            _expect_price(result, text, tokenizer, language)
    return f"Right for {len(texts)} texts and two tokenizers."


def _expect_price(result, text, tokenizer, language):
    tokens = len(tokenizer.encode(text))
    characters, size = len(text), len(text.encode("utf-8"))
    gpt2_tokens = len(tiktoken.get_encoding("gpt2").encode(text))
    by_character, by_byte = tokens / characters, tokens / size
    mistakes = [
        ((characters / tokens, size / tokens), "both numbers are upside down"),
        ((by_byte, by_character), "the two numbers stand in each other's place"),
        ((by_character,) * 2, "the second number counts characters instead of bytes"),
        (
            (tokens / len(text.split()), by_byte),
            "the first number counts words, and Japanese writes no spaces between them",
        ),
        (
            (gpt2_tokens / characters, gpt2_tokens / size),
            "the tokenizer that was passed in is not the one in use",
        ),
    ]
    expected = (by_character, by_byte)
    for mistake, message in mistakes:
        if not _near(mistake, expected) and _near(result, mistake):
            raise AssertionError(f"{message} (seen with the text in {language})")
    message = f"this is not the price of the text in {language}"
    expect_close(result, expected, message, atol=1e-6)


def _near(result, other):
    return all(abs(a - b) < 1e-6 for a, b in zip(result, other))


# --- 2.6 Text that appears while it is made -------------------------------------------


@check("2.6")
def check_2_6(attempt):
    tokenizer = tiktoken.get_encoding("gpt2")
    # The replacement character may also be part of the text itself.
    texts = ["The lamp went out.", f"a{REPLACEMENT}b", f"a {EMOJI}{EMOJI} lamp", ""]
    for text in texts + list(SENTENCES.values()):
        _expect_live(attempt, tokenizer.encode(text), tokenizer)
    # The list may end inside a character, and a model may write what is no UTF-8.
    half = tokenizer.encode(f"lamp {EMOJI}")[:-1]
    shown, _ = _watch(attempt, half, tokenizer)
    expect(
        shown == tokenizer.decode(half),
        "the ids end inside a character, and what is left then is not shown as decode "
        "shows it",
    )
    # A byte that can never begin a character must not hold back what follows it.
    broken = [tokenizer.encode_single_token(b"\xff"), *tokenizer.encode(texts[0])]
    _expect_live(attempt, broken, tokenizer, since=2)
    for seed in range(20):
        ids = random.Random(seed).choices(range(256), k=12)
        shown, _ = _watch(attempt, ids, tokenizer)
        expect(
            shown == tokenizer.decode(ids),
            "ids whose bytes are no valid UTF-8 come out otherwise than with decode",
        )
    return "Every character appears whole, and as soon as its last token is there."


def _watch(attempt, ids, tokenizer):
    """Return all text shown, and what was shown each time the next id was asked for."""
    pieces, moments = [], []

    def one_by_one():
        for token_id in ids:
            yield token_id
            moments.append("".join(pieces))

    stream = call(attempt, one_by_one(), tokenizer)
    expect(
        not isinstance(stream, str | list | tuple) and hasattr(stream, "__next__"),
        "the result is complete only when all ids are there; yield the text bit by bit",
    )
    for piece in stream:
        expect(isinstance(piece, str), "each piece should be text")
        pieces.append(piece)
    return "".join(pieces), moments


def _expect_live(attempt, ids, tokenizer, since=1):
    shown, moments = _watch(attempt, ids, tokenizer)
    text = tokenizer.decode(ids)
    expect(
        shown.count(REPLACEMENT) <= text.count(REPLACEMENT),
        f"half a character is shown as U+FFFD in {ascii(text)}; its other bytes come "
        "with the next token",
    )
    expect(
        len(moments) == len(ids),
        "not all ids are taken: the stream stops before the end",
    )
    complete = _complete_text(ids, tokenizer)
    expect(
        shown != text or len(ids) < 2 or since > 1 or any(moments),
        "nothing is shown before the last id is taken; yield inside the loop over ids",
    )
    for count, (moment, expected) in enumerate(zip(moments, complete), start=1):
        late = expected.removeprefix(moment)
        expect(
            shown != text or not late or count < since,
            f"{ascii(late)} is complete with token {count} of {ascii(text)}, but is "
            "held back",
        )
    expect(
        shown == text,
        f"the pieces of {ascii(text)} join to {ascii(shown)}; no byte may be dropped "
        "or shown twice",
    )


def _complete_text(ids, tokenizer):
    """Return, for each number of ids, the text whose characters are all complete."""
    texts = []
    for count in range(1, len(ids) + 1):
        data = tokenizer.decode_bytes(ids[:count])
        texts.append(codecs.getincrementaldecoder("utf-8")("replace").decode(data))
    return texts


# --- 2.7 Tokens and positions in one function -----------------------------------------


@check("2.7")
def check_2_7(attempt):
    torch.manual_seed(0)
    token_embedding = torch.nn.Embedding(11, 6)
    position_embedding = torch.nn.Embedding(5, 6)
    layers = (token_embedding, position_embedding)
    for shape in ((3, 4), (3, 5), (2, 1), (5, 5), (4,)):
        token_ids = torch.randint(11, shape)
        result = call(attempt, token_ids, *layers)
        expect(isinstance(result, torch.Tensor), "the result should be a tensor")
        _expect_embedded(result, token_ids, *layers)
    result = call(attempt, torch.randint(11, (3, 4)), *layers)
    expect(
        result.requires_grad,
        "no gradient can flow back to the layers; call them instead of copying weights",
    )
    result.sum().backward()
    expect(
        all(layer.weight.grad is not None for layer in layers),
        "the gradient reaches only one of the two layers",
    )
    for shape in ((2, 6), (6,), (2, 13)):
        _expect_refusal(attempt, torch.randint(11, shape), layers)
    return "Right for batches, short windows and one window; too long ones are refused."


def _expect_embedded(result, token_ids, token_embedding, position_embedding):
    num_tokens, dim = token_ids.shape[-1], token_embedding.embedding_dim
    shape = tuple(token_ids.shape)
    tokens = token_embedding(token_ids)
    positions = position_embedding.weight
    expected = torch.stack(
        [tokens[..., t, :] + positions[t] for t in range(num_tokens)], -2
    )
    expect(
        result.shape[-1:] != (2 * dim,),
        "the two vectors are joined end to end; they should be added",
    )
    expect(
        result.shape == expected.shape,
        f"for ids of shape {shape} the result has the shape {tuple(result.shape)}",
    )
    mistakes = {"the positions have no effect on the result": tokens}
    if len(shape) == 2 and shape[0] <= len(positions):
        rows = tokens + positions[: shape[0], None]
        mistakes["each row of the batch has one position; positions count along T"] = (
            rows
        )
    if num_tokens < len(positions):
        later = tokens + positions[1 : num_tokens + 1]
        mistakes["the first token does not have position 0"] = later
    for message, mistake in mistakes.items():
        expect(not torch.allclose(result, mistake), message)
    message = f"for ids of shape {shape} the sum of the vectors is another one"
    expect_close(result, expected, message, atol=1e-6)


def _expect_refusal(attempt, token_ids, layers):
    length, positions = token_ids.shape[-1], layers[1].num_embeddings
    about = f"{length} tokens with {positions} positions"
    try:
        attempt(token_ids, *layers)
    except ValueError as error:
        numbers = set(re.findall(r"\d+", str(error)))
        expect(
            {str(length), str(positions)} <= numbers,
            "the ValueError for a window that is too long should name its length and "
            "the number of positions",
        )
    except Exception as error:
        raise AssertionError(
            f"{about} end in {type(error).__name__}; raise a ValueError before the "
            "look-up"
        ) from None
    else:
        raise AssertionError(f"{about} get a result, where an error is asked for")
