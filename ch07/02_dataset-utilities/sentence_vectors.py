"""Sentences as vectors with all-MiniLM-L6-v2, a small sentence embedder (ch. 7, bonus).

Support: nothing here is taught. `sentence_embedder.py` of chapter 6 computes the
vectors; here are the sizes of other weights of the same form, read from their file, and
a sentence for whoever lacks the packages.

    embed = load_embedder()
    embed(["The lamp was lit.", "Somebody lit the lamp."])    # (2, 384)

>>> from safetensors.torch import save_file
>>> from tempfile import TemporaryDirectory
>>> from torch import zeros
>>> tensors = {
...     "embeddings.word_embeddings.weight": zeros(100, 64),
...     "embeddings.position_embeddings.weight": zeros(20, 64),
...     "encoder.layer.0.intermediate.dense.weight": zeros(96, 64),
... }
>>> with TemporaryDirectory() as folder:
...     save_file(tensors, Path(folder) / "model.safetensors")
...     sizes = sizes_in(Path(folder) / "model.safetensors")
>>> sizes["num_attention_heads"], sizes["num_hidden_layers"], sizes["max_length"]
(2, 1, 20)
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

MOST_TOKENS = 256  # of a text; the rest is not read, as in the model's own settings
BATCH = 64
HEAD_WIDTH = 32

Embed = Callable[[list[str]], np.ndarray]


def load_embedder(weights: Path | None = None, tokenizer: Path | None = None) -> Embed:
    """A function that turns a list of texts into vectors of length 1.

    Args:
        weights: a file of BERT's weights (safetensors) whose heads are 32 wide; None
            takes all-MiniLM-L6-v2, which is fetched once.
        tokenizer: its `tokenizer.json`.

    Returns:
        A function from texts to float32 (texts, D), in their order. An empty text has a
        vector, too: that of its two marks.

    Raises:
        ValueError: `transformers` or `tokenizers` is missing.
        course.CourseError: the model is neither here nor can it be fetched.
    """
    try:
        import transformers  # noqa: F401 - the embedder's encoder is its BertModel

        from sentence_embedder import SentenceEmbedder
    except ImportError as problem:
        raise ValueError(
            f"{problem.name} is missing: python3 -m pip install -r "
            "requirements-test.txt, in the course's folder."
        ) from None
    sizes = {} if weights is None else sizes_in(weights)
    embedder = SentenceEmbedder(weights, tokenizer, **sizes)
    return partial(embedder.embed, batch_size=BATCH)


def sizes_in(weights: Path) -> dict[str, int]:
    """The sizes of a BERT by its weights, as `transformers.BertConfig` names them."""
    shapes = {name: tensor.shape for name, tensor in load_file(weights).items()}
    blocks = {name.split(".")[2] for name in shapes if ".layer." in name}
    vocabulary, width = shapes["embeddings.word_embeddings.weight"]
    places = shapes["embeddings.position_embeddings.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": shapes["encoder.layer.0.intermediate.dense.weight"][0],
        "max_position_embeddings": places,
        "max_length": min(MOST_TOKENS, places),
    }
