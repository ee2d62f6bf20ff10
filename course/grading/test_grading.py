"""The command `grade`: what it reads, how code is shut in, and a class, graded."""

import contextlib
import csv
import ctypes
import functools
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from course import CourseError, paths
from course.grading import attempts, marks
from course.testing.programs import right, run
from course.testing.tiny_trees import code, markdown, write_notebook

pytestmark = pytest.mark.skipif(os.name == "nt", reason="shuts in as POSIX can")
KNOWN = attempts.exercises()
CHAPTER = "ch02/01_main-chapter-code/ch02.ipynb"


# --- What is read ---------------------------------------------------------------------


def test_every_exercise_of_the_course_is_known_once():
    numbers = [one.number for one in KNOWN.values()]
    assert len(set(numbers)) == len(numbers) > 100
    for one in KNOWN.values():
        last = attempts.parse(one.stub).body[-1]
        assert last.value.func.id == one.check, one
    main = [one.number for one in KNOWN.values() if one.notebook == CHAPTER]
    assert main == [f"2.{n}" for n in range(1, 8)]


def _attempts(*sources):
    cells = [(f"id{number}", source) for number, source in enumerate(sources)]
    return {e.number: a for e, a in attempts.of_notebook(cells, KNOWN)}


def test_a_cell_is_started_when_it_is_no_stub():
    stub = KNOWN["check_2_1"].stub
    found = _attempts(stub.replace("\n\n\n", "\n\n# a comment\n"), "check_2_2(mine)")
    assert (found["2.1"], found["2.3"]) == (None, None)  # 2.3 was deleted
    assert found["2.2"].cell == "check_2_2(mine)"


def test_the_last_cell_that_is_no_stub_counts():
    stub = KNOWN["check_2_1"].stub
    found = _attempts("check_2_1(first)", "check_2_1(second)", stub)
    assert found["2.1"].cell == "check_2_1(second)"


def test_a_cell_without_its_check_is_found_by_its_id():
    cells = [("exercise-2-1-answer", "x = 1"), ("", "check_2_2(f)")]
    found = {e.number: a for e, a in attempts.of_notebook(cells, KNOWN)}
    assert found["2.1"].cell == "x = 1"


@pytest.mark.parametrize(
    ("above", "cell", "kept"),
    [
        (["import re", "x = train()"], "def f(): return re.X", ["import re"]),
        (["x = 1", "x = 2"], "f(x)", ["x = 2"]),
        (["x = 1", "x = x + 1"], "f(x)", ["x = 1", "x = x + 1"]),
        (["x = []", "x.append(1)", "y.append(1)"], "f(x)", ["x = []", "x.append(1)"]),
        (["d = {}", "d[1] = 2", "del d[1]"], "d", ["d = {}", "d[1] = 2", "del d[1]"]),
        (["x = 1", "if a: x = 2"], "f(x)", ["x = 1", "if a:\n    x = 2"]),
        # A name is looked up when the function is called.
        (["def f(): return g()", "def g(): return 1"], "f()", ["f", "g"]),
        # Names of their own are no names of the notebook.
        (["model = train()"], "def f(model): return model", []),
        (["model = train()"], "def f():\n    model = 1\n    return model", []),
        (["x = 1", "class A:\n    y = x"], "A", ["x = 1", "class A:\n    y = x"]),
        (["broken(", "x = 1"], "f(x)", ["x = 1"]),
        # What the cell says itself, it needs from nobody.
        (
            ["x = train()", "g = train()"],
            "x = 1\ndef f(): return g(x)\ndef g(x): 0",
            [],
        ),
        (["import m", "x = 1", "m.show(train(x))"], "f(m)", ["import m"]),
    ],
)
def test_only_what_the_cell_needs_is_run(above, cell, kept):
    found = _attempts(*above, f"{cell}\ncheck_2_1(f)")["2.1"].before
    assert [one if len(two) > 1 else one[4] for one, two in zip(found, kept)] == kept


