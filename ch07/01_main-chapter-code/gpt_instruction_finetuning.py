"""Fine-tuning a language model to follow instructions (chapter 7).

* `read_instructions`, `read_alpaca`, `split_instructions`: entries with an instruction,
  perhaps an input, and the answer to learn from;
* `user_text`, `format_input`, `format_phi3`, `format_chatml`, `FORMATS` and
  `encode_prompt`: how a question is laid out before the model reads it;
* `InstructionDataset`, `custom_collate_draft_1`, `custom_collate_draft_2` and
  `custom_collate_fn`: batches of ids and targets, padded, with what does not count;
* `calc_loss_answers`, `cache_instructions`, `collate_features`: the same loss for less
  work, where few targets count and most blocks are frozen;
* `generate_answers`: what the model says, many questions at once;
* `score_answer`, `can_be_read`, `offered_labels`, `score_interval`,
  `score_by_category`: how many answers are right, by a rule that is the same before and
  after training;
* `save_tuned`, `load_tuned`: what was learned, in a file.

Training on pairs of instruction and answer is Ouyang et al., 2022 (arXiv:2203.02155,
section 3.5); the layout of `format_input` is that of Taori et al., "Stanford Alpaca",
2023; those of Phi-3 and ChatML are what these families of models were trained with
(Abdin et al., 2024, arXiv:2404.14219, section 2). Left out: conversations of several
turns, packing short examples together; LoRA comes in appendix E.

>>> entry = {"instruction": "Name the opposite.", "input": "deep", "output": "Shallow."}
>>> print(format_input(entry))
Below is an instruction that describes a task, paired with an input that provides \
further context. Write a response that appropriately completes the request.
<BLANKLINE>
### Instruction:
Name the opposite.
<BLANKLINE>
### Input:
deep

Three tokens and two; the end token, here 9, is asked for once in each row:

>>> inputs, targets = custom_collate_fn([[5, 6, 7], [8, 4]], pad_token_id=9)
>>> inputs.tolist()
[[5, 6, 7], [8, 4, 9]]
>>> targets.tolist()
[[6, 7, 9], [4, 9, -100]]

An answer is looked for in whatever words it comes:

>>> entry["answers"] = ["shallow"]
>>> score_answer(entry, "The opposite of deep is shallow!")
True

Run as a script it asks the model questions, trains it, and asks again:
`python gpt_instruction_finetuning.py --data my-instructions.json`.

Shapes: B entries in a batch, T tokens, D model width, V vocabulary.
"""

import argparse
import copy
import hashlib
import itertools
import json
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import script_tools
from checkpoints import put_learned, read_learned, save_learned
from gpt_class_finetune import UpperModel, cache_features, freeze_below
from gpt_generate import generate, pad_left
from gpt_train import (
    IGNORE_INDEX,
    train_model_simple,
)
from kv_cache import KVCache
from pretrained import load_pretrained
from resumable import resumable

# --- Instructions and their answers --------------------------------------------------


def read_instructions(path):
    """Entries from a JSON file: a list of objects with texts as their fields.

    Args:
        path: a file in UTF-8. Each entry needs `instruction` and `output`, and may have
            `input`, `category`, `family`, `split` ("train", "validation" or "test"),
            and `answers`, a list of texts that count as right.

    Returns:
        A list of dictionaries in file order, `input` being "" where there is none.

    Raises:
        ValueError: the file is no such list; the message names entry and field.
    """
    entries = _read_list(path)
    return [_checked(entry, path, i) for i, entry in enumerate(entries, start=1)]


def read_alpaca(path):
    """Entries from the file of Stanford Alpaca (`alpaca_data.json`, 52,002 entries).

    It has the fields `instruction`, `input` and `output`. A few entries have no output
    and are left out; an input that only says that there is none becomes "". The data
    are Taori et al., 2023, licence CC BY-NC 4.0.

    Args:
        path: the downloaded file; this file and no other is read.

    Returns and raises: as `read_instructions`.
    """
    entries = []
    for i, entry in enumerate(_read_list(path), start=1):
        if isinstance(entry, dict) and entry.get("output") == "":
            continue
        entry = _checked(entry, path, i)
        if entry["input"].strip().lower() in _NO_INPUT:
            entry["input"] = ""
        entries.append(entry)
    return entries


