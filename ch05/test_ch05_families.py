"""The page of families says what is counted, and the tree shows it."""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from course.gates.proportions import code_lines
from course.gates.tree import CodeFile
from course.tables import read
from kv_cache import kv_cache_bytes

FOLDER = Path(__file__).parent
COMMITTED = read(FOLDER / "results" / "families.csv")


@pytest.fixture(scope="module")
def found(experiments):
    """Counted anew, as texts."""
    return [{k: str(v) for k, v in row.items()} for row in experiments.rows()]


def test_the_committed_numbers_are_those_that_are_counted(found):
    assert found == COMMITTED


def test_the_page_shows_them(experiments):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    missing = [row for row in experiments.page(COMMITTED) if row not in text]
    assert missing == []
    assert "](families.svg)" in text


def test_the_tree_is_the_one_that_is_drawn(experiments):
    drawn = experiments.drawing(COMMITTED)
    picture = FOLDER / "families.svg"
    assert picture.read_text(encoding="utf-8") == drawn, "run ch05/experiments.py"
    tree = ElementTree.fromstring(drawn)
    texts = [part.text for part in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert [name for name in experiments.FAMILIES if name not in texts] == []
    assert "prefers-color-scheme: dark" in drawn


def test_no_text_leaves_its_box_and_no_box_lies_on_another(experiments):
    """In the widest usual font a letter of 13 pixels takes 7.2 on the mean."""
    corners = [experiments.corner(name) for name in experiments.FAMILIES]
    assert len(set(corners)) == len(corners)
    for family in experiments.FAMILIES.values():
        assert max(map(len, family.shown)) * 7.2 < experiments.WIDE - 12
        assert len(family.shown) == 3


def test_each_family_has_a_parent_that_came_before(experiments):
    families = experiments.FAMILIES
    for name, family in families.items():
        if name == "GPT-2":
            assert family.parent == ""
        else:
            assert families[family.parent].year < family.year, name
        assert family.code == "" or (FOLDER / family.code).is_dir()


# As published, to the digits that names and reports give; of Qwen3.5 and Gemma 4 the
# towers for pictures and sound are left out here, and of Gemma 4 what `E` leaves out is
# in: the tables of embeddings.
PUBLISHED = {
    "GPT-2": 124_439_808,
    "Llama": 1_235_814_400,
    "SmolLM2": 134_515_008,
    "Qwen3": 596_049_920,
    "Gemma 3": 268_098_176,
    "Olmo 3": 7_298_011_136,
    "Qwen3.5": 0.75e9,
    "Gemma 4": 4.6e9,
    "DeepSeek V4": 284e9,
}


def test_parameters_are_as_published(found):
    for row in found:
        ratio = int(row["parameters"]) / PUBLISHED[row["family"]]
        exact = isinstance(PUBLISHED[row["family"]], int)
        assert ratio == 1 if exact else abs(ratio - 1) < 0.02, row


def test_caches_have_the_size_of_the_formula(found):
    """2 L G K numbers of two bytes for a token, where each layer keeps everything."""
    by_formula = {
        "GPT-2": (12, 12, 64),
        "Llama": (16, 8, 64),
        "SmolLM2": (30, 3, 64),
        "Qwen3": (28, 8, 128),
        "Gemma 3": (3, 1, 256),
        "Olmo 3": (8, 32, 128),
        "Qwen3.5": (6, 2, 256),
        "Gemma 4": (3, 1, 512),
    }
    kept = {row["family"]: int(row["cache_bytes_per_token"]) for row in found}
    for name, (layers, groups, width) in by_formula.items():
        assert kept[name] == kv_cache_bytes(layers, 1, groups, 1, width, torch.bfloat16)


# Small ones with every kind of layer that the family has.
SHARED = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4}
SMALL = {
    "Gemma4": {
        "vocab_size_per_layer_input": 50,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 48,
        "num_hidden_layers": 10,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 8,
        "num_kv_shared_layers": 4,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2,
    },
    "Qwen3_5": {
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "DeepseekV4": {
        "moe_intermediate_size": 16,
        "num_hidden_layers": 6,
        "head_dim": 32,
        "q_lora_rank": 16,
        "o_lora_rank": 16,
        "o_groups": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "index_n_heads": 8,
        "index_head_dim": 16,
        "index_topk": 4,
        "sliding_window": 16,
        "partial_rotary_factor": 0.25,
        "compress_ratios": [0, 0, 4, 128, 4, 128],
        "compress_rate_hca": 32,
    },
}


def held(cache):
    """Bytes of the entries in a cache of `transformers`, states left out."""
    tensors = []
    for layer in cache.layers:
        tensors += [getattr(layer, name, None) for name in ("keys", "values")]
        tensors += getattr(layer, "compressed_kv", {}).values()
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Gemma4", "keys_and_values"),
        ("Qwen3_5", "with_states"),
        ("DeepseekV4", "compressed"),
    ],
)
def test_a_cache_of_transformers_grows_as_it_is_counted(experiments, name, kept):
    config, model = experiments.made(name, **SHARED, **SMALL[name])
    model = model.bfloat16().eval()
    short, long = (
        held(model(torch.zeros(1, n, dtype=torch.long), use_cache=True).past_key_values)
        for n in (64, 192)
    )
    growing, _ = getattr(experiments, kept)(config)
    assert long - short == 128 * growing


def new_code(folder):
    """Code lines in functions and classes of a folder's modules, and all others."""
    inside = outside = 0
    for path in folder.glob("*.py"):
        if path.name.startswith(("test_", "experiments")) or "_checks" in path.name:
            continue
        source = CodeFile(path.name, path.read_text(encoding="utf-8"))
        lines, own = code_lines(source), set()
        for node in source.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                first = min(n.lineno for n in (node, *node.decorator_list))
                own |= set(range(first, node.end_lineno + 1))
        inside += len(lines & own)
        outside += len(lines - own)
    return inside, outside


@pytest.mark.parametrize(
    ("folder", "most"), [("11_qwen3", 250), ("12_gemma3", 354), ("13_olmo3", 250)]
)
def test_a_family_brings_little_code_and_imports_the_rest(folder, most):
    """In functions and classes 250 lines, Gemma 3 with its reasons; the page says how
    many, and how many are imports and declarations."""
    page = (FOLDER / folder / "README.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) lines in functions and classes, and (\d+) of", page)
    found = new_code(FOLDER / folder)
    assert found[0] <= most
    assert said is not None
    assert tuple(map(int, said.groups())) == found


def test_what_is_counted_as_new_code(tmp_path):
    """No comment, blank line or docstring; decorators are."""
    text = '"""Doc."""\n\nimport a\n\n# why\nB = (\n    1,\n)\n\n\n@a\nclass C:\n'
    text += '    """Doc."""\n\n    x = 1  # one\n'
    for name in ("one.py", "test_one.py", "one_checks.py", "experiments.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert new_code(tmp_path) == (3, 4)
