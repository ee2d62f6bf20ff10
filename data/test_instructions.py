"""The instructions and preferences of chapter 7 keep what their page promises.

Whatever can be worked out from an instruction is worked out again here, by reading its
text: sums, conversions, dates, sorted lists, formats, programs.
"""

import ast
import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from course import assets
from course.paths import ROOT

FOLDER = ROOT / "data"
SALT = "instructions-344:"
TEST_SHARE, VALIDATION_SHARE = 0.12, 0.06
EXACT = {"punctuation", "text_format", "json", "code"}
FIELDS = ["instruction", "input", "output", "answers", "category", "family", "split"]
UNSCORED = {"summaries", "definitions", "polite_rewrites"}
PARTLY_SCORED = {"similes", "code"}
PAIR_FIELDS = [
    "instruction",
    "input",
    "chosen",
    "rejected",
    "flaw",
    "category",
    "family",
    "split",
]
MONTHS = re.findall(
    r"\w+",
    "January February March April May June July August September October November "
    "December",
)
DAYS = re.findall(
    r"\w+",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
)
ORDINALS = re.findall(
    r"\w+",
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth "
    "twentieth",
)


# ------------------------------------------------------------------ reading the files


def load(name: str) -> list[dict]:
    return json.loads(assets.fetch(name).read_bytes().decode("utf-8"))


@pytest.fixture(scope="module")
def entries() -> list[dict]:
    return load("instructions")


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    return load("preferences")


