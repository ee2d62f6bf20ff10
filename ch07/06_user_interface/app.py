"""A page on which a model answers, and remembers what was said.

    python3 -m course run ch07/06_user_interface/app.py

It says at which address, and how to stop it. It offers SmolLM2 as it was published and
the models that you have tuned; `--model`, once or several times, chooses: a name, or a
folder, of a model that `gpt_instruction_finetuning.py` wrote or of a published one that
was tuned to answer, such as Qwen3.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import mistune

import page_models
import page_server
import script_tools
from conversation import Turn, fitting, rendered
from course import paths
from gpt_instruction_finetuning import load_tuned
from model_config import end_tokens
from openai_api import RANGES, choice_in, ids_in, number_in, texts_in
from page_models import Begun, Shelf, go_on, model_app
from page_server import Refused
from writer import End, Token

TUNED = "tuned.safetensors"
DEFAULTS = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 128}
DEFAULTS |= {"seed": 123}
MOST_TURNS = 100  # that are read: those before them are left out


def classes_for_styles(markdown):
    """A plugin: a column is aligned by a class, since the page allows no styles."""
    if markdown.renderer is not None:
        markdown.renderer.register("table_cell", table_cell)


def table_cell(renderer, text, align=None, head=False):
    """A cell of a table as HTML."""
    name, aligned = "th" if head else "td", f' class="{align}"' if align else ""
    return f"<{name}{aligned}>{text}</{name}>\n"


# What users and models write is text: HTML in it is shown, and not obeyed.
as_html = mistune.create_markdown(
    escape=True, plugins=["table", "strikethrough", classes_for_styles]
)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """So many of the oldest turns did not fit."""

    turns: int


@dataclasses.dataclass(frozen=True)
class Markup:
    """The whole answer as HTML."""

    html: str


def chat_here(chosen):
    """Names of models that answer, each with what to call it."""
    found, runs = {}, paths.runs_dir()
    for name in chosen:
        path = Path(name).resolve()
        if (path / TUNED).is_file():
            found[str(path)] = f"your own: {path.name}"
        elif name == "smollm2-135m":
            found[name] = page_models.NAMES[name]
        elif path.exists():
            found[str(path)] = path.name
        else:
            raise ValueError(
                f"{name!r} is neither smollm2-135m nor a folder: train a model with "
                "gpt_instruction_finetuning.py first, or give the folder of one."
            )
    if found:
        return found
    for file in sorted(runs.glob(f"*/{TUNED}")):
        found[str(file.parent)] = f"your own: {file.parent.name}"
    return found | {
        name: title
        for name, title in page_models.models_here(runs).items()
        if name == "smollm2-135m"
    }


def load_chat(name, int8=False):
    """A `Writer`, with the `style` in which its model was trained."""
    if (Path(name) / TUNED).is_file():
        model, tokenizer, style = load_tuned(Path(name) / TUNED)
        writer = page_models.as_writer(model, tokenizer, int8)
    else:
        writer, style = page_models.load_writer(name, int8), "chatml"
        if not hasattr(writer.tokenizer, "render_chat"):
            raise ValueError(
                f"{name} has no chat template that the course knows, so it is not "
                f"one that answers: of your own models, give the folder with {TUNED}."
            )
    writer.style = style
    return writer


def turns_in(question, tokenizer):
    """The last of what was said before, as the page sent it."""
    said = question.get("turns") or []
    if not isinstance(said, list):
        raise Refused("turns must be a list.")
    return [_turn(one, tokenizer) for one in said[-MOST_TURNS:]]


def _turn(one, tokenizer):
    asked = texts_in(one, "question", most=1) if isinstance(one, dict) else ()
    if not asked:
        raise Refused(
            "A turn must have a question, and an answer: its ids or its text."
        )
    answered = texts_in(one, "text", most=1)
    if answered:  # of another model, whose ids mean something else
        return Turn(asked[0], tokenizer.encode_ordinary(answered[0]))
    ids = ids_in(one, "ids", tokenizer)
    # The end of an answer is for the model to say: no turn brings one along.
    ends = end_tokens(tokenizer)
    return Turn(asked[0], [token for token in ids if token not in ends])


def answer(shelf):
    """What makes of a question the function that starts its answer."""

    def ask(question):
        name = shelf.check(question.get("model"))
        texts = texts_in(question, "question", most=1)
        if not texts or not texts[0].strip():
            raise Refused("There is no question: write one.")
        most = "max_new_tokens"
        length = number_in(question, most, DEFAULTS[most], *RANGES[most])
        choice_in(question, "cpu", None, **DEFAULTS)

        def start():
            writer = shelf.get(name)
            device = writer.model.tok_emb.weight.device
            tokenizer = writer.tokenizer
            turns = turns_in(question, tokenizer)
            begun = ids_in({"begun": [], **question}, "begun", tokenizer)
            room = max(1, writer.context_size - length - len(begun))
            ids, left_out = fitting(turns, texts[0], tokenizer, writer.style, room)
            left_out += len(question.get("turns") or []) - len(turns)
            sampling = choice_in(question, device, end_tokens(tokenizer), **DEFAULTS)
            steps = go_on(writer, ids, begun, length, sampling)
            return with_markup(steps, left_out)

        return start

    return ask


def with_markup(steps, left_out):
    """The steps of an answer; before them what was left out, at the end its HTML."""
    text = ""
    if left_out:
        yield LeftOut(left_out)
    for step in steps:
        if isinstance(step, Begun):
            text = "".join(step.texts)
        if isinstance(step, (Token, End)):
            text += step.text
        if isinstance(step, End):
            yield Markup(as_html(text.strip()))
        yield step


def make_app(shelf, is_open=False):
    """The server of this page, and of other programs."""

    def render(writer, messages):
        return rendered(messages, writer.tokenizer, writer.style)

    return model_app("chat", answer(shelf), shelf, DEFAULTS, render, is_open)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="Serve a page on which a model answers."
    )
    page_models.add_options(parser, port=8767)
    return script_tools.run(_run, script_tools.parse(parser, arguments))


def _run(options):
    load = functools.partial(load_chat, int8=options.int8)
    shelf = Shelf(chat_here(options.model), load)
    for name in shelf.titles if options.model else ():
        shelf.get(name)  # a folder without such a model is told now
    app = make_app(shelf, is_open=options.host not in page_server.HERE)
    page_server.serve(app, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
