"""A stricter rule for right answers, version 2 (chapter 7, section 7.6): support.

Version 1, `answer_scores.score_answer`, finds a right answer anywhere in a reply. So it
is kind to a reply that names many things, and untuned models do. Version 2 asks what a
reply *decides*, by the kind of answer that the entry lists:

* a number is compared as a number: 4.50 is 4.5, 2 000 is 2,000, `.8 m` is 0.8, but the
  unit must not be another one than was asked for; dates and times likewise;
* of several numbers, labels, weekdays or offered words the last or only one counts:
  that in the last sentence which draws a conclusion ("so", "the answer is", "="), and
  otherwise in the last with a number if there was something to work out, in the first
  if there was not. Two labels side by side decide nothing;
* a word may have another article or quotation marks, but must not stand in a row with
  others ("iron, copper or zinc") nor beside another one in quotation marks. Where a
  word itself is asked for, as in `WORD_CATEGORIES`, it must stand where an answer does;
* a sentence must be whole, and no other version of it may stand beside it;
* lists and bullets are compared item by item, JSON as data: a second one fails;
* what a negation denies was not said ("Marseille, not Paris"), nor what repeats the
  question; whoever does not know has not answered.

>>> entry = {"instruction": "Change 80 cm into metres.", "input": ""}
>>> entry["answers"] = ["0.8"]
>>> [score_answer_v2(entry, r) for r in (".80 m", "80 cm is 0.8 metres.", "0.8 cm")]
[True, True, False]
>>> entry = {"instruction": "Which city is on the Seine?", "input": ""}
>>> entry["answers"] = ["Paris"]
>>> [score_answer_v2(entry, r) for r in ("It is Paris.", "Marseille, not Paris.")]
[True, False]

It does not understand either. Which of its verdicts a person shares is counted in
`results/by_hand_errors.csv`.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from answer_scores import (
    EXACT_CATEGORIES,
    answer_pattern,
    can_be_read,
    offered_labels,
    plain_text,
    without_thinking,
)
from answer_values import (
    MONTHS,
    UNIT,
    dates_in,
    number_alone,
    numbers_in,
    unit_asked_for,
    unit_of,
)
from instruction_data import Entry, user_text

# In these a word itself is asked for, and common words answer: left, better, dear.
WORD_CATEGORIES = {
    "antonyms",
    "comparison",
    "plural",
    "similes",
    "spelling",
    "synonyms",
    "tense",
}
CLOSED_CLASSES = (  # whoever names two of one class has not decided
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    MONTHS,
    ["yes", "no"],
    ["true", "false"],
)


_LONGEST = 2000  # characters of a reply that are read


class Candidate(NamedTuple):
    """Something in a reply that may be its answer: where, what, and whether right."""

    start: int
    end: int
    value: object
    right: bool


def score_answer_v2(entry: Entry, reply: str) -> bool:
    """Whether a reply decides for one of the answers that count as right.

    Args:
        entry: with `instruction`, `input`, `answers` and perhaps `category`.
        reply: any text.

    Raises:
        ValueError: the entry lists no answers.
    """
    if not entry.get("answers"):
        raise ValueError(
            f"The entry {entry['instruction']!r} lists no answers, so no rule can "
            "decide: score only entries with the field answers."
        )
    exact, decide = entry.get("category") in EXACT_CATEGORIES, kind_of(entry)
    reply = reply[:_LONGEST]
    # Below "### Explanation:" and the like a model goes on with another text.
    text, *_ = re.split(r"\n\s*### \w+:", tidy(without_thinking(reply), exact))
    if entry.get("category") == "json" and decide != right_json:
        text = _without_json(text)
    return decide(entry, text)


def can_be_read_v2(entry: Entry, reply: str) -> bool:
    """Whether a reply says anything that could be an answer, or is right."""
    return score_answer_v2(entry, reply) or can_be_read(entry, reply)


def kind_of(entry: Entry) -> Callable[[Entry, str], bool]:
    """The part of the rule that decides, by what the right answers look like."""
    answers, category = entry["answers"], entry.get("category")
    first = answers[0]
    if category == "json" and first[0] in "[{":
        return right_json
    if "\n" in first:
        return right_lines
    dates = [{value for _, value in dates_in(answer)} for answer in answers]
    asked = {value for _, value in dates_in(user_text(entry))}
    if len(dates) > 1 and all(dates) and not asked & set().union(*dates):
        return right_date
    if all(number_alone(answer) is not None for answer in answers):
        return right_number
    if category not in EXACT_CATEGORIES:
        if "," in first and not first.endswith((".", "?", "!")):
            return right_list
        if len(first.split()) > 2 and first.endswith((".", "?", "!")):
            return right_sentence
    elif len(first.split()) > 2:
        return right_sentence
    return right_word


# --- What is said --------------------------------------------------------------------

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u00a0\u202f\u2009", " "),
        **dict.fromkeys("\u2010\u2011\u2212", "-"),
    }
)
_BE = r"(?:is|are|was|were|be|becomes?|means?|called)"
_NOT = re.compile(
    r"\b(?:not|never|neither|nor|cannot|instead of|than|unlike|no longer)\b"
    r"|n't\b"
)
_CLAUSE_ENDS = (
    r"(?:[,;:!?]|(?<!\bmr)(?<!\bmrs)(?<!\bdr)(?<!\bst)\.)(?=\s|$)|\n|\bbut\b|--"
)
_SO = re.compile(
    r"=|\b(?:so|therefore|thus|hence|answer|result|overall|finally|in total|in all)\b"
)
_UNKNOWN = re.compile(
    r"\b(?:i (?:do not|don't) (?:know|have)|no idea|(?:not|n't) sure|"
    r"i (?:cannot|can't|am unable|'m unable))\b"
)
_PERCENT = re.compile(r"\s*(?:%|per ?cent)")
_SHARE = re.compile(r"\bpercentage\b.*\?|\b(?:how many|in) per ?cent\b")
_IDIOMS = re.compile(  # common words that answer nothing here
    r"\b(?:may (?:be|have|not)|had better|(?:my|oh) dear|by heart|no idea)\b"
)


def tidy(text: str, exact: bool = False) -> str:
    """A text with plain quotation marks, blanks and hyphens, and without bold type."""
    text = text.translate(_SIGNS).strip()
    return text if exact else re.sub(r"\*\*|__|`", "", text)


def sentences_of(text: str) -> Iterator[tuple[int, int]]:
    """Where the sentences and lines of a text begin and end."""
    for match in re.finditer(r"[^\n]+?(?:[.!?]+[\"')]*(?=\s|$)|(?=\n)|$)", text):
        yield match.span()


def denied(text: str, start: int, end: int) -> bool:
    """Whether what stands there is said not to be: a negation in the same clause.

    A verb between them ends it: in "what does not fit is bread" bread is not denied.

    >>> denied("marseille, not paris", 15, 20), denied("not lyon but paris", 13, 18)
    (True, False)
    """
    before = re.split(_CLAUSE_ENDS, text[:start])[-1]
    before = re.split(rf"\b{_BE}(?! not\b|n't)\b(?!n't)", before)[-1]
    wrong = rf"\W*\b{_BE} (?:not|wrong|incorrect|false|misspel\w+)\b"
    return bool(_NOT.search(before) or re.match(wrong, text[end:]))


def repeated(entry: Entry, text: str, exact: bool) -> list[tuple[int, int]]:
    """Where a reply repeats the question; to "why" the given sentence is an answer."""
    why = entry["instruction"].casefold().startswith("why")
    questions = [entry["instruction"], "" if why else entry["input"]]
    return [
        match.span()
        for words in (tidy(question, exact).split() for question in questions)
        if words
        for match in re.finditer(
            r"\s+".join(map(re.escape, words)), text, 0 if exact else re.IGNORECASE
        )
    ]


def said(
    entry: Entry, text: str, found: list[Candidate], exact: bool = False
) -> list[Candidate]:
    """The candidates that are neither denied nor part of the question repeated."""
    echoes = repeated(entry, text, exact)
    return [
        one
        for one in found
        if not denied(text.casefold(), one.start, one.end)
        and not any(low <= one.start and one.end <= high for low, high in echoes)
    ]


def deciding(text: str, found: list[Candidate], last: bool) -> list[Candidate]:
    """The candidates of the sentence that decides, without those in reasons.

    Args:
        text: the reply.
        found: its candidates.
        last: whether, without a conclusion, the last sentence decides, not the first.
    """
    groups = []
    for low, high in sentences_of(text):
        inside = [one for one in found if low <= one.start < high]
        if not inside:
            continue
        ends = [m.end() for m in _SO.finditer(text[low:high])]
        ends = [end for end in ends if any(one.start >= low + end for one in inside)]
        after = low + max(ends, default=0)
        inside = [one for one in inside if one.start >= after]
        reason = re.compile(r"\b(?:because|since|as)\b")
        why = reason.search(text, inside[0].end, high)
        inside = [one for one in inside if not why or one.start < why.start()]
        groups.append((bool(ends), inside))
    concluded = [inside for so, inside in groups if so]
    if concluded:
        return concluded[-1]
    return groups[-1 if last else 0][1] if groups else []


# --- Numbers, dates, times -----------------------------------------------------------


def right_number(entry: Entry, text: str) -> bool:
    """Whether the number that a reply decides for is right, and its unit as asked."""
    text = re.sub(r"(?<=\d)\u00bd", " 1/2", text).casefold()
    text = _IDIOMS.sub(lambda match: "-" * len(match[0]), text)
    expected = {number_alone(answer) for answer in entry["answers"]}
    question = user_text(entry).casefold()
    asked = {value for _, value in numbers_in(question)}
    items = [number_alone(item) for item in entry["input"].split(",")]
    picked = len(items) > 2 and None not in items and expected <= set(items)
    given = set() if asked & expected else asked
    as_written = entry.get("category") == "code"  # there 4.0 is not 4
    copied = [m.span() for m in re.finditer(r"\[.*?\]", text) if m[0] in question]
    unit, found = unit_asked_for(question, entry["answers"][0]), []
    for match, value in numbers_in(text):
        if value in given or (match["words"] == "one" and 1 not in expected):
            continue
        if text[: match.start()].endswith("remainder "):
            continue
        if any(low < match.start() < high for low, high in copied):
            continue  # a list of a program is not its output
        right = value in expected
        if as_written and match["digits"]:
            right = match["digits"] in entry["answers"]
        behind = re.match(rf"\s*{UNIT}", text[match.end() :])
        if _PERCENT.match(text, match.end()) and not _SHARE.search(question):
            right = False  # 0.25% is not 0.25
        own = unit_of(behind[1]) if behind else None
        if own is None and match.start():
            own = unit_of(text[match.start() - 1])
        if unit and own and own != unit:
            right = False
        found.append(Candidate(match.start(), match.end(), value, right))
    found = said(entry, text, found)
    thing = re.search(r"how many (\w+)", question)
    if thing:  # "3 chairs, one lamp, 214 euros"
        of_it = rf"\s*{re.escape(thing[1])}\b"
        found = [one for one in found if re.match(of_it, text[one.end :])] or found
    chosen = deciding(text, found, last=bool(asked))
    if not chosen or picked:  # of the numbers given
        return bool(chosen) and all(one.right for one in chosen)
    *_, before, last = [chosen[0], *chosen]
    joined = text[before.end : last.start].strip() in ("or", "and", "to", "-", "/")
    return last.right and (before.right or not joined)


def right_date(entry: Entry, text: str) -> bool:
    """Whether the last or only date or time that the question lacks is right."""
    text = text.casefold()
    expected = {value for answer in entry["answers"] for _, value in dates_in(answer)}
    asked = {value for _, value in dates_in(user_text(entry))}
    found = [
        Candidate(match.start(), match.end(), value, value in expected)
        for match, value in dates_in(text)
        if value not in asked
    ]
    chosen = deciding(text, said(entry, text, found), last=True)
    return bool(chosen) and chosen[-1].right


# --- Words ---------------------------------------------------------------------------

_ARTICLE = r"(?:an?|the)\s+"
_ITEM = r"(?:(?:an? |the )?(?!or\b|and\b)[\w'-]+(?: (?!or\b|and\b)[\w'-]+)?)"
_ROW = re.compile(  # a, b and c; a/b/c; nothing but a, b, c
    rf"(?<![\w'-])(?:{_ITEM}(?:,? (?:or|and) {_ITEM}|, {_ITEM})*,? (?:or|and) {_ITEM}"
    rf"(?=[.!?,;\"]|$)|\w+(?:/\w+)+"
    rf"|(?:(?<=^)|(?<=: )){_ITEM}(?:, {_ITEM}){{2,}}(?=[.!?]|$))"
)
_PAIR = re.compile(r"^[\w'-]+, [\w'-]+(?=[.!?]?$)")
_ORDINALS = {
    "first": "1st",
    "second": "2nd",
    "third": "3rd",
    "fourth": "4th",
    "fifth": "5th",
    "sixth": "6th",
    "seventh": "7th",
    "eighth": "8th",
    "ninth": "9th",
    "tenth": "10th",
}


def right_word(entry: Entry, text: str) -> bool:
    """Whether a reply decides for a right word, or for a right group of few words."""
    exact = entry.get("category") in EXACT_CATEGORIES
    text = text if exact else " ".join(text.casefold().split())
    if _UNKNOWN.search(text.casefold()):
        return False
    text = _IDIOMS.sub(lambda match: "-" * len(match[0]), text)
    found = [
        Candidate(*match.span(), answer, True)
        for answer in forms_of(entry, exact)
        for match in re.finditer(answer_pattern(answer, exact), text)
        if match.start() == 0 or text[match.start() - 1] != "'" or len(answer) > 1
    ]
    found = said(entry, text, found, exact)
    others = choices(entry)
    if others:
        text = text.casefold()
        rivals = [
            Candidate(*match.span(), other, False)
            for other in others - {one.value.casefold() for one in found}
            for match in re.finditer(answer_pattern(other, exact=False), text)
            if not any(a.start <= match.start() < a.end for a in found)
        ]
        both = sorted(found + said(entry, text, rivals))
        chosen = deciding(text, both, last=entry.get("category") == "dates")
        return bool(chosen) and all(one.right for one in chosen)
    asks_word = entry.get("category") in WORD_CATEGORIES
    if asks_word:
        found = [one for one in found if _stands_as_answer(text, one)]
        if quotes_another(entry, text, found):
            return False
    row = partial(in_a_row, entry, text, right=found, pairs=asks_word)
    return bool(found) and not any(row(one) for one in found)


def forms_of(entry: Entry, exact: bool) -> set[str]:
    """The right answers in the forms that count: articles, plurals, ordinals."""
    forms = {tidy(answer, exact) for answer in entry["answers"]}
    if exact:
        return forms
    forms = {plain_text(answer, exact=False).rstrip(".") or answer for answer in forms}
    forms |= {re.sub(rf"^{_ARTICLE}", "", answer) for answer in forms}
    for pair in _ORDINALS.items():
        forms |= set(pair) if forms & set(pair) else set()
    if entry.get("category") in ("facts", "extraction", "odd_one_out"):
        # One of a kind or several of it: lung and lungs, a taxi and taxis.
        forms |= {f"{a}s" for a in forms if a[-1].isalpha() and len(a) > 3}
        forms |= {a[:-1] for a in forms if a.endswith("s") and len(a) > 4}
    return forms


def choices(entry: Entry) -> set[str]:
    """All that a question offers to choose from, right or wrong; often nothing.

    >>> entry = {"instruction": 'Is it "weird" or "wierd"?', "input": ""}
    >>> sorted(choices({**entry, "answers": ["weird"]}))
    ['weird', 'wierd']
    """
    right = {plain_text(a, exact=False).rstrip(".") for a in entry["answers"]}
    question = tidy(entry["instruction"]).casefold()
    if entry.get("category") == "classification":
        return offered_labels(entry) | right
    for group in CLOSED_CLASSES:
        if right <= set(group):
            return set(group) - set(re.findall(r"\w+", question)) | right
    items = {item.strip() for item in tidy(entry["input"]).casefold().split(",")}
    if len(items) > 2 and right <= items:
        return items
    quoted = set(re.findall(r'"(\w+)"', question)) if " or " in question else set()
    return quoted if right <= quoted else set()


def quotes_another(entry: Entry, text: str, found: list[Candidate]) -> bool:
    """Whether a word stands in quotation marks that is neither asked nor right."""
    question = set(re.findall(r"[\w'-]+", user_text(entry).casefold()))
    right = {one.value for one in found}
    quoted = re.findall(r"\"([\w' -]+?)[.,]?\"|(?<!\w)'([\w -]+?)[.,]?'(?!\w)", text)
    words = {re.sub(rf"^{_ARTICLE}", "", a or b) for a, b in quoted}
    return any(
        word not in right and word not in question and len(word.split()) < 3
        for word in words
    )


def _stands_as_answer(text, one):
    """Whether a word stands where an answer does.

    First in its sentence, last in its clause, in quotation marks, behind "is", or in a
    reply of few words.
    """
    before = re.sub(rf"(?:{_ARTICLE}|to |[\"'(])+$", "", text[: one.start])
    first = not before.strip() or before.rstrip()[-1] in '.:!?="([>\n'
    last = re.match(r"[\"')\]]*\s*(?:[.,;:!?(=\n]|$|-)", text[one.end :])
    named = re.search(rf"(?:\b{_BE}|\bas|\blike) $", before)
    short = len(text.split()) < 5  # "They criticise it."
    return bool(short or first or last or named)


def in_a_row(
    entry: Entry,
    text: str,
    one: Candidate,
    right: list[Candidate],
    pairs: bool = False,
) -> bool:
    """Whether a word is one of several in a row, of which others are wrong.

    A reply "Tokyo, Japan" is none; with `pairs` a reply of two words is one. What
    the question begins itself is none either ("like cat and ...").

    >>> entry = {"instruction": "Which metal is it?", "input": ""}
    >>> said = Candidate(0, 4, "iron", True)
    >>> in_a_row(entry, "iron, copper or zinc", said, [said])
    True
    >>> in_a_row(entry, "iron, a metal", said, [said])
    False
    """
    if re.search(r",| and | or ", str(one.value)):  # several were asked for
        return False
    good = tuple(str(other.value) for other in right)
    question = user_text(entry).casefold()
    rows = [*_ROW.finditer(text), *(_PAIR.finditer(text) if pairs else ())]
    for match in rows:
        if match.start() <= one.start < match.end():
            items = re.split(r",? (?:or|and) |, |/", match[0])
            short = [re.sub(rf"^{_ARTICLE}", "", item) for item in items]
            wrong = [item for item in short if not item.endswith(good)]
            wrong = [item for item in wrong if f"{item} and ..." not in question]
            if wrong and not re.search(r"\b(?:not|it|i|you|we)\b", " ".join(wrong)):
                return True
    return False


# --- Sentences, lists, data ----------------------------------------------------------


_SENTENCE_BEGINS = (
    r"(?:^|(?<=[.,:;!?\"'(\[>*\n-])|(?<=[.,:;!?>*\n-] )|(?<=\b(?:is|as|be) ))"
)
_SENTENCE_ENDS = r"(?=\s*(?:[.,;:!?\"')\]\n]|$))"


def right_sentence(entry: Entry, text: str) -> bool:
    """Whether a right sentence stands in a reply, and no other version of it."""
    exact = entry.get("category") in EXACT_CATEGORIES
    text = text if exact else re.sub(r"[^\S\n]+", " ", text.casefold())
    answers = [tidy(answer, exact) for answer in entry["answers"]]
    answers = answers if exact else [" ".join(a.casefold().split()) for a in answers]
    ends = "" if exact else ".?!"
    echoes = repeated(entry, text, exact)
    whole = [
        match.span()
        for answer in answers
        for match in re.finditer(
            _SENTENCE_BEGINS + re.escape(answer.rstrip(ends)) + _SENTENCE_ENDS, text
        )
        if not any(low <= match.start() and match.end() <= high for low, high in echoes)
    ]
    if not whole:
        return False
    wanted = [set(re.findall(r"[\w']+", answer)) for answer in answers]
    question = re.findall(r"[\w']+", tidy(user_text(entry)).casefold())
    for low, high in sentences_of(text):
        if any(low < end and start < high for start, end in whole):
            continue
        words = re.findall(r"[\w']+", text[low:high].casefold())
        given = f" {' '.join(words)} " in f" {' '.join(question)} "
        for answer in wanted:
            shared = len(answer & set(words)) / len(answer)
            if not given and shared > 0.6 and len(words) < 1.6 * len(answer):
                return False
    return True


def right_list(entry: Entry, text: str) -> bool:
    """Whether the last or only list of a reply has the right items in their order."""
    expected = [item.strip() for item in entry["answers"][0].casefold().split(",")]
    items = {i.strip() for i in re.split(r"[,\n]", tidy(entry["input"]).casefold())}
    items = {re.sub(r"^[-*\u2022] *", "", item) for item in items} | set(expected)
    joint = ". " if "\n" in entry["input"] else ", "  # lines are not to be lines again
    text = re.sub(r"\n\s*(?:[-*\u2022+]|\d+[.)])?\s*", joint, "\n" + text.casefold())
    text = re.sub(r",? (?:and|then) |\s*(?:[;<>|\u2192]|->)+\s*", ", ", text)
    rows = []
    for statement in re.split(r"[.:!?](?:[\"')]*(?=\s|,|$))", text):
        row = [part.strip(" \"'()[]") for part in statement.split(",")]
        row = [part for part in row if part]
        if len(row) == 1 and " ".join(expected) in row[0]:
            return row[0].endswith(" ".join(expected))
        row = [_item_in(part, items) for part in row]
        row = [item for item in row if item]
        if len(row) > 1:
            rows.append(row)
    given = [item.strip() for item in tidy(entry["input"]).casefold().split(",")]
    rows = [row for row in rows if row != given or row == expected]
    return bool(rows) and rows[-1] == expected


def _item_in(part, items):
    """The item that a part of a list names at its end or beginning; else the part."""
    for item in sorted(items, key=len, reverse=True):
        if part == item or part.endswith(" " + item) or part.startswith(item + " "):
            return item
    return part if len(part.split()) < 4 else ""


def right_lines(entry: Entry, text: str) -> bool:
    """Whether the marked lines of a reply, all together, are a right list of lines."""
    answers = [_marked(answer) for answer in entry["answers"]]
    text = re.sub(r" +(?=\d+[.)] )", "\n", text)
    return _marked(text) in answers


def _marked(text):
    """The lines that begin with a mark or a number: pairs of mark and text."""
    mark = r"[-*+\u2022\u2013] *\[ ?\]|\[ ?\]|[-*+\u2022\u2013]|\d+[.)]"
    lines = re.findall(rf"^[ \t]*({mark})[ \t]*(.+)$", text, re.MULTILINE)
    return [
        (
            "[" if "[" in mark else mark[:-1] if mark[0].isdigit() else "-",
            line.strip().rstrip(".").casefold(),
        )
        for mark, line in lines
    ]


def right_json(entry: Entry, text: str) -> bool:
    """Whether the JSON of a reply is the right data: keys in any order, kinds as is."""
    right = {_written(json.loads(answer)) for answer in entry["answers"]}
    question = [_written(value) for value, *_ in _values_in(user_text(entry))]
    values = [_written(value) for value, *_ in _values_in(text)]
    values = [value for value in values if value not in question or value in right]
    return bool(values) and all(value in right for value in values)


def _without_json(text):
    """A text without arrays and objects: where one value is asked for, none of many."""
    for _, low, high in reversed(list(_values_in(text))):
        text = text[:low] + " " + text[high:]
    return text


def _written(value):
    """Data in one way of writing it, in which 1, 1.0, "1" and true differ."""
    return json.dumps(value, sort_keys=True)


def _values_in(text):
    """The arrays and objects in a text, none inside another, with start and end."""
    decoder, start = json.JSONDecoder(), 0
    for _ in range(50):
        bracket = re.compile(r"[\[{]").search(text, start)
        if not bracket:
            return
        try:
            value, start = decoder.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            start = bracket.end()
            continue
        yield value, bracket.start(), start
