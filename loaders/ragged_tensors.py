"""Offsets and indices of ragged data in torch; `longbatch.schemas.ragged` has the same for NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def offsets_of(lengths: Tensor) -> Tensor:
    """Return the offsets (N + 1,) int64 of ragged rows with these lengths (N,): lengths [2 0 3] give [0 2 2 5]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def ragged_index(starts: Tensor, lengths: Tensor) -> Tensor:
    """Return the indices of slices, one slice after another.

    Args:
        starts: First index of each slice, (N,) int64.
        lengths: Length of each slice, (N,) int64.

    Returns:
        Indices, (sum of lengths,) int64.

    Example:
        >>> ragged_index(torch.tensor([5, 0, 9]), torch.tensor([2, 0, 3]))
        tensor([ 5,  6,  9, 10, 11])
    """
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths)  # source index minus output index, per slice
    return torch.arange(shift.shape[0], device=shift.device) + shift


def request_index(selection: slice | Sequence[int] | Tensor, size: int, device: torch.device) -> Tensor:
    """Return the indices of selected requests.

    Args:
        selection: A slice, a list or tensor of indices, or a boolean mask (size,).
        size: Number of requests to select from.
        device: Device of the result.

    Returns:
        Indices from 0 to size - 1, (selected requests,) int64.

    Raises:
        IndexError: An index is outside the batch, or the mask has another length.
        TypeError: The selection is a single integer.
    """
    every = torch.arange(size, device=device)  # indexing it turns slices, masks and negative indices into indices
    if isinstance(selection, slice):
        return every[selection]
    if isinstance(selection, int):
        raise TypeError(
            f"request {selection} alone is not a batch; give a slice, [{selection}:{selection + 1}], "
            "or a list of indices"
        )
    index = torch.as_tensor(selection, device=device)
    if index.dtype == torch.bool and index.shape != every.shape:
        raise IndexError(f"a mask of shape {tuple(index.shape)} for {size} requests; give one of shape ({size},)")
    return every[index if index.numel() else index.long()]  # an empty list becomes a tensor of floats
