"""Reviews are read from the real formats, cleaned, and divided with no film twice."""

import bz2
import hashlib
import io
import tarfile

import pandas as pd
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from course import assets
from course.assets import downloads, entries
from course.testing import servers
from download_prepare_dataset import (
    IMDB,
    LABELS,
    load_reviews,
    main,
    plain_text,
    read_imdb,
    read_snippets,
    split_by_film,
    without_repeats,
)
from message_data import read_messages, split_messages

# --- An archive with the form of aclImdb_v1.tar.gz ------------------------------------


def imdb_files(films=12):
    """Two reviews of each film, a page's marks in one of them, half of them a test."""
    files = {"aclImdb/README": b"about", "aclImdb/imdb.vocab": b"the\n"}
    for half in ("train", "test"):
        for kind in ("pos", "neg"):
            lines = []
            for number in range(films):
                film = f"tt{half == 'test':d}{number:06}"
                lines.append(f"http://www.imdb.com/title/{film}/usercomments")
                word = "Lovely" if kind == "pos" else "Dull"
                text = f"{word} film {film}.<br /><br />It&#39;s <i>long</i>."
                name = f"aclImdb/{half}/{kind}/{number}_{9 if kind == 'pos' else 2}.txt"
                files[name] = text.encode()
            files[f"aclImdb/{half}/urls_{kind}.txt"] = "\n".join(lines).encode()
    files["aclImdb/train/unsup/0_0.txt"] = b"Nobody said what this is."
    files["aclImdb/train/urls_unsup.txt"] = b"http://x/title/tt9/usercomments"
    return files


def packed(files, mode="w:gz"):
    """Bytes of a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "aclImdb_v1.tar.gz"
    path.write_bytes(packed(imdb_files()))
    return path


def unpack(files, folder):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "aclImdb"


def test_an_archive_is_read_as_it_streams_and_nothing_is_unpacked(archive, tmp_path):
    reviews = read_imdb(archive)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
    assert reviews["split"].value_counts().to_dict() == {"train": 24, "test": 24}
    assert reviews["label"].value_counts().to_dict() == dict.fromkeys(LABELS, 24)
    first = reviews[reviews["family"] == "tt0000003"]
    assert sorted(first["text"]) == [
        "Dull film tt0000003. It's long.",
        "Lovely film tt0000003. It's long.",
    ]
    assert not reviews["text"].str.contains("Nobody said").any()  # it has no label


def test_a_folder_gives_what_its_archive_gives(archive, tmp_path):
    folder = unpack(imdb_files(), tmp_path / "mine")
    pd.testing.assert_frame_equal(read_imdb(folder), read_imdb(archive))
    pd.testing.assert_frame_equal(read_imdb(folder.parent), read_imdb(archive))


def test_an_archive_without_compression_is_read_too(archive, tmp_path):
    plain = tmp_path / "aclImdb.tar"
    plain.write_bytes(packed(imdb_files(), "w"))
    pd.testing.assert_frame_equal(read_imdb(plain), read_imdb(archive))


def test_without_its_list_of_addresses_each_review_is_a_film(tmp_path):
    files = {k: v for k, v in imdb_files().items() if "urls_" not in k}
    reviews = read_imdb(unpack(files, tmp_path))
    assert reviews["family"].is_unique


def cut_in_half(data):
    return data[: len(data) // 2]


def one_byte_wrong(data):
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def a_page(data):
    return b"<!DOCTYPE html><title>Welcome to Hotel Wi-Fi</title>"


def nothing(data):
    return b""


@pytest.mark.parametrize("harm", [cut_in_half, one_byte_wrong, a_page, nothing])
def test_a_broken_archive_gets_one_sentence(archive, harm, capsys, tmp_path):
    archive.write_bytes(harm(archive.read_bytes()))
    with pytest.raises(ValueError, match=r"is damaged, or not a tar archive \(.+\): d"):
        read_imdb(archive)
    out = tmp_path / "reviews.csv"
    options = ["--source", "imdb", "--path", str(archive), "--out", str(out)]
    assert main(options) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("download_prepare_dataset.py: ")
    assert not out.exists()


@pytest.mark.parametrize("missing", ["train/pos", "train/neg", "test/pos", "test/neg"])
def test_a_path_without_one_of_the_folders_is_named(tmp_path, missing):
    files = {k: v for k, v in imdb_files().items() if missing not in k}
    with pytest.raises(ValueError, match=f"holds no review in {missing}: give aclImdb"):
        read_imdb(unpack(files, tmp_path))


def test_an_archive_that_ends_too_early_is_not_taken_for_a_whole_one(tmp_path):
    """Without compression nothing else would tell; tarfile just stops."""
    data = packed(imdb_files(), "w")
    path = tmp_path / "aclImdb.tar"
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        last = [m for m in archive if m.name.endswith("test/neg/11_2.txt")][0]
    path.write_bytes(data[: last.offset])
    with pytest.raises(ValueError, match="has 11 reviews in test/neg and 0 addresses"):
        read_imdb(path)


def test_a_path_that_is_not_there_or_leads_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="cannot be read .No such file"):
        read_imdb(tmp_path / "nowhere.tar.gz")
    with pytest.raises(ValueError, match="holds no review in train/neg"):
        read_imdb(tmp_path)


def test_a_review_that_is_not_text_and_a_list_that_is_too_short(tmp_path):
    files = imdb_files() | {"aclImdb/test/pos/0_9.txt": b"caf\xe9"}
    with pytest.raises(ValueError, match=r"aclImdb/test/pos/0_9.txt is not text"):
        read_imdb(unpack(files, tmp_path / "a"))
    files = imdb_files() | {"aclImdb/train/urls_neg.txt": b"http://x/title/tt1/u"}
    with pytest.raises(ValueError, match="has 12 reviews in train/neg and 1 addresses"):
        read_imdb(unpack(files, tmp_path / "b"))


def test_the_reviews_are_fetched_from_their_address_when_asked_for(
    monkeypatch, tmp_path, capsys
):
    """The asset's address is a server on this machine; the connection breaks once."""
    data = packed(imdb_files())
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    with servers.Server() as server:
        address = server.put("aclImdb_v1.tar.gz", data)
        listed = servers.entry(
            IMDB, data, f'{{url = "{address}"}}', file="aclImdb_v1.tar.gz"
        )
        path = tmp_path / "assets.toml"
        path.write_text(listed, encoding="utf-8")
        monkeypatch.setattr(entries, "MANIFEST", path)
        server.script = [servers.cut_off]
        out = tmp_path / "reviews.csv"
        assert main(["--source", "imdb", "--out", str(out)]) == 0
        assert len(server.asked) == 2
    assert "test           24 reviews" in capsys.readouterr().out
    train, validation, test = split_messages(read_messages(out))
    assert len(train) + len(validation) == 24
    assert len(test) == 24
    films = [set(part["family"]) for part in (train, validation, test)]
    assert not (films[0] & films[1])
    assert not (films[0] & films[2])
    assert not (films[1] & films[2])


