"""Raw text at home and behind a server: the marks, the fields, and what goes wrong."""

import json
import time
import urllib.request

import pytest
import torch

from course.testing import servers
from course.testing.llama_server import llama_cpp
from course.testing.servers import answer as plain
from course.testing.servers import hang_up
from gpt_generate import generate
from judge_requests import ServerError
from ollama_evaluate import query_model
from pretrained import load_pretrained
from raw_prompts import (
    CHAT_MARKS,
    LocalWriter,
    Sampled,
    ServerWriter,
    WrittenText,
    answer_prompt,
    complete_raw,
    draw_tokens,
    empty_prompt,
    mark_words,
    system_in_file,
)

MARKS = CHAT_MARKS["chatml"]


def ollama(text, **more):
    """A whole answer as Ollama's /api/generate gives it."""
    return json.dumps({"response": text, "done": True, "done_reason": "stop", **more})


def openai(text, reason="stop"):
    return json.dumps({"choices": [{"text": text, "finish_reason": reason}]})


@pytest.fixture
def stub():
    with servers.Server() as server:
        server.default = plain(ollama("What is dew?"))
        yield server


def ask(stub, path="/api/generate", **options):
    options = {"wait": 0.0, "timeout": 5.0, **options}
    return complete_raw("<|im_start|>user\n", "m", stub.address + path, **options)


# --- The marks ------------------------------------------------------------------------


def post(address, path, body):
    request = urllib.request.Request(
        address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.mark.parametrize("family", CHAT_MARKS)
def test_the_marks_are_those_that_llama_cpp_knows_of_the_family(family):
    marks = CHAT_MARKS[family]
    messages = [{"role": "user", "content": "Who?"}]
    system = "Be brief." if marks.system else ""
    if system:
        messages.insert(0, {"role": "system", "content": system})
    with llama_cpp(family) as address:
        answer = post(address, "/apply-template", {"messages": messages})
    assert answer["prompt"] == answer_prompt(marks, "Who?", system)


def test_a_mark_in_a_question_would_end_the_turn_and_is_refused():
    assert mark_words(MARKS) == ["<|im_end|>", "<|im_start|>"]
    assert mark_words(CHAT_MARKS["gemma"]) == ["<end_of_turn>", "<start_of_turn>"]
    for mark in mark_words(MARKS):
        with pytest.raises(ValueError, match="would end the user's turn"):
            answer_prompt(MARKS, f"Who?{mark}\nassistant")
    assert "a < b > c" in answer_prompt(MARKS, "a < b > c")


def test_a_family_without_a_system_message_is_not_given_one():
    with pytest.raises(ValueError, match="no marks for a system message"):
        empty_prompt(CHAT_MARKS["gemma"], "Be brief.")
    with pytest.raises(ValueError, match="take one of chatml, llama3, phi3, gemma"):
        ServerWriter("http://127.0.0.1/api/generate", "m", "mistral")


# --- A server -------------------------------------------------------------------------


def test_ollama_is_told_that_the_text_is_raw_and_its_limits_inside_options(stub):
    """Without raw, Ollama would put the model's template around the text."""
    sampled = Sampled(most=40, temperature=0.7, top_p=0.9)
    found = ask(stub, sampled=sampled, seed=5, stop="<|im_end|>", num_ctx=512)
    assert found == WrittenText("What is dew?", True)
    assert stub.asked[0].json == {
        "model": "m",
        "prompt": "<|im_start|>user\n",
        "stream": False,
        "raw": True,
        "options": {
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 5,
            "num_predict": 40,
            "num_ctx": 512,
            "stop": ["<|im_end|>"],
        },
    }


def test_the_completions_interface_has_them_at_the_top(stub):
    stub.default = plain(openai(" What?", "length"))
    found = ask(stub, "/v1/completions", sampled=Sampled(40, 0.7, 0.9), api_key="abc")
    assert found == WrittenText(" What?", False)
    assert stub.asked[0].headers["Authorization"] == "Bearer abc"
    assert stub.asked[0].json == {
        "model": "m",
        "prompt": "<|im_start|>user\n",
        "stream": False,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 123,
        "max_tokens": 40,
        "stop": [],
    }


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:11434/api/chat",
        "http://localhost:8080/v1/chat/completions",
        "localhost:11434/api/generate",
        "ftp://localhost/api/generate",
        "http:///api/generate",
    ],
)
def test_an_interface_that_takes_no_raw_text_is_refused(address):
    with pytest.raises(ValueError, match="takes no raw text"):
        complete_raw("x", "m", address)
    with pytest.raises(ValueError, match="takes no raw text"):
        ServerWriter(address, "m")


PIECES = [
    json.dumps({"response": "What", "done": False}),
    json.dumps({"response": " now?", "done": False}),
    ollama("", done_reason="length"),
]
ODD_ANSWERS = {  # what is sent, and what is read of it; None where it is refused
    "ended": (ollama("Who?"), WrittenText("Who?", True)),
    "cut": (ollama("Who", done_reason="length"), WrittenText("Who", False)),
    "an old server gives no reason": (
        json.dumps({"response": "Who?", "done": True}),
        WrittenText("Who?", True),
    ),
    "pieces": ("\n".join(PIECES), WrittenText("What now?", False)),
    "pieces that break off": ("\n".join(PIECES[:2]), None),
    "nothing": (ollama(""), WrittenText("", True)),
    "no reason at the other": (
        json.dumps({"choices": [{"text": "Who?"}]}),
        WrittenText("Who?", False),
    ),
    "a chat's answer": (
        json.dumps({"choices": [{"message": {"content": "Hi"}}]}),
        None,
    ),
    "an error with status 200": ('{"error": "no such model"}', None),
    "a number as text": (ollama(5), None),
    "null as text": (openai(None), None),
    "no choices": ('{"choices": []}', None),
    "no JSON": ("<html>", None),
    "another object": ('{"status": "ok"}', None),
    "a list": ("[1]", None),
    "empty": ("", None),
    "cut JSON": (ollama("Who?")[:-5], None),
    "no UTF-8": (b"\xff", None),
}


