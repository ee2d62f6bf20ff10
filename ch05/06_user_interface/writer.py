"""Writing for somebody who watches, token by token (chapter 5, user interface).

* `Writer`: a model that starts answers, and keeps what it has read of its last texts;
* `Answer`: a text that comes into being, step by step: `Reading`, `Token`, `End`.

A loop that computes in one go can neither be watched nor stopped. An `Answer` computes
nothing until it is asked for its next step, so whoever asks decides how fast it goes
and when it ends: a reader who presses *stop* is one who asks no more.

A question comes with all that was said before it. `Writer` looks among its last texts
for the one with the longest start in common and reads only what is new. What is written
is what `generate` writes without any cache:

>>> import tiktoken
>>> from gpt import GPT_CONFIG_124M, GPTModel
>>> from gpt_generate import generate
>>> cfg = {**GPT_CONFIG_124M, "context_length": 16, "emb_dim": 12, "n_heads": 3,
...        "n_layers": 2}
>>> _ = torch.manual_seed(0)
>>> model, tokenizer = GPTModel(cfg).eval(), tiktoken.get_encoding("gpt2")
>>> writer = Writer(model, tokenizer)
>>> first = [step.id for step in writer.start([7, 1], 4) if isinstance(step, Token)]
>>> first == generate(model, torch.tensor([[7, 1]]), 4, 16)[0, 2:].tolist()
True
>>> *_, end = writer.start([7, 1, *first, 9], 1)  # what was said, and a new word
>>> end.known, end.read
(5, 2)

The last token that is written is not read before something follows it.

Shapes: S tokens of a text, V vocabulary.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from argument_checks import check_whole_number
from gpt_generate import Sampling, bytes_of, next_token_probabilities
from kv_cache import KVCache, shared_start

CHUNK = 64  # tokens of a prompt that are read at once: between them one can stop
_THE_LIKELIEST = Sampling()
LIKELY = 6  # tokens that are shown as what could have come
_MOST_BYTES = 400_000_000  # of keys and values: about 8,000 tokens of SmolLM2


@dataclass(frozen=True)
class Reading:
    """So many tokens of a text have been read, of so many that are new."""

    done: int
    new: int


@dataclass(frozen=True)
class Token:
    """A token that was chosen.

    Attributes:
        id: its number.
        text: what can be shown now. Empty while a character or a stop text is half
            written; then more comes with a later step.
        alone: the token by itself; bytes that are no character are U+FFFD.
        probability: the model's own for this token, before temperature, top-k, top-p.
        likely: the likeliest tokens of this place: (id, alone, probability) each.
    """

    id: int
    text: str
    alone: str
    probability: float
    likely: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class End:
    """The last step.

    Attributes:
        text: what had been held back.
        reason: "end" for the end token, "stop" for a stop text, "length" where the
            most tokens are written or the model can read no further.
        known: tokens of the prompt that had been read before.
        read: tokens of the prompt that were read now.
        written: tokens that were chosen, the end token not counted.
    """

    text: str
    reason: str
    known: int
    read: int
    written: int


Answer = Iterator[Reading | Token | End]


@dataclass(eq=False)
class _Kept:
    """A text, (S,), and the cache that holds exactly its keys and values."""

    cache: KVCache
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def start_with(self, known):
        """Forget what comes after the first `known` tokens."""
        self.cache.truncate(known)
        self.ids = self.ids[:known].clone()


class Writer:
    """A model that writes for several readers, and remembers their last texts.

    Args:
        model: a model with the interface of `GPTModel`, in evaluation mode.
        tokenizer: its tokenizer, with tiktoken's `decode_single_token_bytes`.
        keep: how many texts to remember, each with its keys and values.
        most_bytes: of keys and values, those of the text that is being written
            counted; above it the texts that were used longest ago go first, and the
            last one stays in any case.

    Raises:
        ValueError: the model is in training mode, so dropout would change its texts.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        keep: int = 4,
        most_bytes: int = _MOST_BYTES,
    ):
        check_whole_number("keep", keep)
        if any(module.training for module in model.modules()):
            raise ValueError(
                "The model is in training mode, so each text would be a matter of "
                "chance: call model.eval() first."
            )
        self.model, self.tokenizer = model, tokenizer
        self.keep, self.most_bytes = keep, most_bytes
        self.context_size = model.cfg["context_length"]
        self._kept: list[_Kept] = []  # the one used last comes last

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values of all remembered texts take."""
        return sum(kept.cache.nbytes for kept in self._kept)

    def start(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling = _THE_LIKELIEST,
        stop: Sequence[str] = (),
        begun: Sequence[int] = (),
    ) -> Answer:
        """Begin to continue a text; nothing is computed before the first step.

        Args:
            ids: the token ids of all that comes before the answer, (S,), S >= 1.
            max_new_tokens: the most tokens to write, from 1 up.
            sampling: how each token is chosen.
            stop: texts at which the answer ends; they do not belong to it.
            begun: token ids with which the answer begins, as its reader chose them.
                They are read behind `ids` and not told again; if they end within a
                character, the first new token that completes it tells it whole.

        Returns:
            An iterator over `Reading`, then `Token`, then one `End`. Where it is left
            off, what has been read stays known.

        Raises:
            ValueError: ids are empty, or with `begun` more than the model reads;
                max_new_tokens is no whole number from 1 up; a stop text is empty.
        """
        ids = [*ids, *begun]
        check_whole_number("max_new_tokens", max_new_tokens)
        if not ids:
            raise ValueError("There is no text to go on with: give at least one token.")
        if len(ids) > self.context_size:
            raise ValueError(
                f"The text has {len(ids)} tokens, but the model reads at most "
                f"{self.context_size}: shorten it."
            )
        if "" in stop:
            raise ValueError("A stop text is empty, so the answer would be, too.")
        device = self.model.tok_emb.weight.device
        idx = torch.as_tensor(ids, dtype=torch.long, device=device)
        room = self.context_size - len(ids) + 1  # the last one need not be read
        text = _Text(tuple(stop), [bytes_of(t, self.tokenizer) for t in begun])
        return self._steps(idx, min(max_new_tokens, room), sampling, text)

    def _steps(self, idx, max_new_tokens, sampling, text):
        """Read what is new, then choose and read, one token at a time.

        While an answer uses a kept text, no other one finds it.
        """
        kept = self._take(idx)
        try:
            known, new = len(kept.ids), len(idx) - len(kept.ids)
            for part in idx[known:].split(CHUNK):
                logits = self._read(part, kept)  # (1, V), in the end those that count
                yield Reading(len(kept.ids) - known, new)

            reason, written = "length", 0
            while True:
                chosen = _choose(logits, sampling)  # (1,)
                if chosen.item() in sampling.ends:
                    reason = "end"
                    break
                written += 1
                yield self._token(chosen.item(), logits, text)
                if text.stopped:
                    reason = "stop"
                    break
                if written == max_new_tokens:
                    break
                logits = self._read(chosen, kept)
            yield End(text.rest(), reason, known, new, written)
        finally:
            self._make_room_for(kept)
            self._kept = [*self._kept, kept][-self.keep :]

    @torch.no_grad()
    def _read(self, part, kept):
        """Logits after one more part of a text, (1, V)."""
        logits = self.model(part[None], cache=kept.cache)[:, -1]
        kept.ids = torch.cat((kept.ids.to(part.device), part))
        self._make_room_for(kept)
        return logits

    def _make_room_for(self, kept):
        """Forget other texts as long as they take too much with this one."""
        while self._kept and self.nbytes + kept.cache.nbytes > self.most_bytes:
            del self._kept[0]

    def _token(self, chosen, logits, text):
        own = next_token_probabilities(logits)[0]  # (V,)
        most = own.topk(min(LIKELY, len(own)))
        return Token(
            id=chosen,
            text=text.add(bytes_of(chosen, self.tokenizer)),
            alone=self._alone(chosen),
            probability=round(own[chosen].item(), 6),
            likely=tuple(
                (other, self._alone(other), round(chance, 6))
                for other, chance in zip(most.indices.tolist(), most.values.tolist())
            ),
        )

    def _alone(self, token):
        return bytes_of(token, self.tokenizer).decode("utf-8", errors="replace")

    def _take(self, idx):
        """The kept text that begins like this one, cut to what they share.

        If most of it would be lost by that, it may be somebody else's: then it is
        copied as far as it is shared, with memory for no more.
        """
        most = len(idx) - 1  # the last token is read in any case, for its logits
        shared = [
            min(shared_start(k.ids.to(idx.device), idx), most) for k in self._kept
        ]
        known = max(shared, default=0)
        if known == 0:
            return _Kept(KVCache(self.model.cfg["n_layers"], self.context_size))
        best = self._kept[shared.index(known)]
        if 2 * known < len(best.ids):
            return _Kept(_start_of(best.cache, known), best.ids[:known].clone())
        self._kept.remove(best)
        best.start_with(known)
        return best


def _start_of(cache, length):
    """A cache of its own with the first `length` tokens of a text."""
    start = KVCache(cache.num_layers, cache.max_length, room=length)
    for number in range(cache.num_layers):
        layer = cache.layer(number)
        start.layer(number).append(
            layer.keys[:, :, :length], layer.values[:, :, :length]
        )
    return start


def _choose(logits, sampling):
    """The next token, (1,), as `generate` draws it from logits (1, V)."""
    choice = sampling.temperature, sampling.top_k, sampling.top_p
    chances = next_token_probabilities(logits, *choice)
    if sampling.temperature == 0:
        return chances.argmax(dim=-1)
    return torch.multinomial(chances, 1, generator=sampling.generator)[0]


class _Text:
    """Bytes of tokens as text: whole characters, and nothing from a stop text on."""

    def __init__(self, stop, begun):
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.decoder.decode(b"".join(begun))  # has been shown, but for half a character
        self.stop, self.held, self.stopped = stop, "", False

    def add(self, token: bytes) -> str:
        """What can be shown now that these bytes have come."""
        self.held += self.decoder.decode(token)
        places = [at for at in map(self.held.find, self.stop) if at >= 0]
        if places:
            self.stopped, self.held = True, self.held[: min(places)]
        kept_back = 0 if self.stopped else self._begun()
        shown = self.held[: len(self.held) - kept_back]
        self.held = self.held[len(shown) :]
        return shown

    def _begun(self):
        """The length of the longest end of the text that may become a stop text."""
        return max(
            (
                size
                for stop in self.stop
                for size in range(1, len(stop))
                if self.held.endswith(stop[:size])
            ),
            default=0,
        )

    def rest(self) -> str:
        """What was held back: no stop text came of it, or a character stays half."""
        return self.held + ("" if self.stopped else self.decoder.decode(b"", True))
