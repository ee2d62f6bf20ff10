"""A model that is given raw text, at home or behind a server (chapter 7, bonus).

A chat interface puts a question between the marks of the model's chat template. Whoever
wants the model to write the *question* needs the text without them: only the beginning
of the user's turn, and nothing in it (Xu et al., 2024, arXiv:2406.08464, section 2).

* `ChatMarks` and `CHAT_MARKS`: what stands around the turns of some families of models;
* `empty_prompt`, `answer_prompt`: where a question begins, and where its answer does;
* `LocalWriter`: the course's own model, many texts at once;
* `ServerWriter`, `complete_raw`: a server that takes raw text: Ollama's `/api/generate`
  with `"raw": true`, or OpenAI's older `/v1/completions` (llama.cpp, vLLM and others).

Both writers return `WrittenText`: a text, and whether it ended by itself.

>>> marks = CHAT_MARKS["chatml"]
>>> print(empty_prompt(marks, system="Be brief.", opening="What"))
<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
What
>>> empty_prompt(marks)
'<|im_start|>user\\n'
>>> answer_prompt(marks, "What is dew?")
'<|im_start|>user\\nWhat is dew?<|im_end|>\\n<|im_start|>assistant\\n'

Left out: the chat interfaces, which take no raw text (`ollama_evaluate.query_model`).
"""

import urllib.parse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fast_answers import likeliest, read_questions, write_answers
from gguf_files import system_message
from gpt_generate import next_token_probabilities
from judge_requests import ask_server, hidden, json_parts, shown, usable_key

OLLAMA_RAW_URL = "http://localhost:11434/api/generate"


class ChatMarks(NamedTuple):
    """What stands around the turns of a model's chats."""

    user: str  # opens the user's turn
    assistant: str  # closes it, and opens the model's
    end: str  # what the model writes at the end of a turn
    system: str  # around a system message, {}; "" where the family has none


CHAT_MARKS = {
    "chatml": ChatMarks(  # SmolLM2, Qwen and others
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "<|im_start|>system\n{}<|im_end|>\n",
    ),
    "llama3": ChatMarks(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    ),
    "phi3": ChatMarks(
        "<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>", "<|system|>\n{}<|end|>\n"
    ),
    "gemma": ChatMarks(
        "<start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        "",
    ),
}


class Sampled(NamedTuple):
    """How a text is written: at most so many tokens, and how each is drawn."""

    most: int = 64  # tokens
    temperature: float = 1.0  # 0 takes the likeliest
    top_p: float = 1.0


class WrittenText(NamedTuple):
    """What a model wrote, and whether it ended the text itself."""

    text: str
    ended: bool


def empty_prompt(marks: ChatMarks, system: str = "", opening: str = "") -> str:
    """The beginning of a user's turn, with nothing in it, or its first words.

    Args:
        marks: those of the model's family; others are mere text to it.
        system: a system message before it; "" for none.
        opening: words with which the question begins.

    Raises:
        ValueError: there are no marks for a system message.
    """
    return _opened(marks, system) + opening


def answer_prompt(marks: ChatMarks, question: str, system: str = "") -> str:
    """A question in a chat, up to where its answer begins.

    Raises:
        ValueError: the question holds one of the marks: written into raw text, it would
            end the user's turn.
    """
    held = [mark for mark in mark_words(marks) if mark in question]
    if held:
        raise ValueError(
            f"The question {question[:60]!r} holds {held[0]!r}, which would end the "
            "user's turn in the middle of it: leave this question out."
        )
    return _opened(marks, system) + question + marks.assistant


def _opened(marks, system):
    """A conversation up to where the user's words begin."""
    if system and not marks.system:
        raise ValueError(
            "This family of models has no marks for a system message: give none, and "
            "say it in the opening of the question."
        )
    return (marks.system.format(system) if system else "") + marks.user


def mark_words(marks: ChatMarks) -> list[str]:
    """The special tokens in the marks, such as `<|im_end|>`."""
    text = "".join(marks)
    ends = [part.partition(">")[0] for part in text.split("<")[1:]]
    return sorted({f"<{part}>" for part in ends})


def system_in_file(tokenizer: Any) -> str:
    """The system message that SmolLM2's own chat template puts first.

    Raises:
        ValueError: the tokenizer has another template.
    """
    return system_message(tokenizer.chat_template, tokenizer.special_tokens)


class LocalWriter:
    """The course's own model as a writer of raw text, many texts at once.

    Args:
        model: with the interface of `GPTModel`, a cache and an attention mask.
        tokenizer: the model's, with a chat template.
        device: where the model is.

    Attributes:
        batch_size: how many texts are best written at once; which texts are in a batch
            decides what is drawn for each.
        marks: those of the model's family, `CHAT_MARKS["chatml"]`.
        system: the system message with which the model was trained.
        name: for the notes beside what was written.
    """

    batch_size = 32
    name = "smollm2-135m"
    marks = CHAT_MARKS["chatml"]

    def __init__(self, model: Any, tokenizer: Any, device: torch.device | str = "cpu"):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = device
        self.system = system_in_file(tokenizer)

    def write(
        self, prompts: Sequence[str], sampled: Sampled, seeds: Sequence[int]
    ) -> list[WrittenText]:
        """The continuation of each prompt, in order.

        Args:
            prompts: raw texts, at least one; marks in them are special tokens.
            sampled: how the texts are written.
            seeds: one for each prompt; of a batch the first counts.
        """
        encode = partial(self.tokenizer.encode, allowed_special="all")
        return self.write_ids([encode(text) for text in prompts], sampled, seeds[0])

    @torch.no_grad()
    def write_ids(
        self, prompts: Sequence[list[int]], sampled: Sampled, seed: int = 0
    ) -> list[WrittenText]:
        """The same for prompts as token ids, one list each."""
        room = max(map(len, prompts)) + sampled.most
        generator = torch.Generator(self.device).manual_seed(seed)
        read = read_questions(self.model, prompts, room, self.device)
        choose = partial(draw_tokens, sampled=sampled, generator=generator)
        end = self.tokenizer.eot_token
        rows = write_answers(self.model, read, end, sampled.most, choose)
        decode = self.tokenizer.decode
        return [WrittenText(decode(row), len(row) < sampled.most) for row in rows]


