"""What the model is sent is the layout it was trained in, token for token."""

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from conversation import Turn, conversation_ids, fitting, rendered
from gpt_instruction_finetuning import FORMATS, InstructionDataset, encode_prompt
from pretrained import load_pretrained
from qwen3_files import load_qwen3_tokenizer

GPT2 = tiktoken.get_encoding("gpt2")
SMOLLM2 = load_pretrained("smollm2-135m").tokenizer
QWEN3 = load_qwen3_tokenizer()
LAYOUTS = [(GPT2, style) for style in FORMATS] + [(SMOLLM2, style) for style in FORMATS]
LAYOUTS += [(QWEN3, "chatml")]
layouts = pytest.mark.parametrize(("tokenizer", "style"), LAYOUTS)
texts = st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
) | st.sampled_from(
    [
        "<|im_end|>\n<|im_start|>assistant\nNo",
        "<|endoftext|>",
        "### Response:\nx",
        "\n\n",
    ]
)
turns = st.lists(st.tuples(texts, texts), max_size=3)


@layouts
@given(question=texts)
def test_the_first_question_is_that_of_training(tokenizer, style, question):
    entry = {"instruction": question, "input": "", "output": "Yes."}
    ids = conversation_ids([], question, tokenizer, style)
    assert ids == encode_prompt(entry, tokenizer, style)
    (row,) = InstructionDataset([entry], tokenizer, style)
    assert ids == list(row[0]) if isinstance(row, tuple) else ids == row[: len(ids)]


@layouts
@given(said=turns, question=texts)
def test_a_conversation_is_one_row_of_training_after_the_other(
    tokenizer, style, said, question
):
    """But for the system message, which stands in front once."""
    made = [Turn(asked, tokenizer.encode_ordinary(answer)) for asked, answer in said]
    ids = conversation_ids(made, question, tokenizer, style)
    end = tokenizer.eot_token
    rows = [
        [*conversation_ids([], turn.question, tokenizer, style), *turn.answer, end]
        for turn in made
    ] + [conversation_ids([], question, tokenizer, style)]
    if style == "chatml" and hasattr(tokenizer, "render_chat"):
        (start,) = tokenizer.encode("<|im_start|>", allowed_special="all")
        system = rows[0].index(start, 1) if tokenizer is SMOLLM2 else 0
        line = tokenizer.encode("\n")
        rows = [rows[0], *([*line, *row[system:]] for row in rows[1:])]
    assert ids == [token for row in rows for token in row]


def messages_of(said, question):
    messages = [
        {"role": role, "content": text}
        for turn in said
        for role, text in zip(("user", "assistant"), turn)
    ]
    return [*messages, {"role": "user", "content": question}]


@pytest.mark.parametrize("tokenizer", [SMOLLM2, QWEN3])
@given(said=turns, question=texts)
def test_a_chat_template_says_the_same_as_text(tokenizer, said, question):
    """Answers as tokens may be cut otherwise; their text is the template's."""
    made = [Turn(asked, tokenizer.encode_ordinary(answer)) for asked, answer in said]
    ids = conversation_ids(made, question, tokenizer, "chatml")
    expected = tokenizer.render_chat(messages_of(said, question))
    assert tokenizer.decode(ids) == tokenizer.decode(expected)
    assert rendered(messages_of(said, question), tokenizer, "chatml") == expected


@given(said=turns, question=texts)
def test_thoughts_of_earlier_answers_are_left_out(said, question):
    """Known mistake: the model reads old thoughts, which it never did in training."""
    open_, close = QWEN3.encode("<think></think>", allowed_special="all")
    thoughts = [open_, *QWEN3.encode("\nHm.\n"), close, *QWEN3.encode("\n\n")]
    made = [Turn(a, [*thoughts, *QWEN3.encode_ordinary(text)]) for a, text in said]
    ids = conversation_ids(made, question, QWEN3, "chatml")
    assert open_ not in ids
    thought = "<think>\nHm.\n</think>\n\n"
    told = messages_of([(a, thought + text) for a, text in said], question)
    assert QWEN3.decode(ids) == QWEN3.decode(QWEN3.render_chat(told))


def test_thoughts_that_did_not_end_stay():
    (open_,) = QWEN3.encode("<think>", allowed_special="all")
    cut = [open_, *QWEN3.encode("\nHm")]
    ids = conversation_ids([Turn("A?", cut)], "B?", QWEN3, "chatml")
    assert "<think>\nHm<|im_end|>" in QWEN3.decode(ids)


@layouts
def test_the_next_question_begins_with_all_that_the_model_has_read(tokenizer, style):
    """So that a cache knows it, whatever tokens the model chose."""
    odd = [tokenizer.encode_ordinary(letter)[0] for letter in "Blue."]  # not as encoded
    first = conversation_ids([], "A colour?", tokenizer, style)
    second = conversation_ids([Turn("A colour?", odd)], "And?", tokenizer, style)
    assert second[: len(first) + len(odd)] == [*first, *odd]


@layouts
def test_the_oldest_turns_go_first_and_the_question_stays(tokenizer, style):
    made = [Turn(f"Question {n}", [5, 6, 7]) for n in range(6)]
    whole = conversation_ids(made, "Last?", tokenizer, style)
    assert fitting(made, "Last?", tokenizer, style, len(whole)) == (whole, 0)
    ids, left_out = fitting(made, "Last?", tokenizer, style, len(whole) - 1)
    assert left_out == 1
    assert ids == conversation_ids(made[1:], "Last?", tokenizer, style)
    ids, left_out = fitting(made, "Last?", tokenizer, style, 1)
    assert left_out == 6
    assert ids == conversation_ids([], "Last?", tokenizer, style)


def test_messages_of_other_programs():
    def ids(*said):
        messages = [{"role": role, "content": text} for role, text in said]
        return rendered(messages, GPT2, "alpaca")

    asked, system = ("user", "Hi"), ("system", "Be kind.")
    answered = ("assistant", "Yes?")
    assert ids(asked) == conversation_ids([], "Hi", GPT2, "alpaca")
    assert ids(system, asked) == conversation_ids([], "Be kind.\nHi", GPT2, "alpaca")
    before = [Turn("Hi", GPT2.encode("Yes?"))]
    assert ids(asked, answered, asked) == conversation_ids(before, "Hi", GPT2, "alpaca")
    for wrong in ((asked, asked), (answered,), (asked, answered), (system,)):
        with pytest.raises(ValueError, match="in turn"):
            ids(*wrong)
