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

import page_models
import page_server
import script_tools
from model_config import end_tokens
from openai_api import RANGES, choice_in, ids_in, number_in, texts_in
from page_models import Shelf, go_on, model_app, offered
from page_server import Refused

DEFAULTS = {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "max_new_tokens": 60}
DEFAULTS |= {"seed": 123}


def continue_text(shelf):
    """What makes of a question the function that starts its answer."""

    def ask(question):
        name = shelf.check(question.get("model"))
        texts = texts_in(question, "text", most=1)
        if not texts or not texts[0]:
            raise Refused("There is no text to go on with: write a word.")
        most = "max_new_tokens"
        length = number_in(question, most, DEFAULTS[most], *RANGES[most])
        choice_in(question, "cpu", None, **DEFAULTS)

        def start():
            writer = shelf.get(name)
            device = writer.model.tok_emb.weight.device
            ends = end_tokens(writer.tokenizer)
            sampling = choice_in(question, device, ends, **DEFAULTS)
            ids = page_models.encode(writer.tokenizer, texts[0])
            begun = ids_in({"begun": [], **question}, "begun", writer.tokenizer)
            return go_on(writer, ids, begun, length, sampling)

        return start

    return ask


def make_app(shelf, is_open=False):
    """The server of this page, and of other programs."""
    return model_app("continue", continue_text(shelf), shelf, DEFAULTS, is_open=is_open)


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
    for name in shelf.titles if options.model else ():
        shelf.get(name)  # a folder without a model is told now
    app = make_app(shelf, is_open=options.host not in page_server.HERE)
    page_server.serve(app, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
