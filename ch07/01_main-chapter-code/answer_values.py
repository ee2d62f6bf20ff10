"""What numbers, units, dates and times in a text say (chapter 7): support for scoring.

A reply may write a number in many ways. Here they are read as values, so that
`answer_scores_v2` compares what is meant and not how it is spelt.

>>> [str(value) for _, value in numbers_in("2 000 litres, .8 m, 7 1/2 or twenty-one")]
['2000', '4/5', '15/2', '21']
>>> [value for _, value in dates_in("January 10th, 2026, at 9:40")]
[(2026, 1, 10), (9, 40)]
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from answer_scores import plain_text

MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_SMALL = {
    "zero": 0,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "thirteen": 13,
    "fourteen": 14,
    "fifteen": 15,
    "sixteen": 16,
    "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
_LARGE = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_WORD = "(?:" + "|".join([*_SMALL, *_LARGE]) + ")"
_NUMBER = re.compile(
    rf"""(?<![\w.:/]) (?<!\d[,-]) (?:
        (?P<whole> \d+[ ])? (?P<top> \d)/(?P<bottom> [2-9]) (?![\d/])
      | (?P<digits>
            -? (?: \d{{1,3}} (?:[, '] \d{{3}})+ (?!\d) | \d+ )? (?:[.,]\d+)? (?<=\d)
        ) (?![:/]?\d)
      | (?P<words>
            (?: half | {_WORD})
            (?: [ -]+ (?:and[ -]+)? (?:a[ -]+)? (?: {_WORD} | point | half))*
        ) \b
    )""",
    re.VERBOSE,
)
_UNITS = {
    name: names[0]
    for names in (
        ("mm", "millimetre", "millimeter"),
        ("cm", "centimetre", "centimeter"),
        ("m", "metre", "meter"),
        ("km", "kilometre", "kilometer"),
        ("ml", "millilitre", "milliliter"),
        ("l", "litre", "liter"),
        ("mg", "milligram"),
        ("g", "gram", "gramme"),
        ("kg", "kilogram", "kilo"),
        ("t", "ton", "tonne"),
        ("s", "second", "sec"),
        ("min", "minute"),
        ("h", "hour"),
        ("day",),
        ("week",),
        ("euro", "eur", "\u20ac"),
        ("cent",),
        ("dollar", "$"),
        ("pound", "\u00a3"),
        ("inch", "inche"),
        ("foot", "feet"),
        ("\u00b0c", "celsius"),
        ("\u00b0f", "fahrenheit"),
    )
    for name in names
}
UNIT = r"(?:square |cubic |degrees )?([a-z\u20ac$\u00a3\u00b0]+)"


def value_of_words(words: str) -> Fraction:
    """The number that words name.

    >>> value_of_words("two hundred and fifty"), value_of_words("zero point two five")
    (Fraction(250, 1), Fraction(1, 4))
    """
    whole, _, decimals = words.partition("point")
    total = current = Fraction(0)
    for word in re.findall(r"[a-z]+", whole):
        if word in _SMALL:
            current += _SMALL[word]
        elif word == "half":
            current += Fraction(1, 2)
        elif word == "hundred":
            current = max(current, 1) * 100
        elif word in _LARGE:
            total, current = total + max(current, 1) * _LARGE[word], Fraction(0)
    places = [_SMALL.get(word, 0) for word in re.findall(r"[a-z]+", decimals)]
    return (
        total + current + sum(Fraction(d, 10**i) for i, d in enumerate(places, start=1))
    )


def value_of_digits(digits: str) -> Fraction:
    """The number that digits name; a comma before three digits parts thousands.

    >>> [str(value_of_digits(d)) for d in ("2 000", "2,000", "0,25", ".8", "-8")]
    ['2000', '2000', '1/4', '4/5', '-8']
    """
    digits = re.sub(r"[ ']", "", digits)
    if re.fullmatch(r"-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", digits):
        digits = digits.replace(",", "")
    return Fraction(digits.replace(",", "."))


def numbers_in(text: str) -> Iterator[tuple[re.Match, Fraction]]:
    """The numbers of a text without capitals, in digits or in words."""
    for match in _NUMBER.finditer(text):
        if match["words"]:
            yield match, value_of_words(match["words"])
        elif match["digits"]:
            yield match, value_of_digits(match["digits"])
        elif match["top"] < match["bottom"]:  # 1/2 or 7 1/2, but 6/3 is a question
            part = Fraction(int(match["top"]), int(match["bottom"]))
            yield match, int(match["whole"] or 0) + part


def number_alone(answer: str) -> Fraction | None:
    """The number that an answer is, perhaps with a unit; None for anything else.

    Not 0005 or 7.50: there the digits themselves are asked for.
    """
    answer = re.sub(r"^an? ", "", plain_text(answer, exact=False))
    found = list(numbers_in(answer))
    if len(found) != 1:
        return None
    match, value = found[0]
    plain = not re.search(r"(?<![\d.,])0\d|\.\d*0$", match[0])
    rest = answer[: match.start()] + answer[match.end() :]
    return value if plain and (not rest.strip() or unit_of(rest.strip())) else None


def unit_of(word: str) -> str | None:
    """The unit that a word names, or None."""
    return _UNITS.get(word) or _UNITS.get(word.rstrip("s"))


def unit_asked_for(question: str, answer: str) -> str | None:
    """The unit in which a question asks for a number, or that of the answer."""
    question = question.casefold()
    for before in (r"how many ", r"\b(?:into|to|in) "):
        found = [unit_of(name) for name in re.findall(before + UNIT, question)]
        found = [unit for unit in found if unit]
        if found:
            return found[-1]
    return unit_of(answer.split()[-1])


_MONTH = "(?P<month> " + "|".join(MONTHS) + ")"
_DATE = re.compile(
    rf"""\b (?P<day> \d{{1,2}}) (?:st|nd|rd|th)? (?:[ ]of)? [ ] {_MONTH}
        (?: ,?[ ] (?P<year> \d{{4}}) )? \b
      | \b {_MONTH.replace("month", "month_2")} [ ] (?:the[ ])?
        (?P<day_2> \d{{1,2}}) (?:st|nd|rd|th)? \b (?: ,?[ ] (?P<year_2> \d{{4}}) \b )?
      | \b (?P<iso> \d{{4}}-\d\d-\d\d) \b
      | (?<![\d.:]) (?P<hour> \d{{1,2}}) [.:] (?P<minute> \d\d) (?![\d:]|\.\d)
        (?: [ ]? (?P<half> [ap])\.?m\b )?
      | (?<![\d.:]) (?P<hour_2> \d{{1,2}}) [ ]? (?P<half_2> [ap])\.?m\b""",
    re.VERBOSE,
)


def dates_in(text: str) -> list[tuple[re.Match, tuple[int, ...]]]:
    """The dates and times of a text.

    Returns:
        Pairs of a match and (year, month, day), the year 0 if there is none, or
        (hour, minute) by the 24-hour clock.
    """
    found = []
    for match in _DATE.finditer(text.casefold()):
        if match["iso"]:
            value = tuple(map(int, match["iso"].split("-")))
        elif match["month"] or match["month_2"]:
            month = MONTHS.index(match["month"] or match["month_2"]) + 1
            year, day = match["year"] or match["year_2"], match["day"] or match["day_2"]
            value = int(year or 0), month, int(day)
        else:
            hour, half = match["hour"] or match["hour_2"], match["half"]
            later = {"a": -12, "p": 12}.get(half or match["half_2"] or "", 0)
            hours = int(hour) % 12 + max(later, 0) if later else int(hour)
            value = hours, int(match["minute"] or 0)
        found.append((match, value))
    return found
