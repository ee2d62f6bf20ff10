"""What the pages on which a model writes share."""

import runpy
from pathlib import Path

import pytest
import tiktoken

from gpt_generate import Sampling
from page_models import Begun, encode, go_on
from small_models import small_configs, small_model
from writer import End, Token, Writer

GPT2 = tiktoken.get_encoding("gpt2")
MODEL = small_model(small_configs(context_length=60, vocab_size=50_257)["GPT"])
LIKELIEST = Sampling(eos_id=GPT2.eot_token)
SNOW = GPT2.encode("\u2603")  # several tokens, none of which is a character


def steps_of(begun, length=4, sampling=LIKELIEST):
    return list(go_on(Writer(MODEL, GPT2), [5, 6], begun, length, sampling))


def test_an_answer_goes_on_from_tokens_that_were_taken():
    begun = GPT2.encode(" Blue sky")
    first, *steps = steps_of(begun)
    assert first == Begun((" Blue", " sky"))
    alone = Writer(MODEL, GPT2).start([5, 6, *begun], 4, LIKELIEST)
    assert [s.id for s in steps if isinstance(s, Token)] == [
        step.id for step in alone if isinstance(step, Token)
    ]
    assert not any(isinstance(step, Begun) for step in steps_of([]))


def test_a_text_begins_with_the_token_that_some_models_need():
    """Known mistake: Gemma without it, which then writes nonsense."""

    class Tokenizer:
        render_chat, bos_token = None, 2

        def encode(self, text, disallowed_special):
            return [7] * len(text)

    assert encode(Tokenizer(), "abc") == [2, 7, 7, 7]
    assert encode(GPT2, " Blue") == GPT2.encode(" Blue")


def test_parts_of_a_character_show_it_once_it_is_whole():
    """Known mistake: each was told as U+FFFD."""
    first, *_ = steps_of([*GPT2.encode("a"), *SNOW])
    assert first.texts == ("a", *[""] * (len(SNOW) - 1), "\u2603")
    first, *_ = steps_of(SNOW[:-1])
    assert "".join(first.texts) == ""


def test_the_end_that_a_reader_takes_ends_and_is_no_text():
    """Known mistake: the answer read "Blue<|endoftext|>"."""
    first, end = steps_of([*GPT2.encode("Blue"), GPT2.eot_token, 7])
    assert first == Begun(("Blue", ""))
    assert (end.reason, end.text, end.written) == ("end", "", 0)
    first, end = steps_of([*SNOW[:-1], GPT2.eot_token])
    # Known mistake: half a character was told as the text of the end token, and so
    # went into a text to which the answer was added.
    assert "".join(first.texts) == ""
    assert isinstance(end, End)
    assert (end.text, end.reason) == ("\ufffd", "end")
    first, end = steps_of(
        [*GPT2.encode("Blue"), 7, GPT2.eot_token],
        sampling=Sampling(eos_id=(GPT2.eot_token, 7)),
    )
    assert first == Begun(("Blue", ""))
    assert (end.reason, end.text) == ("end", "")


def test_an_answer_that_is_left_leaves_the_writer_at_once():
    """The desk closes what it was given, and that reaches the model."""
    writer = Writer(MODEL, GPT2)
    steps = go_on(writer, [5, 6], [7], 40, LIKELIEST)
    for _ in range(3):
        next(steps)
    steps.close()
    *_, end = writer.start([5, 6, 7], 1)
    assert end.known == 2


def test_what_cannot_be_continued_is_told_before_the_first_step():
    with pytest.raises(ValueError, match="reads at most 60"):
        go_on(Writer(MODEL, GPT2), [5] * 60, [6], 4, LIKELIEST)


def test_a_folder_without_a_model_is_told_at_once(tmp_path, monkeypatch, capsys):
    """Known mistake: the server started, and the first question failed."""
    monkeypatch.setattr("page_server.serve", lambda *_: pytest.fail("it serves"))
    main = runpy.run_path(str(Path(__file__).parent / "app.py"))["main"]
    assert main(["--model", str(tmp_path)]) == 2
    assert "no file of weights" in capsys.readouterr().err
