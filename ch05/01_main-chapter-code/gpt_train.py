"""Pretraining: losses, the training loop, and checkpoints (chapter 5, first half).

* text to token ids and back, `text_to_token_ids` and `token_ids_to_text`;
* the loss of a batch, of a loader and of both loaders: `calc_loss_batch`,
  `count_targets`, `calc_loss_loader`, `evaluate_model`;
* what a model has to beat: `uniform_loss` and `bigram_loss`;
* the one training loop of the course, `train_model_simple`, which chapters 6 and 7 call
  with losses and loaders of their own, and `plot_losses`;
* checkpoints, which survive being killed: `save_checkpoint`, `load_checkpoint`,
  `checkpoint_info`.

The loss is the mean cross-entropy of the next token, as in Radford et al., "Language
Models are Unsupervised Multitask Learners", 2019; the optimizer of `main` is AdamW,
Loshchilov and Hutter, 2019 (arXiv:1711.05101). Left out until appendix D: learning
rates that change, clipping, accumulation. Left out altogether: mixed precision and more
than one process at a time.

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

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path

import tiktoken
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from dataloader import create_dataloader_v1, encode_text, split_text
from gpt import (
    GPT_CONFIG_124M,
    GPTConfig,
    GPTModel,
    count_parameters,
    generate_text_simple,
)

QUICK_CONFIG = GPTConfig.of(
    {
        **GPT_CONFIG_124M,
        "context_length": 256,
        "emb_dim": 256,
        "n_heads": 4,
        "n_layers": 4,
        "drop_rate": 0.0,
    }
)
IGNORE_INDEX = -100  # a target with this value is not counted, as in PyTorch


# --- Text and token ids --------------------------------------------------------------


def text_to_token_ids(text, tokenizer):
    """The ids of one text as a batch of one, (1, T), int64.

    Each `<|endoftext|>` in the text becomes the one special token.

    Args:
        text: a string.
        tokenizer: anything with `encode(text)`, such as tiktoken's `Encoding`.
    """
    return torch.tensor([encode_text(text, tokenizer)], dtype=torch.long)  # (1, T)


def token_ids_to_text(token_ids, tokenizer):
    """The text of one sequence of ids, (1, T) or (T,).

    Raises:
        ValueError: there is more than one sequence.
    """
    _check_one_sequence(token_ids)
    return tokenizer.decode(token_ids.flatten().tolist())


# --- Losses --------------------------------------------------------------------------


def calc_loss_batch(input_batch, target_batch, model, device):
    """Mean cross-entropy in nats over the targets of a batch that count.

    Args:
        input_batch: token ids, (B, T).
        target_batch: the token that follows each of them, (B, T); `IGNORE_INDEX` where
            nothing is asked.
        model: maps (B, T) to logits, (B, T, V).
        device: where the model is; the batch is moved there.

    Returns:
        A scalar tensor, at least in float32, to call `backward()` on.

    Raises:
        ValueError: no target counts, or the shapes differ.
    """
    _check_targets(input_batch, target_batch)
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = _at_least_float32(model(input_batch))  # (B, T, V)
    return F.cross_entropy(
        logits.flatten(0, 1), target_batch.flatten(), ignore_index=IGNORE_INDEX
    )


def count_targets(batch):
    """How many targets of a batch count: those that are not `IGNORE_INDEX`.

    Args:
        batch: a tuple of tensors, the targets last.
    """
    return int((batch[-1] != IGNORE_INDEX).sum())


def calc_loss_loader(
    data_loader, model, device, num_batches=None, *, loss=calc_loss_batch
):
    """Mean loss over all targets of a loader, each with the same weight.

    So it is the same for every batch size, up to rounding. The model is in evaluation
    mode meanwhile; its mode and all random states are as before afterwards, so that
    looking at a loss never changes what comes next.

    Args:
        data_loader: anything that yields batches: tuples of tensors, the targets last.
        model, device: passed to the loss.
        num_batches: stop after so many batches; None takes all.
        loss: called as `loss(*batch, model, device)`, returns the mean over the
            batch's targets that count.

    Returns:
        A float, in nats for a language model.

    Raises:
        ValueError: the loader has no target that counts, or `num_batches` is below 1.
    """
    _check_at_least_one(num_batches=num_batches)
    total_loss, total_targets = 0.0, 0
    with _looking_only(model, data_loader):
        for batch in itertools.islice(data_loader, num_batches):
            num_targets = count_targets(batch)
            if num_targets > 0:
                mean = loss(*batch, model, device).item()
                total_loss += mean * num_targets
                total_targets += num_targets
    _check_any_target(total_targets)
    return total_loss / total_targets


def evaluate_model(
    model, train_loader, val_loader, device, eval_iter, *, loss=calc_loss_batch
):
    """Training and validation loss, two floats, over at most `eval_iter` batches each.

    `eval_iter=None` takes all batches. Raises `ValueError` as `calc_loss_loader`.
    """
    train_loss = calc_loss_loader(train_loader, model, device, eval_iter, loss=loss)
    val_loss = calc_loss_loader(val_loader, model, device, eval_iter, loss=loss)
    return train_loss, val_loss


# --- What a model has to beat --------------------------------------------------------


def uniform_loss(vocab_size):
    """The loss of a guess that finds all V tokens equally likely: ln V, in nats."""
    _check_at_least_one(vocab_size=vocab_size)
    return math.log(vocab_size)


def bigram_loss(train_ids, eval_ids, vocab_size, add=0.02, prior=20.0):
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

    Raises:
        ValueError: a text is too short, an id is not in the vocabulary, or `add` or
            `prior` is not above 0.

    Source: MacKay and Peto, "A hierarchical Dirichlet language model", 1995.
    """
    train_ids, eval_ids = torch.as_tensor(train_ids), torch.as_tensor(eval_ids)
    _check_bigram(train_ids, eval_ids, vocab_size, add, prior)
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


