"""The script makes tables of the committed form, goes on, and begins anew."""

import contextlib
from pathlib import Path

import pytest

from course.assets import fetch
from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from gguf_files import read_gguf
from gguf_tokenizer import GGUFTokenizer
from judge_server import LocalJudge
from pretrained import Pretrained
from small_models import small_configs, small_model

FOLDER = Path(__file__).parent
ROWS = {  # of a tiny run: three questions with four replies each, two with choices
    "cloze.csv": 2,
    "letters.csv": 8,
    "pairs.csv": 5,
    "padding.csv": 4,
    "verdicts.csv": 12,
    "grades.csv": 12,
    "judging.csv": 6,
}


@pytest.fixture(scope="module")
def experiments():
    """The script, with a tiny model of random weights and SmolLM2's own tokenizer."""
    tokenizer = GGUFTokenizer(read_gguf(fetch("smollm2-135m")).metadata)
    config = small_configs(1024, tokenizer.n_vocab)["Llama"]

    def tiny(name, dtype):
        return Pretrained(small_model(config).to(dtype), tokenizer, config)

    asked = []

    @contextlib.contextmanager
    def judge():
        local = LocalJudge(lambda prompt: asked.append(prompt) or "Grade: 70")
        yield local.url()
        local.stop()

    script = script_in(FOLDER)
    script.load_pretrained, script.llama_cpp, script.asked = tiny, judge, asked
    return script


def test_a_tiny_run_makes_the_committed_tables_and_goes_on_from_them(
    experiments, tmp_path, capsys
):
    options = ["--tiny", "--out", str(tmp_path)]
    assert experiments.main(options) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(ROWS)
    assert other_columns(tmp_path, FOLDER / "results", ROWS) == []
    assert {name: len(read(tmp_path / name)) for name in ROWS} == ROWS
    grades = read(tmp_path / "grades.csv")
    assert {(row["kind"], row["grade"]) for row in grades} == {("score", "70")}
    assert len(experiments.asked) == len(grades)
    assert f"grades.csv: {len(grades)} in " in capsys.readouterr().out

    # What is there is not made again; what is missing is, and becomes what it was.
    cloze, letters = (tmp_path / name for name in ("cloze.csv", "letters.csv"))
    before, whole = cloze.read_bytes(), letters.read_bytes()
    letters.unlink()
    assert experiments.main(options) == 0
    assert cloze.read_bytes() == before
    assert letters.read_bytes() == whole
    assert len(experiments.asked) == len(grades)
    assert experiments.main([*options, "--fresh"]) == 0
    assert len(experiments.asked) == 2 * len(grades)
    assert cloze.read_bytes() == before


def test_pairs_of_one_question_are_right_and_wrong_or_long_and_short(experiments):
    class Reply:
        def __init__(self, by_hand, reply):
            self.by_hand, self.reply, self.question = by_hand, reply, "?"

    replies = [Reply(1, "yes"), Reply(0, "no"), Reply(0, "certainly not")]
    kinds = {kind: (a.reply, b.reply) for kind, a, b in experiments.pairs_of(replies)}
    assert kinds["right"][0] == "yes"
    assert kinds["right"][1] in ("no", "certainly not")
    assert kinds["wrong"] == ("certainly not", "no")
    assert experiments.pairs_of([Reply(0, "a"), Reply(0, "b")]) == []  # as long
    assert experiments.pairs_of([Reply(1, "a"), Reply(1, "bc")]) == []
