"""Histories in the layouts of other libraries: padded, nested tensors, TorchRec's KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from longbatch.schemas.errors import MachineError

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Columns = dict[str, Tensor]
"""Columns by name."""


def padded(columns: Columns, starts: Tensor, ends: Tensor, length: int | None) -> tuple[Columns, Tensor]:
    """Pad slices of columns with zeros in front, so that their last value is last.

    Args:
        columns: Columns by name, (T,) each.
        starts: First value of each slice, (R,) int64.
        ends: End of each slice, (R,) int64.
        length: Width of the result, by default that of the longest slice; longer ones keep their last values.

    Returns:
        Columns by name, (R, length) each, and a mask of which entries are values, (R, length) bool.

    Example:
        >>> padded({"item_id": torch.tensor([1, 2, 3])}, torch.tensor([0, 3]), torch.tensor([3, 3]), 2)[0]
        {'item_id': tensor([[2, 3],
                [0, 0]])}
    """
    longest = int((ends - starts).max()) if len(starts) else 0
    width = longest if length is None else length
    positions = ends[:, None] - width + torch.arange(width, device=ends.device)  # right-aligned: newest event last
    mask = positions >= starts[:, None]
    index = torch.where(mask, positions, 0)  # masked positions may be negative, or events of another request
    if not any(len(values) for values in columns.values()):  # index 0 does not exist either
        return {name: values.new_zeros(index.shape) for name, values in columns.items()}, mask
    return {name: torch.where(mask, values[index], 0).to(values.dtype) for name, values in columns.items()}, mask


def nested(columns: Columns, offsets: Tensor) -> Columns:
    """Return columns (T,) with these offsets (R + 1,) as jagged nested tensors, (R, ragged) each, without a copy."""
    return {name: torch.nested.nested_tensor_from_jagged(values, offsets) for name, values in columns.items()}


def keyed_jagged(columns: Columns, offsets: Tensor, names: Sequence[str] | None) -> KeyedJaggedTensor:
    """Return columns of integers as a TorchRec KeyedJaggedTensor.

    Args:
        columns: History columns by name, (T,) each.
        offsets: Bounds of the histories, (R + 1,) int64.
        names: Names of columns, by default all of integers except `event_time`.

    Returns:
        A tensor with the columns as keys, int64 values, and lengths (R,) for each key.

    Raises:
        KeyError: A column is not in the history.
        ValueError: A column contains floats.
        MachineError: TorchRec is not installed.
    """
    if names is None:
        names = [name for name, values in columns.items() if not values.is_floating_point() and name != "event_time"]
    if missing := [name for name in names if name not in columns]:
        raise KeyError(f"columns {missing} are not in the history, which has {list(columns)}")
    if floats := [name for name in names if columns[name].is_floating_point()]:
        raise ValueError(f"columns {floats} contain floats, but a KeyedJaggedTensor needs integer ids; leave them out")
    return _keyed_jagged_class()(
        keys=list(names),
        values=torch.cat([columns[name].long() for name in names]),
        lengths=offsets.diff().repeat(len(names)),
    )


def _keyed_jagged_class() -> type[KeyedJaggedTensor]:
    try:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
    except ImportError:
        raise MachineError("to_keyed_jagged needs TorchRec; install the extra longbatch[torchrec]") from None
    return cast("type[KeyedJaggedTensor]", KeyedJaggedTensor)
