"""Checkpoints: all of a training run in one file (chapter 5, section 5.4).

Support: nothing here is taught. PyTorch's own engine does the work: the names of
parameters, also of compiled models and in the optimizer's state, come from
`torch.distributed.checkpoint.state_dict`; the file is written by `torch.save` and read
with `weights_only=True`, which runs no code. Around it: nothing is half written or half
loaded, and what is damaged or does not fit is named.

* `save_checkpoint`, `load_checkpoint`, `checkpoint_info`;
* `save_learned`, `read_learned`, `put_learned`: only the part of a model that was
  trained, in one safetensors file.

>>> from tempfile import TemporaryDirectory
>>> model, again = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
>>> with TemporaryDirectory() as folder:
...     save_checkpoint(folder, model, progress={"epoch": 3})
...     load_checkpoint(folder, again)
{'epoch': 3}
>>> torch.equal(again.weight, model.weight)
True
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.serialization import get_unsafe_globals_in_checkpoint

Folder = str | os.PathLike
CHECKPOINT = "checkpoint.pt"
_FORMAT = 2  # 1 was a folder of safetensors files


def save_checkpoint(
    folder: Folder,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    *,
    tokenizer: Any = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Save a model, and what it takes to go on training it, in a folder.

    The file, `checkpoint.pt`, holds one dictionary and ends with its SHA-256. It gets
    its name when it is whole: a program killed at any moment leaves the new checkpoint
    or the old one. Other files in the folder stay.

    Args:
        folder: made if it is missing.
        model: compiled and distributed models are saved as the model inside.
        optimizer: over the model's parameters.
        scheduler: a learning-rate scheduler of that optimizer.
        tokenizer: remembered by a hash; one that has a method `to_json`, as in `bpe`,
            is saved whole.
        progress: numbers, strings, tensors, lists and dictionaries by name.

    Raises:
        ValueError: something could be read again only by running code, a tensor has no
            data, or a number is infinite or NaN; the old checkpoint is intact.
        OSError: the folder cannot be written; the old checkpoint is intact.
    """
    model = _inside(model)
    weights = _weights(model)
    _check_numbers(folder, dict(model.named_parameters()))
    content = {
        "format": _FORMAT,
        "model": type(model).__name__,
        "config": _config_of(model),
        "torch": str(torch.__version__),
        "progress": dict(progress or {}),
        "parts": _parts(model, optimizer, scheduler, tokenizer),
        "tokenizer": tokenizer.to_json() if hasattr(tokenizer, "to_json") else None,
        "weights": weights,
        "optimizer": optimizer and _state_by_name(model, optimizer),
        "scheduler": scheduler and scheduler.state_dict(),
        "random": _random_states(weights),
    }
    _write(folder, content, keep=True)


def check_can_save(
    folder: Folder,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
) -> None:
    """Raise as `save_checkpoint` would, but before the work: nothing is kept.

    The folder is tried, and everything but the weights, which are most of a checkpoint
    and always can be saved.
    """
    model = _inside(model)
    _weights(model)
    content = {
        "optimizer": optimizer and _state_by_name(model, optimizer),
        "scheduler": scheduler and scheduler.state_dict(),
    }
    _write(folder, content, keep=False)


