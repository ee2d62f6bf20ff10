"""Version 2 of the messages keeps what its page promises, and form gives little away.

What both versions promise is checked by the functions of version 1's tests. Each check
is seen to fail on a copy of the file with a planted mistake.
"""

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_messages import KINDS, PAGE, PLANTS, PROMISES

from course import assets
from message_form import FORM, LINK, form_table, host

Row = dict[str, str]

FIELDS = ["text", "label", "kind", "family", "language", "split"]
PARTS = ["train", "validation", "test"]
# What version 2 does otherwise: its fields, its kinds and its split.
OTHERWISE = {"shape", "splits"}


@pytest.fixture(scope="module")
def raw() -> bytes:
    return assets.fetch("messages-2").read_bytes()


@pytest.fixture(scope="module")
def rows(raw: bytes) -> list[Row]:
    return read_rows(raw)


@pytest.fixture(scope="module")
def first() -> set[str]:
    """The texts of version 1."""
    return {row["text"] for row in read_rows(assets.fetch("messages").read_bytes())}


def read_rows(raw: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(raw.decode("utf-8"), newline="")))


@pytest.fixture(scope="module")
def section() -> str:
    page = PAGE.read_text(encoding="utf-8")
    return page.split("\n## Messages, version 2\n")[1].split("\n## ")[0]


# ------------------------------------------------------- what both versions promise


@pytest.mark.parametrize("name", PROMISES.keys() - OTHERWISE)
def test_the_messages_keep(rows, name):
    assert PROMISES[name](rows) == []


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        pytest.param(name, plant, id=f"{name}: {what}")
        for name, what, plant in PLANTS
        if name not in OTHERWISE
    ],
)
def test_a_planted_mistake_is_found(rows, name, plant):
    planted = plant(rows)
    assert planted != rows
    assert PROMISES[name](planted) != []


# ----------------------------------------------------------- what version 2 promises


def _shape(rows: list[Row]) -> list[str]:
    kinds = {"wanted": KINDS["wanted"], "spam": [*KINDS["spam"], "sale scam"]}
    return [
        f"row {number}: {row}"
        for number, row in enumerate(rows, 2)
        if list(row) != FIELDS
        or not all(row.values())
        or row["kind"] not in kinds[row["label"]]
        or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["family"])
        or not re.fullmatch(r"[a-z]{2}|mixed", row["language"])
    ]


def _split_of(family: str) -> str:
    """The part that a family belongs to; the page states the rule."""
    digest = hashlib.sha256(f"messages-2:{family}".encode()).hexdigest()
    hundredth = int(digest, 16) % 100
    return PARTS[(hundredth >= 55) + (hundredth >= 64)]


def _splits(rows: list[Row]) -> list[str]:
    found = [row["text"] for row in rows if row["split"] != _split_of(row["family"])]
    test = [row for row in rows if row["split"] == "test"]
    families = {row["family"] for row in test}
    if len(test) < 800 or len(families) < 120:
        found.append(f"{len(test)} rows of {len(families)} families to test with")
    return found


def _languages(rows: list[Row]) -> list[str]:
    """Every language speaks on both sides, about equally often."""
    counts = Counter((row["language"], row["label"]) for row in rows)
    found = []
    for language in sorted({row["language"] for row in rows} - {"en", "mixed"}):
        wanted, spam = counts[language, "wanted"], counts[language, "spam"]
        if min(wanted, spam) < 3 or abs(wanted - spam) > 1:
            found.append(f"{language}: {wanted} wanted, {spam} spam")
    others = [
        1 - counts["en", label] / sum(row["label"] == label for row in rows)
        for label in KINDS
    ]
    if max(others) - min(others) > 0.03:
        found.append(f"{others} are not English")
    return found


def test_a_second_reading_agrees_with_the_labels(rows, first, section):
    """200 new messages, read without their labels; 97 % must be read alike."""
    raw = assets.fetch("messages-2-read-again").read_bytes()
    verdicts = {row["text"]: row["verdict"] for row in read_rows(raw)}
    labels = {row["text"]: row["label"] for row in rows}
    assert len(verdicts) == 200
    assert not first & set(verdicts)
    agree = sum(labels.get(text) == verdict for text, verdict in verdicts.items())
    assert agree >= 0.97 * 200
    assert (agree == 200) == ("agrees with the label of all 200" in section)


def fragments(text: str) -> set[str]:
    """The runs of five letters, small, with one blank for any space."""
    text = " ".join(text.casefold().split())
    return {text[i : i + 5] for i in range(len(text) - 4)} or {text}


def nearest_across_parts(rows: list[Row]) -> float:
    """The largest Jaccard index of the runs of letters of two rows in two parts."""
    found = CountVectorizer(analyzer=fragments, binary=True).fit_transform(
        row["text"] for row in rows
    )
    both = (found @ found.T).toarray().astype(float)
    sizes = both.diagonal()
    jaccard = both / (sizes[:, None] + sizes[None, :] - both)
    parts = np.array([row["split"] for row in rows])
    return float(jaccard[parts[:, None] != parts[None, :]].max())


