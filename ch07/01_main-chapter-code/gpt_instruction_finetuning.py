"""Fine-tuning a language model to follow instructions (chapter 7).

* `format_input`, `format_phi3`, `format_chatml`, `FORMATS` and `encode_prompt`: how a
  question is laid out before the model reads it (section 7.3);
* `InstructionDataset`, `custom_collate_draft_1`, `custom_collate_draft_2` and
  `custom_collate_fn`: batches of ids and targets, padded, with what does not count;
* `calc_loss_answers`, `cache_instructions`, `collate_features`: the same loss for less
  work, where few targets count and most blocks are frozen;
* `generate_answers`: what the model says, many questions at once;
* `save_tuned`, `load_tuned`: what was learned, in a file.

Beside it `instruction_data` reads and divides the entries, and `answer_scores` says how
many answers are right.

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

Run as a script it asks the model questions, trains it, and asks again:
`python gpt_instruction_finetuning.py --data my-instructions.json`.

Shapes: B entries in a batch, T tokens, D model width, V vocabulary.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import tuning_script as script
from checkpoints import put_learned, read_learned, save_learned
from frozen_features import (
    UpperModel,
    cache_features,
    freeze_below,
    learning,
    lower_part,
)
from gpt_generate import generate, pad_left
from gpt_train import IGNORE_INDEX, calc_loss_loader, train_model_simple
from instruction_data import (
    SIZES,
    Entry,
    load_parts,
    user_text,
)
from kv_cache import KVCache
from model_config import config_of, takes
from pretrained import load_pretrained
from resumable import BestModel, resumable
from script_tools import device, place_for, progress_bar, run

Device = torch.device | str

# --- Formats -------------------------------------------------------------------------


def format_input(entry: Entry) -> str:
    """The question of an entry in Alpaca's layout, without the answer's heading."""
    text = "Below is an instruction that describes a task"
    if entry["input"]:
        text += ", paired with an input that provides further context"
    text += ". Write a response that appropriately completes the request."
    text += f"\n\n### Instruction:\n{entry['instruction']}"
    if entry["input"]:
        text += f"\n\n### Input:\n{entry['input']}"
    return text


def format_phi3(entry: Entry) -> str:
    """The question of an entry in the layout of Phi-3's chats."""
    return f"<|user|>\n{user_text(entry)}<|end|>"


def format_chatml(entry: Entry) -> str:
    """The question of an entry in ChatML, without a system message."""
    return f"<|im_start|>user\n{user_text(entry)}<|im_end|>"


FORMATS = {  # how the question is written, and what stands before the answer
    "alpaca": (format_input, "\n\n### Response:\n"),
    "phi3": (format_phi3, "\n<|assistant|>\n"),
    "chatml": (format_chatml, "\n<|im_start|>assistant\n"),
}


def encode_prompt(entry: Entry, tokenizer: Any, style: str = "alpaca") -> list[int]:
    """The ids of a question, up to where the answer begins.

    With the style "chatml", a tokenizer that has a chat template of its own
    (`render_chat`) makes the ids, with its special tokens and its system message.
    Everything else is text: what looks like a special token in an entry is none.

    The style is one of `FORMATS`.
    """
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
    """

    def __init__(
        self,
        data: list,
        tokenizer: Any,
        style: str = "alpaca",
        mask_prompt: bool = False,
    ):
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


def custom_collate_draft_1(
    batch: list[list[int]], pad_token_id: int = 50256, device: Device = "cpu"
) -> Tensor:
    """First draft: lists of ids as rows of the same length, filled at the end.

    There is nothing to learn from yet. Returns (B, T), T the longest row.
    """
    T = max(len(ids) for ids in batch)
    inputs = [ids + [pad_token_id] * (T - len(ids)) for ids in batch]
    return torch.tensor(inputs, device=device)  # (B, T)


def custom_collate_draft_2(
    batch: list[list[int]], pad_token_id: int = 50256, device: Device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Second draft: each token's target is the one after it, padding included.

    Arguments as in the first draft; the answer ends with the token that also fills.
    """
    ended = [[*ids, pad_token_id] for ids in batch]
    rows = custom_collate_draft_1(ended, pad_token_id, device)  # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]  # (B, T) each


