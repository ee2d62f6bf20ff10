"""Published folders and GGUF files of Gemma 3: read as `transformers` does, or refused.

The real file is looked for and never fetched: `python -m course.assets fetch
gemma3-270m` tells its terms of use. Without it the tests of real weights are skipped.
"""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import gemma3
from course.testing.published_folders import (
    FolderContract,
    change_settings,
    check_names,
    publish,
)
from fast_copies import arrange_columns, quantise_int8
from gemma3 import (
    GEMMA3_1B,
    GEMMA3_4B,
    GEMMA3_27B,
    Gemma3Config,
    Gemma3Model,
    gemma3_cache,
)
from gemma3_files import (
    GEMMA3,
    gemma3_gguf_config,
    gemma3_settings,
    load_gemma3_folder,
    load_gemma3_from_gguf,
    load_gemma3_from_safetensors,
    published_gemma3_config,
    tokenizer_of_metadata,
)
from gguf_files import read_gguf
from kv_cache import KVCache
from model_config import end_tokens
from pretrained import load_pretrained
from test_gemma3 import configs

SMALL = Gemma3Config(
    vocab_size=300,
    context_length=512,
    emb_dim=32,
    n_heads=4,
    n_kv_groups=2,
    head_dim=10,
    n_layers=3,
    hidden_dim=37,
    rope_base=500.0,
    rope_scaling=None,
    norm_eps=1e-6,
    tie_weights=True,
    window=16,
    full_every=2,
    rope_factor=8.0,
    local_rope_base=50.0,
    query_scale=12,
)


def published_by_transformers(folder, cfg, shard="1GB"):
    """A random model, written as the library writes it; the model comes back."""
    import transformers

    theirs = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**gemma3_settings(cfg), pad_token_id=None)
    )
    return publish(theirs, folder, shard, norm=0.0)  # as w in 1 + w


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    published_by_transformers(folder, SMALL)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


