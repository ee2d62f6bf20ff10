"""OpenAI's own client works against a model of the course, and all it says is right."""

import json
import runpy
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
import tiktoken
import torch

from gpt_generate import generate
from page_models import Shelf
from page_server import running
from small_models import small_configs, small_model
from writer import Writer

FOLDER = Path(__file__).parent
GPT2 = tiktoken.get_encoding("gpt2")
CONTEXT = 200
MODEL = small_model(small_configs(context_length=CONTEXT, vocab_size=50_257)["Llama"])


class Chatty:
    """GPT-2's tokenizer with a layout for conversations."""

    n_vocab, eot_token = GPT2.n_vocab, GPT2.eot_token
    decode_single_token_bytes = staticmethod(GPT2.decode_single_token_bytes)

    def encode(self, text, disallowed_special=()):
        return GPT2.encode_ordinary(text)

    def render_chat(self, messages):
        text = "".join(f"[{m['role']}] {m['content']}\n" for m in messages)
        return GPT2.encode_ordinary(f"{text}[assistant]")


@pytest.fixture(scope="module")
def address():
    tokenizers = {"chatty": Chatty(), "plain": GPT2}
    shelf = Shelf(
        {name: f"the {name} one" for name in tokenizers},
        lambda name: Writer(MODEL, tokenizers[name]),
    )
    with running(runpy.run_path(str(FOLDER / "app.py"))["make_app"](shelf)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Is it cold?"},
]


def likeliest(ids, n):
    return GPT2.decode(
        generate(MODEL, torch.tensor([ids]), n, CONTEXT)[0, len(ids) :].tolist()
    )


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["chatty", "plain"]


def test_a_conversation_whole_and_streamed(client):
    ids = Chatty().render_chat(MESSAGES)
    options = dict(model="chatty", messages=MESSAGES, temperature=0, max_tokens=12)
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].message.content == likeliest(ids, 12)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens == len(ids)
    assert whole.usage.completion_tokens == 12
    more = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**options, **more)
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(texts) > 5
    assert [c.choices[0].delta.role for c in chunks[:2]] == ["assistant", None]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == []
    # The second time everything was known but the last token.
    assert last.usage.prompt_tokens_details.cached_tokens == len(ids) - 1