def custom_collate_fn(
    batch: list,
    pad_token_id: int = 50256,
    ignore_index: int = IGNORE_INDEX,
    allowed_max_length: int | None = None,
    device: Device = "cpu",
) -> tuple[Tensor, Tensor]:
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
    check_any_counts(targets != ignore_index, allowed_max_length)
    return inputs, targets


def check_any_counts(counts: Tensor, limit: int | None = None) -> None:
    """Raise unless some target counts: a mean over nothing would be NaN."""
    if counts.any():
        return
    where = "" if limit is None else f" within allowed_max_length={limit}"
    raise ValueError(
        f"No target of this batch of {len(counts)} counts{where}: nothing is left of "
        "its answers; raise the limit, or leave such entries out."
    )


# --- The same loss for less work -----------------------------------------------------


def calc_loss_answers(
    input_batch: Tensor,
    target_batch: Tensor,
    model: Any,
    device: Device,
) -> Tensor:
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
    check_any_counts(counts)
    counts, targets = counts.to(device), target_batch[counts].to(device)  # (N,)
    # An `UpperModel` keeps the model, and with it the head, inside.
    head = getattr(model, "model", model).out_head
    handle = head.register_forward_pre_hook(lambda _, inputs: inputs[0][counts])
    try:
        logits = model(input_batch.to(device))  # (N, V)
    finally:
        handle.remove()
    return F.cross_entropy(logits.float(), targets)


def cache_instructions(
    model: Any,
    dataset: Any,
    trainable_blocks: int,
    pad_token_id: int,
    device: Device = "cpu",
    allowed_max_length: int | None = None,
    batch_size: int = 16,
) -> list[tuple[Tensor, Tensor]]:
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
    # The copy lost the blocks above: 0 of its own stand over the features.
    lower = lower_part(model, trainable_blocks)
    # An entry's number stands where messages have a class.
    numbered = [(row[0], i) for i, row in enumerate(inputs)]
    features = cache_features(lower, numbered, 0, device, batch_size)
    return [(one, row[0]) for (one, _), row in zip(features, targets)]


def collate_features(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (B, T, D), padded with zeros, and targets (B, T), padded as ignored."""
    features, targets = map(list, zip(*batch))
    return (
        pad_sequence(features, batch_first=True),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
    )


# --- Answers -------------------------------------------------------------------------


@torch.no_grad()
def generate_answers(
    entries: list[Entry],
    model: Any,
    tokenizer: Any,
    style: str = "alpaca",
    max_new_tokens: int = 64,
    batch_size: int = 16,
    device: Device = "cpu",
) -> list[str]:
    """What the model answers to each entry, always taking the likeliest token.

    Args:
        entries: with `instruction` and `input`.
        model: a language model, in any mode; one of your own may take ids alone.
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
    cfg, end = config_of(model), tokenizer.eot_token
    if not takes(model, "attention_mask"):
        batch_size = 1  # nothing can be padded
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), "answers", disable=None):
        chosen = order[start : start + batch_size]
        idx, attention_mask = pad_left([prompts[i] for i in chosen], 0)
        rows = generate(
            model,
            idx.to(device),
            max_new_tokens,
            context_size=cfg["context_length"],
            eos_id=end,
            attention_mask=attention_mask.to(device),
            cache=KVCache(cfg["n_layers"]) if takes(model, "cache") else None,
        )
        for i, row in zip(chosen, rows[:, idx.shape[1] :].tolist()):
            stop = row.index(end) if end in row else None
            answers[i] = tokenizer.decode(row[:stop]).strip()
    model.train(was_training)
    return answers


# --- Saving and loading --------------------------------------------------------------


