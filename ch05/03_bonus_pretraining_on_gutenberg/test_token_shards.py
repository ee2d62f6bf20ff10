"""Each token is a target once an epoch, in any number of processes."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import process_memory
from token_shards import (
    IGNORED,
    EpochOrder,
    ShardWriter,
    TokenWindows,
    dtype_for,
    shard_name,
    shuffled_place,
)

sizes = st.integers(1, 9)


def written(folder, ids, per_shard):
    writer = ShardWriter(folder, "uint16", per_shard)
    draw = random.Random(len(ids))
    rest = list(ids)
    while rest:
        count = draw.randint(1, 7)
        writer.add(rest[:count])
        rest = rest[count:]
    return [shard["file"] for shard in writer.close()]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), sizes, sizes, sizes, st.integers(1, 3))
def test_every_token_is_a_target_exactly_once_an_epoch(
    tmp_path_factory, count, length, per_shard, batch_size, processes
):
    folder = tmp_path_factory.mktemp("split")
    files = written(folder, range(count), per_shard)
    assert len(files) == -(-count // per_shard)
    windows = TokenWindows(folder, files, "uint16", length)
    order = EpochOrder(len(windows), batch_size, seed=5)
    seen = []
    for step in range(len(order)):
        places = list(order.places(step))
        for rank in range(processes):
            for place in places[rank::processes]:
                inputs, targets = windows[place]
                real = targets != IGNORED
                assert np.array_equal(inputs[real] + 1, targets[real])
                seen += targets[real].tolist()
    assert sorted(seen) == list(range(1, count))
    assert windows.num_targets == count - 1


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 600), st.integers(0, 10**9))
def test_a_shuffle_without_a_list_is_a_shuffle(n, key):
    assert sorted(shuffled_place(i, n, key) for i in range(n)) == list(range(n))


def test_shuffles_are_different_and_without_a_trend():
    rows = [[shuffled_place(i, 1000, key) for i in range(1000)] for key in range(40)]
    assert len({tuple(row) for row in rows}) == 40
    correlations = [np.corrcoef(row, range(1000))[0, 1] for row in rows]
    assert max(map(abs, correlations)) < 4 / 1000**0.5
    # What stands first is spread over all that there is.
    assert np.std([row[0] for row in rows]) == pytest.approx(1000 / 12**0.5, rel=0.3)


def test_epochs_differ_and_a_step_depends_on_its_number_alone():
    order = EpochOrder(num_windows=10, batch_size=4, seed=1)
    assert [len(list(order.places(step))) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    first, second = (
        [place for step in range(3) for place in order.places(epoch * 3 + step)]
        for epoch in range(2)
    )
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    other = EpochOrder(num_windows=10, batch_size=4, seed=2)
    assert list(order.places(0)) != list(other.places(0))


@pytest.mark.parametrize("kept", [0, 3, 4, 8, 11])
@pytest.mark.parametrize("lost", [0, 1, 6])
def test_a_writer_goes_on_after_what_was_kept(tmp_path, kept, lost):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    written(whole, range(20), per_shard=4)
    written(cut, [*range(kept), *[999] * lost], per_shard=4)  # lost: without a note
    writer = ShardWriter(cut, "uint16", 4, written=kept)
    writer.add(range(kept, 20))
    writer.close()
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert files == {path.name: path.read_bytes() for path in cut.iterdir()}


def test_an_id_that_does_not_fit_is_refused(tmp_path):
    assert [dtype_for(n) for n in (4096, 65_536, 65_537)] == [
        "uint16",
        "uint16",
        "uint32",
    ]
    with pytest.raises(OverflowError):
        ShardWriter(tmp_path, "uint16", 10).add([65_536])


MIB = 1 << 20


def read_all(folder, keep_open):
    """Read every window of a large shard; with the planted mistake, by one open map."""
    length = 1 << 14
    windows = TokenWindows(folder, [shard_name(0)], "uint16", length)
    one_map = np.memmap(folder / shard_name(0), "<u2", mode="r")
    if keep_open:
        windows.read = lambda start, stop: one_map[start:stop].astype(np.int64)
    for step in range(len(windows)):
        windows[shuffled_place(step, len(windows), 1)]
    yield "read"


@pytest.mark.skipif(not process_memory.memory_now().file, reason="only Linux tells")
def test_reading_a_shard_does_not_fill_the_memory(tmp_path):
    with (tmp_path / shard_name(0)).open("wb") as file:
        for _ in range(48):
            file.write(bytes(MIB))
    right, wrong = (
        process_memory.measure(read_all, tmp_path, mistake) for mistake in (False, True)
    )
    assert right.held["read"].total - right.base.total < 8 * MIB  # measured: 1
    assert wrong.held["read"].total - wrong.base.total > 40 * MIB
