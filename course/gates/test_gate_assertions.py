"""Fine points of the gates on tests: what asserts, what compares with itself."""

import pytest

from course.gates import assertions
from course.testing.tiny_trees import check_gate, miniature, notebook


def check(gate, folder, body, expected, before=""):
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    text = f"{before}\ndef test_it():\n{lines}"
    check_gate(gate, folder, {"ch02/test_it.py": text}, expected)


@pytest.mark.parametrize(
    "body",
    [
        "assert f(1) == 2",
        "with pytest.raises(ValueError):\n    f(1)",
        "with pytest.warns(UserWarning, match='x'):\n    f(1)",
        "torch.testing.assert_close(f(1), y)",
        "np.testing.assert_allclose(f(1), y)",
        "verify(check_2_1, solution, stub, wrong)",
        "if f(1) != 2:\n    pytest.fail('no')",
        "for x in y:\n    assert f(x)",
        "self.assertEqual(f(1), 2)",
        "mock.assert_called_once()",
        "helper(1)",
        "outer(1)",
        "assert not math.isnan(x) or x != x",
    ],
)
def test_asserting(tmp_path, body):
    helper = (
        "def helper(x):\n    assert x\n\n\ndef outer(x):\n    loop(x)\n    helper(x)\n"
        "\n\ndef loop(x):\n    return loop(x)\n"
    )
    check(assertions.every_test_asserts, tmp_path, body, 0, helper)


@pytest.mark.parametrize(
    "body",
    [
        "f(1)",
        "f(1) == 2",
        "assert True",
        "assert 'text'",
        "assert x == x",
        "torch.equal(f(1), y)",
        "print(f(1))",
        "return f(1) == 2",
        "helper(1)",
        "random.raises(1)",
    ],
)
def test_not_asserting(tmp_path, body):
    helper = "def helper(x):\n    return loop(x)\n\n\ndef loop(x):\n    helper(x)\n"
    words = "test_it asserts nothing"
    check(assertions.every_test_asserts, tmp_path, body, words, helper)


def test_helpers_in_other_files_count(tmp_path):
    files = {
        "ch02/helpers.py": "def same(a):\n    assert a\n\n\ndef other(a):\n    pass\n",
        "ch02/test_a.py": (
            "import helpers\nfrom helpers import same as equal, other\n\n\n"
            "def test_one():\n    equal(1)\n\n\n"
            "def test_two():\n    helpers.same(1)\n\n\n"
            "def test_three():\n    other(1)\n\n\n"
            "class TestIt:\n    def check_it(self):\n        assert f()\n\n"
            "    def test_four(self):\n        self.check_it()\n\n"
            "    def test_five(self):\n        pass\n"
        ),
    }
    found = assertions.every_test_asserts(miniature(tmp_path, files))
    assert [f.split()[1] for f in found] == ["test_three", "test_five"]


def test_tests_in_blocks_are_tests(tmp_path):
    files = {"ch02/test_a.py": "if windows:\n    def test_one():\n        pass\n"}
    check_gate(assertions.every_test_asserts, tmp_path, files, "test_one asserts")


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("assert x == x", 1),
        ("assert y == 1 and x is x", 1),
        ("assert torch.equal(x, x)", 1),
        ("torch.testing.assert_close(x, x)", 1),
        ("assert x == 1 == 1", 1),
        ("assert True", 1),
        ("assert x.y == x.y", 1),
        ("assert x[0] == x[0]", 1),
        ("assert x == x.clone()", 1),
        ("assert x.detach() == x", 1),
        ("assert x == pytest.approx(x)", 1),
        # Calling a function twice asks whether it gives one answer: that can fail.
        ("assert f(x) == f(x)", 0),
        ("assert x == f(x)", 0),
        ("assert x == copy(x)", 0),
        ("assert x == x.T", 0),
        ("assert x != x", 0),
        ("torch.testing.assert_close(x, y)", 0),
    ],
)
def test_comparing_with_itself(tmp_path, body, count):
    check(assertions.nothing_is_compared_with_itself, tmp_path, body, count)


def test_notebooks_assert_too(tmp_path):
    files = {"ch02/a.ipynb": notebook("# T", "assert x == x", "assert y == x")}
    check_gate(assertions.nothing_is_compared_with_itself, tmp_path, files, ":cell 2:")


@pytest.mark.parametrize(
    ("mark", "body", "count"),
    [
        ("@pytest.mark.skip", "assert f()", 1),
        ("@pytest.mark.skip(reason='x')", "assert f()", 1),
        ("@pytest.mark.skipif(windows, reason='x')", "assert f()", 0),
        ("", "pytest.skip('later')\nassert f()", 1),
        ("", "if windows:\n    pytest.skip('no')\nassert f()", 0),
    ],
)
def test_skipped_everywhere(tmp_path, mark, body, count):
    check(assertions.every_test_asserts, tmp_path, body, count, mark)
