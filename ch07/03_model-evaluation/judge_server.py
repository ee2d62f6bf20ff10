"""A judge on this machine, and which judge is asked: support.

* `LocalJudge`: SmolLM2 behind a server that speaks as Ollama and as OpenAI do, started
  here, without network or key; it misbehaves when it is told to;
* `Judge`: a server, a model and the name of the variable that holds a key. The key
  itself stays in the environment: no object, message, answer or file has it;
* `judge_from_environment`: the local one, unless the reader has named another.

>>> Judge("gpt", "https://judge.example/v1/chat/completions", key_from="MY_KEY")
Judge(model='gpt', url='https://judge.example/v1/chat/completions', key_from='MY_KEY')
"""

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gpt_instruction_finetuning import generate_answers
from instruction_data import Entry
from ollama_evaluate import compare_answers, generate_model_scores, query_model
from pretrained import load_pretrained

MODEL = "smollm2-135m"
ENGINES = ("llama.cpp", "course")
PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
FAULTS = ("busy", "broken", "garbled", "slow", "hangs up")
TOKENS = 16  # of an answer


# --- Which judge ---------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """A model behind a server, and the environment variable with the key, if any."""

    model: str
    url: str
    key_from: str = ""

    def say(self, prompt: str, **options: Any) -> str:
        """What it answers; options as in `ollama_evaluate.query_model`."""
        return query_model(prompt, self.model, self.url, **self._with_key(options))

    def grades(
        self, entries: list[Entry], results: Path | None = None, **options: Any
    ) -> list[int | None]:
        """A grade from 0 to 100 for each `model_response`, None where it gave none."""
        options = {"keep_places": True, "results": results, **self._with_key(options)}
        return generate_model_scores(entries, model=self.model, url=self.url, **options)

    def preferences(
        self, entries: list[Entry], keys: list[str], **options: Any
    ) -> dict[str, int]:
        """How often it prefers the replies in each field, as `compare_answers`."""
        options = self._with_key(options)
        return compare_answers(entries, keys, self.model, self.url, **options)

    def _with_key(self, options):
        if self.key_from and not os.environ.get(self.key_from):
            raise ValueError(
                f"The variable {self.key_from} is not set: put your key into it before "
                "you start Jupyter, or name the variable that holds it."
            )
        key = os.environ[self.key_from] if self.key_from else None
        return {**options, "api_key": key}


def judge_from_environment(local: Judge) -> Judge:
    """The judge that the reader has named, or else the local one.

    `JUDGE_URL` and `JUDGE_MODEL` name it; `JUDGE_KEY_FROM` names the variable with the
    key, if it needs one. A key in any other variable is not looked at.

    Raises:
        ValueError: there is an address and no model.
    """
    url = os.environ.get("JUDGE_URL", "").strip()
    if not url:
        return local
    model = os.environ.get("JUDGE_MODEL", "").strip()
    if not model:
        raise ValueError(
            "JUDGE_URL is set and JUDGE_MODEL is not: say which model is asked there."
        )
    return Judge(model, url, os.environ.get("JUDGE_KEY_FROM", "").strip())


# --- A judge on this machine ---------------------------------------------------------


# It ends with the process that started it, which closes its end of the pipe. Its own
# orderly end may wait for ever.
_LLAMA_CPP = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_predict = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 2048, 1, 1
params.cpuparams_batch.n_threads, params.port, params.verbosity = 1, 0, -1
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def llama_cpp(tokens: int = TOKENS) -> Iterator[str]:
    """A llama.cpp server with SmolLM2, in a process of its own: its OpenAI address.

    The process ends with the block, and also when this one ends without leaving it.

    Args:
        tokens: the most that an answer may have.

    Raises:
        ImportError: the package xllamacpp is missing.
        RuntimeError: the server did not start.
    """
    from course.assets import fetch

    if importlib.util.find_spec("xllamacpp") is None:
        raise ImportError(
            "xllamacpp is missing: python3 -m pip install -r requirements-test.txt, in "
            'the course\'s folder, or take the engine "course".'
        )
    command = [sys.executable, "-c", _LLAMA_CPP, str(fetch(MODEL)), str(tokens)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        encoding="utf-8",
        start_new_session=True,  # Jupyter's stop button is not meant for it
    ) as process:
        try:
            said = process.stdout or ()
            address = next((line for line in said if line.startswith("http")), "")
            if not address:
                raise RuntimeError(
                    "llama.cpp's server did not start: the terminal says why. Try the "
                    'engine "course".'
                )
            yield address.strip() + PATHS["openai"]
        finally:
            process.kill()


