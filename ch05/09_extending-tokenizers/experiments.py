"""New tokens in SmolLM2: which start is best, and what padding buys.

    python3 -m course run ch05/09_extending-tokenizers/experiments.py

Three special tokens, `<|ask|>`, `<|reply|>` and `<|done|>`, are added to SmolLM2, whose
embedding is its head as well. The three rows alone are then trained for some steps on
short questions and answers of the course's instructions, written between these marks.
Compared are ways to begin the rows.

* `training.csv`: one row for each method, seed and number of steps: the loss of the
  answers' tokens, of `<|done|>` after them, and of plain text (the beginning of the
  course's story), all held out; `old_loss` is that of plain text among the old tokens
  alone. The method "its own marks" is SmolLM2 as it is, with ChatML. Rows of zeros are
  left out: their gradient overflows, as the notebook shows;
* `padding.csv`: seconds of CPU time of the output head and the loss, forward and
  backward, for several numbers of rows, in turns within one run, and their ratio to
  GPT-2's 50,257.

Takes about ten minutes on one thread and 4 GB.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from course import tables
from course.assets import fetch
from gpt_train import calc_loss_batch
from marked_examples import (
    MARKS,
    answer_losses,
    chatml,
    marked,
    short_entries,
    shuffled_batches,
)
from pretrained import load_pretrained
from resize import (
    ExtendedTokenizer,
    mean_rows,
    random_rows,
    resize_vocabulary,
    rows_of_pieces,
    train_only_rows,
)

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
OWN, PADDING = "its own marks", "padding"
# What does already what a mark shall do: its row, or the mean of several, is copied.
PIECES = ("Question:", "Answer:", "<|im_end|>")
METHODS = {  # how the new rows begin, which are trained
    "mean, new rows": "mean",
    "random, new rows": "random",
    "pieces, new rows": "pieces",
}
LEARNING_RATE = 0.01
STEPS, BATCH_SIZE, MEASURED = 8, 4, (0, 8)
ENTRIES, TEST_ENTRIES, STORY_TOKENS = 400, 24, 257
ROWS, WIDTH, TOKENS = (50257, 50264, 50304), 768, 128
TINY_ROWS = (33, 64)


# --- Training -------------------------------------------------------------------------


def start_of(name, tokenizer, seed):
    """How new rows begin, by name."""
    if name == "random":
        return random_rows(generator=torch.Generator().manual_seed(seed))
    if name == "pieces":
        return rows_of_pieces(
            [tokenizer.encode(text, allowed_special="all") for text in PIECES]
        )
    return mean_rows


class Measure:
    """What is held out, and the four figures of a model."""

    def __init__(self, tokenizer, n_old, count, make):
        self.n_old = n_old
        entries = short_entries("test", count)
        self.examples = [make(entry, tokenizer) for entry in entries]
        story = fetch("short-story").read_text(encoding="utf-8")
        self.story = torch.tensor([tokenizer.encode_ordinary(story)[:STORY_TOKENS]])

    def __call__(self, model):
        model.eval()
        answers, ends = answer_losses(model, self.examples)
        with torch.no_grad():
            logits = model(self.story[:, :-1])[0]  # (T, V + N)
        targets = self.story[0, 1:]
        plain = F.cross_entropy(logits, targets).item()
        old = F.cross_entropy(logits[:, : self.n_old], targets).item()
        return {
            "answer_loss": f"{answers:.4f}",
            "end_loss": f"{ends:.4f}",
            "plain_loss": f"{plain:.5f}",
            "old_loss": f"{old:.5f}",
        }


def train(model, first, learning_rate, batches, steps):
    """Train the new rows; yield the number of steps that are done, from 0 on."""
    parameters = train_only_rows(model, first)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0)
    yield 0
    for done in range(1, steps + 1):
        loss = calc_loss_batch(*next(batches), model, "cpu")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield done


def extended(name, start, seed):
    """A model with rows for the marks, its longer tokenizer, and the first new id."""
    model, old, _ = load_pretrained(name)
    tokenizer = ExtendedTokenizer(old, MARKS)
    resize_vocabulary(model, tokenizer.n_vocab, start_of(start, old, seed))
    return model, tokenizer, old.n_vocab


def training_rows(method, seed, options, common):
    """A row for each number of steps at which a method is measured."""
    if method == OWN:
        model, tokenizer, _ = load_pretrained(options.model)
        measure = Measure(tokenizer, tokenizer.n_vocab, options.entries, chatml)
        yield (
            {"method": OWN, "seed": "", "learning_rate": "", "steps": 0}
            | measure(model)
            | common
        )
        return
    learning_rate = options.learning_rate
    model, tokenizer, first = extended(options.model, METHODS[method], seed)
    measure = Measure(tokenizer, first, options.entries, marked)
    examples = [marked(entry, tokenizer) for entry in short_entries("train", ENTRIES)]
    batches = shuffled_batches(examples, BATCH_SIZE, seed)
    for done in train(model, first, learning_rate, batches, options.steps):
        if done in {*MEASURED, options.steps}:
            row = {"method": method, "seed": seed, "learning_rate": learning_rate}
            yield row | {"steps": done} | measure(model) | common


# --- Padding --------------------------------------------------------------------------


def head_seconds(head, x, targets):
    """CPU seconds of logits, loss and gradients."""
    head.zero_grad()
    start = time.process_time()
    F.cross_entropy(head(x).float(), targets).backward()
    return time.process_time() - start


def padding_rows(sizes, width, tokens, rounds, seed, common):
    """A row for each number format and number of rows; all take turns."""
    torch.manual_seed(seed)
    for dtype in (torch.float32, torch.bfloat16):
        heads = {n: nn.Linear(width, n, bias=False, dtype=dtype) for n in sizes}
        seconds = {n: [] for n in sizes}
        for turn in range(rounds + 1):
            x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
            targets = torch.randint(min(sizes), (tokens,))
            shift = turn % len(sizes)
            for n in sizes[shift:] + sizes[:shift]:
                spent = head_seconds(heads[n], x, targets)
                if turn:  # the first round warms up
                    seconds[n].append(spent)
        for n in sizes:
            ratios = [a / b for a, b in zip(seconds[n], seconds[sizes[0]], strict=True)]
            yield {
                "dtype": str(dtype).removeprefix("torch."),
                "rows": n,
                "tokens": tokens,
                "width": width,
                "cpu_seconds": f"{statistics.median(seconds[n]):.3g}",
                "ratio": f"{statistics.median(ratios):.3f}",
                "lowest_ratio": f"{min(ratios):.3f}",
                "highest_ratio": f"{max(ratios):.3f}",
                "rounds": rounds,
                **common,
            }


def main(arguments=None):
    """Run what is asked for, write the tables, print them; return the exit code."""
    names = [OWN, *METHODS, PADDING]
    parser = tables.each_method(__doc__, RESULTS, names, SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="(%(default)s)")
    parser.add_argument("--entries", type=int, default=TEST_ENTRIES)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small heads, for a test")
    options = parser.parse_args(arguments)
    methods = options.only or names
    for method in tqdm(methods, unit="method", disable=None):
        if method == PADDING:
            sizes = (TINY_ROWS, 8, 4) if options.tiny else (ROWS, WIDTH, TOKENS)
            seed = options.seeds[0]
            made = list(padding_rows(*sizes, options.rounds, seed, tables.facts()))
            tables.write(options.out / "padding.csv", made)
        else:
            common = tables.facts(entries=options.entries, batch_size=BATCH_SIZE)
            seeds = options.seeds if method != OWN else options.seeds[:1]
            made = [
                row
                for seed in seeds
                for row in training_rows(method, seed, options, common)
            ]
            path = options.out / "training.csv"
            tables.replace(path, made, key="method", order=names)
        for row in made:
            print(*list(row.values())[:8], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
