"""Tables of results keep what is in them."""

import pytest

from course import paths, tables

ROWS = [{"method": "a", "share": "1.50"}, {"method": "b", "share": "0"}]


@pytest.mark.parametrize("text", ["plain", "a, b", 'say "x"', "two\r\nlines", ""])
def test_a_table_gives_back_what_was_written(tmp_path, text):
    rows = [{"method": text, "share": "1.50"}, *ROWS]
    path = tables.write(tmp_path / "new" / "table.csv", rows)
    assert tables.read(path) == rows


def test_every_table_of_the_course_is_as_write_leaves_it(tmp_path):
    """So a run that finds the same figures leaves the file as it is."""
    found = [p for p in paths.tree_files() if p.parent.name == "results"]
    stored = [path for path in found if path.suffix == ".csv"]
    assert len(stored) > 10
    for path in stored:
        again = tables.write(tmp_path / path.name, tables.read(path))
        assert again.read_bytes() == path.read_bytes(), path


def test_rows_replace_those_with_their_key_and_no_others(tmp_path):
    path = tables.replace(tmp_path / "table.csv", ROWS, "method")
    new = [{"method": "a", "share": 2}, {"method": "a", "share": 3}]
    tables.replace(path, new, "method")
    found = [tuple(row.values()) for row in tables.read(path)]
    assert found == [("b", "0"), ("a", "2"), ("a", "3")]
    # A key that is a number is found in the file, where it is text.
    tables.replace(path, [{"method": "c", "share": 2}], "share", order=["2", "0"])
    assert [row["method"] for row in tables.read(path)] == ["c", "b", "a"]


def test_rows_of_other_columns_are_refused_and_the_table_stays(tmp_path):
    path = tables.write(tmp_path / "table.csv", ROWS)
    before = path.read_bytes()
    for row in ({"method": "c"}, {"share": "1", "method": "c"}):
        with pytest.raises(ValueError, match="instead of method, share"):
            tables.replace(path, [row], "method")
    assert path.read_bytes() == before


def test_facts_say_where_a_figure_comes_from():
    found = tables.facts(seed=1)
    assert list(found) == ["seed", "threads", "machine", "python", "torch"]
    assert "GB" in str(found["machine"])
    assert "+" not in str(found["torch"])
