"""The embedder is the reference's: the mean over real tokens, alone or in a batch."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from course import assets
from sentence_vectors import load_embedder

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "lamp",
    "was",
    "lit",
    "a",
    "cat",
    "sat",
    "on",
    "mat",
    ".",
    "and",
    "dog",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small BERT and a tokenizer with the settings that such files often have."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=20,
    )
    model = transformers.BertModel(config).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    vocab = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=marks
    )
    words.enable_padding(length=15, pad_id=0)
    words.enable_truncation(5)
    words.save(str(folder / "tokenizer.json"))
    return model, folder / "model.safetensors", folder / "tokenizer.json"


TEXTS = ["the lamp was lit .", "a cat", "", "and a dog sat on the mat", "zebra " * 50]


def test_it_gives_what_the_reference_gives(tiny):
    model, *files = tiny
    made = load_embedder(*files)(TEXTS)
    assert made.shape == (5, 64)
    assert made.dtype == np.float32
    for text, vector in zip(TEXTS, made, strict=True):
        ids = [2, *(WORDS.index(w) if w in WORDS else 1 for w in text.split()), 3]
        ids = ids if len(ids) <= 20 else [*ids[:19], 3]
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert np.allclose(vector, mean / mean.norm(), atol=1e-5)


def test_a_text_has_its_vector_whatever_stands_beside_it(tiny):
    embed = load_embedder(*tiny[1:])
    alone = np.concatenate([embed([text]) for text in TEXTS])
    assert np.allclose(embed(TEXTS), alone, atol=1e-5)
    assert np.allclose(embed(TEXTS * 40)[-5:], alone, atol=1e-5)  # several batches


@pytest.mark.skipif(
    assets.status("minilm-l6-v2") != "present"
    or assets.status("minilm-l6-v2-tokenizer") != "present",
    reason="the embedder is not in the cache: python -m course.assets fetch "
    "minilm-l6-v2 minilm-l6-v2-tokenizer",
)
def test_the_real_one_tells_meaning_from_letters():
    embed = load_embedder()
    vectors = embed([
        "Rewrite the sentence in the passive voice.",
        "How would you say this in the passive?",
        "Rewrite the sentence in the simple past.",
        "How many eggs are needed for a cake?",
    ])  # fmt: skip
    assert vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    scores = vectors @ vectors.T
    assert scores[0, 1] > 0.6
    assert scores[0, 3] < 0.3
