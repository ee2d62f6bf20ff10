"""The web interface that other programs speak (chapter 5, user interface).

`/v1/models`, `/v1/completions` and `/v1/chat/completions` as described in OpenAI's
reference (https://platform.openai.com/docs/api-reference), so far as they fit a small
model on one machine: text in, text out, streamed or whole. A client that is made for
that service works against your own model, if it is told the address::

    client = openai.OpenAI(base_url="http://127.0.0.1:8765/v1", api_key="none")

What would change the answer and is not built, such as several answers at once, is
refused by name. What only describes a request, such as `user`, is passed over.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gpt_generate import Sampling
from model_config import end_tokens
from page_server import Door, Refused, event
from writer import End, Token, Writer

MOST_NEW_TOKENS = 1024
RANGES = {  # of the settings of a page, from and to
    "temperature": (0, 2),
    "top_k": (0, 1_000_000),
    "top_p": (0, 1),
    "max_new_tokens": (1, MOST_NEW_TOKENS),
    "seed": (0, 999_999),
}
NOT_BUILT = {  # the field, and the values at which it changes nothing
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),  # 0 asks for that of the chosen token
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
_LIKELIEST_ALONE = 1e-9  # as top_p: the likeliest token always has more than that
_number = itertools.count(1)


# --- Reading a question ---------------------------------------------------------------


def number_in(
    question: Mapping[str, Any], name: str, default: Any, low: float, high: float
) -> Any:
    """A number of a question, of the kind of its default.

    >>> number_in({"seed": 7}, "seed", 123, 0, 1000)
    7

    Raises:
        Refused: it is no such number.
    """
    value = question.get(name)
    if value is None:
        return default
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(
        value, (int,) if whole else (int, float)
    ):
        value = float("nan")
    if not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise Refused(f"{name} must be {kind} from {low} to {high}.")
    return value


def texts_in(question: Mapping[str, Any], name: str, most: int = 4) -> tuple[str, ...]:
    """A text of a question, or up to `most` of them, as a tuple.

    Raises:
        Refused: it is something else.
    """
    value = question.get(name)
    found = [] if value is None else [value] if isinstance(value, str) else value
    texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
    if not texts or len(found) > most:
        raise Refused(f"{name} must be a text, or a list of at most {most} texts.")
    if any("\ud800" <= character <= "\udfff" for text in found for character in text):
        raise Refused(f"{name} holds half a character: send whole ones.")
    return tuple(found)


def ids_in(question: Mapping[str, Any], name: str, tokenizer: Any) -> list[int]:
    """The token ids of a question, as a page sends back what it was sent.

    Raises:
        Refused: it is something else, or an id that the tokenizer does not know.
    """
    found = question.get(name)
    ids = found if isinstance(found, list) else [None]
    if not all(type(token) is int and 0 <= token < tokenizer.n_vocab for token in ids):
        raise Refused("An answer must be a list of token ids.")
    return ids


def messages_in(question: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a conversation, each with `role` and `content`.

    Raises:
        Refused: there is none, or one is malformed.
    """
    found = question.get("messages")
    if not isinstance(found, list) or not found:
        raise Refused("messages must be a list with at least one message.")
    return [_message(number, message) for number, message in enumerate(found, 1)]


def _message(number, message):
    if not isinstance(message, dict):
        raise Refused(f"Message {number} is no object with role and content.")
    role, content = message.get("role"), message.get("content")
    if role == "developer":  # the newer name
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise Refused(
            f"The role of message {number} must be system, user or assistant."
        )
    if isinstance(content, list):  # of parts
        if not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            raise Refused(f"Message {number} has parts that are no text.")
        content = [part.get("text") for part in content]
    parts = texts_in({"content": content}, "content", most=1000)
    return {"role": role, "content": "".join(parts)}


def choice_in(
    question: Mapping[str, Any],
    device: Any,
    eos_id: int | tuple[int, ...] | None,
    **defaults: Any,
) -> Sampling:
    """How tokens are chosen for a question; `defaults` by the names of `Sampling`.

    Raises:
        Refused: a setting is out of range.
    """
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | defaults
    temperature, top_p, top_k = (
        number_in(question, name, usual[name], *RANGES[name])
        for name in ("temperature", "top_p", "top_k")
    )
    top_p = max(top_p, _LIKELIEST_ALONE)
    generator = torch.Generator(device)
    if question.get("seed") is None:
        generator.seed()
    else:
        generator.manual_seed(number_in(question, "seed", 0, -(2**63), 2**63 - 1))
    return Sampling(temperature, top_k or None, top_p, eos_id, generator)


# --- Answering ------------------------------------------------------------------------


class Models(Door):
    """Which models there are."""

    def get(self) -> None:
        """List them."""
        names = [one["name"] for one in self.settings["shelf"].listed()]
        models = [
            {"id": n, "object": "model", "created": 0, "owned_by": "you"} for n in names
        ]
        self.finish({"object": "list", "data": models})


