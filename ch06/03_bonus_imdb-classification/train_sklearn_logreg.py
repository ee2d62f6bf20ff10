"""Film reviews by their words: counts or TF-IDF, and a logistic regression (chapter 6).

The opponent that every model has to beat. It trains in a second, says which words it
goes by, and has no idea of their order.

>>> main(["--strength", "0"])
Traceback (most recent call last):
SystemExit: 2
"""

import sys
import time

import numpy as np
from sklearn.dummy import DummyClassifier

import script_tools
from message_ways import letter_regression, word_regression
from review_script import films_of, read_options, read_parts, report, script_parser


def main(arguments: list[str] | None = None) -> int:
    """Train the regression and report; return the exit code."""
    parser = script_parser(
        "train_sklearn_logreg.py",
        "Sort film reviews by their words with a logistic regression.",
        "ch06-reviews-words",
    )
    letters = "TF-IDF of words, pairs of words and runs of letters, not counts of words"
    parser.add_argument("--letters", action="store_true", help=letters)
    strength = "strength of the weights with --letters (%(default)s)"
    rate = script_tools.positive_float
    parser.add_argument("--strength", type=rate, default=10.0, help=strength)
    return script_tools.run(_train, read_options(parser, arguments))


def _train(options):
    train, validation, test = read_parts(options)
    start = time.perf_counter()
    make = letter_regression if options.letters else word_regression
    model = make((options.strength,)).fit(train["text"], train["label"])
    right = model.predict(test["text"]) == test["label"].to_numpy()
    seconds = time.perf_counter() - start
    larger = DummyClassifier().fit(train["text"], train["label"])
    print(f"The larger class: {larger.score(test['text'], test['label']):.1%}.")
    for name, part in (("training", train), ("validation", validation)):
        print(f"On the {name} part: {model.score(part['text'], part['label']):.1%}.")
    counts, weights = model[0].get_feature_names_out(), model[-1].coef_[0]
    order = np.argsort(weights)
    for name, places in (("negative", order[:8]), ("positive", order[::-1][:8])):
        print(f"Most {name}: {', '.join(repr(counts[place]) for place in places)}")
    report(right, films_of(test), options, seconds, len(weights) + 1)


if __name__ == "__main__":
    sys.exit(main())
