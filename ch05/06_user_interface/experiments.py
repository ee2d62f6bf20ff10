"""Is anybody lost when twenty ask at once, and what would a step for several cost?

    python3 -m course run ch05/06_user_interface/experiments.py

The model computes in one thread. Clients, a process of their own, have the other core.

* `load.csv`: the page's own server, in a process of its own, and 20 clients that ask it
  without pause for four minutes; then all who wait are served. Of ten questions six are
  read to the end, three are stopped after some tokens, and one is given up in the line.
  The server is asked SmolLM2, SmolLM2 with weights in 8 bits, and a small model of
  random weights, which is asked some thousand questions in that time;
* `memory.csv`: the memory that the server holds meanwhile, once a second; in
  `load.csv` stands how much it grew a minute in the second half, by least squares;
* `steps.csv`: how long SmolLM2 takes to write one token for each of several texts.

What is asked comes from the course's story, and each question has a number, by which
the steps that the server has begun are found again. It takes about a quarter of an
hour.
"""

import contextlib
import functools
import http.client
import itertools
import json
import random
import re
import runpy
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import tiktoken
import torch

from course import tables
from course.assets import fetch
from kv_cache import KVCache
from page_models import Shelf, load_writer
from page_server import running
from script_tools import positive_int
from small_models import small_configs, small_model
from variants import take_turns, times_as_fast
from writer import Writer

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
SMALL = "a small one, random"
MODELS = ("SmolLM2", "SmolLM2 in 8 bits", SMALL)
PATIENCE = 300  # seconds without a byte, after which a question counts as lost
TABLES = ("load", "steps")


# --- The server, in a process of its own ----------------------------------------------


def make_writer(name):
    if name != SMALL:
        return load_writer("smollm2-135m", int8=name != MODELS[0])
    cfg = small_configs(context_length=400, vocab_size=50_257)["Llama"]
    return Writer(small_model(cfg), tiktoken.get_encoding("gpt2"))


def watch(writer):
    """When each step of an answer began, by what was asked; filled from now on."""
    begun, start = {}, writer.start

    def noted(answer, times):
        with contextlib.closing(answer):
            while True:
                times.append(time.monotonic())
                step = next(answer, None)
                if step is None:
                    return
                yield step

    def start_noted(ids, *more, **options):
        times = begun.setdefault(writer.tokenizer.decode(list(ids)), [])
        return noted(start(ids, *more, **options), times)

    writer.start = start_noted
    return begun


def serve(name):
    """Serve until a line comes in; say the address, and in the end what was begun."""
    writer = make_writer(name)
    begun = watch(writer)
    make_app = runpy.run_path(str(FOLDER / "app.py"))["make_app"]
    with running(make_app(Shelf({"model": name}, lambda _: writer))) as address:
        print(json.dumps(address), flush=True)
        sys.stdin.readline()
    print(json.dumps(begun), flush=True)


