"""A page on which a model goes on with a text.

    python3 -m course run ch05/06_user_interface/app.py

It says at which address, and how to stop it. `--model`, a name or a folder, once or
several times, chooses what it offers: by default every model of the course that is on
this machine, and those that you have trained.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import openai_api
import page_models
import page_server
import script_tools
from openai_api import choice_in, number_in, texts_in
from page_models import Shelf, offered
from page_server import Refused, page_app

PAGE = Path(__file__).parent / "page"
DEFAULTS = {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "max_new_tokens": 60}
DEFAULTS |= {"seed": 123}


def continue_text(shelf):
    """What makes of a question the function that starts its answer."""

    def ask(question):
        name = shelf.check(question.get("model"))
        texts = texts_in(question, "text", most=1)
        if not texts or not texts[0]:
            raise Refused("There is no text to go on with: write a word.")
        most = openai_api.MOST_NEW_TOKENS
        length = number_in(question, "max_new_tokens", 60, 1, most)
        choice_in(question, "cpu", None, **DEFAULTS)

        def start():
            writer = shelf.get(name)
            device = writer.model.tok_emb.weight.device
            eos_id = writer.tokenizer.eot_token
            sampling = choice_in(question, device, eos_id, **DEFAULTS)
            ids = page_models.encode(writer.tokenizer, texts[0])
            return writer.start(ids, length, sampling)

        return start

    return ask


def make_app(shelf, is_open=False):
    """The server of this page, and of other programs."""

    def about():
        return {
            "kind": "continue",
            "models": shelf.listed(),
            "defaults": DEFAULTS,
            "most_new_tokens": openai_api.MOST_NEW_TOKENS,
        }

    app = page_app(PAGE, continue_text(shelf), about, openai_api.DOORS, is_open=is_open)
    app.settings |= {
        "shelf": shelf,
        "encode": page_models.encode,
        "render": page_models.render,
    }
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="Serve a page on which a model goes on with a text."
    )
    page_models.add_options(parser, port=8765)
    return script_tools.run(_run, script_tools.parse(parser, arguments))


def _run(options):
    load = functools.partial(page_models.load_writer, int8=options.int8)
    shelf = Shelf(offered(options.model), load)
    app = make_app(shelf, is_open=options.host not in page_server.HERE)
    page_server.serve(app, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
