"""What holds for every family whose published folders are read, whatever its parts.

A family's tests write folders with the `transformers` library (`publish`), as fixtures
called `published`, for a module, and `folder`, a copy for one test; and they derive a
class from `FolderContract`:

    class TestQwen3Folders(FolderContract):
        family = QWEN3
        configs = KINDS.values()
        load_pretrained = staticmethod(load_pretrained)

What only one family does, above all that its logits are those of the library, has tests
of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from course.testing.model_contract import random_ids


def publish(theirs: Any, folder: Path, shard: str = "1GB", norm: float = 1.0) -> Any:
    """Give a model of `transformers` other numbers, and write it as the library does.

    Args:
        theirs: the model.
        folder: where its files go.
        shard: how large a file may be.
        norm: about which number the scales of norms are drawn; all others about 0.

    Returns:
        The model, in evaluation mode.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(norm * ("norm" in name), 0.1)
    theirs.eval().save_pretrained(folder, max_shard_size=shard)
    return theirs


def change_settings(folder: Path, **changes: Any) -> None:
    """Write other values into `config.json`; `...` takes an entry out."""
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        found.pop(name, None) if value is ... else found.update({name: value})
    path.write_text(json.dumps(found), encoding="utf-8")


def check_names(folder: Path, name: str, family: Any) -> None:
    """Check that a folder is refused without a tensor, and with one more.

    Args:
        folder: of one file of weights, whole in the end.
        name: of the tensor, as published.
        family: a `Family`.
    """
    path = folder / "model.safetensors"
    whole = load_file(path)
    save_file({key: tensor for key, tensor in whole.items() if key != name}, path)
    with pytest.raises(ValueError, match=f"'{name}'.* missing, expected are"):
        family.load_model(folder)
    save_file({**whole, f"{name}s": whole[name].clone()}, path)
    unknown = f"'{name}s'.* unknown: a {family.name} of this"
    with pytest.raises(ValueError, match=unknown):
        family.load_model(folder)
    save_file(whole, path)


class FolderContract:
    """The tests; a class derived from it says which family it is about."""

    family: Any
    configs: Iterable[Mapping[str, Any]]
    load_pretrained: Callable

    def test_shapes_are_those_of_the_model(self) -> None:
        """Of every block, though only one is made."""
        assert self.configs
        for cfg in self.configs:
            with torch.device("meta"):
                model: nn.Module = self.family.model(cfg)
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
            assert self.family.shapes(cfg) == shapes

    @torch.no_grad()
    def test_files_in_bfloat16_are_read_exactly(self, folder: Path) -> None:
        """Each number is the one in the file, under the name that the map gives."""
        path = folder / "model.safetensors"
        halved = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(halved, path)
        model = self.family.load_model(folder, torch.float32)
        names = self.family.key_map(model.cfg)
        assert names
        for theirs, ours in names.items():
            assert torch.equal(model.get_parameter(ours), halved[theirs].float())

    @torch.no_grad()
    @pytest.mark.parametrize("whose", ["published", "ours"])
    def test_load_pretrained_takes_the_folder(
        self, published: Path, tmp_path: Path, whose: str
    ) -> None:
        """By what config.json says; also what the `state_dict` of the model gives."""
        ours = self.family.load_model(published, torch.float32)
        folder = published
        if whose == "ours":
            folder = tmp_path
            save_file(ours.state_dict(), folder / "model.safetensors")
            config = json.dumps(dict(ours.cfg), default=dict)
            (folder / "config.json").write_text(config, encoding="utf-8")
        model, tokenizer, config = self.load_pretrained(folder)
        assert type(model) is self.family.model
        assert config == ours.cfg
        idx = random_ids(2, 40, vocab_size=config["vocab_size"])
        assert torch.equal(model(idx), ours(idx))
        with pytest.raises(AttributeError, match="There is no tokenizer in"):
            tokenizer.encode("hi")
