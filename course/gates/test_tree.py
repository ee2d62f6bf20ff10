"""Every static gate, over the whole project.

Each test is one rule; its name says which, its docstring in the gate says why, and its
failure lists every place with the fix. The gates' own tests stand beside them.
"""

from importlib import import_module
from pathlib import Path

import pytest

from course.gates.tree import Tree, gates

HERE = Path(__file__).parent
MODULES = [p.stem for p in sorted(HERE.glob("*.py")) if not p.match("test_*.py")]
GATES = [
    pytest.param(gate, id=f"{module}-{gate.__name__}")
    for module in MODULES
    for gate in gates(import_module(f"course.gates.{module}"))
]


def in_order(finding):
    """By file, then by place, with cell 9 before cell 10."""
    path, place, _ = finding.split(":", 2)
    return path, int(place.removeprefix("cell ")), finding


@pytest.fixture(scope="module")
def tree():
    return Tree()


@pytest.mark.parametrize("gate", GATES)
def test_tree(gate, tree):
    findings = sorted(set(gate(tree)), key=in_order)
    if findings:
        title = gate.__doc__.splitlines()[0]
        pytest.fail("\n".join([title, *findings]), pytrace=False)
