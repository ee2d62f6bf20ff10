"""Pretraining: losses and the training loop (chapter 5, first half).

* the loss of a batch, of a loader and of both loaders: `calc_loss_batch`,
  `calc_loss_loader`, `evaluate_model`;
* what a model has to beat: `uniform_loss` and `bigram_loss`;
* the one training loop of the course, `train_model_simple`, which chapters 6 and 7 call
  with losses and loaders of their own. Checkpoints are wrapped around it.

The loss is the mean cross-entropy of the next token (Radford et al., "Language Models
are Unsupervised Multitask Learners", 2019); the script's optimizer is AdamW (Loshchilov
and Hutter, 2019, arXiv:1711.05101). Left out until appendix D: learning rates that
change, clipping, accumulation. Left out: mixed precision, more than one process.

>>> import torch
>>> from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
>>> cfg = {**GPT_CONFIG_124M, "vocab_size": 50, "context_length": 8, "emb_dim": 32,
...        "n_heads": 2, "n_layers": 1, "drop_rate": 0.0}
>>> _ = torch.manual_seed(0)
>>> model = initialise_like_gpt2(GPTModel(cfg))
>>> ids = torch.arange(36).view(4, 9)
>>> batches = [(ids[:2, :-1], ids[:2, 1:]), (ids[2:, :-1], ids[2:, 1:])]

A model that knows nothing has a loss near ln 50 = 3.9, and learns what it is shown:

>>> loss = calc_loss_loader(batches, model, "cpu")
>>> abs(loss - uniform_loss(50)) < 0.1
True
>>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
>>> train_losses, val_losses, tokens_seen = train_model_simple(
...     model, batches, batches, optimizer, "cpu", num_epochs=20, eval_freq=20,
...     eval_iter=2, start_context=None, tokenizer=None)  # doctest: +ELLIPSIS
epoch 1, step 0: train 3..., validation 3...
epoch 11, step 20: train 0..., validation 0...
>>> tokens_seen
[16, 336]

Run as a script it trains a small GPT on a short story, or on a text of your own:
`python gpt_train.py --data my-book.txt --out my-model`.

Shapes: B sequences in a batch, T tokens, V vocabulary.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pretraining_script as script
import script_tools
from argument_checks import (
    check_finite_loss,
    check_ids,
    check_loss_fits,
    check_training,
)
from checkpoints import (  # noqa: F401  (programs import these three from here)
    checkpoint_info,
    load_checkpoint,
    save_checkpoint,
)
from dataloader import encode_text
from gpt import (
    GPT_CONFIG_124M,
    GPTConfig,
    GPTModel,
    count_parameters,
    generate_text_simple,
)
from model_config import config_of
from resumable import BestModel, keep_random_states, resumable

QUICK_CONFIG = GPTConfig.of(
    {
        **GPT_CONFIG_124M,
        "context_length": 128,
        "emb_dim": 256,
        "n_heads": 4,
        "n_layers": 4,
        "drop_rate": 0.0,
    }
)
IGNORE_INDEX = -100  # a target with this value is not counted, as in PyTorch
_Device = torch.device | str
_Loss = Callable[..., Tensor]


# --- Text and token ids --------------------------------------------------------------


def text_to_token_ids(text: str, tokenizer: Any) -> Tensor:
    """The ids of one text as a batch of one, (1, T), int64.

    Each `<|endoftext|>` in the text becomes the one special token. The tokenizer is
    anything with `encode(text)`, such as tiktoken's `Encoding`.
    """
    return torch.tensor([encode_text(text, tokenizer)], dtype=torch.long)  # (1, T)


def token_ids_to_text(token_ids: Tensor, tokenizer: Any) -> str:
    """The text of one sequence of ids, (1, T) or (T,); `ValueError` for more."""
    if token_ids.ndim > 1 and len(token_ids) != 1:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}: give the ids of one "
            "sequence, such as token_ids[0]."
        )
    return tokenizer.decode(token_ids.flatten().tolist())


# --- Losses --------------------------------------------------------------------------


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: _Device
) -> Tensor:
    """Mean cross-entropy in nats over the targets of a batch that count.

    Args:
        input_batch: token ids, (B, T).
        target_batch: the token after each of them, (B, T), or `IGNORE_INDEX`.
        model: maps (B, T) to logits, (B, T, V).
        device: where the model is; the batch is moved there.

    Returns:
        A scalar tensor, at least in float32; `ValueError` if no target counts.
    """
    if count_targets((target_batch,)) == 0:
        raise ValueError("No target of this batch counts: leave such batches out.")
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (B, T, V)
    # In short floats, such as bfloat16, the sum over V would keep about two digits.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(
        logits.flatten(0, 1), target_batch.flatten(), ignore_index=IGNORE_INDEX
    )


def count_targets(batch: Sequence[Tensor]) -> int:
    """How many targets, a batch's last tensor, count: are not `IGNORE_INDEX`."""
    return int((batch[-1] != IGNORE_INDEX).sum())


