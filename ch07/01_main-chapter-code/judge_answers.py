"""What a judge decided, if it decided one thing (chapter 7, section 7.8): support.

* `only_score`: the one grade from 0 to 100 in what a judge says;
* `only_choice`: the one reply that it prefers, or a tie.

A judge writes as it likes. A grade that it did not give must never be read out of its
words; so whatever leaves a doubt is read as nothing, and counted by who asks.

>>> only_score("On a scale from 0 to 100: 85"), only_score("Score: 80 - 90")
(85.0, None)
>>> only_choice("Reply B is better than Reply A.", "AB"), only_choice("A or B", "AB")
('B', None)
"""

import re
import unicodedata

_SIGNS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\u301c~"), "-")
_SIGNS |= dict.fromkeys(map(ord, "*_`#\"'\u201c\u201d\u2018\u2019"), " ")
_NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?![a-z\d_])"
_SCALE = re.compile(  # "from 0 (useless) to 100 (as good as ...)" is no grade
    r"\(?(?:\b(?:on a )?scale )?(?:\b(?:of|from|between) )?(?<![\w.])[01]"
    r"(?: \(useless\))? ?(?:to|-|and|\.\.+) ?100(?!\w)(?: \(as good[^)]*\))?\)?"
    r"|\((?:out of|/|max) ?100\)"
)
_OTHER_SCALE = re.compile(
    r"\d ?(?:/|out of) ?(?!100(?!\d))\d|\d,\d|\d ?- ?\d|\bstars?\b"
)
_OF_100 = re.compile(rf"({_NUMBER}) ?(?:/|out of|of) ?100(?: points)?(?!\w)")
_SAYS = re.compile(
    r"\b(?:score|grade|rating|i (?:d |would |will )?(?:give|rate|say))\b"
)
# Numbers that are no grades: "2 + 2 = 4", "1 word is wrong", "I took off 10 points".
_EXPLAINED = re.compile(
    r"\d+(?: ?[-+*x/\u00d7] ?\d+)+ ?= ?\d+|\b(?:off|lost|deducted) \d+ points?"
    r"|\b\d+ (?:(?:small|wrong|right|missing|extra) )?(?:words?|errors?|mistakes?|"
    r"letters?|sentences?|commas?|parts?|facts?|typos?|details?|lines?)\b"
)
_WORDS = (  # what may stand before a grade, and nothing else
    "score|grade|rating|mark|verdict|my|the|final|overall|total|i|d|would|will|give|"
    "gives|rate|say|assign|award|deserves?|gets|earns|is|was|it|this|that|reply|answer|"
    "response|a|an|as|at|of|for|so|therefore|thus|hence|be|solid|full|points"
)
_GRADE = re.compile(
    rf"(?:[^\w<>-]|-(?!\d)|\b(?:{_WORDS})\b)*(?P<n>{_NUMBER})"
    r"(?: ?%| ?(?:points?|percent|pts|\u70b9|\u5206|\uc810))?"
    r"(?:[^\w?%+<>]*$| ?[-(:](?=\D)|\s(?:because|since|as|for|though|but)\b)"
)
# "The answer is 8" speaks of the question, "The grade of the answer is 8" does not.
_OF_QUESTION = re.compile(r"\b(?:answer|reply) (?:is|was)\b")
_WHOSE = re.compile(
    r"\b(?:score|grade|rating|mark) (?:for|of) (?:th(?:e|is|at) )?(?:answer|reply)"
)
_DOUBT = re.compile(
    r"\b(?:not|no|never|cannot|n t|can t|won t|don t|if|unless|could|might|may|should|"
    r"above|below|over|under|than|most|least|perfect|max\w*|min\w*|highest|lowest|best|"
    r"worst|right answer|other|another|previous|average|usually|normally|example)\b"
)
_TAKEN_BACK = re.compile(
    r"\b(?:if|unless|wait|instead|rather|reconsider\w*|correction|second thought|"
    r"at (?:first|most|least)|too (?:high|low|much|generous|harsh|kind))\b"
)


