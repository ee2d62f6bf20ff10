"""Published folders of Qwen3: read as `transformers` reads them, or refused."""

import base64
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen3
from course.testing.published_folders import (
    FolderContract,
    change_settings,
    check_names,
    publish,
)
from fast_copies import arrange_columns, quantise_int8
from gpt_generate import generate
from kv_cache import KVCache
from model_config import end_tokens
from moe import SoftmaxRouter
from pretrained import load_pretrained
from qwen3 import QWEN3_30B_A3B, Experts, Qwen3Config, Qwen3Model
from qwen3_files import (
    QWEN3,
    load_qwen3_folder,
    load_qwen3_from_safetensors,
    published_qwen3_config,
    qwen3_settings,
)
from qwen3_tokenizer import QWEN3_SPECIAL

SMALL = Qwen3Config(
    vocab_size=300,
    context_length=512,
    emb_dim=24,
    n_heads=6,
    n_kv_groups=2,
    head_dim=10,
    n_layers=3,
    hidden_dim=37,
    rope_base=500.0,
    rope_scaling=None,
    norm_eps=1e-6,
    tie_weights=True,
    experts=None,
)
EXPERTS = {"hidden_dim": 9, "experts": Experts(num_experts=5, top_k=2, normalise=True)}
KINDS = {"dense": SMALL, "experts": Qwen3Config.of({**SMALL, **EXPERTS})}


