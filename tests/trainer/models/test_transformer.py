from __future__ import annotations

import torch

from longbatch.trainer.models.transformer import pad_ragged, rows_and_positions, valid_positions


def test_ragged_values_are_padded_at_the_end_of_each_row() -> None:
    offsets, values = torch.tensor([0, 3, 4, 4]), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert pad_ragged(values, offsets)[..., 0].tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]]
    assert valid_positions(offsets, 3).tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert [index.tolist() for index in rows_and_positions(offsets)] == [[0, 0, 0, 1], [0, 1, 2, 0]]
