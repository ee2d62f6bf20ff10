"""Fine points of the gates on imports, names, copies, packages and data."""

import hashlib

import pytest

from course.gates import dependencies, imports
from course.testing.tiny_trees import check_gate, code, notebook

DOC = '"""A module.\n\n>>> 1\n1\n"""\n'
CH02 = "ch02/01_main-chapter-code"
CH03 = "ch03/01_main-chapter-code"
BONUS = "ch02/02_bonus_more"


# ------------------------------------------------------------------- course in wings


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        ("course/paths.py", "from course import folders", ""),
        ("course/paths.py", "from course.gates import tree", "belongs to gates"),
        ("course/paths.py", "def f():\n    import course.running.ledger", "to running"),
        ("course/commands.py", "def f():\n    from course.running import ledger", ""),
        ("course/lab.py", "from course.installation import environment", ""),
        ("course/running/a.py", "from course.installation import environment", ""),
        ("course/running/a.py", "from course.gates import tree", "belongs to gates"),
        ("course/gates/a.py", "from course.running import ledger", ""),
        ("course/gates/a.py", "from course.testing import servers", "to testing"),
        ("course/gates/test_a.py", "from course.testing import servers", ""),
        ("course/testing/a.py", "from course.gates.tree import Tree", ""),
        ("course/installation/a.py", "from course import settings", ""),
        ("course/installation/a.py", "from course.running import b", "to running"),
        ("course/installation/a.py", "import requests", "a package, before any"),
        ("course/installation/a.py", "import venv", ""),
        ("course/running/a.py", "import requests", ""),
        ("course/a.py", "def f():\n    import early", "early, a module of a chapter"),
        ("course/test_a.py", "import early", ""),
    ],
)
def test_course_is_built_upwards(tmp_path, path, line, message):
    files = {path: line, f"{CH02}/early.py": DOC}
    check_gate(imports.course_is_built_upwards, tmp_path, files, message)


# --------------------------------------------------------------------- who imports whom


@pytest.mark.parametrize(
    ("path", "imported", "count"),
    [
        (f"{CH02}/early.py", f"{CH03}/late.py", 1),
        (f"{CH03}/late.py", f"{CH02}/early.py", 0),
        (f"{CH03}/late.py", f"{BONUS}/extra.py", 0),
        (f"{BONUS}/extra.py", f"{CH03}/late.py", 0),
        ("appendix-A/01_main-chapter-code/a.py", f"{CH02}/early.py", 0),
        ("appendix-A/01_main-chapter-code/a.py", f"{CH03}/late.py", 1),
        ("ch06/01_main-chapter-code/six.py", "appendix-D/01_main-chapter-code/d.py", 0),
        ("appendix-D/01_main-chapter-code/d.py", "ch06/01_main-chapter-code/six.py", 1),
        (f"{CH02}/ch02.ipynb", f"{CH03}/late.py", 1),
        (f"{CH02}/ch02.ipynb", "ch03/02_bonus_more/late.py", 0),
        (f"{CH02}/early.py", "ch03/02_bonus_more/late.py", 1),
        (f"{CH02}/ch02_checks.py", f"{CH03}/late.py", 1),
        (f"{CH02}/experiments.py", f"{CH03}/late.py", 0),
        (f"{CH02}/test_early.py", f"{CH03}/late.py", 0),
    ],
)
@pytest.mark.parametrize("form", ["import {}", "def f():\n    from {} import x"])
def test_imports_look_back(tmp_path, path, imported, count, form):
    text = form.format(imported.rpartition("/")[2].removesuffix(".py"))
    text = notebook("# T", text) if path.endswith(".ipynb") else text
    check_gate(imports.imports_look_back, tmp_path, {path: text, imported: DOC}, count)