def test_the_manifest_knows_the_real_archive():
    asset = assets.manifest()[IMDB]
    assert asset.size == 84_125_825
    assert not asset.offline
    assert all("ai.stanford.edu" in source.url for source in asset.sources)


# --- Snippets -------------------------------------------------------------------------

ROWS = "category,text,movie_name,has_plot_and_reviews\n" + "\n".join(
    [
        "plot,A keeper keeps a lamp.,lamp,True",
        'fresh,"Bright &amp; warm, <i>really</i>.",lamp,True',
        "rotten,NA,lamp,True",
        "rotten,Thin \u2014 tr\u00e8s mince.,wick,False",
    ]
)


@pytest.mark.parametrize("pack", [bz2.compress, bytes])
def test_snippets_are_read_packed_or_not_and_plots_are_left_out(tmp_path, pack):
    path = tmp_path / "snippets.csv.bz2"
    path.write_bytes(pack(ROWS.encode()))
    reviews = read_snippets(path)
    assert reviews["text"].tolist() == [
        "Bright & warm, really.",
        "NA",  # a text, and not a missing value
        "Thin \u2014 tr\u00e8s mince.",
    ]
    assert reviews["label"].tolist() == ["positive", "negative", "negative"]
    assert reviews["family"].tolist() == ["lamp", "lamp", "wick"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bz2.compress(ROWS.encode())[:90], "is damaged or not such a table"),
        (b"\xff\xfe\x00", "is damaged or not such a table"),
        (b"", "is damaged or not such a table"),
        (b"a,b\n1,2\n", "has the columns a, b: it needs category"),
    ],
)
def test_a_file_that_is_not_the_snippets_gets_one_sentence(tmp_path, content, words):
    path = tmp_path / "snippets.csv.bz2"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_snippets(path)


@pytest.fixture(scope="module")
def real():
    return load_reviews()


def test_the_real_snippets(real):
    """One film is in the file twice, under its Spanish and its English title."""
    raw = read_snippets(assets.fetch("film-reviews"))
    assert (len(raw), raw["family"].nunique()) == (12_808, 508)
    assert (len(real), real["family"].nunique()) == (12_751, 504)
    names = raw["family"][raw["family"].str.contains("padre_amaro")]
    assert names.nunique() == 2
    assert "the_crime_of_padre_amaro" not in set(real["family"])
    assert real["text"].str.casefold().is_unique
    assert not real["text"].str.contains("&amp;|<br").any()


