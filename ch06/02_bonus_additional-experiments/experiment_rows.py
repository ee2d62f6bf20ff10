"""The rows of the table, and what an experiment may choose: support.

`Experiment` holds one choice of everything; a combination that makes no sense raises a
`ValueError` of one sentence. `ROWS` are the experiments of the table, most of them the
base with one change; `OPT_IN` needs a model that does not come with the set-up, and is
trained only where it is named.

>>> Experiment(layers="head", lora_rank=8)
Traceback (most recent call last):
    ...
ValueError: --lora-rank 8 puts adapters into blocks that learn, and --trainable-layers \
head lets none learn: choose last_block or all, or leave the rank out.
>>> ROWS["two blocks"].learning_blocks
2
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

LAYERS: dict[str, int | None] = {
    "head": 0,
    "last_block": 1,
    "last_two_blocks": 2,
    "last_four_blocks": 4,
    "all": None,
}
TOKENS, POOLINGS = ("all", "last", "first"), ("mean", "max")
PADDINGS = ("batch", "context", "read", "none")
CAUSAL, STARTS = ("on", "frozen", "off"), ("pretrained", "random")
CLASSES, LOWEST = 2, 6  # LOWEST: blocks of the base

# Learning rates by what learns, (layers, whether by adapters): of the values in `TRIED`
# the best on the validation part, by the mean of three seeds that train no row of the
# table (`--rates`). All were tried with the base otherwise.
RATES: dict[tuple[str, bool], float] = {
    ("head", False): 0.0003,
    ("last_block", False): 0.003,
    ("last_two_blocks", False): 0.0015,
    ("all", False): 0.0006,
    ("last_block", True): 0.01,
    ("all", True): 0.001,
}
TRIED: dict[tuple[str, bool], tuple[float, ...]] = {  # the lowest features first
    ("last_two_blocks", False): (7.5e-4, 1.5e-3, 3e-3),
    ("last_block", False): (1.5e-3, 3e-3, 6e-3),
    ("last_block", True): (3e-3, 6e-3, 1e-2, 2e-2),
    ("head", False): (1e-4, 3e-4, 1e-3, 3e-3),
    ("all", True): (3e-4, 1e-3, 3e-3, 6e-3),
    ("all", False): (1e-4, 3e-4, 6e-4, 1.2e-3),
}
FOUR_BLOCKS_RATE = 5e-4  # that of chapter 6, chosen there


@dataclass(frozen=True)
class Experiment:
    """One choice of everything that the command can change.

    Attributes:
        model: what `load_pretrained` takes.
        blocks: how many of its blocks are kept; None for the lowest six,
            or all where there are fewer.
        layers: which of them learn, one of `LAYERS`; norm and head always do.
        lora_rank: 0, or the rank of adapters in the blocks that learn, in place of
            their weights.
        lora_alpha: of the adapters.
        token: which token is asked, one of `TOKENS`.
        pooling: of all tokens, one of `POOLINGS`.
        context_length: tokens above which a message is cut.
        padding: "batch" pads to the longest of a batch and "context" to the context
            length, both hidden by the mask; "read" to the context length, read as if it
            were text; "none" takes messages one by one.
        batch_size: messages that are run together.
        accumulation: how many such batches make one update.
        causal_mask: "on"; "frozen": in the frozen blocks alone; "off": in none.
        start: "pretrained", or "random" weights.
        ignore_index: the class that does not count in the loss.
        epochs: passes over the training messages.
        lr: the learning rate; None for that of `RATES`.
    """

    model: str = "smollm2-135m"
    blocks: int | None = None
    layers: str = "last_block"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    token: str = "all"
    pooling: str = "mean"
    context_length: int = 120
    padding: str = "batch"
    batch_size: int = 16
    accumulation: int = 1
    causal_mask: str = "on"
    start: str = "pretrained"
    ignore_index: int = -100
    epochs: int = 2
    lr: float | None = None

    def __post_init__(self) -> None:
        for wrong, sentence in self._problems():
            if wrong:
                raise ValueError(sentence)

    def _problems(self):
        """Combinations that make no sense, each with what to say about it."""
        learning = LAYERS[self.layers]
        yield (
            learning == 0 and self.lora_rank > 0,
            f"--lora-rank {self.lora_rank} puts adapters into blocks that learn, and "
            "--trainable-layers head lets none learn: choose last_block or all, or "
            "leave the rank out.",
        )
        yield (
            self.lora_rank < 0,
            f"--lora-rank {self.lora_rank} is no rank: give 0 for none, or 1 and more.",
        )
        yield (
            self.pooling == "max" and self.token != "all",
            f"--pooling max pools all tokens, and --token {self.token} asks one: leave "
            "one of the two out.",
        )
        yield (
            self.padding == "none" and self.batch_size > 1,
            f"--padding none runs messages one by one, and --batch-size is "
            f"{self.batch_size}: give --batch-size 1, with --accumulation-steps "
            f"{self.batch_size} for as many in an update.",
        )
        yield (
            self.blocks is not None and self.blocks < max(learning or 0, 1),
            f"--blocks {self.blocks} keeps fewer blocks than --trainable-layers "
            f"{self.layers} lets learn: keep more, or let fewer learn.",
        )
        yield (
            self.causal_mask == "frozen" and learning in (0, None),
            f"--causal-mask frozen keeps the mask where nothing learns, and with "
            f"--trainable-layers {self.layers} no block learns beside frozen ones: "
            "give on or off.",
        )
        yield (
            0 <= self.ignore_index < CLASSES,
            f"--ignore-index {self.ignore_index} is a class, and the model would never "
            "learn of it: give a number that is none, such as -100.",
        )

    @property
    def learning_blocks(self) -> int | None:
        """How many of the last blocks learn; None for all."""
        return LAYERS[self.layers]

    @property
    def rate(self) -> float:
        """The learning rate: the one given, or that of its kind or the nearest one."""
        if self.lr is not None:
            return self.lr
        if self.lora_rank:
            return RATES.get((self.layers, True), RATES["last_block", True])
        return RATES.get((self.layers, False), FOUR_BLOCKS_RATE)


def changed(experiment: Experiment, **changes: Any) -> Experiment:
    """The same experiment with something else."""
    return dataclasses.replace(experiment, **changes)


def in_words(experiment: Experiment, base: Experiment | None = None) -> str:
    """What an experiment has that the base has not, in one line."""
    ours = dataclasses.asdict(experiment)
    theirs = dataclasses.asdict(base or Experiment())
    differs = [f"{k}={v}" for k, v in ours.items() if v != theirs[k]]
    return ", ".join(differs) or "the base"


BASE = "base"
ROWS: dict[str, Experiment] = {
    BASE: Experiment(),
    # The token that is asked.
    "last token": Experiment(token="last"),
    "first token": Experiment(token="first"),
    "highest of all tokens": Experiment(pooling="max"),
    # Padding and length.
    "last token, 64": Experiment(token="last", context_length=64),
    "padding read, last": Experiment(token="last", padding="read", context_length=64),
    "padding read, mean": Experiment(padding="read", context_length=64),
    "padded to 120, hidden": Experiment(padding="context"),
    "cut at 16 tokens": Experiment(context_length=16),
    # Batches.
    "one by one": Experiment(padding="none", batch_size=1),
    "one by one, 16 together": Experiment(
        padding="none", batch_size=1, accumulation=16
    ),
    "no class ignored": Experiment(ignore_index=-1),
    # What learns.
    "head alone": Experiment(layers="head"),
    "two blocks": Experiment(layers="last_two_blocks"),
    "everything": Experiment(layers="all"),
    "LoRA in the last block": Experiment(lora_rank=16),
    "LoRA in all blocks": Experiment(layers="all", lora_rank=16),
    # The model.
    "no causal mask": Experiment(causal_mask="off"),
    "mask off in the last block": Experiment(causal_mask="frozen"),
    "random start": Experiment(layers="all", start="random"),
    "18 blocks kept": Experiment(blocks=18),
    "30 blocks kept": Experiment(blocks=30),
}
OPT_IN: dict[str, Experiment] = {
    "GPT-2 small": Experiment(model="gpt2-small-124M"),
    "GPT-2 medium": Experiment(model="gpt2-medium-355M"),
    "GPT-2 large": Experiment(model="gpt2-large-774M"),
    "GPT-2 XL": Experiment(model="gpt2-xl-1558M"),
    "GPT-2 XL, everything": Experiment(model="gpt2-xl-1558M", layers="all"),
    "GPT-2 XL, LoRA": Experiment(
        model="gpt2-xl-1558M", layers="all", lora_rank=16, lora_alpha=8
    ),
    "Gemma 3 270M": Experiment(model="gemma3-270m"),
}
# Written down before the rows were trained: what is asked, and which row less which.
PLANNED: dict[str, tuple[str, str]] = {
    "the last token alone": ("last token", BASE),
    "padding that is read": ("padding read, last", "last token, 64"),
    "all weights": ("everything", BASE),
    "adapters in place of all weights": ("LoRA in all blocks", "everything"),
    "no causal mask": ("no causal mask", BASE),
}