# --- Equal to the library -------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "20KB"], ids=["one file", "shards"])
@torch.no_grad()
def test_the_logits_are_those_of_transformers(tmp_path, tied, shard):
    cfg = Gemma3Config.of({**SMALL, "tie_weights": tied})
    theirs = published_by_transformers(tmp_path, cfg, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    ours = load_gemma3_from_safetensors(tmp_path, torch.float32)
    assert ours.cfg == cfg
    assert not ours.training
    idx = torch.randint(0, 300, (1, 100))  # six windows
    expected = theirs(idx).logits
    assert (ours(idx) - expected).abs().max() < 1e-5
    for cache in (KVCache(3), gemma3_cache(cfg)):
        pieces = [ours(part, cache=cache) for part in idx.split(37, dim=1)]
        assert (torch.cat(pieces, dim=1) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_fast_copies(published):
    """Norms of 1 + w must not be taken for a Llama's, nor GELU for SiLU."""
    model = load_gemma3_from_safetensors(published, torch.float32)
    idx = torch.randint(300, (1, 40))
    arranged, quantised = arrange_columns(model, parts=2), quantise_int8(model)
    expected, cache = model(idx), gemma3_cache(model.cfg)
    assert (arranged(idx) - expected).abs().max() < 1e-4
    steps = torch.cat([arranged(part, cache=cache) for part in idx.split(1, 1)], dim=1)
    assert (steps - expected).abs().max() < 1e-4
    rounded = quantised(idx)
    assert (rounded - expected).abs().mean() < 0.1 * expected.std()
    assert not torch.equal(rounded, expected)


class TestGemma3Folders(FolderContract):
    family = GEMMA3
    configs = (SMALL,)
    load_pretrained = staticmethod(load_pretrained)


# --- Settings -------------------------------------------------------------------------

SIZES = [name for name in dir(gemma3) if name.startswith("GEMMA3_")]


@pytest.mark.parametrize("name", SIZES)
def test_both_forms_of_settings_give_the_same_config(name):
    import transformers

    cfg = getattr(gemma3, name)
    assert published_gemma3_config(gemma3_settings(cfg)) == cfg
    new = transformers.Gemma3TextConfig(**gemma3_settings(cfg)).to_dict()
    assert "rope_theta" not in new
    assert published_gemma3_config(new) == cfg


@given(cfg=configs())
@settings(deadline=None)
def test_settings_say_all_of_a_config(cfg):
    assert published_gemma3_config(gemma3_settings(cfg)) == cfg


def test_the_larger_sizes_leave_out_what_the_format_says():
    """What the config.json of the 4B holds, apart from what concerns images."""
    inside = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    found = published_gemma3_config({"model_type": "gemma3", "text_config": inside})
    assert found == GEMMA3_4B
    with pytest.raises(ValueError, match="lack 'head_dim'"):
        published_gemma3_config(inside)  # alone it would have to be whole


@pytest.mark.parametrize("name", sorted(gemma3_settings(GEMMA3_1B)))
def test_no_setting_is_guessed(name):
    """But for the activation, no scaling, and a tied head, as the format says."""
    found = {k: v for k, v in gemma3_settings(GEMMA3_1B).items() if k != name}
    if name in ("hidden_activation", "rope_scaling", "tie_word_embeddings"):
        assert published_gemma3_config(found) == GEMMA3_1B
        return
    with pytest.raises(ValueError, match=f"{name}|model type None"):
        published_gemma3_config(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model type 'gemma2', and this is for 'gemma3_te"),
        ({"model_type": "gemma3"}, "'gemma3' lack a 'text_config'"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu', but Gemma3Model"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "types 'yarn' in glo"),
        ({"layer_types": ["full_attention"] * 2}, "no list of the kinds of 26 blocks"),
        ({"num_hidden_layers": 10**9}, "no list of the kinds of 1000000000 b"),
        ({"layer_types": 5}, "no list of the kinds of 26 blocks"),
        ({"rope_scaling": "linear"}, "'rope_scaling' is 'linear', no mapping"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lack 'factor'"),
        (
            {"layer_types": ["full_attention", "chunked"] * 13},
            "another rhythm than Gemma3Model",
        ),
        ({"sliding_window": None}, "lack 'sliding_window'"),
        ({"rope_local_base_freq": None}, "lack the bases of both kinds"),
        ({"rope_parameters": {"rope_theta": 10000}}, "lack the bases of both kinds"),
        ({"num_key_value_heads": "1"}, "'num_key_value_heads' is '1'"),
        ({"query_pre_attn_scalar": 0.5}, "query_scale is 0.5"),
    ],
)
def test_what_the_model_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        published_gemma3_config({**gemma3_settings(GEMMA3_1B), **changes})


@pytest.mark.parametrize(
    "name", ["self_attn.k_norm", "pre_feedforward_layernorm", "mlp.up_proj"]
)
def test_missing_and_unknown_tensors_are_refused(folder, name):
    check_names(folder, f"model.layers.1.{name}.weight", GEMMA3)
    change_settings(
        folder, num_hidden_layers=10**9, layer_types=..., sliding_window_pattern=2
    )
    with pytest.raises(ValueError, match="hold 3 blocks, but config.json asks for"):
        load_gemma3_from_safetensors(folder)


# --- A GGUF file ----------------------------------------------------------------------

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n"]
LETTERS = ["\u2581", "h", "i", "hi", "\u2581hi"]


def write_gguf(path, model, **changes):
    """What llama.cpp's converter makes of a model: norms as 1 + w, no row moved."""
    cfg = model.cfg
    writer = gguf.GGUFWriter(path, "gemma3")
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = PIECES + bytes_of + LETTERS
    tokens += [f"<unused{i}>" for i in range(cfg.vocab_size - len(tokens))]
    kinds = dict.fromkeys(bytes_of, 6) | dict.fromkeys(LETTERS, 1) | {"\n": 4}
    numbers = {
        "context_length": cfg.context_length,
        "embedding_length": cfg.emb_dim,
        "block_count": cfg.n_layers,
        "feed_forward_length": cfg.hidden_dim,
        "attention.head_count": cfg.n_heads,
        "attention.head_count_kv": cfg.n_kv_groups,
        "attention.key_length": cfg.head_dim,
        "attention.value_length": cfg.head_dim,
        "attention.sliding_window": cfg.window,
        "attention.sliding_window_pattern": cfg.full_every,
    }
    floats = {
        "attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "rope.freq_base": cfg.rope_base,
        "rope.freq_base_swa": cfg.local_rope_base,
    }
    if cfg.rope_factor != 1:
        floats["rope.scaling.factor"] = cfg.rope_factor
        writer.add_string("gemma3.rope.scaling.type", "linear")
    for name, number in (numbers | changes).items():
        writer.add_uint32(f"gemma3.{name}", number)
    for name, number in floats.items():
        writer.add_float32(f"gemma3.{name}", number)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-i) for i in range(len(tokens))])
    writer.add_token_types([kinds.get(token, 3) for token in tokens])
    writer.add_eos_token_id(1)
    names = {ours: theirs for theirs, ours in gguf_names_of(cfg).items()}
    for name, tensor in model.state_dict().items():
        numbers = tensor.numpy() + (1 if "norm" in name else 0)
        writer.add_tensor(names[name], numbers.astype(np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path


def gguf_names_of(cfg):
    """By hand: {name in the file: name in the model}."""
    parts = {
        "attn_q": "att.W_query.weight",
        "attn_k": "att.W_key.weight",
        "attn_v": "att.W_value.weight",
        "attn_output": "att.out_proj.weight",
        "attn_q_norm": "att.query_norm.scale",
        "attn_k_norm": "att.key_norm.scale",
        "ffn_gate": "ff.gate.weight",
        "ffn_up": "ff.up.weight",
        "ffn_down": "ff.down.weight",
        "attn_norm": "norm1.scale",
        "post_attention_norm": "norm1_after.scale",
        "ffn_norm": "norm2.scale",
        "post_ffw_norm": "norm2_after.scale",
    }
    names = {
        "token_embd.weight": "tok_emb.weight",
        "output_norm.weight": "final_norm.scale",
    }
    if not cfg.tie_weights:
        names["output.weight"] = "out_head.weight"
    for i in range(cfg.n_layers):
        names |= {
            f"blk.{i}.{t}.weight": f"trf_blocks.{i}.{o}" for t, o in parts.items()
        }
    return names


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_gguf_file_gives_the_model_back(tmp_path, published, tied):
    model = load_gemma3_from_safetensors(published, torch.float32)
    if not tied:
        torch.manual_seed(1)
        model = Gemma3Model({**SMALL, "query_scale": 10, "tie_weights": False}).eval()
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    path = write_gguf(tmp_path / "small.gguf", model)
    found, tokenizer = load_gemma3_from_gguf(path)
    assert found.cfg == {**model.cfg, "query_scale": 10}
    for name, tensor in model.state_dict().items():
        # 1 + w has digits down to 1.2e-7, and w none below.
        assert (found.state_dict()[name] - tensor).abs().max() < 1.2e-7, name
    assert tokenizer.encode(" hi h\n") == [267, 263, 264, 6]
    half, _, _ = load_pretrained(path, torch.bfloat16)
    assert type(half) is Gemma3Model
    for name, tensor in model.state_dict().items():
        difference = half.state_dict()[name].float() - tensor
        assert (difference.abs() <= tensor.abs() / 200 + 1e-7).all(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 10**6}, "there are 3 blocks, the settings ask for 1000000"),
        ({"attention.value_length": 12}, "values are 12 wide, but keys 10"),
        ({"attention.key_length": 12, "attention.value_length": 12}, "its shape is"),
        ({"attention.sliding_window": 0}, "window is 0"),
    ],
)
def test_other_gguf_files_are_refused(tmp_path, published, changes, message):
    model = load_gemma3_from_safetensors(published, torch.float32)
    path = write_gguf(tmp_path / "other.gguf", model, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_gemma3_from_gguf(path)
    assert str(path) in str(caught.value)


def test_an_older_name_of_the_scaling():
    old = {"type": "linear", "factor": 8.0}
    found = gemma3_settings(GEMMA3_1B) | {"rope_scaling": old}
    assert published_gemma3_config(found) == {**GEMMA3_1B, "rope_factor": 8.0}


def test_what_ends_an_answer_in_a_gguf_file(tmp_path, published):
    """Known mistake: the end of the whole text, which a chat's file names as well."""
    model = load_gemma3_from_safetensors(published, torch.float32)
    metadata, _ = read_gguf(write_gguf(tmp_path / "small.gguf", model))
    assert tokenizer_of_metadata(metadata).eot_token == PIECES.index("<eos>")
    metadata["tokenizer.chat_template"] = "some"
    tokenizer = tokenizer_of_metadata(metadata)
    assert tokenizer.eot_token == PIECES.index("<end_of_turn>")


def test_what_a_gguf_file_leaves_to_the_program(tmp_path, published):
    """Known mistakes: no base and no plan for local layers; K = 128 in place of 168."""
    model = load_gemma3_from_safetensors(published, torch.float32)
    metadata, _ = read_gguf(write_gguf(tmp_path / "small.gguf", model))
    for name in ("rope.freq_base_swa", "attention.sliding_window_pattern"):
        del metadata[f"gemma3.{name}"]
    metadata["gemma3.rope.scaling.type"] = "none"
    found = gemma3_gguf_config(metadata, tied=True)
    assert (found.local_rope_base, found.full_every, found.rope_factor) == (1e4, 6, 1)
    metadata |= {
        "gemma3.block_count": 62,
        "gemma3.embedding_length": GEMMA3_27B.emb_dim,
        "gemma3.attention.head_count": GEMMA3_27B.n_heads,
    }
    found = gemma3_gguf_config(metadata, tied=True)
    assert found.query_scale == GEMMA3_27B.query_scale == 168
    for changes, message in (
        ({"gemma3.rope.scaling.type": "yarn"}, "'yarn' is a scaling that is not known"),
        ({"general.architecture": "gemma2"}, "it is not 'gemma3'"),
    ):
        with pytest.raises(ValueError, match=message):
            gemma3_gguf_config(metadata | changes, tied=True)


def test_a_folder_with_its_tokenizer(folder):
    tokens = PIECES + [f"<0x{byte:02X}>" for byte in range(256)] + LETTERS
    content = {
        "added_tokens": [
            {"content": token, "special": token != "\n"} for token in PIECES
        ],
        "model": {
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [["h", "i"], ["\u2581", "hi"]],
        },
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    model, tokenizer = load_gemma3_folder(folder)
    assert tokenizer.n_vocab == len(tokens) <= model.cfg.vocab_size
    assert tokenizer.encode(" hi") == [len(tokens) - 1]
    assert tokenizer.eot_token == PIECES.index("<eos>")
    with pytest.raises(ValueError, match="There is no chat template"):
        tokenizer.render_chat([{"role": "user", "content": "hi"}])
    notes = {"eos_token": {"content": "<eos>"}, "chat_template": "some"}
    beside = folder / "tokenizer_config.json"
    beside.write_text(json.dumps(notes), encoding="utf-8")
    # Known mistake: <eos> alone, while a model that chats ends its turns.
    tokenizer = load_gemma3_folder(folder)[1]
    assert tokenizer.eot_token == PIECES.index("<end_of_turn>")
    ends = (
        "<end_of_turn>",
        "<eos>",
    )  # as generation_config.json of the sizes that chat
    assert end_tokens(tokenizer) == tuple(map(PIECES.index, ends))
    beside.unlink()
    alone = folder / "chat_template.jinja"
    alone.write_text("some", encoding="utf-8")
    assert load_gemma3_folder(folder)[1].eot_token == PIECES.index("<end_of_turn>")
    alone.unlink()
    beside.write_text('{"eos_token": "<end>"}', encoding="utf-8")
    with pytest.raises(ValueError, match="its eos_token '<end>' is no token"):
        load_gemma3_folder(folder)
    beside.unlink()
    content["model"]["vocab"] |= {f"x{i}": len(tokens) + i for i in range(99)}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="has 367 tokens, but the model only 300"):
        load_gemma3_folder(folder)
    path.write_text('{"model": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match="not the vocabulary of Gemma 3"):
        load_gemma3_folder(folder)
