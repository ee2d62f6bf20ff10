"""What a file has to go through before it is training text (chapter 5, bonus).

* `decode_book`: bytes to text, the encoding found and named, or refused;
* `mend_mojibake`: characters that were decoded wrongly once and saved like that;
* `strip_boilerplate`: the licence, by rule, in the forms it has had since 1993;
* `guess_language`: by the commonest small words;
* `tidy`: one kind of line end, no control characters, at most two empty lines.

>>> decode_book("Caf\xe9".encode("cp1252"))
('Caf\xe9', 'cp1252')
>>> mend_mojibake("Caf\xc3\xa9 \xe2\u20ac\u0153Noir\xe2\u20ac\\x9d")
'Caf\xe9 \u201cNoir\u201d'
>>> guess_language("It was the first of the two that he had seen in the garden.")[0]
'en'

Left out: hyphens at line ends, page numbers, tables of contents, scanned mistakes.
"""

import codecs
import re
from typing import NamedTuple

# --- Bytes to text -------------------------------------------------------------------

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Quotation marks and dashes, then signs such as those for pounds and degrees.
_PRINTERS_MARKS = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\xab\xbb"
_PRINTERS_MARKS += "\xa3\xb0\xa7\xbd\xbc\xbe\xb7\xa0"
OLD_ENCODINGS = ("cp1252", "cp850", "mac_roman")  # Windows, DOS, the first Macs


def decode_book(data: bytes) -> tuple[str, str]:
    """The text in a file and the encoding that it was in.

    UTF-8 proves itself: text in another encoding is hardly ever valid UTF-8. The old
    encodings all accept nearly every byte, so the one is taken in which most of the
    bytes above 127 make sense where they stand.

    Raises:
        ValueError: the bytes are not text in any of these encodings.
    """
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            try:
                return data.decode(name), name.removesuffix("-sig")
            except UnicodeDecodeError:
                raise ValueError(f"starts as {name} and does not go on so") from None
    if b"\0" in data:
        raise ValueError("holds NUL bytes: not text, or UTF-16 without its mark")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    found = []
    for name in OLD_ENCODINGS:
        try:
            found.append((data.decode(name), name))
        except UnicodeDecodeError:
            continue
    text, name = max(found, key=lambda pair: plausible_share(pair[0]))
    if plausible_share(text) < 0.5:
        raise ValueError("in no encoding do its bytes make sense")
    return text, name


def plausible_share(text: str) -> float:
    """Of the characters beyond ASCII, the share that stands where it may stand.

    A small letter beside a letter, a capital at the start of a word, and the marks that
    printers use are plausible; a capital inside a word and a box drawing are not.
    """
    right, total = 0, 0
    for match in re.finditer(r"[^\x00-\x7f]", text):
        character, i = match[0], match.start()
        before, after = text[max(i - 1, 0) : i], text[i + 1 : i + 2]
        total += 1
        if character in _PRINTERS_MARKS:
            right += 1
        elif character.islower():
            right += before.isalpha() or after.isalpha()
        elif character.isupper():
            right += not before.islower()
    return right / total if total else 1.0


def mend_mojibake(text: str) -> str:
    """Undo an old mistake: UTF-8 that was read as cp1252 and then saved.

    Each run of characters beyond ASCII is turned back into the bytes that it was read
    from. Only if these are valid UTF-8, for letters and marks of Western languages, was
    it such a mistake: one accented letter alone is not.
    """

    def mend(match: re.Match[str]) -> str:
        try:
            data = b"".join(_byte_of(character) for character in match[0])
            mended = data.decode("utf-8")
            mended.encode("cp1252")  # or it says nothing that was ever typed here
            return mended
        except UnicodeError:
            return match[0]

    return re.sub(r"[^\x00-\x7f]{2,}", mend, text)


def _byte_of(character):
    """The byte of cp1252; five bytes without a character there stand for themselves."""
    if character in "\x81\x8d\x8f\x90\x9d":
        return character.encode("latin-1")
    return character.encode("cp1252")


