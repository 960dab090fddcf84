"""The batch that models consume: requests with their histories, targets and labels.

Ragged data is flat values plus offsets. Nothing is padded, and a history is stored once for all targets of its request.
There are two layouts, and `RequestBatch.spans` returns the bounds of histories in both. *Per-request histories*: the
events of request r are `history[name][history_offsets[r] : history_offsets[r + 1]]`, oldest first. *Shared timelines*:
each timeline is stored once for all its requests in the batch, so that a model can encode a user once: request r has
the events `history[name][history_starts[r] : history_ends[r]]` of timeline `history_rows[r]` in `history_offsets`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .batch_conversions import Columns, keyed_jagged, nested, padded
from .buffer_pool import send_buffer
from .ragged_tensors import offsets_of, ragged_index, request_index

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Histories = Literal["per_request", "shared"]
"""The layout of histories: a copy for each request, or each timeline once."""

Layout = Sequence[tuple[str, str | None, torch.dtype, int, int]]
"""For each tensor of a batch in one piece of memory: field, name in the field, dtype, first byte, number of values."""

ROLES = ("history", "targets", "labels", "requests")


@dataclass(frozen=True, repr=False)
class RequestBatch:
    """R requests with T history events and G targets in total, in S sequences of events.

    S is R with per-request histories, and the number of timelines with shared ones. Times are int64 microseconds since
    1970 UTC. Features have the dtypes of the build spec.

    Args:
        history: Event columns by name, (T,) each: `item_id` int64, `event_time` int64, and the history features.
        history_offsets: Bounds of the sequences of events, (S + 1,) int64, from 0 to T.
        targets: Target columns by name, (G,) each: `item_id` int64, and the target features.
        target_offsets: Bounds of the requests' targets, (R + 1,) int64, from 0 to G.
        labels: Label columns by name, (G,) each.
        requests: Request features by name, (R,) each.
        request_id: Ids of the requests, (R,) int64; row numbers in the dataset where ids are strings.
        user_id: Ids of the users, (R,) int64.
        request_time: Times of the requests, (R,) int64.
        history_starts: First event of each request, (R,) int64, with shared timelines; else None.
        history_ends: End of the events of each request, (R,) int64, with shared timelines; else None.
        history_rows: Timeline of each request, (R,) int64, with shared timelines; else None.
        is_padding: True for the empty batch (R = G = T = 0) that a rank without data yields, so that all ranks take the
            same number of steps. It weighs nothing in a loss that is summed over targets.
        skipped: Requests that are missing because their block is damaged, with `on_error="skip"`.

    Example:
        >>> batch = RequestBatch(  # two requests with 3 and 0 events, and with 1 and 2 targets
        ...     history={"item_id": torch.tensor([1, 2, 3])}, history_offsets=torch.tensor([0, 3, 3]),
        ...     targets={"item_id": torch.tensor([10, 11, 12])}, target_offsets=torch.tensor([0, 1, 3]),
        ...     labels={"click": torch.tensor([1, 0, 1])}, requests={},
        ...     request_id=torch.tensor([7, 8]), user_id=torch.tensor([70, 80]), request_time=torch.tensor([9, 9]),
        ... )
        >>> batch[1:].targets["item_id"]
        tensor([11, 12])
    """

    history: Columns
    history_offsets: Tensor
    targets: Columns
    target_offsets: Tensor
    labels: Columns
    requests: Columns
    request_id: Tensor
    user_id: Tensor
    request_time: Tensor
    history_starts: Tensor | None = None
    history_ends: Tensor | None = None
    history_rows: Tensor | None = None
    is_padding: bool = False
    skipped: int = 0

    def __repr__(self) -> str:
        """Summarize sizes, device and columns."""
        sizes = f"{self.num_requests:,} requests, {self.num_targets:,} targets, {self.num_events:,} events"
        layout = "shared timelines" if self.has_shared_timelines else "per-request histories"
        columns = ", ".join(f"{role}: {' '.join(getattr(self, role)) or 'none'}" for role in ROLES)
        notes = (", padding" if self.is_padding else "") + (f", {self.skipped:,} skipped" if self.skipped else "")
        return f"RequestBatch({sizes}, {layout}, {self.request_id.device}, {columns}{notes})"

    @property
    def has_shared_timelines(self) -> bool:
        """Whether requests point into shared timelines, instead of having a copy of their history each."""
        return self.history_rows is not None

    @property
    def num_requests(self) -> int:
        """R, the number of requests."""
        return self.request_id.shape[0]

    @property
    def num_targets(self) -> int:
        """G, the number of targets of all requests."""
        return self.targets["item_id"].shape[0]

    @property
    def num_events(self) -> int:
        """T, the number of events that the batch stores."""
        return self.history["item_id"].shape[0]

    @property
    def spans(self) -> tuple[Tensor, Tensor]:
        """Where the history of each request begins and ends among the events, (R,) int64 each, in both layouts."""
        if self.history_starts is None or self.history_ends is None:
            return self.history_offsets[:-1], self.history_offsets[1:]
        return self.history_starts, self.history_ends

    def tensors(self) -> Iterator[tuple[str, str | None, Tensor]]:
        """Iterate over all tensors.

        Yields:
            The field, the name within the field (None where the field is a single tensor), and the tensor.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                yield from ((field.name, name, tensor) for name, tensor in value.items())
            elif isinstance(value, Tensor):
                yield field.name, None, value

    def map(self, function: Callable[[Tensor], Tensor]) -> RequestBatch:
        """Apply a function to each tensor.

        Args:
            function: Returns a tensor of the same shape.

        Returns:
            A batch of the results.
        """
        results = [(field, name, function(tensor)) for field, name, tensor in self.tensors()]
        return _from_tensors(results, self.is_padding, self.skipped)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RequestBatch:
        """Copy the batch to a device.

        Args:
            device: The device.
            non_blocking: Whether to return before the copy is complete; only pinned batches are copied asynchronously.

        Returns:
            The batch on the device.
        """
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RequestBatch:
        """Copy the batch to page-locked memory; DataLoader calls this with `pin_memory=True`."""
        return self.map(lambda tensor: tensor.pin_memory())

    def __getitem__(self, selection: slice | Sequence[int] | Tensor) -> RequestBatch:
        """Select requests, in the order given.

        Args:
            selection: A slice, a list or tensor of indices, or a boolean mask (R,).

        Returns:
            The batch of these requests, with per-request histories.

        Raises:
            IndexError: An index is outside the batch, or the mask has another length.
            TypeError: The selection is a single integer.
        """
        # target_offsets [0 1 3 6], selected requests [2 0]:
        # target_starts [3 0], target_counts [3 1],
        # targets [3 4 5 0], the index into every target and label column.
        index = request_index(selection, self.num_requests, self.request_id.device)
        target_starts, target_counts = self.target_offsets[:-1][index], self.target_offsets.diff()[index]
        targets = ragged_index(target_starts, target_counts)
        starts, ends = (bounds[index] for bounds in self.spans)
        return replace(
            self._with_histories(starts, ends),
            targets={name: values[targets] for name, values in self.targets.items()},
            target_offsets=offsets_of(target_counts),
            labels={name: values[targets] for name, values in self.labels.items()},
            requests={name: values[index] for name, values in self.requests.items()},
            request_id=self.request_id[index],
            user_id=self.user_id[index],
            request_time=self.request_time[index],
        )

    def newest(self, length: int) -> RequestBatch:
        """Truncate each history to its newest events, as if the dataset were read with `history_length=length`.

        Args:
            length: Events to keep of each history.

        Returns:
            The truncated batch in the same layout; shared timelines are not copied, only their starts move.

        Raises:
            ValueError: The length is negative.
        """
        if length < 0:
            raise ValueError(f"history length {length} is negative; give 0 or more")
        starts, ends = self.spans
        newest_starts = torch.maximum(starts, ends - length)
        if self.has_shared_timelines:
            return replace(self, history_starts=newest_starts)
        return self._with_histories(newest_starts, ends)

    def to_per_request(self) -> RequestBatch:
        """Give each request its own copy of its history; the batch itself if it has per-request histories already."""
        return self._with_histories(*self.spans) if self.has_shared_timelines else self

    def _with_histories(self, starts: Tensor, ends: Tensor) -> RequestBatch:
        """The batch with these events [start, end) as per-request histories."""
        index = ragged_index(starts, ends - starts)
        return replace(
            self,
            history={name: values[index] for name, values in self.history.items()},
            history_offsets=offsets_of(ends - starts),
            history_starts=None,
            history_ends=None,
            history_rows=None,
        )

    def to_padded(self, length: int | None = None) -> tuple[Columns, Tensor]:
        """Pad histories with zeros in front, so that the newest event is last.

        Args:
            length: Width of the result, by default that of the longest history; longer ones keep their newest events.

        Returns:
            Event columns by name, (R, length) each, and a mask of which entries are events, (R, length) bool.

        Example:
            Histories [1 2 3] and [] with length=2 become [[2 3] [0 0]],
            with the mask [[True True] [False False]].
        """
        return padded(self.history, *self.spans, length)

    def to_nested(self) -> Columns:
        """Return histories as jagged nested tensors by name, (R, ragged) each; per-request histories are not copied."""
        batch = self.to_per_request()
        return nested(batch.history, batch.history_offsets)

    def to_keyed_jagged(self, columns: Sequence[str] | None = None) -> KeyedJaggedTensor:
        """Return history columns of integers as a TorchRec KeyedJaggedTensor.

        Args:
            columns: Names of history columns, by default all of integers except `event_time`.

        Returns:
            A tensor with the columns as keys, int64 values, and lengths (R,) for each key.

        Raises:
            KeyError: A column is not in the history.
            ValueError: A column contains floats.
            MachineError: TorchRec is not installed.
        """
        batch = self.to_per_request()
        return keyed_jagged(batch.history, batch.history_offsets, columns)

    def expand(self) -> RequestBatch:
        """Expand to the sample-level batch: one request per target, each with its own copy of the history.

        This is what a loader without request-level batching would yield, the reference for savings and tests.

        Returns:
            The batch, in which R is the previous G, and T is the sum over targets of their history lengths.
        """
        counts = self.target_offsets.diff()
        request = torch.repeat_interleave(torch.arange(self.num_requests, device=counts.device), counts)
        starts, ends = (bounds[request] for bounds in self.spans)
        return replace(
            self._with_histories(starts, ends),
            target_offsets=torch.arange(self.num_targets + 1, device=counts.device),
            requests={name: values[request] for name, values in self.requests.items()},
            request_id=self.request_id[request],
            user_id=self.user_id[request],
            request_time=self.request_time[request],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a batch in one piece of shared memory as that piece and a layout: one handle, not one per tensor."""
        parts = list(self.tensors())
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for _, _, tensor in parts}
        (storage, *others) = storages.values()  # one storage, unless tensors were computed after collation
        buffer = None if others else send_buffer(storage.data_ptr())
        if others or (buffer is None and not storage.is_shared()):
            return _from_tensors, (parts, self.is_padding, self.skipped)  # torch pickles each tensor on its own
        memory = torch.empty(0, dtype=torch.uint8).set_(storage) if buffer is None else buffer
        layout = [(f, n, t.dtype, t.storage_offset() * t.element_size(), t.shape[0]) for f, n, t in parts]
        return batch_in_memory, (memory, layout, self.is_padding, self.skipped)


def _from_tensors(parts: Sequence[tuple[str, str | None, Tensor]], is_padding: bool, skipped: int) -> RequestBatch:
    values: dict[str, Any] = {role: {} for role in ROLES}
    for field, name, tensor in parts:
        if name is None:
            values[field] = tensor
        else:
            values[field][name] = tensor
    return RequestBatch(**values, is_padding=is_padding, skipped=skipped)


def batch_in_memory(memory: Tensor, layout: Layout, is_padding: bool, skipped: int) -> RequestBatch:
    """Create a batch whose tensors are views of one piece of memory.

    Args:
        memory: The memory, (bytes,) uint8.
        layout: Where each tensor is in the memory; first bytes are multiples of the dtype's width.
        is_padding: See `RequestBatch`.
        skipped: See `RequestBatch`.

    Returns:
        The batch.
    """
    typed: dict[torch.dtype, Tensor] = {}  # the whole memory once per dtype: slicing is cheaper than reinterpreting
    parts = []
    for field, name, dtype, first_byte, size in layout:
        if dtype not in typed:
            typed[dtype] = memory[: len(memory) // dtype.itemsize * dtype.itemsize].view(dtype)
        first = first_byte // dtype.itemsize
        parts.append((field, name, typed[dtype][first : first + size]))
    return _from_tensors(parts, is_padding, skipped)
