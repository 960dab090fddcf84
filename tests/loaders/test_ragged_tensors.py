from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from longbatch.loaders.ragged_tensors import ragged_index


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=9))
def test_ragged_indices_are_the_slices_one_after_another(slices: list[tuple[int, int]]) -> None:
    starts = torch.tensor([start for start, _ in slices], dtype=torch.int64)
    lengths = torch.tensor([length for _, length in slices], dtype=torch.int64)
    expected = [start + i for start, length in slices for i in range(length)]
    assert ragged_index(starts, lengths).tolist() == expected
