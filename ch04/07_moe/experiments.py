"""What does a layer of experts cost, and do its experts stay in use?

    python3 -m course run ch04/07_moe/experiments.py

Everything runs in one thread. Contestants take turns; a figure is the median over the
rounds, and a ratio the median of the ratios of each round. Seconds are those that the
processor spent.

* `speed.csv`: one layer, 1,024 wide, of 8 and of 64 experts, beside a dense layer with
  as many active weights, for up to 1,024 tokens; and other ways to compute the same;
* `training.csv`: the notebook's small model after 200 updates, dense and with experts,
  without balance, with the balancing loss, and with a sigmoid router, with its bias and
  without: losses and loads on text that it has not seen; three seeds, which set weights
  and order;
* `loads.csv`: the loads of its experts on the way;
* `profile.csv`: the operations that take most of a layer's time, in two ways to add up.

Takes about five minutes and 2 GB.
"""

import functools
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from course import tables
from course.assets import fetch
from gpt import count_parameters
from gpt_train import calc_loss_loader
from llama import LlamaFeedForward, LlamaModel
from moe import (
    MixtureOfExperts,
    SigmoidRouter,
    SoftmaxRouter,
    dispatch,
    dispatch_by_token,
    expert_counts,
    max_violation,
    record_routing,
    train_experts,
)
from script_tools import positive_int
from variants import (
    SMALL,
    draw_weights,
    small_task,
    take_turns,
    times_as_fast,
    with_parts,
)

RESULTS = Path(__file__).parent / "results"
TABLES = ["training", "speed", "profile"]
SEEDS = (1, 2, 3)
DENSE = "dense"
SORTED = "sorted by expert"
BY_TOKEN = "token by token"
ALL = "every expert on every token"
GROUPED = "one grouped product"
COLLECTED = "sorted, added at the end"
USED_ONLY = "sorted, without empty calls"
SHAPES = {"8 experts, 2 of a token": (8, 2), "64 experts, 8 of a token": (64, 8)}
#: How a model is kept in balance: its router, weight of the loss, step of the bias.
METHODS = {
    "nothing": (SoftmaxRouter, 0.0, 0.0),
    "loss": (SoftmaxRouter, 0.01, 0.0),
    "nothing (sigmoid)": (SigmoidRouter, 0.0, 0.0),
    "bias": (SigmoidRouter, 0.0, 0.01),
}


# --- One layer ------------------------------------------------------------------------