# --- The licence ---------------------------------------------------------------------

_LIBRARY, _OWNS = "PROJECT GUTENBERG", "(?:'S|\u2019S)"
_EDITION = rf"(?:THE |THIS )?{_LIBRARY}{_OWNS}? (?:E-?BOOK|E-?TEXT)"
STARTS = {
    "start line": rf"^\s*\*{{3}} ?START OF {_EDITION}[^*]{{0,300}}\*{{3}}[^\n]*$",
    "small print": r"^\s*\*END\*? ?THE SMALL PRINT![^\n]{0,200}$",
}
ENDS = {
    "end line": rf"^\s*\*{{3}} ?END OF {_EDITION}",
    "end sentence": rf"^\s*END OF (?:THE )?{_LIBRARY}(?:{_OWNS}| E-?BOOK| E-?TEXT)",
}
CREDIT = r"^\s*(?:produced|e-?text prepared|transcribed) (?:by|from)"
NAMED = re.compile(r"project gutenberg", re.I)


class Stripped(NamedTuple):
    """A text without its boilerplate, and the names of the rules that found some."""

    text: str
    rules: tuple[str, ...]


def strip_boilerplate(text: str) -> Stripped:
    """Cut off what was put before and after a book, the licence above all.

    The text begins after the last line that starts a book and ends before the first
    one that then ends it. Paragraphs at its beginning which only say who typed it go
    as well.

    Raises:
        ValueError: near the beginning or the end the name of the library is left: this
            file has boilerplate of a form that no rule knows.
    """
    rules, first, last = [], 0, len(text)
    for name, pattern in STARTS.items():
        for match in re.finditer(pattern, text, re.I | re.M):
            if match.end() > first:
                first = match.end()
                rules.append(name)
    for name, pattern in ENDS.items():
        match = re.compile(pattern, re.I | re.M).search(text, first)
        if match and match.start() < last:
            last = match.start()
            rules.append(name)
    text = text[first:last].strip("\r\n")
    while rules and re.match(CREDIT, text, re.I):
        text = text.partition("\n\n")[2].lstrip("\r\n")
        rules.append("credit")
    if NAMED.search(text[:3000]) or NAMED.search(text[-3000:]):
        raise ValueError("boilerplate of a form that no rule knows")
    return Stripped(text, tuple(dict.fromkeys(rules)))


def tidy(text: str) -> str:
    """Lines that end in one line feed and in no space; at most two empty ones.

    Control characters, which stand for nothing that is read, go.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]", "", text)
    text = re.sub(r"[ \t\xa0]+$", "", text, flags=re.M)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


# --- The language --------------------------------------------------------------------

SMALL_WORDS = {
    "en": "the of and to in that is was he for it with as his on be at by had not but",
    "fr": "le la les de des et un une que qui dans ne pas il elle est pour au du sur",
    "de": "der die das und in zu den ist nicht er sie es ein eine mit von dem auf sich",
    "es": "el la los las de que y en un una no se por con su para es al del lo como",
    "it": "il la le di che e un una non si per con in \xe8 del della gli ma era come",
    "pt": "o a os as de que e em um uma n\xe3o se por com do da no na para mais como",
    "nl": "de het een en van in dat te is niet hij zij met op voor ik er aan was zijn",
    "la": "et in est non ad cum ut quod qui si sed ex ab quae hoc esse aut atque eius",
}


def guess_language(text: str) -> tuple[str, float]:
    """The language whose small words are the largest share of a text, and that share.

    `"unknown"` below a tenth: another language, a table, or a program.
    """
    words = re.findall(r"[^\W\d_]+", text.lower())
    shares = {
        language: sum(map(set(small.split()).__contains__, words)) / max(len(words), 1)
        for language, small in SMALL_WORDS.items()
    }
    best = max(shares, key=lambda language: shares[language])
    return (best if shares[best] >= 0.1 else "unknown"), shares[best]