def generate_and_print_sample(model, tokenizer, device, start_context):
    """Print how the model continues a text, on one line: 50 likeliest tokens.

    Args:
        model: a language model with the course's interface, in any mode.
        tokenizer: its tokenizer.
        device: where the model is.
        start_context: the text to continue, not empty.
    """
    model = _bare(model)
    idx = text_to_token_ids(start_context, tokenizer).to(device)  # (1, T)
    with _looking_only(model):
        token_ids = generate_text_simple(
            model, idx, max_new_tokens=50, context_size=model.cfg["context_length"]
        )
    print(token_ids_to_text(token_ids, tokenizer).replace("\n", " "))


def train_model_simple(
    model,
    train_loader,
    val_loader,
    optimizer,
    device,
    num_epochs,
    eval_freq,
    eval_iter,
    start_context,
    tokenizer,
    *,
    loss=calc_loss_batch,
    scheduler=None,
    checkpoint=None,
    checkpoint_freq=None,
    resume=False,
    after_epoch=None,
):
    """Train a model; print and return its losses on the way.

    Step 0 is the first update. With `checkpoint` the run is saved every
    `checkpoint_freq` updates and at the end. Started again with `resume=True`, with
    parts made in the same way, it goes on where the last checkpoint was written and
    ends with the same weights as a run that was never interrupted, to the last bit on
    the same machine.

    Args:
        model: on `device`; trained in place.
        train_loader, val_loader: yield batches, tuples of tensors with the targets
            last. The order of `train_loader` may depend on its own or torch's random
            generator, and on nothing else that the run itself changes.
        optimizer: over the model's parameters.
        device: passed to the loss.
        num_epochs: passes over `train_loader`, those before a checkpoint included.
        eval_freq: evaluate after step 0, `eval_freq`, 2 `eval_freq` and so on.
        eval_iter: batches of each loader in an evaluation, None for all.
        start_context: text that is continued after each epoch, to look at.
        tokenizer: the model's; None prints no text.
        loss: as in `calc_loss_loader`.
        scheduler: of the learning rate; steps after each update.
        checkpoint: folder for `save_checkpoint`; None saves nothing.
        checkpoint_freq: updates between two checkpoints; None saves at the end only.
        resume: go on from the checkpoint, if there is one.
        after_epoch: a function without arguments, called after each epoch.

    Returns:
        Three lists with a number for each evaluation: training loss, validation loss,
        targets seen so far.

    Raises:
        ValueError: a number is out of range, a loader is empty, no target of a batch
            counts, or as `load_checkpoint`.
    """
    _check_plan(num_epochs, eval_freq, checkpoint, checkpoint_freq, resume)
    progress = _Progress(checkpoint, model, optimizer, scheduler, tokenizer)
    if resume:
        progress.resume(train_loader)
    while progress.epoch < num_epochs:
        model.train()
        for batch in progress.batches_left(train_loader):
            optimizer.zero_grad()
            loss(*batch, model, device).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            progress.tokens_seen += count_targets(batch)
            if progress.step % eval_freq == 0:
                losses = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter, loss=loss
                )
                progress.note(*losses)
            progress.end_step(checkpoint_freq)
        if tokenizer is not None:
            generate_and_print_sample(model, tokenizer, device, start_context)
        if after_epoch is not None:
            after_epoch()
        progress.end_epoch()
    progress.save()
    return progress.train_losses, progress.val_losses, progress.track_tokens_seen