def test_a_text_is_continued(client):
    for model in ("plain", "chatty"):
        answer = client.completions.create(
            model=model, prompt="One day", temperature=0, max_tokens=6
        )
        assert answer.choices[0].text == likeliest(GPT2.encode("One day"), 6)
    chunks = client.completions.create(
        model="plain", prompt="One day", temperature=0, max_tokens=6, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_the_same_seed_says_the_same_and_no_seed_does_not(client):
    def say(**more):
        made = client.completions.create(
            model="plain", prompt="One", max_tokens=12, **more
        )
        return made.choices[0].text

    assert say(seed=5) == say(seed=5) != say(seed=6)
    assert say(seed=-1) == say(seed=-1)  # known mistake: it stood for none
    assert len({say() for _ in range(4)}) > 1


def test_a_top_p_of_0_takes_the_likeliest_token(client):
    """Known mistake: it was refused, though the interface allows it."""
    answer = client.completions.create(
        model="plain", prompt="One day", temperature=2, top_p=0, max_tokens=8
    )
    assert answer.choices[0].text == likeliest(GPT2.encode("One day"), 8)


def test_stop_texts(client):
    options = dict(model="plain", prompt="One day", temperature=0, max_tokens=8)
    text = client.completions.create(**options).choices[0].text
    stop = text[len(text) // 2 :][:3]
    stopped = client.completions.create(**options, stop=[stop, "never"]).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_marks_that_a_user_types_are_text(client):
    """Known mistake: "<|endoftext|>" in a message ended it."""
    text = "Say <|endoftext|> now"
    sent = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(model="chatty", messages=sent, max_tokens=1)
    assert answer.usage.prompt_tokens == len(Chatty().render_chat(sent))


def test_content_in_parts_and_the_newer_names(client):
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "cold?"}]
    sent = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": parts},
    ]
    answers = [
        client.chat.completions.create(
            model="chatty", messages=messages, max_completion_tokens=5, temperature=0
        )
        for messages in (sent, MESSAGES)
    ]
    assert answers[0].choices == answers[1].choices
    assert answers[0].usage.completion_tokens == 5


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GOOD = {CHAT: {"messages": MESSAGES}, TEXT: {"prompt": "One"}}
BAD = [
    (CHAT, {"messages": []}, "messages must be a list with at least one message."),
    (CHAT, {"messages": "Hello"}, "messages must be a list"),
    (CHAT, {"messages": [{"content": "x"}]}, "The role of message 1 must be"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "The role of message 1"),
    (CHAT, {"messages": [{"role": "user", "content": 7}]}, "content must be a text"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "no text",
    ),
    (CHAT, {"messages": [3]}, "Message 1 is no object"),
    (CHAT, {"model": "chaty"}, "There is no model 'chaty'. Did you mean 'chatty'?"),
    (CHAT, {"model": "plain"}, "was not trained to chat"),
    (CHAT, {"model": 7}, "There is no model '7'"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools is not built here"),
    (CHAT, {"tool_choice": "required"}, "tool_choice is not built here"),
    (CHAT, {"function_call": {"name": "add"}}, "function_call is not built here"),
    (
        CHAT,
        {"response_format": {"type": "json_object"}},
        "response_format is not built",
    ),
    (CHAT, {"max_completion_tokens": 0}, "must be a whole number from 1 to 1024"),
    (TEXT, {"prompt": ""}, "There is no text to go on with"),
    (TEXT, {"prompt": None}, "prompt is missing"),
    (TEXT, {"prompt": ["a", "b"]}, "at most 1 texts"),
    (TEXT, {"prompt": "x " * 300}, "tokens, but the model reads at most 200"),
    (TEXT, {"prompt": "\ud800"}, "half a character"),
    (TEXT, {"prompt": "x", "n": 2}, "n is not built here"),
    (TEXT, {"prompt": "x", "logprobs": 0}, "logprobs is not built here"),
    (TEXT, {"prompt": "x", "stream_options": [1]}, "stream_options must be an object"),
    (
        TEXT,
        {"prompt": "x", "temperature": 3},
        "temperature must be a number from 0 to 2.",
    ),
    (TEXT, {"prompt": "x", "temperature": "warm"}, "temperature must be a number"),
    (TEXT, {"prompt": "x", "temperature": True}, "temperature must be a number"),
    (TEXT, {"prompt": "x", "top_p": -0.1}, "top_p must be"),
    (TEXT, {"prompt": "x", "top_p": 1.1}, "top_p must be"),
    (TEXT, {"prompt": "x", "max_tokens": 1.5}, "max_tokens must be a whole number"),
    (TEXT, {"prompt": "x", "seed": 2**64}, "seed must be a whole number"),
    (TEXT, {"prompt": "x", "stop": [1]}, "stop must be a text"),
    (TEXT, {"prompt": "x", "stop": ["a"] * 5}, "at most 4 texts"),
    (TEXT, {"prompt": "x", "stop": ""}, "A stop text is empty"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields", "said"), BAD)
def test_what_cannot_be_answered_is_told_in_one_sentence(
    address, path, fields, said, stream
):
    body = json.dumps({**GOOD[path], **fields, "stream": stream}).encode()
    request = urllib.request.Request(address + path, body)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=20)
    error = json.loads(raised.value.read())["error"]
    assert raised.value.code == 400
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_client_names_the_error(client):
    with pytest.raises(openai.BadRequestError, match="not trained to chat"):
        client.chat.completions.create(model="plain", messages=MESSAGES)


def test_what_changes_nothing_is_passed_over(client):
    options = dict(model="plain", prompt="One", max_tokens=3, temperature=0)
    more = dict(n=1, user="me", presence_penalty=0.0, logprobs=None, echo=False)
    more["extra_body"] = {"tool_choice": "auto", "tools": []}
    answers = [client.completions.create(**options, **o) for o in ({}, more)]
    assert answers[0].choices == answers[1].choices


@pytest.mark.parametrize(
    "text", ["\n" * 90, "<script>alert(1)</script>", "\x00\x01 [31m", "\U0001f642" * 20]
)
def test_odd_texts_are_texts(client, text):
    sent = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(model="chatty", messages=sent, max_tokens=3)
    assert answer.usage.prompt_tokens == len(Chatty().render_chat(sent))


@pytest.mark.parametrize("text", ["\n" * 10_000, "\n" * 90_000, "a" * 1_000])
def test_what_is_too_long_is_told(client, text):
    sent = [{"role": "user", "content": text}]
    with pytest.raises(openai.BadRequestError, match=r"shorten it|white space"):
        client.chat.completions.create(model="chatty", messages=sent, max_tokens=3)
