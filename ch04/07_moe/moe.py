"""Mixture of experts: many feed-forward layers, of which each token uses a few.

A feed-forward layer reads all its weights for each token. Here it is replaced by E
smaller ones, the *experts*, and a *router* that picks A of them for each token (chapter
4, bonus: MoE). The layer has the weights of all experts and does the work of A.

* `SoftmaxRouter` picks as Mixtral and Qwen3 do, `SigmoidRouter` as DeepSeek-V3;
  `softmax_routing` and `sigmoid_routing` are their arithmetic;
* `dispatch` sends the tokens to their experts, one product for each expert and matrix;
  `dispatch_by_token` says the same in the plainest way;
* `MixtureOfExperts` is the layer, with a shared expert if wanted. It takes the place of
  a feed-forward layer in a block;
* `load_balancing_loss` and `SigmoidRouter.rebalance` keep all experts in use, with
  `record_routing`, `expert_counts` and `max_violation` to see whether they are, and
  `train_experts` as a loop that does either.

Sources: Shazeer and others, 2017 (arXiv:1701.06538), section 2: top-k of a gate; Fedus
and others, "Switch Transformers", 2021 (arXiv:2101.03961), equations 4 to 6: the
balancing loss; Jiang and others, "Mixtral of Experts", 2024 (arXiv:2401.04088), section
2.1; Dai and others, "DeepSeekMoE", 2024 (arXiv:2401.06066): shared experts; Wang and
others, 2024 (arXiv:2408.15664) and DeepSeek-V3, 2024 (arXiv:2412.19437, section 2.1.2):
balance by a bias. Left out: capacities, noise in the router, several devices, and the
very small loss for each text that DeepSeek-V3 keeps beside its bias.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> router = SoftmaxRouter(emb_dim=8, num_experts=6, top_k=2)
>>> layer = MixtureOfExperts(emb_dim=8, hidden_dim=16, router=router)
>>> x = torch.randn(3, 5, 8)  # three sequences of five tokens
>>> with record_routing(layer) as routings:
...     out = layer(x)
>>> out.shape
torch.Size([3, 5, 8])
>>> expert_counts(routings[0]).sum()  # 15 tokens, two experts each
tensor(30)

Shapes: B batch, T tokens, N = B * T, D model width (`emb_dim`), F width inside an
expert (`hidden_dim`), E experts, A experts of a token (`top_k`).
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import check_divisible, check_sizes
from llama import LlamaFeedForward

__all__ = [
    "MixtureOfExperts",
    "Routing",
    "SigmoidRouter",
    "SoftmaxRouter",
    "dispatch",
    "dispatch_by_token",
    "expert_counts",
    "keep_best_groups",
    "load_balancing_loss",
    "max_violation",
    "moe_parameters",
    "published_moe_weights",
    "record_routing",
    "router_logits",
    "sigmoid_routing",
    "softmax_routing",
    "train_experts",
]


class Routing(NamedTuple):
    """Where the tokens of a batch go."""

    logits: Tensor  # what the router made of each token, (N, E)
    chosen: Tensor  # the experts of each token, (N, A), whole numbers
    weights: Tensor  # how much each of them counts, (N, A)


def moe_parameters(
    emb_dim: int, hidden_dim: int, num_experts: int, top_k: int, shared_dim: int = 0
) -> tuple[int, int]:
    """Weights of a layer, `(all, active)`: those that exist, and those a token meets.

    Args:
        emb_dim: D.
        hidden_dim: F.
        num_experts: E.
        top_k: A.
        shared_dim: width inside the shared expert, 0 for none.
    """
    router = emb_dim * num_experts
    expert, shared = 3 * emb_dim * hidden_dim, 3 * emb_dim * shared_dim
    return (
        router + num_experts * expert + shared,
        router + top_k * expert + shared,
    )


# --- Which experts --------------------------------------------------------------------


def softmax_routing(logits: Tensor, top_k: int, normalise: bool = True) -> Routing:
    """Pick the experts with the largest shares of a softmax over all.

    Args:
        logits: (N, E).
        top_k: A.
        normalise: divide the A shares by their sum, so that they add up to 1; that is
            the same as a softmax over the A chosen logits alone. Otherwise they stay
            shares of all E.
    """
    shares = torch.softmax(logits, dim=-1)  # (N, E)
    weights, chosen = shares.topk(top_k, dim=-1)  # (N, A)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(logits, chosen, weights)


def keep_best_groups(ranks: Tensor, groups: int, kept: int) -> Tensor:
    """Put minus infinity for all experts but those of each token's best groups.

    Args:
        ranks: (N, E); neighbours form a group.
        groups: how many groups there are.
        kept: how many a token may use: those whose two best experts have the largest
            sum.
    """
    best_two = ranks.unflatten(1, (groups, -1)).topk(2, dim=-1).values
    best = best_two.sum(dim=-1).topk(kept, dim=-1).indices  # (N, kept)
    dropped = torch.ones(len(ranks), groups, dtype=torch.bool, device=ranks.device)
    dropped = dropped.scatter(1, best, False)  # (N, groups)
    dropped = dropped.repeat_interleave(ranks.shape[1] // groups, dim=1)  # (N, E)
    return ranks.masked_fill(dropped, -torch.inf)  # not 0: ranks can be negative


def sigmoid_routing(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    groups: int = 1,
    kept_groups: int = 1,
    scale: float = 1.0,
) -> Routing:
    """Pick the experts with the largest sigmoid *plus* bias; weigh them without it.

    Args:
        logits: (N, E).
        bias: (E,), added for the choice alone.
        top_k: A.
        groups: into how many groups the experts are divided.
        kept_groups: how many of them a token may use.
        scale: what the weights of a token add up to.
    """
    scores = torch.sigmoid(logits)  # (N, E), each for itself
    ranks = scores + bias
    if groups > 1:
        ranks = keep_best_groups(ranks, groups, kept_groups)
    chosen = ranks.topk(top_k, dim=-1).indices  # (N, A)
    weights = scores.gather(1, chosen)  # not ranks - bias: a sum may have lost them
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)  # no 0 / 0
    return Routing(logits, chosen, scale * weights)


def router_logits(scores: nn.Linear, x: Tensor) -> Tensor:
    """One number for each token and expert, (N, E), at least in float32.

    In bfloat16, with two or three digits, experts would tie, and which of them `topk`
    gives is left to chance.

    Args:
        scores: the router's matrix, (E, D).
        x: tokens, (N, D).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(wide), scores.weight.to(wide))


