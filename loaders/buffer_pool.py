"""Memory that worker processes fill and the main process gives back: a batch crosses without a copy, and no page is new.

New shared memory costs a worker a page fault for every page, and the main process an unmapping, more than the copy into it. So each
worker of a DataLoader has a few *slots*, anonymous files that both sides map once and keep. A batch in a slot is sent as the slot's
number, and the main process counts how often it has let go of it: the slot is free when that is as often as it was sent, and nothing in
the worker refers to it either. A batch that is kept keeps its slot, and a worker without a free one takes new memory. A slot is no
shared memory of torch, so a tensor of it that is sent by itself goes as a copy.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blocks import Array
from .shared_memory import rounded


class Slots:
    """The slots of one DataLoader, made in the main process; as its `worker_init_fn` it hands each worker its own.

    num_workers: its worker processes.  each: slots of one worker: the batches it prepares ahead, the one in use, and the one before it.
    """

    def __init__(self, num_workers: int, each: int) -> None:
        self._returned = torch.zeros(num_workers, each, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._returns = [[count(1) for _ in range(each)] for _ in range(num_workers)]
        self._files = [[os.memfd_create("longbatch") for _ in range(each)] for _ in range(num_workers)]
        self._mapped: dict[tuple[int, int], Array] = {}
        self._token = os.urandom(8).hex()
        _LOADERS[self._token] = self
        weakref.finalize(self, _close, [file for files in self._files for file in files])

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a worker that does not inherit open files."""
        files = [[DupFd(file) for file in files] for files in self._files]
        return {"_returned": self._returned, "_files": files, "_token": self._token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the files in the worker."""
        vars(self).update(state)
        self._files = [[file.detach() for file in files] for files in state["_files"]]

    def __call__(self, worker: int) -> None:
        """Let this process, a worker, put its batches into its slots."""
        _MINE.append(_Lender(self._token, worker, self._files[worker], self._returned[worker].numpy()))

    def received(self, worker: int, slot: int, size: int) -> Tensor:
        """The bytes (size,) of a slot; it is given back when the last tensor of them is gone."""
        mapped = self._mapped.get((worker, slot))
        if mapped is None or len(mapped) < size:
            mapped = self._mapped[worker, slot] = _mapped(self._files[worker][slot])
        lease = mapped[:size]
        _when_gone(lease, self._let_go, worker, slot)
        return torch.from_numpy(lease)

    def _let_go(self, worker: int, slot: int) -> None:
        self._returned[worker, slot] = next(self._returns[worker][slot])


@dataclass(frozen=True)
class Sent:
    """Bytes in a slot on their way to the main process, where they arrive as a tensor (size,)."""

    token: str
    worker: int
    slot: int
    size: int

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[str, int, int, int]]:
        return _received, (self.token, self.worker, self.slot, self.size)


class _Lender:
    """A worker's own slots. returned: (slots,) how often the main process let go of each."""

    def __init__(self, token: str, worker: int, files: list[int], returned: Array) -> None:
        self._token, self._worker, self._files, self._returned = token, worker, files, returned
        self._sent, self._alive = np.zeros_like(returned), np.zeros(len(files), dtype=np.bool_)
        self._mapped = [np.zeros(0, dtype=np.uint8) for _ in files]

    def take(self, size: int) -> Tensor | None:
        """Bytes (at least `size`,) of a free slot: the smallest that is large enough, else the largest, made larger."""
        free = np.flatnonzero(~self._alive & (self._sent == self._returned)).tolist()
        if not free:
            return None
        fits = [slot for slot in free if len(self._mapped[slot]) >= size]
        slot = min(fits, key=self._size) if fits else max(free, key=self._size)
        if not fits:
            os.ftruncate(self._files[slot], rounded(size))
            self._mapped[slot] = _mapped(self._files[slot])
        self._alive[slot] = True
        lease = self._mapped[slot][:]
        _when_gone(lease, self._alive.__setitem__, slot, False)
        return torch.from_numpy(lease)

    def _size(self, slot: int) -> int:
        return len(self._mapped[slot])

    def send(self, address: int) -> Sent | None:
        """Send the slot whose first byte is at this address; None if it is none."""
        for slot, mapped in enumerate(self._mapped):
            if len(mapped) and mapped.ctypes.data == address:
                self._sent[slot] += 1
                return Sent(self._token, self._worker, slot, len(mapped))
        return None


_LOADERS: weakref.WeakValueDictionary[str, Slots] = weakref.WeakValueDictionary()
_MINE: list[_Lender] = []  # in a worker process, its own


def take(size: int) -> Tensor | None:
    """Bytes (at least `size`,) of a slot, if this process is a worker that has a free one."""
    return _MINE[-1].take(size) if _MINE else None


def send(address: int) -> Sent | None:
    """Send the slot whose first byte is at this address; None for other memory."""
    return _MINE[-1].send(address) if _MINE else None


def _received(token: str, worker: int, slot: int, size: int) -> Tensor:
    return _LOADERS[token].received(worker, slot, size)


def _when_gone(array: Array, function: Callable[..., None], *arguments: object) -> None:
    """Call the function when nothing refers to the array any more; not at the end of the process."""
    weakref.finalize(array, function, *arguments).atexit = False


def _mapped(file: int) -> Array:
    return np.frombuffer(mmap.mmap(file, 0), dtype=np.uint8)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