def split_instructions(entries):
    """Training, validation and test part, as the field `split` says.

    An entry without that field goes where a hash of its family sends it, or of its
    question if it has no family: 82, 6 and 12 per cent of them, whatever the order of
    the entries. So the same question never stands in two parts.

    Args:
        entries: as from `read_instructions`.

    Returns:
        Three lists, in the order of the entries.

    Raises:
        ValueError: a part is empty.
    """
    parts = {"train": [], "validation": [], "test": []}
    for entry in entries:
        group = entry.get("family") or user_text(entry)
        number = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
        side = "test" if number < 0.12 else "validation" if number < 0.18 else "train"
        parts[entry.get("split") or side].append(entry)
    for name, part in parts.items():
        if not part:
            raise ValueError(
                f"No entry is for the part {name!r} ({len(entries)} entries in all): "
                "give more entries, or a field split in each of them."
            )
    return list(parts.values())


# --- Formats -------------------------------------------------------------------------


def user_text(entry):
    """What a person would type: the instruction, and the input below it if any."""
    return "\n\n".join(part for part in (entry["instruction"], entry["input"]) if part)


def format_input(entry):
    """The question of an entry in Alpaca's layout, without the answer's heading."""
    text = "Below is an instruction that describes a task"
    if entry["input"]:
        text += ", paired with an input that provides further context"
    text += ". Write a response that appropriately completes the request."
    text += f"\n\n### Instruction:\n{entry['instruction']}"
    if entry["input"]:
        text += f"\n\n### Input:\n{entry['input']}"
    return text


def format_phi3(entry):
    """The question of an entry in the layout of Phi-3's chats."""
    return f"<|user|>\n{user_text(entry)}<|end|>"


def format_chatml(entry):
    """The question of an entry in ChatML, without a system message."""
    return f"<|im_start|>user\n{user_text(entry)}<|im_end|>"


FORMATS = {  # how the question is written, and what stands before the answer
    "alpaca": (format_input, "\n\n### Response:\n"),
    "phi3": (format_phi3, "\n<|assistant|>\n"),
    "chatml": (format_chatml, "\n<|im_start|>assistant\n"),
}


def encode_prompt(entry, tokenizer, style="alpaca"):
    """The ids of a question, up to where the answer begins.

    With the style "chatml", a tokenizer that has a chat template of its own
    (`render_chat`) makes the ids, with its special tokens and its system message.
    Everything else is text: what looks like a special token in an entry is none.

    Args:
        entry: with `instruction` and `input`.
        tokenizer: with the methods of tiktoken's `Encoding`.
        style: one of `FORMATS`.

    Raises:
        ValueError: the style is unknown.
    """
    _check_style(style)
    if style == "chatml" and hasattr(tokenizer, "render_chat"):
        return tokenizer.render_chat([{"role": "user", "content": user_text(entry)}])
    write, opening = FORMATS[style]
    return tokenizer.encode(write(entry) + opening, disallowed_special=())


# --- Batches -------------------------------------------------------------------------


class InstructionDataset(Dataset):
    """Entries as token ids: the question, then the answer, without an end token.

    Question and answer are encoded one by one and joined. So the place where the
    answer begins is known and never has to be searched for, and the ids of the question
    are those that the model will read when it is asked.

    Args:
        data: entries with `instruction`, `input` and `output`.
        tokenizer: with the methods of tiktoken's `Encoding`.
        style: one of `FORMATS`.
        mask_prompt: whether an item also says how many of its ids are the question's,
            for `custom_collate_fn` to leave them out of the loss.

    Raises:
        ValueError: the style is unknown.
    """

    def __init__(self, data, tokenizer, style="alpaca", mask_prompt=False):
        self.data = data
        self.mask_prompt = mask_prompt
        self.encoded_texts = []
        self.prompt_lengths = []
        for entry in data:
            prompt = encode_prompt(entry, tokenizer, style)
            answer = tokenizer.encode(entry["output"], disallowed_special=())
            self.encoded_texts.append(prompt + answer)
            self.prompt_lengths.append(len(prompt))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        ids = self.encoded_texts[index]
        return (ids, self.prompt_lengths[index]) if self.mask_prompt else ids


def custom_collate_draft_1(batch, pad_token_id=50256, device="cpu"):
    """First draft: rows of the same length, and nothing to learn from yet.

    Args:
        batch: lists of ids.
        pad_token_id: what fills the gaps at the end.
        device: where the result is.

    Returns:
        (B, T), T the longest row.
    """
    T = max(len(ids) for ids in batch)
    inputs = [ids + [pad_token_id] * (T - len(ids)) for ids in batch]
    return torch.tensor(inputs, device=device)  # (B, T)