def section(title: str) -> str:
    """One section of the page about the data."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def prompt(entry: dict) -> str:
    return f"{entry['instruction']}\n{entry['input']}"


def plain(text: str) -> str:
    """Text without what never decides: case, white space, punctuation."""
    return " ".join(re.findall(r"\w+|[^\w\s\"'.,?!:;()]", text.casefold()))


def accepts(entry: dict, reply: str) -> bool:
    """Whether one of the answers stands in the reply, between word boundaries."""
    flags = 0 if entry["category"] in EXACT else re.IGNORECASE
    for answer in entry["answers"]:
        end = answer if entry["category"] in EXACT else answer.rstrip(".?!")
        if re.search(rf"(?<!\w){re.escape(end)}(?!\w)", reply, flags):
            return True
    return False


def with_plain_numbers(text: str) -> str:
    """Text in which 4.50 reads 4.5, and 1,250 reads 1250: one way for each number."""
    return re.sub(
        r"\d+(,\d{3})*(\.\d+)?",
        lambda found: f"{Decimal(found[0].replace(',', '')).normalize():f}",
        text,
    )


def _is_right(entry: dict, reply: str) -> bool:
    """Whether the reply holds an answer, or the same number in other digits."""
    if entry["category"] in EXACT:
        return accepts(entry, reply)
    answers = [with_plain_numbers(answer) for answer in entry["answers"]]
    same = {**entry, "answers": answers}
    return accepts(entry, reply) or accepts(same, with_plain_numbers(reply))


def _of(entries: list[dict], *categories: str) -> list[dict]:
    found = [e for e in entries if e["category"] in categories]
    assert len(found) >= 20
    return found


# ------------------------------------------------------- form, counts, split, and leaks


def _form_errors(entry: dict) -> list[str]:
    """What is wrong with the form of one entry."""
    errors = []
    names = [name for name in FIELDS if name != "answers" or "answers" in entry]
    if list(entry) != names:
        errors.append(f"fields {list(entry)}")
    for name in names:
        value = entry.get(name)
        texts = value if name == "answers" else [value]
        if not isinstance(texts, list) or not texts:
            errors.append(f"{name} is empty")
            continue
        for text in texts:
            if not isinstance(text, str) or text != text.strip():
                errors.append(f"{name} {text!r}")
            elif not text and name != "input":
                errors.append(f"{name} is empty")
            elif any(ord(c) < 32 and c != "\n" for c in text) or "\ufffd" in text:
                errors.append(f"{name} has control characters")
    scored = "answers" in entry
    category = entry["category"]
    if category not in PARTLY_SCORED and scored == (category in UNSCORED):
        errors.append("answers are there or missing against the rule")
    if scored:
        folded = [
            a if entry["category"] in EXACT else a.casefold() for a in entry["answers"]
        ]
        if len(set(folded)) < len(folded):
            errors.append("an answer is listed twice")
        if not accepts(entry, entry["output"]):
            errors.append("its answers refuse its own output")
    return errors


def test_the_fields_are_exact_and_every_output_is_accepted(entries):
    wrong = [(e["instruction"], _form_errors(e)) for e in entries if _form_errors(e)]
    assert wrong == []


def test_the_files_are_utf_8_with_one_entry_to_a_line():
    for name in ["instructions", "preferences"]:
        content = (FOLDER / f"{name}.json").read_bytes()
        text = content.decode("utf-8")
        assert "\r" not in text
        assert not text.startswith("\ufeff")
        lines = text.removesuffix("\n]\n").removeprefix("[\n").split("\n")
        assert [json.loads(line.removesuffix(",")) for line in lines] == load(name)


def test_there_are_enough_entries_and_the_page_states_how_many(entries):
    assert len(entries) >= 1500
    counts = Counter((e["category"], e["split"]) for e in entries)
    scored = Counter(e["category"] for e in entries if "answers" in e)
    names = sorted({e["category"] for e in entries})
    assert len(names) >= 20
    rows = []
    for name in names:
        parts = [counts[name, s] for s in ["train", "validation", "test"]]
        assert min(parts) >= 1, name
        assert parts[2] >= 3, name
        rows.append(f"| {name} | {' | '.join(map(str, parts))} | {scored[name]} |")
    print(*rows, sep="\n")
    page = section("Instructions")
    for row in rows:
        assert row in page, row
    assert len(re.findall(r"^\| [a-z_]+( \| \d+){4} \|$", page, re.MULTILINE)) == len(
        rows
    )


def test_the_page_states_the_words_and_bytes_of_the_files():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ["instructions.json", "preferences.json"]:
        row = re.search(rf"^\| \[{name}\].*\| (\d+) \| (\d+) \|", page, re.MULTILINE)
        content = (FOLDER / name).read_bytes()
        assert row is not None
        assert int(row[1]) == len(content.decode("utf-8").split())
        assert int(row[2]) == len(content)


def test_there_is_enough_to_test_with(entries):
    held_out = [e for e in entries if e["split"] == "test"]
    assert len(held_out) >= 150
    assert sum("answers" in e for e in held_out) >= 110
    share = Counter(e["split"] for e in entries)["train"] / len(entries)
    assert 0.78 <= share <= 0.88


def test_outputs_are_short_enough_for_a_small_model(entries):
    lengths = [len(e["output"].split()) for e in entries]
    assert max(lengths) <= 40
    with_input = sum(bool(e["input"]) for e in entries)
    assert 0.3 * len(entries) <= with_input <= 0.8 * len(entries)


def test_no_two_categories_share_all_of_their_wording(entries):
    for name in {e["category"] for e in entries}:
        assert len({e["instruction"] for e in entries if e["category"] == name}) >= 6


def _side(family: str) -> str:
    digest = hashlib.sha256((SALT + family).encode()).hexdigest()
    place = int(digest[:8], 16) / 2**32
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def test_the_hash_of_the_family_decides_the_split(entries, pairs):
    for entry in [*entries, *pairs]:
        assert entry["split"] == _side(entry["family"]), entry["family"]


def leaks(entries: list[dict]) -> list[tuple[str, str]]:
    """Entries that are the same, or nearly so, though their families differ.

    Two prompts are near-duplicates if they share four fifths of their words; two inputs
    of at least four words (programs aside) if they share three fifths.
    """
    found = []
    wholes, inputs = [], []
    seen: set[str] = set()
    for entry in entries:
        exact = " ".join(prompt(entry).casefold().split())
        if exact in seen:
            found.append((exact, exact))
        seen.add(exact)
        wholes.append(frozenset(plain(prompt(entry)).split()))
        words = frozenset(re.findall(r"[^\W\d_]+", entry["input"].casefold()))
        few = len(words) < 4 or entry["category"] == "code"
        inputs.append(frozenset() if few else words)
    for sets, limit in [(wholes, Fraction(4, 5)), (inputs, Fraction(3, 5))]:
        top, bottom = limit.numerator, limit.denominator
        order = sorted((i for i, s in enumerate(sets) if s), key=lambda i: len(sets[i]))
        for place, i in enumerate(order):
            for j in order[place + 1 :]:
                if len(sets[i]) * bottom < top * len(sets[j]):
                    break
                shared = len(sets[i] & sets[j])
                every = len(sets[i]) + len(sets[j]) - shared
                if (
                    shared * bottom >= top * every
                    and entries[i]["family"] != entries[j]["family"]
                ):
                    found.append((prompt(entries[i]), prompt(entries[j])))
    return found


def test_nothing_is_there_twice_or_nearly_twice_in_two_families(entries):
    assert leaks(entries) == []


def test_repeating_the_question_answers_only_where_one_picks_from_it(entries):
    picking = {
        "classification",
        "extraction",
        "lists",
        "bullet_lists",
        "json",
        "odd_one_out",
        "spelling",
        "word_order",
        "text_format",
        "code",
    }
    for entry in entries:
        larger = entry["instruction"].startswith("Which is larger")
        if "answers" in entry and not larger and entry["category"] not in picking:
            assert not accepts(entry, prompt(entry)), entry["instruction"]


# ----------------------------------------------------------------- numbers in any form

SMALL = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen",
)
TENS = re.findall(
    r"\w+",
    "twenty thirty forty fifty sixty seventy eighty ninety",
)


def _spoken(words: list[str]) -> int:
    """The whole number that the words name."""
    total = group = 0
    for word in words:
        if word == "hundred":
            group *= 100
        elif word == "thousand":
            total, group = total + group * 1000, 0
        elif word in TENS:
            group += 20 + 10 * TENS.index(word)
        elif word != "and":
            group += SMALL.index(word)
    return total + group


def read_number(text: str) -> Fraction:
    """The number that a text writes in figures or in words, or a ValueError."""
    words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.casefold()).split()
    if words[0] in {"minus", "negative"}:
        return -read_number(" ".join(words[1:]))
    if words[-2:] == ["a", "half"]:
        rest = words[:-3]
        return (_spoken(rest) if rest else 0) + Fraction(1, 2)
    if words[-1] == "1/2":
        return sum((Fraction(word) for word in words), Fraction(0))
    if "point" in words:
        at = words.index("point")
        digits = "".join(str(SMALL.index(word)) for word in words[at + 1 :])
        return Fraction(f"{_spoken(words[:at])}.{digits}")
    if words[0][0].isdigit() or words[0][0] == "-":
        assert re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", text), text
        return Fraction(text.replace(",", ""))
    return Fraction(_spoken(words))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250", 1250),
        ("minus five", -5),
        ("three hundred and five", 305),
        ("twelve thousand", 12000),
        ("seven point two five", Fraction("7.25")),
        ("twelve and a half", Fraction(25, 2)),
        ("a half", Fraction(1, 2)),
        ("2 1/2", Fraction(5, 2)),
    ],
)
def test_numbers_are_read_in_figures_and_in_words(text, value):
    assert read_number(text) == value


def _is_number(entry: dict, value) -> bool:
    return all(read_number(answer) == value for answer in entry["answers"])


# -------------------------------------------------------------------------- arithmetic

ARITHMETIC = {
    r"What is # \+ #\?": lambda a, b: a + b,
    r"Add # and #\.": lambda a, b: a + b,
    r"Calculate the sum of #, # and #\.": lambda a, b, c: a + b + c,
    r"How much is # plus #\?": lambda a, b: a + b,
    r"What is # - #\?": lambda a, b: a - b,
    r"Subtract # from #\.": lambda a, b: b - a,
    r"Take # away from #\. .*": lambda a, b: b - a,
    r"Find the difference between # and #\.": lambda a, b: abs(a - b),
    r"What is # x #\?": lambda a, b: a * b,
    r"Multiply # by #\.": lambda a, b: a * b,
    r"Compute # times #\.": lambda a, b: a * b,
    r"What is the product of # and #\?": lambda a, b: a * b,
    r"Divide # by #\.": lambda a, b: a / b,
    r"What is # / #\?": lambda a, b: a / b,
    r"How many times does # go into #\?": lambda a, b: b / a,
    r"What remains when # is divided by #\?": lambda a, b: a % b,
    r"Work out # percent of #\.": lambda a, b: a * b / 100,
    r"A coat costs # euros and is reduced by # percent\..*": lambda a, b: (
        a - a * b / 100
    ),
    r"What is half of #\?": lambda a: a / 2,
    r"Double the number #\.": lambda a: a + a,
    r"Name a third of #\.": lambda a: a / 3,
    r"How much is three quarters of #\?": lambda a: a / 4 * 3,
    r"Square the number #\.": lambda a: a * a,
    r"What is # to the power of #\?": lambda a, b: a**b,
    r"Calculate the average of #, # and #\.": lambda a, b, c: (a + b + c) / 3,
    r"Round # to the nearest ten\.": lambda a: round(a / 10) * 10,
    r"Round # to the nearest whole number\.": lambda a: round(a),
    r"Which is larger: # or #\?": lambda a, b: a if a > b else b,
    r"Evaluate # \+ # x #\.": lambda a, b, c: a + b * c,
    r"Evaluate \(# \+ #\) x #\.": lambda a, b, c: (a + b) * c,
    r"Which number must be added to # to get #\?": lambda a, b: b - a,
    r"I think of a number, multiply it by # and get #\..*": lambda a, b: b / a,
    r"It is # degrees and the temperature falls by #.*": lambda a, b: a - b,
    r"A baker fills # trays with # rolls each\..*": lambda a, b: a * b,
    r"Lena has # stamps and gives away #\..*": lambda a, b: a - b,
    r"# sweets are shared equally among # children\..*": lambda a, b: a / b,
    r"A ticket costs # euros\. What do # tickets cost, .*": lambda a, b: a * b,
    r"A bus with # passengers stops; # get off and # get on\..*": lambda a, b, c: (
        a - b + c
    ),
    r"You pay # euros with a #-euro note\..*": lambda a, b: b - a,
    r"A rectangle is # cm long and # cm wide\..* area .*": lambda a, b: a * b,
    r"The sides of a square are # metres long\..* perimeter .*": lambda a: 4 * a,
    r"A train covers # kilometres in # hours\..* speed .*": lambda a, b: a / b,
    r"A book has # pages\. Omar reads # pages a day\..*": lambda a, b: a / b,
}
ROOT_OF = r"What is the square root of #\?"


def _pattern(rule: str) -> re.Pattern:
    return re.compile(rule.replace("#", r"(\d+(?:\.\d+)?)"))


def sum_of(text: str) -> Fraction:
    """What a sum in words comes to."""
    root = _pattern(ROOT_OF).fullmatch(text)
    if root:
        return next(Fraction(n) for n in range(1000) if n * n == int(root[1]))
    found = [
        rule(*map(Fraction, match.groups()))
        for pattern, rule in ARITHMETIC.items()
        if (match := _pattern(pattern).fullmatch(text))
    ]
    assert len(found) == 1, text
    return Fraction(found[0])


def test_every_sum_is_right(entries):
    for entry in _of(entries, "arithmetic"):
        value = sum_of(entry["instruction"])
        assert _is_number(entry, value), entry


def test_sequences_go_on_by_their_rule(entries):
    for entry in _of(entries, "sequences"):
        row = [Fraction(n) for n in re.findall(r"\d+", entry["input"])]
        row.append(read_number(entry["answers"][0]))
        steps = {b - a for a, b in zip(row, row[1:], strict=False)}
        ratios = {b / a for a, b in zip(row, row[1:], strict=False) if a}
        squares = row == [n * n for n in range(1, len(row) + 1)]
        sums = all(row[i] == row[i - 1] + row[i - 2] for i in range(2, len(row)))
        assert len(steps) == 1 or len(ratios) == 1 or squares or sums, entry
        assert _is_number(entry, row[-1])


# --------------------------------------------------------------------- units and dates

UNITS = {
    "length": {"millimetre": 1, "mm": 1, "centimetre": 10, "cm": 10, "metre": 1000}
    | {"m": 1000, "kilometre": 10**6, "km": 10**6},
    "imperial length": {"inch": 1, "inche": 1, "feet": 12, "yard": 36},
    "mass": {"milligram": 1, "gram": 1000, "kilogram": 10**6, "kg": 10**6}
    | {"tonne": 10**9},
    "volume": {"millilitre": 1, "ml": 1, "litre": 1000, "cubic metre": 10**6},
    "area": {"square centimetre": 1, "square metre": 10**4, "hectare": 10**8},
    "time": {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800},
    "calendar": {"month": 1, "year": 12, "decade": 120, "centurie": 1200},
    "money": {"cent": 1, "euro": 100},
    "number": {"egg": 1, "dozen": 12},
    "memory": {"kilobyte": 1, "megabyte": 1000},
}
GIVEN = {  # rounded factors, which the text of the instruction states
    ("inch", "centimetre"): ("1 inch = 2.54 cm", Fraction("2.54")),
    ("mile", "kilometre"): ("1 mile = 1.6 km", Fraction("1.6")),
    ("pound", "kilogram"): ("1 pound as 0.45 kg", Fraction("0.45")),
}


def converted(text: str) -> tuple[Fraction, tuple]:
    """The converted value, and (amount, from, to) for the comparison of entries."""
    if "Celsius" in text or "\N{DEGREE SIGN}C" in text:
        amount = Fraction(re.search(r"\d+", text)[0])
        if re.search(r"\d+ (degrees Celsius|\N{DEGREE SIGN}C)", text):
            return amount * 9 / 5 + 32, (amount, "C", "F")
        return (amount - 32) * 5 / 9, (amount, "F", "C")
    for (source, target), (words, factor) in GIVEN.items():
        if words in text and re.search(rf"\d {source}(s|es)?\b", text):
            rest = text.replace(words, "")
            amount = Fraction(re.search(r"\d[\d.]*", rest)[0])
            assert source in rest
            assert target in rest
            return amount * factor, (amount, source, target)
    text = text.replace("With 1 MB = 1000 kB, ", "")
    names = sorted((n for table in UNITS.values() for n in table), key=len)[::-1]
    unit = rf"\b({'|'.join(names)})s?\b"
    found = re.search(rf"(\d+(?:\.\d+)?) {unit}", text)
    amount, source = Fraction(found[1]), found[2]
    (table,) = [table for table in UNITS.values() if source in table]
    rest = text.replace(found[0], "")
    targets = [name for name in re.findall(unit, rest) if name in table]
    target = targets[-1]
    value = amount * table[source] / table[target]
    return value, (sorted(table)[0], amount * table[source], table[target])


def test_every_conversion_is_right_and_asked_once(entries):
    asked = {}
    for entry in _of(entries, "unit_conversion"):
        value, question = converted(entry["instruction"])
        assert _is_number(entry, value), (entry, value)
        assert question not in asked, (entry, asked[question])
        asked[question] = entry


def _date(text: str) -> date:
    """A date as 3 March 2021, 3rd of March 2021, March 3, 2021 or 2021-03-03."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return date.fromisoformat(text)
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b( of)?", "", text)
    day, month, year = (
        re.fullmatch(r"(\d+) (\w+) (\d+)", text).groups()
        if (text[0].isdigit())
        else [re.fullmatch(r"(\w+) (\d+),? (\d+)", text)[i] for i in (2, 1, 3)]
    )
    return date(int(year), MONTHS.index(month) + 1, int(day))


