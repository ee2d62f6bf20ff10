"""Sentences as vectors with all-MiniLM-L6-v2, a small sentence embedder (ch. 7, bonus).

Support: nothing here is taught. A sentence embedder is a BERT that was tuned so that
sentences of the same meaning get vectors of nearly the same direction (Reimers and
Gurevych, 2019, arXiv:1908.10084). The model is that of the package `transformers`, the
tokenizer that of `tokenizers`; the vector of a text is the mean over its tokens, made
1 long, as in the model's own card. It has 22 million parameters, 91 MB on the disk.

    embed = load_embedder()
    embed(["The lamp was lit.", "Somebody lit the lamp."])    # (2, 384)

>>> callable(load_embedder)
True
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

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
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel
    except ImportError as problem:
        raise ValueError(
            f"{problem.name} is missing: python3 -m pip install -r "
            "requirements-test.txt, in the course's folder."
        ) from None
    if weights is None or tokenizer is None:
        from course.assets import fetch

        weights = weights or fetch("minilm-l6-v2")
        tokenizer = tokenizer or fetch("minilm-l6-v2-tokenizer")
    tensors = load_file(weights)
    names = {name.split(".")[2] for name in tensors if ".layer." in name}
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    wide = tensors["encoder.layer.0.intermediate.dense.weight"].shape[0]
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(names),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=wide,
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict(
        {name: x for name, x in tensors.items() if not name.startswith(unused)}
    )
    words = Tokenizer.from_file(str(tokenizer))
    words.no_padding()
    words.enable_truncation(min(MOST_TOKENS, config.max_position_embeddings))

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        ids = [found.ids for found in words.encode_batch(list(texts))]
        vectors = np.empty((len(ids), width), dtype=np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            longest = len(ids[some[-1]])
            idx = torch.zeros(len(some), longest, dtype=torch.long)  # (B, T)
            mask = torch.zeros(len(some), longest)
            for row, i in enumerate(some):
                idx[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            states = model(input_ids=idx, attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[some] = F.normalize(mean, dim=-1).numpy()  # (B, D)
        return vectors

    return embed