def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses):
    """Draw both losses over epochs, with the tokens seen on a second axis above.

    All four are sequences of the same length. Returns the matplotlib figure.
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


# --- Where a run stands --------------------------------------------------------------


class _Progress:
    """Where a training run stands, how it is saved, and how it goes on.

    The order of an epoch is a function of the loader's random state at its start. So
    that state is kept, and a run that goes on in the middle of an epoch starts the
    epoch from it, passes over the batches it has seen, and then puts the random states
    back to what they were when the checkpoint was written.
    """

    def __init__(self, folder, model, optimizer, scheduler, tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.parts = (model, optimizer, scheduler)
        self.epoch = self.batch = self.step = self.tokens_seen = 0
        self.train_losses, self.val_losses, self.track_tokens_seen = [], [], []
        self.generators, self.epoch_start, self.num_batches = [], [], None

    def batches_left(self, loader):
        """Yield the batches of this epoch that have not been trained on."""
        with contextlib.suppress(AttributeError):  # only a distributed sampler has it
            loader.sampler.set_epoch(self.epoch)
        self.generators = _generators(loader)
        self.num_batches = _length(loader)
        now = [generator.get_state() for generator in self.generators]
        if self.batch == 0:
            self.epoch_start = now
        _set_states(self.generators, self.epoch_start)
        batches, seen = iter(loader), self.batch
        for _ in itertools.islice(batches, seen):
            pass
        if seen > 0:
            _set_states(self.generators, now)
        yield from batches
        if self.batch == 0:
            raise ValueError(
                "train_loader gave no batch in this epoch: give it more data or a "
                "smaller batch, or a loader that can be gone through again."
            )

    def note(self, train_loss, val_loss):
        """Keep and print the losses of an evaluation."""
        self.train_losses.append(train_loss)
        self.val_losses.append(val_loss)
        self.track_tokens_seen.append(self.tokens_seen)
        print(
            f"epoch {self.epoch + 1}, step {self.step}: "
            f"train {train_loss:.3f}, validation {val_loss:.3f}",
            flush=True,
        )

    def end_step(self, checkpoint_freq):
        self.step += 1
        self.batch += 1
        if checkpoint_freq is not None and self.step % checkpoint_freq == 0:
            self.save()

    def end_epoch(self):
        self.epoch, self.batch = self.epoch + 1, 0

    _NUMBERS = ("epoch", "batch", "step", "tokens_seen", "num_batches")
    _CURVES = ("train_losses", "val_losses", "track_tokens_seen")

    def save(self):
        """Write a checkpoint, if there is a folder for it."""
        if self.folder is None:
            return
        progress = {name: getattr(self, name) for name in self._NUMBERS + self._CURVES}
        progress["num_generators"] = len(self.generators)
        for i, generator in enumerate(self.generators):
            progress[f"loader_now.{i}"] = generator.get_state()
            progress[f"loader_epoch_start.{i}"] = self.epoch_start[i]
        save_checkpoint(
            self.folder, *self.parts, tokenizer=self.tokenizer, progress=progress
        )

    def resume(self, loader):
        """Take everything from the checkpoint; without one the run starts afresh."""
        if not (Path(self.folder) / _NOTES).exists():
            print(f"There is no checkpoint in {self.folder} yet: starting afresh.")
            return
        generators = _generators(loader)
        _check_same_loader(checkpoint_info(self.folder), loader, len(generators))
        progress = load_checkpoint(self.folder, *self.parts, tokenizer=self.tokenizer)
        for name in self._NUMBERS + self._CURVES:
            setattr(self, name, progress[name])
        places = range(progress["num_generators"])
        now = [progress[f"loader_now.{i}"] for i in places]
        self.epoch_start = [progress[f"loader_epoch_start.{i}"] for i in places]
        self.generators = generators[: len(places)]
        _set_states(self.generators, now)
        print(f"Going on after {self.step} steps, in epoch {self.epoch + 1}.")


def _generators(loader):
    """The random generators that decide about the order of a loader, torch's first."""
    sampler = getattr(loader, "sampler", None)
    own = (getattr(loader, "generator", None), getattr(sampler, "generator", None))
    found = {id(generator): generator for generator in own if generator is not None}
    return [torch.default_generator, *found.values()]


def _set_states(generators, states):
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _length(loader):
    """How many batches a loader has, None if it does not say."""
    try:
        return len(loader)
    except TypeError:
        return None


@contextlib.contextmanager
def _looking_only(model, loader=None):
    """No gradients, evaluation mode; modes and random states come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    generators = _generators(loader)
    states = [generator.get_state() for generator in generators]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        _set_states(generators, states)


def _at_least_float32(logits):
    """Sums over a vocabulary of bfloat16 numbers would keep about two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# --- Checkpoints ---------------------------------------------------------------------

_NOTES = "checkpoint.json"
_TENSOR_FILE = re.compile(r"(?:model|training)-(\d+)\.safetensors")
_FORMAT = 1
_AGAIN = "use another checkpoint, or train again"


def save_checkpoint(
    folder, model, optimizer=None, scheduler=None, *, tokenizer=None, progress=None
):
    """Save a model, and what it takes to go on training it, in a folder.

    The folder gets `model-N.safetensors` with the weights, N counting the savings,
    `training-N.safetensors` with the optimizer's tensors and torch's random state (with
    an optimizer only), and `checkpoint.json` with everything else: config, types of
    numbers, a hash of the tokenizer, torch's version, progress, and the checksums of
    the other files. It replaces the old `checkpoint.json` in one step, and only then
    the old files go. So a program killed at any moment leaves a whole checkpoint, the
    new or the old one. Other files in the folder stay.

    Args:
        folder: made if it is missing.
        model: compiled and distributed models are saved as the model inside.
        optimizer: over the model's parameters; only PyTorch's own were tried.
        scheduler: a learning-rate scheduler of that optimizer.
        tokenizer: remembered by a hash of its tokens.
        progress: a dictionary of numbers, strings and lists; a tensor as a value is
            allowed if there is an optimizer.

    Raises:
        ValueError: something cannot be written down without pickling it, or a tensor
            has no data.
        OSError: the folder cannot be written; the old checkpoint is intact.
    """
    folder, model = Path(folder), _bare(model)
    weights = _weights(model)
    training, notes = _training_state(model, optimizer, scheduler, progress)
    notes |= {
        "format": _FORMAT,
        "model": type(model).__name__,
        "config": _config_of(model),
        "dtype": _number_types(weights),
        "tokenizer": None if tokenizer is None else _fingerprint(tokenizer),
        "torch": torch.__version__,
    }
    json.dumps(notes)  # before any file is touched
    with _told_as_oserror(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number = _next_number(folder)
        notes["files"] = {"model": _write(folder, f"model-{number}", weights)}
        if training:
            name = f"training-{number}"
            notes["files"]["training"] = _write(folder, name, training)
        _write_notes(folder, notes)
        _remove_others(folder, notes)


def load_checkpoint(folder, model, optimizer=None, scheduler=None, *, tokenizer=None):
    """Load what `save_checkpoint` saved, all of it or nothing; return the progress.

    Everything is read and compared first. If anything is damaged or differs, the error
    says so, and model, optimizer, scheduler and random state are untouched.

    Args:
        folder: where the checkpoint is.
        model: of the same config, shapes and types of numbers; may be compiled or
            distributed, whether or not the saved one was.
        optimizer: to go on training: gets the saved state, and torch's random state is
            set. None loads the model only.
        scheduler: gets the saved state.
        tokenizer: compared with the saved hash, if there is one.

    Returns:
        The dictionary `progress` that was saved, empty without one. Its tensors are in
        it only if an optimizer was given.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or it does not fit.
    """
    folder, model = Path(folder), _bare(model)
    info, weights = checkpoint_info(folder), _weights(model)
    _check_same_config(folder, info["config"], _config_of(model))
    _check_same_tokenizer(folder, info["tokenizer"], tokenizer)
    saved = _read(folder, info, "model")
    _check_same_tensors(folder, saved, weights)
    progress, finish = info["progress"], []
    if optimizer is not None or scheduler is not None:
        training, finish = _read_training(folder, info, model, optimizer, scheduler)
        progress |= _part_of(training, "progress")

    # From here on nothing is left that could fail.
    for step in finish:
        step()
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])
    return progress