class MoEBench:
    """The sizes of a run."""

    def __init__(self, options):
        self.tiny, self.seeds = options.tiny, (1,) if options.tiny else SEEDS
        self.rounds = 2 if self.tiny else options.rounds
        self.D, self.active = (16, 32) if self.tiny else (1024, 2816)
        self.tokens = (1, 8) if self.tiny else (1, 16, 128, 1024)
        self.updates = 3 if self.tiny else 200
        width = 32 if self.tiny else 64
        heads = {"n_heads": width // 16, "n_kv_groups": width // 16}
        self.sizes = {**SMALL, **heads, "emb_dim": width, "n_layers": 2}
        self.sizes["hidden_dim"] = 2 * width  # of two experts together

    def dense(self, width):
        return LlamaFeedForward({"emb_dim": self.D, "hidden_dim": width})

    def layer(self, name):
        E, A = SHAPES[name]
        return MixtureOfExperts(self.D, self.active // A, SoftmaxRouter(self.D, E, A))


def every_expert(layer, rows):
    """All experts compute all tokens, and what was not chosen counts nothing."""
    _, chosen, weights = layer.router(rows)
    full = rows.new_zeros(len(rows), len(layer.experts)).scatter(1, chosen, weights)
    outs = torch.stack([expert(rows) for expert in layer.experts], dim=1)  # (N, E, D)
    return (full[:, None] @ outs)[:, 0]


def by_token(layer, rows):
    _, chosen, weights = layer.router(rows)
    return dispatch_by_token(layer.experts, rows, chosen, weights)


def stacked(layer):
    """The weights of all experts as three tensors, each with a first axis of E."""
    return tuple(
        torch.stack([getattr(expert, name).weight for expert in layer.experts])
        for name in ("gate", "up", "down")
    )


def grouped(layer, weights_of_experts, rows):
    """PyTorch's grouped product in the place of one product for each expert."""
    gate, up, down = (weight.transpose(1, 2) for weight in weights_of_experts)
    _, chosen, weights = layer.router(rows)
    pairs = chosen.flatten()
    order = pairs.argsort(stable=True)
    tokens = order // chosen.shape[1]
    ends = pairs.bincount(minlength=len(layer.experts)).cumsum(0).int()
    x = rows[tokens]
    hidden = F.silu(F.grouped_mm(x, gate, offs=ends)) * F.grouped_mm(x, up, offs=ends)
    outs = F.grouped_mm(hidden, down, offs=ends) * weights.flatten()[order, None]
    return torch.zeros_like(rows).index_add(0, tokens, outs)


def collected(layer, rows):
    """All results are put together first, then weighed and added at once."""
    _, chosen, weights = layer.router(rows)
    pairs = chosen.flatten()
    order = pairs.argsort(stable=True)
    tokens = order // chosen.shape[1]
    parts = rows[tokens].split(pairs.bincount(minlength=len(layer.experts)).tolist())
    outs = [expert(part) for expert, part in zip(layer.experts, parts, strict=True)]
    outs = torch.cat(outs) * weights.flatten()[order, None]
    return torch.zeros_like(rows).index_add(0, tokens, outs)


def used_only(layer, rows):
    """As the layer, but experts that no token has chosen are not called."""
    _, chosen, weights = layer.router(rows)
    used, places = chosen.unique(return_inverse=True)
    experts = [layer.experts[e] for e in used.tolist()]
    return dispatch(experts, rows, places, weights)


def learn(layer, rows):
    """Forward and backward, as in training."""
    layer(rows).sum().backward()


def measured(runs, rounds, about):
    """Seconds of all, after each has run once."""
    for run in runs.values():
        run()
    return take_turns(runs, rounds, about)


def speed_table(bench):
    for name, (E, _) in SHAPES.items():
        layer, dense = bench.layer(name), bench.dense(bench.active)
        experts = stacked(layer)
        for tokens in bench.tokens:
            rows = torch.randn(tokens, bench.D)
            plain = {DENSE: functools.partial(dense, rows)}
            runs = plain | {
                SORTED: functools.partial(layer, rows[None]),
                GROUPED: functools.partial(grouped, layer, experts, rows),
                COLLECTED: functools.partial(collected, layer, rows),
                USED_ONLY: functools.partial(used_only, layer, rows),
            }
            slow = plain | {
                BY_TOKEN: functools.partial(by_token, layer, rows),
                ALL: functools.partial(every_expert, layer, rows),
            }
            with torch.no_grad():
                seconds = measured(runs, bench.rounds, f"{name}, {tokens} tokens")
                yield from speed_rows(seconds, name, tokens, "forward")
                if E == 8:
                    seconds = measured(slow, min(3, bench.rounds), "the slow ways")
                    seconds = speed_rows(seconds, name, tokens, "forward")
                    yield from (row for row in seconds if row["way"] != DENSE)
        runs = {
            DENSE: functools.partial(learn, dense, rows),
            SORTED: functools.partial(learn, layer, rows[None]),
        }
        seconds = measured(runs, bench.rounds, f"{name}, trained")
        yield from speed_rows(seconds, name, tokens, "forward and backward")


def speed_rows(seconds, layer, tokens, what):
    for way, spent in seconds.items():
        yield {
            "layer": layer,
            "way": way,
            "what": what,
            "tokens": tokens,
            "milliseconds": f"{1000 * statistics.median(spent):.4g}",
            "times_of_dense": f"{times_as_fast(seconds, DENSE, way):.3g}",
            "rounds": len(spent),
        }


def profile_table(bench):
    """The three largest operations, by the time spent in themselves."""
    rows = torch.randn(bench.tokens[-1], bench.D)
    for name in SHAPES:
        layer = bench.layer(name)
        ways = {SORTED: layer, COLLECTED: functools.partial(collected, layer)}
        for way, run in ways.items():
            with torch.no_grad():
                run(rows)
                with profile(activities=[ProfilerActivity.CPU]) as seen:
                    run(rows)
            events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
            whole = sum(event.self_cpu_time_total for event in events)
            for place, event in enumerate(events[:3], 1):
                yield {
                    "layer": name,
                    "way": way,
                    "place": place,
                    "operation": event.key,
                    "share": f"{event.self_cpu_time_total / whole:.3f}",
                }


# --- Balance --------------------------------------------------------------------------


def model_for(method, sizes, seed):
    """A small model, dense or with eight experts, two of them for each token."""
    model = LlamaModel(sizes)
    if method != DENSE:
        D, hidden = sizes["emb_dim"], sizes["hidden_dim"] // 2
        kind = METHODS[method][0]
        with_parts(
            model,
            feed_forward=lambda _: MixtureOfExperts(D, hidden, kind(D, 8, 2)),
        )
    return draw_weights(model, seed)


@torch.no_grad()
def loads_on(model, batches):
    """Tokens of each expert on all batches, (L, E)."""
    found = []
    for inputs, _ in batches:
        with record_routing(model) as routings:
            model(inputs)
        found.append(torch.stack([expert_counts(one) for one in routings]))
    return torch.stack(found).sum(dim=0)


def training_table(bench, loads_rows):
    content = fetch("instructions").read_bytes()
    entries = json.loads(content)
    for method in (DENSE, *METHODS):
        for seed in bench.seeds:
            model = model_for(method, bench.sizes, seed)
            train, validation = small_task(entries, seed, bench.updates)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
            start = time.process_time()
            if method == DENSE:
                train_dense(model, train, optimizer)
                violation = share = ""
            else:
                loads = train_experts(model, train, optimizer, *METHODS[method][1:])
                model.eval()
                load = loads_on(model, validation)
                violation = f"{max(map(max_violation, load)):.3f}"
                share = f"{(load / load.sum(dim=1, keepdim=True)).min():.4f}"
                loads_rows.extend(rows_of_loads(method, seed, loads, bench))
            spent = time.process_time() - start
            yield {
                "method": method,
                "seed": seed,
                "updates": bench.updates,
                "parameters": count_parameters(model),
                "validation_loss": f"{calc_loss_loader(validation, model, 'cpu'):.4f}",
                "max_violation": violation,
                "smallest_share": share,
                "seconds": f"{spent:.1f}",
                "data_sha256": hashlib.sha256(content).hexdigest()[:12],
            }


def train_dense(model, batches, optimizer):
    """The same loop for a model without routers."""
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    model.eval()


def rows_of_loads(method, seed, loads, bench):
    """Every tenth update: the shares of all experts, added up over ten."""
    for start in range(0, len(loads) - len(loads) % 10 or 1, 10):
        piece = loads[start : start + 10].sum(dim=0).double()
        for layer, load in enumerate(piece):
            shares = (load / load.sum()).tolist()
            yield {
                "method": method,
                "seed": seed,
                "update": min(start + 10, bench.updates),
                "layer": layer,
                "max_violation": f"{max_violation(load):.3f}",
                **{f"expert_{e}": f"{share:.4f}" for e, share in enumerate(shares)},
            }


# --- The run --------------------------------------------------------------------------


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=7, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench, begin = MoEBench(options), time.process_time()

    for name in options.only:
        torch.manual_seed(options.seed)
        rows, loads = [], []
        make = globals()[f"{name}_table"]
        for row in make(bench, loads) if name == "training" else make(bench):
            rows.append({**row, **tables.facts()})
            print("  " + ", ".join(map(str, row.values())), flush=True)
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        if loads:
            print(f"wrote {tables.write(options.out / 'loads.csv', loads)}")
    print(f"{time.process_time() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
