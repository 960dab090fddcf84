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
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from longbatch.schemas.errors import MachineError

from .buffer_pool import send_buffer

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Columns = dict[str, Tensor]
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
        index = _request_index(selection, self.num_requests, self.request_id.device)
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
        starts, ends = self.spans
        longest = int((ends - starts).max()) if self.num_requests else 0
        width = longest if length is None else length
        positions = ends[:, None] - width + torch.arange(width, device=ends.device)  # right-aligned: newest event last
        mask = positions >= starts[:, None]
        index = torch.where(mask, positions, 0)  # masked positions may be negative, or events of another request
        if not self.num_events:  # index 0 does not exist either
            return {name: values.new_zeros(index.shape) for name, values in self.history.items()}, mask
        return {
            name: torch.where(mask, values[index], 0).to(values.dtype) for name, values in self.history.items()
        }, mask

    def to_nested(self) -> Columns:
        """Return histories as jagged nested tensors by name, (R, ragged) each; per-request histories are not copied."""
        batch = self.to_per_request()
        return {
            name: torch.nested.nested_tensor_from_jagged(values, batch.history_offsets)
            for name, values in batch.history.items()
        }

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
        names = [n for n, v in batch.history.items() if not v.is_floating_point() and n != "event_time"]
        names = names if columns is None else list(columns)
        if missing := [name for name in names if name not in batch.history]:
            raise KeyError(f"columns {missing} are not in the history, which has {list(batch.history)}")
        if floats := [name for name in names if batch.history[name].is_floating_point()]:
            raise ValueError(
                f"columns {floats} contain floats, but a KeyedJaggedTensor needs integer ids; leave them out"
            )
        return _keyed_jagged_class()(
            keys=names,
            values=torch.cat([batch.history[name].long() for name in names]),
            lengths=batch.history_offsets.diff().repeat(len(names)),
        )

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


def _request_index(selection: slice | Sequence[int] | Tensor, size: int, device: torch.device) -> Tensor:
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


def _keyed_jagged_class() -> type[KeyedJaggedTensor]:
    try:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
    except ImportError:
        raise MachineError("to_keyed_jagged needs TorchRec; install the extra longbatch[torchrec]") from None
    return cast("type[KeyedJaggedTensor]", KeyedJaggedTensor)


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