def only_score(answer: str) -> float | None:
    """The one grade in a judge's answer; None if there is none, or a doubt.

    It stands before "/100", behind words such as "score" or "I give it", or alone
    between signs or line breaks. Every other number must be explained, as in "1 word is
    wrong", and nothing may say that it is not the grade.

    Args:
        answer: what the judge said, without its thoughts.
    """
    text = re.sub(r"(?<=\d) ?[*] ?(?=\d)", "x", unicodedata.normalize("NFKC", answer))
    text = re.sub(r"[^\S\n]+", " ", text.translate(_SIGNS).lower())
    text = _EXPLAINED.sub(" ", _SCALE.sub(" ", text))
    if _OTHER_SCALE.search(text) or _TAKEN_BACK.search(text):
        return None
    text = _SAYS.sub(r", \g<0>", _OF_100.sub(r", grade \1,", text))
    found = set()
    for sentence in re.split(r"\n|(?<=[.!?;])\s", text):
        clauses = re.split(r"[,;{}]|: ?(?=[a-z])", sentence)
        for number, clause in enumerate(clauses):
            match = _GRADE.match(clause)
            if not match or _OF_QUESTION.search(_WHOSE.sub("", match[0])):
                continue
            if not _DOUBT.search(" ".join(clauses[:number])):
                found.add(float(match["n"]))
    others = {float(number) for number in re.findall(_NUMBER, text)} - found
    if len(found) != 1 or any(0 <= number <= 100 for number in others):
        return None
    (value,) = found
    return None if value < 10 and value != int(value) else value


def only_choice(answer: str, letters: str) -> str | None:
    """The one letter that a judge's answer prefers, or "tie"; None if it is not clear.

    Args:
        answer: what the judge said, without its thoughts.
        letters: those of the replies that it was shown.
    """
    if answer.strip(" \n.()[]*").upper() in [*letters]:
        return answer.strip(" \n.()[]*").upper()
    answer = re.sub(r"[^.!?\n]*\?", "", answer.replace("*", ""))  # it asks itself
    reply = r"(?:[Rr]eply |[Aa]nswer |[Rr]esponse |[Oo]ption )?"
    better = rf"(?:{_FAR} )?(?:{_BETTER})(?: \w+){{0,4}}? (?:than|to)"
    wins = "wins (?:over|against)|beats|over|>|rather than|instead of"
    answer = re.sub(  # "A is better than B" names both and prefers A
        rf"(?<!\w)([{letters}]) (?:(?:is|was|seems|looks) {better}|{wins}) {reply}"
        rf"[{letters}](?!\w)",
        r"\1 is better",
        re.sub(
            rf"(prefer {reply}[{letters}]) to {reply}[{letters}](?!\w)", r"\1", answer
        ),
    )
    # "A" is a word too, so it must stand alone, before a sign, or beside certain words.
    named = re.findall(rf"(?<!\w)([{letters}])(?![\w'])(?! [a-z])", answer)
    named += re.findall(rf"(?i:reply|answer|is) ([{letters}])(?!\w)", answer)
    named += re.findall(rf"(?<!\w)([{letters}]) (?:is|was|are|wins|or|and)\b", answer)
    against = (  # "B is wrong" and "the worse one is B" prefer nothing
        rf"(?<!\w)[{letters}] (?:is|was)(?: \w+)? ?(?:n't|not|{_BAD})\b"
        rf"|\b(?:{_BAD})\b[^.\n]*\b(?:is|reply|answer) [{letters}](?!\w)"
        rf"|\b[Nn](?:ot|either) {reply}[{letters}]|\b(?:[Nn]o|not a) tie\b"
        rf"|\b(?:[Ii]f|[Uu]nless|cannot|can't|n't|not)\b[^.\n]*(?<!\w)[{letters}](?!\w)"
    )
    tied = re.search(r"\b(?:tie|tied|equal|equally)\b", answer, re.IGNORECASE)
    tied = tied or (not named and re.search(r"\bboth\b", answer, re.IGNORECASE))
    if re.search(against, answer):
        return None
    if tied:
        return "tie" if set(named) in (set(), {*letters}) else None
    return named[0] if len(set(named)) == 1 else None


_BAD = "wrong|worse|worst|incorrect|false|bad|weaker|inferior"
_BETTER = "better|stronger|clearer|closer|preferable|superior|more"
_FAR = "(?:much|far|clearly|slightly|somewhat|a bit|a little|definitely|also)"
