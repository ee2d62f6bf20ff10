"""What is written step by step is what `generate` writes, and little is read twice."""

import itertools

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_generate import Sampling, generate
from small_models import small_configs, small_model
from writer import CHUNK, Reading, Token, Writer

CONTEXT, VOCAB = 150, 50_257
TOKENIZER = tiktoken.get_encoding("gpt2")
MODELS = {
    name: small_model(cfg)
    for name, cfg in small_configs(context_length=CONTEXT, vocab_size=VOCAB).items()
}
kinds = pytest.mark.parametrize("kind", MODELS)


def drawn(seed):
    return Sampling(0.8, 50, 0.9, generator=torch.Generator().manual_seed(seed))


def plain(model, ids, n, seed=None, eos_id=None):
    """What `generate` adds, without a cache."""
    choice = {} if seed is None else {"temperature": 0.8, "top_k": 50, "top_p": 0.9}
    if seed is not None:
        choice["generator"] = torch.Generator().manual_seed(seed)
    idx = torch.tensor([ids])
    return generate(model, idx, n, CONTEXT, eos_id=eos_id, **choice)[
        0, len(ids) :
    ].tolist()


def ids_of(answer):
    return [step.id for step in answer if isinstance(step, Token)]


@pytest.fixture
def counted(monkeypatch):
    """How many tokens each model reads from now on."""
    read = []
    hooks = [
        model.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
        for model in MODELS.values()
    ]
    yield read
    for hook in hooks:
        hook.remove()


@kinds
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_conversation_is_that_of_generate(kind, data):
    """Several turns, drawn or likeliest, each with all that came before."""
    model, token = MODELS[kind], st.integers(0, VOCAB - 1)
    writer, ids = Writer(model, TOKENIZER, keep=data.draw(st.integers(1, 3))), []
    for turn in range(3):
        ids += data.draw(st.lists(token, min_size=1, max_size=9))
        seed = data.draw(st.none() | st.integers(0, 99))
        sampling = Sampling() if seed is None else drawn(seed)
        found = ids_of(writer.start(ids, 4, sampling))
        assert found == plain(model, ids, 4, seed), turn
        ids += found


@kinds
def test_only_what_is_new_is_read(kind, counted):
    writer = Writer(MODELS[kind], TOKENIZER)
    ids = list(range(100))
    *_, end = writer.start(ids, 5)
    first = ids_of(writer.start(ids, 5))
    counted.clear()
    *steps, end = writer.start([*ids, *first, 7, 8], 3)
    assert (end.known, end.read, end.written) == (104, 3, 3)
    assert counted == [3, 1, 1]  # the last of five had not been read, and two are new
    assert steps[0] == Reading(3, 3)


def test_a_long_text_is_read_in_parts_between_which_one_can_stop(counted):
    writer = Writer(MODELS["Llama"], TOKENIZER)
    answer = writer.start(list(range(140)), 5)
    assert next(answer) == Reading(CHUNK, 140)
    answer.close()
    assert counted == [CHUNK]
    assert next(writer.start(list(range(140)), 5)) == Reading(CHUNK, 140 - CHUNK)


def test_nothing_is_computed_before_the_first_step_or_after_the_last(counted):
    writer = Writer(MODELS["GPT"], TOKENIZER)
    answer = writer.start([1, 2], 50)
    assert counted == []
    for step in itertools.islice(answer, 4):  # Reading, and three tokens
        assert isinstance(step, (Reading, Token))
    answer.close()
    assert counted == [2, 1, 1]


@kinds
def test_answers_that_take_turns_do_not_disturb_one_another(kind):
    """Known mistake: two answers wrote into the keys of one text."""
    model = MODELS[kind]
    writer, ids = Writer(model, TOKENIZER), [5, 6, 7, 8]
    list(writer.start(ids, 3))
    answers = [writer.start([*ids, extra], 6, drawn(extra)) for extra in (1, 2)]
    found = [[], []]
    for steps in itertools.zip_longest(*answers):
        for tokens, step in zip(found, steps):
            tokens += [step.id] if isinstance(step, Token) else []
    assert found == [plain(model, [*ids, extra], 6, extra) for extra in (1, 2)]


def test_who_begins_alike_takes_no_text_from_another():
    writer = Writer(MODELS["GPT"], TOKENIZER)
    shared, long = [1, 2, 3], list(range(10, 60))
    list(writer.start([*shared, *long], 2))
    *_, other = writer.start([*shared, 90], 2)
    *_, again = writer.start([*shared, *long], 2)
    assert (other.known, other.read) == (3, 1)
    assert (again.known, again.read) == (52, 1)