def calc_loss_loader(
    data_loader: Iterable,
    model: nn.Module,
    device: _Device,
    num_batches: int | None = None,
    *,
    loss: _Loss = calc_loss_batch,
) -> float:
    """Mean loss over all targets of a loader, in nats, each with the same weight.

    So it is the same for every batch size, up to rounding; and the model's mode and the
    random states are afterwards what they were, so that looking changes nothing.

    Args:
        data_loader: anything that yields batches: tuples of tensors, the targets last.
        model, device: passed to the loss.
        num_batches: stop after so many batches; None takes all.
        loss: called as `loss(*batch, model, device)`, returns the mean over the
            batch's targets that count. `ValueError` if none does in any batch.
    """
    total_loss, total_targets = 0.0, 0
    was_training = model.training
    model.eval()
    with torch.no_grad(), keep_random_states(data_loader):
        for batch in itertools.islice(data_loader, num_batches):
            check_loss_fits(batch, loss)
            num_targets = count_targets(batch)
            if num_targets > 0:
                total_loss += loss(*batch, model, device).item() * num_targets
                total_targets += num_targets
    model.train(was_training)
    if total_targets == 0:
        raise ValueError(
            "The loader gave no target that counts: give it more text, a smaller "
            "batch, or drop_last=False."
        )
    return total_loss / total_targets


def evaluate_model(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    device: _Device,
    eval_iter: int | None,
    *,
    loss: _Loss = calc_loss_batch,
) -> tuple[float, float]:
    """Training and validation loss over at most `eval_iter` batches each, None: all."""
    train_loss = calc_loss_loader(train_loader, model, device, eval_iter, loss=loss)
    val_loss = calc_loss_loader(val_loader, model, device, eval_iter, loss=loss)
    return train_loss, val_loss


# --- What a model has to beat --------------------------------------------------------


def uniform_loss(vocab_size: int) -> float:
    """The loss of a guess that finds all V tokens equally likely: ln V, in nats."""
    return math.log(vocab_size)


def bigram_loss(
    train_ids: list[int] | Tensor,
    eval_ids: list[int] | Tensor,
    vocab_size: int,
    add: float = 0.02,
    prior: float = 20.0,
) -> float:
    """Mean loss of counting which token follows which, in nats per token.

    The share of a token in the training text is smoothed by adding a little to every
    count, and what follows a token is mixed with those shares, the less the more often
    that token was seen:

        share(w)     = (count(w) + add) / (N + add * V)
        p(w after v) = (count(v, w) + prior * share(w)) / (count(v) + prior)

    The defaults are round numbers that did well when each tenth of the story's training
    part was judged by the other nine.

    Args:
        train_ids: the training text, N ids, a list or a 1-dimensional tensor.
        eval_ids: the text to judge, at least two ids; all but the first are targets.
        vocab_size: V.
        add: what every token's count gets, above 0.
        prior: how many sightings of v weigh as much as the shares, above 0.

    Source: MacKay and Peto, "A hierarchical Dirichlet language model", 1995.
    """
    train_ids, eval_ids = torch.as_tensor(train_ids), torch.as_tensor(eval_ids)
    for ids in (train_ids, eval_ids):
        check_ids(ids, vocab_size)
    if len(eval_ids) < 2:
        raise ValueError("There is nothing to foretell: give at least two ids.")
    share = torch.bincount(train_ids, minlength=vocab_size).double() + add  # (V,)
    share /= share.sum()
    seen_before = torch.bincount(train_ids[:-1], minlength=vocab_size).double()  # (V,)

    # Each pair of neighbours becomes one number, so that pairs can be counted.
    pairs, counts = (train_ids[:-1] * vocab_size + train_ids[1:]).unique(
        return_counts=True
    )
    first, second = eval_ids[:-1], eval_ids[1:]
    wanted = first * vocab_size + second
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    count = torch.where(pairs[place] == wanted, counts[place], 0)
    probability = (count + prior * share[second]) / (seen_before[first] + prior)
    return -probability.log().mean().item()


