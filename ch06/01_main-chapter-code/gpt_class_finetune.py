"""Fine-tuning a language model to sort messages into classes (chapter 6).

* `encode_message`, `SpamDataset`, `message_loader`: labelled texts as token ids, in
  padded batches (section 6.3); `message_data` reads and divides the texts (6.2);
* `bootstrap_interval`, `ask_in_words`: how sure a score is, and the language model
  asked before it is tuned (6.4);
* `add_classification_head`, `last_token_logits`, `calc_loss_batch`: what changes in the
  model, and which place of a message is asked (6.5); `frozen_features` runs frozen
  blocks once (6.6);
* `class_probabilities`, `calc_accuracy_loader`, `train_classifier_simple`,
  `plot_values`: training, and how well it goes (6.7, 6.8);
* `classify_review`, and `save_classifier` and `load_classifier`: what was learned, in a
  small file (6.9).

A head on the last token of a pretrained language model is Radford et al., "Improving
Language Understanding by Generative Pre-Training", 2018, section 3.2. The classifier
reads the last token that is *real*: the only one that has seen the whole message and
nothing else; or, in a `MeanOfTokens`, all of them. So padding, which serves the batch
and not the message, changes no answer.

Left out: models that read in both directions, class weights.

>>> import torch
>>> logits = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])  # (B, T, C)
>>> last_token_logits(logits, torch.tensor([[True, True, False]]))  # (B, C)
tensor([[3., 4.]])

As a script: `python gpt_class_finetune.py --data my.csv`, columns text and label.

Shapes: B messages a batch, T tokens, D width, C classes, N values, S runs, F families.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

import classifier_script as script
from checkpoints import put_learned, read_learned, save_learned
from frozen_features import (
    MeanOfTokens,
    UpperModel,
    cache_features,
    check_message_batch,
    collate_messages,
    freeze_below,
    learning,
)
from gpt_train import calc_loss_loader, plot_losses, train_model_simple
from message_data import (  # two of them are for those who look for them here
    LABELS,
    class_number,
    column_called,
    create_balanced_dataset,  # noqa: F401
    labels_of,
    load_messages,
    random_split,  # noqa: F401
    read_messages,
    some_of_each,
    split_messages,
)
from model_config import extras_for
from pretrained import load_pretrained
from resumable import BestModel
from script_tools import device, place_for, run

Device = torch.device | str
QUESTION = (
    "Is the following message spam, that is, advertising or an attempt to deceive? "
    "Answer with one word, Yes or No.\n\nMessage: {text}"
)

# --- Messages as token ids -----------------------------------------------------------


class SpamDataset(Dataset):
    """Messages as token ids, each with the number of its class.

    Args:
        csv_file: a path for `read_messages`, or its data frame.
        tokenizer: with `encode`; the text is never read for special tokens.
        max_length: tokens above which a message is cut at its end; None to keep all,
            and the attribute is then the length of the longest.
        labels: the classes, in the order of the model's outputs.

    Raises:
        ValueError: a message has no token, or a label that is not in `labels`.
    """

    def __init__(
        self,
        csv_file: Any,
        tokenizer: Any,
        max_length: int | None = None,
        labels: Sequence[str] = LABELS,
    ):
        frame = isinstance(csv_file, pd.DataFrame)
        messages = csv_file if frame else read_messages(csv_file)
        text, label = (column_called(name, messages) for name in ("text", "label"))
        self.labels = tuple(labels)
        self.texts = messages[text].tolist()
        self.encoded = [encode_message(t, tokenizer, max_length) for t in self.texts]
        self.targets = [class_number(name, labels) for name in messages[label]]
        self.max_length = max_length or max(map(len, self.encoded), default=0)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return torch.tensor(self.encoded[index]), self.targets[index]


def encode_message(
    text: str, tokenizer: Any, max_length: int | None = None
) -> list[int]:
    """Token ids of a message, at most `max_length` of them, counted from its start.

    Raises:
        ValueError: nothing is left to read: the text is empty, or holds only
            characters that the tokenizer does not know.
    """
    ids = tokenizer.encode(text, allowed_special=set(), disallowed_special=())
    if not ids:
        raise ValueError(
            f"The message {text!r} has no token to read: give a text with at "
            "least one character that can be seen."
        )
    return ids[:max_length]


def message_loader(
    dataset: Any,
    batch_size: int,
    shuffle: bool = False,
    generator: Generator | None = None,
) -> DataLoader:
    """Batches of `collate_messages` from pairs of ids, or features, and class.

    The dataset is a `SpamDataset`, or what `cache_features` returns. With `shuffle`
    each pass takes another order, from the generator; None takes torch's own.
    """
    return DataLoader(
        dataset,
        batch_size,
        shuffle,
        generator=generator,
        collate_fn=collate_messages,
    )


# --- The model -----------------------------------------------------------------------


def add_classification_head(
    model: Any, num_classes: int, generator: Generator | None = None
) -> Any:
    """Put a head of C outputs in place of that over the vocabulary; return the model.

    The new head has the dtype and device of the model, and starts small, so that the
    first loss is near ln C.

    Args:
        model: a model with the interface of `GPTModel`; it changes.
        num_classes: C, 2 or more.
        generator: for the new weights; None takes torch's own.
    """
    like = model.tok_emb.weight
    head = nn.Linear(like.shape[1], num_classes, dtype=like.dtype, device=like.device)
    nn.init.normal_(head.weight, std=0.02 / like.shape[1] ** 0.5, generator=generator)
    nn.init.zeros_(head.bias)
    model.out_head = head
    return model


def last_token_logits(logits: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The logits at the last real token of each message.

    Args:
        logits: (B, T, C).
        attention_mask: (B, T), True for a real token; padding may be on either side.
            None takes the last position, whatever it is.

    Returns:
        (B, C).
    """
    if attention_mask is None:
        return logits[:, -1]
    places = torch.arange(logits.shape[1], device=logits.device)
    last = (places * attention_mask).argmax(dim=1)  # (B,)
    return logits[torch.arange(len(logits), device=logits.device), last]


