"""What does a cache save, what does it cost, and does guessing ahead pay?

    python3 -m course run ch04/03_kv-cache/experiments.py

Everything runs in one thread. Contestants take turns, and a figure is the median over
the rounds or the prompts; only the cases of `ahead` follow one after the other. Seconds
are those that the processor spent, so that a busy machine lengthens them little, and
all alike.

* `speed.csv`: 200 new tokens after a prompt of four, by a model of GPT-2 124M's size,
  with a cache and without, and by `transformers` with its cache on the same weights,
  which are random: a time does not depend on them;
* `curve.csv`: one step of that GPT and of SmolLM2-135M at lengths up to 1,024;
* `growth.csv`: the cache alone, grown by concatenation, by doubling, and made at once;
* `chunks.csv`: a prompt of 512 tokens, read in pieces of different sizes;
* `prefix.csv`: four questions after one long instruction, read again or kept;
* `window.csv`: SmolLM2's loss along the course's story, through a rolling window;
* `guesses.csv`: speculative decoding on 50 prompts, by draft, and a fast copy alone;
* `ahead.csv`: the same for one draft by how many tokens it guesses at a time, and how
  long the large model takes to read so many.

Takes about twenty minutes and 4 GB.
"""

import copy
import functools
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from course import tables
from course.assets import fetch
from course.testing.references import gpt2_config
from fast_copies import GPT_KINDS, arrange_columns, quantise_int8
from gpt import GPT_CONFIG_124M, GPTModel, generate_text_simple, initialise_like_gpt2
from gpt_download import gpt2_key_map
from kv_cache import KVCache, PromptCache, read_in_chunks, shared_start
from llama import SMOLLM2_135M, LlamaModel
from pretrained import load_pretrained
from script_tools import positive_int
from speculative import ModelDraft, PromptLookup, generate_speculatively
from variants import take_turns, times_as_fast