def checkpoint_info(folder):
    """What a checkpoint says of itself, without loading a tensor.

    Returns:
        A dictionary; of use are "model" (the name of the class), "config" (a
        dictionary, from which the model can be made, or None), "dtype", "tokenizer" (a
        hash, or None), "torch" and "progress".

    Raises:
        ValueError: there is no checkpoint in the folder, or it is damaged.
    """
    path = Path(folder) / _NOTES
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        checksum = notes.pop("sha256")
    except FileNotFoundError:
        raise ValueError(
            f"There is no checkpoint in {folder}: {_NOTES} is missing; give the folder "
            "that a training run wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        notes, checksum = {}, None
    if checksum != _checksum(notes):
        raise ValueError(
            f"The checkpoint in {folder} is damaged: {_NOTES} is not what was written; "
            f"{_AGAIN}."
        )
    if notes["format"] != _FORMAT:
        raise ValueError(
            f"The checkpoint in {folder} has format {notes['format']}, but this "
            f"version of gpt_train.py reads format {_FORMAT}; use the version that "
            "wrote it."
        )
    return _decode(notes)


def _bare(model):
    """The model inside `torch.compile` and distributed wrappers."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def _weights(model):
    """All tensors of a model by name; a tied one once, under its first name."""
    weights, places = {}, set()
    for name, tensor in model.state_dict().items():
        _check_has_data(name, tensor)
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in places:
            weights[_plain_name(name)] = tensor
        places.add(place)
    return weights


def _plain_name(name):
    """A weight's name without what a compiled part of the model adds to it."""
    return name.replace("_orig_mod.", "")


def _number_types(weights):
    names = {str(t.dtype).removeprefix("torch.") for t in weights.values()}
    return ", ".join(sorted(names))


def _config_of(model):
    """The model's config as plain values, None if it has none."""
    cfg = getattr(model, "cfg", None)
    return None if cfg is None else json.loads(json.dumps(_plain(cfg)))


def _plain(value):
    """A config's value as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)  # such as torch.float32


def _fingerprint(tokenizer):
    """A hash of all tokens in the order of their ids."""
    digest = hashlib.sha256()
    for token in _tokens(tokenizer):
        digest.update(len(token).to_bytes(8, "big") + token)
    return digest.hexdigest()


def _tokens(tokenizer):
    """The bytes of each token; chapter 2's tokenizers keep strings by id."""
    if hasattr(tokenizer, "decode_single_token_bytes"):
        for i in range(tokenizer.n_vocab):
            try:
                yield tokenizer.decode_single_token_bytes(i)
            except KeyError:  # an id without a token
                yield b""
    elif hasattr(tokenizer, "int_to_str"):
        for i, token in sorted(tokenizer.int_to_str.items()):
            yield f"{i} {token}".encode()
    else:
        raise ValueError(
            f"A {type(tokenizer).__name__} does not tell its tokens: give a tokenizer "
            "with n_vocab and decode_single_token_bytes(id), as tiktoken's, or none."
        )


# --- Optimizer, scheduler and random state -------------------------------------------


def _training_state(model, optimizer, scheduler, progress):
    """What training needs: tensors by name, and notes for `checkpoint.json`."""
    plain, tensors = {}, {}
    for name, value in (progress or {}).items():
        if isinstance(value, torch.Tensor):
            tensors[f"progress.{name}"] = value
        else:
            plain[name] = _encode(value, name)
    notes = {"optimizer": None, "scheduler": None, "progress": plain}
    if optimizer is None:
        if tensors or scheduler is not None:
            raise ValueError(
                "A scheduler, or a tensor in progress, is saved together with the "
                "optimizer: give that, too."
            )
        return {}, notes
    tensors |= {f"random.{name}": state for name, state in _random_states().items()}
    notes["optimizer"] = _optimizer_notes(model, optimizer, tensors)
    if scheduler is not None:
        state = _encode(scheduler.state_dict(), "scheduler")
        notes["scheduler"] = {"kind": type(scheduler).__name__, "state": state}
    return tensors, notes


def _optimizer_notes(model, optimizer, tensors):
    """Notes on an optimizer; the tensors of its state are added to `tensors`."""
    state, values = optimizer.state_dict(), {}
    for i, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{i}.{name}"] = value
            else:
                values[f"{i}.{name}"] = _encode(value, name)
    return {
        "kind": type(optimizer).__name__,
        "parameters": _parameter_names(model, optimizer),
        "groups": _encode(state["param_groups"], "param_groups"),
        "values": values,
    }


def _parameter_names(model, optimizer):
    """For each group of an optimizer, the names of its parameters in the model."""
    names = {id(p): _plain_name(name) for name, p in model.named_parameters()}
    return [
        [names.get(id(p), "(not in the model)") for p in group["params"]]
        for group in optimizer.param_groups
    ]


def _read_training(folder, info, model, optimizer, scheduler):
    """The tensors beside the weights, and calls that set the parts, all checked."""
    if optimizer is None:
        raise ValueError(
            "A scheduler is loaded together with its optimizer: give both."
        )
    _check_same_optimizer(folder, info["optimizer"], model, optimizer)
    _check_same_scheduler(folder, info["scheduler"], scheduler)
    training = _read(folder, info, "training")
    state = _optimizer_state(info["optimizer"], _part_of(training, "optimizer"))
    _check_state_fits(folder, state, optimizer)
    random_states = _part_of(training, "random")

    def set_optimizer():
        optimizer.load_state_dict(state)

    def set_the_rest():
        if scheduler is not None:
            scheduler.load_state_dict(info["scheduler"]["state"])
        _set_random_states(random_states)

    return training, [set_optimizer, set_the_rest]


def _part_of(tensors, part):
    """The tensors whose names start with a part's, by the rest of their names."""
    start = part + "."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def _optimizer_state(notes, tensors):
    """The dictionary that `optimizer.load_state_dict` takes."""
    state = {}
    for key, value in {**tensors, **notes["values"]}.items():
        i, _, name = key.partition(".")
        state.setdefault(int(i), {})[name] = value
    return {"state": state, "param_groups": notes["groups"]}


def _random_states():
    """The state of torch's own generator on each kind of device that is in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states):
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _encode(value, name):
    """A value as JSON knows it, so that `_decode` gives it back as it was."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_encode(entry, name) for entry in value]
    if isinstance(value, tuple):
        return {"_tuple": [_encode(entry, name) for entry in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {
                key: _encode(entry, f"{name}.{key}") for key, entry in value.items()
            }
        return {"_pairs": [[key, _encode(value[key], name)] for key in value]}
    raise ValueError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold without "
        "pickling it: use numbers, strings, lists and dictionaries."
    )


def _decode(value):
    if isinstance(value, list):
        return [_decode(entry) for entry in value]
    if isinstance(value, dict):
        if value.keys() == {"_tuple"}:
            return tuple(_decode(value["_tuple"]))
        if value.keys() == {"_pairs"}:
            return {key: _decode(entry) for key, entry in value["_pairs"]}
        return {key: _decode(entry) for key, entry in value.items()}
    return value


# --- Files of a checkpoint -----------------------------------------------------------


def _write(folder, name, tensors):
    """Write a file of tensors; return what the notes say about it."""
    path = folder / f"{name}.safetensors"
    save_file({key: _on_its_own(value) for key, value in tensors.items()}, path)
    _to_disk(path)
    return {"file": path.name, "sha256": _file_hash(path)}


def _on_its_own(tensor):
    """The tensor in memory of its own, as the format wants it."""
    tensor = tensor.detach().cpu().contiguous()
    own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone()


def _write_notes(folder, notes):
    """Replace `checkpoint.json` in one step: from here on the new checkpoint holds."""
    part = folder / f"{_NOTES}.part"
    text = json.dumps({**notes, "sha256": _checksum(notes)}, indent=1)
    part.write_text(text + "\n", encoding="utf-8")
    _to_disk(part)
    os.replace(part, folder / _NOTES)


def _checksum(notes):
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _file_hash(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path):
    """Wait until a file is on the disk, so that a power cut cannot empty it later."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _tensor_files(folder):
    """The files of this and unfinished checkpoints: {path: number}."""
    found = ((path, _TENSOR_FILE.fullmatch(path.name)) for path in folder.iterdir())
    return {path: int(match[1]) for path, match in found if match}


def _next_number(folder):
    return max(_tensor_files(folder).values(), default=0) + 1


def _remove_others(folder, notes):
    """Delete the tensors of older checkpoints and of savings that were killed."""
    kept = {entry["file"] for entry in notes["files"].values()}
    for path in _tensor_files(folder):
        if path.name not in kept:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _told_as_oserror(folder):
    try:
        yield
    except (OSError, SafetensorError) as problem:
        raise OSError(
            f"The checkpoint cannot be written to {folder} ({problem}): free some "
            "space, or choose another folder."
        ) from problem


def _read(folder, info, part):
    """The tensors of one file, compared with the checksum in the notes."""
    entry = info["files"][part]
    path = folder / entry["file"]
    try:
        whole = _file_hash(path) == entry["sha256"]
        # What is loaded is a view of the file at first, which may change or go.
        tensors = {k: v.clone() for k, v in load_file(path).items()} if whole else {}
    except FileNotFoundError:
        raise ValueError(
            f"The checkpoint in {folder} lacks its file {path.name}; {_AGAIN}."
        ) from None
    except (OSError, SafetensorError) as problem:
        raise ValueError(f"{path} cannot be read ({problem}); {_AGAIN}.") from problem
    if not whole:
        raise ValueError(
            f"The checkpoint in {folder} is damaged: {path.name} is not what was "
            f"written; {_AGAIN}."
        )
    return tensors


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
_WEIGHT_DECAY = 0.1
_SAVE_EVERY = 50


def main(arguments=None):
    """Train a small GPT on a text, with checkpoints; return the exit code.

    Args:
        arguments: the words after the program's name; None takes them from `sys.argv`.
    """
    options = _options(arguments)
    with contextlib.suppress(AttributeError):  # a terminal that knows few characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _train(options)
    except (ValueError, OSError, RuntimeError) as problem:
        print(f"gpt_train.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "gpt_train.py: stopped; the same command with --resume goes on from the "
            "last checkpoint, if there is one.",
            file=sys.stderr,
        )
        return 130


def _options(arguments):
    """The script's options, checked as far as that is possible without the text."""
    parser = argparse.ArgumentParser(
        prog="gpt_train.py",
        description="Train a GPT on a text and save it, with its losses. The last "
        "tenth of the text is kept to measure what the model makes of new text.",
    )
    add = parser.add_argument
    add("--data", type=Path, help="text file in UTF-8 (the short story of the course)")
    add("--preset", choices=_PRESETS, default=_environment("COURSE_PRESET", "quick"))
    add("--epochs", type=int, help="passes over the text (as the preset says)")
    add("--window", type=int, help="tokens that are read at once (as the preset says)")
    add("--seed", type=_seed, default=123, help="for weights and order (%(default)s)")
    add("--out", type=Path, help="folder for the model (runs/ch05-gpt)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args(arguments)
    if options.preset not in _PRESETS:  # from the environment it is not looked at
        parser.error(f"COURSE_PRESET is {options.preset!r}: set it to quick or full.")
    preset = _PRESETS[options.preset]
    for name in ("epochs", "window"):
        value = getattr(options, name)
        if value is None:
            setattr(options, name, preset[name])
        elif value < 1:
            parser.error(f"--{name} must be 1 or more.")
    if options.window > preset["cfg"].context_length:
        parser.error(f"--window is at most {preset['cfg'].context_length}.")
    return options


def _seed(text):
    """A seed from the command line; PyTorch keeps 64 bits of it."""
    if not -(2**63) < int(text) < 2**63:
        raise argparse.ArgumentTypeError("has too many digits: give at most 18")
    return int(text)


_seed.__name__ = "int"  # as argparse calls it where no number is given


def _environment(variable, default):
    """What the reader chose for the whole course, as `course.settings` reads it."""
    return os.environ.get(variable, "").strip().lower() or default


def _device():
    """The reader's device: the CPU unless `COURSE_DEVICE` says otherwise."""
    name = _environment("COURSE_DEVICE", "cpu")
    if name == "best":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    return torch.device(name)


def _train(options):
    """Everything after the options are read; return the exit code."""
    preset = _PRESETS[options.preset]
    out = _runs_folder() / "ch05-gpt" if options.out is None else options.out
    text, name = _read_text(options.data)
    tokenizer, device = _gpt2_tokenizer(), _device()
    torch.manual_seed(options.seed)
    model = GPTModel(preset["cfg"]).to(device)
    loaders = _loaders(text, name, tokenizer, options)
    # All of an update in one pass over the weights, which is faster.
    optimizer = torch.optim.AdamW(
        model.parameters(),
        preset["learning_rate"],
        weight_decay=_WEIGHT_DECAY,
        fused=True,
    )
    num_steps = len(loaders[0]) * options.epochs
    print(f"{name}: {num_steps} steps, {count_parameters(model):,} parameters.")
    print(f"Chance alone has a loss of {uniform_loss(tokenizer.n_vocab):.3f}.")

    start = time.perf_counter()
    with _bar(optimizer, num_steps):
        history = train_model_simple(
            model,
            *loaders,
            optimizer,
            device,
            options.epochs,
            preset["eval_freq"],
            eval_iter=preset["eval_iter"],
            start_context=" ".join(text.split()[:4])[:40],
            tokenizer=tokenizer,
            checkpoint=out,
            checkpoint_freq=_SAVE_EVERY,
            resume=options.resume,
        )
    steps = [i * preset["eval_freq"] for i in range(len(history[0]))]
    _write_losses(out / "losses.csv", steps, *history)
    _report(out, steps, *history, time.perf_counter() - start)
    return 0


def _runs_folder():
    """Where the course keeps what its scripts make; elsewhere the folder runs."""
    try:
        from course.paths import runs_dir
    except ImportError:
        return Path(os.environ.get("COURSE_RUNS") or "runs")
    return runs_dir()


def _read_text(path):
    """The text to train on, and what to call it."""
    if path is None:
        try:
            from course import CourseError
            from course.assets import fetch
        except ImportError:
            raise ValueError(
                "The course's short story is not here: give a text with --data FILE."
            ) from None
        try:
            path = fetch("short-story")
        except CourseError as problem:
            raise ValueError(str(problem)) from None
    try:
        return path.read_text(encoding="utf-8-sig"), path.name
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be read ({problem.strerror}): give a text with --data."
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8: save it as such.") from None


def _gpt2_tokenizer():
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, RuntimeError) as problem:
        raise ValueError(
            f"GPT-2's vocabulary cannot be had ({problem}): run the set-up of the "
            "course once, or connect to the network."
        ) from None


def _loaders(text, name, tokenizer, options):
    """Shuffled windows of the first nine tenths, and the windows of the rest."""
    parts = split_text(text, train_ratio=0.9)
    length = min(len(encode_text(part, tokenizer)) for part in parts)
    if length <= options.window:
        raise ValueError(
            f"{name} is too short: a tenth of it, kept for validation, has {length} "
            f"tokens, but one window with its target needs {options.window + 1}; use a "
            "longer text or a smaller --window."
        )
    shared = {
        "batch_size": _PRESETS[options.preset]["batch_size"],
        "max_length": options.window,
        "stride": options.window,
        "tokenizer": tokenizer,
    }
    training = create_dataloader_v1(parts[0], seed=options.seed, **shared)
    validation = create_dataloader_v1(
        parts[1], shuffle=False, drop_last=False, **shared
    )
    return training, validation


@contextlib.contextmanager
def _bar(optimizer, num_steps):
    """A bar that follows the optimizer; lines are printed above it."""
    # It would load a progress bar for notebooks, which warns where there is none.
    from tqdm.contrib import DummyTqdmFile

    with tqdm(total=num_steps, unit="step", disable=None) as bar:
        hook = optimizer.register_step_post_hook(lambda *_: bar.update())
        out = sys.stdout if bar.disable else DummyTqdmFile(sys.stdout)
        try:
            with contextlib.redirect_stdout(out):
                yield
        finally:
            hook.remove()


def _write_losses(path, steps, train_losses, val_losses, tokens_seen):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "tokens", "train_loss", "val_loss"])
        rows = zip(steps, tokens_seen, train_losses, val_losses)
        for step, tokens, train_loss, val_loss in rows:
            writer.writerow([step, tokens, f"{train_loss:.4f}", f"{val_loss:.4f}"])