def draw_tokens(
    logits: Tensor, sampled: Sampled, generator: torch.Generator | None = None
) -> Tensor:
    """The next token of each row, (B,), drawn from logits (B, V)."""
    if sampled.temperature == 0:
        return likeliest(logits)
    chances = next_token_probabilities(logits, sampled.temperature, top_p=sampled.top_p)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


class ServerWriter:
    """A server that takes raw text as a writer, one request after another.

    Args:
        url: an address that ends with `/api/generate` (Ollama) or `/completions`.
        model: its name there.
        family: of `CHAT_MARKS`, that of the model.
        system: a system message; "" for none.
        options: for `complete_raw`: timeout, retries, wait, api_key.
    """

    batch_size = 1  # so that nothing waits for the rest when the server goes

    def __init__(
        self,
        url: str,
        model: str,
        family: str = "llama3",
        system: str = "",
        **options: Any,
    ):
        if family not in CHAT_MARKS:
            raise ValueError(
                f"No marks are known for the family {family!r}: take one of "
                f"{', '.join(CHAT_MARKS)}, or add those of your model to CHAT_MARKS."
            )
        self.url, self.name = url, model
        self.marks, self.system, self.options = CHAT_MARKS[family], system, options
        _is_ollama(url)

    def write(
        self, prompts: Sequence[str], sampled: Sampled, seeds: Sequence[int]
    ) -> Iterator[WrittenText]:
        """Yield the continuation of each prompt, each with its own seed."""
        for prompt, seed in zip(prompts, seeds, strict=True):
            yield complete_raw(
                prompt,
                self.name,
                self.url,
                sampled,
                seed=seed,
                stop=self.marks.end,
                **self.options,
            )


def complete_raw(
    prompt: str,
    model: str,
    url: str = OLLAMA_RAW_URL,
    sampled: Sampled | None = None,
    *,
    seed: int = 123,
    stop: str | None = None,
    num_ctx: int = 2048,
    api_key: str | None = None,
    **options: Any,
) -> WrittenText:
    """How a model behind a server continues raw text.

    Args:
        prompt: the text, with the marks of the model's family; a server puts none
            around it, but adds the token that begins every text, if the model has one.
        model: its name there.
        url: an address that ends with `/api/generate` (Ollama) or with `/completions`
            (OpenAI's older interface, which llama.cpp and vLLM have as well).
        sampled: how the text is written; None takes the defaults.
        seed: of the draws.
        stop: where the text ends, the model's own end of a turn.
        num_ctx: the most tokens of prompt and text; for Ollama only.
        api_key: as for `ollama_evaluate.query_model`.
        options: for `ask_server`: timeout, retries, wait.

    Raises:
        ServerError: as `ask_server`.
        ValueError: the address is of another kind.
    """
    sampled = sampled or Sampled()
    stops = [stop] if stop else []
    drawn = {"temperature": sampled.temperature, "top_p": sampled.top_p, "seed": seed}
    body = {"model": model, "prompt": prompt, "stream": False}
    if _is_ollama(url):
        limits = {"num_predict": sampled.most, "num_ctx": num_ctx, "stop": stops}
        body |= {"raw": True, "options": drawn | limits}
    else:
        body |= {**drawn, "max_tokens": sampled.most, "stop": stops}
    key = usable_key(url, api_key)
    return ask_server(url, body, _written, model=model, key=key, **options)


def _is_ollama(url):
    """Whether an address is Ollama's for raw text, and not OpenAI's."""
    parts = urllib.parse.urlsplit(url)
    ollama = parts.path.endswith("/api/generate")
    openai = parts.path.endswith("/completions") and "/chat/" not in parts.path
    if parts.scheme not in ("http", "https") or not parts.netloc:
        ollama = openai = False
    if not (ollama or openai):
        raise ValueError(
            f"The address {url!r} takes no raw text: give one that ends with "
            "/api/generate, as Ollama's, or with /v1/completions; a chat interface "
            "(/api/chat, /v1/chat/completions) puts its own marks around each text."
        )
    return ollama


def _written(raw, key):
    """The text in a server's answer, whole or in pieces, and whether it ended."""
    found = json_parts(raw, key)
    try:
        if "choices" in found[0]:
            choice = found[0]["choices"][0]
            text, ended = "" + choice["text"], choice.get("finish_reason") == "stop"
        elif not found[-1]["done"]:
            raise ValueError("the answer breaks off")
        else:
            text = "".join(part["response"] for part in found)
            ended = found[-1].get("done_reason", "stop") == "stop"
        return WrittenText(hidden(text, key), ended)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"there is no text in {shown(raw, key)}") from None
