"""A page on which a model answers, and remembers what was said.

    python3 -m course run ch07/06_user_interface/app.py

It says at which address, and how to stop it. It offers SmolLM2 as it was published and
the models that you have tuned; `--model`, once or several times, chooses: a name, or
the folder of a model that `gpt_instruction_finetuning.py` wrote.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import mistune

import openai_api
import page_models
import page_server
import script_tools
from conversation import Turn, fitting, rendered
from course import paths
from gpt_instruction_finetuning import load_tuned
from openai_api import choice_in, number_in, texts_in
from page_models import Shelf
from page_server import Refused, page_app
from writer import End, Token

PAGE = Path(page_server.__file__).parent / "page"
TUNED = "tuned.safetensors"
DEFAULTS = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 128}
DEFAULTS |= {"seed": 123}
MOST_TURNS = 100

# What users and models write is text: HTML in it is shown, and not obeyed.
as_html = mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])


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
        else:
            raise ValueError(
                f"{name!r} is neither smollm2-135m nor a folder with {TUNED}: train a "
                "model with gpt_instruction_finetuning.py first."
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
    writer.style = style
    return writer


def turns_in(question, tokenizer):
    """What was said before, as the page sent it."""
    said = question.get("turns") or []
    if not isinstance(said, list) or len(said) > MOST_TURNS:
        raise Refused(f"turns must be a list of at most {MOST_TURNS}: begin anew.")
    return [_turn(one, tokenizer) for one in said]


def _turn(one, tokenizer):
    asked = texts_in(one, "question", most=1) if isinstance(one, dict) else ()
    if not asked:
        raise Refused("A turn must have a question, and the ids of its answer.")
    ids = ids_in(one.get("ids"), tokenizer)
    # The end of an answer is for the model to say: no turn brings one along.
    return Turn(asked[0], [token for token in ids if token != tokenizer.eot_token])


def ids_in(found, tokenizer):
    """Token ids that the page sent back."""
    ids = found if isinstance(found, list) else [None]
    if not all(type(token) is int and 0 <= token < tokenizer.n_vocab for token in ids):
        raise Refused("An answer must be a list of token ids.")
    return ids


def answer(shelf):
    """What makes of a question the function that starts its answer."""

    def ask(question):
        name = shelf.check(question.get("model"))
        texts = texts_in(question, "question", most=1)
        if not texts or not texts[0].strip():
            raise Refused("There is no question: write one.")
        most = openai_api.MOST_NEW_TOKENS
        length = number_in(question, "max_new_tokens", 128, 1, most)
        choice_in(question, "cpu", None, **DEFAULTS)

        def start():
            writer = shelf.get(name)
            device = writer.model.tok_emb.weight.device
            tokenizer = writer.tokenizer
            turns = turns_in(question, tokenizer)
            room = max(1, writer.context_size - length)
            begun = ids_in(question.get("begun") or [], tokenizer)
            room = max(1, room - len(begun))
            ids, left_out = fitting(turns, texts[0], tokenizer, writer.style, room)
            sampling = choice_in(question, device, tokenizer.eot_token, **DEFAULTS)
            if tokenizer.eot_token in begun:  # the reader took the end
                steps = iter([End("", "end", 0, 0, 0)])
            else:
                steps = writer.start([*ids, *begun], length, sampling)
            return with_markup(steps, tokenizer.decode(begun), left_out)

        return start

    return ask


def with_markup(steps, text, left_out):
    """The steps of an answer; before them what was left out, at the end its HTML.

    `text` is what the answer begins with.
    """
    if left_out:
        yield LeftOut(left_out)
    for step in steps:
        if isinstance(step, (Token, End)):
            text += step.text
        if isinstance(step, End):
            yield Markup(as_html(text.strip()))
        yield step


def make_app(shelf, is_open=False):
    """The server of this page, and of other programs."""

    def about():
        return {
            "kind": "chat",
            "models": shelf.listed(),
            "defaults": DEFAULTS,
            "most_new_tokens": openai_api.MOST_NEW_TOKENS,
        }

    app = page_app(PAGE, answer(shelf), about, openai_api.DOORS, is_open=is_open)
    app.settings |= {
        "shelf": shelf,
        "encode": page_models.encode,
        "render": lambda writer, messages: rendered(
            messages, writer.tokenizer, writer.style
        ),
    }
    return app


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
    app = make_app(shelf, is_open=options.host not in page_server.HERE)
    page_server.serve(app, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
