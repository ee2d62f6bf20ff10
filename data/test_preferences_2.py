"""Version 2 of the preferences keeps what its page promises: of two answers that are
alike in everything else, one has the trait.

What both versions promise is checked by the functions of the tests of the instructions;
each promise of version 2 is seen to fail on a copy with a planted mistake.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_instructions import (
    FOLDER,
    accepts,
    leaks,
    load,
    pair_errors,
    plain,
    prompt,
    section,
)
from test_messages_2 import nearest_across_parts, read_rows, words_alone

from course import assets

Pair = dict[str, str]

PARTS = ["train", "validation", "test"]
# Enough of these to teach and to measure; the other flaws stand as in version 1.
TAUGHT = ["impolite", "too_long", "wrong"]
# In these the two answers are alike in form: neither a word nor the length decides.
ALIKE = ["impolite", "wrong"]
FILE = FOLDER / "preferences-2.json"
ENTRIES = {prompt(entry): entry for entry in load("instructions")}


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return load("preferences-2")


@pytest.fixture(scope="module")
def page() -> str:
    return section("Preferences, version 2")


def _said(page: str) -> str:
    return " ".join(page.split())


def _of(pairs: list[Pair], flaw: str, part: str = "") -> list[Pair]:
    return [p for p in pairs if p["flaw"] == flaw and part in ("", p["split"])]


# ---------------------------------------------------------------- what it promises


def _pair_errors(pair: Pair, entry: dict | None) -> list[str]:
    """What is wrong with a pair; polite and rude answers are both right answers."""
    if pair["flaw"] not in {"impolite", "too_long"}:
        return pair_errors(pair, entry)
    chosen, rejected = pair["chosen"], pair["rejected"]
    output = entry["output"] if entry else ""
    if pair["flaw"] == "too_long":
        errors = pair_errors({**pair, "rejected": f"{chosen} {rejected}"}, entry)
        if len(rejected.split()) < len(chosen.split()) + 20:
            errors.append("hardly longer")
        if chosen.rstrip(".") not in rejected or rejected.count(chosen) > 1:
            errors.append("the long answer is not the short one with more around it")
        return errors
    errors = pair_errors(
        {**pair, "chosen": output or chosen, "category": "advice"}, entry
    )
    longer, shorter = sorted([len(chosen), len(rejected)], reverse=True)
    if longer - shorter > 0.25 * longer:
        errors.append("one of the two is much longer")
    if plain(chosen) == plain(rejected):
        errors.append("both say the same")
    if entry is None and pair["category"] != "advice":
        errors.append("unknown instruction")
    if entry and not (accepts(entry, chosen) and accepts(entry, rejected)):
        errors.append("an answer is not right")
    return errors


def _flaws(pairs: list[Pair]) -> list[str]:
    return [
        f"{pair['instruction']}: {error}"
        for pair in pairs
        for error in _pair_errors(pair, ENTRIES.get(prompt(pair)))
    ]


def _side(pair: Pair) -> str:
    """The part of a pair: that of its instruction, or the hash of its family."""
    if prompt(pair) in ENTRIES:
        return ENTRIES[prompt(pair)]["split"]
    digest = hashlib.sha256(f"preferences-2:{pair['family']}".encode()).hexdigest()
    share = int(digest[:8], 16) / 2**32
    return "test" if share < 0.25 else "validation" if share < 0.35 else "train"


def _splits(pairs: list[Pair]) -> list[str]:
    found = [pair["family"] for pair in pairs if pair["split"] != _side(pair)]
    parts = {(pair["family"], pair["split"]) for pair in pairs}
    counts = Counter(family for family, _ in parts)
    return found + [family for family, number in counts.items() if number > 1]


def _counts(pairs: list[Pair]) -> list[str]:
    found = [prompt(pair) for pair in pairs]
    twice = [text for text, number in Counter(found).items() if number > 1]
    for flaw in TAUGHT:
        if len(_of(pairs, flaw)) < 120 or len(_of(pairs, flaw, "test")) < 30:
            twice.append(f"too few pairs that are {flaw}")
    return twice


def _nearest(pairs: list[Pair]) -> float:
    """How near two pairs of different parts come: instruction and both answers."""
    return nearest_across_parts(
        [
            {
                "text": f"{prompt(pair)} {pair['chosen']} {pair['rejected']}",
                "split": pair["split"],
            }
            for pair in pairs
        ]
    )


def _near(pairs: list[Pair]) -> list[str]:
    nearest = _nearest(pairs)
    return [f"{nearest:.2f} across parts"] if nearest > 0.3 else []


def _stock(pairs: list[Pair]) -> list[str]:
    """No two rejected answers, of any part, say the same rude or needless thing."""
    written = [*_of(pairs, "impolite"), *_of(pairs, "too_long")]
    nearest = nearest_across_parts(
        [{"text": pair["rejected"], "split": str(i)} for i, pair in enumerate(written)]
    )
    return [f"two rejected answers share {nearest:.2f}"] if nearest > 0.3 else []


def _best_word(pairs: list[Pair]) -> tuple[float, str]:
    """How often one word or sign alone finds the better answer of two, and which."""
    return words_alone(
        [
            {"text": pair[side], "label": label}
            for pair in pairs
            for side, label in [("chosen", "wanted"), ("rejected", "spam")]
        ]
    )[-1]


def _length(pairs: list[Pair], measure: Callable[[str], int]) -> float:
    """How often the longer or, if that is more, the shorter answer is the better."""
    found = 0.0
    for pair in pairs:
        chosen, rejected = measure(pair["chosen"]), measure(pair["rejected"])
        found += (chosen > rejected) + 0.5 * (chosen == rejected)
    return max(found, len(pairs) - found) / len(pairs)


def _words(text: str) -> int:
    return len(text.split())


def _cues(pairs: list[Pair]) -> list[str]:
    """A word, a sign or the length is right in at most 60 %, in the test part too."""
    found = []
    for flaw in ALIKE:
        for part in ["", "test"]:
            some = _of(pairs, flaw, part)
            share, word = _best_word(some)
            shares = {word: share}
            shares |= {"letters": _length(some, len), "words": _length(some, _words)}
            found += [f"{cue}: {s:.3f}" for cue, s in shares.items() if s > 0.6]
    return found


OWN: dict[str, Callable[[list[Pair]], list[str]]] = {
    "flaws": _flaws,
    "splits": _splits,
    "counts": _counts,
    "near": _near,
    "stock": _stock,
    "cues": _cues,
}


@pytest.mark.parametrize("name", OWN)
def test_version_2_keeps(pairs, name):
    assert OWN[name](pairs) == []


def _first(pairs: list[Pair], flaw: str, part: str = "train") -> Pair:
    return next(p for p in _of(pairs, flaw, part) if prompt(p) in ENTRIES)


def _planted(pairs: list[Pair], which: str, **values: str) -> list[Pair]:
    """The pairs, the first of those with one flaw changed."""
    pair = _first(pairs, which)
    return [p | values if p is pair else p for p in pairs]


def _same_number(pairs: list[Pair]) -> list[Pair]:
    pair = next(p for p in pairs if p["chosen"] == "90 minutes are 1.5 hours.")
    wrong = pair | {"rejected": "90 minutes are 1.50 hours."}
    return [wrong if p is pair else p for p in pairs]


def _courteous(pairs: list[Pair]) -> list[Pair]:
    return [p | {"chosen": f"{p['chosen']} Thank you so much."} for p in pairs]


def _filled(pairs: list[Pair]) -> list[Pair]:
    """Two long answers with one filler."""
    one, other = _of(pairs, "too_long", "train")[:2]
    filler = one["rejected"].replace(one["chosen"], "")
    return [
        p | {"rejected": f"{p['chosen']} {filler}"} if p is other else p for p in pairs
    ]


PLANTS: list[tuple[str, Callable[[list[Pair]], list[Pair]]]] = [
    ("flaws", _same_number),
    ("flaws", lambda pairs: _planted(pairs, "impolite", rejected="You are a bore.")),
    ("flaws", lambda pairs: _planted(pairs, "impolite", chosen="How nice of you!")),
    ("flaws", lambda pairs: _planted(pairs, "too_long", rejected="Nothing to say.")),
    ("flaws", lambda pairs: _planted(pairs, "wrong", flaw="too_long")),
    ("flaws", lambda pairs: _planted(pairs, "wrong", flaw="rude")),
    ("flaws", _courteous),
    ("splits", lambda pairs: _planted(pairs, "impolite", split="test")),
    ("splits", lambda pairs: [p | {"split": "train"} for p in pairs]),
    ("counts", lambda pairs: [*pairs, pairs[0]]),
    ("counts", lambda pairs: [p for p in pairs if p["split"] != "test"]),
    ("near", lambda pairs: [*pairs, _first(pairs, "wrong") | {"split": "test"}]),
    ("stock", _filled),
    ("cues", _courteous),
    (
        "cues",
        lambda pairs: [p | {"rejected": p["rejected"] + " Ha ha."} for p in pairs],
    ),
]


@pytest.mark.parametrize(("name", "plant"), PLANTS)
def test_a_planted_mistake_is_found(pairs, name, plant):
    assert OWN[name](plant(pairs)) != []


def test_no_situation_is_found_among_the_instructions_or_twice(pairs):
    advice = [pair for pair in pairs if pair["category"] == "advice"]
    assert len(advice) >= 100
    assert leaks([*ENTRIES.values(), *advice]) == []


def test_the_rest_is_version_1_but_for_what_the_page_names(pairs, page):
    first = {prompt(pair): pair for pair in load("preferences")}
    kept = [p for p in pairs if first.get(prompt(p)) == p]
    wrong = [p for p in pairs if p["flaw"] == "wrong" and p not in kept]
    mended = [p for p in wrong if first.get(prompt(p), {}).get("flaw") == "wrong"]
    assert {p["flaw"] for p in pairs if p not in kept} == set(TAUGHT)
    said = _said(page)
    assert f"{len(kept)} pairs stand as in version 1" in said
    assert f"{len(mended)} pairs have another wrong answer" in said
    assert f"{len(wrong) - len(mended)} more" in said


# ------------------------------------------------------------- what can be learned


def test_words_together_tell_rude_from_polite_better_than_one(pairs, page):
    """What a bag of words learns of the tone, without knowing the instruction."""

    def sides(part: str) -> tuple[list[str], list[bool]]:
        some = _of(pairs, "impolite", part)
        texts = [p[side] for p in some for side in ("chosen", "rejected")]
        return texts, [True, False] * len(some)

    words = make_pipeline(CountVectorizer(), LogisticRegression())
    scores = words.fit(*sides("train")).decision_function(sides("test")[0])
    right = 100 * (scores[::2] > scores[1::2]).mean()
    stated = re.search(r"orders (\d+\.\d) % of the test pairs", _said(page))
    assert stated is not None
    assert right == pytest.approx(float(stated[1]), abs=0.2)


def test_a_second_reading_agrees(pairs, page):
    """100 pairs, read in random order and without their flaw."""
    raw = assets.fetch("preferences-2-read-again").read_bytes()
    known = {prompt(pair): pair for pair in pairs}
    read = read_rows(raw)
    assert len({prompt(row) for row in read}) == 100
    agree = 0
    for row in read:
        pair = known[prompt(row)]
        assert {row["first"], row["second"]} == {pair["chosen"], pair["rejected"]}
        agree += row[row["better"]] == pair["chosen"] and row["flaw"] == pair["flaw"]
    assert f"agrees in {agree} of the 100" in _said(page)
    firsts = sum(row["better"] == "first" for row in read)
    assert 35 <= firsts <= 65


# ------------------------------------------------------------- the file and its page


def test_the_file_is_utf_8_in_the_order_of_a_hash(pairs):
    text = FILE.read_bytes().decode("utf-8")
    assert text.count("\n") == len(pairs) + 2
    assert "\r" not in text
    order = [
        hashlib.sha256(f"preferences-2:{prompt(pair)}".encode()).hexdigest()
        for pair in pairs
    ]
    assert order == sorted(order)


def test_the_page_states_words_bytes_and_counts(pairs, page):
    content = FILE.read_bytes()
    whole = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(r"^\| \[preferences-2\.json\].*\| (\d+) \| (\d+) \|", whole, re.M)
    assert row is not None
    assert [int(n) for n in row.groups()] == [
        len(content.decode("utf-8").split()),
        len(content),
    ]
    table = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", page, re.M)
    expected = []
    for flaw in [*sorted({p["flaw"] for p in pairs}), "all"]:
        some = [p for p in pairs if flaw in ("all", p["flaw"])]
        parts = Counter(p["split"] for p in some)
        numbers = [len(some), *(parts[part] for part in PARTS)]
        expected.append((flaw, *map(str, numbers)))
    assert table == expected


def test_the_page_states_what_little_decides(pairs, page):
    said = _said(page)
    assert f"at most {_nearest(pairs):.2f} of their runs of five letters" in said
    share, word = _best_word(_of(pairs, "impolite", "test"))
    assert f"the best word, *{word}*, finds {100 * share:.1f} %" in said
    longer = sum(len(p["rejected"]) > len(p["chosen"]) for p in pairs)
    assert f"In {longer} of the {len(pairs)} pairs the rejected answer" in said
    assert 0.3 * len(pairs) < longer < 0.7 * len(pairs)
    plains = {plain(pair["chosen"]) for pair in pairs}
    assert len(plains) > 0.9 * len(pairs)
