"""Which models a page can offer, and what pages on which they write share: support.

Nothing here is taught. A model is called as `load_pretrained` calls it, by name or by
folder; the reader's own, which the chapters' scripts wrote, are found below `runs/`.

>>> shelf = Shelf({"small": "The small one", "large": "The large one"}, load=str.upper)
>>> shelf.get("small"), shelf.default
('SMALL', 'small')
>>> shelf.check("large")
'large'
"""

import argparse
import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tornado.web

import script_tools
from argument_checks import check_runs
from checkpoints import CHECKPOINT
from dataloader import encode_text
from gpt_generate import Sampling, bytes_of
from openai_api import DOORS, RANGES
from page_server import page_app
from pretrained import load_pretrained
from writer import End, Writer

PAGE_FOLDER = Path(__file__).parent / "page"
NAMES = {
    "smollm2-135m": "SmolLM2, 135 million parameters, tuned to answer",
    "gpt2-small-124M": "GPT-2, 124 million parameters",
}


def models_here(runs: Path | None = None) -> dict[str, str]:
    """Names of models that are on this machine, each with what to call it."""
    from course import assets, paths

    found = {n: title for n, title in NAMES.items() if assets.status(n) == "present"}
    runs = runs or paths.runs_dir()
    for file in sorted(runs.glob(f"*/{CHECKPOINT}")) + sorted(
        runs.glob(f"*/best/{CHECKPOINT}")
    ):
        place = file.parent.relative_to(runs).as_posix()
        found[str(file.parent)] = f"your own: {place}"
    return found


def add_options(parser: argparse.ArgumentParser, port: int, int8: bool = True) -> None:
    """The options that all pages share."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        default=[],
        help="a model to offer, by name or folder; may come several times "
        "(all that are on this machine)",
    )
    if int8:
        add("--int8", action="store_true", help="8-bit weights: faster, a little worse")
    add("--host", default="127.0.0.1", help="who may ask: this machine (%(default)s)")
    add("--port", type=_port, default=port, help="(%(default)s)")


def _port(text):
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 65535")
    return int(text)


def load_writer(name: str, int8: bool = False) -> Writer:
    """The model with that name as a `Writer`.

    Raises:
        ValueError: as `load_pretrained`.
    """
    model, tokenizer, _ = load_pretrained(name, script_tools.dtype())
    return as_writer(model, tokenizer, int8)


def as_writer(model: Any, tokenizer: Any, int8: bool = False) -> Writer:
    """A `Writer` where the reader computes; with 8-bit weights on the CPU."""
    if int8:
        from fast_copies import quantise_int8

        return Writer(quantise_int8(model), tokenizer)
    return Writer(model.to(script_tools.device()), tokenizer)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text to go on with, as `gpt_generate.py` reads its prompts."""
    check_runs(text)
    if hasattr(tokenizer, "render_chat"):
        start = [tokenizer.bos_token] if hasattr(tokenizer, "bos_token") else []
        return start + tokenizer.encode(text, disallowed_special=())
    return encode_text(text, tokenizer)


def render(writer: Writer, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a conversation, up to where the answer begins.

    Raises:
        ValueError: the model was not trained to chat.
    """
    if not hasattr(writer.tokenizer, "render_chat"):
        raise ValueError(
            "This model was not trained to chat: ask it for a completion, "
            "/v1/completions, or take smollm2-135m."
        )
    for message in messages:
        check_runs(message["content"])
    return writer.tokenizer.render_chat(messages)


@dataclass(frozen=True)
class Begun:
    """What the tokens with which an answer begins show, each in its place."""

    texts: tuple[str, ...]


def go_on(
    writer: Writer, ids: list[int], begun: list[int], length: int, sampling: Sampling
) -> Iterator[Any]:
    """The steps of an answer that begins with tokens which its reader chose.

    If there are any, `Begun` comes first. If one of them is an end token, the answer
    ends there.

    Raises:
        ValueError: as `Writer.start`.
    """
    ends = [place for place, token in enumerate(begun) if token in sampling.ends]
    ended = bool(ends)
    kept = begun[: ends[0]] if ended else begun
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(bytes_of(token, writer.tokenizer)) for token in kept]
    if ended:
        texts.append("")
        rest = decoder.decode(b"", final=True)
        steps = iter([End(rest, "end", known=0, read=0, written=0)])
    else:
        steps = writer.start(ids, length, sampling, begun=kept)
    return _after(Begun(tuple(texts)), steps) if texts else steps


def _after(first, steps):
    yield first
    yield from steps


class Shelf:
    """Models by name; the one that was asked last is in memory.

    Args:
        titles: what each is called, by its name.
        load: makes something of a name; called in the model's thread, when needed.
    """

    def __init__(self, titles: Mapping[str, str], load: Callable[[str], Any]):
        if not titles:
            raise ValueError(
                "There is no model on this machine: run `python3 -m course setup`, or "
                "name a folder with --model."
            )
        self.titles, self._load = dict(titles), load
        self._name, self._loaded = "", None

    @property
    def default(self) -> str:
        """The name that comes first."""
        return next(iter(self.titles))

    def check(self, name: object) -> str:
        """The name, or the default for None; `ValueError` for one that is not here."""
        name = self.default if name is None else name
        if not isinstance(name, str) or name not in self.titles:
            from course.toml_tables import unknown

            raise ValueError(f"{unknown('model', str(name), self.titles)}.")
        return name

    def get(self, name: str) -> Any:
        """What was loaded for a name, loaded now if it is another than the last."""
        if name != self._name:
            self._name, self._loaded = "", None  # the old one goes before the new comes
            self._loaded = self._load(self.check(name))
            self._name = name
        return self._loaded

    def listed(self) -> list[dict[str, str]]:
        """The models for the page, the default first."""
        return [{"name": n, "title": title} for n, title in self.titles.items()]


def offered(chosen: Iterable[str]) -> dict[str, str]:
    """The models to offer: those chosen, or all that are here.

    Raises:
        ValueError: one that was chosen has no name that is known, and no such folder is
            there.
    """
    here, found = models_here(), {}
    for name in chosen:
        path = Path(name)
        if name not in NAMES and not path.exists():
            raise ValueError(f"There is no model or folder {name!r}.")
        name = name if name in NAMES else str(path.resolve())
        found[name] = here.get(name) or NAMES.get(name) or path.name
    return found or here


def model_app(
    kind: str,
    ask: Callable[[dict[str, Any]], Callable[[], Iterator]],
    shelf: Shelf,
    defaults: Mapping[str, float],
    render: Callable[[Writer, list[dict[str, str]]], list[int]] = render,
    is_open: bool = False,
) -> tornado.web.Application:
    """The server of a page on which a model writes, and of other programs.

    Args:
        kind: of page, the name of its script.
        ask: as for `page_app`.
        shelf: with a `Writer` for each name.
        defaults: the settings of the page before its reader changes them.
        render: makes token ids of the messages that another program sends.
        is_open: as for `page_app`.
    """

    def about():
        models = shelf.listed()
        return {"kind": kind, "models": models, "defaults": defaults, "ranges": RANGES}

    app = page_app(PAGE_FOLDER, ask, about, DOORS, is_open=is_open)
    app.settings |= {"shelf": shelf, "encode": encode, "render": render}
    return app