def custom_collate_draft_2(batch, pad_token_id=50256, device="cpu"):
    """Second draft: each token's target is the one after it, padding included.

    Arguments as in the first draft; the answer ends with the token that also fills.

    Returns:
        Inputs and targets, (B, T) each.
    """
    ended = [[*ids, pad_token_id] for ids in batch]
    rows = custom_collate_draft_1(ended, pad_token_id, device)  # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]  # (B, T) each


def custom_collate_fn(
    batch,
    pad_token_id=50256,
    ignore_index=IGNORE_INDEX,
    allowed_max_length=None,
    device="cpu",
):
    """Inputs and targets, of which only those count that there is something to learn.

    The token that ends a text is asked for once in each row; what comes after it is
    padding. That is decided by place, never by looking for the id: the same id may
    stand inside a text, as it does in ChatML, where each message ends with it.

    Args:
        batch: lists of ids, or pairs of such a list and the number of ids in it that
            are the question's: then only the answer and the end count.
        pad_token_id: the end token; it fills the gaps, too.
        ignore_index: the target of a token after which nothing is asked.
        allowed_max_length: rows are cut there, at their end; None for no limit.
        device: where the results are.

    Returns:
        `(inputs, targets)`, (B, T) int64 each, T at most `allowed_max_length`.

    Raises:
        ValueError: no target counts: every answer lies beyond `allowed_max_length`.
    """
    pairs = [item if isinstance(item, tuple) else (item, 0) for item in batch]
    T = max(len(ids) for ids, _ in pairs)
    inputs = torch.full((len(batch), T), pad_token_id)
    targets = torch.full((len(batch), T), ignore_index)
    for row, (ids, prompt_length) in enumerate(pairs):
        following = torch.tensor([*ids[1:], pad_token_id])
        start = max(0, prompt_length - 1)  # the last id of the question asks first
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, start : len(ids)] = following[start:]
    inputs = inputs[:, :allowed_max_length].to(device)  # (B, T)
    targets = targets[:, :allowed_max_length].to(device)
    _check_any_counts(targets != ignore_index, allowed_max_length)
    return inputs, targets


# --- The same loss for less work -----------------------------------------------------


def calc_loss_answers(input_batch, target_batch, model, device):
    """The loss of `calc_loss_batch`, with logits only where a target counts.

    The head is the widest layer of a small model. Where the question does not count, it
    would be run on many places whose logits nobody looks at.

    Args:
        input_batch: what the model reads, (B, T) ids, or (B, T, D) features for an
            `UpperModel`.
        target_batch: (B, T), `IGNORE_INDEX` where nothing is asked.
        model: with an `out_head`, or an `UpperModel` of such a model.
        device: where the model is; the batch is moved there.

    Returns:
        A scalar tensor, nats per target.

    Raises:
        ValueError: no target counts.
    """
    counts = target_batch != IGNORE_INDEX
    _check_any_counts(counts)
    counts, targets = counts.to(device), target_batch[counts].to(device)  # (N,)
    head = getattr(model, "model", model).out_head
    handle = head.register_forward_pre_hook(lambda _, inputs: inputs[0][counts])
    try:
        logits = model(input_batch.to(device))  # (N, V)
    finally:
        handle.remove()
    return F.cross_entropy(logits.float(), targets)


def cache_instructions(
    model,
    dataset,
    trainable_blocks,
    pad_token_id,
    device="cpu",
    allowed_max_length=None,
    batch_size=16,
):
    """Inputs and targets of every entry, with what the frozen blocks make of the input.

    Args:
        model: a model with the interface of `GPTModel`, on `device`.
        dataset: an `InstructionDataset`.
        trainable_blocks: how many blocks stand above the features.
        pad_token_id, allowed_max_length: as in `custom_collate_fn`.
        device: where the model is.
        batch_size: entries of about the same length that are run together.

    Returns:
        A list of pairs, features (T, D) and targets (T,), for `collate_features`; an
        `UpperModel` reads the features.

    Raises:
        ValueError: nothing is left of an answer within `allowed_max_length`.
    """
    items = [dataset[i] for i in range(len(dataset))]
    collate = partial(
        custom_collate_fn,
        pad_token_id=pad_token_id,
        allowed_max_length=allowed_max_length,
    )
    inputs, targets = zip(*(collate([item]) for item in items))  # (1, T) each
    lower = _lower_part(model, trainable_blocks)
    numbered = [(row[0], i) for i, row in enumerate(inputs)]
    features = cache_features(lower, numbered, 0, device, batch_size)
    return [(one, row[0]) for (one, _), row in zip(features, targets)]


