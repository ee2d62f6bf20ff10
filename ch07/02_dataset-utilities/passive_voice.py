"""Sentences in the passive voice, made by rule, and checked (chapter 7, bonus).

* `to_passive` turns a sentence around, if it is of a form that the rule understands;
* `passive_problem` says what is wrong with a passive, whoever made it.

>>> to_passive("The children built a sandcastle.")
'A sandcastle was built by the children.'
>>> passive_problem("She is painting the door.", "The door was being painted by her.")
'the tense has changed: is painting becomes was being'
>>> to_passive("They slept.") is None
True

Only plain statements with a doer, a verb and one object are understood: no commas, no
negation, nothing behind the object, no verb that `verb_forms` does not list. Of what is
not understood the rule makes nothing, rather than something wrong.
"""

import re

from verb_forms import (
    ABBREVIATION,
    ANYBODY,
    AUXILIARIES,
    BASE,
    BE,
    DETERMINERS,
    ING,
    JOINS,
    MASS,
    MODALS,
    NAME_PARTS,
    NOT_IN_A_DOER,
    NOT_IN_A_THING,
    OBJECTS,
    PARTICIPLE,
    PAST,
    PLURALS,
    POSSESSIVES,
    PRONOUNS,
    SEVERAL,
    SINGULARS,
    SUBJECTS,
    THIRD,
    UNNAMED,
    is_plural,
    participle,
    readings,
    readings_or_guess,
)

# --- The verb ------------------------------------------------------------------------


def passive_verb(auxiliaries: list[str], form: str) -> list[str]:
    """The auxiliaries of the passive, as they stand beside one thing.

    Args:
        auxiliaries: what stands before the active verb, such as ["has"]; often nothing.
        form: of the active verb: base, past, participle, third person or -ing.

    Returns:
        Such as ["has", "been"]; ["is"] for a present, ["was"] for a past.
    """
    first = [SINGULARS.get(word, word) for word in auxiliaries]
    if not first:
        return ["was"] if form == PAST else ["is"]
    return [*first, {BASE: "be", PARTICIPLE: "been", ING: "being"}[form]]


def find_verbs(words: list[str]) -> list[tuple[int, int, str, str]]:
    """Where an active verb can stand in a sentence, and which it is.

    Returns:
        For each reading: where its auxiliaries begin, where its verb ends, the base of
        the verb and its form.
    """
    found = []
    for start in range(1, len(words) - 1):
        word = words[start].lower()
        wanted = {THIRD, PAST, BASE}
        place = start
        if word in MODALS:
            wanted, place = {BASE}, start + 1
        elif word in ("has", "have", "had"):
            wanted, place = {PARTICIPLE}, start + 1
        elif word in ("am", "is", "are", "was", "were"):
            wanted, place = {ING}, start + 1
        for base, form in sorted(readings(words[place])):
            if form in wanted and place + 1 < len(words):
                found.append((start, place + 1, base, form))
    return found


# --- The rule ------------------------------------------------------------------------


def to_passive(sentence: str) -> str | None:
    """The sentence in the passive voice, or None if the rule is not sure.

    Args:
        sentence: such as "The choir sang two old songs."
    """
    words = sentence.removesuffix(".").split()
    if not sentence.endswith(".") or re.search(r"[^\w\s.'-]|\d", sentence):
        return None
    made = set()
    for start, end, base, form in find_verbs(words):
        doer, thing = words[:start], words[end:]
        doers = is_plural(doer)
        things = False if _is_name(thing) else is_plural(thing)
        if not (can_do(doer) and can_be_done_to(thing)) or things is None:
            continue
        if start + 1 == end and (form, doers) in ((BASE, False), (THIRD, True)):
            continue  # the film shows, and films show
        if (
            len(doer) == 1
            and doer[0].endswith("s")
            and doers
            and not (
                (start + 1 == end and form == BASE)
                or words[start].lower() in ("have", "are", "were")
            )
        ):
            continue  # monks, who get a small letter, or James, who keeps his
        pronoun = doer[0].lower() in PRONOUNS
        if pronoun and thing[0].lower() in POSSESSIVES:
            continue  # "her ring was found by her" may be another one's
        group = [*passive_verb(words[start : end - 1], form), participle(base)]
        if things:
            group[0] = PLURALS.get(group[0], group[0])
        subject = [SUBJECTS.get(" ".join(thing).lower(), thing[0]), *thing[1:]]
        said = " ".join([*subject, *group, "by", *as_object(doer)])
        made.add(f"{said[0].upper()}{said[1:]}.")
    return made.pop() if len(made) == 1 else None


