"""Around the training loop: save on the way, be killed, go on (chapter 5, 5.4).

Support: nothing here is taught. `train_model_simple` knows nothing of checkpoints;
`resumable` makes a function of it that does, with the same arguments.

>>> def my_loop(model, train_loader, val_loader, optimizer, after_step=None, start=0):
...     "Trains as it is written here, with or without checkpoints."
>>> resumable(my_loop, "my-folder", every=50, resume=True).__doc__
'Trains as it is written here, with or without checkpoints.'
"""

import contextlib
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints import (
    CHECKPOINT,
    Folder,
    check_can_save,
    check_parts,
    checkpoint_info,
    load_checkpoint,
    save_checkpoint,
)


def resumable(
    train: Callable,
    folder: Folder,
    *,
    every: int | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Callable:
    """The same training loop, which saves checkpoints and can go on from one.

    Called again with `resume=True`, with parts made in the same way, it goes on where
    the last checkpoint was written and ends with the same weights as a run that was
    never interrupted, to the last bit on the same machine.

    Args:
        train: `train_model_simple`, or a function with its arguments.
        folder: for `save_checkpoint`.
        every: updates between two checkpoints; None saves at the end only.
        resume: go on from the checkpoint, if there is one.
        settings: what else must be as before for a run to go on, by name: a seed, a
            learning rate. The training data and the batch size are compared anyway.

    Returns:
        A function with the arguments of `train`. An `after_epoch` that has the methods
        `state_dict` and `load_state_dict`, as appendix D's `EarlyStopping`, is saved
        with the rest; if its `ended` is true, no epoch follows. `ValueError` also as
        `load_checkpoint`, where the training loader or a setting is not as before, and
        before the first step for what `save_checkpoint` could not save. The order of
        that loader may depend on its own or torch's random generator, and on nothing
        else that the run itself changes.
    """

    @functools.wraps(train)
    def wrapped(model, train_loader, val_loader, optimizer, *plan, **options):
        arguments = inspect.signature(train).bind(
            model, train_loader, val_loader, optimizer, *plan, **options
        )
        parts = [arguments.arguments.get(x) for x in ("scheduler", "tokenizer")]
        run = _Run(folder, model, train_loader, optimizer, *parts)
        run.every, run.also = every, options.pop("after_step", None)
        run.num_epochs = arguments.arguments.get("num_epochs", math.inf)
        run.hook = arguments.arguments.get("after_epoch")
        run.settings, run.contents = dict(settings or {}), _contents(train_loader)
        if resume:
            run.resume()
        check_can_save(folder, model, optimizer, parts[0])
        train(
            model,
            run,
            val_loader,
            optimizer,
            *plan,
            after_step=run.after_step,
            start=(run.first_epoch(), run.step, run.tokens_seen),
            **options,
        )
        run.save()
        return run.losses

    return wrapped


class _Run:
    """The training loader of a run that is saved on the way and can go on.

    In training it yields the batches that are left of the epoch; where no gradients are
    taken, as in an evaluation, it is the loader as it was. The order of an epoch
    follows from the random states at its start. So those are kept, and a run that goes
    on in the middle of an epoch starts the epoch from them, passes over the batches it
    has seen, and then sets the states to what they were at the checkpoint.
    """

    def __init__(self, folder, model, loader, optimizer, scheduler, tokenizer):
        self.folder, self.loader, self.tokenizer = Path(folder), loader, tokenizer
        self.parts = (model, optimizer, scheduler)
        self.every: int | None = None
        self.also: Callable | None = None
        self.hook: Any = None  # after each epoch
        self.num_epochs = math.inf
        self.settings, self.contents = {}, {}  # what must be as it was
        self.epoch = self.batch = self.step = self.tokens_seen = 0
        self.losses = self.losses_before = ([], [], [])
        self.generators = _generators(loader)
        self.now = self.epoch_start = _states(self.generators)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return self._batches_left() if torch.is_grad_enabled() else iter(self.loader)

    def _batches_left(self):
        seen = self.batch
        if seen == 0:
            self.epoch_start = _states(self.generators)
        _set_states(self.generators, self.epoch_start)
        batches = iter(self.loader)
        for _ in range(seen):
            next(batches)
        if seen > 0:
            _set_states(self.generators, self.now)
        for batch in batches:
            self.batch += 1
            yield batch
        self.epoch, self.batch = self.epoch + 1, 0

    def after_step(self, step, tokens_seen, losses):
        """The hook of the loop: note where the run stands; save if it is time."""
        self.step, self.tokens_seen = step, tokens_seen
        pairs = zip(self.losses_before, losses, strict=True)
        self.losses = tuple(before + since for before, since in pairs)
        if self.every is not None and step % self.every == 0:
            self.save()
        if self.also is not None:
            self.also(step, tokens_seen, self.losses)

    def save(self):
        progress = {name: getattr(self, name) for name in _NUMBERS}
        progress |= dict(zip(_CURVES, self.losses, strict=True))
        progress["num_batches"] = _length(self.loader)
        progress["settings"], progress["contents"] = self.settings, self.contents
        progress["now"] = _states(self.generators)
        progress["epoch_start"] = self.epoch_start
        if hasattr(self.hook, "state_dict"):
            progress["after_epoch"] = self.hook.state_dict()
        save_checkpoint(
            self.folder, *self.parts, tokenizer=self.tokenizer, progress=progress
        )

    def resume(self):
        """Take everything from the checkpoint; without one the run starts afresh."""
        if not (self.folder / CHECKPOINT).exists():
            print(f"There is no checkpoint in {self.folder} yet: starting afresh.")
            return
        info = checkpoint_info(self.folder)
        self._compare(info["progress"])
        check_parts(self.folder, info["parts"], *self.parts, tokenizer=self.tokenizer)
        self._same("contents", info["progress"])
        progress = load_checkpoint(self.folder, *self.parts, tokenizer=self.tokenizer)
        for name in (*_NUMBERS, "now", "epoch_start"):
            setattr(self, name, progress[name])
        self.losses = self.losses_before = tuple(progress[name] for name in _CURVES)
        _set_states(self.generators, self.now)
        if "after_epoch" in progress and hasattr(self.hook, "load_state_dict"):
            self.hook.load_state_dict(progress["after_epoch"])
        if self.first_epoch() > self.epoch:
            print(f"The run ended after {self.epoch} epochs, {self.step} steps.")
        elif self.epoch < self.num_epochs:
            print(f"Going on after {self.step} steps, in epoch {self.epoch + 1}.")
        else:
            print(f"All {self.epoch} epochs are done, {self.step} steps in all.")

    def first_epoch(self):
        """The epoch to go on with: none, if the hook has ended the run."""
        return self.num_epochs if getattr(self.hook, "ended", False) else self.epoch

    def _compare(self, progress):
        if "num_batches" not in progress:
            raise ValueError(
                "This checkpoint was not written by a training run, so there is "
                "nothing to go on with: load it with load_checkpoint, and train "
                "without resume=True."
            )
        self._same("settings", progress)
        then, now = progress["num_batches"], _length(self.loader)
        if then != now:
            raise ValueError(
                f"The checkpoint was written with {then} batches in an epoch, but "
                f"train_loader has {now}: give the same data and the same batch size."
            )
        if len(progress["now"]) != len(self.generators):
            raise ValueError(
                "The checkpoint was written with a train_loader that shuffles in "
                "another way: make it with a seed, or without one, as before."
            )

    def _same(self, kind, progress):
        then, now = progress.get(kind, {}), getattr(self, kind)
        differ = [
            f"{name} ({then[name]} there, {now[name]} here)"
            for name in then
            if name in now and then[name] != now[name]
        ]
        if differ:
            raise ValueError(
                f"The run in {self.folder} was made with other settings: "
                f"{', '.join(differ)}. Give the same to go on, or choose another "
                "folder."
            )


class BestModel:
    """Measures a model after each epoch, and keeps the best: for `after_epoch`.

    The last model is rarely the best on text that it has not seen. So the whole
    validation part is measured, and the model with the lowest loss is saved.

    Args:
        measure: gives the validation loss of the model as it is.
        save: saves the model as it is, in `folder`.
        folder: for the best model; `validation.json` beside it says how good it is.
        resume: whether what is in the folder belongs to the same run.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        save: Callable[[Path], object],
        folder: Path,
        resume: bool = False,
    ):
        self.measure, self.save, self.folder = measure, save, folder
        self.losses: list[float] = []
        self.lowest = math.inf
        self.note = folder / "validation.json"
        if resume and self.note.exists():
            found = json.loads(self.note.read_text(encoding="utf-8"))
            self.lowest = found["validation_loss"]

    def __call__(self) -> None:
        loss = self.measure()
        self.losses.append(loss)
        best = loss < self.lowest
        if best:
            self.lowest = loss
            self.save(self.folder)
            text = json.dumps({"validation_loss": loss}) + "\n"
            self.note.write_text(text, encoding="utf-8")
        print(
            f"whole validation part: {loss:.3f}{', the best so far' * best}", flush=True
        )

    def at_the_end(self) -> float:
        """The loss of the model as it is, measured unless its last epoch was."""
        return self.losses[-1] if self.losses else self.measure()

    def after(self, num_steps: int) -> Callable[..., None]:
        """A hook for `after_step` where `after_epoch` is taken; an epoch's steps."""
        return lambda step, *_: self() if step % num_steps == 0 else None

    def say(self) -> None:
        """Say where the best model is, if it is not the last."""
        if self.lowest < self.at_the_end():
            print(
                f"Validation was best after an earlier epoch, {self.lowest:.3f}: that "
                f"model is in {self.folder}."
            )


_NUMBERS = ("epoch", "batch", "step", "tokens_seen")
_CURVES = ("train_losses", "val_losses", "track_tokens_seen")


@contextlib.contextmanager
def keep_random_states(loader: Any = None) -> Iterator[None]:
    """Give torch's and the loader's random generators back as they were.

    Reading a loader draws numbers for its order. Without this, whoever looks at a loss
    on the way would train on other batches afterwards.
    """
    generators = _generators(loader)
    states = _states(generators)
    try:
        yield
    finally:
        _set_states(generators, states)


def _generators(loader):
    """The random generators that decide about the order of a loader, torch's first."""
    loader = loader.loader if isinstance(loader, _Run) else loader
    sampler = getattr(loader, "sampler", None)
    own = (getattr(loader, "generator", None), getattr(sampler, "generator", None))
    found = {id(generator): generator for generator in own if generator is not None}
    return [torch.default_generator, *found.values()]


def _states(generators):
    return [generator.get_state() for generator in generators]


def _set_states(generators, states):
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _contents(loader):
    """What tells a loader from others of the same length: {name: value}.

    Nothing is said of data that cannot be looked up, or are drawn anew at each look.
    """
    data = getattr(loader, "dataset", loader)
    known = {}
    if getattr(loader, "batch_size", None) is not None:
        known["the batch size"] = loader.batch_size
    if not hasattr(data, "__getitem__") or _length(data) is None:
        return known
    with keep_random_states():
        torch.default_generator.manual_seed(0)
        twice = [_hash_of(data[i] for i in range(min(1, len(data)))) for _ in "12"]
        if twice[0] == twice[1]:
            known["the training data"] = _hash_of(data[i] for i in range(len(data)))
    return known


def _hash_of(items):
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            numbers = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(numbers.view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            add(list(value.items()))
        elif isinstance(value, (list, tuple)):
            digest.update(f"{len(value)}:".encode())
            for part in value:
                add(part)
        else:  # numbers and texts as they are, others by their class
            plain = isinstance(value, (str, bytes, int, float, type(None)))
            digest.update(repr(value if plain else type(value)).encode())

    for item in items:
        add(item)
    return digest.hexdigest()[:12]


def _length(loader):
    """How many batches a loader has, None if it does not say."""
    return len(loader) if hasattr(loader, "__len__") else None
