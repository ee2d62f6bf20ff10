"""What did each family of models change? All families of the course side by side.

    python3 -m course run ch05/experiments.py

For one published size of each family: how many parameters it has, and what its cache
keeps of a text, in bfloat16. Nothing is loaded, and no memory is taken for weights: the
models are made on PyTorch's `meta` device, which knows shapes alone. Those that the
course builds are its own, and their caches are filled and weighed; of those that it
only names the settings of `transformers` are counted.

Writes `results/families.csv` and `families.svg`, the tree on the chapter's page, and
prints the table of that page. Half a minute.

Sources: the page's table names one for each family; sizes that no report prints are
those of the published `config.json`.
"""

import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch

from course import tables
from gemma3 import GEMMA3_270M, Gemma3Model, gemma3_windows
from gpt import GPT_CONFIG_124M, GPTModel, count_parameters
from kv_cache import KVCache
from llama import LLAMA32_1B, SMOLLM2_135M, LlamaModel
from olmo3 import OLMO3_7B, Olmo3Model, olmo3_windows
from qwen3 import QWEN3_0_6B, Qwen3Model

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
BYTES = torch.bfloat16.itemsize


class Counted(NamedTuple):
    """One published size."""

    parameters: int
    growing: int  # bytes of the cache for each token of a long text
    once: int  # bytes that it takes beside those, however long the text


class Branch(NamedTuple):
    """One family: its place in the tree, and what the page says of it."""

    size: str  # that is counted
    year: int
    parent: str  # whose parts it took over, most of them
    shown: tuple[str, ...]  # lines in the tree
    changed: str
    why: str
    source: str
    code: str  # a folder of the course, empty for a family that it does not build
    parts: str  # where parts of such a family are built
    count: Callable[[], Counted]


# --- Counting -------------------------------------------------------------------------


def ours(
    model: Callable[[Any], Any],
    cfg: Any,
    windows: Sequence[int | None] | None = None,
) -> Counted:
    """A model of the course: its parameters, and its cache after two long texts.

    Args:
        model: its class.
        cfg: its config.
        windows: how many tokens each layer sees, None for all of them.
    """
    full = 100 + max((window for window in windows or () if window), default=0)
    with torch.device("meta"):
        made = model(cfg).to(torch.bfloat16)
        short, long = (_cache_of(made, n, windows) for n in (full, full + 200))
    growing = (long - short) // 200
    return Counted(count_parameters(made), growing, short - full * growing)


@torch.no_grad()
def _cache_of(model, tokens, windows):
    L = model.cfg["n_layers"]
    cache = KVCache(L, room=tokens, window=windows, masked=windows is not None)
    model(torch.zeros(1, tokens, dtype=torch.long), cache=cache)
    return cache.nbytes


def theirs(name: str, kept: Callable[[Any], tuple[int, int]], **settings: Any):
    """A model of the `transformers` library, as `made` makes it.

    Args:
        name: of the family there, such as "Gemma4".
        kept: from its config to the bytes of its cache, growing and once.
        settings: as published.
    """
    with torch.device("meta"):
        config, model = made(name, **settings)
    return Counted(count_parameters(model), *kept(config))


def made(name: str, **settings: Any) -> tuple[Any, Any]:
    """`(config, model)` of a family of the `transformers` library, for text alone."""
    import transformers

    text = f"{name}TextConfig"
    kind = getattr(transformers, text, None) or getattr(transformers, f"{name}Config")
    config = kind(**settings)
    return config, getattr(transformers, f"{name}ForCausalLM")(config)