def _report(out, steps, train_losses, val_losses, tokens_seen, seconds):
    """Say what came out and what to do with it."""
    best = min(range(len(val_losses)), key=val_losses.__getitem__)
    print(
        f"{seconds:.0f} s. Validation was best at step {steps[best]} "
        f"({val_losses[best]:.3f}, after {tokens_seen[best]:,} tokens); "
        f"at the end training is at {train_losses[-1]:.3f}, validation at "
        f"{val_losses[-1]:.3f}."
    )
    print(f"Model and losses are in {out}. Next: gpt_generate.py --model {out}")


# --- What callers get wrong ----------------------------------------------------------


def _check_at_least_one(**numbers):
    """Raise unless each of the numbers that is given is a whole one from 1 up."""
    for name, value in numbers.items():
        if value is None:
            continue
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < 1:
            raise ValueError(f"{name} is {value!r}: give a whole number from 1 up.")


def _check_has_data(name, tensor):
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"{name} is a {type(tensor).__name__} and no tensor: a checkpoint holds a "
            "model as it was trained, so save it before it is quantised."
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name} is on the meta device and has no data: make the model on a real "
            "device first."
        )


def _check_one_sequence(token_ids):
    if token_ids.ndim > 2 or (token_ids.ndim == 2 and len(token_ids) != 1):
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}: give the ids of one "
            "sequence, such as token_ids[0]."
        )