def _write(folder, content, keep):
    """Write a dictionary and its hash; give it its name when it is whole, if wanted."""
    unfinished = Path(folder) / f"{CHECKPOINT}.part"
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, unfinished)
        with unfinished.open("rb+") as file:
            file.write(hashlib.file_digest(file, "sha256").hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        needs_code = get_unsafe_globals_in_checkpoint(unfinished)
        if not keep:
            unfinished.unlink()
        elif not needs_code:
            os.replace(unfinished, unfinished.with_name(CHECKPOINT))
    except (OSError, RuntimeError) as problem:
        raise OSError(
            f"The checkpoint cannot be written to {folder} ({problem}): free some "
            "space, or choose another folder."
        ) from problem
    if needs_code:
        raise ValueError(
            "A checkpoint holds numbers, strings, tensors, lists and dictionaries, and "
            f"not what is read by running code: {needs_code[0]}."
        )


def load_checkpoint(
    folder: Folder,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    *,
    tokenizer: Any = None,
) -> dict[str, Any]:
    """Load what `save_checkpoint` saved, all of it or nothing; return the progress.

    Everything is read and compared first. If anything is damaged or differs, the error
    says so, and model, optimizer, scheduler and random state are as they were.

    Args:
        folder: where the checkpoint is.
        model: of the same config, shapes and dtypes; may be compiled or distributed,
            whether or not the saved one was.
        optimizer: to go on training: gets the saved state, and torch's random state is
            set. None loads the model only.
        scheduler: gets the saved state.
        tokenizer: compared with the saved hash, if there is one.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or it does not fit.
    """
    from torch.distributed.checkpoint import state_dict as engine

    model = _inside(model)
    saved = _read(Path(folder) / CHECKPOINT)
    _compare(folder, saved["parts"], _parts(model, optimizer, scheduler, tokenizer))
    if optimizer is not None:
        _state_by_name(model, optimizer)
        engine.set_optimizer_state_dict(model, optimizer, saved["optimizer"])
        _set_random_states(saved["random"])
    if scheduler is not None:
        scheduler.load_state_dict(saved["scheduler"])
    engine.set_model_state_dict(model, saved["weights"])
    return saved["progress"]


def check_parts(
    folder: Folder,
    parts: Mapping[str, Any],
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    *,
    tokenizer: Any = None,
) -> None:
    """Raise as `load_checkpoint`; `parts` as in the info, the model may be left out."""
    _compare(folder, parts, _parts(_inside(model), optimizer, scheduler, tokenizer))


def checkpoint_info(folder: Folder) -> dict[str, Any]:
    """What a checkpoint says of itself: everything in it but the tensors.

    Returns:
        A dictionary; of use are "model" (the name of the class), "config" (a
        dictionary, from which the model can be made, or None), "torch" (the version),
        "parts" (what the model to load must agree with), "tokenizer" (for
        `bpe.tokenizer_from_json`; None, or missing, if it has another home) and
        "progress".

    Raises:
        ValueError: there is no checkpoint in the folder, or it is damaged.
    """
    saved = _read(Path(folder) / CHECKPOINT)
    for name in ("weights", "optimizer", "scheduler", "random"):
        del saved[name]
    return saved


def _read(path):
    """The dictionary in a file, compared with the hash at its end."""
    try:
        data = memoryview(path.read_bytes())
        whole = hashlib.sha256(data[:-64]).hexdigest().encode() == data[-64:]
        del data
        saved = torch.load(path, weights_only=True, map_location="cpu") if whole else {}
    except FileNotFoundError:
        raise ValueError(
            f"There is no checkpoint in {path.parent}: {path.name} is missing; give "
            "the folder that a training run wrote."
        ) from None
    except Exception as problem:  # whatever PyTorch's reader makes of it
        raise ValueError(
            f"{path} cannot be read, or not without running code "
            f"({type(problem).__name__}); use another checkpoint, or train again."
        ) from None
    if not whole:
        raise ValueError(
            f"The checkpoint in {path.parent} is damaged: {path.name} is not what was "
            "written; use another checkpoint, or train again."
        )
    if saved["format"] != _FORMAT:
        raise ValueError(
            f"{path} has format {saved['format']}, but this version of the course "
            f"reads format {_FORMAT}: use the version that wrote it."
        )
    return saved


# --- What a checkpoint holds ---------------------------------------------------------


def _inside(model):
    """The model inside `torch.compile` and distributed wrappers."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, wrappers) else model._orig_mod
    return model


def _weights(model) -> dict[str, Any]:
    """All tensors of a model by name, as the engine names them."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    weights = get_model_state_dict(model)
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            raise ValueError(
                f"{name} is not a tensor with data: a checkpoint holds a model as it "
                "was trained, on a real device and before it is quantised."
            )
    return weights


def _state_by_name(model, optimizer):
    """The optimizer's state by the names of the parameters."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    # For an optimizer without any state the engine would take a step, to have one made.
    # To look up a state makes it, if only an empty one.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]
    return get_optimizer_state_dict(model, optimizer)


def _random_states(weights):
    """The state of torch's own generator on the CPU and on the model's device."""
    states = {"cpu": torch.get_rng_state()}
    for kind in {tensor.device.type for tensor in weights.values()} - {"cpu"}:
        states[kind] = torch.get_device_module(kind).get_rng_state()
    return states


def _set_random_states(states):
    torch.set_rng_state(states.pop("cpu"))
    for kind, state in states.items():
        module = torch.get_device_module(kind)
        if module.is_available():
            module.set_rng_state(state)


def _config_of(model):
    """The model's config as plain values, None if it has none."""

    def plain(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return dict(value) if isinstance(value, Mapping) else str(value)

    return json.loads(json.dumps(getattr(model, "cfg", None), default=plain))


def _parts(model, optimizer, scheduler, tokenizer):
    """What must agree for a checkpoint to fit, in words: {part: {name: value}}."""
    parts = {}
    if tokenizer is not None:  # first, since sizes of the model follow from it
        parts["tokenizer"] = _fingerprint(tokenizer)
    if model is None:
        return parts
    parts["config"] = _config_of(model) or {}
    parts["model"] = {
        name: f"{_name_of(tensor.dtype)} {tuple(tensor.shape)}"
        for name, tensor in _weights(model).items()
    }
    if optimizer is not None:
        parts["optimizer"] = {"its kind": type(optimizer).__name__}
        names = {id(p): _plain(name) for name, p in model.named_parameters()}
        for i, group in enumerate(optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                name = names.get(id(parameter), "not in the model")
                parts["optimizer"][name] = f"group {i}, place {j}"
    if scheduler is not None:
        parts["scheduler"] = {"its kind": type(scheduler).__name__}
        for name, value in scheduler.state_dict().items():
            parts["scheduler"][name] = str(_form(value))
    return parts


def _name_of(dtype):
    return str(dtype).removeprefix("torch.")


def check_class(folder: Folder, info: Mapping[str, Any], kind: type) -> None:
    """Raise unless a checkpoint is of a class of ours, with the config to make it."""
    if info["model"] != kind.__name__ or info["config"] is None:
        raise ValueError(
            f"{folder} holds a {info['model']}, not a {kind.__name__} of the course: "
            "make it yourself, and call load_checkpoint(folder, model)."
        )


def saved_dtype(info: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the weights in a checkpoint, by its `checkpoint_info`."""
    return getattr(torch, next(iter(info["parts"]["model"].values())).split()[0])


def _plain(name):
    """A parameter's name without what a compiled part of the model adds to it."""
    return name.replace("_orig_mod.", "")


def _form(value):
    """The names and lengths in a state, without its numbers."""
    if isinstance(value, dict):
        return {name: _form(entry) for name, entry in value.items()}
    return [*map(_form, value)] if isinstance(value, (list, tuple)) else "a value"


def _fingerprint(tokenizer):
    """A hash by the name of what it is of; equal tokens can come from other merges."""
    if hasattr(tokenizer, "to_json"):
        whole = tokenizer.to_json().encode()
        return {"the hash of all of it": hashlib.sha256(whole).hexdigest()}
    digest = hashlib.sha256()
    for token in _tokens(tokenizer):
        digest.update(len(token).to_bytes(8, "big") + token)
    # The same tokens with another way of splitting are another tokenizer.
    digest.update(getattr(tokenizer, "pattern", "").encode())
    return {"the hash of all tokens": digest.hexdigest()}


def _tokens(tokenizer) -> Iterator[bytes]:
    """The bytes of each token; chapter 2's tokenizers keep strings by id."""
    if hasattr(tokenizer, "int_to_str"):
        for i, token in sorted(tokenizer.int_to_str.items()):
            yield f"{i} {token}".encode()
        return
    for i in range(tokenizer.n_vocab):
        try:
            yield tokenizer.decode_single_token_bytes(i)
        except KeyError:  # an id without a token
            yield b""


def _compare(folder, there, here):
    """Raise unless all parts agree that are wanted here; name what differs."""
    for part, wanted in here.items():
        saved = there.get(part)
        if not saved and part in ("config", "tokenizer"):
            continue  # not every model has one, and none need be given
        if not saved:
            raise ValueError(
                f"The checkpoint in {folder} holds no {part}, so training cannot go on "
                "from it with one: load the model alone."
            )
        differ = [
            f"{name} ({saved.get(name, 'nothing')!s:.60} there, "
            f"{wanted.get(name, 'nothing')!s:.60} here)"
            for name in {**wanted, **saved}
            if saved.get(name) != wanted.get(name)
        ]
        if wanted and differ:
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            fix = f"make the {part} as it was made then."
            if part in ("config", "model"):
                fix = "make the model from checkpoint_info(folder)['config']."
            if part == "tokenizer":
                fix = "use the tokenizer that the model was trained with."
            raise ValueError(
                f"The checkpoint in {folder} has another {part}: "
                f"{', '.join(differ[:3])}{more}; {fix}"
            )


# --- Only what was learned -----------------------------------------------------------
#
# Chapters 6 and 7 train a small part of a model that anyone can load by name. They keep
# that part alone, with a few notes on what it belongs to.


_BASE, _DTYPE = "sha256 of the other parameters", "their dtype"


def _hash_of_others(model, learned, dtype=None):
    """A hash of the parameters that are not in the file: of the base model.

    In bfloat16, so that it does not depend on the dtype in which the base was loaded;
    rounded first to the one in which it was when the file was written.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name not in learned:
            numbers = parameter.detach().to("cpu", dtype or parameter.dtype)
            numbers = numbers.to(torch.bfloat16).contiguous()
            digest.update(name.encode() + numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_numbers(where, tensors):
    """Raise if a tensor holds a number that is infinite or NaN."""
    for name, tensor in tensors.items():
        tensor = getattr(tensor, "to_local", lambda t=tensor: t)()  # of one process
        numbers = tensor.is_floating_point() and tensor.numel() > 0
        if numbers and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ValueError(
                f"{where}: {name} holds numbers that are infinite or NaN: the model "
                "has diverged; go back to an earlier state, and train with a lower "
                "learning rate."
            )


def save_learned(
    path: Folder, model: nn.Module, kind: str, notes: Mapping[str, Any]
) -> None:
    """Write the parameters that can learn, and notes, to one safetensors file.

    The file appears whole or not at all; its folder is made if needed. `kind` says in
    a word what it is, and `read_learned` asks for the same.
    """
    path = Path(path)
    learned: dict[str, Tensor] = {
        name: parameter.detach().cpu().contiguous().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    _check_numbers(path, learned)
    words = {kind: json.dumps(notes), _BASE: _hash_of_others(model, learned)}
    words[_DTYPE] = _name_of(next(iter(model.parameters())).dtype)
    save_file(learned, partial, words)
    os.replace(partial, path)


def read_learned(path: Folder, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the notes, of a file that `save_learned` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})[kind])
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, notes
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}: train a {kind} first.") from None
    except (SafetensorError, OSError, KeyError, ValueError) as problem:
        raise ValueError(
            f"{path} is damaged, or no {kind} of this course "
            f"({type(problem).__name__}): train it again."
        ) from None


def put_learned(path: Folder, learned: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy saved tensors into a model; they, and no others, can learn on.

    Raises `ValueError`, with the model untouched, unless each fits a parameter, and
    those that are not in the file are what they were when it was written.
    """
    parameters = dict(model.named_parameters())
    _check_numbers(path, learned)
    for name, tensor in learned.items():
        shape = tuple(parameters[name].shape) if name in parameters else None
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"{path} holds {name} of shape {tuple(tensor.shape)}, but its base "
                f"model has {shape or 'nothing of that name'}: use the base model that "
                "it was trained with, or train it again."
            )
    with safe_open(path, framework="pt") as file:
        words = file.metadata() or {}
    dtype = getattr(torch, words.get(_DTYPE, ""), None)
    if _BASE in words and words[_BASE] != _hash_of_others(model, learned, dtype):
        raise ValueError(
            f"{path} was trained on another base model of the same sizes: one that was "
            "trained again since, perhaps; use the base that it was trained with, or "
            "train it again."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in learned:
                parameter.copy_(learned[name])
            parameter.requires_grad_(name in learned)