def can_do(phrase: list[str]) -> bool:
    """Whether words can be the doer as a whole, as far as the rule sees."""
    low = [word.lower() for word in phrase]
    if low[0] in PRONOUNS:
        return len(low) == 1 and low[0] in OBJECTS or low == ["you"]
    clear = NOT_IN_A_DOER.isdisjoint(low) and set(AUXILIARIES).isdisjoint(low)
    adverb = any(word.endswith("ly") for word in low) or low[-1] == "and"
    return clear and not adverb and low[0] not in NOT_IN_A_THING - {"every", "each"}


def can_be_done_to(phrase: list[str]) -> bool:
    """Whether words can be the one object of a verb, with nothing behind it."""
    low = [word.lower() for word in phrase]
    begins = (
        low[0] in DETERMINERS
        or len(low) == 1
        and low[0] in (*SUBJECTS, *MASS, *ANYBODY, "it")
        or low[-1] in MASS
        or phrase[0][0].isupper()
        or (is_plural(phrase[-1:]) is True and low[-1] not in SEVERAL)
    )
    if low[0] in PRONOUNS - set(DETERMINERS) and len(low) > 1:
        return False
    inner = [word for before, word in zip(low, low[1:]) if before not in JOINS]
    clear = NOT_IN_A_THING.isdisjoint(low[1:]) and set(AUXILIARIES).isdisjoint(low)
    once = not any(word in DETERMINERS for word in inner)
    return begins and clear and once and low[0] not in NOT_IN_A_THING - {"every"}


def _is_name(phrase: list[str]) -> bool:
    """Whether what stands inside a sentence is the name of one person or place."""
    return len(phrase) == 1 and phrase[0][0].isupper() and phrase[0] != "I"


def as_object(doer: list[str]) -> list[str]:
    """The doer as it stands behind "by": "them", "the cook", "Maria", "bees"."""
    first = doer[0]
    if len(doer) == 1:
        known = first.lower() in (*MASS, "you", *ANYBODY)
        if first.lower() in OBJECTS:
            return [OBJECTS[first.lower()]]
        return [first.lower() if known or is_plural(doer) else first]
    name = doer[1][0].isupper() or doer[1] in NAME_PARTS or first.endswith("'s")
    article = first.lower() in DETERMINERS or first.lower() in SEVERAL
    return [first if name and not article else first.lower(), *doer[1:]]


# --- The check -----------------------------------------------------------------------


def passive_problem(active: str, passive: str) -> str:
    """What is wrong with a passive, in a few words; "" if nothing is.

    It looks where the parts of the passive stand in the active sentence, so it also
    takes doers and objects that `to_passive` does not understand.

    Args:
        active: the sentence that was to be turned around.
        passive: what somebody made of it.
    """
    passive = " ".join(passive.split())
    if passive == active:
        return "it is the sentence as it was"
    ends = re.findall(r"[.!?]", re.sub(ABBREVIATION, "", passive))
    if ends != ["."] or not passive.endswith("."):
        return "it is not one sentence"
    if passive[0].islower():
        return "it begins with a small letter"
    words = passive[:-1].split()
    place = auxiliaries_in(words)
    if not place:
        return "there is no form of be with a participle behind it"
    start, end = place
    by, doer = words[end + 1 : end + 2], words[end + 2 :]
    if not by and active.split()[0] in UNNAMED:  # who did it need not be said
        by, doer = ["by"], active.split()[:1]
    if by != ["by"] or not doer:
        return "it does not say by whom, right behind the participle"
    subject, group, done = words[:start], words[start:end], words[end]
    verb, problem = exchanged(active[:-1].split(), subject, doer)
    if problem:
        return problem
    bases = {base for base, _ in readings_or_guess(verb[-1])}
    known = readings_or_guess(done)
    if not bases & {base for base, form in known if form == PARTICIPLE}:
        return f"{done} is not the participle of {verb[-1]}"
    several = None
    if not _is_name(active[:-1].split()[-len(subject) :]):
        several = agreement_problem(subject, group)
    elif group[0] in PLURALS.values():
        several = f"{group[0]} does not go with {subject[0]}"
    said = words[end + 2 :]
    return tense_problem(verb, group) or several or place_problem(subject, said)