def _check_targets(input_batch, target_batch):
    if input_batch.shape != target_batch.shape:
        raise ValueError(
            f"The inputs have shape {tuple(input_batch.shape)}, but the targets "
            f"{tuple(target_batch.shape)}: give one target for each input token."
        )
    if count_targets((target_batch,)) == 0:
        raise ValueError(
            f"No target of this batch counts: all {target_batch.numel()} of them are "
            f"{IGNORE_INDEX}, so there is no mean loss; leave such batches out."
        )


def _check_any_target(total_targets):
    if total_targets == 0:
        raise ValueError(
            "The loader gave no target that counts, so there is no mean loss: give it "
            "more text, a smaller batch, or drop_last=False."
        )


def _check_bigram(train_ids, eval_ids, vocab_size, add, prior):
    _check_at_least_one(vocab_size=vocab_size)
    for name, ids in (("train_ids", train_ids), ("eval_ids", eval_ids)):
        if ids.ndim != 1 or len(ids) < 2:
            raise ValueError(
                f"{name} has shape {tuple(ids.shape)}: give the ids of one text, at "
                "least two."
            )
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} holds the id {low if low < 0 else high}, but a vocabulary of "
                f"{vocab_size} has the ids 0 to {vocab_size - 1}."
            )
    for name, value in (("add", add), ("prior", prior)):
        if not value > 0:
            raise ValueError(f"{name} is {value!r}: give a number above 0.")