def course_speaker(tokens: int = TOKENS) -> Callable[[str], str]:
    """A function that lets the course's own SmolLM2 answer, its likeliest words."""
    model, tokenizer, _ = load_pretrained(MODEL)
    lock = threading.Lock()

    def speak(prompt):
        entry = {"instruction": prompt, "input": ""}
        with lock:  # one answer at a time
            (text,) = generate_answers(
                [entry], model, tokenizer, style="chatml", max_new_tokens=tokens
            )
        return text

    return speak


class LocalJudge:
    """A server on this machine that answers at Ollama's and at OpenAI's paths.

    Args:
        speak: what makes an answer of a prompt.
        port: 0 for any that is free.

    `faults` are misdeeds for the coming requests, in order: "busy" (429, with a
    `Retry-After` of `pause` seconds), "broken" (500), "garbled" (half an answer),
    "slow" (silent for `delay` seconds), "hangs up". `asked` counts the requests that
    it answered.
    """

    def __init__(self, speak: Callable[[str], str], port: int = 0):
        self.speak, self.faults, self.asked = speak, [], 0
        self.pause, self.delay = 1, 3.0
        handler = type("JudgeRequest", (_JudgeRequest,), {"judge": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        ).start()

    def url(self, interface: str = "openai") -> str:
        """Its address for one of the two interfaces, "ollama" and "openai"."""
        return f"http://127.0.0.1:{self.port}{PATHS[interface]}"

    def stop(self) -> None:
        """Close it; its port is free then."""
        self._server.shutdown()
        self._server.server_close()


class _JudgeRequest(BaseHTTPRequestHandler):
    judge: LocalJudge

    def do_GET(self):
        self.send(200, "A judge is here.")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.judge.faults.pop(0) if self.judge.faults else ""
        if fault == "busy":
            return self.send(429, "slow down", {"Retry-After": self.judge.pause})
        if fault == "broken":
            return self.send(500, "out of memory")
        if fault == "hangs up":
            self.close_connection = True
            return None
        if fault == "slow":
            time.sleep(self.judge.delay)
        text = self.judge.speak(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        answer = {"model": body["model"], "choices": [{"message": message}]}
        if self.path == PATHS["ollama"]:
            answer = {"model": body["model"], "message": message, "done": True}
        whole = json.dumps(answer)
        if not fault:
            self.judge.asked += 1
        return self.send(200, whole[: len(whole) // 2] if fault == "garbled" else whole)

    def send(self, status, text, headers=()):
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        # A client that has waited long enough is gone.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def local_judge(
    engine: str = "llama.cpp", tokens: int = TOKENS
) -> Iterator[LocalJudge]:
    """A `LocalJudge` with SmolLM2, by llama.cpp or by the course's own model.

    Args:
        engine: "llama.cpp" (package xllamacpp, fast), or "course" (no further package).
        tokens: the most that an answer may have.
    """
    if engine not in ENGINES:
        raise ValueError(f"The engine is one of {', '.join(ENGINES)}, not {engine!r}.")
    with contextlib.ExitStack() as stack:
        if engine == "llama.cpp":
            address = stack.enter_context(llama_cpp(tokens))
            speak = functools.partial(query_model, model=MODEL, url=address)
        else:
            speak = course_speaker(tokens)
        judge = LocalJudge(speak)
        stack.callback(judge.stop)
        yield judge