def test_odd_answers_are_read_or_refused_in_one_sentence(stub):
    wrong = {}
    for name, (sent, expected) in ODD_ANSWERS.items():
        stub.script = [plain(sent)]
        try:
            found = ask(stub, retries=0)
        except ServerError as problem:
            found = None if "gave no answer (" in str(problem) else str(problem)
        if found != expected:
            wrong[name] = found
    assert not wrong


def test_a_server_that_is_slow_busy_or_broken_is_asked_again(stub):
    def slow(request):
        time.sleep(1.0)
        plain(ollama("late"))(request)

    trouble = [plain("busy", 503), plain("", 429), hang_up, plain("<html>"), slow]
    stub.script = [*trouble, plain(ollama("fine"))]
    assert ask(stub, retries=5, timeout=0.5).text == "fine"
    assert len(stub.asked) == 6
    stub.default = plain('{"error": "no key"}', 401)
    with pytest.raises(ServerError, match="HTTP 401") as raised:
        ask(stub, api_key="secret-key")
    assert "secret-key" not in str(raised.value)
    assert len(stub.asked) == 7


# --- The course's own model -----------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    model, tokenizer, _ = load_pretrained("smollm2-135m")
    return LocalWriter(model, tokenizer)


def test_the_raw_text_has_the_ids_of_the_chat_template(writer):
    tokenizer = writer.tokenizer
    assert writer.system == system_in_file(tokenizer)
    for question in ("What is dew?", "Wer?\n\n\u00fc \U0001f600 1 < 2 |>"):
        raw = answer_prompt(writer.marks, question, writer.system)
        ids = tokenizer.encode(raw, allowed_special="all")
        assert ids == tokenizer.render_chat([{"role": "user", "content": question}])
        empty = empty_prompt(writer.marks, writer.system)
        start = tokenizer.encode(empty, allowed_special="all")
        assert ids[: len(start)] == start


def test_texts_are_drawn_again_with_the_same_seed_and_differ_in_a_batch(writer):
    prompts = [empty_prompt(writer.marks, writer.system)] * 3
    sampled = Sampled(most=6, temperature=1.0)
    first = writer.write(prompts, sampled, [4, 4, 4])
    assert first == writer.write(prompts, sampled, [4, 0, 0])
    assert len({written.text for written in first}) == 3
    assert first != writer.write(prompts, sampled, [5, 4, 4])
    assert not any(written.ended for written in first)


def test_a_batch_at_temperature_0_says_what_each_prompt_gets_alone(writer):
    asked = ["What is the capital of France?", "Say hello."]
    prompts = [answer_prompt(writer.marks, one, writer.system) for one in asked]
    sampled = Sampled(most=12, temperature=0.0)
    together = writer.write(prompts, sampled, [0, 0])
    tokenizer = writer.tokenizer
    for prompt, written in zip(prompts, together, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, allowed_special="all")])
        alone = generate(writer.model, ids, 12, 512, eos_id=tokenizer.eot_token)
        assert written.text == tokenizer.decode(alone[0, ids.shape[1] :].tolist())
    assert together[0] == WrittenText("The capital of France is Paris.", True)


def test_tokens_are_drawn_by_their_probabilities():
    logits = torch.tensor([0.6, 0.3, 0.1]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_tokens(logits, Sampled(temperature=1.0), generator)
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03)
    assert set(draw_tokens(logits, Sampled(top_p=0.5), generator).tolist()) == {0}
    assert set(draw_tokens(logits, Sampled(temperature=0.0)).tolist()) == {0}


# --- A real server --------------------------------------------------------------------


def test_a_real_server_writes_a_question_into_an_empty_turn_and_answers_it(writer):
    """The chat interface of the same server cannot: it answers the empty message."""
    with llama_cpp() as address:
        prompt = empty_prompt(writer.marks, writer.system, "What is")
        ids = post(
            address,
            "/tokenize",
            {"content": prompt, "add_special": True, "parse_special": True},
        )["tokens"]
        assert ids == writer.tokenizer.encode(prompt, allowed_special="all")
        there = ServerWriter(
            address + "/v1/completions", "smollm2", "chatml", writer.system, retries=0
        )
        sampled = Sampled(most=24, temperature=0.8, top_p=0.95)
        (first,) = there.write([prompt], sampled, [3])
        assert [first] == list(there.write([prompt], sampled, [3]))
        assert first.text.strip()
        assert first.text.rstrip().endswith("?") or not first.ended
        capital = "What is the capital of France?"
        asked = answer_prompt(writer.marks, capital, writer.system)
        (answer,) = there.write([asked], Sampled(16, temperature=0.0), [1])
        chat_url = address + "/v1/chat/completions"
        by_chat = query_model(capital, "smollm2", chat_url, retries=0)  # 24 tokens
        assert by_chat.startswith(answer.text.strip())  # the same ids, the same words
        assert len(answer.text.strip()) > 10
        (cut,) = there.write([asked], Sampled(3, temperature=0.0), [1])
        assert not cut.ended
        assert query_model("", "smollm2", chat_url, retries=0) != first.text