def test_no_film_of_the_real_snippets_is_on_two_sides(real):
    parts = {name: set(part["family"]) for name, part in real.groupby("split")}
    assert sum(map(len, parts.values())) == real["family"].nunique()
    shares = real["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.65, abs=0.01)
    assert shares["validation"] == pytest.approx(0.1, abs=0.01)
    again = load_reviews(seed=7)
    assert not again["split"].equals(real["split"])


def test_the_script_writes_them_and_says_how_many(tmp_path, capsys):
    out = tmp_path / "new" / "reviews.csv"
    assert main(["--out", str(out)]) == 0
    assert "12,751" not in capsys.readouterr().out  # said for each part
    first = hashlib.sha256(out.read_bytes()).hexdigest()
    assert main(["--out", str(out)]) == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest() == first
    assert len(read_messages(out)) == 12_751


# --- Texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Good.<br /><br />Really.", "Good. Really."),
        ("<p>One</p><p>Two</p>", "One Two"),
        ("un<b>believ</b>able", "unbelievable"),
        ("3 < 4 and 5 > 4, I <3 it", "3 < 4 and 5 > 4, I <3 it"),
        ("a &lt;b&gt; c", "a <b> c"),
        ("R&amp;B;", "R&B;"),
        ("  \n\t ", ""),
        (
            "\u6620\u753b\u306f\u9577\u3044<br/>\u3002",
            "\u6620\u753b\u306f\u9577\u3044 \u3002",
        ),
        ("\u0641\u064a\u0644\u0645 \U0001f3ac", "\u0641\u064a\u0644\u0645 \U0001f3ac"),
    ],
)
def test_marks_of_a_page_go_and_everything_else_stays(text, plain):
    assert plain_text(text) == plain


def test_a_review_of_100_000_words_keeps_its_words():
    text = "<br />".join(f"word{number}" for number in range(100_000))
    words = plain_text(text).split()
    assert (len(words), words[0], words[-1]) == (100_000, "word0", "word99999")
    assert plain_text("<" * 100_000) == "<" * 100_000  # no search that never ends


@given(st.text(st.characters(exclude_characters="<&", exclude_categories=["Cs"])))
def test_a_text_without_marks_only_loses_blanks(text):
    assert plain_text(text) == " ".join(text.split())
    assert plain_text(plain_text(text)) == plain_text(text)


# --- Repeats and parts ----------------------------------------------------------------


def frame(*rows):
    return pd.DataFrame(rows, columns=["text", "label", "family"])


def test_repeats_go_and_two_titles_of_a_film_become_one():
    reviews = frame(
        ("Good.", "positive", "lamp"),
        ("good.", "positive", "la lampe"),  # the same film under another title
        ("Long.", "negative", "la lampe"),
        ("long.", "negative", "die lampe"),  # and another, by way of the second
        ("So so.", "negative", "wick"),
        ("So so.", "positive", "wick"),  # nobody knows which
        ("", "positive", "oil"),
        ("Warm.", "positive", "oil"),
    )
    found = without_repeats(reviews)
    assert found["text"].tolist() == ["Good.", "Long.", "Warm."]
    assert found["family"].tolist() == ["lamp", "lamp", "oil"]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(0, 2**32 - 1)
)
def test_a_film_is_in_one_part_whatever_the_films_are(films, seed):
    reviews = frame(*((f"text {i}", "positive", f"{f}") for i, f in enumerate(films)))
    try:
        divided = split_by_film(reviews, (0.5, 0.2), seed)
    except ValueError:  # too few films, as the last test has it
        reject()
    assert divided["text"].tolist() == reviews["text"].tolist()
    assert divided.groupby("family")["split"].nunique().eq(1).all()


def test_the_halves_of_an_archive_stay_and_share_no_film():
    reviews = frame(*((f"text {i}", "positive", f"{i // 3}") for i in range(90)))
    reviews["split"] = ["test" if i % 2 else "train" for i in range(30)] + [
        "train"
    ] * 60
    divided = split_by_film(reviews, seed=1)
    assert divided["split"].eq("test").sum() == 15
    assert divided.groupby("family")["split"].nunique().eq(1).all()
    assert len(divided) == 75  # the other half of those films is left out


def test_two_films_are_too_few():
    with pytest.raises(ValueError, match="2 films cannot be dealt to all parts"):
        split_by_film(frame(("a", "positive", "x"), ("b", "negative", "y")))