class Completions(Door):
    """A text that is continued."""

    kind, streamed, name = "text_completion", "text_completion", "cmpl"
    lengths: tuple[str, ...] = ("max_tokens",)

    def read(self, question: dict[str, Any]) -> Callable[[Writer], list[int]]:
        """Check what is to be continued; return what makes token ids of it."""
        texts = texts_in(question, "prompt", most=1)
        if not texts:
            raise Refused("prompt is missing: send the text to continue.")
        return lambda writer: self.settings["encode"](writer.tokenizer, texts[0])

    def choice(self, text: str, role: bool = False) -> dict[str, Any]:
        """What the answer is wrapped in when it comes whole."""
        return {"text": text}

    part = choice

    async def post(self) -> None:
        """Answer in one piece, or in events."""
        question = self.question()
        for field, harmless in NOT_BUILT.items():
            value = question.get(field)
            # In Python 0 is False.
            if value is not None and not any(
                value == one and isinstance(value, bool) == isinstance(one, bool)
                for one in harmless
            ):
                raise Refused(f"{field} is not built here: leave it out.")
        shelf = self.settings["shelf"]
        model, ids_of = shelf.check(question.get("model")), self.read(question)
        stop = texts_in(question, "stop")
        lengths = (
            number_in(question, name, 256, 1, MOST_NEW_TOKENS)
            for name in self.lengths
            if question.get(name) is not None
        )
        most = next(lengths, 256)
        choice_in(question, "cpu", None)  # so that nobody waits to be refused
        options = question.get("stream_options") or {}
        if not isinstance(options, dict):
            raise Refused("stream_options must be an object.")
        usage = bool(options.get("include_usage"))

        def start():
            writer = shelf.get(model)
            device = writer.model.tok_emb.weight.device
            sampling = choice_in(question, device, end_tokens(writer.tokenizer))
            return writer.start(ids_of(writer), most, sampling, stop)

        self.head = {
            "id": f"{self.name}-{next(_number)}",
            "created": int(time.time()),
            "model": model,
        }
        if question.get("stream"):
            await self.stream(start, usage)
        else:
            await self.whole(start)

    async def whole(self, start: Callable) -> None:
        """Answer in one piece."""
        texts: list[str] = []
        end: list[End] = []

        def collect(step):
            if isinstance(step, (Token, End)):
                texts.append(step.text)
            if isinstance(step, End):
                end.append(step)

        await self.send(start, collect)
        if end:
            choice = self.choice("".join(texts)) | _why(end[0])
            self.finish(
                {
                    **self.head,
                    "object": self.kind,
                    "choices": [{"index": 0, "logprobs": None, **choice}],
                    "usage": _usage(end[0]),
                }
            )

    async def stream(self, start: Callable, usage: bool) -> None:
        """Answer piece by piece."""
        first = True

        def chunk(**more):
            return event({**self.head, "object": self.streamed, **more})

        def put(step):
            nonlocal first
            if not isinstance(step, (Token, End)):
                return None
            piece = {"index": 0, **self.part(step.text, first), "finish_reason": None}
            first = False
            if not isinstance(step, End):
                return chunk(choices=[piece])
            sent = chunk(choices=[piece | _why(step)])
            if usage:
                sent += chunk(choices=[], usage=_usage(step))
            return sent + b"data: [DONE]\n\n"

        await self.send_events(start, put)


class ChatCompletions(Completions):
    """A conversation that is answered."""

    kind, streamed, name = "chat.completion", "chat.completion.chunk", "chatcmpl"
    lengths = ("max_completion_tokens", "max_tokens")

    def read(self, question: dict[str, Any]) -> Callable[[Writer], list[int]]:
        """Check the messages; return what makes token ids of them."""
        messages = messages_in(question)
        return lambda writer: self.settings["render"](writer, messages)

    def choice(self, text: str, role: bool = False) -> dict[str, Any]:
        """A message."""
        return {"message": {"role": "assistant", "content": text}}

    def part(self, text: str, role: bool = False) -> dict[str, Any]:
        """What is new of a message; the first part says who speaks."""
        speaker = {"role": "assistant"} if role else {}
        return {"delta": {**speaker, "content": text}}


def _why(end):
    return {"finish_reason": "length" if end.reason == "length" else "stop"}


def _usage(end):
    asked = end.known + end.read
    return {
        "prompt_tokens": asked,
        "completion_tokens": end.written,
        "total_tokens": asked + end.written,
        "prompt_tokens_details": {"cached_tokens": end.known},
    }


DOORS = [
    ("/v1/models", Models),
    ("/v1/completions", Completions),
    ("/v1/chat/completions", ChatCompletions),
]
