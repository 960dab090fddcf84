"""Several training processes as one: losses and gradients are summed over ranks, then divided by the targets of all of them.

So ranks may have different numbers of targets, or none, and the update is that of one process with all their batches. Started by
`torchrun --nproc-per-node 2 --no-python longbatch train DATASET RUN`; alone, nothing here talks to anybody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def joined() -> Iterator[int]:
    """Within it this process is one of torchrun's, if it was started so; yields its rank, 0 where it is alone."""
    mine = int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized()
    if mine:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank() if together() else 0
    finally:
        if mine:
            dist.destroy_process_group()


def together() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if together() else 1


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over ranks."""
    if together():
        dist.all_reduce(values)
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so: what one decides, all do."""
    return bool(summed(torch.tensor(float(flag), device=device))) if together() else flag


def gathered(values: Tensor) -> list[Tensor]:
    """A tensor of each rank, of one shape."""
    if not together():
        return [values]
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values)
    return found


def sum_gradients(dense: Sequence[nn.Parameter], sparse: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over ranks; a rank without a batch has none, and takes part all the same."""
    if not together():
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
    flat = summed(torch.cat([grad.flatten() for grad in grads]))
    parts = torch.split(flat, [p.numel() for p in dense])
    for parameter, part in zip(dense, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    for parameter in sparse:
        parameter.grad = _sum_of_rows(parameter)


def _sum_of_rows(table: nn.Parameter) -> Tensor:
    """A table's sparse gradient summed over ranks: rows and their values are gathered."""
    grad = None if table.grad is None else table.grad.coalesce()
    rows = torch.zeros(0, dtype=torch.int64, device=table.device) if grad is None else grad.indices()[0]
    values = table.new_zeros(0, table.shape[1]) if grad is None else grad.values()
    counts = [int(count) for count in gathered(torch.tensor(len(rows), device=table.device))]
    numbers, every = (_of_all(part, counts) for part in (rows, values))
    return torch.sparse_coo_tensor(numbers[None], every, table.shape).coalesce()


def _of_all(part: Tensor, counts: Sequence[int]) -> Tensor:
    """The ranks' parts, of so many rows, one after another; filled up to one length only to travel."""
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    return torch.cat([found[:count] for found, count in zip(gathered(padded), counts, strict=True)])
