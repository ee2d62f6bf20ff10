"""The embedder gives one vector a text, the same in any batch."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from sentence_embedder import SentenceEmbedder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film", "dull", "[", "]")
TINY = dict(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Weights and tokenizer of a tiny random encoder, in files, and the encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    model = BertModel(BertConfig(**TINY), add_pooling_layer=False).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder, model


@pytest.fixture(scope="module")
def embedder(parts):
    folder, _ = parts
    places = folder / "model.safetensors", folder / "tokenizer.json"
    return SentenceEmbedder(*places, max_length=12, **TINY)


def test_a_vector_is_the_mean_of_the_real_tokens_of_length_one(parts, embedder):
    ids = torch.tensor([[2, 4, 5, 6, 3]])  # [CLS] a fine film [SEP]
    with torch.no_grad():
        states = parts[1](input_ids=ids).last_hidden_state[0]
    mean = states.mean(dim=0)
    expected = (mean / mean.norm()).numpy()
    (found,) = embedder.embed(["a fine film"])
    assert np.allclose(found, expected, atol=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_the_batch_changes_no_vector_and_the_order_stays(embedder):
    texts = ["a fine film " * n for n in (1, 5, 2, 3)] + ["dull"]
    together = embedder.embed(texts, batch_size=3)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-6)
    assert not np.allclose(together[0], together[-1], atol=1e-2)


def test_marks_that_somebody_typed_are_text(embedder):
    typed, plain = embedder.embed(["dull [SEP] film", "dull film"])
    rows = embedder.tokenizer.encode("dull [SEP] film").ids
    assert rows.count(3) == 1  # the tokenizer's own, at the end
    assert not np.allclose(typed, plain, atol=1e-3)


def test_a_text_of_100_000_words_is_cut_and_an_empty_one_has_a_vector(embedder):
    long, cut, empty = embedder.embed(["film " * 100_000, "film " * 10, ""])
    assert np.allclose(long, cut, atol=1e-6)
    assert np.linalg.norm(empty) == pytest.approx(1, abs=1e-6)


def test_weights_of_another_model_are_refused(parts, tmp_path):
    folder, model = parts
    some = {k: v for k, v in model.state_dict().items() if "layer.1" not in k}
    save_file(some, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks encoder.layer.1"):
        SentenceEmbedder(
            tmp_path / "model.safetensors", folder / "tokenizer.json", **TINY
        )
