"""Checkpoints on disk (chapter 5, section 5.4): support, nothing here is taught.

* `save_learned`, `read_learned`, `put_learned`: only the part of a model that was
  trained, in one safetensors file.

>>> from tempfile import TemporaryDirectory
>>> model, again = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "line.safetensors")
...     save_learned(path, model, "line", {"base": "none"})
...     learned, notes = read_learned(path, "line")
>>> put_learned(path, learned, again)
>>> torch.equal(again.weight, model.weight), notes
(True, {'base': 'none'})
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# --- Only what was learned -----------------------------------------------------------
#
# Chapters 6 and 7 train a small part of a model that anyone can load by name. They keep
# that part alone, with a few notes on what it belongs to.


def save_learned(path, model, kind, notes):
    """Write the parameters that can learn, and notes, to one safetensors file.

    The file appears whole or not at all; its folder is made if needed. `kind` says in
    a word what it is, and `read_learned` asks for the same.
    """
    path = Path(path)
    learned = {
        name: parameter.detach().cpu().contiguous().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(learned, partial, {kind: json.dumps(notes)})
    os.replace(partial, path)


def read_learned(path, kind):
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


def put_learned(path, learned, model):
    """Copy saved tensors into a model; they, and no others, can learn on.

    Raises `ValueError`, with the model untouched, unless each fits a parameter.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in learned.items():
        shape = tuple(parameters[name].shape) if name in parameters else None
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"{path} holds {name} of shape {tuple(tensor.shape)}, but its base "
                f"model has {shape or 'nothing of that name'}: use the base model that "
                "it was trained with, or train it again."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in learned:
                parameter.copy_(learned[name])
            parameter.requires_grad_(name in learned)
