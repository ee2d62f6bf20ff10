"""SmolLM2 in our model and in `transformers`: the same numbers, the same text."""

import gguf
import numpy as np
import pytest
import torch

import gguf_weights
from course.assets import fetch
from gguf_files import read_gguf
from gguf_weights import dequantise, gguf_key_map, load_llama_from_gguf
from gpt import generate_text_simple
from gpt_train import calc_loss_batch
from kv_cache import KVCache
from llama import SMOLLM2_135M, llama_key_map

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
    "    indented\ttext  with   spaces\n\n\n",
    "\U0001f642 means",
    "a",
]


@pytest.fixture(scope="module")
def path():
    return fetch("smollm2-135m")


@pytest.fixture(scope="module")
def ours(path):
    return load_llama_from_gguf(path)


@pytest.fixture(scope="module")
def their_weights(path):
    """Every tensor as the package `gguf` reads it, queries and keys still in pairs."""
    return {
        tensor.name: np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }


def halves(weight, heads):
    """From llama.cpp's order of rows back to that of `transformers`, in NumPy."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


@pytest.fixture(scope="module")
def theirs(their_weights):
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    cfg = SMOLLM2_135M
    config = TheirConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.emb_dim,
        intermediate_size=cfg.hidden_dim,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_groups,
        max_position_embeddings=cfg.context_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    published = {ours: name for name, ours in llama_key_map(cfg).items()}
    state = {}
    for name, ours in gguf_key_map(cfg).items():
        weight = their_weights[name]
        if "attn_q" in name or "attn_k" in name:
            weight = halves(weight, 9 if "attn_q" in name else 3)
        state[published[ours]] = torch.from_numpy(weight)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # not in the state
    return model


def test_every_weight_is_the_reference_s_bit_for_bit(path, their_weights):
    tensors = read_gguf(path).tensors
    assert list(tensors) == list(their_weights)
    for name, tensor in tensors.items():
        got, want = dequantise(tensor).numpy(), their_weights[name]
        assert got.shape == want.shape, name
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), name


def test_logits_equal_those_of_transformers(ours, theirs):
    """Twelve prompts, every position; 6e-5 measured where logits go up to 41."""
    model, tokenizer = ours
    assert len(PROMPTS) >= 10
    for prompt in PROMPTS:
        idx = torch.tensor([tokenizer.encode(prompt)])
        with torch.no_grad():
            got, want = model(idx), theirs(idx).logits
        assert (got - want).abs().max() < 1e-4, prompt


@pytest.mark.parametrize("steps", [64, 20])
def test_the_same_text_with_and_without_cache(ours, theirs, steps):
    """Greedy text: a story for 64 tokens, an answer in a conversation for 20."""
    model, tokenizer = ours
    ids = tokenizer.encode(PROMPTS[1])
    if steps == 20:
        chat = [{"role": "user", "content": "Name three fruits."}]
        ids = tokenizer.render_chat(chat)
    idx = torch.tensor([ids])
    with torch.no_grad():
        cached = generate_text_simple(model, idx, steps, 8192, cache=KVCache(30))
        want = theirs.generate(
            idx,
            attention_mask=torch.ones_like(idx),
            max_new_tokens=steps,
            do_sample=False,
        )
        best = model(cached[:, :-1]).argmax(dim=-1)  # all of it at once, no cache
    assert cached.shape == (1, len(ids) + steps)
    assert torch.equal(cached, want)
    assert torch.equal(best[:, len(ids) - 1 :], cached[:, len(ids) :])


def test_it_knows_the_capital_of_france(ours):
    model, tokenizer = ours
    ids = tokenizer.render_chat(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    with torch.no_grad():
        out = generate_text_simple(
            model, torch.tensor([ids]), 8, 8192, cache=KVCache(30)
        )
    answer = out[0, len(ids) :].tolist()
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert answer[-1] == tokenizer.eot_token


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(ours):
    model, tokenizer = ours
    prompts = [tokenizer.encode(text) for text in (PROMPTS[0], PROMPTS[4], PROMPTS[11])]
    longest = max(map(len, prompts))
    idx = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        idx[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = True
    with torch.no_grad():
        together = model(idx, attention_mask=mask)
        for row, ids in enumerate(prompts):
            alone = model(torch.tensor([ids]))[0]
            assert (together[row, longest - len(ids) :] - alone).abs().max() < 1e-4


@pytest.fixture(scope="module")
def story(ours):
    ids = ours[1].encode(fetch("short-story").read_text(encoding="utf-8"))
    return torch.tensor([ids[:513]])


def loss_on(ids, model):
    with torch.no_grad():
        return calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu").item()


def test_the_loss_on_the_story(ours, story):
    """Text that no model has seen: 3.464 nats a token; a guess has ln V = 10.8."""
    assert loss_on(story, ours[0]) == pytest.approx(3.464, abs=0.002)


def test_a_wrong_rotary_base_is_visible_on_512_tokens(ours, story, monkeypatch):
    """What a silent default of 10,000 would do: the same text, read worse."""
    model, _ = ours
    right = loss_on(story, model)
    wrong_cfg = dict(model.cfg) | {"rope_base": 10_000.0}
    monkeypatch.setattr(model, "cfg", type(model.cfg)(**wrong_cfg))
    wrong = loss_on(story, model)
    assert wrong > right + 0.05  # 0.106 measured


def test_bfloat16_is_close(ours, path):
    model, tokenizer = ours
    half, _ = gguf_weights.load_llama_from_gguf(path, torch.bfloat16)
    idx = torch.tensor([tokenizer.encode(PROMPTS[0])])
    with torch.no_grad():
        difference = (half(idx).float() - model(idx)).abs().max()
    assert half.tok_emb.weight.dtype == torch.bfloat16
    assert 0 < difference < 1
