"""Files of instructions are read or refused by entry and field; parts share nothing."""

import json
import random
import re

import pytest

from course.assets import fetch
from instruction_data import (
    read_alpaca,
    read_instructions,
    split_instructions,
    user_text,
)


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


GOOD = {"instruction": "Do it.", "output": "Done."}


def test_a_file_of_ones_own_needs_two_fields(tmp_path):
    more = {**GOOD, "input": "now", "answers": ["done"], "split": "test", "note": 3}
    path = tmp_path / "mine.json"
    path.write_text("\ufeff" + json.dumps([GOOD, more]), encoding="utf-8")
    assert read_instructions(path) == [{**GOOD, "input": ""}, more]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[{]", "line 1, column 3: this is no JSON"),
        ("", "is empty"),
        ('{"data": []}', "but an object with the field 'data': it must begin with ["),
        (
            '[{"prompt": "a", "completion": "b"}]',
            "is missing; the entry has the fields 'prompt', 'completion': rename",
        ),
        ('{"instruction": "a", "output": "b"}\n{"instr\n', "line 2, column 2"),
        ('{"instruction": "a", "output": "b"}\n\n7', "entry 2: it is int"),
        ('[{"output": "a", "output": "b"}]', "has the field 'output' twice"),
        (
            '[{"instruction": "a \\ud83d", "output": "b"}]',
            "field 'instruction': it holds half a character, \\ud83d, after 'a '",
        ),
        ("[" + "1" * 5000 + "]", "integer string"),
        ('[{"instruction": "a", "output": "b%s"}]' % (" " * 2**20), "the text has"),
        ("{}", "holds no list of entries"),
        ("[]", "holds no list of entries"),
        ("[" * 200_000, "nested too deeply"),
        ('[{"instruction": "a", "output": "b"}, 3]', "entry 2: it is int, not an"),
        ('[{"instruction": "a"}]', "entry 1, field 'output': it is missing"),
        ('[{"output": "a"}]', "entry 1, field 'instruction': it is missing"),
        ('[{"instruction": " ", "output": "b"}]', "field 'instruction': it is empty"),
        ('[{"instruction": "a", "output": 5}]', "field 'output': it is int"),
        ('[{"instruction": "a", "output": "b", "input": null}]', "field 'input'"),
        (
            '[{"instruction": "a", "output": "b", "split": "dev"}]',
            "field 'split': it is 'dev'; write train, validation, test",
        ),
        ('[{"instruction": "a", "output": "b", "answers": []}]', "field 'answers'"),
        ('[{"instruction": "a", "output": "b", "answers": "b"}]', "field 'answers'"),
        ('[{"instruction": "a", "output": "b", "answers": [""]}]', "field 'answers'"),
    ],
)
def test_a_malformed_file_names_entry_and_field(tmp_path, content, named):
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        read_instructions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_one_object_in_each_line_is_read_as_it_is_published(tmp_path, mark, end):
    entries = [{"instruction": f"Say {i}.\u2028", "output": str(i)} for i in range(3)]
    path = tmp_path / "train.jsonl"
    lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(mark + "\n".join(lines) + end, encoding="utf-8", newline="")
    assert read_instructions(path) == [{**entry, "input": ""} for entry in entries]
    write_json(path, entries[0])
    assert read_instructions(path) == [{**entries[0], "input": ""}]


def test_a_file_in_another_encoding_is_told(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b'[{"instruction": "caf\xe9"}]')
    with pytest.raises(ValueError, match=r"not text in UTF-8 \(byte 21"):
        read_instructions(path)


ALPACA_FILE = [
    {
        "instruction": f"Tell me {i} things.",
        "input": "<noinput>" * (i % 2),
        "output": "ok",
    }
    for i in range(60)
]


def test_the_file_of_alpaca_is_read_and_its_empty_outputs_left_out(tmp_path):
    empty = {"instruction": "Draw a circle.", "input": "", "output": ""}
    path = write_json(tmp_path / "alpaca_data.json", [empty, *ALPACA_FILE])
    # Another file with a likely name lies beside it and must not be touched.
    write_json(tmp_path / "instruction-data.json", [GOOD])
    read = read_alpaca(path)
    assert len(read) == 60
    assert {entry["input"] for entry in read} == {""}
    with pytest.raises(ValueError, match="entry 1, field 'output': it is empty"):
        read_instructions(path)
    broken = write_json(tmp_path / "broken.json", [empty, {"instruction": "a"}])
    with pytest.raises(ValueError, match="entry 2, field 'output': it is missing"):
        read_alpaca(broken)


def test_the_split_of_the_file_is_kept():
    data = read_instructions(fetch("instructions"))
    train_part, validation, test = split_instructions(data)
    assert [len(train_part), len(validation), len(test)] == [1446, 119, 193]
    assert {entry["split"] for entry in test} == {"test"}


def test_without_a_split_families_stay_together_in_any_order():
    own = [
        {**GOOD, "instruction": f"Do {i}.", "family": f"f{i // 3}"} for i in range(300)
    ]
    first = split_instructions(own)
    again = split_instructions(random.Random(0).sample(own, 300))
    for part, same in zip(first, again):
        assert {e["instruction"] for e in part} == {e["instruction"] for e in same}
    families = [{entry["family"] for entry in part} for part in first]
    assert not families[0] & families[1] | families[0] & families[2]
    assert 0.06 < len(first[2]) / 300 < 0.2
    twice = [{"instruction": f"Do {i // 2}.", "input": ""} for i in range(200)]
    questions = [set(map(user_text, part)) for part in split_instructions(twice)]
    assert not questions[0] & questions[1] | questions[0] & questions[2]
    with pytest.raises(ValueError, match="No entry is for the part 'validation'"):
        split_instructions([{**GOOD, "input": "", "split": "train"}])