LONG = r"(\d+ [A-Z][a-z]+ \d{4})"
TIME = r"(\d+:\d\d)"


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return 60 * int(hours) + int(minutes)


def clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02}"


def _near(names: list[str], name: str, steps: int) -> str:
    return names[(names.index(name) + steps) % len(names)]


def _leap(year: int) -> bool:
    try:
        date(year, 2, 29)
    except ValueError:
        return False
    return True


def _half_day(text: str) -> str:
    minutes = _minutes(text)
    return clock(minutes - 720) + " p.m." if minutes >= 780 else clock(minutes)


def _length(month: str, year: str) -> int:
    first = date(int(year), MONTHS.index(month) + 1, 1)
    return ((first + timedelta(31)).replace(day=1) - first).days


DATES = {
    rf"Write {LONG} as YYYY-MM-DD\.": lambda d: _date(d),
    r"Put the date (.*) into the ISO format\.": lambda d: _date(d),
    r"Write the date (\S+) with the name of the month\.": lambda d: _date(d),
    r"The date \d\d\.(\d\d)\.\d{4} has the day first\..*": lambda m: MONTHS[int(m) - 1],
    rf"Which date follows {LONG}\?": lambda d: _date(d) + timedelta(1),
    rf".* on the day before {LONG}\?": lambda d: _date(d) - timedelta(1),
    rf"Add (\d+) days to {LONG}\.": lambda n, d: _date(d) + timedelta(int(n)),
    rf".* begins on {LONG} and ends exactly (\d+) weeks later\..*": lambda d, n: (
        _date(d) + timedelta(weeks=int(n))
    ),
    r"How many days after (.*) is (.*) in the year (\d+)\?": lambda a, b, y: (
        (_date(f"{b} {y}") - _date(f"{a} {y}")).days
    ),
    rf"We arrive on {LONG} and leave on {LONG}\..*": lambda a, b: (
        (_date(b) - _date(a)).days
    ),
    r"Today is (\w+)\..* in (\d+) days\?": lambda d, n: _near(DAYS, d, int(n)),
    r"If it is (\w+) now, .* (\d+) days ago\?": lambda d, n: _near(DAYS, d, -int(n)),
    r"Name the day after (\w+)\.": lambda d: _near(DAYS, d, 1),
    r"Which weekday comes just before (\w+)\?": lambda d: _near(DAYS, d, -1),
    r"Which month comes after (\w+)\?": lambda m: _near(MONTHS, m, 1),
    r"Say which month precedes (\w+)\.": lambda m: _near(MONTHS, m, -1),
    r"What is the (\w+) month of the year\?": lambda n: MONTHS[ORDINALS.index(n)],
    r"Give the number of the month (\w+), .*": lambda m: MONTHS.index(m) + 1,
    r"How many days did (\w+) (\d+) have\?": lambda m, y: _length(m, y),
    r"State how many days the month of (\w+) has\.": lambda m: _length(m, "2023"),
    r"Was (\d+) a leap year\?": lambda y: "Yes" if _leap(int(y)) else "No",
    r"What is the first leap year after (\d+)\?": lambda y: next(
        n for n in range(int(y) + 1, 3000) if _leap(n)
    ),
    rf"Write {TIME} in 12-hour time .*": lambda t: _half_day(t),
    rf"Change {TIME} p\.m\. to the 24-hour clock\.": lambda t: clock(_minutes(t) + 720),
    rf"How many minutes pass from {TIME} to {TIME}\?": lambda a, b: (
        _minutes(b) - _minutes(a)
    ),
    rf"A lesson starts at {TIME} and takes (\d+) .*": lambda t, n: clock(
        _minutes(t) + int(n)
    ),
    rf"The bus goes at {TIME}\..* (\d+) minutes earlier\?": lambda t, n: clock(
        _minutes(t) - int(n)
    ),
    r"Someone was born on 1 January (\d+)\..* 2 January (\d+)\?": lambda a, b: (
        int(b) - int(a)
    ),
    r"In which century was the year (\d+)\?": lambda y: f"{-(-int(y) // 100)}th",
    rf"Which day of the year is {LONG}, .*": lambda d: int(f"{_date(d):%j}"),
    r"To which quarter of the year does (\w+) belong\?": lambda m: (
        f"Q{MONTHS.index(m) // 3 + 1}"
    ),
}


