"""Layers that read the keys and values of an earlier layer (chapter 4, bonus).

A cache holds keys and values of every layer. With *cross-layer sharing* only some
layers, the owners, make them; the others make queries alone and read what an owner has
made in the same pass. `sources` says for each layer whose keys and values it reads, its
own number for an owner. It is all that models of this kind differ in:

* `paired_sources`: groups of neighbours, the first of which owns (Brandon et al.,
  "Cross-Layer Attention", 2024, arXiv:2405.12981, section 3.1);
* `last_sources`: the last layers all read from the last owner of their kind, as in
  Gemma 3n and Gemma 4. With one kind and half of the layers this is the plan of Sun et
  al., "You Only Cache Once", 2024 (arXiv:2405.05254), whose owners are of another kind.

`QueryOnlyAttention` is a layer that reads, `SharingPass` hands keys and values on
within one pass through a model, and `SharingLlama` is chapter 5's model with both.
`read_prompt` takes all tokens of a prompt but the last out of the model before the
layers that only read (Sun et al., 2024, section 2.3). Left out: windows.

>>> import torch
>>> from llama import SMOLLM2_135M
>>> from kv_cache import KVCache
>>> sizes = {"vocab_size": 7, "emb_dim": 12, "n_layers": 4, "hidden_dim": 5}
>>> cfg = {**SMOLLM2_135M, **sizes, "n_heads": 3, "n_kv_groups": 3, "head_dim": 4}
>>> model = SharingLlama(cfg, paired_sources(4, 2))
>>> model.sources
(0, 0, 2, 2)

Its cache has a layer for each owner, two here:

>>> cache = KVCache(model.num_owners, room=9)
>>> with torch.no_grad():
...     logits = model(torch.tensor([[1, 2, 3]]), cache=cache)
>>> cache.nbytes == shared_cache_bytes(
...     model.sources, batch_size=1, num_kv_groups=3, tokens=9, head_dim=4)
True

Shapes: B batch, T new tokens, S all tokens (cached and new), D model width, H query
heads, G key/value heads, K head width, L layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argument_checks import check_attention_mask, check_input, check_sizes
from gqa import GroupedQueryAttention
from kv_cache import kv_cache_bytes
from llama import LlamaModel, apply_rope, rope_cos_sin, rope_frequencies
from model_config import token_positions
from variants import with_parts

__all__ = [
    "PassedOn",
    "QueryOnlyAttention",
    "SharingLlama",
    "SharingPass",
    "last_sources",
    "owners_of",
    "paired_sources",
    "read_prompt",
    "shared_cache_bytes",
]


# --- Who reads from whom -------------------------------------------------------------


def paired_sources(num_layers: int, group: int) -> tuple[int, ...]:
    """Each layer's source if the first of every `group` neighbours owns.

    Args:
        num_layers: L; the last group may be smaller.
        group: layers that share, 1 for none.

    Raises:
        ValueError: a group of fewer than one.
    """
    check_sizes(group=group)
    return tuple(layer - layer % group for layer in range(num_layers))


def last_sources(kinds: Sequence[str], num_readers: int) -> tuple[int, ...]:
    """Each layer's source if the last `num_readers` read from the last owner alike.

    Args:
        kinds: what each layer is, such as "full" or "sliding"; layers of different
            kinds rotate or mask differently and cannot share.
        num_readers: layers at the end that make no keys and values.

    Raises:
        ValueError: a kind of layer has no owner, or `num_readers` is below 0.
    """
    first = len(kinds) - num_readers
    owning = kinds[: max(first, 0)]
    if num_readers < 0 or not set(kinds) <= set(owning):
        raise ValueError(
            f"num_readers={num_readers} of {len(kinds)} layers: give 0 or more, and so "
            "few that a layer of each kind is left to own keys."
        )
    last = {kind: layer for layer, kind in enumerate(owning)}
    return tuple(
        layer if layer < first else last[kind] for layer, kind in enumerate(kinds)
    )


def owners_of(sources: Sequence[int]) -> list[int]:
    """The layers that make keys and values, in order."""
    return [layer for layer, source in enumerate(sources) if source == layer]


def shared_cache_bytes(
    sources: Sequence[int],
    batch_size: int,
    num_kv_groups: int,
    tokens: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of the keys and values of a batch: `kv_cache_bytes` of the owners alone.

    Args:
        sources: for each layer the one whose keys and values it reads.
        batch_size: B.
        num_kv_groups: G.
        tokens: S, for which there is room.
        head_dim: K.
        dtype: what a number is kept as.
    """
    owners = len(owners_of(sources))
    return kv_cache_bytes(owners, batch_size, num_kv_groups, tokens, head_dim, dtype)


# --- One pass ------------------------------------------------------------------------