def qwen3_model(cfg):
    """Theirs, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**qwen3_settings(cfg))
    return AutoModelForCausalLM.from_config(config)


def published_by_transformers(folder, cfg, shard="1GB"):
    """A random model, written as the library writes it; the model comes back."""
    return publish(qwen3_model(cfg), folder, shard)


@pytest.fixture(scope="module", params=KINDS)
def published(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    published_by_transformers(folder, KINDS[request.param])
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    published_by_transformers(folder, KINDS["experts"])
    return folder


# --- Equal to the library -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "20KB"], ids=["one file", "shards"])
@torch.no_grad()
def test_the_logits_are_those_of_transformers(tmp_path, kind, tied, shard):
    cfg = Qwen3Config.of({**KINDS[kind], "tie_weights": tied})
    theirs = published_by_transformers(tmp_path, cfg, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    ours = load_qwen3_from_safetensors(tmp_path, torch.float32)
    assert ours.cfg == cfg
    assert not ours.training
    idx = torch.randint(0, 300, (2, 100))
    expected = theirs(idx).logits
    assert (ours(idx) - expected).abs().max() < 1e-5
    cache = KVCache(3)
    pieces = [ours(part, cache=cache) for part in idx.split(37, dim=1)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() < 1e-5


def test_settings_are_written_as_they_are_read():
    for cfg in KINDS.values():
        assert published_qwen3_config(qwen3_settings(cfg)) == cfg
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled["original_context_length"] = 64
    with pytest.raises(ValueError, match="rope_scaling has no place"):
        qwen3_settings({**SMALL, "rope_scaling": scaled})


def test_a_second_copy_of_a_tied_head_is_left_out(folder):
    """The files of the 1.7B hold one."""
    path = folder / "model.safetensors"
    found = load_file(path)
    copied = found["model.embed_tokens.weight"].clone()
    save_file({**found, "lm_head.weight": copied}, path)
    model = load_qwen3_from_safetensors(folder, torch.float32)
    assert model.out_head.weight is model.tok_emb.weight
    save_file({**found, "lm_head.weight": copied + 1}, path)
    with pytest.raises(ValueError, match="differs from 'model.embed_tokens.weight'"):
        load_qwen3_from_safetensors(folder)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fast_copies(kind):
    """A batch so small that most experts get no token, then single cached tokens."""
    torch.manual_seed(0)
    model, idx = Qwen3Model(KINDS[kind]).eval(), torch.randint(300, (1, 9))
    arranged = arrange_columns(model, parts=2)
    quantised = quantise_int8(model)
    cache = KVCache(3)
    expected = model(idx)
    assert (arranged(idx) - expected).abs().max() < 1e-4
    steps = torch.cat([arranged(part, cache=cache) for part in idx.split(1, 1)], dim=1)
    assert (steps - expected).abs().max() < 1e-4
    rounded = quantised(idx)
    assert (rounded - expected).abs().mean() < 0.1 * expected.std()
    assert not torch.equal(rounded, expected)
    routers = [m for m in quantised.modules() if isinstance(m, SoftmaxRouter)]
    assert len(routers) == (3 if kind == "experts" else 0)
    for router, block in zip(routers, model.trf_blocks, strict=False):
        assert torch.equal(router.scores.weight, block.ff.router.scores.weight)


# --- Settings -------------------------------------------------------------------------


def qwen_settings(cfg, **changes):
    """What Qwen published for a config, in the form of that time."""
    found = {
        "model_type": "qwen3_moe" if cfg.experts else "qwen3",
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "hidden_size": cfg.emb_dim,
        "intermediate_size": 6144 if cfg.experts else cfg.hidden_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_groups,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": cfg.tie_weights,
        "hidden_act": "silu",
        "attention_bias": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": cfg.n_layers,
    }
    if cfg.experts:
        found |= {
            "moe_intermediate_size": cfg.hidden_dim,
            "num_experts": cfg.experts.num_experts,
            "num_experts_per_tok": cfg.experts.top_k,
            "norm_topk_prob": cfg.experts.normalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return {name: v for name, v in {**found, **changes}.items() if v is not ...}


SIZES = [name for name in dir(qwen3) if name.startswith("QWEN3_")]


@pytest.mark.parametrize("name", SIZES)
def test_both_forms_of_settings_give_the_same_config(name):
    cfg = getattr(qwen3, name)
    assert published_qwen3_config(qwen_settings(cfg)) == cfg
    with torch.device("meta"):
        new = qwen3_model({**cfg, "n_layers": 1}).config.to_dict()
    assert "rope_parameters" in new
    assert published_qwen3_config(new) == {**cfg, "n_layers": 1}


MAY_BE_MISSING = {
    "rope_scaling",
    "hidden_act",
    "attention_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "decoder_sparse_step",
    "mlp_only_layers",
    "intermediate_size",  # of a model with experts, which has no such layer
}


@pytest.mark.parametrize("name", sorted(qwen_settings(QWEN3_30B_A3B)))
def test_no_setting_is_guessed(name):
    settings = qwen_settings(QWEN3_30B_A3B, **{name: ...})
    if name in MAY_BE_MISSING:
        assert published_qwen3_config(settings) == QWEN3_30B_A3B
        return
    with pytest.raises(ValueError, match=f"{name}|number of experts|model type None"):
        published_qwen3_config(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model type 'qwen2', and this is for 'qwen3'"),
        ({"use_sliding_window": True}, "use_sliding_window=True, but Qwen3Model"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attent"),
        ({"layer_types": "full_attention"}, "layer_types='full_attention', but"),
        ({"layer_types": [["full_attention"]]}, "has only layers of the type"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        ({"shared_expert_intermediate_size": 768}, "shared_expert_intermediate_size="),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "of type 'yarn'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"num_local_experts": 64}, r"\[128, 64\] numbers of experts"),
        ({"num_experts_per_tok": 200}, "top_k=200 of num_experts=128"),
        ({"norm_topk_prob": 1}, "'norm_topk_prob' is 1, not true or false"),
        ({"num_key_value_heads": "4"}, "'num_key_value_heads' is '4'"),
    ],
)
def test_what_the_model_cannot_be_is_refused(changes, message):
    settings = qwen_settings(QWEN3_30B_A3B, **changes)
    with pytest.raises(ValueError, match=message):
        published_qwen3_config(settings)


# --- Files that are not the model's ---------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "hold 3 blocks, but config.json asks for 1000"),
        ({"num_local_experts": 10**9}, "hold 5 experts in a block, but config.json"),
        ({"head_dim": 12}, "has shape"),
        ({"moe_intermediate_size": 8}, "'model.layers.0.mlp.experts.0.* has shape"),
    ],
)
def test_other_settings_are_refused(mixed, tmp_path, changes, message):
    folder = shutil.copytree(mixed, tmp_path / "copy")
    change_settings(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_qwen3_from_safetensors(folder)


@pytest.mark.parametrize(
    "name",
    ["self_attn.k_norm.weight", "mlp.gate.weight", "mlp.experts.4.up_proj.weight"],
)
def test_missing_and_unknown_tensors_are_refused(mixed, tmp_path, name):
    folder = shutil.copytree(mixed, tmp_path / "copy")
    check_names(folder, f"model.layers.1.{name}", QWEN3)


class TestQwen3Folders(FolderContract):
    family = QWEN3
    configs = KINDS.values()
    load_pretrained = staticmethod(load_pretrained)


def test_a_folder_with_its_vocabulary(mixed, tmp_path):
    folder = shutil.copytree(mixed, tmp_path / "copy")
    lines = [f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(256)]
    path = folder / "qwen.tiktoken"
    path.write_text("\n".join(lines), encoding="ascii")
    model, tokenizer = load_qwen3_folder(folder)
    assert tokenizer.n_vocab == 256 + len(QWEN3_SPECIAL) <= model.cfg.vocab_size
    ids = tokenizer.render_chat([{"role": "user", "content": "hi"}], thinking=False)
    assert model(torch.tensor([ids])).isfinite().all()
    context, cache = model.cfg["context_length"], KVCache(model.cfg["n_layers"])
    end, prompt = end_tokens(tokenizer), torch.tensor([ids])
    out = generate(model, prompt, 5, context, eos_id=end, cache=cache)
    assert torch.equal(out, generate(model, prompt, 5, context, eos_id=end))
    joined = {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(5, 18, 24)}
    whole = load_file(folder / "model.safetensors")
    save_file({**whole, **joined}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="are joined in one tensor"):
        load_qwen3_folder(folder)
    save_file(whole, folder / "model.safetensors")
    lines += [
        f"{base64.b64encode(bytes([b, b])).decode()} {256 + b}" for b in range(99)
    ]
    path.write_text("\n".join(lines), encoding="ascii")
    with pytest.raises(ValueError, match="has 381 tokens, but the model only 300"):
        load_qwen3_folder(folder)
    path.write_text("<html>", encoding="ascii")
    with pytest.raises(ValueError, match="take the vocabulary published with Qwen3"):
        load_qwen3_folder(folder)