EARLY, LATE = f"{CH02}/early.py", f"{CH03}/late.py"
CLASS = "class Loader:\n    pass\n"
LONG = "def f(x):\n    x += 1\n    x += 2\n    x += 3\n    return x\n"
RENAMED = LONG.replace("f(", "g(")
#: Files with what each gate finds, in words or as a number.
CASES = {
    imports.no_cycles: [
        (
            {
                f"{CH02}/one.py": "import two\n",
                f"{CH02}/two.py": "def f():\n    from three import x\n",
                f"{CH02}/three.py": "import one\nimport four\n",
                f"{CH02}/four.py": "",
            },
            "the modules import one another",
        ),
        (
            {
                f"{CH02}/one.py": "import two\n",
                f"{BONUS}/two.py": "import three\n",
                f"{CH02}/three.py": "",
            },
            "the folders import one another",
        ),
        ({f"{CH02}/one.py": "import two\n", f"{BONUS}/two.py": ""}, 0),
    ],
    imports.file_names_are_unique: [
        ({f"{CH02}/one.py": "", f"{CH03}/one.py": ""}, 1),
        ({f"{CH02}/a_checks.py": "", f"{CH03}/a_checks.py": ""}, 1),
        ({f"{CH02}/one.py": "", "course/one.py": ""}, 0),
        ({f"{CH02}/conftest.py": "", "conftest.py": ""}, 0),
    ],
    imports.class_names_are_unique: [
        (
            {
                f"{CH02}/ch02.ipynb": notebook("# T", CLASS),
                f"{CH03}/ch03.ipynb": notebook("# T", "1", CLASS),
            },
            f"{CH03}/ch03.ipynb:cell 3: the class Loader",
        ),
        ({EARLY: CLASS, LATE: CLASS}, 1),
        ({EARLY: CLASS, "course/a.py": CLASS}, 1),
        ({EARLY: CLASS, f"{CH03}/test_late.py": CLASS}, 0),
        ({EARLY: CLASS, f"{CH02}/ch02.ipynb": notebook("# T", CLASS, CLASS)}, 0),
        ({EARLY: CLASS, LATE: "def f():\n    class Loader:\n        pass\n"}, 0),
    ],
    imports.nothing_is_copied: [
        ({EARLY: LONG, LATE: LONG}, 1),
        ({EARLY: LONG, LATE: RENAMED}, 1),
        ({EARLY: LONG, LATE: LONG.replace("3", "4")}, 0),
        ({EARLY: LONG, f"{CH02}/ch02.ipynb": notebook("# T", LONG)}, 0),
        ({EARLY: LONG, f"{CH03}/ch03.ipynb": notebook("# T", RENAMED)}, 1),
        ({EARLY: LONG, f"{CH03}/test_late.py": LONG}, 0),
        # Within a folder, one notebook may repeat what another defines.
        (
            {
                f"{CH02}/ch02.ipynb": notebook("# T", LONG),
                f"{CH02}/exercise-solutions.ipynb": notebook("# T", LONG),
            },
            0,
        ),
    ],
}


@pytest.mark.parametrize(
    ("gate", "files", "expected"),
    [(gate, *case) for gate, cases in CASES.items() for case in cases],
)
def test_one_home_each(tmp_path, gate, files, expected):
    check_gate(gate, tmp_path, files, expected)


CHECKS = '@check("2.1")\ndef check_2_1(attempt):\n    pass\n'
WIRED = {
    f"{CH02}/ch02_checks.py": CHECKS,
    f"{CH02}/ch02.ipynb": notebook("# T", "check_2_1(mine)"),
    f"{CH02}/exercise-solutions.ipynb": notebook("# T", "check_2_1(right)"),
    f"{CH02}/test_ch02_checks.py": "verify(check_2_1, a, b, c)\n",
}


@pytest.mark.parametrize("missing", [*WIRED, ""])
def test_exercises(tmp_path, missing):
    text = notebook("# T") if missing.endswith(".ipynb") else ""
    files = {**WIRED, missing: text} if missing else WIRED
    # Without a check nothing is missing; without any of the others one thing is.
    count = int(missing not in ("", f"{CH02}/ch02_checks.py"))
    check_gate(imports.exercises_are_wired, tmp_path, files, count)