def collate_features(batch):
    """Features (B, T, D), padded with zeros, and targets (B, T), padded as ignored."""
    features, targets = zip(*batch)
    return (
        pad_sequence(features, batch_first=True),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
    )


def _lower_part(model, trainable_blocks):
    """The model up to its frozen blocks, which gives features instead of logits."""
    lower = copy.copy(model)
    lower._modules = dict(model._modules)
    lower.trf_blocks = model.trf_blocks[: len(model.trf_blocks) - trainable_blocks]
    lower.final_norm, lower.out_head = nn.Identity(), nn.Identity()
    return lower


# --- Answers -------------------------------------------------------------------------


@torch.no_grad()
def generate_answers(
    entries,
    model,
    tokenizer,
    style="alpaca",
    max_new_tokens=64,
    batch_size=16,
    device="cpu",
):
    """What the model answers to each entry, always taking the likeliest token.

    Args:
        entries: with `instruction` and `input`.
        model: a language model of the course, in any mode.
        tokenizer: the model's; its `eot_token` ends an answer.
        style: one of `FORMATS`.
        max_new_tokens: where an answer that does not end is cut.
        batch_size: questions of about the same length that are asked together.
        device: where the model is.

    Returns:
        A list of texts in the order of the entries, without the end token and without
        white space at either end.
    """
    prompts = [encode_prompt(entry, tokenizer, style) for entry in entries]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), "answers", disable=None):
        chosen = order[start : start + batch_size]
        idx, attention_mask = pad_left([prompts[i] for i in chosen], 0)
        rows = generate(
            model,
            idx.to(device),
            max_new_tokens,
            context_size=model.cfg["context_length"],
            eos_id=tokenizer.eot_token,
            attention_mask=attention_mask.to(device),
            cache=KVCache(model.cfg["n_layers"]),
        )
        for i, row in zip(chosen, rows[:, idx.shape[1] :].tolist()):
            ends = (
                row.index(tokenizer.eot_token) if tokenizer.eot_token in row else None
            )
            answers[i] = tokenizer.decode(row[:ends]).strip()
    model.train(was_training)
    return answers


# --- Scores --------------------------------------------------------------------------

# In these, capitals, signs and line breaks are what was asked for.
EXACT_CATEGORIES = {"punctuation", "text_format", "json", "code"}


def score_answer(entry, reply):
    """Whether a reply holds one of the answers that count as right.

    The rule is the same for every model, and lenient to wording:

    1. An answer may stand anywhere in the reply, between word boundaries, with or
       without its last full stop. A number is not found inside another number: 8 is not
       in 18, 8.5 or -8.
    2. Capitals, the kind of quotation marks and the amount of white space do not
       matter, except in `EXACT_CATEGORIES`.
    3. Where the reply repeats the instruction or the input word for word, nothing is
       found.
    4. In the category "classification" the reply must not name another label that was
       offered: who names several has not decided.

    Args:
        entry: with `instruction`, `input`, `answers` and perhaps `category`.
        reply: any text.

    Raises:
        ValueError: the entry lists no answers.
    """
    if not entry.get("answers"):
        raise ValueError(
            f"The entry {entry['instruction']!r} lists no answers, so no rule can "
            "decide: score only entries with the field answers."
        )
    exact = entry.get("category") in EXACT_CATEGORIES
    text = _plain(reply, exact)
    echoes = _echoes(entry, text, exact)
    found = [
        match.span()
        for answer in entry["answers"]
        for match in re.finditer(_answer_pattern(_plain(answer, exact), exact), text)
    ]
    said = any(
        not any(low <= start and end <= high for low, high in echoes)
        for start, end in found
    )
    if entry.get("category") == "classification":
        return said and len(_named_labels(entry, reply)) == 1
    return said


def can_be_read(entry, reply):
    """Whether a reply says anything that could be an answer, right or wrong.

    It must say something besides repeating the question: one of the labels offered and
    no second one, a number where one was asked for, JSON where JSON was, and otherwise
    any word or sign at all.

    Args:
        entry: as in `score_answer`.
        reply: any text.
    """
    if score_answer(entry, reply):
        return True
    if entry.get("category") == "classification":
        return len(_named_labels(entry, reply)) == 1
    if entry.get("category") == "json" and entry["answers"][0][0] in "[{":
        return _has_json(reply)
    text = _without_echoes(entry, reply)
    if any(re.fullmatch(r"[\d.,:/]+", answer) for answer in entry["answers"]):
        return _NUMBER.search(text.casefold()) is not None
    return bool(text.strip())