# --- Loss and accuracy ---------------------------------------------------------------


def calc_loss_batch(
    input_batch: Tensor,
    attention_mask: Tensor,
    target_batch: Tensor,
    model: Any = None,
    device: Device = "cpu",
) -> Tensor:
    """Mean cross-entropy of the classes of a batch, in nats.

    It shares its name with `gpt_train.calc_loss_batch` and takes the mask besides; the
    targets stay last of the batch, so that chapter 5's loop can take either as `loss`.

    Args:
        input_batch: what the model reads, (B, T) ids or, for an `UpperModel`,
            (B, T, D) features.
        attention_mask: (B, T), True for a real token.
        target_batch: (B,), class numbers.
        model: with a head of C classes.
        device: where the batch is moved.
    """
    check_message_batch(input_batch, attention_mask, target_batch)
    mask = attention_mask.to(device)
    extras = extras_for(model, attention_mask=mask)
    logits = model(input_batch.to(device), **extras)  # (B, T, C)
    logits = last_token_logits(logits, mask)  # (B, C)
    return F.cross_entropy(logits.float(), target_batch.to(device))


@torch.no_grad()
def class_probabilities(
    data_loader: DataLoader,
    model: Any,
    device: Device,
    num_batches: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What the model thinks of each message, and what is right.

    Args:
        data_loader: batches as of `collate_messages`.
        model: with a head of C classes; in evaluation mode meanwhile.
        device: where the batches are moved.
        num_batches: how many of them at most; None for all.

    Returns:
        `(probabilities, targets)`, (N, C) float32 and (N,), in the loader's order;
        `ValueError` if there is no message.
    """
    was_training = model.training
    model.eval()
    logits, targets = [], []
    for batch in itertools.islice(data_loader, num_batches):
        check_message_batch(*batch)
        inputs, mask, classes = (part.to(device) for part in batch)
        extras = extras_for(model, attention_mask=mask)
        found = model(inputs, **extras)  # (B, T, C)
        logits.append(last_token_logits(found, mask).cpu())
        targets.append(classes.cpu())
    model.train(was_training)
    if not targets:
        raise ValueError("There is no message to classify: the loader is empty.")
    return torch.cat(logits).float().softmax(dim=-1), torch.cat(targets)


def calc_accuracy_loader(
    data_loader: DataLoader,
    model: Any,
    device: Device,
    num_batches: int | None = None,
) -> float:
    """The share of messages, 0 to 1, whose likeliest class is the right one.

    Arguments and errors are those of `class_probabilities`.
    """
    probabilities, targets = class_probabilities(
        data_loader, model, device, num_batches
    )
    return (probabilities.argmax(dim=-1) == targets).float().mean().item()


def bootstrap_interval(
    values: object,
    families: object = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Between which bounds the true mean may well lie: a bootstrap interval.

    The values are drawn again with replacement, and the interval holds the middle 95
    per cent of the means found. Values of a family agree more than by chance, so whole
    families are drawn; and where there are several runs, runs are drawn as well.

    Args:
        values: (N,) numbers, or one row of them for each run, (S, N).
        families: (N,) names; None makes each value a family of its own.
        confidence: share of the draws in the interval.
        resamples, seed: how many draws, and where they start.

    Returns:
        `(low, high)`, in the unit of the values.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))  # (S, N)
    S, N = values.shape
    names = range(N) if families is None else families
    _, family = np.unique(np.asarray(names), return_inverse=True)  # (N,)
    size = np.bincount(family)  # (F,)
    sums = np.array([np.bincount(family, weights=row) for row in values])  # (S, F)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = draw.integers(len(size), size=len(size))
        runs = draw.integers(S, size=S)
        total = sums[np.ix_(runs, drawn)].sum()
        means.append(total / (S * size[drawn].sum()))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


# --- Training ------------------------------------------------------------------------


def train_classifier_simple(
    model: Any,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: Optimizer,
    device: Device,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int | None,
    **options,
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Chapter 5's training loop with the loss of classes, and accuracy each epoch.

    Args:
        model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq,
            eval_iter: as in `train_model_simple`.
        options: passed on to it: `scheduler`, `after_step` and so on.

    Returns:
        `(train_losses, val_losses, train_accs, val_accs, examples_seen)`: a loss for
        each evaluation, the accuracy after each epoch, on all messages of a loader if
        `eval_iter` is None, otherwise on that many batches, and the number of messages
        seen up to the last evaluation.
    """
    train_accs, val_accs = [], []

    def note_accuracy():
        for loader, accs in ((train_loader, train_accs), (val_loader, val_accs)):
            accs.append(calc_accuracy_loader(loader, model, device, eval_iter))
        train, val = train_accs[-1], val_accs[-1]
        print(f"accuracy: train {train:.1%}, validation {val:.1%}")

    train_losses, val_losses, seen = train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        device,
        num_epochs,
        eval_freq,
        eval_iter,
        start_context=None,
        tokenizer=None,
        loss=calc_loss_batch,
        after_epoch=note_accuracy,
        **options,
    )
    return train_losses, val_losses, train_accs, val_accs, max(seen, default=0)


