"""Where things lie, and the path file that makes the modules importable."""

import os
import sys

import pytest

from course import CourseError, paths
from course.testing.lent_environment import lend
from course.testing.programs import right, run

JAPANESE = "\u8cc7\u6599 \u96c6"  # with a space in it


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")


def test_modules_of_chapters_in_the_order_of_their_folders(tmp_path):
    """Support modules count, whatever their name, and web apps do not."""
    main = "appendix-D/01_main-chapter-code"
    _touch(tmp_path, "ch04/03_x/kv_cache.py", "ch02/a/two.py", "ch02/a/one.py")
    _touch(tmp_path, f"{main}/training_loop.py", f"{main}/DDP-script.py")
    _touch(tmp_path, f"{main}/class.py", f"{main}/notes.ipynb")
    others = ("test_one", "ch02_checks", "experiments", "conftest", "app")
    _touch(tmp_path, *(f"ch02/a/{name}.py" for name in others))
    _touch(tmp_path, "course/paths.py", "dataloader.py", "ch02/ch02_checks.py")
    head = 'title = "t"\ntitle_ja = "t"\n'
    texts = {
        "ch02": 'order = 1\nsupport = ["ch02_checks"]\n',
        "ch02/a": 'about = "a"\napps = ["app"]\n',
    }
    for name, text in texts.items():
        file = tmp_path / name / "folder.toml"
        file.write_text(head + text, encoding="utf-8")
    modules = paths.summary_modules(tmp_path)
    assert list(modules) == ["training_loop", "one", "two", "ch02_checks", "kv_cache"]
    assert modules["one"] == tmp_path / "ch02" / "a" / "one.py"


def test_tree_files_leave_out_what_is_made(tmp_path):
    root = tmp_path / "runs" / "tree"  # a folder named runs counts only at the root
    kept = ["README.md", ".gitignore", "ch02/a.ipynb", "ch02/runs/x.csv", "data/d.txt"]
    made = [
        ".git/config",
        "my env/pyvenv.cfg",
        "my env/lib/x.py",
        "runs/model.pt",
        "ch02/__pycache__/a.cpython-311.pyc",
        "ch02/.ipynb_checkpoints/a.ipynb",
        "ch02/.DS_Store",
    ]
    _touch(root, *kept, *made)
    found = [path.relative_to(root).as_posix() for path in paths.tree_files(root)]
    assert sorted(found) == sorted(kept)


def test_a_folder_that_is_not_there_has_no_list_of_files(tmp_path):
    """An empty one would pass every gate that goes through it."""
    _touch(tmp_path, "file")
    for nowhere in (tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(CourseError, match="is not a folder, so it has no files"):
            paths.tree_files(nowhere)


def test_files_that_hide_a_package_or_a_module_of_python(tmp_path):
    """Not those that Python finds before any file, and no folders of data."""
    hiding = ["jinja2/__init__.py", "tiktoken.py", "types.py"]
    others = ["os.py", "sys.py", "yaml/a.txt", "notes.py", "torch.ipynb", "gpt.py"]
    _touch(tmp_path, *hiding, *others)
    found = [file.name for file in paths.namesakes(tmp_path)]
    assert found == ["jinja2", "tiktoken.py", "types.py"]
    modules = paths.summary_modules().values()
    for folder in {paths.ROOT, *(module.parent for module in modules)}:
        assert list(paths.namesakes(folder)) == []


# --- The path file --------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A tree with one module and an environment's site-packages inside."""
    root = tmp_path / JAPANESE
    _touch(root, "ch02/01_main-chapter-code/dataloader.py")
    (root / ".venv/lib/site-packages").mkdir(parents=True)
    return root


def test_where_no_relative_ascii_line_exists_a_statement_does_it(
    tree, tmp_path, monkeypatch
):
    def relpath(*_):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    elsewhere = tmp_path / "environment"
    elsewhere.mkdir()
    text = paths.write_path_file(elsewhere, tree).read_bytes().decode("ascii")
    script = f"import site, sys; site.addsitedir({str(elsewhere)!r}); print(sys.path)"
    done = run(sys.executable, "-I", "-S", "-c", script, LC_ALL="C")
    assert str(tree / "ch02/01_main-chapter-code") in eval(right(done)), text
    assert not done.stderr


def test_the_path_file_is_touched_only_to_change_it(tree):
    folder = tree / ".venv/lib/site-packages"
    path = paths.write_path_file(folder, tree)
    os.utime(path, (1, 1))
    paths.write_path_file(folder, tree)
    assert path.stat().st_mtime == 1
    _touch(tree, "ch03/01_main-chapter-code/multihead_attention.py")
    paths.write_path_file(folder, tree)
    lines = path.read_text(encoding="ascii").replace(os.sep, "/").splitlines()
    assert "../../../ch03/01_main-chapter-code" in lines
    path.write_bytes(b"\xff\xfe not text")
    assert b"ch03" in paths.write_path_file(folder, tree).read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text("old", encoding="utf-8")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        paths.write_text_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_when_the_tree_is_gone_the_environment_says_nothing(tmp_path):
    # A tree without even the course package.
    done = run(lend(tmp_path), "-c", "print('fine')")
    assert right(done) == "fine\n"
    assert done.stderr == ""