def _check_plan(num_epochs, eval_freq, checkpoint, checkpoint_freq, resume):
    _check_at_least_one(
        num_epochs=num_epochs, eval_freq=eval_freq, checkpoint_freq=checkpoint_freq
    )
    if checkpoint is None and (checkpoint_freq is not None or resume):
        raise ValueError(
            "There is no folder for checkpoints: give checkpoint=FOLDER, or leave out "
            "checkpoint_freq and resume."
        )


def _check_same_loader(info, loader, num_generators):
    progress = info["progress"]
    if "num_generators" not in progress:
        raise ValueError(
            "This checkpoint was not written by a training run, so there is nothing to "
            "go on with: load it with load_checkpoint, and train without resume=True."
        )
    then, now = progress["num_batches"], _length(loader)
    if then is not None and then != now:
        raise ValueError(
            f"The checkpoint was written with {then} batches in an epoch, but "
            f"train_loader has {now}: give the same data and the same batch size."
        )
    if progress["num_generators"] not in (0, num_generators):
        raise ValueError(
            "The checkpoint was written with a train_loader that shuffles in another "
            "way: make it with a seed, or without one, as before."
        )


def _check_same_config(folder, saved, config):
    if saved is None or config is None or saved == config:
        return
    names = [*saved, *(name for name in config if name not in saved)]
    for name in names:
        there, here = saved.get(name, "no value"), config.get(name, "no value")
        if there != here:
            raise ValueError(
                f"The checkpoint in {folder} has {name}={there}, but the model has "
                f"{here}: make the model from checkpoint_info(folder)['config']."
            )