def date_value(text: str):
    found = [
        rule(*match.groups())
        for pattern, rule in DATES.items()
        if (match := re.fullmatch(pattern, text))
    ]
    assert len(found) == 1, text
    return found[0]


def same_moment(answer: str, value) -> bool:
    """Whether an answer in any of the accepted forms says the value."""
    if isinstance(value, date):
        return _date(answer) == value
    if isinstance(value, int):
        return read_number(answer) == value
    ranks = [f"{n}{s}" for n, s in zip("1234", ["st", "nd", "rd", "th"], strict=True)]
    if re.fullmatch("Q[1-4]", value):
        rank = int(value[1]) - 1
        return answer in {value, ORDINALS[rank], ranks[rank]}
    if value.endswith("th"):
        return answer in {value, ORDINALS[int(value[:-2]) - 1]}
    if value.endswith("p.m."):
        return re.sub(r"\W", "", answer).lower() == re.sub(r"\W", "", value).lower()
    return answer.replace(".", ":") == value


def test_every_date_and_time_is_right(entries):
    for entry in _of(entries, "dates"):
        value = date_value(entry["instruction"])
        for answer in entry["answers"]:
            assert same_moment(answer, value), (entry, value)


# -------------------------------------------------------------------- lists and formats


def _ints(items: list[str]) -> list[int]:
    return [int(item) for item in items]


