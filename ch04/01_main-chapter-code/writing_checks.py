"""What exercise 4.8 runs an attempt on, and how its check reads a continued text."""

import torch
from torch import nn

from course.exercises import call, describe, expect, expect_equal


class CountingModel(nn.Module):
    """A model that has learned to count: after 5 it says 6, and after 9 it says 0."""

    def __init__(self, context_length):
        super().__init__()
        self.context_length = context_length
        self.widths = []  # how many tokens it was given, call by call

    def forward(self, idx, attention_mask=None, cache=None):
        self.widths.append(self.context_length if cache else idx.shape[1])
        if idx.shape[1] > self.context_length:
            raise ValueError(
                f"the model was given {idx.shape[1]} tokens and reads at most "
                f"{self.context_length}"
            )
        return nn.functional.one_hot((idx + 1) % 10, 10).double()  # (B, T, V)


def continued(attempt, idx, max_new_tokens, stop_id, context_size=4):
    model = CountingModel(context_size).eval()
    result = call(attempt, model, idx.clone(), max_new_tokens, context_size, stop_id)
    is_batch = isinstance(result, torch.Tensor) and result.ndim == 2
    where = f"with max_new_tokens={max_new_tokens} the result is {describe(result)}"
    expect(is_batch, f"{where}, not a tensor (B, T + n)")
    return result.tolist(), model.widths


def expect_whole_window(widths, had, context_size=4):
    """Raise if a call was given fewer tokens than there were and it could read."""
    for width in widths:
        expect(
            width >= min(had, context_size),
            f"the text is right here, but the model was given {width} of {had} tokens, "
            f"though it can read {context_size}",
        )
        had += 1


def name_ending(found, widths, moves):
    """Judge what follows [9, 2, 6] and [1, 9, 4]: three and five tokens up to a 9.

    `moves` says that prompts without a 9 do get new tokens.
    """
    first, second = found
    kept = first[:3] == [9, 2, 6] and second[:3] == [1, 9, 4]
    expect(kept, "the result does not begin with the prompts")
    expect(moves, "no new token came; is the chosen token appended to idx?")
    fooled = len(first) == 3 or first[3] == 9
    expect(not fooled, "a stop_id within a prompt was taken for its end")
    likeliest = first[3] == 7 and second[3] == 5
    expect(
        likeliest,
        "the first new token is not the likeliest one after the prompt's last token",
    )
    expect(
        len(first) > 4,
        "the work ended after one new token, when no prompt had stopped",
    )
    expect(
        first[4] != 7,
        "the second new token does not follow from the first; is the chosen token "
        "appended before the model is asked again?",
    )
    expect(
        first[4:6] != [8, 8],
        "the same token comes again and again: the model reads the first context_size "
        "tokens, not the last",
    )
    expect(len(first) != 6, "the work ended as soon as one prompt had stopped")
    expect(len(first) != 7, "the stop_id that ends the longest answer is missing")
    expect(first[6:8] != [0, 1], "a prompt went on after its stop_id")
    expect(
        first[6:8] == [9, 9],
        "after its end a prompt was filled with something else than stop_id",
    )
    too_many = len(first) - 8
    expect(
        too_many <= 0,
        f"all prompts have stopped, and {too_many} more step(s) were made",
    )
    expect(
        len(widths) <= 5,
        f"the model ran {len(widths)} times, where 5 are enough: the prompts go "
        "together, and the work ends when the last of them has stopped",
    )


def judge_writing(attempt):
    """Try one answer to exercise 4.8; return what was verified."""
    idx = torch.tensor([[9, 2, 6], [1, 9, 4]])
    found, widths = continued(attempt, idx, 8, 9)
    moves = True
    if len(found[0]) == 3:  # is it the 9 within the prompts?
        moves = len(continued(attempt, torch.tensor([[2, 6], [1, 4]]), 2, 9)[0][0]) > 2
    name_ending(found, widths, moves)
    wanted = [[9, 2, 6, 7, 8, 9, 9, 9], [1, 9, 4, 5, 6, 7, 8, 9]]
    expect_equal(found, wanted, "a prompt does not go on as asked")
    expect_whole_window(widths, had=3)
    turned, _ = continued(attempt, idx.flip(0), 8, 9)
    expect_equal(
        turned,
        wanted[::-1],
        "all is well as long as the last prompt is the last to stop; the work ends "
        "when all have stopped, in whatever order",
    )

    found, _ = continued(attempt, idx, 4, 9)
    expect_equal(
        found,
        [row[:7] for row in wanted],
        "all is well until max_new_tokens ends the work before both have stopped",
    )
    one, _ = continued(attempt, torch.tensor([[3, 8]]), 5, 9)
    expect_equal(one, [[3, 8, 9]], "a single prompt that stops at once goes wrong")
    ends, _ = continued(attempt, torch.tensor([[3, 9], [4, 4]]), 2, 9)
    expect_equal(
        ends,
        [[3, 9, 0, 1], [4, 4, 5, 6]],
        "a prompt that ends with stop_id goes wrong; only a stop_id that was chosen "
        "ends anything",
    )
    never, _ = continued(attempt, torch.tensor([[0], [5]]), 3, 9)
    wanted = [[0, 1, 2, 3], [5, 6, 7, 8]]
    expect_equal(never, wanted, "prompts that never stop go wrong")
    none, _ = continued(attempt, idx, 0, 9)
    expect_equal(none, idx.tolist(), "max_new_tokens=0 asks for no new token")
    return "Prompts that stop early, late, at once and never; no step too many."
