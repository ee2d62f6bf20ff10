"""English verbs and their forms, nouns and their number (chapter 7, bonus): support.

Nothing here is taught. The verbs are everyday ones that can stand in the passive; of
other verbs these functions know nothing. British and American spellings both count.

>>> sorted(readings("written")), readings("put") == {("put", form) for form in "bpd"}
([('write', 'd')], True)
>>> participle("stop"), third_person("carry"), is_plural(["two", "old", "songs"])
('stopped', 'carries', True)
"""

BASE, PAST, PARTICIPLE, THIRD, ING = "bpdsi"


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


# Base, past, participle; several forms behind a stroke.
_IRREGULAR = """
beat beat beaten; begin began begun; bend bent bent; bite bit bitten; blow blew blown;
break broke broken; bring brought brought; build built built; burn burned/burnt
burned/burnt; buy bought bought; catch caught caught; choose chose chosen; cut cut
cut; dig dug dug; do did done; draw drew drawn; drink drank drunk; drive drove driven;
eat ate eaten; feed fed fed; fight fought fought; find found found; forget forgot
forgotten; forgive forgave forgiven; freeze froze frozen; give gave given; grow grew
grown; hang hung hung; hear heard heard; hide hid hidden; hit hit hit; hold held held;
hurt hurt hurt; keep kept kept; know knew known; lay laid laid; lead led led; learn
learned/learnt learned/learnt; leave left left; lend lent lent; light lit/lighted
lit/lighted; lose lost lost; make made made; meet met met; mow mowed mown; overtake
overtook overtaken; pay paid paid; put put put; read read read; rewrite rewrote
rewritten; ride rode ridden; ring rang rung; run ran run; see saw seen; sell sold
sold; send sent sent; set set set; sew sewed sewn/sewed; shake shook shaken; shoot
shot shot; show showed shown; shut shut shut; sing sang sung; sink sank sunk; speak
spoke spoken; spend spent spent; spill spilled/spilt spilled/spilt; spin spun spun;
split split split; spoil spoiled/spoilt spoiled/spoilt; spread spread spread; steal
stole stolen; stick stuck stuck; sting stung stung; strike struck struck; swear swore
sworn; sweep swept swept; swim swam swum; take took taken; teach taught taught; tear
tore torn; tell told told; throw threw thrown; understand understood understood; wake
woke woken; wear wore worn; weave wove woven; win won won; wind wound wound; write
wrote written
"""
_REGULAR = """
accept add admire adopt advise answer arrest ask attack bake block boil book borrow
brush buckle calculate call cancel carry carve celebrate change charge chase check
chew clean clear climb close collect compose connect consult control cook copy correct
count cover crack create cross cure damage decide declare decorate defend deliver
describe design destroy develop direct discover discuss divide drop dry earn elect
employ enjoy enter examine expect explain explore fasten fetch fill film finish fix
fold follow found frighten gather greet guard guide hire hunt identify improve include
inspect interrupt interview invade invent invite iron join judge kick kill knit label
land launch like limit list load lock love mark marry measure mend milk mix move need
notice offer open order organise organize own pack paint park pass peel perform pick
plan plant play plough polish post pour praise prefer prepare present press print
produce promise pronounce protect prove provide publish pull pump punish push raise
reach receive record recycle refuse reject remember remove rent repair repeat replace
report rescue respect review roast rule satisfy save scare scratch search serve share
shave shock shorten sign sketch slice smoke solve sort spare spell spot stain start
steer stop store study support surprise surround switch taste test thank tidy touch
train translate trap treat trust tune turn type use visit wash watch water welcome win
wipe wrap
"""

_ENDS_IN_L = {"cancel", "label"}
_DOUBLED = frozenset("bdglmnprt")
_TWO_SYLLABLES = {"prefer", "control", "admit", "refer", "permit", "regret"}


def third_person(base: str) -> str:
    """The form of the present for one person or thing: "carries"."""
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def participle(base: str) -> str:
    """The past participle, in its first spelling: "written"."""
    if base in _ENDS_IN_L:
        return base + "led"
    return _IRREGULAR_FORMS[base][1][0] if base in _IRREGULAR_FORMS else _with_ed(base)


def readings(word: str) -> frozenset[tuple[str, str]]:
    """What a word can be as the form of a verb: pairs of base and form; often none."""
    return _FORMS.get(word.lower(), frozenset())


def readings_or_guess(word: str) -> frozenset[tuple[str, str]]:
    """As `readings`; of a verb that is not listed, what its ending says.

    The base is then only what all its regular forms have in common.
    """
    word = word.lower()
    if readings(word):
        return readings(word)
    for ending, forms in (("ed", PAST + PARTICIPLE), ("ing", ING), ("s", THIRD)):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return frozenset((_common(word[: -len(ending)]), form) for form in forms)
    return frozenset({(_common(word), BASE)})


def _common(stem):
    stem = stem.rstrip("e")
    stem = stem[:-1] + "i" if stem.endswith("y") else stem
    return stem[:-1] if len(stem) > 2 and stem[-1] == stem[-2] else stem


