"""What a reader may get wrong, through every program of chapters 4 to 7.

Each input ends in one sentence on the error stream and exit code 2, before anything is
computed, and without a traceback. Those that are right are tried beside each program.
"""

import gzip
import io
import json
import re
import zipfile

import pytest
import torch

import gpt
import gpt_class_finetune
import gpt_generate
import gpt_instruction_finetuning
import gpt_train
import ollama_evaluate

PROGRAMS = {
    "gpt.py": gpt.main,
    "gpt_train.py": gpt_train.main,
    "gpt_generate.py": gpt_generate.main,
    "gpt_class_finetune.py": gpt_class_finetune.main,
    "gpt_instruction_finetuning.py": gpt_instruction_finetuning.main,
    "ollama_evaluate.py": ollama_evaluate.main,
}
TRAIN, GENERATE, CLASSIFY, INSTRUCT, JUDGE = list(PROGRAMS)[1:]


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch, tmp_path):
    """A wrong input is found before a model is loaded or a server is asked."""

    def forbidden(*arguments, **options):
        raise AssertionError("a model was loaded, or a server asked")

    for module in (gpt_generate, gpt_class_finetune, gpt_instruction_finetuning):
        monkeypatch.setattr(module, "load_pretrained", forbidden)
    for module in (gpt, gpt_train):
        monkeypatch.setattr(module, "GPTModel", forbidden)
    monkeypatch.setattr(ollama_evaluate, "query_model", forbidden)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    for variable in ("COURSE_PRESET", "COURSE_MODEL", "COURSE_DEVICE", "COURSE_DTYPE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


def said_by(program, arguments, capsys):
    """The one sentence in which a mistake is told."""
    try:
        code = PROGRAMS[program]([str(word) for word in arguments])
    except SystemExit as stopped:  # argparse, which shows the options first
        code = stopped.code
    error = capsys.readouterr().err
    *usage, last = error.rstrip("\n").split("\n")
    assert code == 2, error
    assert "Traceback" not in error
    assert last.startswith(f"{program}: ")
    assert not usage or usage[0].startswith("usage: ")
    assert len(last) < 700
    return last


# --- Files of the wrong kind, for every program that reads one -----------------------


def saved(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(name):
    return saved(lambda f: zipfile.ZipFile(f, "w").writestr(name, "hello " * 50))


WORDS = "The lamp was lit, and the lamp went out again.\n" * 30
WRONG_FILES = {
    "nothing": b"",
    "blanks": b" \n\t\n",
    "Latin-1": "caf\xe9 au lait\n".encode("latin-1") * 40,
    "Windows": "\x93quoted\x94 text\n".encode("latin-1") * 40,
    "Shift-JIS": "\u30e9\u30f3\u30d7".encode("shift_jis") * 40,
    "UTF-16": WORDS.encode("utf-16"),
    "UTF-16 without a mark": WORDS.encode("utf-16-le"),
    "UTF-16 big-endian": b"\xfe\xff" + WORDS.encode("utf-16-be"),
    "UTF-16 big-endian without a mark": WORDS.encode("utf-16-be"),
    "UTF-32": WORDS.encode("utf-32"),
    "a NUL": WORDS.encode() + b"\x00" + WORDS.encode(),
    "half a surrogate pair": WORDS.encode() + b"\xed\xa0\xbd",
    "cut in a character": WORDS.encode() + "\U0001f600".encode()[:2],
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "gzip": gzip.compress(WORDS.encode()),
    "an archive": zipped("story.txt"),
    "a checkpoint": saved(lambda f: torch.save({"weights": torch.ones(3)}, f)),
    "safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ",
    "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(16),
}
READERS = (TRAIN, GENERATE, CLASSIFY, INSTRUCT, JUDGE)


@pytest.mark.parametrize("program", READERS)
@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_file_of_another_kind_is_told(program, kind, tmp_path, capsys):
    path = tmp_path / "reader\u2019s own file"
    path.write_bytes(WRONG_FILES[kind])
    said = said_by(program, ["--data", path, "--out", tmp_path / "out"], capsys)
    assert path.name in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", READERS)
@pytest.mark.parametrize("place", ["missing", ".", "file/below"])
def test_a_place_without_a_file_is_told(program, place, tmp_path, capsys):
    (tmp_path / "file").touch()
    said = said_by(program, ["--data", place, "--out", tmp_path / "out"], capsys)
    assert place in said


# --- Contents that are wrong for the program that reads them -------------------------

CSV = "text,label\nhello there,wanted\nWIN now,spam\n"
GOOD = {"instruction": "Say hello.", "output": "Hello."}
RUN = " " * 1_000_000
WRONG_CONTENTS = [
    (TRAIN, "lamp", "cannot be cut in two"),
    (TRAIN, "The lamp was lit.", "is too short"),
    (TRAIN, WORDS + RUN + WORDS, "1,000,001 white-space characters"),
    (CLASSIFY, "<html><body>Not found</body></html>", "no column 'text'"),
    (CLASSIFY, CSV.replace(",", ";"), "separated by a comma"),
    (CLASSIFY, CSV.replace(",", "\t"), "separated by a comma"),
    (CLASSIFY, CSV.replace("text", "message"), "no column 'text'"),
    (CLASSIFY, CSV.replace("label", "class"), "no column 'label'"),
    (CLASSIFY, "text,label\n", "no message"),
    (CLASSIFY, CSV.replace("spam", "wanted"), "nothing to tell apart"),
    (CLASSIFY, CSV + "ho,\n", "row 4, column label"),
    (CLASSIFY, CSV + ",spam\n", "row 4, column text"),
    (CLASSIFY, CSV + "a,b,spam\n", "row 4: 3 columns"),
    (CLASSIFY, CSV + "spam\n", "row 4: 1 columns"),
    (CLASSIFY, CSV + '"open,spam\n', "row 4"),
    (CLASSIFY, CSV + "ho,Spam\n", "'Spam' is 'spam' in other"),
    (CLASSIFY, CSV + f"ho{RUN}ho,spam\n", "row 4: the text has 1,000,000"),
    (CLASSIFY, CSV, "leave a part empty"),
    (CLASSIFY, json.dumps([GOOD]), "no column 'text'"),
    (INSTRUCT, CSV, "this is no JSON"),
    (INSTRUCT, "<html></html>", "this is no JSON"),
    (INSTRUCT, "{}", "holds no list"),
    (INSTRUCT, "[]", "holds no list"),
    (INSTRUCT, "null", "holds no list"),
    (INSTRUCT, "NaN", "holds no list"),
    (INSTRUCT, '{"data": []}', "an object with the field 'data'"),
    (INSTRUCT, "[3]", "entry 1: it is int"),
    (INSTRUCT, '[["a", "b"]]', "entry 1: it is list"),
    (INSTRUCT, "[" + json.dumps(GOOD) + ",]", "line 1, column"),
    (INSTRUCT, "[" + "[" * 100_000, "nested too deeply"),
    (INSTRUCT, "[" + "9" * 5_000 + "]", "integer string"),
    (INSTRUCT, '[{"instruction": "a", "output": null}]', "'output': it is NoneType"),
    (INSTRUCT, '[{"instruction": "a", "output": NaN}]', "'output': it is float"),
    (INSTRUCT, '[{"instruction": "a", "output": ""}]', "'output': it is empty"),
    (INSTRUCT, '[{"instruction": "", "output": "b"}]', "'instruction': it is empty"),
    (INSTRUCT, '[{"prompt": "a", "completion": "b"}]', "'prompt', 'completion'"),
    (INSTRUCT, '[{"messages": []}]', "the field 'messages'"),
    (INSTRUCT, '[{"instruction": "\\udc00", "output": "b"}]', "half a character"),
    (INSTRUCT, '[{"output": "b", "output": "c"}]', "'output' twice"),
    (INSTRUCT, json.dumps([{**GOOD, "split": "dev"}]), "'split': it is 'dev'"),
    (INSTRUCT, json.dumps([{**GOOD, "answers": []}]), "'answers'"),
    (INSTRUCT, json.dumps([{**GOOD, "input": RUN}]), "1,000,000 white-space"),
    (INSTRUCT, json.dumps([GOOD]), "No entry is for the part"),
    (INSTRUCT, json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-3], "line 2, column"),
    (JUDGE, '[{"instruction": "a"}]', "'output': it is missing"),
    (JUDGE, CSV, "this is no JSON"),
]


@pytest.mark.parametrize(
    ("program", "content", "named"),
    WRONG_CONTENTS,
    ids=[f"{i}-{case[2][:20]}" for i, case in enumerate(WRONG_CONTENTS)],
)
def test_a_wrong_content_is_told_with_its_place(
    program, content, named, tmp_path, capsys
):
    path = tmp_path / "mine"
    path.write_text(content, encoding="utf-8")
    said = said_by(program, ["--data", path, "--out", tmp_path / "out"], capsys)
    assert named in said
    assert (
        "mine" in said
        or "The text has" in said
        or "No entry" in said
        or (program == CLASSIFY)
    )


# --- Options and places --------------------------------------------------------------

WHOLE = ["0", "-1", "1.5", "many", ""]
RATE = ["0", "-1", "nan", "inf", "fast"]
SEED = ["9" * 30, "x", "1.5"]
WRONG_OPTIONS = {
    "gpt.py": {
        "--max-new-tokens": WHOLE,
        "--seed": SEED,
        "--config": ["7B"],
        "--prompt": ["", "caf\udce9", "a " * 3000],
    },
    TRAIN: {
        "--epochs": WHOLE,
        "--window": [*WHOLE, "100000"],
        "--batch-size": WHOLE,
        "--learning-rate": RATE,
        "--set": ["width=3", "emb_dim=wide", "emb_dim", "n_heads=0", "emb_dim=7"],
        "--seed": SEED,
        "--preset": ["huge"],
        "--tokenizer": ["missing.json"],
    },
    GENERATE: {
        "--max-new-tokens": WHOLE,
        "--temperature": ["-1", "nan", "inf", "hot"],
        "--top-k": ["0", "-1", "1.5", "x"],
        "--top-p": ["0", "-1", "2", "nan", "x"],
        "--seed": SEED,
        "--prompt": ["", "caf\udce9"],
    },
    CLASSIFY: {
        "--epochs": WHOLE,
        "--lr": RATE,
        "--batch-size": WHOLE,
        "--max-length": WHOLE,
        "--trainable-blocks": ["-1", "x"],
        "--seed": SEED,
        "--preset": ["huge"],
    },
    INSTRUCT: {
        "--epochs": WHOLE,
        "--lr": RATE,
        "--batch-size": WHOLE,
        "--max-length": WHOLE,
        "--max-new-tokens": WHOLE,
        "--trainable-blocks": WHOLE,
        "--style": ["vicuna"],
        "--seed": SEED,
    },
    JUDGE: {"--num-ctx": WHOLE, "--timeout": RATE, "--seed": SEED},
}
OPTIONS = [
    (program, name, value)
    for program, options in WRONG_OPTIONS.items()
    for name, values in options.items()
    for value in values
]


@pytest.mark.parametrize(
    ("program", "name", "value"),
    OPTIONS,
    ids=[f"{p} {n} {v[:9]!a}" for p, n, v in OPTIONS],
)
def test_a_wrong_option_is_told(program, name, value, capsys):
    arguments = ["--data", "none"] if program == JUDGE else []
    said = said_by(program, [*arguments, f"{name}={value}"], capsys)
    field = value.partition("=")[0] if name == "--set" else name
    plain = re.sub(r"\W|_", "", field)
    assert (
        plain in re.sub(r"\W|_", "", said)
        or "prompt has" in said
        or ("missing" in said)
    )


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", ["file/below", "file or folder"])
def test_a_place_that_cannot_be_written_is_told_first(program, place, tmp_path, capsys):
    (tmp_path / "file").touch()
    other = tmp_path / "file or folder"
    if program in (TRAIN, CLASSIFY, INSTRUCT):  # they write a folder, others a file
        other.touch()
    else:
        other.mkdir()
    data = {
        TRAIN: WORDS * 30,
        GENERATE: "Hello",
        CLASSIFY: CSV + "hello there,wanted\nWIN now,spam\n" * 20,
        INSTRUCT: json.dumps([{**GOOD, "family": str(i)} for i in range(99)]),
        JUDGE: json.dumps([{**GOOD, "model_response": "Hi."}]),
    }
    arguments = ["--out", place]
    if program in data:
        (tmp_path / "mine").write_text(data[program], encoding="utf-8")
        arguments += ["--data", "mine"]
    said = said_by(program, arguments, capsys)
    assert f"{place} cannot be written" in said


def test_the_table_is_as_long_as_it_should_be():
    files = len(READERS) * (len(WRONG_FILES) + 3)
    assert files + len(WRONG_CONTENTS) + len(OPTIONS) + 2 * len(PROGRAMS) > 300
