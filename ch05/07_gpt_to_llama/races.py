"""Contestants that continue a text in turns, and whose seconds are compared: support.

Nothing here is taught. The folders' `experiments.py` measure with it: our models, those
of the package transformers, and llama.cpp (package xllamacpp) on a file.

>>> seconds = {"ours": [2.0, 3.0, 2.0], "theirs": [1.0, 1.0, 4.0]}
>>> ratio(seconds, "ours", "theirs")  # how many times as fast, the median of rounds
0.5
"""

import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpt import generate_text_simple
from kv_cache import KVCache


def by_ours(model: nn.Module) -> Callable[[Tensor, int], Tensor]:
    """How one of our models continues ids, with a cache."""

    def run(idx, new_tokens):
        cache = KVCache(model.cfg["n_layers"])
        context = model.cfg["context_length"]
        return generate_text_simple(model, idx, new_tokens, context, cache=cache)

    return run


def by_transformers(theirs: Any) -> Callable[[Tensor, int], Tensor]:
    """How a model of transformers continues ids."""

    def run(idx, new_tokens):
        return theirs.generate(
            idx,
            attention_mask=torch.ones_like(idx),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def by_llama_cpp(
    path: str | Path, threads: int
) -> Callable[..., list[dict[int, float]]]:
    """How llama.cpp continues ids, on the file itself.

    It works in a process of its own: beside the threads that it keeps, PyTorch's would
    go to sleep between two products. Asked with `top`, it gives for each new token the
    log-probabilities of so many, the chosen one first: {id: log-probability}.
    """
    helper = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _start_llama_cpp, (path, threads)
    )

    def run(idx, new_tokens, top=0):
        return helper.submit(_ask_llama_cpp, idx[0].tolist(), new_tokens, top).result()

    return run


def _start_llama_cpp(path, threads):
    xllamacpp = importlib.import_module("xllamacpp")  # only who measures has it
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2048, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    _servers.append(xllamacpp.Server(params))


_servers = []  # of this process


def _ask_llama_cpp(ids, new_tokens, top):
    answer = _servers[0].handle_completions(
        {
            "prompt": ids,
            "n_predict": new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            **({"logprobs": top} if top else {}),
        }
    )
    if answer["usage"]["completion_tokens"] != new_tokens:
        raise RuntimeError(f"llama.cpp stopped early: {answer['usage']}.")
    told = (answer["choices"][0].get("logprobs") or {}).get("content", [])
    return [
        {one["id"]: one["logprob"] for one in [token, *token["top_logprobs"]]}
        for token in told
    ]


def race(
    runs: Mapping[str, Any], rounds: int, call: Callable[[Any], Any]
) -> dict[str, list[float]]:
    """Seconds of every round, {name: [...]}; each goes first in turn."""
    seconds = {name: [] for name in runs}
    for turn in tqdm(range(rounds), unit="round", disable=None):
        names = list(runs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            call(runs[name])
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median over the rounds of how many times as fast `name` was as `other`."""
    pairs = zip(seconds[other], seconds[name], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def speed_rows(
    seconds: Mapping[str, list[float]],
    task: str,
    tokens: int,
    against: Mapping[str, str],
    common: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """One row for each contestant; `against` says whom it is compared with."""
    for name, times in seconds.items():
        other = against.get(name)
        yield {
            "contestant": name,
            "task": task,
            "tokens": tokens,
            "median_seconds": f"{statistics.median(times):.4g}",
            "least_seconds": f"{min(times):.4g}",
            "tokens_per_second": f"{tokens / statistics.median(times):.1f}",
            "compared_with": other or "",
            "times_as_fast": f"{ratio(seconds, name, other):.2f}" if other else "",
            "rounds": len(times),
            **common,
        }
