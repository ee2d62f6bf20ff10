"""What exercise 4.8 runs an attempt on, and how its check reads a continued text."""

import torch
from torch import nn

from course.exercises import call, describe, expect


class CountingModel(nn.Module):
    """A model that has learned to count: after 5 it says 6, and after 9 it says 0."""

    def __init__(self, context_length):
        super().__init__()
        self.context_length = context_length
        self.calls = 0

    def forward(self, idx, attention_mask=None, cache=None):
        self.calls += 1
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
    return result.tolist(), model.calls


def name_ending(found, calls):
    """Judge what follows [9, 2, 6] and [1, 9, 4]: three and five tokens up to a 9."""
    first, second = found
    kept = first[:3] == [9, 2, 6] and second[:3] == [1, 9, 4]
    expect(kept, "the result does not begin with the prompts")
    fooled = len(first) < 5 or first[3] == 9
    expect(not fooled, "a stop_id within a prompt was taken for its end")
    likeliest = first[3] == 7 and second[3] == 5
    expect(
        likeliest,
        "the first new token is not the likeliest one after the prompt's last token",
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
        calls <= 5,
        f"the model ran {calls} times, where 5 are enough: the prompts go together, "
        "and the work ends when the last of them has stopped",
    )
