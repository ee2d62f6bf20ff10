"""Folders of Olmo 3 and Olmo 2: read as `transformers` reads them, or refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import olmo3
from course.testing.model_contract import random_ids
from course.testing.published_folders import FolderContract, change_settings, publish
from fast_copies import arrange_columns, quantise_int8
from kv_cache import KVCache
from olmo3 import OLMO3_7B, Olmo3Config, Olmo3Model, olmo3_windows
from olmo3_files import (
    OLMO3,
    load_olmo3_folder,
    load_olmo3_from_safetensors,
    olmo3_settings,
    published_olmo3_config,
)
from pretrained import load_pretrained

SMALL = Olmo3Config.of(
    {
        **OLMO3_7B,
        "vocab_size": 300,
        "context_length": 512,
        "emb_dim": 24,
        "n_heads": 6,
        "n_kv_groups": 2,
        "head_dim": 4,
        "n_layers": 4,
        "hidden_dim": 37,
        "rope_scaling": {**OLMO3_7B.rope_scaling, "original_context_length": 64},
        "window": 7,
    }
)
OLMO2 = {"rope_scaling": None, "window": None, "full_every": None}
KINDS = {"olmo3": SMALL, "olmo2": Olmo3Config.of({**SMALL, **OLMO2})}


def olmo3_model(cfg):
    """Theirs, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**olmo3_settings(cfg), eos_token_id=None)
    return AutoModelForCausalLM.from_config(config)


def yarn_settings(scaling):
    """The published names of the numbers of YaRN."""
    if scaling is None:
        return None
    rotations = olmo3_settings({**SMALL, "rope_scaling": scaling})["rope_parameters"]
    found = dict(rotations["full_attention"])
    del found["rope_theta"]
    return found


def published_by_transformers(folder, cfg, shard="1GB"):
    """A random model, written as the library writes it; the model comes back."""
    return publish(olmo3_model(cfg), folder, shard)