def test_no_more_texts_are_kept_than_asked_for():
    writer = Writer(MODELS["GPT"], TOKENIZER, keep=2)
    for first in (1, 2, 3):
        list(writer.start([first, 9, 9], 1))
    known = [list(writer.start([first, 9, 9], 1))[-1].known for first in (3, 1)]
    assert known == [2, 0]


def test_a_start_that_is_copied_takes_no_room_for_the_rest():
    """Known mistake: a text of 31 tokens held room for 896."""
    writer, shared = Writer(MODELS["GPT"], TOKENIZER), [1, 2, 3]
    list(writer.start([*shared, *range(10, 140)], 1))
    alone = writer.nbytes
    list(writer.start([*shared, 90], 1))
    assert 0 < writer.nbytes - alone < alone / 2


def test_old_texts_go_before_memory_gets_short():
    """Known mistake: texts were counted, however long they were."""
    model = MODELS["Llama"]
    measured = Writer(model, TOKENIZER)
    list(measured.start([1, 9, 9], 1))
    one = measured.nbytes
    for most_bytes, there in ((2 * one, [4, 3]), (1, [4])):
        writer = Writer(model, TOKENIZER, keep=9, most_bytes=most_bytes)
        for first in (1, 2, 3, 4):
            list(writer.start([first, 9, 9], 1))
        assert writer.nbytes == len(there) * one
        for first in there:
            *_, end = writer.start([first, 9, 9], 1)
            assert end.known == 2
        *_, end = writer.start([1, 9, 9], 1)
        assert end.known == 0


def test_memory_is_bounded_while_a_text_is_written():
    """Known mistake: the text in use was counted only when it had ended."""
    measured = Writer(MODELS["GPT"], TOKENIZER)
    list(measured.start(range(100), 1))
    one = measured.nbytes
    writer = Writer(MODELS["GPT"], TOKENIZER, most_bytes=one)
    list(writer.start(range(100), 1))
    answer = writer.start(range(1000, 1100), 9)
    assert next(answer) == Reading(CHUNK, 100)
    assert writer.nbytes == 0  # the text in use has not come back yet
    answer.close()
    assert 0 < writer.nbytes <= one
    *_, end = writer.start(range(1000, 1100), 1)
    assert end.known == CHUNK


def test_texts_that_were_in_use_at_once_are_bounded_when_they_end():
    measured = Writer(MODELS["GPT"], TOKENIZER)
    list(measured.start([1, 9, 9], 1))
    writer = Writer(MODELS["GPT"], TOKENIZER, most_bytes=measured.nbytes)
    answers = [writer.start([first, 9, 9], 1) for first in (1, 2)]
    for answer in answers:
        next(answer)
    for answer in answers:
        answer.close()
    assert writer.nbytes == measured.nbytes


def test_no_cache_has_more_room_than_the_model_reads():
    writer = Writer(MODELS["GPT"], TOKENIZER)
    list(writer.start(list(range(CONTEXT - 2)), 2))
    most = writer.nbytes
    list(writer.start([7, 8, 9], 1))
    assert (writer.nbytes - most) * CONTEXT / 64 == pytest.approx(most)


def test_a_model_that_fails_leaves_a_text_that_is_right(monkeypatch):
    model = MODELS["GPT"]
    writer, calls = Writer(model, TOKENIZER), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError

    hook = model.trf_blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        list(writer.start([1, 2, 3], 9))
    hook.remove()
    assert ids_of(writer.start([1, 2, 3], 9)) == plain(model, [1, 2, 3], 9)


def test_the_end_token_ends_and_is_not_shown():
    model, ids = MODELS["GPT"], [11, 12]
    eos_id = plain(model, ids, 4)[2]
    *steps, end = Writer(model, TOKENIZER).start(ids, 9, Sampling(eos_id=eos_id))
    assert ids_of(steps) == plain(model, ids, 9, eos_id=eos_id)
    assert end.reason == "end"
    two_ends = Sampling(eos_id=(TOKENIZER.eot_token, eos_id))
    *others, end = Writer(model, TOKENIZER).start(ids, 9, two_ends)
    assert (ids_of(others), end.reason) == (ids_of(steps), "end")