LISTS = {
    "Sort these numbers from smallest": lambda v: sorted(v, key=int),
    "Arrange the numbers in ascending": lambda v: sorted(v, key=int),
    "Order the numbers so that the largest": lambda v: sorted(v, key=int)[::-1],
    "Put these into descending": lambda v: sorted(v, key=int)[::-1],
    "Sort the words alphabetically": sorted,
    "Bring these names into alphabetical": sorted,
    "Write the list in the order of the alphabet": sorted,
    "Arrange the words from Z to A": lambda v: sorted(v, reverse=True),
    "Reverse the list": lambda v: list(reversed(v)),
    "Say the items again, beginning with the last": lambda v: list(reversed(v)),
    "How many items": len,
    "Count the entries": len,
    "Which number is the largest": lambda v: max(_ints(v)),
    "Find the smallest number": lambda v: min(_ints(v)),
    "What is the first element": lambda v: v[0],
    "Name the last item": lambda v: v[-1],
    "Give the third word": lambda v: v[2],
    "Which element is second": lambda v: v[1],
    "Remove the duplicates": lambda v: [x for i, x in enumerate(v) if x not in v[:i]],
    "List only the even": lambda v: [x for x in v if int(x) % 2 == 0],
    "Keep just the odd": lambda v: [x for x in v if int(x) % 2 == 1],
    "Which word is the longest": lambda v: sorted(v, key=len)[-1],
    "Pick the shortest word": lambda v: sorted(v, key=len)[0],
    "Add up all the numbers": lambda v: sum(_ints(v)),
    "Leave out the first item": lambda v: v[1:],
    "Drop the last entry": lambda v: v[:-1],
    'How often does the word "yes" occur': lambda v: sum(x == "yes" for x in v),
    "List the words that begin with the letter b": lambda v: [
        x for x in v if x.startswith("b")
    ],
    "Sort the words by their length": lambda v: sorted(v, key=len),
    "Keep only the numbers greater than 10": lambda v: [x for x in v if int(x) > 10],
}


def pieces(text: str) -> list[str]:
    """The items of a list on one line, however they are separated."""
    return re.sub(r",? and |, ", " ", text).split()


def test_every_list_is_sorted_counted_and_picked_rightly(entries):
    for entry in _of(entries, "lists"):
        rules = [
            f for start, f in LISTS.items() if entry["instruction"].startswith(start)
        ]
        assert len(rules) == 1, entry["instruction"]
        items = entry["input"].split(", ")
        value = rules[0](items)
        if "length" in entry["instruction"] or "est word" in entry["instruction"]:
            assert len({len(item) for item in items}) == len(items), "a tie"
        for answer in entry["answers"]:
            if isinstance(value, int):
                assert read_number(answer) == value, entry
            elif isinstance(value, str):
                assert answer == value, entry
            else:
                assert pieces(answer) == value, entry


