"""A page on which a classifier sorts a message and says which words moved it.

    python3 -m course run ch06/04_user_interface/app.py

It says at which address, and how to stop it. It offers the classifiers that you have
trained; `--model FOLDER` chooses one. If there is none, it is trained first, as
`load-finetuned-model.ipynb` does it, which takes a few minutes, once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import page_models
import page_server
import script_tools
from course import paths, runs
from gpt_class_finetune import load_classifier
from openai_api import texts_in
from page_models import PAGE_FOLDER, Shelf
from page_server import Refused, page_app
from reasons import Reasons

TRAINED = "classifier.safetensors"


def classifiers_here(chosen):
    """Folders with a classifier, each with what to call it."""
    for name in chosen:
        if not (Path(name) / TRAINED).is_file():
            raise ValueError(
                f"{name!r} is no folder with {TRAINED}: train a classifier with "
                "gpt_class_finetune.py first."
            )
    folders = [Path(name).resolve() for name in chosen] or [
        file.parent for file in sorted(paths.runs_dir().glob(f"*/{TRAINED}"))
    ]
    folders = folders or [runs.get("ch06-classifier")]
    return {str(folder): folder.name for folder in folders}


def load_reasons(name):
    """A classifier that says why."""
    model, tokenizer, labels, max_length = load_classifier(
        Path(name) / TRAINED, script_tools.device()
    )
    return Reasons(model, tokenizer, max_length, labels)


def sort_message(shelf):
    """What makes of a question the function that starts its answer."""

    def ask(question):
        name = shelf.check(question.get("model"))
        texts = texts_in(question, "message", most=1)
        if not texts or not texts[0].strip():
            raise Refused("There is no message: write one.")
        return lambda: shelf.get(name).start(texts[0])

    return ask


def make_app(shelf, is_open=False):
    """The server of this page."""

    def about():
        return {"kind": "classify", "models": shelf.listed(), "defaults": {}}

    return page_app(PAGE_FOLDER, sort_message(shelf), about, is_open=is_open)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="Serve a page that sorts messages."
    )
    page_models.add_options(parser, port=8766, int8=False)
    return script_tools.run(_run, script_tools.parse(parser, arguments))


def _run(options):
    shelf = Shelf(classifiers_here(options.model), load_reasons)
    app = make_app(shelf, is_open=options.host not in page_server.HERE)
    page_server.serve(app, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
