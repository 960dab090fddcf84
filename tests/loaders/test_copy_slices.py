"""The compiled copy joins what NumPy joins, and refuses what lies outside, before it copies."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.loaders import copy_slices as slices
from longbatch.loaders.copy_slices import JoinSlices, join_slices_with_numpy

WAYS = [join_slices_with_numpy]
if slices.join_slices is not join_slices_with_numpy:
    WAYS.append(slices.join_slices)
TYPES = ["int64", "int32", "float32", "int8", "bool"]


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def joined(join: JoinSlices, columns: list[list[np.ndarray]], spans: list[tuple[int, int, int]]) -> list[np.ndarray]:
    """The slices (block, start, end) of columns that are given block by block, by one way, with 64 bytes around each."""
    owner, starts, ends = (ints(*side) for side in zip(*spans, strict=True)) if spans else (ints(), ints(), ints())
    counts = int((ends - starts).sum())
    sizes = [64 + counts * values.itemsize // 64 * 64 + 64 for values in columns[0]]
    places = np.cumsum([64, *sizes])[:-1]
    out = np.full(64 + sum(sizes), 7, dtype=np.uint8)
    join(out, places, [values for block in columns for values in block], owner, starts, ends)
    used = np.zeros(len(out), dtype=bool)
    found = []
    for place, values in zip(places, columns[0], strict=True):
        end = place + counts * values.itemsize
        used[place:end] = True
        found.append(out[place:end].view(values.dtype))
    assert (out[~used] == 7).all(), "bytes beside the columns are as they were"
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[np.ndarray]], list[tuple[int, int, int]]]:
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    lengths = draw(st.lists(st.sampled_from([0, 1, 3, 70, 900]), min_size=1, max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    columns = [[random.integers(0, 2, n).astype(kind) for kind in types] for n in lengths]
    spans = []
    for block in draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)):
        start = draw(st.integers(0, lengths[block]))
        spans.append((block, start, draw(st.integers(start, lengths[block]))))
    return columns, spans


@pytest.mark.parametrize("join", WAYS)
@given(case=cases())
def test_columns_are_the_slices_one_after_another(join, case):
    columns, spans = case
    for place, found in enumerate(joined(join, columns, spans)):
        parts = [columns[block][place][start:end] for block, start, end in spans]
        assert found.tolist() == np.concatenate([columns[0][place][:0], *parts]).tolist()


@pytest.mark.parametrize("join", WAYS)
@pytest.mark.parametrize("shift", [0, 1, 13, 63])
def test_slices_written_past_the_caches_are_whole_from_any_byte_on(join, shift):
    random = np.random.default_rng(shift)
    values = random.integers(0, 255, 8_000_000, dtype=np.uint8)
    spans = [
        (0, shift, 3_000_000 - 5),
        (0, 17, 1024 + 17 + shift),
        (0, 4_000_000, 4_000_001),
        (0, 5_000_000, 7_999_999),
    ]
    (found,) = joined(join, [[values]], spans)
    np.testing.assert_array_equal(found, np.concatenate([values[start:end] for _, start, end in spans]))


@pytest.mark.parametrize("join", WAYS)
@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 6), (6, 6), (2**62, 2**62 + 1)])
def test_a_slice_outside_its_column_is_refused_before_anything_is_copied(join, start, end):
    out = np.zeros(64, dtype=np.uint8)
    with pytest.raises(IndexError, match=r"slice 0 of column 0 is \[.*\), but the column has 5 values"):
        join(out, ints(0), [np.arange(5)], ints(0), ints(start), ints(end))
    assert not out.any()


@pytest.mark.parametrize("join", WAYS)
@pytest.mark.parametrize("place", [-8, 65])
def test_a_column_of_nothing_has_a_place_too(join, place):
    with pytest.raises(IndexError, match=f"column 0 at byte {place} does not fit the 64 bytes of the batch"):
        join(np.zeros(64, dtype=np.uint8), ints(place), [np.arange(5)], ints(), ints(), ints())


@pytest.mark.parametrize("join", WAYS)
@pytest.mark.parametrize("place", [-8, 32, 2**62])
def test_a_column_that_does_not_fit_is_refused(join, place):
    with pytest.raises(IndexError, match=f"column 0 at byte {place} does not fit the 64 bytes of the batch"):
        join(np.zeros(64, dtype=np.uint8), ints(place), [np.arange(5)], ints(0), ints(0), ints(5))


def can_compile() -> bool:
    return shutil.which("cc") is not None and (Path(sysconfig.get_path("include")) / "Python.h").exists()


def compiled() -> JoinSlices:
    if slices.join_slices is join_slices_with_numpy:
        pytest.skip("installed without a compiler")
    return slices.join_slices


def test_it_is_compiled_where_it_can_be():
    assert not can_compile() or slices.join_slices is not join_slices_with_numpy, (
        "see what pip says of loaders/_copy_slices.c"
    )


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_is_not_there_is_refused(block):
    with pytest.raises(IndexError, match=f"slice 0 is of block {block}, but there are 2 blocks"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0), [np.arange(5)] * 2, ints(block), ints(0), ints(5))


@pytest.mark.parametrize("join", WAYS)
@pytest.mark.parametrize("other", ["int32", "float64"])
def test_a_column_of_several_types_is_refused(join, other):
    sources = [np.arange(5), np.arange(5).astype(other)]
    with pytest.raises(TypeError):
        join(np.zeros(64, dtype=np.uint8), ints(0), sources, ints(0, 1), ints(0, 0), ints(1, 1))


def test_sources_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="one number per slice"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0, 8), [np.arange(5)] * 3, ints(0), ints(0), ints(1))
    with pytest.raises(ValueError, match="one number per slice"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0), [np.arange(5)], ints(0), ints(0, 1), ints(1))


def test_memory_that_is_read_only_or_scattered_is_refused():
    read_only = np.zeros(64, dtype=np.uint8)
    read_only.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match="read-only"):
        compiled()(read_only, ints(0), [np.arange(10)], ints(0), ints(0), ints(1))
    with pytest.raises(ValueError, match="contiguous"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0), [np.arange(10)[::2]], ints(0), ints(0), ints(1))