def offered_labels(entry):
    """The labels that a question offers: the words beside a comma or an "or".

    Sentences in quotation marks are left out: they are what is to be labelled.

    >>> sorted(offered_labels({"instruction": "Is it a noun, a verb or an adjective?"}))
    ['adjective', 'noun', 'verb']
    """
    question = re.sub(r'"[^"]* [^"]*"', "", entry["instruction"].casefold())
    beside = r"(\w+)(?=,| or\b)|(?:,|\bor) (?:an? )?(\w+)"
    pairs = re.findall(beside, question)
    return {word for pair in pairs for word in pair if word not in ("", "a", "an")}


def score_interval(right, families, level=0.95, rounds=2000, seed=0):
    """Between which shares the truth may well lie: a bootstrap over families.

    Entries of a family ask the same with other values, so they are right or wrong
    together. Whole families are therefore drawn again, with replacement, as many as
    there are; the interval holds the middle 95 per cent of the shares found.

    Args:
        right: (N,), whether each answer is right, or its mean over several runs.
        families: (N,), names.
        level: share of the draws in the interval.
        rounds: how many draws.
        seed: for the draws.

    Returns:
        `(low, high)`, shares from 0 to 1; with one family alone, which says nothing
        about others, (0.0, 1.0).

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8.
    """
    names, family = np.unique(np.asarray(families), return_inverse=True)
    if len(names) < 2:
        return 0.0, 1.0
    size = np.bincount(family)
    sums = np.bincount(family, weights=np.asarray(right, dtype=float))
    draws = np.random.default_rng(seed).integers(len(names), size=(rounds, len(names)))
    shares = sums[draws].sum(axis=1) / size[draws].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def score_by_category(entries, right):
    """The share of right answers in each category, and in all together.

    Args:
        entries: N of them; `category` and `family` may be missing.
        right: (N,), whether each answer is right, or its mean over several runs.

    Returns:
        A data frame with the columns `category`, `entries`, `families`, `share`, `low`
        and `high`, the last row being "all"; shares from 0 to 1, with the interval of
        `score_interval`. Few families make it wide, or, if all agree, falsely narrow.
    """
    table = pd.DataFrame(
        {
            "category": [entry.get("category", "") for entry in entries],
            "family": [entry.get("family") or user_text(entry) for entry in entries],
            "right": np.asarray(right, dtype=float),
        }
    )
    rows = []
    for name, part in [*table.groupby("category"), ("all", table)]:
        low, high = score_interval(part["right"], part["family"])
        share, families = part["right"].mean(), part["family"].nunique()
        rows.append((name, len(part), families, share, low, high))
    columns = ["category", "entries", "families", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


_QUOTES = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
_NUMBER = re.compile(
    r"\d|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
    r"\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million)"
)


def _plain(text, exact):
    """A text without what does not matter."""
    if exact:
        return text.strip()
    return " ".join(text.translate(_QUOTES).casefold().split())


def _answer_pattern(answer, exact):
    """A regular expression that finds an answer between its boundaries."""
    if not exact:
        answer = answer.rstrip(".?!") or answer
    before = r"(?<!\w)" + (r"(?<!\d[.,:/])(?<!\W-)(?<!^-)" * answer[0].isdigit())
    after = r"(?!\w)" + (r"(?![.,:/]\d)" * answer[-1].isdigit())
    return before + re.escape(answer) + after


def _echoes(entry, text, exact):
    """Where a reply repeats the instruction or the input: pairs of start and end."""
    questions = [_plain(entry[name], exact) for name in ("instruction", "input")]
    return [
        match.span()
        for question in questions
        if question
        for match in re.finditer(re.escape(question), text)
    ]


def _without_echoes(entry, reply):
    """What a reply says besides repeating the question."""
    exact = entry.get("category") in EXACT_CATEGORIES
    text = _plain(reply, exact)
    for low, high in sorted(_echoes(entry, text, exact), reverse=True):
        text = text[:low] + " " + text[high:]
    return text


def _named_labels(entry, reply):
    """The labels offered that a reply names besides repeating the question."""
    words = set(re.findall(r"\w+", _without_echoes(entry, reply)))
    labels = offered_labels(entry) | {_plain(a, exact=False) for a in entry["answers"]}
    return {label for label in labels if words.issuperset(label.split())}


def _has_json(text):
    """Whether a text holds an array or an object of JSON, the first ten brackets."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[\[{]", text), 10):
        try:
            decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return True
    return False


# --- Saving and loading --------------------------------------------------------------


def save_tuned(path, model, base, style="alpaca"):
    """Write what was learned, and what it belongs to, to one safetensors file.

    Only the parameters that could learn are written; `load_tuned` takes the others from
    the base model. The file appears whole or not at all.

    Args:
        path: the file to write; its folder is made if needed.
        model: the model, after `freeze_below` and training.
        base: the name under which `load_pretrained` gave the model, or the folder of a
            checkpoint of chapter 5.
        style: the format that it was trained with.
    """
    save_learned(path, model, _KIND, {"base": str(base), "style": style})


def load_tuned(path, device="cpu"):
    """A tuned model in evaluation mode, its tokenizer and the style to ask it in.

    Args:
        path: a file that `save_tuned` wrote.
        device: where to put the model.

    Returns:
        `(model, tokenizer, style)`.

    Raises:
        ValueError: the file is damaged, or does not belong to its base model.
    """
    learned, notes = read_learned(path, _KIND)
    model, tokenizer, _ = load_pretrained(notes["base"])
    put_learned(path, learned, model)
    return model.to(device).eval(), tokenizer, notes["style"]


_KIND = "tuned model"


# --- What callers get wrong, and files -----------------------------------------------

_NO_INPUT = {"<noinput>", "noinput", "<no input>", "no input"}
_TEXTS = ("instruction", "output", "input", "category", "family", "split")
_PARTS = ("train", "validation", "test")


def _check_style(style):
    if style not in FORMATS:
        raise ValueError(
            f"There is no format {style!r}: choose one of {', '.join(FORMATS)}."
        )


def _check_any_counts(counts, limit=None):
    """Raise unless some target counts: a mean over nothing would be NaN."""
    if counts.any():
        return
    where = "" if limit is None else f" within allowed_max_length={limit}"
    raise ValueError(
        f"No target of this batch of {len(counts)} counts{where}: nothing is left of "
        "its answers; raise the limit, or leave such entries out."
    )


def _read_list(path):
    """The list in a JSON file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise ValueError(
            f"{path} is no UTF-8 text (byte {problem.start}): save it as UTF-8."
        ) from None
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"{path}, line {problem.lineno}, column {problem.colno}: this is no JSON "
            f"({problem.msg}); mend it there."
        ) from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read.") from None
    if not isinstance(found, list) or not found:
        raise ValueError(
            f"{path} holds no list of entries: it must begin with [ and have at least "
            'one {"instruction": "...", "output": "..."} in it.'
        )
    return found


