"""The batch that models consume: requests with their histories, targets and labels, in one of two forms.

Ragged data is flat values plus offsets, nothing is padded, and a history is held once however many targets its request has.
In the *windows* form the events of request r are `history[name][history_offsets[r] : history_offsets[r + 1]]`, oldest first. In the
*shared* form each timeline is there once for all its requests in the batch: `history_offsets` bounds the timelines, and request r has
`history[name][history_starts[r] : history_ends[r]]` within timeline `history_rows[r]`, so a model can encode a user once. `spans` gives
the places in either form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from longbatch.schemas.errors import MachineError

from . import buffer_pool as slots

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Columns = dict[str, Tensor]
Histories = Literal["per_request", "shared"]
# of each tensor of a batch in one piece of memory: its field, the name in it, type, first byte and number of values
Layout = Sequence[tuple[str, str | None, torch.dtype, int, int]]
ROLES = ("history", "targets", "labels", "requests")


@dataclass(frozen=True)
class RequestBatch:
    """R requests with T history events and G targets in all; S is R in the windows form, and the number of timelines in the shared.

    history: name -> (T,): `item_id` int64, `event_time` int64 microseconds since 1970 UTC, features in the types of the spec.
    history_offsets: (S + 1,) int64, from 0 to T.
    targets: name -> (G,): `item_id` int64, target features.  target_offsets: (R + 1,) int64, 0 to G.
    labels: name -> (G,).  requests: name -> (R,), the request features.
    request_id, user_id: (R,) int64.  request_time: (R,) int64 microseconds since 1970 UTC.
    history_starts, history_ends, history_rows: (R,) int64 in the shared form, None in the windows form.
    is_padding: true for the empty batch (R = G = T = 0) that a rank without data yields so that all
    ranks take the same number of steps; it weighs nothing in a loss summed over targets.
    skipped: requests that are not there because their block is damaged, under `on_error="skip"`.
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
        """T, the number of events that the batch holds."""
        return self.history["item_id"].shape[0]

    @property
    def spans(self) -> tuple[Tensor, Tensor]:
        """Where the history of each request begins and ends among the events, (R,) each, in either form."""
        if self.history_starts is None or self.history_ends is None:
            return self.history_offsets[:-1], self.history_offsets[1:]
        return self.history_starts, self.history_ends

    def tensors(self) -> Iterator[tuple[str, str | None, Tensor]]:
        """Every tensor, with its field and its name in it; the name is None where the field is the tensor."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                yield from ((field.name, name, tensor) for name, tensor in value.items())
            elif isinstance(value, Tensor):
                yield field.name, None, value

    def map(self, function: Callable[[Tensor], Tensor]) -> RequestBatch:
        """The batch with `function` applied to each of its tensors."""
        changed = [(field, name, function(tensor)) for field, name, tensor in self.tensors()]
        return _assembled(changed, self.is_padding, self.skipped)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RequestBatch:
        """The batch on `device`; pinned batches copy asynchronously with `non_blocking`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RequestBatch:
        """The batch in page-locked memory; DataLoader calls this under `pin_memory=True`."""
        return self.map(lambda tensor: tensor.pin_memory())

    def __getitem__(self, which: slice | Sequence[int] | Tensor) -> RequestBatch:
        """The batch of some of its requests: a slice, positions, or a mask (R,), in the order given.

        Histories come as windows. Raises IndexError for positions outside the batch, TypeError for anything else.
        """
        index = _positions(which, self.num_requests, self.request_id.device)
        target_starts, counts = self.target_offsets[:-1][index], self.target_offsets.diff()[index]
        places = ragged_index(target_starts, counts)
        starts, ends = (side[index] for side in self.spans)
        return replace(
            self._windows(starts, ends),
            targets={name: values[places] for name, values in self.targets.items()},
            target_offsets=offsets_of(counts),
            labels={name: values[places] for name, values in self.labels.items()},
            requests={name: values[index] for name, values in self.requests.items()},
            request_id=self.request_id[index],
            user_id=self.user_id[index],
            request_time=self.request_time[index],
        )

    def newest(self, length: int) -> RequestBatch:
        """The batch with each history cut to its newest `length` events; a shared one moves its starts and copies nothing.

        Equal to reading the dataset with `history_length=length`. Raises ValueError below 0.
        """
        if length < 0:
            raise ValueError(f"history length {length} is negative; give 0 or more")
        starts, ends = self.spans
        cut = torch.maximum(starts, ends - length)
        return self._windows(cut, ends) if self.history_starts is None else replace(self, history_starts=cut)

    def to_per_request(self) -> RequestBatch:
        """The same batch with each request's history on its own: a copy where timelines are shared."""
        return self if self.history_rows is None else self._windows(*self.spans)

    def _windows(self, starts: Tensor, ends: Tensor) -> RequestBatch:
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
        """Histories as name -> (R, length), zeros in front, the newest event last; and which places are events, (R, length) bool.

        length: by default that of the longest history; longer ones keep their newest events.
        """
        starts, ends = self.spans
        longest = int((ends - starts).max()) if self.num_requests else 0
        width = longest if length is None else length
        places = ends[:, None] - width + torch.arange(width, device=ends.device)
        mask = places >= starts[:, None]
        index = torch.where(mask, places, 0)
        if not self.num_events:
            return {name: values.new_zeros(index.shape) for name, values in self.history.items()}, mask
        return {
            name: torch.where(mask, values[index], 0).to(values.dtype) for name, values in self.history.items()
        }, mask

    def to_nested(self) -> Columns:
        """Histories as name -> jagged nested tensors (R, ragged): of the windows form without a copy."""
        batch = self.to_per_request()
        return {
            name: torch.nested.nested_tensor_from_jagged(values, batch.history_offsets)
            for name, values in batch.history.items()
        }

    def to_keyed_jagged(self, columns: Sequence[str] | None = None) -> KeyedJaggedTensor:
        """History columns of integers as a TorchRec KeyedJaggedTensor, values int64, (R,) lengths for each key.

        columns: by default all integer ones but `event_time`. Raises KeyError for a column that is not there, ValueError for
        one of fractions, MachineError without TorchRec.
        """
        batch = self.to_per_request()
        names = [n for n, v in batch.history.items() if not v.is_floating_point() and n != "event_time"]
        names = names if columns is None else list(columns)
        if missing := [name for name in names if name not in batch.history]:
            raise KeyError(f"columns {missing} are not in the history, which has {list(batch.history)}")
        if floats := [name for name in names if batch.history[name].is_floating_point()]:
            raise ValueError(f"columns {floats} hold fractions, and a KeyedJaggedTensor holds ids; leave them out")
        return _keyed_jagged_class()(
            keys=names,
            values=torch.cat([batch.history[name].long() for name in names]),
            lengths=batch.history_offsets.diff().repeat(len(names)),
        )

    def expand(self) -> RequestBatch:
        """The sample-level batch: one request per target, each with its own copy of the history.

        What a loader without request-level batching would yield; the reference for savings and tests.
        Shapes: R becomes G, T becomes the sum over targets of their history lengths.
        """
        counts = self.target_offsets.diff()
        owner = torch.repeat_interleave(torch.arange(self.num_requests, device=counts.device), counts)
        starts, ends = (side[owner] for side in self.spans)
        return replace(
            self._windows(starts, ends),
            target_offsets=torch.arange(self.num_targets + 1, device=counts.device),
            requests={name: values[owner] for name, values in self.requests.items()},
            request_id=self.request_id[owner],
            user_id=self.user_id[owner],
            request_time=self.request_time[owner],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a batch in one piece of shared memory as that piece and places in it: one handle, not one per tensor."""
        parts = list(self.tensors())
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for _, _, tensor in parts}
        (storage, *others) = storages.values()
        lent = None if others else slots.send(storage.data_ptr())
        if others or (lent is None and not storage.is_shared()):
            return _assembled, (parts, self.is_padding, self.skipped)
        whole = torch.empty(0, dtype=torch.uint8).set_(storage) if lent is None else lent
        layout = [(f, n, t.dtype, t.storage_offset() * t.element_size(), t.shape[0]) for f, n, t in parts]
        return unpacked, (whole, layout, self.is_padding, self.skipped)


def _assembled(parts: Sequence[tuple[str, str | None, Tensor]], is_padding: bool, skipped: int) -> RequestBatch:
    values: dict[str, Any] = {role: {} for role in ROLES}
    for field, name, tensor in parts:
        if name is None:
            values[field] = tensor
        else:
            values[field][name] = tensor
    return RequestBatch(**values, is_padding=is_padding, skipped=skipped)


def unpacked(whole: Tensor, layout: Layout, is_padding: bool, skipped: int) -> RequestBatch:
    """A batch in one piece of memory (bytes,)."""
    typed: dict[torch.dtype, Tensor] = {}
    parts = []
    for field, name, dtype, byte, size in layout:
        if dtype not in typed:
            typed[dtype] = whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype)
        first = byte // dtype.itemsize
        parts.append((field, name, typed[dtype][first : first + size]))
    return _assembled(parts, is_padding, skipped)


def _positions(which: slice | Sequence[int] | Tensor, size: int, device: torch.device) -> Tensor:
    every = torch.arange(size, device=device)
    if isinstance(which, slice):
        return every[which]
    if isinstance(which, int):
        raise TypeError(
            f"request {which} alone is no batch; give a slice, [{which}:{which + 1}], or a list of positions"
        )
    index = torch.as_tensor(which, device=device)
    if index.dtype == torch.bool and index.shape != every.shape:
        raise IndexError(f"a mask of shape {tuple(index.shape)} for {size} requests; give one of shape ({size},)")
    return every[index if index.numel() else index.long()]


def _keyed_jagged_class() -> Any:
    try:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
    except ImportError:
        raise MachineError("to_keyed_jagged needs TorchRec; install the extra longbatch[torchrec]") from None
    return KeyedJaggedTensor


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets (N + 1,) int64 of ragged rows with these lengths (N,)."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def ragged_index(starts: Tensor, lengths: Tensor) -> Tensor:
    """Indices (sum of lengths,) of the slices `[starts, starts + lengths)`, one after another."""
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return torch.arange(shift.shape[0], device=shift.device) + shift