def _stem(base):
    """A verb before -ed or -ing: "stopp", "carri" is left to the caller."""
    short = len(base) > 2 and base[-3] not in "aeiou" and base[-2] in "aeiou"
    once = sum(letter in "aeiouy" for letter in base) == 1
    doubled = short and base[-1] in _DOUBLED and (once or base in _TWO_SYLLABLES)
    return base + base[-1] if doubled else base


def _with_ed(base):
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return _stem(base) + "ed"


def _with_ing(base):
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    return _stem(base) + "ing"


def _read_table():
    forms = {}
    for line in _IRREGULAR.split(";"):
        base, past, done = line.split()
        forms[base] = past.split("/"), done.split("/")
    return forms


def _all_forms():
    found = {}

    def add(word, base, form):
        found[word] = found.get(word, frozenset()) | {(base, form)}

    for base in {*_IRREGULAR_FORMS, *_REGULAR.split()}:
        regular = [_with_ed(base)]
        if base in _ENDS_IN_L:  # British and American
            regular = [base + "led", base + "ed"]
            add(base + "ling", base, ING)
        past, done = _IRREGULAR_FORMS.get(base, (regular, regular))
        add(base, base, BASE)
        add(third_person(base), base, THIRD)
        add(_with_ing(base), base, ING)
        for word in past:
            add(word, base, PAST)
        for word in done:
            add(word, base, PARTICIPLE)
    return found


_IRREGULAR_FORMS = _read_table()
_FORMS = _all_forms()

# --- Nouns ---------------------------------------------------------------------------


_ONE = word_set("""
a an another each every everybody everyone it he she him her one this that nobody
somebody someone everything something nothing
""")
SEVERAL = word_set("""
these those both many several few we us they them two three four five six seven
eight nine ten twelve twenty thirty fifty
""")
_PLURALS = word_set("""
people children men women mice feet teeth geese police cattle firemen firefighters
fishermen policemen postmen salesmen
""")
_EITHER = word_set("""
sheep fish deer species series aircraft means you all most some any more data staff
crew team audience choir
""")
_ONE_IN_S = word_set("""
lens gas bus news physics chess grass boss class glass dress address mess moss loss
kiss cross mathematics athletics tennis
""")


def is_plural(phrase: list[str]) -> bool | None:
    """Whether a noun phrase is plural, by its words; None where they do not tell."""
    words = [word.lower().rstrip(".") for word in phrase]
    if "and" in words:
        return True
    if words[0] in _ONE:
        return words[:2] == ["a", "few"]
    if words[0] in SEVERAL or words[0].isdigit() and words[0] != "1":
        return True
    head = words[: words.index("of")] if "of" in words[1:] else words
    noun = head[-1]
    if noun in _EITHER or len(head) == 1 and phrase[0] in ("I", "me"):
        return None
    if len(phrase) > 1 and phrase[-1][0].isupper() and phrase[0][0].isupper():
        return False  # a name
    if noun in _PLURALS or noun.endswith("men"):
        return True
    if noun in _ONE_IN_S or noun.endswith(("ss", "us", "is", "'s")):
        return False
    return noun.endswith("s")


# --- Words with a task in a sentence --------------------------------------------------

MODALS = ("will", "would", "can", "could", "may", "might", "must", "shall", "should")
# How a form of be or have looks beside several things, or beside I.
PLURALS = {"is": "are", "was": "were", "has": "have"}
SINGULARS = {"are": "is", "were": "was", "have": "has", "am": "is"}
OBJECTS = {"i": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
SUBJECTS = {"me": "I", "him": "he", "her": "she", "us": "we", "them": "they"}
DETERMINERS = (
    *("a", "an", "the", "this", "that", "these", "those", "my", "your", "his"),
    *("her", "its", "our", "their", "every", "each", "some", "any", "no"),
)
NOT_IN_A_THING = word_set("""
in on at to for from into with without over under near after before behind by than
across through during since until around along against between about like as if that
who which when where because or not never always again away out up down off today
yesterday tomorrow now last next every each no there here ashore too
""")
NOT_IN_A_DOER = word_set("""
that who which when where because if or not no nobody like
""")
PRONOUNS = word_set("""
i you he she it we they me him us them this that
""")
POSSESSIVES = word_set("""
my your his her its our their
""")
MASS = word_set("""
lightning snow water rain smoke ice fire wind fog honey bread milk tea coffee blood
oxygen nectar cheese spinach salt sugar music
""")
ANYBODY = ("someone", "somebody", "everyone", "everybody")
JOINS = ("of", "and", "all", "both")
NAME_PARTS = ("da", "de", "van", "von", "and")
BE = ("am", "is", "are", "was", "were", "be", "been", "being")
AUXILIARIES = (*MODALS, "has", "have", "had", *BE)
UNNAMED = ("Someone", "Somebody", "People", "They")
ABBREVIATION = r"\b(?:Mr|Mrs|Ms|Dr|St)\."