RESULTS = Path(__file__).parent / "results"
CONFIG = {**GPT_CONFIG_124M, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
TINY = {**CONFIG, "vocab_size": 128, "context_length": 64, "emb_dim": 24, "n_layers": 2}
TINY_LLAMA = {
    **SMOLLM2_135M,
    "vocab_size": 128,
    "context_length": 256,
    "emb_dim": 36,
    "head_dim": 4,
    "n_layers": 3,
    "hidden_dim": 32,
}
PLAIN, CACHED = "ours, no cache", "ours, cache"
COLUMNS = "ours, a fast copy, cache"
THEIRS = "transformers, cache"
INT8 = "the model itself in 8 bits"
SKIPPED = "19 layers of 30"
LOOKUP = "the text so far"
TABLES = ["speed", "curve", "growth", "chunks", "prefix", "window", "guesses", "ahead"]


# --- A text with and without a cache --------------------------------------------------


def reference(model):
    """The same weights in transformers' GPT-2."""
    cfg = model.cfg
    theirs = transformers.GPT2LMHeadModel(gpt2_config(cfg)).eval()
    weights, parts = theirs.transformer.state_dict(), model.state_dict()
    for our, (their, transposed, third) in gpt2_key_map(cfg).items():
        place = weights[their]
        if third is not None:
            place = place.chunk(3, dim=-1)[third]
        place.copy_(parts[our].T if transposed else parts[our])
    return theirs


def by_ours(model, idx, new_tokens):
    cfg = model.cfg
    cache = KVCache(cfg["n_layers"], cfg["context_length"])
    context = cfg["context_length"]
    return generate_text_simple(model, idx, new_tokens, context, cache=cache)


def by_transformers(theirs, idx, new_tokens):
    return theirs.generate(
        idx,
        attention_mask=torch.ones_like(idx),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )


def speed_table(bench):
    """Texts of all; the one without a cache is written in a part for each round."""
    model, theirs = bench.gpt, reference(bench.gpt)
    new = 9 if bench.tiny else 200
    idx = torch.randint(model.cfg["vocab_size"], (1, 4))
    ways = {
        CACHED: functools.partial(by_ours, model),
        COLUMNS: functools.partial(by_ours, arrange_columns(model, kinds=GPT_KINDS)),
        THEIRS: functools.partial(by_transformers, theirs),
    }
    for way in ways.values():  # warm up
        way(idx, 2)
    texts = {PLAIN: idx}

    def next_part():
        have, context = texts[PLAIN], model.cfg["context_length"]
        part = min(-(-new // bench.rounds), 4 + new - have.shape[1])
        texts[PLAIN] = generate_text_simple(model, have, part, context)

    def whole(name):
        texts[name] = ways[name](idx, new)

    runs = {name: functools.partial(whole, name) for name in ways}
    seconds = take_turns({PLAIN: next_part, **runs}, bench.rounds, "speed")
    spent = {name: statistics.median(times) for name, times in seconds.items()}
    spent[PLAIN] = sum(seconds[PLAIN])
    for name in seconds:
        yield {
            "contestant": name,
            "new_tokens": new,
            "seconds": f"{spent[name]:.4g}",
            "tokens_per_second": f"{new / spent[name]:.1f}",
            "over_no_cache": f"{spent[PLAIN] / spent[name]:.2f}",
            "over_transformers": f"{spent[THEIRS] / spent[name]:.2f}",
            "same_ids": str(torch.equal(texts[name], texts[PLAIN])),
            "rounds": bench.rounds,
        }


def last_steps(model, cache, idx, length, steps):
    """Read the last of `length` tokens, several times."""
    for _ in range(steps):
        cache.truncate(length - 1)
        model(idx[:, length - 1 : length], cache=cache)


@torch.no_grad()
def curve_table(bench):
    """A step after texts of growing length, with a cache and without."""
    lengths = (8, 16) if bench.tiny else (64, 128, 256, 512, 1024)
    for name, model in (("GPT 124M", bench.gpt), ("SmolLM2-135M", bench.llama)):
        idx = torch.randint(model.cfg["vocab_size"], (1, lengths[-1]))
        cache, steps = KVCache(model.cfg["n_layers"]), 2 if bench.tiny else 8
        for length in lengths:
            model(idx[:, cache.length : length], cache=cache)

            runs = {
                CACHED: functools.partial(last_steps, model, cache, idx, length, steps),
                PLAIN: functools.partial(model, idx[:, :length]),
            }
            seconds = take_turns(runs, bench.rounds, f"{name} {length}")
            cached = statistics.median(seconds[CACHED]) / steps
            plain = statistics.median(seconds[PLAIN])
            yield {
                "model": name,
                "length": length,
                "cached_tokens_per_second": f"{1 / cached:.2f}",
                "uncached_tokens_per_second": f"{1 / plain:.3f}",
                "times_as_fast": f"{plain / cached:.1f}",
                "steps": steps,
                "rounds": bench.rounds,
            }


# --- The cache by itself --------------------------------------------------------------


class Concatenated:
    """A cache of one layer that makes new tensors at each step."""

    def __init__(self):
        self.keys = self.values = None

    def append(self, keys, values):
        if self.keys is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


def growth_table(bench):
    """Milliseconds that a step spends on the caches of 12 layers, nothing else."""
    tokens = 32 if bench.tiny else 1024
    L, H, K = CONFIG["n_layers"], CONFIG["n_heads"], 64
    one = torch.randn(1, H, 1, K)
    marks = [tokens // 4, tokens // 2, tokens]

    def fill(make, spent):
        layers, start = make(), time.process_time()
        for step in range(1, tokens + 1):
            for layer in layers:
                layer.append(one, one)
            if step in marks:
                spent.append(time.process_time() - start)

    def kvcache(**more):
        cache = KVCache(L, **more)
        return [cache.layer(i) for i in range(L)]

    ways = {
        "concatenated": lambda: [Concatenated() for _ in range(L)],
        "room doubles": kvcache,
        "room made at once": lambda: kvcache(room=tokens),
    }
    spent = {name: [] for name in ways}
    runs = {
        name: functools.partial(fill, make, spent[name]) for name, make in ways.items()
    }
    take_turns(runs, bench.rounds, "growth")
    for name in ways:
        for at, mark in enumerate(marks):
            seconds = statistics.median(spent[name][at :: len(marks)])
            yield {
                "way": name,
                "tokens": mark,
                "milliseconds_so_far": f"{1000 * seconds:.1f}",
                "milliseconds_per_token": f"{1000 * seconds / mark:.3f}",
                "rounds": bench.rounds,
            }


def chunks_table(bench):
    model, tokens = bench.gpt, 32 if bench.tiny else 512
    sizes = (32, 8, 1) if bench.tiny else (512, 128, 32, 8)
    idx = torch.randint(model.cfg["vocab_size"], (1, tokens))

    last = {}

    def read(size):
        cache = KVCache(model.cfg["n_layers"])
        last[size] = read_in_chunks(model, idx, cache, size)

    runs = {size: functools.partial(read, size) for size in sizes}
    seconds = take_turns(runs, bench.rounds, "chunks")
    for size in sizes:
        gap = (last[size] - last[tokens]).abs().max().item()
        yield {
            "chunk_size": size,
            "prompt": tokens,
            "seconds": f"{statistics.median(seconds[size]):.3g}",
            "logits_within": f"{gap:.1e}",
            "rounds": bench.rounds,
        }


# --- A prefix that is read once -------------------------------------------------------

RULES = (
    "answer in one short sentence.",
    "use plain words that a child of ten understands.",
    "if you do not know the answer, say so and stop.",
    "never give advice about medicines, money or the law.",
    "write numbers up to twelve as words and others in figures.",
    "do not repeat the question before you answer it.",
    "be friendly, but leave out greetings and good wishes.",
    "when a question has a mistake in it, put that right first.",
)
INSTRUCTION = " ".join(f"Rule {n}: {rule}" for n, rule in enumerate(2 * RULES, 1))
QUESTIONS = (
    "What is the capital of France?",
    "How many legs has a spider?",
    "Why is the sky blue?",
    "Who wrote Hamlet?",
)


def prefix_table(bench):
    """Seconds until the first token of the answer can be chosen."""
    prompts = [
        bench.encode(
            [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": question},
            ]
        )
        for question in QUESTIONS
    ]
    reader = PromptCache(bench.llama)
    for number, ids in enumerate(map(torch.tensor, prompts)):
        before = torch.tensor(prompts[number - 1])  # another question, for each
        found, seconds = {}, {"kept": [], "again": []}
        for turn in range(bench.rounds):
            reader.read(before)
            ways = [("kept", reader), ("again", PromptCache(bench.llama))]
            for name, used in ways[:: 1 if turn % 2 == 0 else -1]:
                start = time.process_time()
                found[name] = used.read(ids)[-1]
                seconds[name].append(time.process_time() - start)
        gap = (found["kept"] - found["again"]).abs().max().item()
        yield {
            "prompt": len(ids),
            "read_now": len(ids) - shared_start(before, ids),
            "read_again": f"{statistics.median(seconds['again']):.3f}",
            "kept": f"{statistics.median(seconds['kept']):.3f}",
            "times_as_fast": f"{times_as_fast(seconds, 'kept', 'again'):.1f}",
            "logits_within": f"{gap:.1e}",
            "rounds": bench.rounds,
        }


# --- A rolling window -----------------------------------------------------------------


@torch.no_grad()
def losses_through(model, ids, cache, first):
    """The loss at each token: those up to `first` at once, then one by one."""
    parts = [model(ids[None, :first], cache=cache)[0]]
    for t in range(first, len(ids) - 1):
        parts.append(model(ids[None, t : t + 1], cache=cache)[0])
    logits = torch.cat(parts)[: len(ids) - 1]
    return F.cross_entropy(logits, ids[1:], reduction="none")


def window_table(bench):
    story = fetch("short-story").read_text(encoding="utf-8")
    tokens, window, block = (61, 20, 20) if bench.tiny else (769, 256, 64)
    ids = torch.tensor(bench.encode_text(story)[:tokens])
    L, fast = bench.llama.cfg["n_layers"], arrange_columns(bench.llama)
    caches = {
        "everything": (KVCache(L, room=tokens), tokens),
        "the last 256": (KVCache(L, window=window), window),
        "4 sinks and the last 252": (KVCache(L, window=window, sinks=4), window),
    }
    for name, (cache, first) in caches.items():
        losses = losses_through(fast, ids, cache, first)
        for start, part in enumerate(losses.split(block)):
            yield {
                "kept": name,
                "from_token": start * block,
                "to_token": start * block + len(part),
                "loss": f"{part.mean():.3f}",
                "cache_megabytes": f"{cache.nbytes / 1e6:.2f}",
            }


# --- Guessing ahead -------------------------------------------------------------------


def with_layers(model, kept):
    """A smaller model of some of the layers; the weights are shared."""
    smaller = copy.copy(model)
    smaller._modules = dict(model._modules)
    smaller.trf_blocks = nn.ModuleList(model.trf_blocks[i] for i in kept)
    smaller.cfg = {**model.cfg, "n_layers": len(kept)}
    return smaller


def skipping(model):
    """Without every second layer between the first four and the last four."""
    L = model.cfg["n_layers"]
    kept = [i for i in range(L) if i < 4 or i >= L - 4 or i % 2]
    return with_layers(model, kept)


def prompts_of(bench):
    """Instructions with and without a text to work on, half of each."""
    rows = json.loads(fetch("instructions").read_text(encoding="utf-8"))
    rows = [row for row in rows if len(row["input"]) < 200]
    count = 4 if bench.tiny else 50
    groups = [
        [row for row in rows if bool(row["input"]) == with_text]
        for with_text in (False, True)
    ]
    chosen = itertools.chain.from_iterable(
        zip(*(group[:: len(group) // (count // 2)] for group in groups), strict=False)
    )
    for row in itertools.islice(chosen, count):
        asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        ids = bench.encode([{"role": "user", "content": asked}])
        yield "with a text" if row["input"] else "question", torch.tensor([ids])


def guesses_table(bench):
    model, new = bench.llama, 6 if bench.tiny else 16
    vocab, fast = model.cfg["vocab_size"], arrange_columns(model)
    drafts = {
        INT8: (quantise_int8(model), 4),
        SKIPPED: (skipping(model), 4),
        LOOKUP: (None, 8),
    }
    found = []

    def guess(name, idx, texts):
        small, ahead = drafts[name]
        draft = PromptLookup(vocab) if small is None else ModelDraft(small)
        texts[name] = generate_speculatively(model, draft, idx, new, ahead)

    for kind, idx in tqdm(list(prompts_of(bench)), unit="prompt", disable=None):
        texts = {}

        def alone(name, writer, idx=idx, texts=texts):
            texts[name] = by_ours(writer, idx, new), None

        runs = {
            CACHED: functools.partial(alone, CACHED, model),
            COLUMNS: functools.partial(alone, COLUMNS, fast),
        }
        for name in drafts:
            runs[name] = functools.partial(guess, name, idx, texts)
        names = list(runs)
        turn = len(found) % len(names)
        spent = take_turns(
            {name: runs[name] for name in names[turn:] + names[:turn]}, 1
        )
        found.append((kind, texts, spent))
    for name in (CACHED, COLUMNS, *drafts):
        for kind in ("question", "with a text", "all"):
            yield guesses_row(name, kind, new, found, drafts)


def guesses_row(name, kind, new, found, drafts):
    some = [row for row in found if kind in (row[0], "all")]
    seconds = {key: sum(spent[key][0] for _, _, spent in some) for key in some[0][2]}
    counts = [texts[name][1] for _, texts, _ in some] if name in drafts else []
    drafted, passes = (
        sum(getattr(c, f) for c in counts) for f in ("drafted", "passes")
    )
    accepted = sum(c.accepted for c in counts)
    same = sum(torch.equal(texts[name][0], texts[CACHED][0]) for _, texts, _ in some)
    return {
        "writes_by": name,
        "prompts": len(some),
        "kind": kind,
        "new_tokens": new,
        "same_text": same,
        "guessed_at_a_time": drafts[name][1] if name in drafts else "",
        "accepted_share": f"{accepted / drafted:.3f}" if drafted else "",
        "tokens_per_pass": f"{len(some) * new / passes:.2f}" if passes else "",
        "seconds_per_token": f"{seconds[name] / (len(some) * new):.4f}",
        "times_as_fast": f"{seconds[CACHED] / seconds[name]:.2f}",
    }


@torch.no_grad()
def ahead_table(bench):
    """By number of guesses: what a pass costs, and what comes of it."""
    model, small = bench.llama, quantise_int8(bench.llama)
    new, prompts = (6, 2) if bench.tiny else (24, 16)
    some = [idx for _, idx in prompts_of(bench)][:prompts]
    sizes = (1, 2) if bench.tiny else (1, 2, 4, 6, 8)
    cost = reading_costs(bench, [0, *sizes], small)
    baseline, rows = [], {size: [] for size in sizes}
    for idx in tqdm(some, desc="ahead", unit="prompt", disable=None):
        start = time.process_time()
        expected = by_ours(model, idx, new)
        baseline.append(time.process_time() - start)
        for size in sizes:
            start = time.process_time()
            text, counts = generate_speculatively(
                model, ModelDraft(small), idx, new, size
            )
            spent = time.process_time() - start
            rows[size].append((spent, counts, torch.equal(text, expected)))
    for size in sizes:
        spent, counts, same = zip(*rows[size], strict=True)
        drafted, accepted = (
            sum(getattr(count, field) for count in counts)
            for field in ("drafted", "accepted")
        )
        yield {
            "guesses": size,
            "prompts": len(some),
            "same_text": sum(same),
            "accepted_share": f"{accepted / drafted:.3f}",
            "tokens_per_pass": f"{len(some) * new / sum(c.passes for c in counts):.2f}",
            "times_as_fast": f"{sum(baseline) / sum(spent):.2f}",
            "pass_over_one_token": f"{cost[size] / cost[0]:.2f}",
            "guess_over_one_token": f"{cost['guess'] / cost[0]:.3f}",
        }


def reading_costs(bench, sizes, small):
    """Seconds to read 1 + n tokens at once after 100, and for one step of the draft."""
    past = 8 if bench.tiny else 100
    readers = {}
    for name, model in ((0, bench.llama), ("guess", small)):
        idx = torch.randint(model.cfg["vocab_size"], (1, past + max(sizes) + 1))
        cache = KVCache(model.cfg["n_layers"])
        model(idx[:, :past], cache=cache)
        readers[name] = model, cache, idx

    def read(name, tokens):
        model, cache, idx = readers[name]
        cache.truncate(past)
        model(idx[:, past : past + tokens], cache=cache)

    runs = {size: functools.partial(read, 0, 1 + size) for size in sizes}
    runs["guess"] = functools.partial(read, "guess", 1)
    seconds = take_turns(runs, 2 if bench.tiny else 15, "costs")
    return {name: statistics.median(times) for name, times in seconds.items()}


# --- The run --------------------------------------------------------------------------


class Bench:
    """The models, made when they are first asked for."""

    def __init__(self, options):
        self.tiny, self.rounds = options.tiny, options.rounds

    @functools.cached_property
    def gpt(self):
        cfg = TINY if self.tiny else CONFIG
        return initialise_like_gpt2(GPTModel(cfg)).eval()

    @functools.cached_property
    def _real(self):
        return load_pretrained("smollm2-135m")

    @functools.cached_property
    def llama(self):
        return LlamaModel(TINY_LLAMA).eval() if self.tiny else self._real.model

    def encode(self, messages):
        if self.tiny:
            text = " ".join(message["content"] for message in messages)
            return self.encode_text(text[-40:])
        return self._real.tokenizer.render_chat(messages)

    def encode_text(self, text):
        if self.tiny:
            return [min(ord(sign), 127) for sign in text]
        return self._real.tokenizer.encode(text)


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    makers = {name: globals()[f"{name}_table"] for name in TABLES}
    bench, begin = Bench(options), time.process_time()
    for name in options.only:
        torch.manual_seed(options.seed)
        common = tables.facts(seed=options.seed, transformers=transformers.__version__)
        rows = [{**row, **common} for row in makers[name](bench)]
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        for row in rows:
            print("  " + ", ".join(str(value) for value in list(row.values())[:-6]))
    print(f"{time.process_time() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