@pytest.fixture(scope="module", params=KINDS)
def published(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    published_by_transformers(folder, KINDS[request.param])
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


# --- Equal to the library -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "20KB"], ids=["one file", "shards"])
@torch.no_grad()
def test_the_logits_are_those_of_transformers(tmp_path, kind, tied, shard):
    cfg = Olmo3Config.of({**KINDS[kind], "tie_weights": tied})
    theirs = published_by_transformers(tmp_path, cfg, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    ours = load_olmo3_from_safetensors(tmp_path, torch.float32)
    assert ours.cfg == cfg
    assert not ours.training
    idx = random_ids(2, 100, vocab_size=300)
    expected = theirs(idx).logits
    assert (ours(idx) - expected).abs().max() < 1e-5
    cache = KVCache(4, window=olmo3_windows(cfg), masked=True)
    pieces = [ours(part, cache=cache) for part in idx.split(37, dim=1)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_fast_copies():
    """A text past the windows, then single cached tokens; also a rolling cache."""
    torch.manual_seed(0)
    model, idx = Olmo3Model(SMALL).eval(), random_ids(1, 20, vocab_size=300)
    arranged, quantised = arrange_columns(model, parts=2), quantise_int8(model)
    expected = model(idx)
    for windows in (None, olmo3_windows(SMALL)):
        cache = KVCache(4, window=windows, masked=windows is not None)
        assert (arranged(idx) - expected).abs().max() < 1e-4
        parts = [arranged(part, cache=cache) for part in idx.split(1, 1)]
        assert (torch.cat(parts, dim=1) - expected).abs().max() < 1e-4
    rounded = quantised(idx)
    assert (rounded - expected).abs().mean() < 0.1 * expected.std()
    assert not torch.equal(rounded, expected)


# --- Settings -------------------------------------------------------------------------

SIZES = [name for name in dir(olmo3) if name.startswith("OLMO")]


def old_settings(cfg, **changes):
    """What was published for a config, in the form of that time."""
    found = {
        "model_type": "olmo3" if cfg.window else "olmo2",
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "hidden_size": cfg.emb_dim,
        "intermediate_size": cfg.hidden_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_groups,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": 500000,
        "rope_scaling": yarn_settings(cfg.rope_scaling),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
    }
    if cfg.window:
        kinds = [
            "full_attention" if w is None else "sliding_attention"
            for w in olmo3_windows(cfg)
        ]
        found |= {"sliding_window": cfg.window, "layer_types": kinds}
    return {name: v for name, v in {**found, **changes}.items() if v is not ...}


@pytest.mark.parametrize("name", SIZES)
def test_both_forms_of_settings_give_the_same_config(name):
    cfg = getattr(olmo3, name)
    assert published_olmo3_config(old_settings(cfg)) == cfg
    with torch.device("meta"):
        new = olmo3_model({**cfg, "n_layers": 4}).config.to_dict()
    assert "rope_parameters" in new
    assert published_olmo3_config(new) == {**cfg, "n_layers": 4}
    assert published_olmo3_config(olmo3_settings(cfg)) == cfg


def test_the_library_reads_the_old_form_alike():
    """YaRN for the blocks that see everything, and for no others."""
    import transformers

    theirs = transformers.Olmo3Config(**old_settings(OLMO3_7B)).rope_parameters
    plain = {"rope_type": "default", "rope_theta": 500000}
    assert theirs["sliding_attention"] == plain
    assert (
        theirs["full_attention"].items()
        >= {"rope_type": "yarn", "factor": 8.0, "rope_theta": 500000}.items()
    )


MAY_BE_MISSING = {
    "rope_scaling": {"rope_scaling": None},
    "layer_types": {},
    "hidden_act": {},
    "attention_bias": {},
    "attention_dropout": {},
}


@pytest.mark.parametrize("name", sorted(old_settings(OLMO3_7B)))
def test_no_setting_is_guessed(name):
    settings = old_settings(OLMO3_7B, **{name: ...})
    if name in MAY_BE_MISSING:
        expected = {**OLMO3_7B, **MAY_BE_MISSING[name]}
        assert published_olmo3_config(settings) == expected
        return
    with pytest.raises(ValueError, match=f"lack '{name}'|model type None"):
        published_olmo3_config(settings)


@pytest.mark.parametrize("name", sorted(yarn_settings(OLMO3_7B.rope_scaling)))
def test_what_a_missing_number_of_yarn_means(name):
    scaling = yarn_settings(OLMO3_7B.rope_scaling)
    del scaling[name]
    settings = old_settings(OLMO3_7B, rope_scaling=scaling)
    if name in ("beta_fast", "beta_slow", "attention_factor"):
        assert published_olmo3_config(settings) == OLMO3_7B
    elif name == "rope_type":  # as the library takes it
        assert published_olmo3_config(settings)["rope_scaling"] is None
    else:
        with pytest.raises(ValueError, match=f"lack '{name}'"):
            published_olmo3_config(settings)


YARN = yarn_settings(OLMO3_7B.rope_scaling)
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
OLD = {name: value for name, value in YARN.items() if name != "rope_type"}
TWO = {"sliding_attention": PLAIN, "full_attention": {**PLAIN, **YARN}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "olmo"}, "model type 'olmo', and this is for 'olmo3'"),
        ({"rope_parameters": {**PLAIN, **YARN}}, "not say which blocks YaRN is for"),
        (
            {"rope_parameters": {**TWO, "sliding_attention": {**PLAIN, **YARN}}},
            "stretch the rotation of the blocks with a window",
        ),
        (
            {"rope_parameters": {**TWO, "sliding_attention": {"rope_theta": 1e4}}},
            "'rope_theta' for each kind of block",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "of type 'linear'"),
        ({"rope_scaling": {**YARN, "mscale": 1.0}}, "mscale=1.0, but Olmo3Model"),
        ({"rope_scaling": 8}, "'rope_scaling' is 8, no mapping"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"model_type": "olmo2"}, "stretch the rotation of an Olmo 2"),
        ({"layer_types": ["full_attention"] * 31}, "no list of the kinds of 32 blocks"),
        ({"layer_types": 5}, "no list of the kinds of 32 blocks"),
        (
            {"rope_parameters": {"full_attention": [1]}},
            r"'full_attention' is \[1\], no mapping",
        ),
        ({"rope_scaling": {**YARN, "factor": "8"}}, "'factor' is '8', not a number"),
        (
            {"rope_scaling": {**YARN, "truncate": False}},
            "truncate=False, but Olmo3Model",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5, but Olmo3Model"),
        (
            {"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}},
            "partial_rotary_fact",
        ),
        ({"rope_parameters": {**TWO, "full_attention": PLAIN}}, "different rotations"),
        ({"rope_parameters": TWO, "rope_theta": 1e4}, "different rotations"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', but Olmo3Model"),
        (
            {"rope_parameters": {**TWO, "sliding_attention": {"type": "yarn", **OLD}}},
            "stretch the rotation of the blocks with a window",
        ),
        (
            {"layer_types": ["full_attention"] + ["sliding_attention"] * 31},
            "another rhythm than Olmo3Model",
        ),
        ({"sliding_window": "4096"}, "'sliding_window' is '4096', not a whole"),
        ({"num_key_value_heads": "4"}, "'num_key_value_heads' is '4'"),
    ],
)
def test_what_the_model_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        published_olmo3_config(old_settings(OLMO3_7B, **changes))


def test_other_rhythms_are_read():
    for full_every in (2, 3, None):
        cfg = Olmo3Config.of({**SMALL, "full_every": full_every})
        assert published_olmo3_config(olmo3_model(cfg).config.to_dict()) == cfg


def test_blocks_that_all_see_everything_have_no_window():
    """With YaRN it is an Olmo 3 all the same, and the library takes what we write."""
    expected = {**SMALL, "window": None, "full_every": None}
    for cfg in (expected, {**SMALL, "full_every": 1}):
        assert published_olmo3_config(olmo3_settings(cfg)) == expected
    with torch.no_grad():
        assert olmo3_model(expected)(random_ids(1, 9, vocab_size=300)).logits.ndim == 3


# --- Files that are not the model's ---------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9, "layer_types": None}, "hold 4 blocks, but conf"),
        ({"head_dim": 12}, "has shape"),
        ({"num_attention_heads": 4}, "has shape"),
    ],
)
def test_other_settings_are_refused(folder, changes, message):
    change_settings(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_olmo3_from_safetensors(folder)


def test_a_llama_under_another_name_is_refused(folder):
    """Known mistake: its "post_attention_layernorm" is another norm."""
    path = folder / "model.safetensors"
    swapped = {
        name.replace("post_attention_", "input_").replace(
            "post_feedforward_", "post_attention_"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(swapped, path)
    with pytest.raises(ValueError, match=r"post_feedforward_layernorm.* missing"):
        load_olmo3_from_safetensors(folder)


class TestOlmo3Folders(FolderContract):
    family = OLMO3
    configs = KINDS.values()
    load_pretrained = staticmethod(load_pretrained)


def test_a_folder_without_a_tokenizer_has_its_model(published):
    model, tokenizer = load_olmo3_folder(published)
    assert model.cfg in KINDS.values()
    with pytest.raises(AttributeError, match="There is no tokenizer in"):
        tokenizer.encode("hi")
