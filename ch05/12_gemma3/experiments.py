"""Gemma 3 270M in our model, in transformers and in llama.cpp: the same text, how fast?

    python3 -m course run ch05/12_gemma3/experiments.py

The file must be there: `python3 -m course.assets fetch gemma3-270m` says under which
terms of use. All contestants read the same 4 to 8 bits a weight; ours and transformers
turn them back into float32, llama.cpp multiplies with them.

* `text.csv`: the likeliest 24 tokens after ten prompts. Where llama.cpp takes another
  token than we do, it stands by how much each was ahead, in log-probability; and how
  far the log-probabilities of the five likeliest tokens lie apart at the places before,
  where both agree, at the most and on the median;
* `norms.csv`: the quartiles of the learned factors of each kind of norm;
* `loss.csv`: the loss on the course's story, and on its first 128 tokens;
* `speed.csv`: 64 tokens after one prompt, all contestants in turns within one run;
* `loading.csv`: seconds and peak memory of reading the file, in a fresh process.

Takes about five minutes in one thread, and 4 GB.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional as F

from course import tables
from course.assets import fetch
from fast_copies import quantise_int8
from gemma3 import GEMMA3_270M, Gemma3Config, Gemma3Model, gemma3_key_map
from gemma3_files import gemma3_settings, load_gemma3_from_gguf
from process_memory import peak_memory
from races import by_llama_cpp, by_ours, by_transformers, race, speed_rows

RESULTS = Path(__file__).parent / "results"
TABLES = ("text", "norms", "loss", "speed", "loading")
OURS, INT8 = "ours, float32", "ours, int8"
THEIRS, CPP = "transformers, float32", "llama.cpp, the file's 4 to 8 bits"
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "1, 1, 2, 3, 5, 8, 13,",
    "Q: What is the boiling point of water?\nA:",
    "Gr\u00fc\u00dfe aus K\u00f6ln! Heute ist",
    "\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059\u306d\u3002",
    "Dear Sir or Madam,\n\nI am writing to",
    "To be, or not to be,",
    "The lamp at the end of the pier",
]
TINY = Gemma3Config.of(
    {
        **GEMMA3_270M,
        "vocab_size": 256,
        "context_length": 512,
        "emb_dim": 36,
        "head_dim": 4,
        "n_layers": 2,
        "hidden_dim": 32,
        "full_every": 2,
        "window": 16,
    }
)


def reference(model):
    """The same weights in transformers' Gemma 3; the tensors are shared."""
    config = transformers.Gemma3TextConfig(**gemma3_settings(model.cfg))
    with torch.device("meta"):
        theirs = transformers.Gemma3ForCausalLM(config)
    ours = model.state_dict()
    weights = {their: ours[our] for their, our in gemma3_key_map(model.cfg).items()}
    theirs.load_state_dict(weights, assign=True, strict=False)
    theirs.tie_weights()
    # What is computed when the model is made was left without numbers on meta.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    theirs.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    return theirs.eval()


# --- The same text? -------------------------------------------------------------------


@torch.no_grad()
def text_rows(model, theirs, cpp, prompts, new_tokens, tokenizer, common):
    """A row for each prompt; `prompts` are ids, (1, T), by their text."""
    for prompt, idx in prompts.items():
        T = idx.shape[1]
        ours = by_ours(model)(idx, new_tokens)[0, T:].tolist()
        transformers_same = by_transformers(theirs)(idx, new_tokens)[0, T:].tolist()
        row = {
            "prompt": prompt,
            "tokens": new_tokens,
            "as_transformers": shared(ours, transformers_same),
            "as_llama_cpp": "",
            "our_token": "",
            "their_token": "",
            "our_lead": "",
            "their_lead": "",
            "apart": "",
            "median_apart": "",
        }
        if cpp is not None:
            told = cpp(idx, new_tokens, top=5)
            chosen = [next(iter(top)) for top in told]
            same = shared(ours, chosen)
            text = torch.tensor([[*idx[0].tolist(), *ours]])
            logits = model(text)[0, T - 1 : -1]  # (new_tokens, V)
            log_probs = torch.log_softmax(logits, dim=-1)
            gaps = apart(log_probs, told[:same])  # not where they part
            row |= {
                "as_llama_cpp": same,
                "apart": f"{max(gaps):.3f}",
                "median_apart": f"{statistics.median(gaps):.3f}",
            }
            if same < new_tokens:
                a, b = ours[same], chosen[same]
                lead = (log_probs[same, a] - log_probs[same, b]).item()
                told_lead = told[same][b] - told[same].get(a, float("nan"))
                row |= {
                    "our_token": tokenizer.decode([a]),
                    "their_token": tokenizer.decode([b]),
                    "our_lead": f"{lead:.3f}",
                    "their_lead": f"{told_lead:.3f}",
                }
        yield row | common


def shared(first, second):
    """How many tokens two texts have in common from the start on."""
    pairs = zip(first, second, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(first))


def apart(log_probs, told):
    """How far the log-probabilities of the five likeliest tokens differ."""
    return [
        abs(log_probs[i, token].item() - number)
        for i, top in enumerate(told)
        for token, number in top.items()
    ]