def keys_and_values(config: Any) -> tuple[int, int]:
    """Of layers that see everything, or a window, and that may borrow from others."""
    growing = once = 0
    own = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)
    for i, kind in enumerate(config.layer_types[:own]):
        layer = config.per_layer_config[i] if config.is_heterogeneous else config
        width = getattr(layer, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        bytes_of_token = 2 * layer.num_key_value_heads * width * BYTES
        if kind == "full_attention":
            growing += bytes_of_token
        elif kind == "sliding_attention":
            once += config.sliding_window * bytes_of_token
    return growing, once


def with_states(config: Any) -> tuple[int, int]:
    """Of Qwen3.5: three layers of four keep a matrix a head, in float32."""
    growing, _ = keys_and_values(config)
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    matrices = config.linear_num_value_heads * key * value * torch.float32.itemsize
    channels = 2 * config.linear_num_key_heads * key
    channels += config.linear_num_value_heads * value
    before = (config.linear_conv_kernel_dim - 1) * channels * BYTES  # tokens it needs
    return growing, config.layer_types.count("linear_attention") * (matrices + before)


def compressed(config: Any) -> tuple[int, int]:
    """Of DeepSeek V4: one entry for several tokens, key and value at once, beside a
    window of tokens; entries of four tokens have a small key for the choice, too.
    """
    kinds, growing = list(config.layer_types), 0.0
    for kind, rate in config.compress_rates.items():
        picked = kind == "compressed_sparse_attention"
        entry = config.head_dim + (config.index_head_dim if picked else 0)
        growing += kinds.count(kind) * entry * BYTES / rate
    once = len(kinds) * config.sliding_window * config.head_dim * BYTES
    return round(growing), once


# --- The families ---------------------------------------------------------------------

QWEN35_0_8B = {
    "vocab_size": 248_320,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "tie_word_embeddings": True,
}
GEMMA4_E2B = {
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
}
DEEPSEEK_V4_FLASH = {  # its settings are those that transformers starts from
    "compress_ratios": [0, 0, *[4, 128] * 20, 4],
}

FAMILIES = {
    "GPT-2": Branch(
        size="124M",
        year=2019,
        parent="",
        shown=("norms before each part", "learned positions", "biases, GELU"),
        changed="layer norm before attention and feed-forward, and once at the end",
        why="deep stacks train stably",
        source="[report](https://cdn.openai.com/better-language-models/"
        "language_models_are_unsupervised_multitask_learners.pdf)",
        code="../ch04",
        parts="",
        count=lambda: ours(
            GPTModel, {**GPT_CONFIG_124M, "qkv_bias": True, "tie_weights": True}
        ),
    ),
    "Llama": Branch(
        size="3.2 1B",
        year=2023,
        parent="GPT-2",
        shown=("RMS norm, no biases", "RoPE, SwiGLU", "heads share keys, values"),
        changed="RMS norm, RoPE, SwiGLU, no biases; from 3 on grouped queries in "
        "all sizes",
        why="less to compute and to keep; positions that can be stretched",
        source="[arXiv:2302.13971](https://arxiv.org/abs/2302.13971), "
        "[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)",
        code="07_gpt_to_llama",
        parts="",
        count=lambda: ours(LlamaModel, LLAMA32_1B),
    ),
    "SmolLM2": Branch(
        size="135M",
        year=2024,
        parent="Llama",
        shown=("no new part", "narrow, 30 layers deep", "other data"),
        changed="nothing in the blocks; a small Llama, narrow and deep, with tied "
        "embeddings",
        why="a small model gains most from its data",
        source="[arXiv:2502.02737](https://arxiv.org/abs/2502.02737)",
        code="07_gpt_to_llama",
        parts="",
        count=lambda: ours(LlamaModel, SMOLLM2_135M),
    ),
    "Qwen3": Branch(
        size="0.6B",
        year=2025,
        parent="Llama",
        shown=("queries, keys normalised", "heads wider than D / H", "or 128 experts"),
        changed="RMS norm of each query and key; a head width of its own; in two sizes "
        "128 experts, of which a token uses 8",
        why="scores that cannot run away in training; more weights at the price of few",
        source="[arXiv:2505.09388](https://arxiv.org/abs/2505.09388)",
        code="11_qwen3",
        parts="",
        count=lambda: ours(Qwen3Model, QWEN3_0_6B),
    ),
    "Gemma 3": Branch(
        size="270M",
        year=2025,
        parent="Llama",
        shown=("5 windows, 1 full layer", "norms on both sides", "GELU in the gate"),
        changed="windows in five layers of six, with a RoPE base of their own; norms "
        "before and behind each part; normalised queries and keys; GELU in the gate",
        why="a cache that long texts hardly fill",
        source="[arXiv:2503.19786](https://arxiv.org/abs/2503.19786)",
        code="12_gemma3",
        parts="",
        count=lambda: ours(Gemma3Model, GEMMA3_270M, gemma3_windows(GEMMA3_270M)),
    ),
    "Olmo 3": Branch(
        size="7B",
        year=2025,
        parent="Llama",
        shown=("norms behind each part", "one norm for all heads", "3 windows, 1 full"),
        changed="norms behind attention and feed-forward alone; one norm over all "
        "queries and one over all keys; windows in three layers of four, and YaRN in "
        "the fourth",
        why="training without spikes; a small cache, and texts eight times as long as "
        "those of the first training; data, code and checkpoints are open, too",
        source="[arXiv:2512.13961](https://arxiv.org/abs/2512.13961)",
        code="13_olmo3",
        parts="",
        count=lambda: ours(Olmo3Model, OLMO3_7B, olmo3_windows(OLMO3_7B)),
    ),
    "Qwen3.5": Branch(
        size="0.8B",
        year=2026,
        parent="Qwen3",
        shown=(
            "3 of 4: gated delta rule",
            "a gate behind attention",
            "RoPE on a quarter",
        ),
        changed="the gated delta rule in three layers of four; in the fourth a gate "
        "behind attention, and RoPE on a quarter of each head",
        why="a state of one size in place of most of the cache",
        source="[model card](https://huggingface.co/Qwen/Qwen3.5-0.8B), "
        "[arXiv:2412.06464](https://arxiv.org/abs/2412.06464)",
        code="",
        parts="[delta rule](../ch04/08_deltanet/README.md)",
        count=lambda: theirs("Qwen3_5", with_states, **QWEN35_0_8B),
    ),
    "Gemma 4": Branch(
        size="E2B",
        year=2026,
        parent="Gemma 3",
        shown=("20 of 35 layers borrow", "wider heads if full", "embeddings per layer"),
        changed="the last 20 of 35 layers borrow keys and values; full layers have "
        "heads of 512, with RoPE on a quarter; for each layer a small embedding of the "
        "token",
        why="telephones: little cache, and tables that need no fast memory",
        source="[arXiv:2607.02770](https://arxiv.org/abs/2607.02770)",
        code="",
        parts="[shared keys](../ch04/10_kv-sharing/README.md)",
        count=lambda: theirs("Gemma4", keys_and_values, **GEMMA4_E2B),
    ),
    "DeepSeek V4": Branch(
        size="Flash",
        year=2026,
        parent="Llama",
        shown=("summaries of 4, of 128", "4 streams, not 1", "256 experts"),
        changed="attention over summaries of 4 tokens, some of them picked, and of "
        "128; four streams in place of one shortcut; 256 experts and a shared one",
        why="texts of a million tokens",
        source="[arXiv:2606.19348](https://arxiv.org/abs/2606.19348)",
        code="",
        parts="[picked keys](../ch04/09_dsa/README.md), "
        "[experts](../ch04/07_moe/README.md)",
        count=lambda: theirs("DeepseekV4", compressed, **DEEPSEEK_V4_FLASH),
    ),
}


def rows():
    """One row for each family, as `families.csv` holds it."""
    for name, family in FAMILIES.items():
        counted = family.count()
        yield {
            "family": name,
            "size": family.size,
            "parameters": counted.parameters,
            "cache_bytes_per_token": counted.growing,
            "cache_bytes_once": counted.once,
            "megabytes_once": f"{counted.once / 1e6:.1f}",
        }


# --- The page -------------------------------------------------------------------------


def page(found):
    """The lines of the chapter's table."""
    yield (
        "| family | what it changed | why | parameters | cache bytes a token | "
        "and once | code | source |"
    )
    yield "| --- " * 8 + "|"
    for row in found:
        family = FAMILIES[row["family"]]
        built = f"[`{Path(family.code).name}`]({family.code}/README.md)"
        once = float(row["megabytes_once"])
        cells = [
            f"**{row['family']}** {family.size}, {family.year}",
            family.changed,
            family.why,
            f"{int(row['parameters']):,}",
            f"{int(row['cache_bytes_per_token']):,}",
            f"{once:.1f} MB" if once else "-",
            built if family.code else f"parts: {family.parts}",
            family.source,
        ]
        yield f"| {' | '.join(cells)} |"


# Left edge of each column and top of each row; a box is 205 by 102.
COLUMNS = {2019: 12, 2023: 258, 2024: 504, 2025: 504, 2026: 750}
PLACES = {  # row
    "GPT-2": 1,
    "Llama": 1,
    "SmolLM2": 0,
    "Qwen3": 1,
    "Gemma 3": 2,
    "Olmo 3": 3,
    "Qwen3.5": 1,
    "Gemma 4": 2,
    "DeepSeek V4": 4,
}
WIDE, HIGH, ROW, TOP = 205, 102, 122, 44
STYLE = """
  .page { fill: #ffffff; }
  .box { fill: #e8f1fb; stroke: #1b4f8a; stroke-width: 1.5; }
  .named { fill: #ffffff; stroke-dasharray: 5 4; }
  .way { fill: none; stroke: #5c6773; stroke-width: 1.5; }
  text { fill: #16202b; font: 13px system-ui, sans-serif; }
  .name { font-weight: 700; font-size: 15px; }
  .year, .note { fill: #4a5561; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #10161d; }
    .box { fill: #17304d; stroke: #7db4f0; }
    .named { fill: #10161d; }
    .way { stroke: #9aa7b4; }
    text { fill: #eef3f8; }
    .year, .note { fill: #b3c0cc; }
  }
"""


def corner(name):
    """Left and upper edge of a family's box."""
    return COLUMNS[FAMILIES[name].year], TOP + ROW * PLACES[name]


def drawing(found) -> str:
    """The family tree as SVG, light or dark as its reader's system is."""
    width, height = 967, TOP + 5 * ROW + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<title>Family tree of the models of the course</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    years = {2019: "2019", 2023: "2023", 2024: "2024, 2025", 2026: "2026"}
    for year, text in years.items():
        parts.append(_text(COLUMNS[year], 28, text, "year"))
    for name, family in FAMILIES.items():
        if family.parent:
            parts.append(_way(corner(family.parent), corner(name)))
    for row in found:
        parts += _box(row)
    parts.append(_text(12, TOP + 4 * ROW + 30, "Solid: built in this course.", "note"))
    parts.append(_text(12, TOP + 4 * ROW + 50, "Dashed: compared on paper.", "note"))
    parts.append(_text(12, TOP + 4 * ROW + 80, "B: bytes of cache a token,", "note"))
    parts.append(_text(12, TOP + 4 * ROW + 100, "in a long text.", "note"))
    return "\n".join([*parts, "</svg>", ""])


def _box(row):
    name, family = row["family"], FAMILIES[row["family"]]
    x, y = corner(name)
    kind = "box" if family.code else "box named"
    size = f"{_short(int(row['parameters']))}, {int(row['cache_bytes_per_token']):,} B"
    place = f'x="{x}" y="{y}" width="{WIDE}" height="{HIGH}"'
    yield f'<rect class="{kind}" {place} rx="7"/>'
    yield _text(x + 10, y + 22, name, "name")
    for line, text in enumerate((size, *family.shown)):
        yield _text(x + 10, y + 41 + 17 * line, text)


def _way(parent, child):
    """A line from the right edge of one box to the left edge of another."""
    x1, y1 = parent[0] + WIDE, parent[1] + HIGH // 2
    x2, y2 = child[0], child[1] + HIGH // 2
    middle = x1 + (COLUMNS[2023] - COLUMNS[2019] - WIDE) // 2
    return f'<path class="way" d="M {x1} {y1} H {middle} V {y2} H {x2}"/>'


def _text(x, y, text, kind=""):
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(text)}</text>'


def _short(parameters):
    """124,439,808 as 124M, three digits."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)


def main(arguments=None):
    """Count, write table and drawing, print the page's table; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    options = parser.parse_args(arguments)
    path = tables.write(options.out / "families.csv", rows())
    found = tables.read(path)
    picture = (FOLDER if options.out == RESULTS else options.out) / "families.svg"
    picture.write_text(drawing(found), encoding="utf-8")
    print("\n".join(page(found)))
    print(f"wrote {path} and {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