def plot_values(
    epochs_seen: list[float],
    examples_seen: list[int],
    train_values: list[float],
    val_values: list[float],
    label: str = "loss",
) -> Any:
    """Draw training and validation values over epochs, messages seen on top.

    All four are sequences of the same length. Returns the figure, as `plot_losses`.
    """
    fig = plot_losses(epochs_seen, examples_seen, train_values, val_values)
    below, above = fig.axes
    below.set_ylabel(label)
    above.set_xlabel("messages seen")
    return fig


# --- Using, saving and loading -------------------------------------------------------


@torch.no_grad()
def classify_review(
    text: str,
    model: Any,
    tokenizer: Any,
    device: Device,
    max_length: int | None = None,
    labels: Sequence[str] = LABELS,
) -> str:
    """The label of one message.

    Args:
        text: the message; special tokens in it are text.
        model: a classifier; in evaluation mode meanwhile.
        tokenizer: the model's.
        device: where the model is.
        max_length: tokens above which the message is cut at its end, as in training;
            None reads it whole.
        labels: the classes, in the order of the model's outputs.

    Raises:
        ValueError: the message has no token, or more than the model can read.
    """
    ids = torch.tensor([encode_message(text, tokenizer, max_length)], device=device)
    was_training = model.training
    model.eval()
    logits = last_token_logits(model(ids))  # (1, C): nothing is padded
    model.train(was_training)
    return labels[int(logits.argmax())]


def save_classifier(
    path: Path | str,
    model: Any,
    base: Path | str,
    labels: Sequence[str] = LABELS,
    max_length: int | None = None,
) -> None:
    """Write what was learned, and what it belongs to, to one safetensors file.

    Only the parameters that could learn are written; `load_classifier` takes the
    others from the base model. The file appears whole or not at all.

    Args:
        path: the file to write; its folder is made if needed.
        model: the classifier, from `add_classification_head` and `freeze_below`; its
            upper blocks may be cut off, and a `MeanOfTokens` stand around it.
        base: what `load_pretrained` takes for the model that it was.
        labels, max_length: those of `classify_review`.
    """
    asked_at_all = isinstance(model, MeanOfTokens)
    inner = model.model if asked_at_all else model
    notes = {
        "base": str(base),
        "labels": list(labels),
        "max_length": max_length,
        "blocks": len(inner.trf_blocks),
        "all_tokens": asked_at_all,
    }
    save_learned(path, inner, "classifier", notes)