def _checked(entry, path, number):
    """An entry of a file as it is used, or a `ValueError` that says what is wrong."""

    def wrong(field, what):
        return ValueError(f"{path}, entry {number}, field {field!r}: {what}.")

    if not isinstance(entry, dict):
        raise ValueError(
            f"{path}, entry {number}: it is {type(entry).__name__}, not an object; "
            'write {"instruction": "...", "output": "..."}.'
        )
    for field in _TEXTS[:2]:
        if field not in entry:
            raise wrong(field, "it is missing; add it")
    for field in _TEXTS:
        value = entry.get(field, "")
        if not isinstance(value, str):
            raise wrong(field, f"it is {type(value).__name__}; write a text in quotes")
        if field in _TEXTS[:2] and not value.strip():
            raise wrong(field, "it is empty; fill it, or delete the entry")
    if entry.get("split", "train") not in _PARTS:
        raise wrong("split", f"it is {entry['split']!r}; write {', '.join(_PARTS)}")
    answers = entry.get("answers", ["x"])
    texts = isinstance(answers, list) and all(isinstance(a, str) for a in answers)
    if not texts or not answers or not all(answer.strip() for answer in answers):
        raise wrong("answers", "it must be a list of texts, none of them empty")
    return {**entry, "input": entry.get("input", "")}


# --- As a script ---------------------------------------------------------------------