def _typed(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d+", text) else text


def _json_value(entry: dict):
    """The object that an instruction about JSON asks for, read from its input."""
    text, lines = entry["input"], entry["input"].split("\n")
    if text.startswith("{"):
        held = json.loads(text)
        if "How many keys" in entry["instruction"]:
            return len(held)
        return held[re.search(r'"(\w+)"', entry["instruction"])[1]]
    if all(": " in line for line in lines):
        return {k: _typed(v) for k, v in (line.split(": ") for line in lines)}
    if "=" in text:
        return {k: _typed(v) for k, v in (p.split("=") for p in text.split("; "))}
    if len(lines) == 2:
        header, row = (line.split(",") for line in lines)
        return {k: _typed(v) for k, v in zip(header, row, strict=True)}
    return [_typed(item) for item in text.split(", ")]


def test_all_json_parses_and_holds_the_data_of_its_input(entries):
    read = 0
    for entry in _of(entries, "json"):
        names = re.findall(r'"(\w+)"', entry["instruction"])
        if names and not entry["input"].startswith("{"):
            held = json.loads(entry["output"])
            assert list(held) == names, entry
            for value in held.values():
                assert re.search(rf"\b{value}\b", entry["input"]), entry
                assert isinstance(value, int) == str(value).isdigit()
            value = held
        else:
            value = _json_value(entry)
        for answer in entry["answers"]:
            if entry["input"].startswith("{"):
                same = (
                    read_number(answer) == value
                    if isinstance(value, int)
                    else answer.casefold() == value.casefold()
                )
                read += 1
            else:
                found = json.loads(answer)
                same = found == value
                if isinstance(value, dict):
                    same = same and list(found) == list(value)
            assert same, entry
    assert read


def test_every_bullet_list_has_its_items_and_its_marks(entries):
    for entry in _of(entries, "bullet_lists"):
        ask = entry["instruction"].casefold()
        if entry["input"].startswith("- "):
            items = [line.removeprefix("- ") for line in entry["input"].split("\n")]
            for answer in entry["answers"]:
                if "how many" in ask:
                    assert read_number(answer) == len(items)
                elif "second" in ask:
                    assert answer == items[1]
                else:
                    assert pieces(answer) == items, entry
            continue
        items = entry["input"].split(", ")
        items = sorted(items) if "alphabetical" in ask else items
        items = items[::-1] if "reverse" in ask else items
        marks = [["- "], ["* "], ["\u2022 "]]
        if "number" in ask or "ordered" in ask:
            marks = [[f"{i}. " for i in range(1, len(items) + 1)]]
        elif "[ ]" in ask:
            marks = [["[ ] "], ["- [ ] "]]
        allowed = {
            "\n".join(f"{m[i % len(m)]}{item}" for i, item in enumerate(items))
            for m in marks
        }
        assert set(entry["answers"]) == allowed, entry
        assert entry["output"] in allowed


FORMATS = {
    "in capital letters": str.upper,
    "upper case": str.upper,
    "lower case": str.lower,
    "without any capital": str.lower,
    "every word with a capital": str.title,
    "title case": str.title,
    "spaces by underscores": lambda s: "_".join(s.split(" ")),
    "snake case": lambda s: "_".join(s.casefold().split(" ")),
    "hyphens in the place": lambda s: "-".join(s.split(" ")),
    "Remove all spaces": lambda s: "".join(s.split(" ")),
    "quotation marks": lambda s: '"' + s + '"',
    "round brackets": lambda s: "(" + s + ")",
    "hyphen between the letters": lambda s: "-".join(s),
    "backwards": lambda s: "".join(reversed(s)),
    "How many letters": len,
    "Count the words": lambda s: s.count(" ") + 1,
    "first letter of": lambda s: s[0],
    "the last letter": lambda s: s[-1],
    "initials": lambda s: "".join(c for c in s if c.isupper()),
    "family name first": lambda s: re.sub(r"(\w+) (\w+)", r"\2, \1", s),
    "two decimal places": lambda s: s + "0" if "." in s else s + ".00",
    "thousands separator": lambda s: re.sub(r"(?<=\d)(?=(\d{3})+$)", ",", s),
    "to four digits": lambda s: "0" * (4 - len(s)) + s,
    "heading of level 1": lambda s: f"# {s}",
    "bold with Markdown": lambda s: f"**{s}**",
    "decimal fraction": lambda s: Fraction(int(s.rstrip("%")), 100),
    "three times": lambda s: f"{s} {s} {s}",
    "Leave out all the vowels": lambda s: re.sub("[aeiou]", "", s),
    "exclamation mark": lambda s: s.replace(".", "!"),
    "in words": lambda s: Fraction(s),
    "in figures": lambda s: read_number(s),
}


def test_every_text_is_formatted_as_asked(entries):
    for entry in _of(entries, "text_format"):
        rules = [f for part, f in FORMATS.items() if part in entry["instruction"]]
        assert len(rules) == 1, entry["instruction"]
        value = rules[0](entry["input"])
        for answer in entry["answers"]:
            if isinstance(value, str):
                loose = "letter" in entry["instruction"] and len(value) == 1
                if "initials" in entry["instruction"]:
                    answer = answer.replace(".", "")
                assert (answer.lower() if loose else answer) == value, entry
            else:
                assert read_number(answer) == value, entry
        if "in words" in entry["instruction"]:
            assert not re.search(r"\d", entry["output"])
        if "in figures" in entry["instruction"]:
            assert entry["output"].isdigit()


# -------------------------------------------------------------------------------- code

SAFE = re.findall(
    r"\w+",
    "abs int len list max min print range round sorted sum str",
)
METHODS = {"upper", "lower", "replace", "count", "split", "append"}


def _run(program: str, *calls: str) -> tuple[str, list]:
    """Run a few lines of plain Python; return what they print and what the calls give.

    Loops over more than a range or a list, attributes other than a few methods of
    strings and lists, imports, and names with underscores at an end are refused.
    """
    tree = ast.parse("\n".join([program, *calls]))
    banned = (ast.Import, ast.ImportFrom, ast.While, ast.Try, ast.With, ast.Lambda)
    for node in ast.walk(tree):
        if isinstance(node, (*banned, ast.ClassDef)):
            raise ValueError(f"{type(node).__name__} is not allowed here")
        if isinstance(node, ast.Attribute) and node.attr not in METHODS:
            raise ValueError(f"the attribute {node.attr} is not allowed here")
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            raise ValueError(f"the name {node.id} is not allowed here")
    kept = {name: getattr(__import__("builtins"), name) for name in SAFE}
    space: dict = {"__builtins__": kept}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, space)
        values = [eval(call, space) for call in calls]
    return printed.getvalue(), values