def save_tuned(
    path: Path | str, model: Any, base: Path | str, style: str = "alpaca"
) -> None:
    """Write what was learned, and what it belongs to, to one safetensors file.

    Only the parameters that could learn are written; `load_tuned` takes the others from
    the base model. The file appears whole or not at all.

    Args:
        path: the file to write; its folder is made if needed.
        model: the model, after `freeze_below` and training in the format `style`.
        base: what `load_pretrained` takes for it.
    """
    notes = {"base": str(base), "style": style}
    save_learned(path, model, "tuned model", notes)


def load_tuned(path: Path | str, device: Device = "cpu") -> tuple[Any, Any, str]:
    """A tuned model in evaluation mode, its tokenizer and the style to ask it in.

    Args:
        path: a file that `save_tuned` wrote; `ValueError` if it is damaged, or does not
            belong to its base model.
        device: where to put the model.
    """
    learned, notes = read_learned(path, "tuned model")
    model, tokenizer, _ = load_pretrained(notes["base"])
    put_learned(path, learned, model)
    return model.to(device).eval(), tokenizer, notes["style"]


# --- As a script ---------------------------------------------------------------------

_SAVE_EVERY = 50
_MOST_FEATURES = 500_000_000  # numbers, 2 GB; above, frozen blocks run at each step
_STOPPED = "stopped; if it was started with --resume, the same command goes on."


def main(arguments: list[str] | None = None) -> int:
    """Ask a model, tune it on instructions, ask it again; return the exit code."""
    options = script.read_options(arguments, FORMATS)
    return run(_tune_and_report, options, stopped=_STOPPED)


def _tune_and_report(options):
    start, where = time.perf_counter(), device()
    parts = load_parts(options.data, options.alpaca, SIZES[options.preset])
    print(
        f"{len(parts[0])} entries to learn from, {len(parts[1])} to watch, "
        f"{len(parts[2])} for the test.",
        flush=True,
    )
    place_for(options.out, script.FILE, options)
    torch.manual_seed(options.seed)
    loaded: Any = load_pretrained(options.model)
    model, tokenizer = loaded.model.to(where), loaded.tokenizer
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
        device=where,
    )
    before = ask()
    losses, best = _train(model, blocks, parts, tokenizer, options, where)
    after = ask()
    save_tuned(options.out / script.FILE, model, options.model, options.style)
    script.write_results(parts[2], before, after, losses, best, options)
    print(f"{time.perf_counter() - start:.0f} s in all.")


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


def _train(model, blocks, parts, tokenizer, options, where):
    """Train on the first part, watch the second; return losses and the best model."""
    datasets: list[Any] = [
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
            cache_instructions(model, dataset, blocks, end, where, limit)
            for dataset in datasets
        ]
        learner, collate = UpperModel(model, blocks), collate_features
    order = torch.Generator().manual_seed(options.seed)
    train_loader, val_loader = (
        DataLoader(
            one, options.batch_size, shuffle, generator=order, collate_fn=collate
        )
        for one, shuffle in zip(datasets, (True, False))
    )
    optimizer = torch.optim.AdamW(learning(learner), lr=options.lr, weight_decay=0.1)
    best = BestModel(
        lambda: calc_loss_loader(val_loader, learner, where, loss=calc_loss_answers),
        lambda folder: save_tuned(
            folder / script.FILE, model, options.model, options.style
        ),
        options.out / "best",
        options.resume,
    )
    train = train_model_simple
    if options.resume:
        train = resumable(
            train,
            options.out / "checkpoint",
            every=_SAVE_EVERY,
            resume=True,
            settings=script.settings_of(options),
        )
    with progress_bar(optimizer, len(train_loader) * options.epochs):
        losses = train(
            learner,
            train_loader,
            val_loader,
            optimizer,
            where,
            options.epochs,
            eval_freq=max(1, len(train_loader) // 4),
            eval_iter=4,
            start_context=None,
            tokenizer=None,
            loss=calc_loss_answers,
            after_epoch=best,
        )
    return losses, best


if __name__ == "__main__":
    sys.exit(main())
