"""What small models write wrong, found by rule (chapter 7, bonus).

A model that writes its own questions and answers writes much that nobody should learn
from. Each filter looks for one fault in a `Pair`; `PairFilter` asks all of them, in the
order in which they are cheapest, and remembers the questions that it has seen.

* of a question: `is_cut`, `repeats_itself`, `has_foreign_letters`, `holds_marks`,
  `asks_nothing`, `lacks_its_input`, and nearly the same question again
  (`SeenQuestions`);
* of an answer: `is_cut`, `repeats_itself`, `has_foreign_letters`, `holds_marks`,
  `refuses`, `asks_back`, `says_the_question`, `has_wrong_sum`.

The faults are those of Wang et al., 2022 (arXiv:2212.10560, section 2.2: nearly the
same, no text that can be worked with, the input repeated), and of the course's small
model. A rule sees the form. Whether an answer is true it can only say of sums.

>>> pairs = PairFilter(["What is the capital of France?"])
>>> pairs.question_faults("What is the capital of France, please?")
['seen before']
>>> pairs.question_faults("Summarize the following text.")
['no input']
>>> pairs.answer_faults("What is 7 times 8?", "7 x 8 = 54.")
['wrong sum']
>>> pairs.answer_faults("What is dew?", "Water that the cold air leaves on the grass.")
[]

Left out: whether a question is worth asking, and whether an answer is right, which
needs a reader or a much larger model.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from fractions import Fraction

from answer_scores import plain_text
from answer_values import numbers_in, value_of_digits
from near_duplicates import shingles

# --- Both ----------------------------------------------------------------------------

_CLOSED = re.compile(r"[.!?\u2026:)\]}\"'`*\u201d\u2019|]\s*$")
_PAIRED = {"(": ")", "[": "]", "{": "}", "\u201c": "\u201d"}


def is_cut(text: str, ended: bool = True) -> bool:
    """Whether a text stops in the middle: at the limit, or inside a bracket or a code.

    A colon at the end is not looked for. A blind reading of what the filters keep found
    one such answer; they stay those that were read.

    Args:
        text: what the model wrote.
        ended: whether the model ended it itself.
    """
    if not ended or text.count("```") % 2 or text.count('"') % 2:
        return True
    if any(text.count(a) != text.count(b) for a, b in _PAIRED.items()):
        return True
    return (
        re.search(r"(?:[,;(\u2013-]|\b(?:and|or|the|a|an|of|to|with))\s*$", text)
        is not None
    )


def repeats_itself(text: str, words: int = 3, least: float = 0.7) -> bool:
    """Whether a text says the same again: few of its runs of words are different ones.

    Args:
        text: at least ten words; a shorter one has no room to repeat itself.
        words: how many words a run has.
        least: the share of different runs below which it counts as repetition.
    """
    found = re.findall(r"\w+", text.casefold())
    if len(found) < 10:
        return False
    runs = [tuple(found[i : i + words]) for i in range(len(found) - words + 1)]
    return len(set(runs)) < least * len(runs)


def has_foreign_letters(text: str) -> bool:
    """Whether a text has letters of another script, broken characters, or no letters.

    A few are no fault: a question about the letter pi has to show it.
    """
    letters = [sign for sign in text if sign.isalpha()]
    latin = sum(unicodedata.name(sign, "").startswith("LATIN") for sign in letters)
    broken = any(sign == "\ufffd" or _is_control(sign) for sign in text)
    return broken or latin < 0.9 * len(letters) or not letters


def _is_control(sign):
    return unicodedata.category(sign) in ("Cc", "Co", "Cs") and sign not in "\n\t"


_MARKS = re.compile(
    r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>|\[/?INST\]"
    r"|^#+ ?(?:instruction|response)\b"
    r"|^\W*(?:user|assistant|human|system|question|answer)\W*:",
    re.IGNORECASE | re.MULTILINE,
)


def holds_marks(text: str) -> bool:
    """Whether a text holds marks of a chat: it goes on with a turn of its own."""
    return _MARKS.search(text) is not None


# --- The question --------------------------------------------------------------------

_REQUESTS = re.compile(
    r"(?:^|[.!:;,]\s+)(?:then |and |now |please )?(?:"
    r"add|analyse|analyze|answer|arrange|ask|begin|build|calculate|"
    r"change|check|choose|classify|combine|compare|complete|compose|"
    r"compute|consider|convert|correct|count|create|decide|define|"
    r"describe|design|determine|develop|discuss|divide|draft|draw|edit|"
    r"estimate|evaluate|examine|explain|express|extract|fill|find|finish|"
    r"fix|form|format|formulate|generate|give|group|help|identify|"
    r"imagine|implement|improve|insert|join|keep|label|let|list|look|"
    r"make|mention|multiply|name|negate|number|offer|order|outline|"
    r"paraphrase|pick|plan|predict|prepare|propose|prove|provide|put|"
    r"rank|read|recommend|reduce|remove|reorder|rephrase|replace|reverse|"
    r"revise|rewrite|round|say|select|shorten|show|simplify|solve|sort|"
    r"spell|split|state|subtract|suggest|sum|summarise|summarize|take|"
    r"teach|tell|think|transform|translate|turn|unscramble|use|verify|"
    r"work|write"
    r")\b"
)
_WISHES = re.compile(
    r"\b(?:i (?:need|want|would like|'d like|am looking for)|i'd like|can you|"
    r"could you|would you|how to)\b"
)


def asks_nothing(question: str) -> bool:
    """Whether a text holds neither a question mark nor a request for anything."""
    text = plain_text(question, exact=False)
    if "?" in text or _WISHES.search(text):
        return False
    return _REQUESTS.search(text) is None


_POINTS = re.compile(
    r"\b(?:following|below|attached|provided|given (?:text|sentences?|paragraph|"
    r"passage|lists?|data|numbers|input|code|words?|article|table|image|story|equation)|"
    r"th(?:is|e above|ese) (?:text|sentences?|paragraph|passage|list|data|numbers|"
    r"input|code|article|table|image|picture|story|poem|e-?mail|essay|document|"
    r"function|equation|statement|conversation))\b"
)
_BLANKS = re.compile(r"\[[^\]\d]{2,40}\]|\{[a-z _]+\}|<[a-z _]+>|_{3,}|\bx{3,}\b")


def lacks_its_input(question: str) -> bool:
    """Whether a question speaks of a text that is not there, or has blanks to fill.

    It points at something ("the following list") and neither a colon nor a new line
    with at least three words comes after that, nor anything between quotation marks.
    """
    text = plain_text(question, exact=False)
    if _BLANKS.search(text):
        return True
    pointed = _POINTS.search(text)
    if pointed is None:
        return False
    quoted = re.search(r'"[^"]*\w[^"]*"|```', text)
    lines = question.strip().split("\n", 1)
    given = lines[1] if len(lines) > 1 else text[pointed.end() :].partition(":")[2]
    return quoted is None and len(re.findall(r"\w+", given)) < 3


class SeenQuestions:
    """Questions that were seen, and which of them a new one is nearly the same as.

    Two are compared by the share of their pairs of neighbouring words that they have in
    common (Jaccard, exactly: `near_duplicates.jaccard`), but only those are looked at
    that share one.

    Args:
        questions: known from the start.
        limit: the similarity from which on two questions count as nearly the same.
        words: how many neighbouring words make one element.

    >>> seen = SeenQuestions(["Name the capital of France.", "How high is the Eiffel?"])
    >>> seen.nearest("Please name the capital of France.")
    (0.8, 'Name the capital of France.')
    """

    def __init__(
        self, questions: Iterable[str] = (), limit: float = 0.6, words: int = 2
    ):
        self.limit, self.words = limit, words
        self.questions: list[str] = []
        self._sizes: list[int] = []
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        for question in questions:
            self.add(question)

    def add(self, question: str) -> None:
        """Remember a question."""
        elements = shingles(question, self.words).tolist()
        for element in elements:
            self._places[element].append(len(self.questions))
        self.questions.append(question)
        self._sizes.append(len(elements))

    def nearest(self, question: str) -> tuple[float, str]:
        """The similarity of the most similar question seen, and it; 0.0 and ""."""
        elements = shingles(question, self.words).tolist()
        shared = Counter(i for e in elements for i in self._places.get(e, ()))
        best = (0.0, "")
        for i, both in shared.items():
            share = both / (len(elements) + self._sizes[i] - both)
            if share > best[0]:
                best = share, self.questions[i]
        return best

    def has(self, question: str) -> bool:
        """Whether a question was seen, nearly."""
        return self.nearest(question)[0] >= self.limit


# --- The answer ----------------------------------------------------------------------

_REFUSES = re.compile(
    r"\bas an? (?:ai|artificial|language|large|computer|digital|virtual)\b"
    r"|\b(?:i'm|i am|we're) (?:sorry|afraid|unable|not able|just an?|only an?)\b"
    r"|\bi (?:cannot|can't|do not have|don't have|won't|will not|do not know|"
    r"don't know|apologi[sz]e)\b"
    r"|^\W*(?:sorry|unfortunately|apologies)\b"
)


def refuses(answer: str) -> bool:
    """Whether an answer says that it is none, in its first twenty words."""
    return (
        _REFUSES.search(" ".join(plain_text(answer, exact=False).split()[:20]))
        is not None
    )


def asks_back(answer: str) -> bool:
    """Whether an answer ends as a question, or only offers its help."""
    text = plain_text(answer, exact=False)
    offers = r"\b(?:how can i|what can i|i(?:'d be| am|'m) (?:happy|glad|here) to)\b"
    return text.rstrip("\"')* ").endswith("?") or re.search(offers, text) is not None


def says_the_question(question: str, answer: str) -> bool:
    """Whether an answer has nothing that was not in the question.

    It has at least five words, and nine in ten of them stand in the question. A short
    answer may do that: one that picks from what was offered.
    """
    words = re.findall(r"\w+", answer.casefold())
    known = set(re.findall(r"\w+", question.casefold()))
    return len(words) >= 5 and sum(w in known for w in words) >= 0.9 * len(words)


# --- Sums ----------------------------------------------------------------------------

_NUMBER = r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SIGN = r"[-+*/x\u00d7\u00f7\u2212\u00b7]"
_WORD = r"plus|minus|times|multiplied by|divided by"
_OPERATION = rf"\s*(?:{_SIGN}|{_WORD})\s*"
_TERM = rf"(?<![\w.,/^(*-]){_NUMBER}(?:{_OPERATION}{_NUMBER})+"
_EQUATION = re.compile(
    rf"({_TERM})\s*(?:=|equals|is|gives)\s*({_NUMBER})"
    rf"(?![\d/^%(]|\.\d|\s*[*/x\u00d7\u00f7^]\s*\d|\s*[-+]\s*\d)"
)
_ASKED = re.compile(rf"({_TERM})(?!\s*[=^(%]|[a-z\d]|\.\d)")
_ASKS = re.compile(
    r"\b(?:what(?:'s| is| are)|calculate|compute|evaluate|solve|simplify|work out|find|"
    r"how (?:much|many)|result|value|sum|product|difference|quotient)\b"
)
_DATES = re.compile(r"\b\d{1,4}[-/]\d{1,2}[-/]\d{1,4}\b|\b[12]\d{3} ?- ?[12]\d{3}\b")
_SIGNS = {"plus": "+", "minus": "-", "\u2212": "-", "times": "*", "x": "*"}
_SIGNS |= {"\u00d7": "*", "\u00b7": "*", "multiplied by": "*", "\u00f7": "/"}
_SIGNS |= {"divided by": "/"}


def value_of_sum(text: str) -> Fraction | None:
    """The value of numbers with signs between them; None where it has none.

    >>> value_of_sum("2 + 3 x 4"), value_of_sum("1,000 / 8"), value_of_sum("1 / 0")
    (Fraction(14, 1), Fraction(125, 1), None)
    """
    parts = re.split(f"({_OPERATION})", text.replace("$", ""))
    numbers = [value_of_digits(part.strip()) for part in parts[::2]]
    signs = [_SIGNS.get(part.strip(), part.strip()) for part in parts[1::2]]
    terms = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= number
        elif sign == "/":
            if number == 0:
                return None
            terms[-1] /= number
        else:
            terms.append(number if sign == "+" else -number)
    return sum(terms, Fraction(0))


def has_wrong_sum(question: str, answer: str) -> bool:
    """Whether a sum in the answer is wrong, or one that was asked for is not answered.

    A result with decimals may be rounded at its last one. Without an equation in the
    answer, the value of the one sum in the question must be among its numbers.
    """
    text = plain_text(answer, exact=False)
    for term, result in _EQUATION.findall(text):
        value = value_of_sum(term)
        decimals = len(result.partition(".")[2])
        if (
            value is None
            or abs(value - value_of_digits(result.replace("$", ""))) * 2 * 10**decimals
            > 1
        ):
            return True
    question = _DATES.sub(" ", plain_text(question, exact=False))
    asked = _ASKED.findall(question) if _ASKS.search(question) else []
    values = [value_of_sum(term) for term in asked]
    if len(values) != 1 or values[0] is None:
        return False
    found = [value for _, value in numbers_in(text)]
    return not any(abs(value - values[0]) * 200 <= 1 for value in found)


# --- All of them ---------------------------------------------------------------------


class PairFilter:
    """All filters, and the questions that were seen.

    Args:
        known: questions that exist already, such as the course's own.
        limit: as in `SeenQuestions`.
        longest: how many words a question may have.
    """

    def __init__(
        self, known: Iterable[str] = (), limit: float = 0.6, longest: int = 60
    ):
        self.seen = SeenQuestions(known, limit)
        self.longest = longest

    def question_faults(self, question: str, ended: bool = True) -> list[str]:
        """The names of the filters that find a fault; a question without is seen."""
        count = len(question.split())
        found = {
            "unfinished": is_cut(question, ended),
            "length": not 3 <= count <= self.longest,
            "repetition": repeats_itself(question),
            "other script": has_foreign_letters(question),
            "chat marks": holds_marks(question),
            "no request": asks_nothing(question),
            "no input": lacks_its_input(question),
            "seen before": self.seen.has(question),
        }
        faults = [name for name, is_there in found.items() if is_there]
        if not faults:
            self.seen.add(question)
        return faults

    def answer_faults(
        self, question: str, answer: str, ended: bool = True
    ) -> list[str]:
        """The names of the filters that find a fault in an answer."""
        found = {
            "no answer": not answer.strip(),
            "unfinished answer": is_cut(answer, ended),
            "repetition in answer": repeats_itself(answer),
            "other script in answer": has_foreign_letters(answer)
            and not re.search(r"\d", answer),
            "chat marks in answer": holds_marks(answer),
            "refusal": refuses(answer),
            "asks back": asks_back(answer),
            "says the question": says_the_question(question, answer),
            "wrong sum": has_wrong_sum(question, answer),
        }
        return [name for name, is_there in found.items() if is_there]
