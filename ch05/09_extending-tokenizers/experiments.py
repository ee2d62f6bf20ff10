"""New tokens in SmolLM2: which start is best, what is trained, what padding buys.

    python3 -m course run ch05/09_extending-tokenizers/experiments.py

Three special tokens, `<|ask|>`, `<|reply|>` and `<|done|>`, are added to SmolLM2, whose
embedding is its head as well, and trained for some steps on short questions and answers
of the course's instructions, written between these marks. Compared are ways to begin
the three rows, and training them alone with training everything.

* `training.csv`: one row for each method and seed, all figures from held-out texts.
  `answer_loss` and `end_loss`: nats for an answer's tokens and for the token that ends
  it. `ended` and `right`: how many of the questions are answered with an end after at
  most 24 tokens, and rightly by chapter 7's rule. `story_loss` is that of 1,536 tokens
  of the course's story, `chat_loss` that of the same questions and answers in SmolLM2's
  own form, ChatML; `story_old` and `chat_old` are the same among the old tokens alone.
  Two rows train nothing: "its own marks" is ChatML, "text" is ordinary text. Rows of
  zeros are left out: their gradient overflows, as the notebook shows;
* `padding.csv`: seconds of CPU time of the output head and the loss, forward and
  backward, for several numbers of rows, in turns within one run, and their ratio to
  GPT-2's 50,257: the median and the quartiles.

Takes about eight minutes on one thread and 4 GB.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from answer_scores import score_answer
from course import tables
from course.assets import fetch
from gpt_train import calc_loss_batch
from marked_examples import (
    MARKS,
    answer_losses,
    as_text,
    chatml,
    marked,
    short_entries,
    shuffled_batches,
    text_losses,
    write_answers,
)
from pretrained import load_pretrained
from resize import (
    ExtendedTokenizer,
    mean_rows,
    random_rows,
    resize_vocabulary,
    train_only_rows,
)

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
UNTRAINED = {"its own marks": chatml, "text": as_text}
PADDING = "padding"
METHODS = {  # how the new rows begin, whether only they are trained, learning rate
    "mean, new rows": ("mean", True, 0.01),
    "mean, everything": ("mean", False, 1e-4),
    "random, new rows": ("random", True, 0.01),
}
STEPS, BATCH_SIZE = 8, 4
ENTRIES, TEST_ENTRIES, STORY_PARTS, PART = 400, 24, 6, 257
ROWS, WIDTH, TOKENS, ROUNDS = (50257, 50264, 50304), 768, 128, 30
TINY_ROWS = (33, 64)


# --- Training -------------------------------------------------------------------------


def start_of(name, seed):
    """How new rows begin, by name."""
    if name == "random":
        return random_rows(generator=torch.Generator().manual_seed(seed))
    return mean_rows


class Measure:
    """What is held out, and the figures of a model."""

    def __init__(self, old, tokenizer, make, options):
        self.tokenizer, self.n_old = tokenizer, old.n_vocab
        entries = short_entries("test", options.entries, path=options.data)
        self.entries = entries
        self.examples = [make(entry, tokenizer) for entry in entries]
        self.chats = [chatml(entry, old).ids for entry in entries]
        story = fetch("short-story").read_text(encoding="utf-8")
        ids, n = old.encode_ordinary(story), PART - 1
        self.story = [ids[i * n : (i + 1) * n + 1] for i in range(STORY_PARTS)]

    def __call__(self, model):
        model.eval()
        answers, ends = answer_losses(model, self.examples)
        story, story_old = text_losses(model, self.story, self.n_old)
        chat, chat_old = text_losses(model, self.chats, self.n_old)
        written = write_answers(model, self.examples, self.tokenizer)
        scored = [
            score_answer(entry, answer.text)
            for entry, answer in zip(self.entries, written, strict=True)
            if entry.get("answers")
        ]
        return {
            "answer_loss": f"{answers:.4f}",
            "end_loss": f"{ends:.4f}",
            "ended": sum(answer.ended for answer in written),
            "right": sum(scored),
            "scored": len(scored),
            "story_loss": f"{story:.5f}",
            "story_old": f"{story_old:.5f}",
            "chat_loss": f"{chat:.5f}",
            "chat_old": f"{chat_old:.5f}",
        }


def train(model, parameters, learning_rate, batches, steps):
    """Some steps of AdamW without weight decay."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0)
    model.train()
    for _ in range(steps):
        loss = calc_loss_batch(*next(batches), model, "cpu")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()


def trained(method, seed, options):
    """The figures of a model with trained marks, and the learning rate."""
    start, only_rows, learning_rate = METHODS[method]
    model, old, _ = load_pretrained(options.model)
    tokenizer = ExtendedTokenizer(old, MARKS)
    resize_vocabulary(model, tokenizer.n_vocab, start_of(start, seed))
    entries = short_entries("train", ENTRIES, path=options.data)
    examples = [marked(entry, tokenizer) for entry in entries]
    batches = shuffled_batches(examples, BATCH_SIZE, seed)
    parameters = model.parameters()
    if only_rows:
        parameters, _ = train_only_rows(model, old.n_vocab)
    train(model, parameters, learning_rate, batches, options.steps)
    return Measure(old, tokenizer, marked, options)(model), learning_rate


def untrained(method, options):
    """The figures of the model as it is."""
    model, tokenizer, _ = load_pretrained(options.model)
    return Measure(tokenizer, tokenizer, UNTRAINED[method], options)(model)


def training_rows(method, options):
    """A row for each seed."""
    common = tables.facts(entries=options.entries, batch_size=BATCH_SIZE)
    if method in UNTRAINED:
        row = {"method": method, "seed": "", "learning_rate": "", "steps": 0}
        yield row | untrained(method, options) | common
        return
    for seed in options.seeds:
        figures, learning_rate = trained(method, seed, options)
        row = {"method": method, "seed": seed, "learning_rate": learning_rate}
        yield row | {"steps": options.steps} | figures | common


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
            quartiles = statistics.quantiles(ratios, n=4)
            yield {
                "dtype": str(dtype).removeprefix("torch."),
                "rows": n,
                "tokens": tokens,
                "width": width,
                "cpu_seconds": f"{statistics.median(seconds[n]):.3g}",
                "ratio": f"{statistics.median(ratios):.3f}",
                "lower_quartile": f"{quartiles[0]:.3f}",
                "upper_quartile": f"{quartiles[2]:.3f}",
                "rounds": rounds,
                **common,
            }


def main(arguments=None):
    """Run what is asked for, write the tables, print them; return the exit code."""
    names = [*UNTRAINED, *METHODS, PADDING]
    parser = tables.each_method(__doc__, RESULTS, names, SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="(%(default)s)")
    parser.add_argument("--entries", type=int, default=TEST_ENTRIES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small heads, for a test")
    options = parser.parse_args(arguments)
    for method in tqdm(options.only or names, unit="method", disable=None):
        if method == PADDING:
            sizes = (TINY_ROWS, 8, 4) if options.tiny else (ROWS, WIDTH, TOKENS)
            seed = options.seeds[0]
            made = list(padding_rows(*sizes, options.rounds, seed, tables.facts()))
            tables.write(options.out / "padding.csv", made)
        else:
            made = list(training_rows(method, options))
            path = options.out / "training.csv"
            tables.replace(path, made, key="method", order=names)
        for row in made:
            print(*list(row.values())[:13], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
