"""Files of labelled messages, and their parts. The messages are made up here.

The course's own data set has its tests in `data/test_messages.py`.
"""

import csv
import re
import zipfile

import pandas as pd
import pytest

from message_data import (
    create_balanced_dataset,
    load_messages,
    random_split,
    read_messages,
    read_uci_messages,
    split_messages,
)


def frame(number=40):
    """Messages that a glance tells apart: spam shouts WIN, the others say hello."""
    rows = []
    for i in range(number // 2):
        rows.append((f"hello {i} see you at {i % 7}", "wanted"))
        rows.append((f"WIN {i} euros NOW {i % 5}", "spam"))
    return pd.DataFrame(rows, columns=["text", "label"])


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_commas_quotes_line_breaks_and_other_scripts_survive(tmp_path):
    texts = [
        'say "hi", now',
        "two\nlines",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f389",
    ]
    path = write_csv(tmp_path / "m.csv", [(text, "spam") for text in texts])
    assert read_messages(path)["text"].tolist() == texts


@pytest.mark.parametrize("length", [131_000, 132_000, 500_000])
def test_a_text_of_any_length_is_read(tmp_path, length):
    """Known mistake: the csv module has a limit that the format has not."""
    before = csv.field_size_limit()
    long = ("Win, now! " * length)[:length]
    path = write_csv(tmp_path / "m.csv", [("hi", "wanted"), (long, "spam")])
    assert read_messages(path)["text"].tolist() == ["hi", long]
    assert csv.field_size_limit() == before


def test_blanks_beside_a_label_make_no_class(tmp_path):
    rows = [("hi", "wanted"), ("WIN", "spam "), ("ho", " wanted")]
    messages = read_messages(write_csv(tmp_path / "m.csv", rows))
    assert messages["label"].tolist() == ["wanted", "spam", "wanted"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("text,label\nhi,spam\n", encoding="utf-8-sig")
    assert list(read_messages(path).columns) == ["text", "label"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "row 1: there is no column 'text'"),
        (b"message,label\nhi,spam\n", "no column 'text'"),
        (b"text,class\nhi,spam\n", "no column 'label'"),
        (b"text,label\n", "no message"),
        (b"text,label\nhi,spam\nwell, well,spam\n", "row 3: 3 columns"),
        (b"text,label\nhi\n", "row 2: 1 columns where the header has 2 (look at col"),
        (b"text,label\nhi,spam\n  ,spam\n", "row 3, column text: it is empty"),
        (b"text,label\nhi,\n", "row 2, column label: it is empty"),
        (b"text;label\nhi;spam\n", "separated by a comma and nothing else"),
        (b"text,label\nhi,Spam\nho,spam\n", "row 3, column label: 'spam' is 'Spam'"),
        (b"text,label\nhi,spam\n" + b" " * 2**20 + b"ho,spam\n", "row 3: the text has"),
        ("text,label\nhi,spam\n".encode("utf-16-le"), "it seems to be in UTF-16"),
        (b'text,label\n"never closed,spam\n', "row 2, which ends in line 2"),
        (b'text,label\n"a"b,spam\n', "row 2"),
        (b"text,label\n\xff\xfe,spam\n", "not text in UTF-8 (byte 11, line 2)"),
    ],
)
def test_a_malformed_table_names_row_and_column(tmp_path, content, named):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        read_messages(path)
    assert "bad.csv" in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_balanced_means_as_many_of_each_and_nothing_invented():
    df = frame(40).iloc[list(range(40)) + []]
    df = pd.concat([df, df[df["label"] == "wanted"]]).reset_index(drop=True)
    balanced = create_balanced_dataset(df)
    assert balanced["label"].value_counts().to_dict() == {"wanted": 20, "spam": 20}
    assert set(balanced["text"]) <= set(df["text"])
    assert balanced.index.tolist() == list(range(40))
    assert not balanced.equals(create_balanced_dataset(df, seed=5))


def test_the_three_parts_share_no_row_and_lose_none():
    """A wrong split gave a NaN loss elsewhere: parts are non-empty and disjoint."""
    df = frame(50)
    parts = random_split(df, 0.7, 0.1)
    assert [len(part) for part in parts] == [35, 5, 10]
    together = pd.concat(parts)["text"]
    assert sorted(together) == sorted(df["text"])
    assert together.is_unique
    assert parts[0]["label"].tolist() != df["label"].tolist()[:35]  # shuffled
    with pytest.raises(ValueError, match="leave a part empty"):
        random_split(df, 0.7, 0.3)
    with pytest.raises(ValueError, match="of 6 messages leave a part empty"):
        random_split(frame(6), 0.7, 0.1)
    for shares in ((1.2, 0.1), (0.7, 0.0), (0.7, -0.1), (-0.2, 0.5)):
        with pytest.raises(ValueError, match="leave a part empty"):
            random_split(df, *shares)


def test_a_split_in_the_file_is_obeyed_and_a_wrong_one_told():
    df = frame(12).assign(split=["train"] * 8 + ["validation"] * 2 + ["test"] * 2)
    parts = split_messages(df)
    assert [len(part) for part in parts] == [8, 2, 2]
    assert parts[2]["text"].tolist() == df["text"].tolist()[10:]
    for wrong in (["train"] * 12, ["train"] * 10 + ["test", "dev"]):
        with pytest.raises(ValueError, match="one of train, validation and test"):
            split_messages(df.assign(split=wrong))


UCI_LINES = (
    "ham\tSee you at \u00a35 lunch\tthen\n"
    "spam\tCall \x94 09 now!\x85 Really\r\n"
    "ham\tok\n"
)


@pytest.mark.parametrize("packed", [True, False])
def test_the_uci_collection_is_read_from_archive_and_file(tmp_path, packed):
    """A small file in the real format: tabs in texts, odd separators, line ends."""
    path = tmp_path / ("sms.zip" if packed else "SMSSpamCollection")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "about")
            archive.writestr("SMSSpamCollection", UCI_LINES.encode())
    else:
        path.write_bytes(UCI_LINES.encode())
    df = read_uci_messages(path)
    assert df["label"].tolist() == ["wanted", "spam", "wanted"]
    assert df["text"].tolist() == [
        "See you at \u00a35 lunch\tthen",
        "Call \x94 09 now!\x85 Really",
        "ok",
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no message"),
        (b"ham\tok\nhan\tok\n", "line 2"),
        (b"ham\t\n", "line 1"),
        (b"ham ok\n", "line 1"),
        (b"ham\t\xff\xff\n", "not the SMS Spam Collection"),
        (b"PK\x05\x06" + b"\0" * 18, "not the SMS Spam Collection"),
    ],
)
def test_a_damaged_collection_is_told(tmp_path, content, named):
    path = tmp_path / "sms.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read_uci_messages(path)


def test_the_uci_archive_is_balanced_and_a_table_is_taken_as_it_is(tmp_path):
    lines = [f"ham\thello {i}" for i in range(6)] + ["spam\tWIN", "spam\tNOW"]
    with zipfile.ZipFile(tmp_path / "sms.zip", "w") as archive:
        archive.writestr("SMSSpamCollection", "\n".join(lines) + "\n")
    df = load_messages(tmp_path / "sms.zip")
    assert df["label"].value_counts().to_dict() == {"wanted": 2, "spam": 2}
    table = write_csv(tmp_path / "m.csv", [("a", "spam"), ("b", "spam"), ("c", "x")])
    assert len(load_messages(table)) == 3
