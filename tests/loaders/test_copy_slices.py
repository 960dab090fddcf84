"""The compiled copy joins what NumPy joins, and checks all bounds before it copies."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.loaders import copy_slices
from longbatch.loaders.blocks import Array
from longbatch.loaders.copy_slices import JoinSlices, join_slices_with_numpy
from longbatch.schemas.types import Int64Array

Columns = list[list[Array]]  # of each block
Slices = list[tuple[int, int, int]]  # block, start, end
Case = tuple[Columns, Slices]

IMPLEMENTATIONS: list[JoinSlices] = [join_slices_with_numpy]
if copy_slices.join_slices is not join_slices_with_numpy:
    IMPLEMENTATIONS.append(copy_slices.join_slices)
TYPES = ["int64", "int32", "float32", "int8", "bool"]


def ints(*values: int) -> Int64Array:
    return np.array(values, dtype=np.int64)


def joined(join: JoinSlices, columns: Columns, slices: Slices) -> list[Array]:
    """The joined columns, written with 64 unused bytes around each, which must not change."""
    blocks, starts, ends = (ints(*side) for side in zip(*slices, strict=True)) if slices else (ints(), ints(), ints())
    counts = int((ends - starts).sum())
    sizes = [64 + counts * values.itemsize // 64 * 64 + 64 for values in columns[0]]
    offsets = np.cumsum([64, *sizes])[:-1]
    out = np.full(64 + sum(sizes), 7, dtype=np.uint8)
    join(out, offsets, [values for block in columns for values in block], blocks, starts, ends)
    used = np.zeros(len(out), dtype=bool)
    results = []
    for offset, values in zip(offsets.tolist(), columns[0], strict=True):
        end = offset + counts * values.itemsize
        used[offset:end] = True
        results.append(out[offset:end].view(values.dtype))
    assert (out[~used] == 7).all(), "bytes beside the columns changed"
    return results


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtypes = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    lengths = draw(st.lists(st.sampled_from([0, 1, 3, 70, 900]), min_size=1, max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    columns = [[random.integers(0, 2, n).astype(dtype) for dtype in dtypes] for n in lengths]
    slices = []
    for block in draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)):
        start = draw(st.integers(0, lengths[block]))
        slices.append((block, start, draw(st.integers(start, lengths[block]))))
    return columns, slices


@pytest.mark.parametrize("join", IMPLEMENTATIONS)
@given(case=cases())
def test_columns_are_the_slices_one_after_another(join: JoinSlices, case: Case) -> None:
    columns, slices = case
    for column, values in enumerate(joined(join, columns, slices)):
        parts = [columns[block][column][start:end] for block, start, end in slices]
        assert values.tolist() == np.concatenate([columns[0][column][:0], *parts]).tolist()


@pytest.mark.parametrize("join", IMPLEMENTATIONS)
@pytest.mark.parametrize("shift", [0, 1, 13, 63])
def test_slices_written_past_the_caches_are_complete_at_any_alignment(join: JoinSlices, shift: int) -> None:
    random = np.random.default_rng(shift)
    values = random.integers(0, 255, 8_000_000, dtype=np.uint8)
    slices = [
        (0, shift, 3_000_000 - 5),
        (0, 17, 1024 + 17 + shift),
        (0, 4_000_000, 4_000_001),
        (0, 5_000_000, 7_999_999),
    ]
    (result,) = joined(join, [[values]], slices)
    np.testing.assert_array_equal(result, np.concatenate([values[start:end] for _, start, end in slices]))


@pytest.mark.parametrize("join", IMPLEMENTATIONS)
@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 6), (6, 6), (2**62, 2**62 + 1)])
def test_a_slice_outside_its_column_is_an_error_before_anything_is_copied(
    join: JoinSlices, start: int, end: int
) -> None:
    out = np.zeros(64, dtype=np.uint8)
    with pytest.raises(IndexError, match=r"slice 0 of column 0 is \[.*\), but the column has 5 values"):
        join(out, ints(0), [np.arange(5)], ints(0), ints(start), ints(end))
    assert not out.any()


@pytest.mark.parametrize("join", IMPLEMENTATIONS)
@pytest.mark.parametrize("offset", [-8, 65])
def test_an_empty_column_has_to_fit_too(join: JoinSlices, offset: int) -> None:
    with pytest.raises(IndexError, match=f"column 0 at byte {offset} does not fit the 64 bytes of the batch"):
        join(np.zeros(64, dtype=np.uint8), ints(offset), [np.arange(5)], ints(), ints(), ints())


@pytest.mark.parametrize("join", IMPLEMENTATIONS)
@pytest.mark.parametrize("offset", [-8, 32, 2**62])
def test_a_column_that_does_not_fit_is_an_error(join: JoinSlices, offset: int) -> None:
    with pytest.raises(IndexError, match=f"column 0 at byte {offset} does not fit the 64 bytes of the batch"):
        join(np.zeros(64, dtype=np.uint8), ints(offset), [np.arange(5)], ints(0), ints(0), ints(5))


def can_compile() -> bool:
    return shutil.which("cc") is not None and (Path(sysconfig.get_path("include")) / "Python.h").exists()


def compiled() -> JoinSlices:
    if copy_slices.join_slices is join_slices_with_numpy:
        pytest.skip("installed without a compiler")
    return copy_slices.join_slices


def test_the_copy_is_compiled_if_there_is_a_compiler() -> None:
    assert not can_compile() or copy_slices.join_slices is not join_slices_with_numpy, (
        "the extension was not built; see the output of pip for loaders/_copy_slices.c"
    )


@pytest.mark.parametrize("block", [-1, 2])
def test_an_unknown_block_is_an_error(block: int) -> None:
    with pytest.raises(IndexError, match=f"slice 0 is of block {block}, but there are 2 blocks"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0), [np.arange(5)] * 2, ints(block), ints(0), ints(5))


@pytest.mark.parametrize("join", IMPLEMENTATIONS)
@pytest.mark.parametrize("other", ["int32", "float64"])
def test_a_column_of_several_dtypes_is_an_error(join: JoinSlices, other: str) -> None:
    sources = [np.arange(5), np.arange(5).astype(other)]
    with pytest.raises(TypeError):
        join(np.zeros(64, dtype=np.uint8), ints(0), sources, ints(0, 1), ints(0, 0), ints(1, 1))


def test_an_incomplete_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="one number per slice"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0, 8), [np.arange(5)] * 3, ints(0), ints(0), ints(1))
    with pytest.raises(ValueError, match="one number per slice"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0), [np.arange(5)], ints(0), ints(0, 1), ints(1))


def test_read_only_and_strided_memory_is_an_error() -> None:
    read_only = np.zeros(64, dtype=np.uint8)
    read_only.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match="read-only"):
        compiled()(read_only, ints(0), [np.arange(10)], ints(0), ints(0), ints(1))
    with pytest.raises(ValueError, match="contiguous"):
        compiled()(np.zeros(64, dtype=np.uint8), ints(0), [np.arange(10)[::2]], ints(0), ints(0), ints(1))
