"""What the model is sent is the layout it was trained in, token for token."""

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from conversation import Turn, conversation_ids, fitting, rendered
from gpt_instruction_finetuning import FORMATS, InstructionDataset, encode_prompt
from pretrained import load_pretrained

GPT2 = tiktoken.get_encoding("gpt2")
SMOLLM2 = load_pretrained("smollm2-135m").tokenizer
LAYOUTS = [(GPT2, style) for style in FORMATS] + [(SMOLLM2, style) for style in FORMATS]
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
        start, line = tokenizer.special_tokens["<|im_start|>"], tokenizer.encode("\n")
        system = rows[0].index(start, 1)
        rows = [rows[0], *([*line, *row[system:]] for row in rows[1:])]
    assert ids == [token for row in rows for token in row]


@given(said=turns, question=texts)
def test_a_chat_template_says_the_same_as_text(said, question):
    """Answers as tokens may be cut otherwise; their text is the template's."""
    made = [Turn(asked, SMOLLM2.encode_ordinary(answer)) for asked, answer in said]
    messages = [
        {"role": role, "content": text}
        for turn in said
        for role, text in zip(("user", "assistant"), turn)
    ]
    messages.append({"role": "user", "content": question})
    ids = conversation_ids(made, question, SMOLLM2, "chatml")
    assert SMOLLM2.decode(ids) == SMOLLM2.decode(SMOLLM2.render_chat(messages))
    assert rendered(messages, SMOLLM2, "chatml") == SMOLLM2.render_chat(messages)


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
