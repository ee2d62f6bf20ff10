"""Figures as files: every one of a chapter, with its description."""

import sys

import export_figures as script
import pytest
from PIL import Image

from course import paths
from course.testing.programs import right, run


def test_every_figure_becomes_a_file_with_its_description(tmp_path):
    folder = tmp_path / "slides"
    command = [sys.executable, script.__file__, "ch03"]
    said = right(run(*command, folder))
    pictures = sorted(folder.glob("*.png"))
    assert f"{len(pictures)} figures of ch03/" in said
    assert len(pictures) >= 6
    captions = (folder / "captions.md").read_text(encoding="utf-8")
    for picture in pictures:
        assert f"]({picture.name})" in captions
        with Image.open(picture) as image:
            assert image.width > 300
    notebook = paths.ROOT / "ch03" / "01_main-chapter-code" / "ch03.ipynb"
    for _, _, alt in script.figures(notebook):
        assert f"\n{alt}\n" in captions
    again = run(*command, folder)
    assert again.returncode == 2
    assert "is there already" in again.stderr


@pytest.mark.parametrize("alt", ["a [b] c"])
def test_a_description_with_brackets_stays_one_picture(tmp_path, monkeypatch, alt):
    monkeypatch.setattr(script, "figures", lambda notebook: [("x", b"", alt)])
    assert script.export(tmp_path / "n.ipynb", tmp_path / "out") == 1
    captions = (tmp_path / "out" / "captions.md").read_text(encoding="utf-8")
    assert "![a (b) c](x.png)" in captions
