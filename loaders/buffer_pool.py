"""Reusable shared-memory buffers from worker processes to the main process: no copy and no new pages for a batch.

New shared memory costs a worker one page fault per page, and the main process an unmapping: more than the copy into it.
So each worker of a DataLoader has a few buffers, anonymous files (memfd) that both sides map once and keep.

Protocol. A worker fills a buffer and sends the id of the pool and three numbers (worker, buffer, size). The worker
counts how often it has sent each buffer. The main process counts, in memory that both share, how often it has released
it: a release happens when the last tensor in the buffer is gone. A buffer is free if both counts are equal and nothing
in the worker refers to it either:

    worker:  fill buffer 0, send (sent 1)   ...  released 0: buffer 0 is busy  ...  released 1: buffer 0 is free
    main:                   receive, use, drop the batch (released 1)

Each count has a single process that writes it, so that the processes need no lock. A batch that is kept keeps its
buffer, and a worker without a free buffer uses new memory. A batch that is pickled in a worker but never unpickled in
the main process (a queue that is closed early, a pickle made for another purpose) is never released: its buffer stays
busy until the DataLoader is deleted, and other buffers or new memory are used. A buffer is not shared memory of torch,
so a single tensor of it that is sent on its own is sent as a copy.

Cost: `buffers_per_worker` times the size of a batch per worker. Linux only.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longbatch.schemas.types import Int64Array

from .blocks import Array
from .reused_memory import rounded_up


class BufferPool:
    """The buffers of one DataLoader, created in the main process; as its `worker_init_fn` it gives each worker its own.

    Args:
        num_workers: Number of worker processes.
        buffers_per_worker: Buffers of each worker: the batches it prepares ahead, the one in use, and the one before
            that.
    """

    def __init__(self, num_workers: int, buffers_per_worker: int) -> None:
        shape = num_workers, buffers_per_worker
        self._released = torch.zeros(shape, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._pending_releases: deque[tuple[int, int]] = deque()
        self._release_lock = Lock()
        # Files, not shared memory of torch: a file can grow in place, and both sides keep it mapped across batches.
        self._files = [[os.memfd_create("longbatch") for _ in range(buffers_per_worker)] for _ in range(num_workers)]
        self._mapped: dict[tuple[int, int], Array] = {}
        # A batch refers to its pool by id: pickling the pool itself with each batch would send all its files.
        self._pool_id = os.urandom(8).hex()
        _POOLS[self._pool_id] = self
        weakref.finalize(self, _close, [file for files in self._files for file in files])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a spawned worker needs, which does not inherit open files."""
        files = [[DupFd(file) for file in files] for files in self._files]
        return {"_released": self._released, "_files": files, "_pool_id": self._pool_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the files in a spawned worker."""
        vars(self).update(state)
        self._files = [[file.detach() for file in files] for files in state["_files"]]

    def __call__(self, worker: int) -> None:
        """Let this process, a worker, put its batches into its buffers.

        Args:
            worker: Number of the worker.
        """
        released = self._released[worker].numpy()
        _WORKER_BUFFERS.append(_WorkerBuffers(self._pool_id, worker, self._files[worker], released))

    def receive(self, worker: int, buffer: int, size: int) -> Tensor:
        """Return a buffer's bytes in the main process; the buffer is released when the last tensor of them is gone.

        Args:
            worker: Number of the worker that sent the buffer.
            buffer: Number of the buffer among those of the worker.
            size: Size of the buffer in bytes.

        Returns:
            The bytes, (size,).
        """
        mapped = self._mapped.get((worker, buffer))
        if mapped is None or len(mapped) < size:
            # The first time, or the worker has enlarged the file since. It enlarges only free buffers, so no batch
            # refers to the old mapping; replacing it here unmaps it.
            mapped = self._mapped[worker, buffer] = _map(self._files[worker][buffer])
        # `mapped` lives as long as the pool. So each batch gets a view of its own: the tensors of the batch keep the
        # view alive, and the end of the view is the end of the batch.
        view = mapped[:size]
        _when_unreferenced(view, lambda: self._release(worker, buffer))
        return torch.from_numpy(view)

    def _release(self, worker: int, buffer: int) -> None:
        """Count a release. Several threads may release the same buffer, because a batch can be sent twice."""
        # += reads and writes in two steps, so one thread at a time counts. It counts what the others append, and looks
        # again after giving up the lock. Waiting for the lock could deadlock: the garbage collector may call this in
        # the thread that holds it.
        self._pending_releases.append((worker, buffer))
        while self._pending_releases and self._release_lock.acquire(blocking=False):
            try:
                while self._pending_releases:
                    # A single store of an aligned int64: the worker reads the old or the new count, never half of one.
                    self._released.numpy()[self._pending_releases.popleft()] += 1
            finally:
                self._release_lock.release()


@dataclass(frozen=True)
class SentBuffer:
    """A buffer on its way to the main process, where it is unpickled as a tensor (size,) of its bytes."""

    pool_id: str
    worker: int
    buffer: int
    size: int

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[str, int, int, int]]:
        return _receive, (self.pool_id, self.worker, self.buffer, self.size)


class _WorkerBuffers:
    """The buffers of one worker, in its process. released: how often the main process has released each, (buffers,)."""

    def __init__(self, pool_id: str, worker: int, files: list[int], released: Int64Array) -> None:
        self._pool_id, self._worker, self._files, self._released = pool_id, worker, files, released
        self._sent, self._in_use = np.zeros_like(released), np.zeros(len(files), dtype=np.bool_)
        self._mapped = [np.zeros(0, dtype=np.uint8) for _ in files]

    def take(self, size: int) -> Tensor | None:
        """A free buffer of at least `size` bytes: the smallest that is large enough, else the largest, enlarged."""
        # A buffer is busy while this process refers to it (`_in_use`: until its batch is sent, or dropped unsent), and
        # while the main process has not released what was sent (the counts differ).
        free = np.flatnonzero(~self._in_use & (self._sent == self._released)).tolist()
        if not free:
            return None
        # Best fit: small batches leave the large buffers to large batches. If none is large enough, the largest has to
        # grow least.
        large_enough = [buffer for buffer in free if len(self._mapped[buffer]) >= size]
        buffer: int = min(large_enough, key=self._size) if large_enough else max(free, key=self._size)
        if not large_enough:
            # A file grows in place. The main process maps it again when it receives a size above that of its mapping.
            os.ftruncate(self._files[buffer], rounded_up(size))
            self._mapped[buffer] = _map(self._files[buffer])
        self._in_use[buffer] = True
        view = self._mapped[buffer][:]  # a new object for each batch, deleted with its last tensor in this process
        _when_unreferenced(view, lambda: self._in_use.__setitem__(buffer, False))
        return torch.from_numpy(view)

    def _size(self, buffer: int) -> int:
        return len(self._mapped[buffer])

    def send(self, address: int) -> SentBuffer | None:
        """Count the buffer whose first byte is at this address as sent; None if the address is not a buffer's."""
        # Tensors do not record their buffer: when they are pickled, the address of their storage identifies it.
        for buffer, mapped in enumerate(self._mapped):
            if len(mapped) and mapped.ctypes.data == address:
                self._sent[buffer] += 1
                return SentBuffer(self._pool_id, self._worker, buffer, len(mapped))
        return None


# Weak, so that the pool of a DataLoader closes its files when the DataLoader is deleted.
_POOLS: weakref.WeakValueDictionary[str, BufferPool] = weakref.WeakValueDictionary()
_WORKER_BUFFERS: list[_WorkerBuffers] = []  # in a worker process, its own buffers


def take_buffer(size: int) -> Tensor | None:
    """Take a free buffer of this worker.

    Args:
        size: Bytes that are needed.

    Returns:
        Its bytes (at least `size`,); None in the main process, and if no buffer is free.
    """
    return _WORKER_BUFFERS[-1].take(size) if _WORKER_BUFFERS else None


def send_buffer(address: int) -> SentBuffer | None:
    """Send a buffer of this worker.

    Args:
        address: Address of its first byte.

    Returns:
        What to pickle in place of the buffer; None if other memory is at the address.
    """
    return _WORKER_BUFFERS[-1].send(address) if _WORKER_BUFFERS else None


def _receive(pool_id: str, worker: int, buffer: int, size: int) -> Tensor:
    return _POOLS[pool_id].receive(worker, buffer, size)


def _when_unreferenced(array: Array, function: Callable[[], None]) -> None:
    """Call the function once nothing refers to the array; not at the end of the process."""
    # At exit nobody waits for a free buffer, and the shared counts may be gone already.
    weakref.finalize(array, function).atexit = False


def _map(file: int) -> Array:
    return np.frombuffer(mmap.mmap(file, 0), dtype=np.uint8)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
