"""Small shelves of made-up books, for tests and for the notebook.

Support: nothing here is taught.

>>> story(3, words=5)
'The keeper watched a harbour by the sea.\\n'
"""

import random
from pathlib import Path

_THINGS = ["lamp", "sea", "keeper", "stair", "door", "wind"]
_THINGS += ["harbour", "boat", "letter", "gull", "winter", "rope"]
_ACTS = ["saw", "found", "kept", "left", "heard", "lost", "carried", "watched"]
_ENDS = ["again", "at night", "by the sea", "before dawn", "and it was late"]


def story(seed: int, words: int = 400) -> str:
    """English that says nothing, but says it in paragraphs of its own."""
    draw = random.Random(seed)
    lines, count = [], 0
    while count < words:
        first, other = draw.choices(_THINGS, k=2)
        end = draw.choice(_ENDS)
        number = "" if words < 20 else f"{draw.randrange(1000)} times "
        line = f"The {first} {draw.choice(_ACTS)} a {other} {number}{end}."
        count += len(line.split())
        lines.append(line + "\n" * (1 + (draw.random() < 0.2)))
    return "".join(lines)


def licensed(text: str, title: str) -> str:
    """A text between the lines that Project Gutenberg puts around a book."""
    return (
        f"The Project Gutenberg eBook of {title}\n\nA page of terms.\n\n"
        f"*** START OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***\n\n"
        f"Produced by somebody\n\n{text}\n\n"
        f"*** END OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***\n\nMore terms.\n"
    )


def fill(folder: Path, good: int = 6, words: int = 400) -> list[str]:
    """A shelf with all kinds of dirt; return the names of the books worth keeping."""
    folder.mkdir(parents=True)
    for i in range(good):
        (folder / f"book{i}.txt").write_text(story(i, words), encoding="utf-8")
    names = [f"book{i}.txt" for i in range(good)]
    dirty = {
        "licensed.txt": licensed(story(100, words), "A Lamp").encode(),
        "windows.txt": ("\u201cCaf\xe9\u201d \u2014 " + story(101, words)).encode(
            "cp1252"
        ),
        "misread.txt": (
            "\xe2\u20ac\u0153Caf\xc3\xa9\xe2\u20ac\x9d \u2014 " + story(102, words)
        ).encode("utf-8"),
    }
    french = "La lampe est dans la maison et le vent ne passe pas. " * 60
    aside = {
        "copy.txt": licensed(story(0, words), "Copy").replace("\n", "\r\n").encode(),
        "edition2.txt": story(1, words).replace("7 times", "often").encode(),
        "french.txt": french.encode(),
        "image.txt": b"\x89PNG\0\0" * 500,
        "short.txt": b"A lamp.",
        "odd-licence.txt": ("Project Gutenberg etext\n" + story(103, words)).encode(),
    }
    for name, data in (dirty | aside).items():
        (folder / name).write_bytes(data)
    return sorted(names + list(dirty))