class SoftmaxRouter(nn.Module):
    """A router as in Mixtral and Qwen3: `softmax_routing` of a linear layer.

    Args:
        emb_dim: D.
        num_experts: E.
        top_k: A.
        normalise: whether the weights of a token add up to 1. With one expert for each
            token that would leave a weight of 1 and nothing for the router to learn.
    """

    exact = True  # no fast copy of a model rounds what chooses

    def __init__(
        self, emb_dim: int, num_experts: int, top_k: int, normalise: bool = True
    ):
        super().__init__()
        check_sizes(emb_dim=emb_dim, num_experts=num_experts, top_k=top_k)
        if top_k > num_experts:
            raise ValueError(f"top_k={top_k} of num_experts={num_experts}: pick fewer.")
        self.num_experts, self.top_k = num_experts, top_k
        self.normalise = normalise
        self.scores = nn.Linear(emb_dim, num_experts, bias=False)

    def forward(self, x: Tensor) -> Routing:
        """(N, D) to a `Routing`."""
        return softmax_routing(
            router_logits(self.scores, x), self.top_k, self.normalise
        )


class SigmoidRouter(nn.Module):
    """A router as in DeepSeek-V3: `sigmoid_routing`; `rebalance` moves its bias.

    Args:
        emb_dim: D.
        num_experts: E.
        top_k: A.
        groups: into how many groups the experts are divided, such as one for each
            device; kept_groups of them serve a token.
        kept_groups: see `groups`.
        scale: what the weights of a token add up to.

    Raises:
        ValueError: the groups that are kept have fewer experts than a token needs.
    """

    exact = True  # no fast copy of a model rounds what chooses

    def __init__(
        self,
        emb_dim: int,
        num_experts: int,
        top_k: int,
        groups: int = 1,
        kept_groups: int = 1,
        scale: float = 1.0,
    ):
        super().__init__()
        check_sizes(emb_dim=emb_dim, num_experts=num_experts, top_k=top_k)
        check_divisible(num_experts=num_experts, groups=groups)
        if kept_groups * (num_experts // groups) < top_k:
            raise ValueError(
                f"{kept_groups} of {groups} groups hold too few experts for "
                f"top_k={top_k}: keep more groups."
            )
        self.num_experts, self.top_k, self.scale = num_experts, top_k, scale
        self.groups, self.kept_groups = groups, kept_groups
        self.scores = nn.Linear(emb_dim, num_experts, bias=False)
        self.selection_bias = nn.Buffer(torch.zeros(num_experts))  # not trained

    def forward(self, x: Tensor) -> Routing:
        """(N, D) to a `Routing`."""
        return sigmoid_routing(
            router_logits(self.scores, x),
            self.selection_bias,
            self.top_k,
            self.groups,
            self.kept_groups,
            self.scale,
        )

    @torch.no_grad()
    def rebalance(self, counts: Tensor, rate: float) -> None:
        """Move the bias of each expert one step against its load; after an update.

        Args:
            counts: how many tokens each expert had, (E,), as `expert_counts` says.
            rate: the step, such as 0.001: down for whoever had more than the mean, up
                for whoever had less.
        """
        load = counts.to(self.selection_bias)
        self.selection_bias.add_(rate * torch.sign(load.mean() - load))


# --- To the experts and back ----------------------------------------------------------


def dispatch_by_token(
    experts: Sequence[nn.Module], x: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """What `dispatch` computes, one token after the other."""
    rows = []
    for token, ids, shares in zip(x, chosen.tolist(), weights, strict=True):
        outs = [s * experts[e](token) for e, s in zip(ids, shares, strict=True)]
        rows.append(torch.stack(outs).sum(dim=0))  # (D,)
    return torch.stack(rows).to(x.dtype)


def dispatch(
    experts: Sequence[nn.Module], x: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of what the chosen experts make of each token.

    The pairs of token and expert are sorted by expert, so that each expert sees all its
    tokens at once, and its results are added while they are still near the processor.
    One without tokens gets none and makes none; the gradients of its weights are zeros.

    Args:
        experts: E layers from (any, D) to (any, D).
        x: tokens, (N, D).
        chosen: numbers of experts, (N, A).
        weights: (N, A).

    Returns:
        (N, D), in the dtype of x.
    """
    pairs = chosen.flatten()  # pair i belongs to token i // A, (N * A,)
    counts = pairs.bincount(minlength=len(experts)).tolist()
    parts = pairs.argsort(stable=True).split(counts)  # pairs of each expert
    wide = torch.promote_types(x.dtype, weights.dtype)
    out = torch.zeros(x.shape, dtype=wide, device=x.device)
    for expert, part in zip(experts, parts, strict=True):
        tokens = part // chosen.shape[1]
        rows = expert(x[tokens]) * weights.flatten()[part, None]
        out.index_add_(0, tokens, rows.to(wide))
    return out.to(x.dtype)


class MixtureOfExperts(nn.Module):
    """A layer of experts in the place of a feed-forward layer.

    Args:
        emb_dim: D.
        hidden_dim: F, of each expert.
        router: a `SoftmaxRouter` or `SigmoidRouter` for the same width; it knows E.
        shared_dim: width inside a shared expert that every token uses as well, with
            weight 1; 0 for none.
    """

    def __init__(
        self,
        emb_dim: int,
        hidden_dim: int,
        router: SoftmaxRouter | SigmoidRouter,
        shared_dim: int = 0,
    ):
        super().__init__()
        sizes = {"emb_dim": emb_dim, "hidden_dim": hidden_dim}
        self.router = router
        self.experts = nn.ModuleList(
            LlamaFeedForward(sizes) for _ in range(router.num_experts)
        )
        shared = {**sizes, "hidden_dim": shared_dim}
        self.shared = LlamaFeedForward(shared) if shared_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); each token for itself."""
        rows = x.flatten(0, -2)  # (N, D)
        _, chosen, weights = self.router(rows)
        out = dispatch(list(self.experts), rows, chosen, weights).view_as(x)
        return out if self.shared is None else out + self.shared(x)


# --- Balance --------------------------------------------------------------------------


@contextlib.contextmanager
def record_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect what each router of a model decides, layer by layer, while this is open.

    The tensors belong to the graph of the forward pass, so a loss of them is trained.
    """
    routings: list[Routing] = []
    handles = [
        part.register_forward_hook(lambda _part, _x, out: routings.append(out))
        for part in model.modules()
        if isinstance(part, (SoftmaxRouter, SigmoidRouter))
    ]
    try:
        yield routings
    finally:
        for handle in handles:
            handle.remove()


def expert_counts(routing: Routing) -> Tensor:
    """How many tokens each expert has, (E,), whole numbers."""
    E = routing.logits.shape[1]
    return routing.chosen.flatten().bincount(minlength=E)


def max_violation(counts: Tensor) -> float:
    """How far the busiest expert lies above the mean: 0 in balance, at most E / A - 1.

    "MaxVio" of Wang and others, 2024: the largest load over the mean load, minus 1.
    """
    load = counts.double()
    return (load.max() / load.mean() - 1).item()


def load_balancing_loss(routing: Routing, real: Tensor | None = None) -> Tensor:
    """E * sum over the experts of f * P, of one layer: A in balance, E at worst.

    f is the part of the tokens that an expert has, P the mean share that the softmax of
    the router gives it. Counts have no gradient; the loss is trained by way of P.

    Args:
        routing: of one layer. Several layers in one would balance each other: add up
            the losses of all layers instead.
        real: True for the tokens that count, (B, T) or (N,); all without it.

    Returns:
        A scalar tensor.
    """
    E = routing.logits.shape[1]
    shares = torch.softmax(routing.logits, dim=-1)  # (N, E)
    picks = F.one_hot(routing.chosen, E).sum(dim=1).to(shares)  # (N, E), 0 or 1
    if real is not None:
        rows = real.flatten().bool()
        shares, picks = shares[rows], picks[rows]
    return E * (picks.mean(dim=0) * shares.mean(dim=0)).sum()


def train_experts(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    balance_weight: float = 0.0,
    bias_rate: float = 0.0,
) -> Tensor:
    """Train a model for one pass; return the loads of its experts on the way.

    Args:
        model: on the CPU, with a router in each layer; trained in place.
        batches: inputs and targets, (B, T) each.
        optimizer: over the model's parameters.
        balance_weight: what the balancing losses of all layers are multiplied by, 0 for
            none.
        bias_rate: the step of `SigmoidRouter.rebalance` after each update, 0 for none.

    Returns:
        Tokens of each expert, (updates, L, E).
    """
    routers = [one for one in model.modules() if isinstance(one, SigmoidRouter)]
    loads = []
    model.train()
    for inputs, targets in batches:
        with record_routing(model) as routings:
            logits = model(inputs)  # (B, T, V)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        for routing in routings:
            loss = loss + balance_weight * load_balancing_loss(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counts = [expert_counts(routing) for routing in routings]
        if bias_rate:
            for router, load in zip(routers, counts, strict=True):
                router.rebalance(load, bias_rate)
        loads.append(torch.stack(counts))  # (L, E)
    return torch.stack(loads)


# --- Other people's weights -----------------------------------------------------------


def published_moe_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of one layer in `transformers` under our names, for `load_state_dict`.

    Theirs hold all experts in one tensor, a gate above its up, as (E, 2 * F, D).

    Args:
        weights: {their name: tensor}, names after "mlp.": those of Mixtral, Qwen3 and
            DeepSeek-V3.
    """
    renamed = {
        "gate.weight": "router.scores.weight",
        "gate.e_score_correction_bias": "router.selection_bias",
        "shared_experts.gate_proj.weight": "shared.gate.weight",
        "shared_experts.up_proj.weight": "shared.up.weight",
        "shared_experts.down_proj.weight": "shared.down.weight",
    }
    ours = {}
    for name, tensor in weights.items():
        if name == "experts.gate_up_proj":
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)  # (F, D) each
                ours[f"experts.{e}.gate.weight"] = gate
                ours[f"experts.{e}.up.weight"] = up
        elif name == "experts.down_proj":
            for e, down in enumerate(tensor):
                ours[f"experts.{e}.down.weight"] = down
        else:
            ours[renamed.get(name, name)] = tensor
    return ours
