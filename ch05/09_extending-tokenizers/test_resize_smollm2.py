"""The real model: three tokens more, and the same answer to everything old."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from course.assets import fetch
from gguf_files import read_gguf
from gguf_tokenizer import GGUFTokenizer
from kv_cache import KVCache
from pretrained import load_pretrained
from resize import ExtendedTokenizer, resize_vocabulary

NEW = ["<|ask|>", "<|reply|>", "<|done|>"]
TEXT = "The capital of France is Paris. 3 + 4 = 7; Gr\u00fc\u00dfe aus K\u00f6ln!\n\n"
words = st.sampled_from([*NEW, "<|im_end|>", "<|", "|>", "ask", " the", "\n", "7"])
texts = st.lists(words | st.text(max_size=5), max_size=10).map("".join)


@pytest.fixture(scope="module")
def smollm2():
    return load_pretrained("smollm2-135m")


@pytest.fixture(scope="module")
def tokenizers(smollm2):
    """The old tokenizer, wrapped, and one made from a longer vocabulary."""
    metadata = dict(read_gguf(fetch("smollm2-135m")).metadata)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *NEW]
    kinds = [*metadata["tokenizer.ggml.token_type"], 3, 3, 3]
    anew = GGUFTokenizer(metadata | {"tokenizer.ggml.token_type": kinds})
    return smollm2.tokenizer, ExtendedTokenizer(smollm2.tokenizer, NEW), anew


@pytest.fixture(scope="module")
def ids(smollm2):
    return torch.tensor([smollm2.tokenizer.encode(3 * TEXT)])


@settings(max_examples=200, deadline=None)
@given(st.data(), texts)
def test_its_tokenizer_wrapped_equals_one_with_a_longer_vocabulary(
    tokenizers, data, text
):
    old, wrapped, anew = tokenizers
    assert wrapped.n_vocab == anew.n_vocab == 49155
    assert wrapped.encode(text) == old.encode(text) == anew.encode(text)
    assert max(wrapped.encode(text), default=0) < 49152
    allowed = data.draw(st.sets(st.sampled_from([*NEW, "<|im_end|>"])))
    found = wrapped.encode(text, allowed_special=allowed)
    assert found == anew.encode(text, allowed_special=allowed)
    assert {49152 + NEW.index(t) for t in allowed & set(NEW) if t in text} >= {
        i for i in found if i >= 49152
    }
    assert wrapped.decode(found) == anew.decode(found)


def test_all_old_tokens_keep_their_bytes(tokenizers):
    old, wrapped, _ = tokenizers
    for i in range(49152):
        assert wrapped.decode_single_token_bytes(i) == old.decode_single_token_bytes(i)
    assert wrapped.eot_token == old.eot_token


@torch.no_grad()
def all_logits(model, ids):
    """Of a whole text, of its beginning, and of single tokens with a cache."""
    found, cache = [model(ids), model(ids[:, :5])], KVCache(model.cfg["n_layers"])
    found += [model(ids[:, t : t + 1], cache=cache) for t in range(4)]
    return found


@pytest.mark.parametrize("multiple", [1, 64, 128])
def test_its_old_logits_stay_to_the_last_bit(smollm2, ids, multiple):
    model = smollm2.model
    state, cfg = dict(model.state_dict()), model.cfg
    before = all_logits(model, ids)
    nll = F.cross_entropy(before[0][0, :-1], ids[0, 1:])
    try:
        resize_vocabulary(model, 49155, multiple=multiple)
        assert model.out_head.weight is model.tok_emb.weight
        after = all_logits(model, ids)
        rows = after[0].shape[-1]
        assert rows == {1: 49155, 64: 49216, 128: 49280}[multiple]
        for new, old in zip(after, before, strict=True):
            assert torch.equal(new[..., :49152], old)
        rise = F.cross_entropy(after[0][0, :-1], ids[0, 1:]) - nll
        assert -1e-6 < rise < math.log1p((rows - 49152) / 49152) + 1e-6
    finally:
        model.tok_emb.weight = torch.nn.Parameter(state["tok_emb.weight"])
        model.tok_emb.num_embeddings, model.cfg = 49152, cfg