def load_classifier(
    path: Path | str, device: Device = "cpu"
) -> tuple[Any, Any, tuple[str, ...], int | None]:
    """A saved classifier in evaluation mode: `(model, tokenizer, labels, max_length)`.

    Args:
        path: a file that `save_classifier` wrote; `ValueError` if it is damaged, or
            does not belong to its base model.
        device: where to put the model.
    """
    learned, notes = read_learned(path, "classifier")
    if not {"out_head.weight", "out_head.bias"} <= set(learned):
        raise ValueError(f"{path} lacks the head's weights: train it again.")
    model, tokenizer, _ = load_pretrained(notes["base"])
    model.trf_blocks = model.trf_blocks[: notes.get("blocks")]
    add_classification_head(model, len(notes["labels"]))
    put_learned(path, learned, model)
    if notes.get("all_tokens"):
        model = MeanOfTokens(model)
    model = model.to(device).eval()
    return model, tokenizer, tuple(notes["labels"]), notes["max_length"]


# --- The language model asked in words -----------------------------------------------


@torch.no_grad()
def ask_in_words(text: str, model: Any, tokenizer: Any, device: Device) -> float:
    """How much likelier "Yes" is than "No" as the answer to: is this spam?

    Returns the difference of the two logits, above 0 for yes. The model still has the
    head it was pretrained with; a tokenizer that can chat puts `text` as a user's.
    """
    question = QUESTION.format(text=text)
    if hasattr(tokenizer, "render_chat"):
        ids = tokenizer.render_chat([{"role": "user", "content": question}])
        answers = ("Yes", "No")
    else:
        ids = tokenizer.encode(question + "\n\nAnswer:", disallowed_special=())
        answers = (" Yes", " No")
    yes, no = (tokenizer.encode(answer)[0] for answer in answers)
    was_training = model.training
    model.eval()
    logits = model(torch.tensor([ids], device=device))[0, -1]  # (V,)
    model.train(was_training)
    return (logits[yes] - logits[no]).item()


# --- As a script ---------------------------------------------------------------------

_QUICK = (400, 80, 200)  # messages of each part, half of each class


def main(arguments: list[str] | None = None) -> int:
    """Train a classifier of messages, evaluate and save it; return the exit code."""
    return run(_train_and_report, script.read_options(arguments))


def _train_and_report(options):
    start, where = time.perf_counter(), device()
    messages = load_messages(options.data)
    labels = labels_of(messages)
    parts = split_messages(messages)
    if options.preset == "quick":
        parts = [some_of_each(part, most) for part, most in zip(parts, _QUICK)]
    print(
        f"{len(parts[0])} messages to learn from, {len(parts[1])} to watch, "
        f"{len(parts[2])} for the test; classes: {', '.join(labels)}.",
        flush=True,
    )
    place_for(options.out, script.FILE, options)
    model, tokenizer, _ = load_pretrained(options.model)
    generator = torch.Generator().manual_seed(options.seed)
    add_classification_head(model, len(labels), generator)
    model.trf_blocks = model.trf_blocks[: script.blocks_kept(model, options)]
    freeze_below(model, options.trainable_blocks).to(where)
    print(f"Running the frozen blocks of {options.model} once ...", flush=True)
    loaders = []
    for part, shuffle in zip(parts, (True, False, False)):
        dataset = SpamDataset(part, tokenizer, options.max_length, labels)
        features = cache_features(model, dataset, options.trainable_blocks, where)
        loaders.append(message_loader(features, options.batch_size, shuffle, generator))
    upper = MeanOfTokens(UpperModel(model, options.trainable_blocks))

    def save(folder):
        notes = options.model, labels, options.max_length
        save_classifier(folder / script.FILE, MeanOfTokens(model), *notes)

    best = BestModel(
        lambda: calc_loss_loader(loaders[1], upper, where, loss=calc_loss_batch),
        save,
        options.out / "best",
    )
    losses = train_classifier_simple(
        upper,
        loaders[0],
        loaders[1],
        torch.optim.AdamW(learning(upper), lr=options.lr, weight_decay=0.1),
        where,
        num_epochs=options.epochs,
        eval_freq=max(1, len(loaders[0]) // 2),
        eval_iter=5,
        after_step=best.after(len(loaders[0])),
    )
    save(options.out)
    probabilities, targets = class_probabilities(loaders[2], upper, where)
    right = probabilities.argmax(dim=-1) == targets
    seconds = time.perf_counter() - start
    interval = bootstrap_interval(right, parts[2].get("family"))
    script.write_result(right, interval, losses, best, options, seconds)


if __name__ == "__main__":
    sys.exit(main())
