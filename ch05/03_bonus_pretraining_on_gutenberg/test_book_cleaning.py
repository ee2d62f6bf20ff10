"""Old encodings, mistakes and licences are recognised, and prose is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import book_cleaning
from book_cleaning import (
    decode_book,
    guess_language,
    mend_mojibake,
    strip_boilerplate,
    tidy,
)

FRENCH = (
    "Le caf\xe9 \xe9tait ferm\xe9. \xc0 l\u2019\xe9t\xe9,"
    " d\xe9j\xe0, la fen\xeatre s\u2019ouvrit\u2026 \xab\xa0O\xf9\xa0?\xa0\xbb"
)
DOS = (
    "Le caf\xe9 \xe9tait ferm\xe9. \xc0 l'\xe9t\xe9,"
    " d\xe9j\xe0, la fen\xeatre s'ouvrit. \xabO\xf9?\xbb"
)
BOOK = "The lamp was lit.\n\nNobody came up the stairs that night."


@pytest.mark.parametrize("name", ["utf-8", "cp1252", "mac_roman", "utf-16", "utf-32"])
def test_the_encoding_of_a_book_is_found_and_named(name):
    assert decode_book(FRENCH.encode(name)) == (FRENCH, name)


def test_dos_is_told_from_windows_by_what_its_bytes_would_mean():
    assert decode_book(DOS.encode("cp850")) == (DOS, "cp850")
    assert decode_book(DOS.encode("cp1252")) == (DOS, "cp1252")


def test_a_mark_at_the_beginning_is_not_part_of_the_text():
    assert decode_book(b"\xef\xbb\xbflamp") == ("lamp", "utf-8")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"lamp\0lit", "NUL"),
        ("lamp lit".encode("utf-16-le"), "UTF-16 without its mark"),
        (b"\xff\xfe\x00", "starts as utf-16"),
        (b"\xb1\xb2\xb3\xb4\xa4\xa6" * 20, "in no encoding"),
    ],
)
def test_what_is_not_text_is_refused_with_the_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode_book(data)


def misread(text):
    """UTF-8 taken for cp1252, its five holes for themselves, as browsers do."""
    bytes_of = text.encode("utf-8")
    return "".join(
        bytes([b]).decode("latin-1" if b in b"\x81\x8d\x8f\x90\x9d" else "cp1252")
        for b in bytes_of
    )


@given(
    st.text(
        "abc .\xe9\xe0\xfc\xf1\xdf\xe7\u0153\u201c\u201d\u2019\u2014\u2026", max_size=40
    )
)
def test_a_misread_text_is_mended(text):
    assert mend_mojibake(misread(text)) == text


@given(st.text("abc .\xe9\xe0\xfc\xf1\xdf\u201c\u201d\u2019\u2014", max_size=40))
def test_a_right_text_is_left_as_it_is(text):
    assert mend_mojibake(text) == text


HEADS = {
    "start line": "*** START OF THE PROJECT GUTENBERG EBOOK A LAMP ***\n",
    "this": "***START OF THIS PROJECT GUTENBERG EBOOK A LAMP***\n",
    "two lines": "*** START OF THIS PROJECT GUTENBERG EBOOK A LAMP\nAND A SEA ***\n",
    "small print": "***\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04*END*\n",
}
TAILS = {
    "end line": "*** END OF THE PROJECT GUTENBERG EBOOK A LAMP ***\nSmall letters.",
    "end sentence": "End of Project Gutenberg's A Lamp, by Nobody\nSmall letters.",
    "both": "End of the Project Gutenberg EBook of A Lamp\n\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK A LAMP ***\nSmall letters.",
    "etext": "End of The Project Gutenberg Etext of A Lamp\n",
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tail", TAILS)
def test_all_forms_of_the_licence_are_cut_off(head, tail):
    text = f"A page of terms.\n\n{HEADS[head]}\n\n{BOOK}\n\n{TAILS[tail]}"
    stripped = strip_boilerplate(text)
    assert stripped.text == BOOK
    assert len(stripped.rules) >= 2


def test_who_typed_it_is_cut_off_but_only_after_a_licence():
    typed = "Produced by Somebody and\nothers\n\n"
    assert strip_boilerplate(f"{HEADS['this']}\n{typed}{BOOK}").text == BOOK
    assert strip_boilerplate(typed + BOOK) == (typed + BOOK, ())


def test_stars_and_ends_in_a_story_are_not_a_licence():
    story = f"{BOOK}\n\n*** \n\nTHE END OF THIS\n\n*** END OF PART ONE ***\n{BOOK}"
    assert strip_boilerplate(story) == (story, ())


def test_a_licence_that_no_rule_knows_is_named_and_not_trained_on():
    with pytest.raises(ValueError, match="no rule knows"):
        strip_boilerplate(f"This Project Gutenberg file is free.\n\n{BOOK}")


SENTENCES = {
    "en": "The keeper of the lamp was in the house, and he had not seen the sea.",
    "fr": "Le gardien de la lampe \xe9tait dans la maison, et il ne voyait pas la mer.",
    "de": "Der W\xe4chter war in dem Haus, und er sah das Meer nicht von der Treppe.",
    "es": "El hombre de la casa no era de los que se van con el viento al mar.",
    "it": "Il guardiano della casa non era di quelli che se ne vanno con il vento.",
    "pt": "O homem da casa n\xe3o era um dos que se v\xe3o com o vento para o mar.",
    "nl": "De man in het huis was niet van de zee, en hij was het met de wind eens.",
    "la": "Et lux non est in domo, sed mare cum vento ad ripam venit atque manet.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_shows_its_language(language):
    assert guess_language(SENTENCES[language])[0] == language


def test_ascii_does_not_tell_a_language_and_small_words_do():
    # The rule "nine tenths ASCII" takes each of these for English.
    for language in ("fr", "nl", "la"):
        sentence = SENTENCES[language]
        assert sum(map(str.isascii, sentence)) > 0.9 * len(sentence)
        assert guess_language(sentence)[0] != "en"
    assert guess_language("width = height * depth; print(width)")[0] == "unknown"
    assert guess_language("")[0] == "unknown"


@given(st.text("a \t\n\r\f\x02\xa0\xe9", max_size=60))
def test_tidy_text_stays_as_it_is(text):
    once = tidy(text)
    assert tidy(once) == once
    assert "\n\n\n\n" not in once
    assert " \n" not in once
    assert not {"\r", "\x02", "\f"} & set(once)


def test_no_rule_is_slow_on_a_long_line_without_an_end():
    # A pattern that tries again at each place would take minutes.
    long = "*** START OF THE PROJECT GUTENBERG EBOOK " + "x" * 1_000_000
    with pytest.raises(ValueError, match="no rule"):
        strip_boilerplate(long)
    assert book_cleaning.plausible_share("x" * 1_000_000) == 1.0
