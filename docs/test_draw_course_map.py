"""The map in the README is the one that chapter 1 draws."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("draw_course_map.py")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("draw_course_map_by_path", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_the_one_in_the_notebook(script, capsys):
    assert script.main(["--check"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert script.drawn_map().startswith(b"\x89PNG")


def test_another_picture_is_noticed_and_replaced(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "PICTURE", tmp_path / "course-map.png")
    script.PICTURE.write_bytes(b"something else")
    assert script.main(["--check"]) == 1
    assert "python docs/draw_course_map.py" in capsys.readouterr().out
    assert script.PICTURE.read_bytes() == b"something else"
    assert script.main([]) == 0
    assert script.PICTURE.read_bytes() == script.drawn_map()


def test_a_notebook_without_the_map_is_an_error(script, tmp_path, monkeypatch, capsys):
    notebook = tmp_path / "ch01.ipynb"
    cell = {"id": script.CELL, "outputs": [{"data": {"text/plain": "nothing"}}]}
    notebook.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    monkeypatch.setattr(script, "NOTEBOOK", notebook)
    monkeypatch.setattr(script.drawn_map, "__defaults__", (notebook,))
    assert script.main([]) == 1
    assert "refresh ch01" in capsys.readouterr().err