# ------------------------------------------------------------------- packages and data


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("tqdm==4.70.1", 0),
        ("tqdm==4.70.1  # progress", 0),
        ("tqdm[all]==4.70.1", 1),
        ('tqdm==4.70.1; python_version < "3.12"', 1),
        ("# tqdm", 0),
        ("tqdm", 1),
        ("tqdm>=4.70", 1),
        ("tqdm==4.*", 1),
        ("tqdm~=4.70", 1),
        ("-r other.txt", 1),
        ("tqdm @ https://x.org/tqdm.whl", 1),
        ("Torch==2.13.0", 1),
    ],
)
def test_requirements(tmp_path, line, count):
    files = {"requirements.txt": f"torch==2.13.0\n{line}\n"}
    check_gate(dependencies.requirements_are_exact, tmp_path, files, count)


@pytest.mark.parametrize(
    ("path", "line", "count"),
    [
        (f"{CH02}/early.py", "import torch, early_checks, json", 1),
        (f"{CH02}/early.py", "import numpy.linalg as la", 0),
        (f"{CH02}/early.py", "from PIL import Image", 0),
        (f"{CH02}/test_early.py", "import pytest, early", 0),
        (f"{CH02}/early.py", "import pytest", 1),
        (f"{CH02}/experiments.py", "import pytest", 0),
        (f"{BONUS}/extra.py", "import pytest", 1),
        (f"{BONUS}/extra.ipynb", "import pytest, never_heard_of_it", 1),
        ("course/a.py", "import pytest", 1),
        ("course/testing/a.py", "import pytest", 0),
        (f"{CH02}/ch02.ipynb", "import pandas", 1),
    ],
)
def test_imports_are_required(tmp_path, path, line, count):
    text = notebook("# T", line) if path.endswith(".ipynb") else line
    files = {f"{CH02}/early.py": "", path: text}
    check_gate(dependencies.imports_are_required, tmp_path, files, count)


LISTS_PYTEST = 'title = "B"\ntitle_ja = "B"\nabout = "b"\npackages = ["pytest"]\n'


@pytest.mark.parametrize(
    ("path", "line", "count"),
    [
        (f"{BONUS}/extra.py", "import pytest", 0),
        (f"{BONUS}/extra.py", "import hypothesis", 1),  # another one
        (f"{BONUS}/extra.py", "import never_heard_of_it", 1),
        (f"{CH02}/early.py", "import pytest", 1),  # another folder
    ],
)
def test_a_bonus_folder_lists_packages_for_its_modules(tmp_path, path, line, count):
    files = {path: line, f"{BONUS}/folder.toml": LISTS_PYTEST}
    check_gate(dependencies.imports_are_required, tmp_path, files, count)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("!pip install x", "calls pip install;"),
        ("%pip install x", "calls pip install;"),
        ("x = !uv pip install x", "calls uv pip install;"),
        ("if 1:\n    !wget http://x", "calls wget;"),
        ("!{sys.executable} -m pip install x", "calls pip install;"),
        ("%%bash\ncd runs\ncurl -O x", "calls curl;"),
        ("git = 1; print('pip install x')", ""),
        ("%matplotlib inline", ""),
    ],
)
def test_installing(tmp_path, source, message):
    files = {f"{CH02}/ch02.ipynb": notebook("# T", code(source))}
    check_gate(dependencies.nothing_is_installed, tmp_path, files, message)


STORY = "Once upon a time.\n"
GOOD = {
    "sha256": f'"{hashlib.sha256(STORY.encode()).hexdigest()}"',
    "size": str(len(STORY)),
    "licence": '"CC0-1.0"',
    "sources": '[{path = "data/story.txt"}]',
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("", "", ""),
        ("sha256", '"' + "0" * 64 + '"', "data/story.txt:1:"),
        ("sha256", '"0"', "course/assets.toml:1:"),
        ("size", "3", "data/story.txt:1:"),
        ("licence", '""', "course/assets.toml:1:"),
        ("sources", '[{path = "data/other.txt"}]', "data/other.txt:1:"),
        ("sources", "[]", "course/assets.toml:1:"),
    ],
)
def test_assets(tmp_path, field, value, message):
    entry = GOOD | ({field: value} if field else {})
    lines = "\n".join(f"{name} = {text}" for name, text in entry.items())
    files = {"course/assets.toml": f'["story"]\n{lines}\n', "data/story.txt": STORY}
    check_gate(dependencies.assets_match, tmp_path, files, message)