# --- Training ------------------------------------------------------------------------


def generate_and_print_sample(
    model: Any, tokenizer: Any, device: _Device, start_context: str
) -> None:
    """Print how the model, on `device`, goes on: 50 tokens, each the likeliest."""
    idx = text_to_token_ids(start_context, tokenizer).to(device)  # (1, T)
    was_training = model.training
    model.eval()
    context_size = config_of(model)["context_length"]
    with torch.no_grad():
        token_ids = generate_text_simple(model, idx, 50, context_size)
    model.train(was_training)
    print(token_ids_to_text(token_ids, tokenizer).replace("\n", " "))


def train_model_simple(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    device: _Device,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int | None,
    start_context: Any,
    tokenizer: Any,
    *,
    loss: _Loss = calc_loss_batch,
    scheduler: Any = None,
    after_step: Callable[..., None] | None = None,
    after_epoch: Callable[[], bool | None] | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
) -> tuple[list[float], list[float], list[int]]:
    """Train a model; print and return its losses on the way.

    Step 0 is the first update. For checkpoints, wrap the loop in `resumable`.

    Args:
        model: on `device`; trained in place.
        train_loader, val_loader: yield batches, tuples of tensors, the targets last.
        optimizer: over the model's parameters.
        device: passed to the loss.
        num_epochs: passes over `train_loader`.
        eval_freq: evaluate after step 0, `eval_freq`, 2 `eval_freq` and so on.
        eval_iter: batches of each loader in an evaluation, None for all.
        start_context: text that is continued after each epoch, to look at.
        tokenizer: the model's; None prints no text.
        loss: as in `calc_loss_loader`.
        scheduler: of the learning rate; steps after each update, so none that needs a
            loss.
        after_step: called after each update as `after_step(step, tokens_seen, losses)`:
            updates done, targets seen, and the three lists so far.
        after_epoch: called without arguments after each epoch; if it returns True,
            training ends there.
        start: epochs, updates and targets of an earlier part of the run, to count on.

    Returns:
        Three lists with a number for each evaluation: training loss, validation loss,
        targets seen so far. `ValueError` if there was nothing to train on, if a loss
        is NaN or infinite, or if a loader is one iterator (`check_training`).
    """
    train_losses, val_losses, track_tokens_seen = [], [], []
    losses = train_losses, val_losses, track_tokens_seen
    first_epoch, step, tokens_seen = start
    check_training(train_loader, val_loader, scheduler)
    if tokenizer is not None:
        config_of(model)  # the sample needs it: better raise now
    for epoch in range(first_epoch, num_epochs):
        model.train()
        for batch in train_loader:
            optimizer.zero_grad()
            batch_loss = loss(*batch, model, device)
            check_finite_loss(batch_loss, step)
            batch_loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            tokens_seen += count_targets(batch)
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter, loss=loss
                )
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(
                    f"epoch {epoch + 1}, step {step}: train {train_loss:.3f}, "
                    f"validation {val_loss:.3f}",
                    flush=True,
                )
            step += 1
            if after_step is not None:
                after_step(step, tokens_seen, losses)
        if tokenizer is not None:
            generate_and_print_sample(model, tokenizer, device, start_context)
        if after_epoch is not None and after_epoch():
            break
    if step == 0:
        raise ValueError("No batch to train on: give more text or epochs.")
    return losses