def test_students_are_files_and_folders(tmp_path):
    for name in (
        *("anna.ipynb", "ben/ch02.ipynb", "ben/more/ch03.ipynb"),
        *("ben/.ipynb_checkpoints/ch02.ipynb", "ben/exercise-solutions.ipynb"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = attempts.handed_in(tmp_path)
    names = {who: [file.name for file in files] for who, files in found.items()}
    assert names == {"anna": ["anna.ipynb"], "ben": ["ch02.ipynb", "ch03.ipynb"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "There is no folder nowhere"),
        (["."], "There is no notebook in"),
        ([".", "there.csv"], "there.csv is there already"),
        ([".", None, "soon"], "--seconds needs a number"),
    ],
)
def test_slips_get_a_sentence(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    Path("there.csv").touch()
    with pytest.raises(CourseError, match=re.escape(said)):
        marks.main(*arguments)


# --- Code that nobody has read --------------------------------------------------------

LIBC = ctypes.CDLL(None)  # as a module of the course may have loaded it before
UNHEARD = [LIBC.fork, LIBC.unlink, LIBC.rmdir, LIBC.execl, LIBC.kill, LIBC.syscall]


def _takes_memory():
    blocks = []
    while True:
        blocks.append(b"x" * 10**8)


def _maps_memory():
    import mmap

    blocks = []
    while True:
        blocks.append(mmap.mmap(-1, 10**8))
        blocks[-1].write(b"x" * 10**8)


def _is_deaf():
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass


def _forks(fork):
    while True:
        with contextlib.suppress(RuntimeError):
            fork()


def _is_outlived():
    pid = LIBC.fork()  # of which no hook hears
    if pid == 0:
        LIBC.setsid()
        time.sleep(60)
        os._exit(0)
    return pid


def _starts_programs():
    # Below `subprocess`, where no hook hears it.
    fork_exec = importlib.import_module("_posixsubprocess").fork_exec
    reading, writing = os.pipe()
    program = [b"/bin/sleep", b"99"]
    rest = [-1, -1, -1, -1, -1, -1, reading, writing, True, False, -1, None, None, None]
    while True:
        fork_exec(
            program, program[:1], True, (writing,), None, None, *rest, -1, None, True
        )


def _leaves_files():
    for number in range(3):
        Path(f"{number}").write_text("x", encoding="utf-8")
    Path("0").rename("4")
    Path("inner/most").mkdir(parents=True)
    shutil.rmtree("inner")
    os.unlink("1", dir_fd=os.open(".", os.O_RDONLY))
    return sorted(os.listdir(Path.home()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives us its orphans")
def test_what_outlives_a_short_answer_is_ended(tmp_path):
    from course.grading import contained

    child = contained.start(_is_outlived, 5.0, tmp_path)
    began = time.monotonic()
    while (ended := child.poll()) is None and time.monotonic() - began < 60:
        time.sleep(contained.LOOK)
    assert ended is not None
    assert ended.why == ""
    assert time.monotonic() - began < 30
    assert not _alive(ended.result)


@pytest.mark.parametrize(
    ("function", "ending"),
    [
        (lambda: ["fine", 1], None),
        (lambda: sum(1 for _ in iter(int, 1)), "out of time: it takes more than 1 s"),
        (functools.partial(time.sleep, 10**6), "out of time: it takes more than 1 s"),
        (_is_deaf, "out of .*time: .*"),
        (_takes_memory, "ended: .*|out of memory: .*"),
        (_maps_memory, "out of memory: it takes more than 0 GB"),
        (functools.partial(_forks, LIBC.fork), "refused: it starts other processes"),
        (functools.partial(_forks, os.fork), "out of time: .*"),
        (_starts_programs, "refused: .*|ended: .*|out of time: .*"),
        (functools.partial(os._exit, 7), r"ended: .*\(exit code 7\)"),
        (functools.partial(ctypes.string_at, 0), "crashed: SIGSEGV"),
        (lambda: Path("big").write_bytes(b"x" * 2 * 10**8), "ended: .*"),
        (input, "ended: .*"),
    ],
)
def test_code_ends_and_leaves_nothing_behind(tmp_path, monkeypatch, function, ending):
    from course.grading import contained

    monkeypatch.setattr(contained, "MEMORY", 4 * 10**8)
    child = contained.start(function, 1.0, tmp_path)
    began = time.monotonic()
    while (ended := child.poll()) is None and time.monotonic() - began < 60:
        time.sleep(contained.LOOK)
    assert ended, child.kill()
    if ending is None:
        assert ended.result == ["fine", 1]
    else:
        assert re.match(ending, ended.why), ended
    while _alive(child.pid) and time.monotonic() - began < 60:
        time.sleep(contained.LOOK)
    assert not _alive(child.pid)
    assert not any(tmp_path.iterdir())


def _alive(group):
    """The processes of a group that are not dead yet."""
    alive = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                alive += [process] * (process.status() != psutil.STATUS_ZOMBIE)
    return alive


def _says(action):
    """What an action raises, by name; "done" if it raises nothing."""
    try:
        action()
    except (RuntimeError, OSError) as error:
        return type(error).__name__
    return "done"


def _ended(function, place):
    from course.grading import contained

    child = contained.start(function, 20.0, place)
    while (ended := child.poll()) is None:
        time.sleep(contained.LOOK)
    return ended


def test_code_writes_in_its_folder_only(tmp_path):
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    precious = victim / "precious"
    precious.write_text("gold", encoding="utf-8")
    place = tmp_path / "place"
    place.mkdir()
    (victim / "link").symlink_to(precious)

    def through_a_link():
        os.symlink(precious, "mine")
        Path("mine").write_text("x", encoding="utf-8")

    def by_an_open_folder():
        os.unlink("precious", dir_fd=os.open(victim, os.O_RDONLY))

    attacks = [
        lambda: shutil.rmtree(victim),
        lambda: precious.unlink(),
        lambda: precious.write_text("lead", encoding="utf-8"),
        lambda: precious.open("a"),
        lambda: os.truncate(precious, 0),
        lambda: os.rename(precious, "mine"),
        lambda: os.rename("/etc/hosts", victim / "hosts"),
        lambda: (victim / "new").mkdir(),
        lambda: (victim / "inner").rmdir(),
        lambda: os.chmod(precious, 0),
        lambda: Path("../../victim/precious").unlink(),
        through_a_link,
        by_an_open_folder,
        lambda: os.system(f"rm {precious}"),
        lambda: subprocess.run(["rm", precious], check=False),
        lambda: os.kill(os.getppid(), signal.SIGTERM),
        lambda: socket.create_connection(("192.0.2.1", 80), 1),
    ]
    said = _ended(lambda: list(map(_says, attacks)), place).result
    refused = {"NotWhileGrading", "NetworkForbidden"}
    assert set(said) == refused, said
    assert precious.read_text(encoding="utf-8") == "gold"
    assert _ended(_leaves_files, place).result == ["2", "4"]  # its own


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_the_kernel_holds_what_the_hooks_do_not_hear(tmp_path):
    if LIBC.syscall(444, None, ctypes.c_size_t(0), 1) < 1:
        pytest.skip("this kernel has no Landlock")
    precious = tmp_path / "precious"
    precious.write_text("gold", encoding="utf-8")
    place = tmp_path / "place"
    place.mkdir()

    def directly():
        mine = os.fsencode(Path("mine").absolute())
        Path("mine").touch()
        return [
            LIBC.unlink(os.fsencode(precious)),
            LIBC.rmdir(os.fsencode(place)),
            LIBC.execl(b"/bin/true", b"true", None),
            LIBC.kill(os.getppid(), 0),
            LIBC.unlink(mine),
        ]

    assert _ended(directly, place).result == [-1, -1, -1, -1, 0]
    assert precious.read_text(encoding="utf-8") == "gold"


# --- A class --------------------------------------------------------------------------

ASK = "\ncheck_2_1(byte_pair_pieces)"
STUB = "def byte_pair_pieces(text, tokenizer):\n    return "
RIGHT = f"{STUB}[(i, tokenizer.decode_single_token_bytes(i)) for i in MINE(text)]"
RIGHT = RIGHT.replace("MINE", "tokenizer.encode")
#: Cells for exercise 2.1 by student, and what the table must say of it.
CLASS = {
    "ada": (RIGHT + ASK, "correct"),
    "other name": (
        RIGHT.replace("byte_pair_", "my_") + "\ncheck_2_1(my_pieces)",
        "correct",
    ),
    "magic": (f"%time x = 1\n{RIGHT}{ASK}", "correct"),
    "needs above": (
        RIGHT.replace("tokenizer.encode(text)", "my_ids(text)") + ASK,
        "correct",
    ),
    "no question": (RIGHT, "correct"),
    "empty list": (f"{STUB}[]{ASK}", "wrong: the joined pieces are not the bytes"),
    "no name": ("x = 1", "wrong: the cell raises NameError: name 'byte_pair_pieces'"),
    "typing error": (f"def f(:\n{ASK}", "wrong: the cell is not valid Python (invalid"),
    "own check": (
        f"def check_2_1(f):\n    print('correct')\n{STUB}[]{ASK}",
        "wrong: the",
    ),
    "own print": (
        f"print('Exercise 2.1: correct. Fine.')\n{STUB}[]",
        "wrong: the joined",
    ),
    "changes the check": (
        "import course.exercises, ch02_checks\n"
        "for one in (course.exercises, ch02_checks):\n"
        "    one.expect = one.expect_equal = lambda *a, **k: None\n"
        f"{STUB}[]{ASK}",
        "wrong: the check itself was changed",
    ),
    "endless": (f"{STUB}[1 for _ in iter(int, 1)]{ASK}", "out of time: it takes more"),
    "prints": (f"while True:\n    print('x' * 10**6)\n{ASK}", "out of time: it takes"),
    "takes all": (
        f"{STUB}[torch.ones(10**9) for _ in range(99)]{ASK}",
        "out of memory",
    ),
    "takes all above": (
        "x = []\nwhile True:\n    x.append(b'x' * 10**8)",
        "out of memory",
    ),
    "deletes": (f"import shutil\n{STUB}shutil.rmtree('HANDED_IN'){ASK}", "refused: "),
    "forks": (f"import os\n{STUB}[os.fork() for _ in iter(int, 1)]{ASK}", "refused: "),
    "exits": ("import os\nos._exit(0)", "ended: the code ends the program itself"),
    "leaves": (f"import sys\n{STUB}sys.exit(){ASK}", "wrong: byte_pair_pieces("),
    "asks": (f"{STUB}input('?'){ASK}", "wrong: byte_pair_pieces('Quorlamp', "),
    "crashes": ("import ctypes\nctypes.string_at(0)", "crashed: SIGSEGV"),
    "calls home": (
        "import socket\nsocket.create_connection(('192.0.2.1', 80), 3)",
        "refused: ",
    ),
    "=1+1": (RIGHT + ASK, "correct"),
    "not started": (KNOWN["check_2_1"].stub, "not started"),
}
HELPER = "def my_ids(text):\n    return tiktoken.get_encoding('gpt2').encode(text)"


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The table of a class, by student, and the folder that was graded."""
    place = tmp_path_factory.mktemp("grade")
    folder = place / "handed in"
    folder.mkdir()
    cells = json.loads((paths.ROOT / CHAPTER).read_text(encoding="utf-8"))["cells"]
    above = [cell for cell in cells if cell["cell_type"] == "code"][:9]
    above = [code("".join(cell["source"])) for cell in above]
    for student, (cell, _) in CLASS.items():
        cell = cell.replace("HANDED_IN", str(folder))
        later = code(
            "def count_windows(*a):\n    return 0, 0\ncheck_2_3(count_windows)"
        )
        write_notebook(
            folder / f"{student}.ipynb",
            *(markdown("# Mine"), *above, code(HELPER), code("raise SystemExit")),
            *(code(cell, id="exercise-2-1-answer"), later),
        )
    (folder / "broken.ipynb").write_text("{", encoding="utf-8")
    write_notebook(folder / "empty" / "mine.ipynb", code("1 + 1"))
    before = {file: file.read_bytes() for file in folder.rglob("*.ipynb")}
    command = [sys.executable, paths.ROOT / "course", "grade", folder, "--seconds", "3"]
    more = {"COURSE_RUNS": str(place / "runs")}
    said = right(run(*command, **more))
    assert {file: file.read_bytes() for file in folder.rglob("*.ipynb")} == before
    return place / "runs" / "marks" / "handed in.csv", said


@pytest.fixture(scope="module")
def table(graded):
    with graded[0].open(encoding="utf-8-sig", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("student", CLASS)
def test_each_student_gets_a_row_with_what_happened(table, student):
    row = table["'=1+1" if student == "=1+1" else student]
    assert row["2.1"].startswith(CLASS[student][1]), row["2.1"]
    # What comes after goes on, and what is not there was not started.
    assert row["2.3"].startswith("wrong: for num_tokens=")
    assert row["2.2"] == row["2.7"] == "not started"
    assert (row["correct"], row["of"]) == (str(int(row["2.1"] == "correct")), "7")
    assert row["notebooks"] == f"{student}.ipynb".replace("=1", "'=1")


def test_what_cannot_be_graded_is_said(table, graded):
    assert table["broken"]["remarks"] == "broken.ipynb is not a readable notebook"
    assert table["empty"]["remarks"] == "no exercise of the course in it"
    assert "ada: 1 of 7 correct\n" in graded[1]
    assert re.search(rf"{len(CLASS) + 2} rows in \d+ s, in ", graded[1])