def test_only_harmless_programs_run():
    assert _run("def f(n):\n    return n + 1", "f(2)") == ("", [3])
    for program in ["import os", "().__class__", "while True: pass", "open('x')"]:
        with pytest.raises((ValueError, NameError)):
            _run(program)


def test_every_program_does_what_is_said(entries):
    read = written = 0
    for entry in _of(entries, "code"):
        example = re.search(r"Example: (.+\)) gives (.+)\.$", entry["instruction"])
        if entry["input"]:
            printed = _run(entry["input"])[0].strip()
            for answer in entry["answers"]:
                if answer != printed:
                    assert read_number(answer) == int(printed), entry
            read += 1
        elif example:
            assert "answers" not in entry
            value = ast.literal_eval(example[2])
            found = _run(entry["output"], example[1])[1][0]
            assert found == value, entry
            assert type(found) is type(value), entry
            written += 1
    assert read >= 30
    assert written >= 20


# ------------------------------------------------------------------ words and sentences


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())


def test_word_order_uses_every_word_once(entries):
    for entry in _of(entries, "word_order"):
        for answer in entry["answers"]:
            assert Counter(_words(answer)) == Counter(_words(entry["input"])), entry


def test_punctuation_changes_no_letter(entries):
    for entry in _of(entries, "punctuation"):
        asked = re.sub(r" \([^)]*\)$", "", entry["input"])
        for answer in entry["answers"]:
            assert _letters(answer) == _letters(asked), entry
            assert answer != asked


def test_spelling_changes_few_words_and_at_least_one(entries):
    for entry in _of(entries, "spelling"):
        quoted = re.findall(r'"([^"]+ [^"]+)"', entry["instruction"])
        asked = entry["input"] or (quoted or [""])[0]
        if " " in asked:
            before, after = asked.split(), entry["answers"][0].split()
            assert len(before) == len(after), entry
            changed = sum(a != b for a, b in zip(before, after, strict=True))
            assert 1 <= changed <= 2, entry


def test_sentences_that_are_rewritten_end_as_sentences_and_differ(entries):
    for entry in _of(
        entries, "passive_voice", "active_voice", "tense", "questions", "negation"
    ):
        end = "?" if entry["category"] == "questions" else "."
        assert entry["output"].endswith(end), entry
        assert entry["output"][0].isupper(), entry
        assert entry["output"] != entry["input"]
        if entry["category"] == "negation":
            assert re.search(r"n't|\bnot\b|cannot|\bno\b", entry["output"])
        for answer in entry["answers"]:
            if entry["category"] == "passive_voice" and "omeone" not in prompt(entry):
                assert re.search(r"\b(by|with|in)\b", answer), entry


def test_questions_to_classify_offer_the_label(entries):
    for entry in _of(entries, "classification"):
        label = entry["answers"][0]
        assert len(entry["answers"]) == 1
        assert re.search(rf"\b{label}\b", entry["instruction"], re.IGNORECASE), entry
        if "even" in entry["instruction"].casefold().split():
            number = int(re.search(r"\d+", prompt(entry))[0])
            assert label == ["even", "odd"][number % 2]


def test_what_is_extracted_stands_in_the_text(entries):
    for entry in _of(entries, "extraction"):
        assert entry["answers"][0].casefold() in entry["input"].casefold(), entry


def test_the_odd_one_out_is_one_of_the_list(entries):
    for entry in _of(entries, "odd_one_out"):
        items = entry["input"].casefold().split(", ")
        assert [a.casefold() in items for a in entry["answers"]] == [True], entry


def test_summaries_are_shorter_than_what_they_sum_up(entries):
    for entry in _of(entries, "summaries"):
        assert 2 * len(entry["output"].split()) < len(entry["input"].split())
        if "ten words" in entry["instruction"]:
            assert len(entry["output"].split()) <= 10


def test_polite_rewrites_are_not_what_they_mend(entries):
    for entry in _of(entries, "polite_rewrites"):
        assert entry["output"] not in prompt(entry)
        assert entry["output"].endswith((".", "?"))


def _word_pairs(entries: list[dict]) -> set[frozenset]:
    """Each word that is asked for, with each of its answers."""
    return {
        frozenset([entry["family"].removeprefix("word-"), answer.casefold()])
        for entry in entries
        if entry["family"].startswith("word-")
        for answer in entry["answers"]
    }


def test_no_two_words_are_synonyms_and_antonyms(entries):
    same = _word_pairs(_of(entries, "synonyms"))
    other = _word_pairs(_of(entries, "antonyms"))
    assert min(map(len, [*same, *other])) == 2
    assert same & other == set()


# -------------------------------------------------------------------------- preferences


def pair_errors(pair: dict, entry: dict | None) -> list[str]:
    """What is wrong with one pair, next to the entry whose instruction it shares."""
    errors = []
    chosen, rejected = pair["chosen"], pair["rejected"]
    size, other = len(chosen.split()), len(rejected.split())
    if list(pair) != PAIR_FIELDS:
        errors.append(f"fields {list(pair)}")
    if not all(isinstance(v, str) and v == v.strip() for v in pair.values()):
        errors.append("a field is no text, or has white space around it")
    by_form = pair["flaw"] in {"unchanged", "format"}
    same = chosen == rejected if by_form else plain(chosen) == plain(rejected)
    if same or not chosen or not rejected:
        errors.append("chosen and rejected say the same")
    if entry and (chosen != entry["output"] or pair["split"] != entry["split"]):
        errors.append("differs from the instruction set")
    scored = bool(entry and "answers" in entry)
    false = pair["flaw"] in {"wrong", "off_topic", "unchanged"}
    if false and scored and _is_right(entry, rejected):
        errors.append("the rejected answer is right")
    shape = {
        "wrong": other <= 3 * size + 3,
        "unchanged": rejected == pair["input"],
        "format": _letters(chosen) != _letters(rejected)
        or ("\n" in chosen) != ("\n" in rejected)
        or chosen[0] in "[{",
        "unfinished": chosen.startswith(rejected) and rejected[-1] not in ".!?",
        "too_long": other >= size + 20 and rejected.startswith(chosen),
        "off_topic": chosen not in rejected,
        "impolite": chosen in rejected or pair["category"] == "advice",
    }
    if not shape.get(pair["flaw"], False):
        errors.append(f"the flaw is not {pair['flaw']}")
    return errors


