"""Weights of GGUF files: every number as the reference reads it, every defect named."""

import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as ValueKind
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

import gguf_weights
from bpe import byte_alphabet
from course.assets import fetch
from gguf_files import FORMATS_BY_NAME, read_gguf
from gguf_tokenizer import GGUFTokenizer
from gguf_weights import (
    Q4_1_BLOCK,
    Q8_0_BLOCK,
    dequantise,
    dequantise_q4_1,
    dequantise_q8_0,
    gguf_config,
    gguf_key_map,
    load_llama_from_gguf,
)
from kv_cache import KVCache
from llama import SMOLLM2_135M

SIZES = {"D": 32, "H": 4, "G": 2, "K": 8, "F": 64, "L": 2}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o"]
TOKENS = SPECIAL + sorted(byte_alphabet()) + [m.replace(" ", "") for m in MERGES]
U32, F32 = ValueKind.UINT32, ValueKind.FLOAT32


def tiny_metadata(sizes=None):
    """The entries of a small Llama: {key: (value, type, type of items)}."""
    z = SIZES | (sizes or {})
    numbers = {
        "block_count": z["L"],
        "context_length": 64,
        "embedding_length": z["D"],
        "feed_forward_length": z["F"],
        "attention.head_count": z["H"],
        "attention.head_count_kv": z["G"],
        "rope.dimension_count": z["K"],
        "vocab_size": len(TOKENS),
    }
    entries = {f"llama.{key}": (number, U32, None) for key, number in numbers.items()}
    entries["llama.rope.freq_base"] = (50_000.0, F32, None)
    entries["llama.attention.layer_norm_rms_epsilon"] = (1e-3, F32, None)
    texts, array = ValueKind.STRING, ValueKind.ARRAY
    types = [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL))
    return entries | {
        "tokenizer.ggml.model": ("gpt2", texts, None),
        "tokenizer.ggml.pre": ("smollm", texts, None),
        "tokenizer.ggml.tokens": (TOKENS, array, texts),
        "tokenizer.ggml.token_type": (types, array, ValueKind.INT32),
        "tokenizer.ggml.merges": (MERGES, array, texts),
        "tokenizer.ggml.eos_token_id": (2, U32, None),
    }