_REWRITES = (  # of a sentence; there a small model learns much from little
    "active_voice",
    "comparison",
    "negation",
    "passive_voice",
    "punctuation",
    "questions",
    "tense",
)
_PRESETS = {  # `categories`: of the course's own instructions; None for all
    "quick": {
        "parts": (152, 23, 30),
        "epochs": 2,
        "blocks": 12,
        "categories": _REWRITES,
    },
    "full": {
        "parts": (None, None, None),
        "epochs": 3,
        "blocks": 12,
        "categories": None,
    },
}
_SAVE_EVERY = 50
_MOST_FEATURES = 500_000_000  # numbers, 2 GB; above, frozen blocks run at each step


def main(arguments=None):
    """Ask a model, tune it on instructions, ask it again; return the exit code.

    Args:
        arguments: the words after the program's name; None takes them from `sys.argv`.
    """
    options = _options(arguments)
    try:
        return _tune_and_report(options)
    except KeyboardInterrupt:
        print(
            "gpt_instruction_finetuning.py: stopped; with --resume, training goes on "
            "from its last checkpoint, if it was started with --resume, too.",
            file=sys.stderr,
        )
        return 130
    except Exception as problem:
        # The course's own error goes by its name: a copy of this file has no course.
        told = isinstance(problem, (ValueError, OSError, RuntimeError, ImportError))
        if not told and type(problem).__name__ != "CourseError":
            raise
        print(f"gpt_instruction_finetuning.py: {problem}", file=sys.stderr)
        return 1


def _options(arguments):
    """The script's options, checked as far as that is possible without the data."""
    parser = argparse.ArgumentParser(
        prog="gpt_instruction_finetuning.py",
        description="Tune a pretrained language model on instructions and answers, and "
        "show what it answers before and after.",
    )
    add = parser.add_argument
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data", type=Path, help="JSON file of instructions (the course's own)"
    )
    data.add_argument("--alpaca", type=Path, help="the file of Stanford Alpaca instead")
    add(
        "--model",
        default=os.environ.get("COURSE_MODEL", "").strip() or "smollm2-135m",
        help="a name for load_pretrained, or a checkpoint's folder (%(default)s)",
    )
    add("--style", choices=FORMATS, default="alpaca", help="format (%(default)s)")
    add("--preset", type=script_tools.preset, default="", help="quick or full")
    add("--epochs", type=int, help="passes over the training part (by preset)")
    add("--trainable-blocks", type=int, help="the upper ones (by preset)")
    add("--all-layers", action="store_true", help="let the whole model learn")
    add("--whole-text", action="store_true", help="learn the questions, too")
    add("--lr", type=float, help="learning rate (5e-4; 5e-5 for all layers)")
    add("--batch-size", type=int, default=8, help="entries (%(default)s)")
    add("--max-length", type=int, default=256, help="cut above (%(default)s tokens)")
    add("--max-new-tokens", type=int, default=48, help="of an answer (%(default)s)")
    add(
        "--seed",
        type=script_tools.seed,
        default=123,
        help="for the order (%(default)s)",
    )
    add("--out", type=Path, help="folder for the model (runs/ch07-instructions)")
    add("--resume", action="store_true", help="keep checkpoints, and go on from one")
    options = parser.parse_args(arguments)
    least = {"epochs": 1, "batch_size": 1, "max_length": 2, "max_new_tokens": 1}
    for name, low in {**least, "trainable_blocks": 1}.items():
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be {low} or more.")
    return _completed(options)


def _completed(options):
    """The options with what the preset and the environment say about the others."""
    preset = _PRESETS[options.preset]
    options.parts, options.categories = preset["parts"], preset["categories"]
    options.epochs = options.epochs or preset["epochs"]
    if options.all_layers:
        options.trainable_blocks = None
    elif options.trainable_blocks is None:
        options.trainable_blocks = preset["blocks"]
    if options.lr is None:
        options.lr = 5e-5 if options.all_layers else 5e-4
    if options.out is None:
        options.out = script_tools.runs_folder() / "ch07-instructions"
    return options


def _tune_and_report(options):
    start = time.perf_counter()
    parts = _load_parts(options)
    print(
        f"{len(parts[0])} entries to learn from, {len(parts[1])} to watch, "
        f"{len(parts[2])} for the test.",
        flush=True,
    )
    torch.manual_seed(options.seed)
    model, tokenizer, _ = load_pretrained(options.model)
    parts[:2] = [_with_room(part, tokenizer, options) for part in parts[:2]]
    blocks = options.trainable_blocks
    if blocks is not None:
        blocks = min(blocks, len(model.trf_blocks))
    freeze_below(model, blocks)
    print(f"Asking {options.model} as it is ...", flush=True)
    ask = partial(
        generate_answers,
        parts[2],
        model,
        tokenizer,
        options.style,
        options.max_new_tokens,
    )
    before = ask()
    losses = _train(model, blocks, parts, tokenizer, options)
    after = ask()
    save_tuned(options.out / "tuned.safetensors", model, options.model, options.style)
    _report(parts[2], before, after, losses, options)
    print(f"{time.perf_counter() - start:.0f} s in all.")
    return 0