def test_pairs_are_complete_and_have_the_flaw_that_they_name(entries, pairs):
    """Ten reject the right number, as 4.50 for 4.5; version 2 rejects a wrong one."""
    known = {prompt(e): e for e in entries}
    assert len(pairs) >= 600
    wrong = {}
    for number, pair in enumerate(pairs):
        entry = known.get(prompt(pair))
        if entry is None:
            assert pair["category"] == "advice", pair
        errors = pair_errors(pair, entry)
        if errors:
            wrong[number] = errors
    ten = [35, 68, 227, 359, 389, 494, 597, 627, 642, 654]
    assert wrong == {number: ["the rejected answer is right"] for number in ten}


@pytest.mark.parametrize(
    ("one", "other"),
    [("4.50 cm", "4.5 cm"), ("1,250.0", "1250"), ("2.250 kg", "2.25 kg")],
)
def test_numbers_are_compared_as_numbers(one, other):
    assert with_plain_numbers(one) == with_plain_numbers(other)
    assert with_plain_numbers(one) != with_plain_numbers("45")


def test_flaws_are_of_several_kinds_in_every_split(pairs):
    counts = Counter((p["flaw"], p["split"]) for p in pairs)
    flaws = {p["flaw"] for p in pairs}
    assert len(flaws) >= 6
    page = section("Preferences")
    stated = dict(re.findall(r"^\| ([a-z_]+) \| (\d+) \| [a-z]", page, re.MULTILINE))
    assert stated == {f: str(sum(p["flaw"] == f for p in pairs)) for f in flaws}
    for flaw in flaws:
        assert sum(n for (name, _), n in counts.items() if name == flaw) >= 50
        for side in ["train", "validation", "test"]:
            assert counts[flaw, side] >= 1, (flaw, side)
    assert len({prompt(p) for p in pairs}) == len(pairs)


def test_length_alone_does_not_tell_which_answer_is_rejected(pairs):
    longer = sum(len(p["rejected"]) > len(p["chosen"]) for p in pairs)
    assert 0.3 * len(pairs) < longer < 0.7 * len(pairs)


def test_no_pair_to_train_on_leaks_a_test_of_the_instructions(entries, pairs):
    held_out = {plain(prompt(e)) for e in entries if e["split"] != "train"}
    families = {e["family"] for e in entries if e["split"] != "train"}
    for pair in pairs:
        if pair["split"] == "train":
            assert plain(prompt(pair)) not in held_out
            assert pair["family"] not in families
    advice = [p for p in pairs if p["category"] == "advice"]
    assert not {p["family"] for p in advice} & {e["family"] for e in entries}
    assert len(advice) >= 50
    assert leaks([*entries, *advice]) == []


# ------------------------------------------------- planted mistakes, which are noticed


def _planted(entries: list[dict], start: str, **change) -> dict:
    entry = next(e for e in entries if e["instruction"].startswith(start))
    return {**entry, **change}


def test_a_wrong_form_is_noticed(entries):
    good = _planted(entries, "What is the capital of France?")
    assert _form_errors(good) == []
    for change in [
        {"output": ""},
        {"output": "It is Lyon."},
        {"answers": []},
        {"answers": ["Paris", "paris"]},
        {"input": " "},
        {"output": "Paris\ufffd"},
        {"note": "one field too many"},
        {"category": "summaries"},
    ]:
        assert _form_errors({**good, **change}) != [], change


def test_a_wrong_number_is_noticed(entries):
    entry = _planted(entries, "What is 12 + 7?")
    assert _is_number(entry, sum_of(entry["instruction"]))
    for answers in [["18"], ["19", "eighteen"], ["19", "nineteen", "19.5"]]:
        bad = {**entry, "answers": answers}
        assert not _is_number(bad, sum_of(entry["instruction"]))
    assert converted("Convert 3 kilometres to metres.")[0] == 3000
    assert converted("How many inches are 4 feet?")[0] == 48
    assert not same_moment(
        "2 March 2020", date_value("Which date follows 28 February 2020?")
    )
    assert same_moment("2020-02-29", date_value("Which date follows 28 February 2020?"))


def test_a_copy_under_another_family_is_noticed(entries):
    entry = next(e for e in entries if e["category"] == "passive_voice" and e["input"])
    some = [entry, *(e for e in entries if e["category"] == "facts")]
    assert leaks(some) == []
    for change in [
        {},
        {"instruction": entry["instruction"].upper()},
        {"instruction": "Please! " + entry["instruction"]},
        {"instruction": "Say it in the passive."},
    ]:
        assert leaks([*some, {**entry, **change, "family": "other"}]) != [], change


def test_a_wrong_pair_is_noticed(entries, pairs):
    known = {prompt(e): e for e in entries}
    for flaw in sorted({p["flaw"] for p in pairs}):
        pair = next(p for p in pairs if p["flaw"] == flaw and p["category"] != "advice")
        entry = known[prompt(pair)]
        assert pair_errors(pair, entry) == []
        assert pair_errors({**pair, "rejected": pair["chosen"]}, entry) != []
        assert pair_errors({**pair, "flaw": "unknown"}, entry) != []
        assert pair_errors({**pair, "split": "elsewhere"}, entry) != []
