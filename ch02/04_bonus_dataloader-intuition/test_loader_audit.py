"""What loaders read: counted on numbers, for each setting and its neighbours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from dataloader import GPTDatasetV1, create_dataloader_v1
from loader_audit import (
    NumberTokenizer,
    SignedWindows,
    WindowStream,
    count_reads,
    number_text,
)

some = settings(max_examples=60, deadline=None)
sizes = st.integers(1, 6)


def loader_of(num_tokens, **options):
    options = {"shuffle": False, "tokenizer": NumberTokenizer()} | options
    return create_dataloader_v1(number_text(num_tokens), **options)


def windows_of(num_tokens, max_length=4, stride=4, kind=GPTDatasetV1):
    return kind(number_text(num_tokens), NumberTokenizer(), max_length, stride)


def test_ids_are_places():
    assert NumberTokenizer().encode(number_text(12)) == list(range(12))
    assert NumberTokenizer().encode("7\n 40  2") == [7, 40, 2]


@some
@given(sizes, sizes, st.integers(0, 30), st.booleans())
def test_stride_at_the_window_reads_each_place_once(T, batch_size, more, shuffle):
    """Known mistake: a stride larger than the window skips tokens without a word."""
    num_tokens = T + 1 + more
    loader = loader_of(
        num_tokens,
        batch_size=batch_size,
        max_length=T,
        stride=T,
        shuffle=shuffle,
        drop_last=False,
    )
    as_input, as_target = count_reads(loader, num_tokens)
    used = (num_tokens - 1) // T * T
    assert as_input.tolist() == [1] * used + [0] * (num_tokens - used)
    assert as_target.tolist() == [0] + [1] * used + [0] * (num_tokens - used - 1)


@some
@given(sizes, sizes, sizes, st.integers(0, 30))
def test_counts_are_those_of_a_loop(T, stride, batch_size, more):
    num_tokens = T + 1 + more
    stride = min(stride, T)
    loader = loader_of(
        num_tokens, batch_size=batch_size, max_length=T, stride=stride, drop_last=False
    )
    expected = torch.zeros(2, num_tokens, dtype=torch.long)
    for start in range(0, num_tokens - T, stride):
        expected[0, start : start + T] += 1
        expected[1, start + 1 : start + T + 1] += 1
    assert torch.equal(torch.stack(count_reads(loader, num_tokens)), expected)


@pytest.mark.filterwarnings("ignore:stride=")
def test_a_larger_stride_skips():
    as_input, _ = count_reads(loader_of(25, batch_size=1, max_length=4, stride=6), 25)
    assert (as_input == 0).sum() == 9
    assert as_input.max() == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 12])
def test_the_loader_keeps_to_its_arguments(batch_size):
    """Known mistake: an argument `batch_size` that is never passed on."""
    loader = loader_of(49, batch_size=batch_size, max_length=4, stride=4)
    shapes = {tuple(inputs.shape) for inputs, _ in loader}
    assert shapes == {(batch_size, 4)}
    assert len(list(loader)) == 12 // batch_size


def test_counting_takes_a_list_of_batches():
    batch = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[1, 2], [2, 3]])
    as_input, as_target = count_reads([batch, batch], 5)
    assert as_input.tolist() == [2, 4, 2, 0, 0]
    assert as_target.tolist() == [0, 2, 4, 2, 0]


@pytest.fixture(scope="module")
def with_workers():
    """{workers: batches} of signed windows; processes are slow to start."""
    windows = windows_of(49, kind=SignedWindows)
    loaders = {n: DataLoader(windows, batch_size=3, num_workers=n) for n in (0, 2)}
    return {n: list(loader) for n, loader in loaders.items()}


def test_workers_change_neither_batches_nor_their_order(with_workers):
    alone, shared = ([b[:2] for b in with_workers[n]] for n in (0, 2))
    assert len(alone) == 4
    for ours, theirs in zip(alone, shared, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_workers_take_batches_in_turn(with_workers):
    assert [signs.tolist() for *_, signs in with_workers[0]] == [[-1] * 3] * 4
    expected = [[0] * 3, [1] * 3, [0] * 3, [1] * 3]
    assert [signs.tolist() for *_, signs in with_workers[2]] == expected


@pytest.mark.parametrize(
    ("share", "drop_last", "once", "twice"),
    [(False, False, 0, 48), (True, False, 48, 0), (True, True, 32, 0)],
)
def test_a_stream_is_read_by_every_worker(share, drop_last, once, twice):
    """Known mistakes: each worker reads all; each worker drops a last batch of its own,
    though 12 windows are whole batches of 4.
    """
    loader = DataLoader(
        WindowStream(windows_of(49), share=share),
        batch_size=4,
        num_workers=2,
        drop_last=drop_last,
    )
    as_input, _ = count_reads(loader, 49)
    assert ((as_input == 1).sum(), (as_input == 2).sum()) == (once, twice)


def test_a_stream_without_workers_is_the_windows():
    windows = windows_of(30)
    for share in (False, True):
        streamed = list(WindowStream(windows, share=share))
        assert len(streamed) == len(windows) == 7
        assert torch.equal(streamed[3][0], windows[3][0])


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("num_tokens", [33, 40, 49])
def test_ranks_lose_nothing_but_the_remainder(ranks, num_tokens):
    """Known mistake: a shard's bound times the number of ranks loses the tail."""
    windows = windows_of(num_tokens)
    reads = {}
    for drop_last in (False, True):
        batches = []
        for rank in range(ranks):
            sampler = DistributedSampler(
                windows, ranks, rank, shuffle=False, drop_last=drop_last
            )
            batches += list(DataLoader(windows, batch_size=2, sampler=sampler))
        reads[drop_last], _ = count_reads(batches, num_tokens)
    rest = len(windows) % ranks
    assert reads[True].sum() == 4 * (len(windows) - rest)
    assert reads[True].max() == 1
    used = 4 * len(windows)
    assert reads[False][:used].min() == 1
    assert reads[False].sum() == used + 4 * (-len(windows) % ranks)