def norm_rows(model, common):
    """The quartiles of 1 + w for each kind of norm, over all layers."""
    found = {}
    for name, parameter in model.named_parameters():
        if "norm" in name:
            found.setdefault(name.split(".")[-2], []).append(1 + parameter.detach())
    for name, factors in found.items():
        factors = torch.cat(factors)
        low, middle, high = factors.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        near = ((factors - 1).abs() < 0.1).float().mean().item()
        yield {
            "norm": name,
            "factors": len(factors),
            "lower_quartile": f"{low:.2f}",
            "median": f"{middle:.2f}",
            "upper_quartile": f"{high:.2f}",
            "share_within_0.1_of_1": f"{near:.3f}",
            **common,
        }


# --- The same loss? -------------------------------------------------------------------


@torch.no_grad()
def loss_rows(model, theirs, cpp, idx, few, common):
    """Mean loss of a token; llama.cpp tells the likeliest 2,000 of each place."""
    for name, tokens in (("the story", idx.shape[1] - 1), ("its beginning", few)):
        part, target = idx[:, : tokens + 1], idx[0, 1 : tokens + 1]
        losses = {
            OURS: F.cross_entropy(model(part[:, :-1])[0], target, reduction="none"),
            THEIRS: F.cross_entropy(
                theirs(part[:, :-1]).logits[0], target, reduction="none"
            ),
        }
        if cpp is not None and name == "its beginning":
            told = [cpp(part[:, : i + 1], 1, top=2000)[0] for i in range(tokens)]
            found = [-top.get(int(t), float("nan")) for top, t in zip(told, target)]
            losses[CPP] = torch.tensor(found)
            known = losses[CPP].isfinite()
            losses = {who: loss[known] for who, loss in losses.items()}
        for who, loss in losses.items():
            yield {
                "contestant": who,
                "text": name,
                "tokens": len(loss),
                "loss": f"{loss.mean().item():.4f}",
                "most_apart": f"{(loss - losses[OURS]).abs().max().item():.1g}",
                **common,
            }


# --- How fast? ------------------------------------------------------------------------


def speed_table(model, theirs, cpp, idx, new_tokens, rounds, common):
    runs = {
        OURS: by_ours(model),
        INT8: by_ours(quantise_int8(model)),
        THEIRS: by_transformers(theirs),
    }
    against = {OURS: THEIRS}
    if cpp is not None:
        runs[CPP] = cpp
        against[INT8] = CPP
    for run in runs.values():  # warm up
        run(idx, 2)
    seconds = race(runs, rounds, lambda run: run(idx, new_tokens))
    return list(speed_rows(seconds, "whole text", new_tokens, against, common))


def load_once(path):
    """In a process of its own: print seconds and how many bytes the peak rose by."""
    before, start = peak_memory(), time.perf_counter()
    model, _ = load_gemma3_from_gguf(path)
    seconds, rise = time.perf_counter() - start, peak_memory() - before
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"measured {seconds} {rise} {held}")


def loading_row(path, common):
    done = subprocess.run(
        [sys.executable, __file__, "--load", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, rise, held = map(float, done.stdout.split("measured ")[1].split())
    return {
        "loader": OURS,
        "seconds": f"{seconds:.2f}",
        "peak_megabytes": f"{rise / 1e6:.0f}",
        "model_megabytes": f"{held / 1e6:.0f}",
        **common,
    }


# --- The run --------------------------------------------------------------------------


class Letters:
    """Ids as text, for the tiny model, which has no vocabulary."""

    def decode(self, ids):
        return " ".join(map(str, ids))


def prepare(tiny):
    """Model, tokenizer, prompts, the story's ids, and the file if there is one."""
    if tiny:
        model = Gemma3Model(TINY).eval()
        prompts = {text: torch.randint(256, (1, 8)) for text in PROMPTS[:2]}
        return model, Letters(), prompts, torch.randint(256, (1, 60)), None
    path = fetch("gemma3-270m")
    model, tokenizer = load_gemma3_from_gguf(path)
    start, story = [tokenizer.bos_token], fetch("short-story")
    prompts = {text: torch.tensor([start + tokenizer.encode(text)]) for text in PROMPTS}
    ids = start + tokenizer.encode(story.read_text(encoding="utf-8"))
    return model, tokenizer, prompts, torch.tensor([ids[:1025]]), path


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    parser.add_argument("--load", type=Path, help="only load a file, and measure that")
    options = parser.parse_args(arguments)
    if options.load:
        load_once(options.load)
        return 0
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    common = tables.facts(seed=options.seed, transformers=transformers.__version__)
    model, tokenizer, prompts, story, path = prepare(options.tiny)
    new_tokens, few, long = (4, 8, 6) if options.tiny else (24, 128, 64)
    cpp = None if path is None else by_llama_cpp(path, 1)
    theirs, first = reference(model), next(iter(prompts.values()))
    makers = {
        "text": lambda: text_rows(
            model, theirs, cpp, prompts, new_tokens, tokenizer, common
        ),
        "norms": lambda: norm_rows(model, common),
        "loss": lambda: loss_rows(model, theirs, cpp, story, few, common),
        "speed": lambda: speed_table(
            model, theirs, cpp, first, long, options.rounds, common
        ),
        "loading": lambda: [loading_row(path, common)] if path else [],
    }
    for name in options.only:
        rows = list(makers[name]())
        if not rows:
            continue
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        for row in rows:
            print("  " + ", ".join(str(value) for value in list(row.values())[:9]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
