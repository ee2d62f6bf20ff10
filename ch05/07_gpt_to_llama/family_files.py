"""Published folders of Llama and its kin: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and a
vocabulary. An architecture that is put together as Llama is says in a `Family` what it
has of its own: which settings it needs and refuses, how its config is made of them, and
where its tensors belong. What is done with a folder is the same for all:

* `Family.config` checks settings and reads them;
* `Family.load_model` and `Family.load` make the model of a folder, tensor by tensor;
* `model_from_tensors` does so with tensors from elsewhere.

`llama_files` and the bonus folders of Qwen3, Gemma 3 and Olmo 3 are built on it, on
`family_settings` and on `vocabulary_files`.

>>> family = Family(name="Twin", model_types=("twin",), own_config=ModelConfig,
...     model=nn.Module, key_map=dict, read=ModelConfig.of, needed=("emb_dim",))
>>> family.config({"model_type": "twin"})
Traceback (most recent call last):
    ...
ValueError: The settings lack 'emb_dim': take config.json as it was published.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from family_settings import AS_PUBLISHED, refuse
from model_config import ModelConfig
from safetensors_files import (
    SafetensorsFiles,
    assign,
    dtype_problem,
    shape_problem,
    some_names,
    without_drawing,
)
from text_files import read_text_file

# --- A family ------------------------------------------------------------------------


def block_problem(tensors: Iterable[str], cfg: Mapping[str, Any]) -> str:
    """What is wrong with the number of blocks, or nothing, by the published names."""
    start = "model.layers."
    blocks = {name.split(".")[2] for name in tensors if name.startswith(start)}
    if len(blocks) != cfg["n_layers"]:
        return (
            f"the files hold {len(blocks)} blocks, but config.json asks for "
            f"{cfg['n_layers']}: take all files of one model."
        )
    return ""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """What an architecture that is put together as Llama is has of its own.

    Args:
        name: for messages.
        model_types: what a published `config.json` calls it.
        own_config: the class of its configs.
        model: its class, which takes a config.
        key_map: {published name of a tensor: our name} for a config.
        read: from published settings that are checked to the config.
        unwrap: from a published `config.json` to the settings that are read, for files
            in which they stand beside those of another part, such as one for images.
        needed: settings that must be there, besides those that `read` asks for.
        refused: as in `refuse`.
        outline_problem: what is wrong with the names of tensors, "" for nothing; asked
            before `key_map`, which a false config could make endless.
        tokenizer: from a folder and the model's number of tokens; None where it is read
            as Llama's.
    """

    name: str
    model_types: tuple[str, ...]
    own_config: type[ModelConfig]
    model: type[nn.Module]
    key_map: Callable[[Mapping[str, Any]], dict[str, str]]
    read: Callable[[Mapping[str, Any]], Any]
    unwrap: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    needed: tuple[str, ...] = ()
    refused: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    outline_problem: Callable[[Iterable[str], Mapping[str, Any]], str] = block_problem
    tokenizer: Callable[[Path, int], Any] | None = None

    def config(self, settings: Mapping[str, Any]) -> Any:
        """The config that a published `config.json` describes.

        Args:
            settings: the content of the file, a mapping, in the form of any version of
                the `transformers` library.

        Raises:
            ValueError: a setting is missing, of another kind or out of range, or asks
                for something that the model does not do; the message names it.
        """
        model = self.model.__name__
        if not isinstance(settings, Mapping):
            raise ValueError(
                f"The settings are {type(settings).__name__}: give the content of "
                "config.json, a mapping."
            )
        kind = settings.get("model_type")
        if kind not in self.model_types:
            raise ValueError(
                f"The settings are of model type {kind!r}, and this is for "
                f"{' and '.join(map(repr, self.model_types))}: other architectures "
                f"have parts that {model} lacks."
            )
        settings = self.unwrap(settings)
        for name in self.needed:
            if settings.get(name) is None:
                raise ValueError(f"The settings lack {name!r}: {AS_PUBLISHED}")
        refuse(settings, self.refused, model)
        return self.read(settings)

    def shapes(self, cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """{our name: its shape}, from a model of one block that has no numbers.

        All blocks are alike, and there may be as many as a damaged file asks for.

        Raises:
            ValueError: the sizes are larger than any tensor can be.
        """
        try:
            with without_drawing():
                small = self.model({**cfg, "n_layers": 1})
        except (RuntimeError, OverflowError, TypeError):
            raise ValueError(
                "config.json asks for sizes that no model has: download it again."
            ) from None
        shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
        first = re.compile(r"^trf_blocks\.\d+")
        names = self.key_map(cfg).values()
        return {name: shapes[first.sub("trf_blocks.0", name)] for name in names}

    def load_model(
        self, folder: str | Path, dtype: torch.dtype = torch.bfloat16
    ) -> Any:
        """The model in a folder of published files.

        It is built without memory and then given its tensors, one at a time, file after
        file, so that it never exists twice. Everything that can be checked without
        reading a tensor is checked first: names, shapes, number types, sizes of files.

        Args:
            folder: holds `config.json` and `model.safetensors`, or `config.json`,
                several safetensors files, and `model.safetensors.index.json`.
            dtype: of the weights, a floating-point dtype, whatever the files hold.

        Returns:
            A model in evaluation mode, on the CPU.

        Raises:
            ValueError: a file is missing or damaged, or the tensors are not those of
                the model in `config.json`; the message names folder and tensor.
        """
        check_dtype(dtype)
        folder = Path(folder)
        cfg = read_config(folder, self)
        return model_from_tensors(folder, cfg, SafetensorsFiles(folder), dtype, self)

    def load(
        self, folder: str | Path, dtype: torch.dtype = torch.float32
    ) -> tuple[Any, Any]:
        """The model and the tokenizer in a folder of published files.

        Args:
            folder: as for `load_model`, with the files of a tokenizer in it.
            dtype: of the weights, a floating-point dtype, whatever the files hold.

        Returns:
            `(model, tokenizer)`, a `NoTokenizer` where there is none.

        Raises:
            ValueError: as `load_model`; or the tokenizer is damaged, or another
                model's.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.name}: use load_pretrained, which knows more.")
        model = self.load_model(folder, dtype)
        return model, self.tokenizer(Path(folder), model.cfg["vocab_size"])