def tiny_tensors(sizes=None, tied=True, seed=0):
    """Random weights under the names of the file: {name: float32 array}."""
    z = SIZES | (sizes or {})
    D, hidden, V = z["D"], z["F"], len(TOKENS)
    shapes = {"token_embd": (V, D), "output_norm": (D,)}
    if not tied:
        shapes["output"] = (V, D)
    for i in range(z["L"]):
        shapes |= {
            f"blk.{i}.attn_norm": (D,),
            f"blk.{i}.ffn_norm": (D,),
            f"blk.{i}.attn_q": (z["H"] * z["K"], D),
            f"blk.{i}.attn_k": (z["G"] * z["K"], D),
            f"blk.{i}.attn_v": (z["G"] * z["K"], D),
            f"blk.{i}.attn_output": (D, z["H"] * z["K"]),
            f"blk.{i}.ffn_gate": (hidden, D),
            f"blk.{i}.ffn_up": (hidden, D),
            f"blk.{i}.ffn_down": (D, hidden),
        }
    rng = np.random.default_rng(seed)
    return {
        f"{name}.weight": rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(path, metadata, tensors, architecture="llama", kinds=None):
    """Write a GGUF file with the reference's writer."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, (value, kind, items) in metadata.items():
        writer.add_key_value(key, value, kind, items)
    for name, array in tensors.items():
        kind = (kinds or {}).get(name, Kind.F32)
        stored = gguf.quants.quantize(array, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write(path, tiny_metadata(), tiny_tensors())


@pytest.fixture(scope="module")
def real():
    return fetch("smollm2-135m")


def same_bits(ours, theirs):
    """Whether two float32 arrays agree in every bit, not-a-numbers included."""
    return np.array_equal(np.asarray(ours).view(np.uint32), theirs.view(np.uint32))


# --- Blocks --------------------------------------------------------------------------

BLOCKS = [
    (dequantise_q4_1, Q4_1_BLOCK, Kind.Q4_1),
    (dequantise_q8_0, Q8_0_BLOCK, Kind.Q8_0),
]


def reference(blocks, kind):
    return gguf.quants.dequantize(blocks, kind)


@pytest.mark.parametrize(("ours", "layout", "kind"), BLOCKS)
def test_random_bytes_become_the_reference_s_numbers(ours, layout, kind):
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (20_000, layout.itemsize), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        want = reference(blocks, kind)
        got = ours(blocks)
    assert got.dtype == np.float32
    assert got.shape == (20_000, 32)
    assert same_bits(got, want)
    assert np.isnan(want).any()  # scales that are no number occurred


@pytest.mark.parametrize(("ours", "layout", "kind"), BLOCKS)
def test_every_scale_there_is(ours, layout, kind):
    blocks = np.zeros(65_536, layout)
    blocks["scale"] = np.arange(65_536, dtype="<u2").view("<f2")
    blocks["levels"] = np.random.default_rng(2).integers(0, 128, blocks["levels"].shape)
    raw = blocks.view(np.uint8).reshape(-1, layout.itemsize)
    with np.errstate(invalid="ignore"):
        assert same_bits(ours(raw), reference(raw, kind))


def test_q4_1_by_hand():
    """Low halves of the bytes are numbers 0 to 15, high halves 16 to 31."""
    block = np.zeros(1, Q4_1_BLOCK)
    block["scale"], block["minimum"] = 2.0, -3.0
    block["levels"][0] = np.arange(16) * 16 + np.arange(16)[::-1]
    numbers = dequantise_q4_1(block.view(np.uint8).reshape(1, 20))
    assert numbers[0, :16].tolist() == [
        2.0 * level - 3.0 for level in range(15, -1, -1)
    ]
    assert numbers[0, 16:].tolist() == [2.0 * level - 3.0 for level in range(16)]


def test_blocks_that_are_a_slice_of_something():
    blocks = np.random.default_rng(3).integers(0, 60, (8, 40), dtype=np.uint8)
    assert same_bits(
        dequantise_q4_1(blocks[::2, :20]), dequantise_q4_1(blocks[::2, :20].copy())
    )


@pytest.mark.parametrize(
    "blocks",
    [np.zeros((2, 19), np.uint8), np.zeros((2, 20), np.int8), np.zeros(20, np.uint8)],
)
def test_other_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match=r"shape \(blocks, 20\)"):
        dequantise_q4_1(blocks)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1])
def test_every_format_through_a_file(tmp_path, kind):
    rng = np.random.default_rng(4)
    arrays = {
        "a": rng.normal(size=(7, 64)).astype(np.float32),
        "b": rng.normal(size=(2, 3, 32)).astype(np.float32),
        "c": rng.normal(size=(9_000, 32)).astype(np.float32),  # more than one chunk
    }
    path = write(tmp_path / "one.gguf", {}, arrays, kinds=dict.fromkeys(arrays, kind))
    tensors = read_gguf(path).tensors
    for name, array in arrays.items():
        want = reference(gguf.quants.quantize(array, kind), kind)
        got = dequantise(tensors[name])
        assert got.shape == array.shape
        assert same_bits(got, want)
        assert torch.equal(dequantise(tensors[name], torch.bfloat16), got.bfloat16())


@pytest.mark.parametrize("kind", [Kind.Q5_0, Kind.Q4_K, Kind.Q6_K])
def test_formats_that_the_library_reads_through_a_file(tmp_path, kind):
    """Whatever bytes there are: the library writes two of them only."""
    form = FORMATS_BY_NAME[kind.name]
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 256, (1100, form.block_bytes), dtype=np.uint8)
    places = {"Q5_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
    for place in places[kind.name]:  # scales that are finite
        raw[:, place : place + 2] = np.array([0.01], "<f2").view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("a", raw, raw_dtype=kind)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    tensor = read_gguf(tmp_path / "one.gguf").tensors["a"]
    assert tensor.shape == (1100, form.block_size)
    assert same_bits(dequantise(tensor), gguf.quants.dequantize(raw, kind))


# --- The model -----------------------------------------------------------------------


def for_neighbours(weight, heads):
    """What llama.cpp's converter does to query and key projections, in NumPy."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


THEIR_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def their_model(tensors, sizes, tied):
    """`transformers`' model with the weights that `tensors` were made from."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    z = SIZES | sizes
    config = TheirConfig(
        vocab_size=len(TOKENS),
        hidden_size=z["D"],
        intermediate_size=z["F"],
        num_hidden_layers=z["L"],
        num_attention_heads=z["H"],
        num_key_value_heads=z["G"],
        head_dim=z["K"],
        max_position_embeddings=64,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        tie_word_embeddings=tied,
    )
    state = {}
    for name, array in tensors.items():
        *block, part, _ = name.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        state[f"{prefix}{THEIR_NAMES[part]}.weight"] = torch.from_numpy(array)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"D": 96, "H": 6, "G": 3, "K": 16, "L": 3}])
def test_a_file_gives_the_logits_of_transformers(tmp_path, sizes, tied):
    weights = tiny_tensors(sizes, tied)
    z = SIZES | sizes
    stored = {
        name: for_neighbours(array, z["H" if "attn_q" in name else "G"])
        if "attn_q" in name or "attn_k" in name
        else array
        for name, array in weights.items()
    }
    path = write(tmp_path / "m.gguf", tiny_metadata(sizes), stored)
    ours, tokenizer = load_llama_from_gguf(path)
    idx = torch.randint(
        0, len(TOKENS), (2, 40), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        got, want = ours(idx), their_model(weights, sizes, tied)(idx).logits
        cached = ours(idx, cache=KVCache(z["L"]))
    assert not ours.training
    assert tokenizer.n_vocab == len(TOKENS)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (cached - got).abs().max() < 1e-5 * want.abs().max()
    if tied:
        assert ours.out_head.weight.data_ptr() == ours.tok_emb.weight.data_ptr()


def test_without_reordering_the_answer_is_wrong(tmp_path, monkeypatch):
    """The pairing matters: what goes in for neighbours must not be read for halves."""
    path = write(tmp_path / "m.gguf", tiny_metadata(), tiny_tensors())
    idx = torch.arange(20)[None]
    right, _ = load_llama_from_gguf(path)
    monkeypatch.setattr(gguf_weights, "pairs_to_halves", lambda weight, heads: weight)
    wrong, _ = load_llama_from_gguf(path)
    with torch.no_grad():
        assert (right(idx) - wrong(idx)).abs().max() > 0.01


def test_the_model_is_one_like_any_other(tiny):
    """A key map without gaps; weights that can be trained, copied, cast."""
    model, _ = load_llama_from_gguf(tiny)
    assert set(gguf_key_map(model.cfg)) == set(tiny_tensors())
    assert set(gguf_key_map(model.cfg).values()) == set(dict(model.named_parameters()))
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    model.train()(torch.tensor([[1, 2]])).sum().backward()
    assert model.tok_emb.weight.grad is not None
    half, _ = load_llama_from_gguf(tiny, torch.bfloat16)
    for name, weight in half.named_parameters():
        assert torch.equal(weight, model.get_parameter(name).bfloat16())


@pytest.mark.parametrize("dtype", [torch.int8, "float32", None])
def test_other_dtypes_are_refused(tiny, dtype):
    with pytest.raises(ValueError, match=r"torch\.float32"):
        load_llama_from_gguf(tiny, dtype)


# --- Files that cannot be used -------------------------------------------------------


def without(key):
    def change(metadata, tensors):
        del metadata[key]

    return change


def setting(key, value, kind=U32, items=None):
    def change(metadata, tensors):
        metadata[key] = (value, kind, items)

    return change


def tensor(name, array):
    def change(metadata, tensors):
        if array is None:
            del tensors[name]
        else:
            tensors[name] = array

    return change


def zeros(*shape):
    return np.zeros(shape, np.float32)


def one_row_more(metadata, tensors):
    """A model of one token more than the tokenizer has."""
    setting("llama.vocab_size", len(TOKENS) + 1)(metadata, tensors)
    tensor("token_embd.weight", zeros(len(TOKENS) + 1, 32))(metadata, tensors)


REQUIRED = [key for key in tiny_metadata() if key != "tokenizer.chat_template"]
DEFECTS = {
    "no embedding": (tensor("token_embd.weight", None), "token_embd.weight is missing"),
    "no norm": (
        tensor("blk.1.ffn_norm.weight", None),
        "blk.1.ffn_norm.weight is missing",
    ),
    "a bias": (
        tensor("blk.0.attn_q.bias", zeros(32)),
        "blk.0.attn_q.bias is not known",
    ),
    "scaled": (
        tensor("rope_freqs.weight", zeros(4)),
        "rope_freqs.weight cannot be used: its scaling is not that of Llama 3",
    ),
    "more blocks": (tensor("blk.2.ffn_up.weight", zeros(64, 32)), "are 3 blocks"),
    "turned": (tensor("blk.0.ffn_up.weight", zeros(32, 64)), r"\(32, 64\).*\(64, 32\)"),
    "flat": (tensor("blk.0.ffn_up.weight", zeros(2048)), r"\(2048,\).*\(64, 32\)"),
    "nan": (tensor("output_norm.weight", zeros(32) + np.nan), "not a number"),
    "inf": (tensor("output_norm.weight", zeros(32) - np.inf), "infinite"),
    "block count": (setting("llama.block_count", 2**32 - 1), "ask for 4294967295"),
    "width": (setting("llama.embedding_length", 2**31), "llama.rope.dimension_count"),
    "hidden": (setting("llama.feed_forward_length", 2**31), "settings ask for"),
    "no heads": (setting("llama.attention.head_count", 0), "n_heads"),
    "three groups": (setting("llama.attention.head_count_kv", 3), "n_kv_groups=3"),
    "vocabulary": (setting("llama.vocab_size", 99), "token_embd.weight"),
    "fewer tokens": (one_row_more, f"there are {len(TOKENS)} tokens"),
    "text": (setting("llama.block_count", "2", ValueKind.STRING), "block_count.*int"),
    "true": (setting("llama.block_count", True, ValueKind.BOOL), "block_count.*int"),
    "base 1": (setting("llama.rope.freq_base", 1.0, F32), "rope_base"),
    "base nan": (setting("llama.rope.freq_base", float("nan"), F32), "rope_base"),
    "eps": (setting("llama.attention.layer_norm_rms_epsilon", 0.0, F32), "norm_eps"),
    "half turned": (setting("llama.rope.dimension_count", 4), "not the whole head"),
    "wide keys": (setting("llama.attention.key_length", 16), "heads are 16 wide"),
    "scaling": (
        setting("llama.rope.scaling.type", "yarn", ValueKind.STRING),
        "'yarn' is a scaling",
    ),
    "older scaling": (
        setting("llama.rope.scale_linear", 4.0, F32),
        "scale_linear cannot be used: 4.0 is a scaling",
    ),
    "no tokens": (
        setting("tokenizer.ggml.tokens", [1], ValueKind.ARRAY, ValueKind.INT32),
        "list of str",
    ),
    "end": (
        setting("tokenizer.ggml.eos_token_id", len(TOKENS)),
        "is not the id of a token",
    ),
    "other splits": (
        setting("tokenizer.ggml.pre", "llama-bpe", ValueKind.STRING),
        "'llama-bpe'",
    ),
    "other kind": (
        setting("tokenizer.ggml.model", "llama", ValueKind.STRING),
        "smollm",
    ),
    "merges": (
        setting(
            "tokenizer.ggml.merges", MERGES[::-1], ValueKind.ARRAY, ValueKind.STRING
        ),
        "order of the merges",
    ),
    "half the merges": (
        setting("tokenizer.ggml.merges", MERGES[:2], ValueKind.ARRAY, ValueKind.STRING),
        "made by no merge",
    ),
    "alien": (
        setting(
            "tokenizer.ggml.tokens",
            [*TOKENS[:-1], "\u4e16\u754c"],
            ValueKind.ARRAY,
            ValueKind.STRING,
        ),
        "merges",
    ),
} | {f"without {key}": (without(key), f"{key} .*missing") for key in REQUIRED}


@pytest.mark.parametrize("name", DEFECTS)
def test_what_does_not_fit_is_named(tmp_path, monkeypatch, name):
    change, message = DEFECTS[name]
    metadata, tensors = tiny_metadata(), tiny_tensors()
    change(metadata, tensors)
    path = write(tmp_path / "bad.gguf", metadata, tensors)
    read = []
    monkeypatch.setattr(
        gguf_weights,
        "dequantise",
        lambda one, dtype: read.append(one.name) or dequantise(one, dtype),
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_llama_from_gguf(path)
    assert str(path) in str(caught.value)
    assert one_sentence_and_what_to_do(caught.value)
    if name == "scaled":  # a setting, though it is stored among the weights
        read.remove("rope_freqs.weight")
    assert read == [] or name in ("nan", "inf")  # checked before anything is made


def one_sentence_and_what_to_do(error):
    text = str(error)
    return "\n" not in text and len(text) < 700 and text.endswith(".")


def test_another_architecture_is_named(tmp_path):
    path = write(tmp_path / "q.gguf", tiny_metadata(), tiny_tensors(), "qwen2")
    with pytest.raises(ValueError, match=r"general\.architecture"):
        load_llama_from_gguf(path)


def test_a_file_cut_after_it_was_read(tmp_path):
    path = write(tmp_path / "t.gguf", tiny_metadata(), tiny_tensors())
    last = list(read_gguf(path).tensors.values())[-1]
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ValueError, match="has become shorter"):
        dequantise(last)


@pytest.fixture
def little_memory():
    """Address space for 400 MB more: reserving what a false length asks would fail."""
    if sys.platform != "linux":
        yield
        return
    import resource

    old = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + (400 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


EXTREMES = [0, 1, 2, 3, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
CHANGES = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 2**20), st.integers(0, 255)),
    st.tuples(st.just("u32"), st.integers(0, 2**20), st.sampled_from(EXTREMES)),
    st.tuples(
        st.just("u64"),
        st.integers(0, 2**20),
        st.sampled_from([*EXTREMES, 2**63, 2**64 - 1]),
    ),
    st.tuples(st.just("cut"), st.integers(0, 2**20), st.just(0)),
    st.tuples(st.just("drop"), st.integers(0, 2**20), st.integers(1, 40)),
    st.tuples(st.just("add"), st.integers(0, 2**20), st.integers(1, 40)),
)


def damaged(content, header, changes):
    """The bytes after some changes, most of them in the first `header` bytes."""
    data = bytearray(content)
    for kind, place, value in changes:
        at = place % (header if place % 8 else max(1, len(data)))
        if kind == "byte":
            data[at : at + 1] = bytes([value])
        elif kind in ("u32", "u64"):
            raw = struct.pack("<I" if kind == "u32" else "<Q", value)
            data[at : at + len(raw)] = raw
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + value]
        else:
            data[at:at] = bytes(value)
    return bytes(data)


def load_or_explain(path):
    """Load; if that fails it must be with one sentence that names the file."""
    try:
        model, _ = load_llama_from_gguf(path)
    except ValueError as error:
        return str(error)
    assert all(p.isfinite().all() and not p.is_meta for p in model.parameters())
    return None


@settings(
    max_examples=700,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(CHANGES, min_size=1, max_size=4))
def test_no_damage_does_harm(tiny, little_memory, tmp_path, changes):
    """Whatever happened to a file, loading it ends soon: a model, or one sentence."""
    content = tiny.read_bytes()
    header = min(t.start for t in read_gguf(tiny).tensors.values())
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(content, header, changes))
    reason = load_or_explain(path)
    event("loaded" if reason is None else "refused")
    assert reason is None or str(path) in reason
    assert reason is None or one_sentence_and_what_to_do(reason)


@settings(
    max_examples=60,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
@example(changes=[("add", 7, 20)])
def test_no_damage_to_the_real_header_does_harm(real, little_memory, tmp_path, changes):
    """The same for the first bytes of the real file, whose weights are then missing."""
    with real.open("rb") as file:
        content = file.read(1 << 16)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(content, 2000, changes))
    # With zeros in place of the two counts it is a whole file that holds nothing.
    with pytest.raises(ValueError, match="cannot be used") as caught:
        load_llama_from_gguf(path)
    assert str(path) in str(caught.value)


def test_cut_at_every_length(tiny, tmp_path):
    """A download that stopped: at every byte of the header, and often after it."""
    content = tiny.read_bytes()
    header = min(t.start for t in read_gguf(tiny).tensors.values())
    path = tmp_path / "cut.gguf"
    for length in [*range(0, header, 13), *range(header, len(content), 4001)]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot be used"):
            read_gguf(path)


# --- Time and memory -----------------------------------------------------------------

MEASURE = """
import resource, sys, time
import gguf_weights
unit = 1 if sys.platform == "darwin" else 1024
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
before, start = peak(), time.process_time()
model, _ = gguf_weights.load_llama_from_gguf(sys.argv[1])
seconds = time.process_time() - start
size = sum(4 * p.numel() for p in model.parameters())
print(seconds, (peak() - before) / size, size)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts memory otherwise")
def test_loading_takes_little_time_and_memory(real):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(real)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seconds, times_the_model, size = map(float, done.stdout.split())
    assert size == 538_060_032
    assert seconds < 5  # processor seconds: 1.2 measured
    assert times_the_model < 1.2  # what loading adds: 1.12 measured


def test_the_real_file_has_the_config_of_smollm2(real):
    file = read_gguf(real)
    assert len(file.tensors) == 272
    assert gguf_config(file.metadata, tied=True) == SMOLLM2_135M


def test_the_tokenizer_needs_no_weights(real):
    assert GGUFTokenizer(read_gguf(real).metadata).n_vocab == 49_152