def _near(rows: list[Row]) -> list[str]:
    nearest = nearest_across_parts(rows)
    return [] if nearest < 0.3 else [f"two parts share {nearest:.2f} of five letters"]


def words_alone(rows: list[Row]) -> list[tuple[float, str]]:
    """How often the label follows from one word or sign alone, the best one last."""
    spam = np.array([row["label"] == "spam" for row in rows])
    cues = CountVectorizer(binary=True, token_pattern=r"\w+|[^\w\s]")
    has = cues.fit_transform(row["text"] for row in rows).toarray().astype(bool)
    right = (has == spam[:, None]).mean(axis=0)
    best = np.maximum(right, 1 - right)
    return sorted(zip(best.tolist(), cues.get_feature_names_out().tolist()))


def _single_cues(rows: list[Row]) -> list[str]:
    test = [row for row in rows if row["split"] == "test"]
    cues = [*words_alone(rows)[-3:], *words_alone(test)[-3:]]
    return [f"{cue!r} is right in {share:.3f}" for share, cue in cues if share > 0.6]


OWN: dict[str, Callable[[list[Row]], list[str]]] = {
    "shape": _shape,
    "splits": _splits,
    "languages": _languages,
    "near": _near,
    "single cues": _single_cues,
}


@pytest.mark.parametrize("name", OWN)
def test_version_2_keeps(rows, name):
    assert OWN[name](rows) == []


def _with(row: Row, **values: str) -> Row:
    return row | values


OWN_PLANTS: list[tuple[str, Callable[[list[Row]], list[Row]]]] = [
    ("shape", lambda rows: [_with(rows[0], kind="advert"), *rows[1:]]),
    ("shape", lambda rows: [_with(rows[0], language="English"), *rows[1:]]),
    ("splits", lambda rows: [_with(row, split="test") for row in rows]),
    ("splits", lambda rows: [r for r in rows if r["split"] != "test"]),
    (
        "languages",
        lambda rows: [
            r for r in rows if (r["language"], r["label"]) != ("pl", "wanted")
        ],
    ),
    (
        "languages",
        lambda rows: [
            r for r in rows if (r["language"], r["label"]) != ("mixed", "spam")
        ],
    ),
    (
        "near",
        lambda rows: [
            *rows,
            _with(
                next(r for r in rows if len(r["text"]) > 80 and r["split"] == "train"),
                split="test",
            ),
        ],
    ),
    (
        "single cues",
        lambda rows: [
            _with(r, text=r["text"] + " kindly")
            if r["label"] == "spam" and i % 2
            else r
            for i, r in enumerate(rows)
        ],
    ),
]


@pytest.mark.parametrize(("name", "plant"), OWN_PLANTS)
def test_a_mistake_planted_in_version_2_is_found(rows, name, plant):
    assert OWN[name](plant(rows)) != []


def test_most_of_it_is_version_1_word_for_word(rows, first, section):
    new = [row for row in rows if row["text"] not in first]
    labels = Counter(row["label"] for row in new)
    families = len({row["family"] for row in new})
    assert len(new) >= 400
    said = " ".join(section.split())
    assert f"{len(rows) - len(new)} of the 1855 messages of version 1" in said
    assert f"{len(new)} new ones in {families} families" in said
    assert f"{labels['wanted']} wanted, {labels['spam']} spam" in said


# ----------------------------------------------------------------------- form alone


def _unlinked(text: str) -> str:
    return LINK.sub(" ", text)


MORE_FORM: dict[str, Callable[[str], float]] = {
    "a link in .net": lambda text: host(text).endswith(".net"),
    "a link in .com": lambda text: host(text).endswith(".com"),
    "ends with the link": lambda text: bool(re.search(f"{LINK.pattern}$", text, re.I)),
    "two links": lambda text: len(LINK.findall(text)) > 1,
    "a colon": lambda text: ":" in _unlinked(text),
    "a word in capitals": lambda text: bool(
        re.search(r"\b[A-Z]{4,}\b", _unlinked(text))
    ),
    "an apostrophe": lambda text: "'" in text,
    "a comma": lambda text: "," in text,
    "commas per word": lambda text: text.count(",") / len(text.split()),
    "a digit": lambda text: any(char.isdigit() for char in text),
    "ends with a full stop": lambda text: text[-1] == ".",
    "full stops": lambda text: _unlinked(text).count("."),
    "plain ASCII": lambda text: text.isascii(),
    "quotation marks": lambda text: '"' in text,
    "a hyphen outside the link": lambda text: "-" in _unlinked(text),
    "a bracket": lambda text: "(" in text,
    "more than 30 words": lambda text: len(text.split()) > 30,
    "fewer than 6 words": lambda text: len(text.split()) < 6,
}
MARKS = {"14": FORM, "32": FORM | MORE_FORM}