def _check_same_tokenizer(folder, saved, tokenizer):
    if saved is None or tokenizer is None or saved == _fingerprint(tokenizer):
        return
    raise ValueError(
        f"The checkpoint in {folder} was made with another tokenizer: the same id "
        "would mean another token; give the tokenizer that the model was trained with."
    )


def _check_same_tensors(folder, saved, weights):
    """Raise unless both have the same names, shapes and types; name what differs."""
    problems = []
    for verb, names in (
        ("lacks", [name for name in weights if name not in saved]),
        ("has, beyond the model,", [name for name in saved if name not in weights]),
    ):
        if names:
            problems.append(f"it {verb} {_some(names)}")
    both = [(name, saved[name], weights[name]) for name in weights if name in saved]
    for wanted in ("shape", "dtype"):
        differ = [
            f"{name} ({_words(there, wanted)} there, {_words(here, wanted)} here)"
            for name, there, here in both
            if getattr(there, wanted) != getattr(here, wanted)
        ]
        if differ:
            problems.append(f"the {wanted} differs for {_some(differ)}")
    if problems:
        raise ValueError(
            f"The checkpoint in {folder} does not fit the model: {'; '.join(problems)}."
        )


def _some(names):
    """The first three of a list of names, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _words(tensor, wanted):
    if wanted == "dtype":
        return str(tensor.dtype).removeprefix("torch.")
    return str(tuple(tensor.shape))


def _check_same_optimizer(folder, saved, model, optimizer):
    if saved is None:
        raise ValueError(
            f"The checkpoint in {folder} holds no optimizer, so training cannot go on "
            "from it: load the model alone."
        )
    kind = type(optimizer).__name__
    if saved["kind"] != kind:
        raise ValueError(
            f"The checkpoint in {folder} was made with the optimizer {saved['kind']}, "
            f"but this one is {kind}: make the same."
        )
    names = _parameter_names(model, optimizer)
    if saved["parameters"] != names:
        there, here = (sum(map(len, groups)) for groups in (saved["parameters"], names))
        raise ValueError(
            f"The optimizer of the checkpoint in {folder} has other parameters, other "
            f"groups or another order of them ({there} in {len(saved['parameters'])} "
            f"groups, here {here} in {len(names)}): freeze and group as before."
        )


def _check_same_scheduler(folder, saved, scheduler):
    if scheduler is None:
        return
    there, here = (saved or {}).get("kind", "none"), type(scheduler).__name__
    if there == here and _alike(saved["state"], scheduler.state_dict()):
        return
    if there == here:
        there, here = f"{there} of other parts", "made of these"
    raise ValueError(
        f"The checkpoint in {folder} was made with the scheduler {there}, but this one "
        f"is {here}: make the same."
    )


def _alike(saved, state):
    """Whether two scheduler states have the same entries, nested ones included."""
    if isinstance(saved, dict) and isinstance(state, dict):
        entries = all(isinstance(name, str) for name in {*saved, *state})
        if not entries:  # such as milestones by step
            return True
        return saved.keys() == state.keys() and all(
            _alike(saved[name], state[name]) for name in saved
        )
    if isinstance(saved, (list, tuple)) and isinstance(state, (list, tuple)):
        return len(saved) == len(state) and all(map(_alike, saved, state))
    return isinstance(saved, (dict, list, tuple)) == isinstance(
        state, (dict, list, tuple)
    )


def _check_state_fits(folder, state, optimizer):
    """Raise unless each tensor of the state can belong to its parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, entries in state["state"].items():
        for name, value in entries.items():
            if not isinstance(value, torch.Tensor):
                continue
            try:
                shape = parameters[i].shape
                fits = torch.broadcast_shapes(value.shape, shape) == shape
            except (IndexError, RuntimeError):
                fits = False
            if not fits:
                raise ValueError(
                    f"The checkpoint in {folder} does not fit the optimizer: {name} of "
                    f"parameter {i} has shape {tuple(value.shape)}; {_AGAIN}."
                )


if __name__ == "__main__":
    sys.exit(main())
