"""Whether tokens are words: what the check of exercise 2.4 asks of each of them.

>>> _is_inside_a_word("'"), _is_inside_a_word(" ")
(True, False)
"""

import re
import unicodedata


def expect_words_whole(tokens: list[str], text: str) -> None:
    """Raise `AssertionError` if two neighbouring letters are in different tokens."""
    from course.exercises import expect

    end = 0
    for token in tokens[:-1]:
        end += len(token)
        expect(
            not (text[end - 1].isalpha() and text[end].isalpha()),
            f"a word is cut between {ascii(text[end - 1])} and {ascii(text[end])}; "
            "letters that stand together belong to one token, in every script",
        )


def expect_one_word(token: str) -> None:
    """Raise `AssertionError` if a token holds two words, or a word and a mark."""
    from course.exercises import expect

    letter = r"[^\W\d_]"
    gaps = rf"(?<={letter})(?:(?!{letter}).)+(?={letter})"
    for between in re.findall(gaps, token, re.DOTALL):
        expect(
            _is_inside_a_word(between),
            f"the token {ascii(token)} holds more than one word",
        )
    expect(
        not re.search(rf"{letter}\s*[.,?]|[.,?]\s*{letter}", token),
        f"the token {ascii(token)} holds a word together with a punctuation mark",
    )


def _is_inside_a_word(between):
    """Whether letters on both sides of these characters may be one word."""
    # Marks change the letter before them; joiners (Cf) stand inside words, too.
    kinds = [unicodedata.category(character)[0] for character in between]
    rest = "".join(c for c, kind in zip(between, kinds) if kind not in "MN")
    rest = "".join(c for c in rest if c != "_" and unicodedata.category(c) != "Cf")
    return rest in ("", "'", "-", "\u2019", "\u2010")