@contextlib.contextmanager
def server(name):
    """The address of a server, its process, and what ends it: `begun` of `watch`."""
    command = [sys.executable, __file__, "--serve", name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            address = json.loads(process.stdout.readline())

            def end():
                process.stdin.write("\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            yield urlsplit(address).netloc, psutil.Process(process.pid), end
        finally:
            process.kill()


# --- Those who ask --------------------------------------------------------------------


def sentences():
    text = " ".join(fetch("short-story").read_text(encoding="utf-8").split())
    return [s for s in re.split(r"(?<=[.!?]) ", text) if 20 < len(s) < 200]


def ask(address, text, length, tokens_until_stop, places_until_leaving):
    """Ask one question; what became of it."""
    found = {"text": text, "end": "lost", "places": [], "tokens": 0, "first": None}
    line = http.client.HTTPConnection(address, timeout=PATIENCE)
    question = {"text": text, "max_new_tokens": length, "temperature": 0}
    asked = time.monotonic()

    def close(end):
        found["end"] = end
        answer.close()
        line.close()
        found["closed"] = time.monotonic()

    try:
        line.request("POST", "/ask", json.dumps(question))
        answer = line.getresponse()
        for row in answer:
            event = json.loads(row[len("data: ") :]) if row.strip() else {"kind": ""}
            if event["kind"] == "waiting":
                found["places"].append(event["before"])
                if len(found["places"]) == places_until_leaving:
                    close("left")
                    break
            elif event["kind"] == "token":
                found["tokens"] += 1
                found["first"] = found["first"] or time.monotonic() - asked
                if found["tokens"] == tokens_until_stop:
                    close("stopped")
                    break
            elif event["kind"] == "end":
                found["end"] = "answered"
    except (OSError, http.client.HTTPException, ValueError) as problem:
        print(f"lost: {problem!r}", file=sys.stderr)
    line.close()
    return found


def keep_asking(address, until, client, numbers, seed, found):
    """Ask one question after the other until a time; collect what became of them."""
    rng, texts = random.Random(f"{seed} {client}"), sentences()
    while time.monotonic() < until:
        number, length = next(numbers), rng.randint(8, 24)
        text = f"Question {number}. {rng.choice(texts)}"
        stop = rng.randint(1, length // 2) if number % 10 in (3, 6, 9) else None
        leave = rng.randint(1, 3) if number % 10 == 5 else None
        found.append(ask(address, text, length, stop, leave))


def load(name, options):
    """One server and its clients; (what became of all questions, the memory)."""
    found, memory = [], []
    numbers = itertools.count(1)
    with server(name) as (address, process, end):
        ask(address, "Question 0. Once upon a time", 8, None, None)
        start = time.monotonic()
        until = start + options.seconds
        more = (numbers, options.seed, found)
        clients = [
            threading.Thread(target=keep_asking, args=(address, until, n, *more))
            for n in range(options.clients)
        ]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            megabytes = process.memory_info().rss / 1e6
            memory.append((time.monotonic() - start, megabytes))
            time.sleep(0.1 if options.tiny else 1)
        seconds = time.monotonic() - start
        begun = end()
    for one in found:
        times = begun[one["text"]] if one["tokens"] else begun.get(one["text"], [])
        one["after"] = sum(when > one.get("closed", float("inf")) for when in times)
    return found, memory, seconds


def load_table(options):
    rows, samples = [], []
    for name in [SMALL] if options.tiny else options.models:
        found, memory, seconds = load(name, options)
        ends = [one["end"] for one in found]
        waiting = [one["places"] for one in found if one["places"]]
        firsts = [one["first"] for one in found if one["first"] is not None]
        tokens = sum(one["tokens"] for one in found)
        warm = [(t, mb) for t, mb in memory if t > seconds / 2]
        slope = np.polyfit(*zip(*warm), 1)[0] if len(warm) > 1 else 0.0
        rows.append(
            {
                "model": name,
                "clients": options.clients,
                "asked_for_seconds": options.seconds,
                "asked": len(found),
                "answered": ends.count("answered"),
                "stopped": ends.count("stopped"),
                "left_the_line": ends.count("left"),
                "lost": ends.count("lost"),
                "told_a_place": len(waiting),
                "most_before": max(max(places) for places in waiting),
                "places_that_rose": sum(
                    later > place
                    for places in waiting
                    for place, later in zip(places, places[1:])
                ),
                "most_steps_after_closing": max(one["after"] for one in found),
                "tokens": tokens,
                "tokens_per_second": f"{tokens / seconds:.1f}",
                "seconds_to_first_token": f"{statistics.median(firsts):.2f}",
                "most_seconds_to_it": f"{max(firsts):.2f}",
                "megabytes": f"{statistics.median(mb for _, mb in warm):.0f}",
                "megabytes_a_minute": f"{60 * slope:.1f}",
            }
        )
        samples += [
            {"model": name, "second": f"{t:.1f}", "megabytes": f"{mb:.1f}"}
            for t, mb in memory
        ]
    yield "load", rows
    yield "memory", samples


# --- One step for several texts -------------------------------------------------------


@torch.no_grad()
def steps_table(options):
    model = make_writer(SMALL if options.tiny else MODELS[0]).model
    past, steps = (8, 2) if options.tiny else (60, 8)
    vocab, caches = model.cfg["vocab_size"], {}
    for texts in (1, 2, 4, 8):
        caches[texts] = KVCache(model.cfg["n_layers"])
        model(torch.randint(vocab, (texts, past)), cache=caches[texts])

    def write(texts):
        cache, idx = caches[texts], torch.randint(vocab, (texts, 1))
        for _ in range(steps):
            model(idx, cache=cache)
        cache.truncate(past)

    runs = {texts: functools.partial(write, texts) for texts in caches}
    seconds = take_turns(runs, options.rounds, "steps")
    rows = []
    for texts in caches:
        over_one = 1 / times_as_fast(seconds, texts, 1)
        one_step = statistics.median(seconds[texts]) / steps
        rows.append(
            {
                "texts": texts,
                "milliseconds": f"{1000 * one_step:.1f}",
                "over_one_text": f"{over_one:.2f}",
                "tokens_per_second": f"{texts / one_step:.1f}",
                "tokens_over_one_text": f"{texts / over_one:.2f}",
                "rounds": options.rounds,
            }
        )
    yield "steps", rows


# --- The run --------------------------------------------------------------------------


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    add = parser.add_argument
    add("--seconds", type=positive_int, default=240, help="of asking (%(default)s)")
    add("--clients", type=positive_int, default=20, help="(%(default)s)")
    add("--rounds", type=positive_int, default=15, help="of the steps (%(default)s)")
    add("--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)")
    add("--models", nargs="+", choices=MODELS, default=MODELS, help="to load (all)")
    add("--serve", metavar="MODEL", help="be the server of one model, for the clients")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    if options.serve:
        serve(options.serve)
        return 0
    common = tables.facts(seed=options.seed)
    for name in options.only:
        for table, rows in globals()[f"{name}_table"](options):
            path = options.out / f"{table}.csv"
            key, rows = next(iter(rows[0])), [row | common for row in rows]
            print(f"wrote {tables.replace(path, rows, key, MODELS)}")
            for row in rows if table != "memory" else []:
                print("  " + ", ".join(f"{key} {row[key]}" for key in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