# --- Weights -------------------------------------------------------------------------


def model_from_tensors(
    source: str | Path,
    cfg: Any,
    tensors: SafetensorsFiles,
    dtype: torch.dtype,
    family: Family,
) -> Any:
    """The model of a config, made of tensors under their published names.

    Args:
        source: where they come from, for messages.
        cfg: as from the family's `config`.
        tensors: a `SafetensorsFiles` or one of its kin.
        dtype: of the weights, a floating-point dtype.
        family: the architecture.

    Raises:
        ValueError: the tensors are not those of this model; the message names one.
    """
    _check_tensors(source, tensors, cfg, family)
    with without_drawing():
        model = family.model(cfg).to(dtype)
    weights = {}
    for theirs, ours in family.key_map(cfg).items():
        try:
            weights[ours] = assign(model.get_parameter(ours), tensors[theirs])
        except ValueError as problem:
            raise ValueError(f"{source}: {theirs!r}: {problem}") from None
    model.load_state_dict(weights, assign=True)
    return model.eval()


def check_dtype(dtype: torch.dtype) -> None:
    """Raise unless weights can have this dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"dtype is {dtype!r}: give a floating one, such as torch.bfloat16 or "
            "torch.float32."
        )


def read_config(folder: str | Path, family: Family) -> Any:
    """The config in a folder's `config.json`; `ValueError` that names the file."""
    path = Path(folder) / "config.json"
    try:
        settings = json.loads(
            read_text_file(
                path,
                "give the folder into which config.json and the safetensors files were "
                "downloaded",
            )
        )
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path}: it is not JSON; download it again.") from None
    try:
        return family.config(settings)
    except (ValueError, OverflowError) as problem:
        raise ValueError(f"{path}: {problem}") from None


def _check_tensors(source, tensors, cfg, family):
    """Raise unless the files hold just the tensors of this model."""
    problem = family.outline_problem(tensors, cfg)
    if not problem:
        names, shapes = family.key_map(cfg), family.shapes(cfg)
        problem = (
            _name_problem(tensors, cfg, names, family.name)
            or shape_problem(
                tensors.outline, {their: shapes[our] for their, our in names.items()}
            )
            or dtype_problem(tensors.outline)
            or _head_problem(tensors, cfg)
        )
    if problem:
        raise ValueError(f"{source}: {problem}")


def _name_problem(tensors, cfg, expected, family):
    missing = [name for name in expected if name not in tensors]
    if missing:
        return f"{some_names(missing)} missing, expected are {len(expected)} tensors."
    extra = [n for n in tensors if n not in expected and not _is_spare(n, cfg)]
    if extra:
        return (
            f"{some_names(extra)} unknown: {'an' if family[0] in 'AEIO' else 'a'} "
            f"{family} of this config has no such tensor."
        )
    return ""


def _is_spare(name, cfg):
    """Whether some files hold it although the model has it already.

    Old ones keep the rotary frequencies; some keep the tied head a second time.
    """
    second_head = cfg["tie_weights"] and name == "lm_head.weight"
    return second_head or name.endswith(".rotary_emb.inv_freq")


def _head_problem(tensors, cfg):
    head = tensors.outline.get("lm_head.weight")
    if not cfg["tie_weights"] or head is None:
        return ""
    same = head == tensors.outline["model.embed_tokens.weight"] and torch.equal(
        tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    )
    if same:
        return ""
    return (
        "'lm_head.weight' differs from 'model.embed_tokens.weight', but config.json "
        "says that they are tied: the files belong to different models."
    )