class PassedOn:
    """What an owner's queries see in one pass, kept for the layers that read it.

    To the owner it is its layer's part of a cache. Without a cache it holds the keys
    and values of this pass alone, and gradients flow through it.

    Args:
        part: the owner's `LayerCache`, or None.

    Attributes:
        keys: (B, G, S, K), once the owner has appended; the readers take them.
        values: the same.
    """

    def __init__(self, part: Any = None):
        self.part = part
        self.keys = self.values = None

    @property
    def length(self) -> int:
        """How many cached tokens the first new one sees."""
        return 0 if self.part is None else self.part.length

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of T new tokens; return what the new tokens see."""
        if self.part is not None:
            keys, values = self.part.append(keys, values)
        self.keys, self.values = keys, values
        return keys, values


class SharingPass:
    """The cache of one pass: layer i finds the part of its source.

    It is made anew for each pass, so that no module holds keys between two calls.

    Args:
        sources: for each layer the one whose keys and values it reads.
        cache: a cache with a layer for each owner, or None.

    Raises:
        ValueError: the cache has another number of layers.
    """

    def __init__(self, sources: Sequence[int], cache: Any = None):
        owners = owners_of(sources)
        if cache is not None and cache.num_layers != len(owners):
            raise ValueError(
                f"The cache has {cache.num_layers} layers, but {len(owners)} layers of "
                f"this model own keys: make it with num_layers={len(owners)}."
            )
        self.num_layers = len(sources)
        self.length = 0 if cache is None else cache.length
        self.window = None if cache is None else cache.window
        parts = {
            owner: PassedOn(None if cache is None else cache.layer(place))
            for place, owner in enumerate(owners)
        }
        self.parts = [parts[source] for source in sources]

    def layer(self, index: int) -> PassedOn:
        """What layer `index` appends to, or reads."""
        return self.parts[index]


class QueryOnlyAttention(GroupedQueryAttention):
    """Grouped-query attention to keys and values that another layer has made.

    It is made with the arguments of `GroupedQueryAttention` and has no weights for
    keys and values.
    """

    def __init__(self, d_in: int, **sizes: Any):
        super().__init__(d_in, **sizes)
        del self.W_key, self.W_value

    def project_queries(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Queries of new tokens at their positions, (B, H, T, K)."""
        queries = self.split_heads(self.W_query(x))
        return queries if rotate is None else rotate(queries)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Context vectors, made from the values of the layer that is read.

        Args:
            x: vectors of the T new tokens, (B, T, D), floating point.
            attention_mask: as for `GroupedQueryAttention`.
            cache: a `PassedOn` to which the owner has appended in this pass. The keys
                in it are turned to their positions. It does not change.
            rotate: what turns the queries to their positions, or None.

        Returns:
            (B, T, D).

        Raises:
            ValueError: as `GroupedQueryAttention`, or there is nothing to read.
        """
        check_input(x, self.d_in)
        if cache is None or cache.keys is None:
            raise ValueError(
                "This layer has no keys of its own: give it, as its cache, the part "
                "to which an owner has appended in this pass."
            )
        keys, values = cache.keys, cache.values  # (B, G, S, K)
        B, T, _ = x.shape
        S = keys.shape[2]
        if attention_mask is not None:
            check_attention_mask(attention_mask, B, S, S - T)
        queries = self.project_queries(x, rotate)
        hidden = self.hidden_keys(T, S, attention_mask, x.device)
        context = self.attend(queries, keys, values, hidden)  # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (B, T, D)


class SharingLlama(LlamaModel):
    """Chapter 5's model, in which some layers read the keys and values of others.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries.
        sources: for each layer the one whose keys and values it reads: its own number,
            or that of an earlier owner.

    Attributes:
        num_owners: layers of a cache for this model.

    Raises:
        ValueError: there is not one source for each layer, or one that is no earlier
            owner.
    """

    def __init__(self, cfg: Mapping[str, Any], sources: Sequence[int]):
        super().__init__(cfg)
        owners = owners_of(sources)
        owned = all(i in owners and i <= layer for layer, i in enumerate(sources))
        if not owned or len(sources) != self.cfg["n_layers"]:
            raise ValueError(
                f"sources={tuple(sources)}: give each of {self.cfg['n_layers']} layers "
                "its own number, or that of an earlier layer that has its own."
            )
        self.sources, self.num_owners = tuple(sources), len(owners)
        with_parts(self, attention=self.make_attention)

    def make_attention(self, layer: int) -> QueryOnlyAttention | None:
        """A layer without keys and values for a reader, None for an owner."""
        if self.sources[layer] == layer:
            return None
        cfg = self.cfg
        return QueryOnlyAttention(
            cfg["emb_dim"],
            num_heads=cfg["n_heads"],
            num_kv_groups=cfg["n_kv_groups"],
            head_dim=cfg["head_dim"],
        )

    def forward(
        self, idx: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Logits for the token that follows each of the new ones.

        As `LlamaModel.forward`, but for the cache: it has a layer for each owner,
        `KVCache(model.num_owners)`.
        """
        shared = SharingPass(self.sources, cache)
        return super().forward(idx, attention_mask, shared)


@torch.no_grad()
def read_prompt(model: SharingLlama, idx: Tensor, cache: Any) -> Tensor:
    """Logits for the token after a prompt; all but its last token leave early.

    Behind the last owner nothing is cached, so that only the token whose logits are
    wanted must go on. It sees what the last call of `model(idx, cache=cache)` sees.

    Args:
        model: in evaluation mode.
        idx: ids of the prompt, (B, T), all real.
        cache: a `KVCache(model.num_owners)`. It changes as by a call of the model.

    Returns:
        (B, 1, V).
    """
    past, cfg = cache.length, model.cfg
    positions = token_positions(idx, past=past)
    frequencies = rope_frequencies(
        cfg["head_dim"], cfg["rope_base"], cfg["rope_scaling"], idx.device
    )
    cos, sin = rope_cos_sin(positions, frequencies)  # (T, K) each

    def rotate(heads):
        T = heads.shape[2]  # all tokens, or the last one
        return apply_rope(heads, cos[-T:], sin[-T:])

    shared, last_owner = SharingPass(model.sources, cache), max(model.sources)
    x = model.tok_emb(idx)  # (B, T, D)
    for layer, block in enumerate(model.trf_blocks):
        if layer > last_owner:
            x = x[:, -1:]  # (B, 1, D)
        x = block(x, None, shared.layer(layer), rotate)
    return model.out_head(model.final_norm(x[:, -1:]))  # (B, 1, V)
