"""What the configs of all models share, and what models of other making take.

Support: nothing here is taught. A new architecture declares its fields and their types.
Reading like a dictionary, `of` and the checks of the types come from `ModelConfig`; the
config's own `__post_init__` calls that of the base and checks what else must hold:

>>> @dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
... class TinyConfig(ModelConfig):
...     emb_dim: int
...     tie_weights: bool = False
>>> cfg = TinyConfig(emb_dim=8)
>>> cfg["emb_dim"], cfg.emb_dim, {**cfg, "emb_dim": 16}
(8, 8, {'emb_dim': 16, 'tie_weights': False})
>>> cfg | {"emb_dim": 16} == {**cfg, "emb_dim": 16}
True
>>> TinyConfig.of({"emb_dim": 0})
Traceback (most recent call last):
    ...
ValueError: emb_dim is 0: give a whole number from 1 up.

Shapes: B batch, T new tokens, S all tokens (cached and new).
"""

import dataclasses
import difflib
import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn

from argument_checks import check_attention_mask, check_whole_number


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelConfig(Mapping):
    """Base of frozen dataclasses that hold the sizes of a model.

    `cfg["emb_dim"]` and `cfg.emb_dim` are the same; `{**cfg, "context_length": 256}` is
    a plain dictionary with one entry changed, which `of` turns into a config. A config
    equals every mapping with the same entries. A subclass is decorated with
    `@dataclass(frozen=True, eq=False, kw_only=True)`.

    Raises:
        ValueError: an `int` field is no whole number from 1 up, a `float` field no
            finite number, a `bool` field neither True nor False; the message names the
            field. Fields of other types are not looked at.
        TypeError: a field is unknown or missing.
    """

    def __post_init__(self) -> None:
        for name, declared in typing.get_type_hints(type(self)).items():
            _check_type(name, self[name], declared)

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def copy(self) -> dict[str, Any]:
        """A plain dictionary with the same entries, in which they can be changed."""
        return dict(self)

    def __or__(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **changes}

    def __ror__(self, base: Mapping[str, Any]) -> dict[str, Any]:
        return {**base, **self}

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Self:
        """The config for `cfg`, which is one already or a mapping with its fields.

        Raises:
            ValueError: a field is unknown, missing or out of range.
            TypeError: `cfg` is not a mapping.
        """
        if isinstance(cfg, cls):
            return cfg
        _check_names(cfg, cls)
        return cls(**cfg)


def check_number(name: str, value: Any, above: float | None = None) -> None:
    """Raise unless `value` is a finite number, above a bound if one is given."""
    wanted = "a number" if above is None else f"a number above {above}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}: give {wanted}.")
    if not math.isfinite(value) or (above is not None and value <= above):
        raise ValueError(
            f"{name} is {value}: give {wanted.replace('a ', 'a finite ')}."
        )


def _check_type(name, value, declared):
    if declared is int:
        check_whole_number(name, value)
    elif declared is float:
        check_number(name, value)
    elif declared is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: give True or False.")


def _check_names(cfg, cls):
    """Raise unless the mapping has the fields of the config class and no others."""
    if not isinstance(cfg, Mapping):
        raise TypeError(
            f"The config is {type(cfg).__name__}: give a {cls.__name__}, or a "
            "dictionary with its fields."
        )
    fields = dataclasses.fields(cls)
    known = [field.name for field in fields]
    for name in cfg:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            fix = f"leave it out; known are {', '.join(known)}."
            fix = f"did you mean {close[0]!r}?" if close else fix
            raise ValueError(f"The config has an unknown field {name!r}: {fix}")
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [repr(name) for name in required if name not in cfg]
    if missing:
        raise ValueError(
            f"The config lacks {' and '.join(missing)}: give every field, for example "
            "with {**GPT_CONFIG_124M, ...} and the fields to change."
        )


def config_of(model: Any) -> Mapping[str, Any]:
    """The sizes of a model: its `cfg`, or what a GPT that keeps none shows of them.

    A GPT of the reader's own needs the names of `GPTModel`'s parts, no more. Raises
    `ValueError` if it has others.
    """
    if getattr(model, "cfg", None) is not None:
        return model.cfg
    try:
        attention = model.trf_blocks[0].att
        return {
            "vocab_size": model.tok_emb.num_embeddings,
            "context_length": model.pos_emb.num_embeddings,
            "emb_dim": model.tok_emb.embedding_dim,
            "n_heads": attention.num_heads,
            "n_layers": len(model.trf_blocks),
            "qkv_bias": attention.W_query.bias is not None,
            "tie_weights": False,  # a second parameter, even if it is the same tensor
        }
    except (AttributeError, IndexError) as problem:
        raise ValueError(
            f"The sizes of this {type(model).__name__} cannot be found ({problem}): "
            "keep its config as self.cfg, or call its parts as in GPTModel."
        ) from None


# What the settings published with chat models (generation_config.json) take for an end:
# of a message, to a person or a tool, or of the whole text.
_ENDS = {
    "GPT-2, SmolLM2, Qwen 3, Olmo 3": ("<|endoftext|>", "<|im_end|>"),
    "Llama 3": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "Gemma 3": ("<eos>", "<end_of_turn>"),
}


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids at which an answer is over: `eot_token` first, then the model's others.

    A model that was trained on texts and then to chat may end an answer as it ended a
    text. Which tokens do so is known by their names.

    Args:
        tokenizer: with an `eot_token`, or None for it; others are looked for in its
            `special_tokens_set`, if it has one.
    """
    known = getattr(tokenizer, "special_tokens_set", ())
    others = [name for names in _ENDS.values() for name in names if name in known]
    ids = [tokenizer.encode(name, allowed_special={name})[0] for name in others]
    every = dict.fromkeys([tokenizer.eot_token, *ids])
    return tuple(token for token in every if token is not None)


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model's `forward` has an argument of that name."""
    forward = getattr(model, "forward", model)
    arguments = inspect.signature(forward).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in arguments)


def extras_for(model: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Those arguments that are not None, for `model(idx, **extras_for(model, ...))`.

    A model of the reader's own may take token ids and nothing else. It is called
    without an attention mask that would change nothing: padding on the right does
    not, since no token sees a later one.

    Raises:
        ValueError: the model lacks an argument that would change its answers.
    """
    found = {name: value for name, value in arguments.items() if value is not None}
    for name in [name for name in found if not takes(model, name)]:
        mask = found.pop(name)
        if name != "attention_mask" or (mask[:, 1:].int() > mask[:, :-1].int()).any():
            raise ValueError(
                f"{type(model).__name__}.forward takes no {name}: call this without "
                "one, with prompts of one length, or give forward the arguments of "
                "GPTModel.forward."
            )
    return found


def token_positions(
    idx: Tensor, attention_mask: Tensor | None = None, past: int = 0
) -> Tensor:
    """The positions of the new tokens, counted over real tokens only, from 0.

    So padding on either side moves no token. A padded place gets the position of the
    real token before it, or 0.

    Args:
        idx: ids of the new tokens, (B, T).
        attention_mask: (B, S), True or 1 for a real token; None if all are real.
        past: how many tokens stand in the cache before them, S - T.

    Returns:
        (B, T) with an attention mask, otherwise (T,); int64.

    Raises:
        ValueError: the attention mask does not cover cached and new tokens.
    """
    B, T = idx.shape
    if attention_mask is None:
        return torch.arange(past, past + T, device=idx.device)
    check_attention_mask(attention_mask, B, past + T, past)
    real_so_far = attention_mask.cumsum(dim=1)  # (B, S)
    return (real_so_far - 1).clamp(min=0)[:, past:]  # (B, T)