def _load_parts(options):
    """The entries of the three parts, as many as the preset takes."""
    if options.alpaca is not None:
        entries = read_alpaca(options.alpaca)
    else:
        entries = read_instructions(options.data or _own_instructions())
        if options.data is None and options.categories:
            entries = [e for e in entries if e["category"] in options.categories]
    parts = split_instructions(entries)
    return [part[:most] for part, most in zip(parts, options.parts)]


def _own_instructions():
    """The file of the course's own instructions."""
    try:
        from course.assets import fetch
    except ImportError:
        raise ValueError(
            "The course's instructions are not here: give a file with --data FILE."
        ) from None
    return fetch("instructions")


def _with_room(entries, tokenizer, options):
    """The entries of whose answer something is left within the length allowed."""
    kept = [
        entry
        for entry in entries
        if len(encode_prompt(entry, tokenizer, options.style)) <= options.max_length
    ]
    if len(kept) < len(entries):
        print(f"{len(entries) - len(kept)} entries have too long a question: left out.")
    if not kept:
        raise ValueError(
            f"No question fits into --max-length {options.max_length}: raise it."
        )
    return kept


def _train(model, blocks, parts, tokenizer, options):
    """Train on the first part, watch the second; return the losses."""
    datasets = [
        InstructionDataset(part, tokenizer, options.style, not options.whole_text)
        for part in parts[:2]
    ]
    end, limit = tokenizer.eot_token, options.max_length
    learner, collate = (
        model,
        partial(custom_collate_fn, pad_token_id=end, allowed_max_length=limit),
    )
    tokens = sum(len(ids) for one in datasets for ids in one.encoded_texts)
    few = tokens * model.cfg["emb_dim"] <= _MOST_FEATURES
    if blocks is not None and blocks < len(model.trf_blocks) and few:
        print("Running the frozen blocks once ...", flush=True)
        datasets = [
            cache_instructions(model, dataset, blocks, end, "cpu", limit)
            for dataset in datasets
        ]
        learner, collate = UpperModel(model, blocks), collate_features
    order = torch.Generator().manual_seed(options.seed)
    loaders = [
        DataLoader(
            one, options.batch_size, shuffle, generator=order, collate_fn=collate
        )
        for one, shuffle in zip(datasets, (True, False))
    ]
    learning = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=options.lr, weight_decay=0.1)
    train = train_model_simple
    if options.resume:
        folder = options.out / "checkpoint"
        train = resumable(train, folder, every=_SAVE_EVERY, resume=True)
    with script_tools.progress_bar(optimizer, len(loaders[0]) * options.epochs):
        return train(
            learner,
            *loaders,
            optimizer,
            "cpu",
            options.epochs,
            eval_freq=max(1, len(loaders[0]) // 4),
            eval_iter=4,
            start_context=None,
            tokenizer=None,
            loss=calc_loss_answers,
        )


def _report(entries, before, after, losses, options):
    """Print and write what was answered, and how much of it is right."""
    for entry, first, second in list(zip(entries, before, after))[:3]:
        print(f"\n{user_text(entry)}\n  before: {first}\n  after:  {second}")
    print()
    result = {"train_losses": losses[0], "val_losses": losses[1], "seed": options.seed}
    for name, replies in (("before", before), ("after", after)):
        scored = [(e, r) for e, r in zip(entries, replies) if e.get("answers")]
        if not scored:
            print("No entry for the test lists answers, so nothing is scored.")
            break
        right = [score_answer(entry, reply) for entry, reply in scored]
        table = score_by_category([entry for entry, _ in scored], right)
        total = table.iloc[-1]
        print(
            f"Right {name}: {total['share']:.1%} of {total['entries']}, "
            f"95% interval {total['low']:.1%} to {total['high']:.1%}."
        )
        result[name] = table.to_dict("records")
    answered = [
        {**entry, "untuned_response": first, "model_response": second}
        for entry, first, second in zip(entries, before, after)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, value in (("result", result), ("answers", answered)):
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"The model and its answers are in {options.out}.")


if __name__ == "__main__":
    sys.exit(main())