def _table(
    rows: list[Row], marks: dict[str, Callable[[str], float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Marks of shape (rows, marks), and which rows are spam."""
    table = form_table([row["text"] for row in rows], marks)
    return table, np.array([row["label"] == "spam" for row in rows])


def _score(rows: list[Row], marks, model) -> float:
    """Per cent of the test part that is right after learning from the training part."""
    train = _table([row for row in rows if row["split"] == "train"], marks)
    test = _table([row for row in rows if row["split"] == "test"], marks)
    return 100 * model.fit(*train).score(*test)


def _linear():
    return make_pipeline(StandardScaler(), LogisticRegression())


def _stated(section: str, what: str) -> float:
    found = re.search(rf"{what} (\d+\.\d) %", " ".join(section.split()))
    assert found is not None, what
    return float(found[1])


@pytest.mark.parametrize("count", MARKS)
def test_logistic_regression_on_form_alone_stays_below_65(rows, section, count):
    assert len(MARKS[count]) == int(count)
    score = _score(rows, MARKS[count], _linear())
    assert score < 65
    stated = _stated(section, f"logistic regression on {count} marks of form scores")
    assert score == pytest.approx(stated, abs=0.2)


def test_the_same_regression_sorts_version_1_by_its_form(section):
    rows = read_rows(assets.fetch("messages").read_bytes())
    score = _score(rows, FORM, _linear())
    assert score == pytest.approx(_stated(section, "is right about"), abs=0.3)


def test_form_that_follows_the_label_is_found(rows):
    shouted = [
        row | {"text": row["text"] + "!"} if row["label"] == "spam" else row
        for row in rows
    ]
    assert _score(shouted, FORM, _linear()) > 80


@pytest.mark.parametrize("count", MARKS)
def test_trees_find_more_in_the_form_and_the_page_says_how_much(rows, section, count):
    trees = HistGradientBoostingClassifier(max_depth=3, max_iter=60, random_state=0)
    score = _score(rows, MARKS[count], trees)
    stated = _stated(section, f"boosted trees on {count} marks")
    assert score == pytest.approx(stated, abs=1)


def test_the_words_say_more_than_the_form(rows, section):
    parts = {
        part: [row for row in rows if row["split"] == part]
        for part in ("train", "test")
    }
    texts = {part: [row["text"] for row in chosen] for part, chosen in parts.items()}
    spam = {
        part: [row["label"] == "spam" for row in chosen]
        for part, chosen in parts.items()
    }
    words = make_pipeline(CountVectorizer(), LogisticRegression())
    score = 100 * words.fit(texts["train"], spam["train"]).score(
        texts["test"], spam["test"]
    )
    stated = _stated(section, "logistic regression over words scores")
    assert 80 < score < 95
    assert score == pytest.approx(stated, abs=0.2)


# ----------------------------------------------------------------- the file, its page


def test_the_file_is_utf8_with_plain_line_ends_and_the_writing_of_pythons_csv(raw):
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(read_rows(raw))
    assert raw == out.getvalue().encode("utf-8")
    assert b"\r" not in raw
    assert not raw.startswith(b"\xef\xbb\xbf")


def test_families_stand_together_in_the_order_of_their_hash(rows):
    order = [hashlib.sha256(row["family"].encode()).hexdigest() for row in rows]
    assert order == sorted(order)


def test_the_page_states_the_words_and_bytes_of_the_file(raw):
    page = PAGE.read_text(encoding="utf-8")
    row = re.search(r"^\| \[messages-2\.csv\].*\| (\d+) \| (\d+) \|", page, re.M)
    assert row is not None
    assert int(row[1]) == sum(len(row["text"].split()) for row in read_rows(raw))
    assert int(row[2]) == len(raw)


def test_the_page_states_the_counts(rows, section):
    table = re.findall(
        r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", section, re.M
    )
    expected = []
    for part in [*PARTS, "all"]:
        chosen = [row for row in rows if part in ("all", row["split"])]
        labels = Counter(row["label"] for row in chosen)
        families = len({row["family"] for row in chosen})
        counts = (len(chosen), labels["wanted"], labels["spam"], families)
        expected.append((part, *map(str, counts)))
    assert table == expected


def test_the_page_states_the_rows_of_every_kind(rows, section):
    stated = dict(re.findall(r"\| ([A-Za-z -]+) \| (\d+) ", section))
    counts = Counter(row["kind"] for row in rows)
    assert {kind: int(stated[kind]) for kind in counts} == dict(counts)


def test_the_page_states_the_languages(rows, section):
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        counts[row["language"]][row["label"]] += 1
    table = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \| (\d+) \|", section, re.M)
    assert {name: (int(wanted), int(spam)) for name, wanted, spam in table} == {
        name: (both["wanted"], both["spam"]) for name, both in counts.items()
    }


def test_the_page_states_the_measured_distances_and_the_best_word(rows, section):
    said = " ".join(section.split())
    assert f"at most {nearest_across_parts(rows):.2f} of their runs" in said
    share, word = words_alone([row for row in rows if row["split"] == "test"])[-1]
    assert f"the best, *{word}*, is right in {100 * share:.1f} %" in said