def plot_losses(
    epochs_seen: list, tokens_seen: list, train_losses: list, val_losses: list
) -> Any:
    """A figure of both losses over epochs, with the tokens seen on an axis above.

    It stays open, for `plt.savefig`; so end the line with a semicolon in a notebook,
    which shows it twice otherwise.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axis.plot(epochs_seen, train_losses, label="training")
    axis.plot(epochs_seen, val_losses, linestyle="--", label="validation")
    axis.set(xlabel="epochs", ylabel="loss (nats per token)")
    axis.legend()
    above = axis.twiny()
    above.plot(tokens_seen, train_losses, alpha=0)  # for its scale only
    above.set_xlabel("tokens seen")
    return fig


# --- As a script ---------------------------------------------------------------------

_PRESETS = {
    "quick": {
        "cfg": QUICK_CONFIG,
        "epochs": 4,
        "learning_rate": 3e-3,
        "batch_size": 2,
        "window": 128,
        "eval_freq": 10,
        "eval_iter": 2,
    },
    "full": {
        "cfg": GPTConfig.of({**GPT_CONFIG_124M, "context_length": 256}),
        "epochs": 10,
        "learning_rate": 4e-4,
        "batch_size": 2,
        "window": 256,
        "eval_freq": 5,
        "eval_iter": 5,
    },
}
_WEIGHT_DECAY, _SAVE_EVERY = 0.1, 50


def main(
    arguments: Sequence[str] | None = None,
    make_scheduler: Callable[..., Any] | None = None,
    schedule: str = "constant",
) -> int:
    """Train a small GPT on a text, with checkpoints; return the exit code.

    Args:
        arguments: of the command line; None takes those of the program.
        make_scheduler: called with the optimizer and the number of updates of the run;
            returns a scheduler of the learning rate.
        schedule: what it is called, so that a run goes on with no other.
    """
    stopped = "stopped; with --resume it goes on from the last checkpoint, if any."
    options = script.read_options(arguments, _PRESETS)
    options.make_scheduler, options.schedule = make_scheduler, schedule
    return script_tools.run(_train, options, stopped=stopped)


def _train(options):
    """Everything after the options are read."""
    preset, out = _PRESETS[options.preset], options.out
    text, name = script_tools.read_text(options.data)
    tokenizer, device = script.choose_tokenizer(options), script_tools.device()
    loaders = script.make_loaders(text, name, tokenizer, options)
    script.check_place(out, options)
    torch.manual_seed(options.seed)
    model = GPTModel({**options.cfg, "vocab_size": tokenizer.n_vocab}).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        weight_decay=_WEIGHT_DECAY,
        fused=True,  # all of an update in one pass over the weights: faster
    )
    num_steps = len(loaders[0]) * options.epochs
    print(f"{name}: {num_steps} steps, {count_parameters(model):,} parameters.")
    print(f"Chance alone has a loss of {uniform_loss(tokenizer.n_vocab):.3f}.")
    start = time.perf_counter()
    best = BestModel(
        lambda: calc_loss_loader(loaders[1], model, device),
        lambda folder: save_checkpoint(folder, model, tokenizer=tokenizer),
        out / script.BEST,
        options.resume,
    )
    plan = options.make_scheduler
    settings = script.settings_of(options, text) | {"--schedule": options.schedule}
    if plan:  # which has an end
        settings["--epochs"] = options.epochs
    train = resumable(
        train_model_simple,
        out,
        every=_SAVE_EVERY,
        resume=options.resume,
        settings=settings,
    )
    with script_tools.progress_bar(optimizer, num_steps):
        train_losses, val_losses, tokens_seen = train(
            model,
            *loaders,
            optimizer,
            device,
            options.epochs,
            preset["eval_freq"],
            preset["eval_iter"],
            start_context=" ".join(text.split()[:4])[:40],
            tokenizer=tokenizer,
            scheduler=plan and plan(optimizer, num_steps),
            after_epoch=best,
        )
    # What is said of the end is measured at the end.
    last_train = calc_loss_loader(loaders[0], model, device, len(loaders[1]))
    num_tokens = num_steps * options.batch_size * options.window
    last = num_steps - 1, num_tokens, last_train, best.at_the_end()
    steps = [i * preset["eval_freq"] for i in range(len(val_losses))]
    rows = zip(steps, tokens_seen, train_losses, val_losses, strict=True)
    rows = [*(row for row in rows if row[0] < last[0]), last]
    script.write_losses(out / "losses.csv", rows)
    script.report(out, last, best, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
