"""Our adapters beside those of the library peft: the same numbers, the same files."""

import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

from course.testing.model_contract import random_ids
from course.testing.references import llama_config
from gpt import GPTModel
from gpt_download import load_weights_into_gpt
from llama import LlamaModel, llama_key_map
from lora import (
    LoRALayer,
    lora_layers,
    merge_lora,
    replace_linear_with_lora,
    use_adapter,
)
from lora_files import load_adapter, published_names, save_adapter
from small_models import small_configs

GPT, LLAMA = small_configs(context_length=10, vocab_size=23).values()
LLAMA |= {"emb_dim": 12, "n_heads": 6}  # heads of width 4, so 24 in all
GPT |= {"qkv_bias": True, "tie_weights": True}
IDS = random_ids(2, 7, vocab_size=23)
TARGETS = {  # theirs, and ours
    "llama": ("q_proj|down_proj", ["*.W_query", "*.down"]),
    "gpt": ("c_attn|c_fc", ["*.W_*", "*.ff.layers.0"]),
}


def llama_pair():
    """A tiny Llama of the transformers library, and ours with its weights."""
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(llama_config(LLAMA)).eval()
    ours, state = LlamaModel(LLAMA).eval(), theirs.state_dict()
    names = llama_key_map(LLAMA)
    ours.load_state_dict({our: state[their] for their, our in names.items()})
    return theirs, ours


def gpt_pair():
    """A tiny GPT-2 of the transformers library, and ours with its weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=10, n_embd=12, n_layer=2, n_head=3
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = theirs.transformer.state_dict()
    ours = load_weights_into_gpt(GPTModel(GPT).eval(), state)
    return theirs, ours


PAIRS = {"llama": llama_pair, "gpt": gpt_pair}
both_kinds = pytest.mark.parametrize("kind", PAIRS)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():  # that fan_in_fan_out is set for GPT-2
        warnings.simplefilter("ignore", UserWarning)
        yield


def with_pefts_adapter(model, targets, **more):
    """A model in peft's hands, its adapter shaken as after a training."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=rf".*\.({targets})", **more
    )
    model = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def with_our_adapter(model, names):
    return shake(replace_linear_with_lora(model, 4, 6, names))


def shake(model):
    """Give our adapter numbers as after a training."""
    torch.manual_seed(1)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora.B, std=0.3)
    return model


def same(left, right):
    return torch.allclose(left, right, rtol=0, atol=1e-5)


@both_kinds
@pytest.mark.parametrize(
    "more",
    [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}],
    ids=["plain", "rslora", "gaussian"],
)
def test_what_peft_wrote_is_read(kind, more, tmp_path):
    theirs, ours = PAIRS[kind]()
    before = ours(IDS)
    assert same(before, theirs(IDS).logits)
    tuned = with_pefts_adapter(theirs, TARGETS[kind][0], **more)
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    load_adapter(tmp_path, ours)
    assert same(ours(IDS), tuned(IDS).logits)
    assert not torch.allclose(ours(IDS), before, atol=1e-2)
    assert same(merge_lora(ours)(IDS), tuned.merge_and_unload()(IDS).logits)


@both_kinds
def test_what_we_wrote_is_read_by_peft(kind, tmp_path):
    theirs, ours = PAIRS[kind]()
    with_our_adapter(ours, TARGETS[kind][1])
    save_adapter(tmp_path, ours, published=True)
    tuned = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert same(tuned(IDS).logits, ours(IDS))
    with tuned.disable_adapter():
        assert same(tuned(IDS).logits, use_adapter(ours, None)(IDS))


@both_kinds
def test_an_adapter_of_a_model_of_ours_goes_to_peft_and_back(kind, tmp_path):
    _, ours = PAIRS[kind]()
    _, again = PAIRS[kind]()
    replace_linear_with_lora(ours, 2, 6, "*.0.att.*")  # two ranks, two alphas
    replace_linear_with_lora(ours, 3, 4, "*.1.ff.*")
    shake(ours)
    save_adapter(tmp_path / "ours", ours)
    tuned = peft.PeftModel.from_pretrained(again, tmp_path / "ours").eval()
    assert same(tuned(IDS), ours(IDS))
    tuned.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    _, third = PAIRS[kind]()
    assert torch.equal(load_adapter(tmp_path / "theirs", third)(IDS), ours(IDS))


@both_kinds
def test_gradients_are_those_of_peft(kind, tmp_path):
    theirs, ours = PAIRS[kind]()
    tuned = with_pefts_adapter(theirs, TARGETS[kind][0])
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    load_adapter(tmp_path, ours)
    tuned(IDS).logits.square().mean().backward()
    ours(IDS).square().mean().backward()
    gradients = {
        name.removeprefix("base_model.model.").replace(".default", ""): p.grad
        for name, p in tuned.named_parameters()
        if p.requires_grad
    }
    names, sums = published_names(ours), {}
    for name, layer in lora_layers(ours).items():
        their_name, part = names[name]
        B = gradients[f"{their_name}.lora_B.weight"].T
        B = B if part is None else B.chunk(3, dim=1)[part]
        assert same(layer.lora.B.grad, B)
        sums[their_name] = sums.get(their_name, 0) + layer.lora.A.grad
    for their_name, A in sums.items():  # one A for three layers gets their sum
        assert same(A, gradients[f"{their_name}.lora_A.weight"].T)


def test_updates_are_those_of_peft(tmp_path):
    theirs, ours = llama_pair()
    tuned = with_pefts_adapter(theirs, TARGETS["llama"][0])
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    before = load_adapter(tmp_path, ours)(IDS)
    models = [(tuned, lambda: tuned(IDS).logits), (ours, lambda: ours(IDS))]
    for model, logits in models:
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=0.02)
        for _ in range(3):
            optimizer.zero_grad()
            (logits() - 1).square().sum().backward()
            optimizer.step()
    assert same(ours(IDS), tuned(IDS).logits)
    assert not torch.allclose(ours(IDS), before, atol=1e-3)


def test_a_starts_as_pefts_does():
    torch.manual_seed(3)
    ours = LoRALayer(300, 5, 20, 1).A
    layer = peft.get_peft_model(
        nn.Sequential(nn.Linear(300, 5)), peft.LoraConfig(r=20, target_modules=["0"])
    )
    theirs = next(p for name, p in layer.named_parameters() if "lora_A" in name)
    assert torch.allclose(ours.abs().max(), theirs.abs().max(), rtol=0.02)
    assert torch.allclose(ours.std(), theirs.std(), rtol=0.03)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_change_the_base_are_refused(start, tmp_path):
    theirs, ours = llama_pair()
    tuned = with_pefts_adapter(theirs, "q_proj", init_lora_weights=start)
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ValueError, match=f"init_lora_weights is '{start}'"):
        load_adapter(tmp_path, ours)
    assert not lora_layers(ours)


def test_whole_layers_that_peft_saved_are_refused(tmp_path):
    theirs, ours = llama_pair()
    tuned = with_pefts_adapter(theirs, "q_proj", modules_to_save=["norm"])
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ValueError, match="layers that were trained whole"):
        load_adapter(tmp_path, ours)