def place_problem(subject: list[str], doer: list[str]) -> str:
    """What is wrong with a pronoun or a capital in the place where it stands now.

    Args:
        subject: of the passive.
        doer: what stands behind "by"; nothing if it is not said.
    """
    first = doer[0].lower() if doer else ""
    if len(subject) == 1 and subject[0].lower() in SUBJECTS:
        return f"{subject[0]} cannot be the subject"
    if len(doer) == 1 and first in OBJECTS:
        return f"by {doer[0]} should be by {OBJECTS[first]}"
    common = (*DETERMINERS, *SEVERAL, *SUBJECTS, *MASS, *ANYBODY, "you")
    if doer and doer[0][0].isupper() and first in common:
        return f"{doer[0]} has a capital inside the sentence"
    return ""


def auxiliaries_in(words: list[str]) -> tuple[int, int] | None:
    """Where the auxiliaries of a passive begin and end, the last being a form of be."""
    for end in range(len(words) - 1, 0, -1):
        forms = {form for _, form in readings_or_guess(words[end])}
        if words[end - 1] in BE and PARTICIPLE in forms:
            start = end - 1
            while start > 1 and words[start - 1] in AUXILIARIES:
                start -= 1
            return start, end
    return None


def exchanged(
    active: list[str], subject: list[str], doer: list[str]
) -> tuple[list[str], str]:
    """The verb of an active sentence, once doer and object are taken away.

    Returns:
        The words between the two, and what is wrong, or "".
    """
    before, behind, words = plain(doer), plain(subject), plain(active)
    if words[: len(behind)] == behind and words[-len(before) :] == before:
        return [], "doer and object are not exchanged"
    if words[: len(before)] != before:
        return [], "the doer is another one, or has changed"
    if plain(active[-len(behind) :]) != behind:
        return [], "what it is done to is something else, or has changed"
    verb = active[len(before) : len(active) - len(behind)]
    return verb, "" if verb else "no verb is left between doer and object"


def plain(phrase: list[str]) -> list[str]:
    """A phrase in small letters, a pronoun as it is where it is the doer."""
    low = [word.lower() for word in phrase]
    return [SUBJECTS.get(low[0], low[0]).lower()] if len(low) == 1 else low


def tense_problem(verb: list[str], group: list[str]) -> str:
    """What is wrong with the auxiliaries of a passive, apart from one or several."""
    given = [SINGULARS.get(word, word) for word in group]
    forms = {form for _, form in readings_or_guess(verb[-1])}
    if len(verb) > 1:
        forms &= {BASE, PARTICIPLE, ING}
    else:
        forms &= {BASE, PAST, THIRD}
    if given in [passive_verb(verb[:-1], form) for form in forms]:
        return ""
    return f"the tense has changed: {' '.join(verb)} becomes {' '.join(group)}"


def agreement_problem(subject: list[str], group: list[str]) -> str:
    """Whether the verb is that of one thing beside several, or the other way round."""
    several = is_plural(subject)
    one = group[0] in PLURALS
    many = group[0] in PLURALS.values()
    if several is None or (several and not one) or (not several and not many):
        return ""
    return f"{group[0]} does not go with {' '.join(subject)}"
