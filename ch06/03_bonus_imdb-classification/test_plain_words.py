"""Plain words are counted as words, and a sign counts only if it was learned."""

import numpy as np

from message_ways import word_regression
from plain_words import BAD, GOOD, describe, told, votes


def test_the_lists_have_no_word_in_common():
    assert not GOOD & BAD
    assert all(word == word.lower() for word in GOOD | BAD)


def test_votes_count_words_and_not_parts_of_words():
    assert votes("Great! GREAT, and not boring.") == (2, 1)
    assert votes("A greatly badgered fund.") == (0, 0)
    assert votes("") == (0, 0)


def test_a_sign_is_told_only_if_it_was_learned_and_is_right():
    """Here "great" was met with blame, "awful" not at all."""
    texts = ["a great bore", "a dull bore", "a fine thing", "a nice thing"]
    model = word_regression(()).fit(texts, [0, 0, 1, 1])
    assert told(model) == {"dull", "fine", "nice"}
    rows = describe(["Great.", "Awful thing.", "A nice, great bore."], [model, model])
    assert [row["told"] for row in rows] == ["00", "00", "11"]
    assert [row["known"] for row in rows] == ["1.00", "0.50", "1.00"]
    assert [row["good"] - row["bad"] for row in rows] == [1, -1, 2]


def test_a_text_without_words_is_described():
    model = word_regression(()).fit(["a fine film", "a dull film"], [1, 0])
    (row,) = describe(["! ?"], [model])
    assert (row["known"], row["told"], row["words"]) == ("0.00", "0", 2)
    assert np.isfinite(float(row["known"]))
