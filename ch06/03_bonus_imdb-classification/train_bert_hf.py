"""Film reviews by an encoder, which reads in both directions (chapter 6, bonus).

Any model that `transformers` loads from a folder and can put a head for classes on:
BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692), ModernBERT (arXiv:2412.13663) and
others, as `save_pretrained` or the model hub's client leaves them: `config.json`, the
weights, and the tokenizer's files.
Nothing is fetched, and no code out of the folder is run.

* `HubEncoder`: such a model with the interface of the course's classifiers;
* `HubTokens`: its tokenizer, for which a review is text whatever it says.

Shapes: B reviews in a batch, T tokens, C classes.

>>> main(["--learn", "nothing"])
Traceback (most recent call last):
SystemExit: 2
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import script_tools
from download_prepare_dataset import LABELS
from review_script import (
    add_training,
    read_options,
    read_parts,
    script_parser,
    train_and_report,
)

RATES = {"head": 1e-3, "last-block": 1e-4, "all": 5e-5}


class HubEncoder(nn.Module):
    """An encoder whose logits stand at each place, as those of `MeanOfTokens` do.

    Args:
        model: of `transformers`, with a head for classes.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, C) from ids, (B, T); True in the mask is a real token."""
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        logits = self.model(input_ids=inputs, attention_mask=mask.long()).logits
        return logits[:, None].expand(-1, inputs.shape[1], -1)  # (B, T, C)


class HubTokens:
    """A tokenizer of `transformers` with the `encode` that the course calls.

    Args:
        tokenizer: it puts its own marks around a review.
        max_length: marks included; a longer review loses its end, not its last mark.
    """

    def __init__(self, tokenizer: Any, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of a review; a mark that somebody typed is text."""
        return self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_length,
            split_special_tokens=True,
        )["input_ids"]


def load_encoder(folder: Path | str, max_length: int) -> tuple[HubEncoder, HubTokens]:
    """An encoder and its tokenizer from a folder.

    Raises:
        ValueError: there is no such folder, or no such model in it.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is not a folder with a config.json: give one that "
            "save_pretrained or the model hub's client wrote."
        )
    logging.set_verbosity_error()  # it would warn that the head is new: it is meant
    logging.disable_progress_bar()
    there = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **there)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(LABELS), ignore_mismatched_sizes=True, **there
        )
    except (OSError, ValueError, KeyError) as problem:
        words = str(problem).strip().partition("\n")[0]
        raise ValueError(f"{folder} cannot be loaded: {words}") from None
    longest = getattr(model.config, "max_position_embeddings", None) or max_length
    if max_length > longest:
        raise ValueError(
            f"--max-length is {max_length}, and the model in {folder} reads at most "
            f"{longest} tokens: give no more."
        )
    return HubEncoder(model), HubTokens(tokenizer, max_length)


def learn_only(encoder: HubEncoder, learn: str) -> None:
    """Let the head learn, the last block as well, or everything.

    The base model's blocks are found as its longest list of modules; what is not in the
    base model is the head.
    """
    base = encoder.model.base_model
    encoder.requires_grad_(True)
    if learn == "all":
        return
    base.requires_grad_(False)
    if learn == "last-block":
        lists = [one for one in base.modules() if isinstance(one, nn.ModuleList)]
        max(lists, key=len)[-1].requires_grad_(True)


def main(arguments: list[str] | None = None) -> int:
    """Train an encoder and report; return the exit code."""
    parser = script_parser(
        "train_bert_hf.py",
        "Sort film reviews with an encoder that transformers loads from a folder.",
        "ch06-reviews-encoder",
    )
    folder = "folder with config.json, weights and tokenizer"
    parser.add_argument("--model", type=Path, required=True, help=folder)
    what = "what of it learns (%(default)s)"
    parser.add_argument("--learn", choices=RATES, default="all", help=what)
    add_training(parser, epochs=2)
    options = read_options(parser, arguments)
    options.lr = RATES[options.learn] if options.lr is None else options.lr
    return script_tools.run(_train, options)


def _train(options):
    parts = read_parts(options)
    torch.manual_seed(options.seed)  # the new head
    encoder, tokens = load_encoder(options.model, options.max_length)
    learn_only(encoder, options.learn)
    train_and_report(encoder, tokens, options, parts)


if __name__ == "__main__":
    sys.exit(main())