def test_the_model_ends_where_it_can_read_no_further():
    model, ids = MODELS["Llama"], list(range(CONTEXT - 3))
    *steps, end = Writer(model, TOKENIZER).start(ids, 50)
    assert len(ids_of(steps)) == 4  # the last one need not be read
    assert end.reason == "length"


class Fixed(torch.nn.Module):
    """A model that says what it was given, whatever it reads."""

    def __init__(self, ids):
        super().__init__()
        self.ids, self.cfg = iter(ids), {"context_length": 99, "n_layers": 1}
        self.tok_emb = torch.nn.Embedding(1, 1)

    def forward(self, idx, cache=None):
        cache.layer(0).append(*[torch.zeros(1, 1, idx.shape[1], 1)] * 2)
        logits = torch.zeros(1, idx.shape[1], VOCAB)
        logits[0, -1, next(self.ids)] = 9
        return logits


def said(text, n=99, **options):
    """The pieces that are shown when the model says a text, and the end."""
    ids = TOKENIZER.encode(text)
    writer = Writer(Fixed([*ids, 0]).eval(), TOKENIZER)
    steps = list(writer.start([1], min(n, len(ids)), **options))
    return [step.text for step in steps if isinstance(step, Token)], steps[-1]


@pytest.mark.parametrize(
    "text",
    [
        "a snowman \u2603 and \u65e5\u672c\u8a9e too",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 x",
        "plain",
    ],
)
def test_characters_come_whole(text):
    pieces, end = said(text)
    assert "".join(pieces) + end.text == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such():
    (*_, last), end = said("x\u2603", n=2)
    assert (last, end.text, end.reason) == ("", "\ufffd", "length")


def test_half_a_character_that_a_reader_took_becomes_whole():
    """Known mistake: it was told as U+FFFD, and so was its other half."""
    ids = TOKENIZER.encode("x\u2603")
    writer = Writer(Fixed([*ids[2:], 0]).eval(), TOKENIZER)
    steps = list(writer.start([1], len(ids) - 2, begun=ids[:2]))
    shown = [step.text for step in steps if not isinstance(step, Reading)]
    assert "".join(shown) == "\u2603"


def test_what_an_answer_begins_with_is_read_like_the_rest():
    model = MODELS["GPT"]
    answer = Writer(model, TOKENIZER).start([3, 4], 5, begun=[5, 6])
    assert ids_of(answer) == plain(model, [3, 4, 5, 6], 5)
    with pytest.raises(ValueError, match="has 151 tokens"):
        Writer(model, TOKENIZER).start([1] * CONTEXT, 1, begun=[5])


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one. two. three", [". t"], "one"),
        ("one two", ["x", "tw"], "one "),
        ("aab aaab aaaab", ["aaaa"], "aab aaab "),
        ("one two", ["three"], "one two"),
        ("half a stop: thr", ["three"], "half a stop: thr"),
        ("to the end\n\n", ["\n\n"], "to the end"),
    ],
)
def test_a_stop_text_ends_and_is_not_shown(text, stop, shown):
    pieces, end = said(text, stop=stop)
    assert "".join(pieces) + end.text == shown
    assert end.reason == ("stop" if shown != text else "length")


def test_tokens_tell_what_the_model_thought():
    model = MODELS["GPT"]
    _, token, _ = Writer(model, TOKENIZER).start([3, 4], 1, drawn(5))
    own = torch.softmax(model(torch.tensor([[3, 4]]))[0, -1].detach(), dim=-1)
    assert token.probability == pytest.approx(own[token.id].item(), abs=1e-6)
    assert [p for *_, p in token.likely] == pytest.approx(
        own.topk(6).values.tolist(), abs=1e-6
    )
    best = own.argmax().item()
    assert token.likely[0][:2] == (best, TOKENIZER.decode([best]))


@pytest.mark.parametrize(
    ("ids", "n", "stop", "problem"),
    [
        ([], 1, (), "no text to go on with"),
        ([1] * (CONTEXT + 1), 1, (), "has 151 tokens, but the model reads at most 150"),
        ([1], 0, (), "whole number from 1 up"),
        ([1], 1, ("",), "A stop text is empty"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(ids, n, stop, problem):
    with pytest.raises(ValueError, match=problem):
        Writer(MODELS["GPT"], TOKENIZER).start(ids, n, stop=stop)


def test_dropout_is_off():
    with pytest.raises(ValueError, match="training mode"):
        Writer(small_model(MODELS["GPT"].cfg).train(), TOKENIZER)
