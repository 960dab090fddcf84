"""Data-parallel training: losses and gradients are summed over ranks, then divided by the targets of all ranks.

So ranks may have different numbers of targets, or none, and the update equals that of one process with all their
batches. Started by `torchrun --nproc-per-node 2 --no-python longbatch train DATASET RUN`. With one process no function
here communicates.

Shapes: N rows of a table in a sparse gradient, D its width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def process_group() -> Iterator[int]:
    """Join torchrun's process group if this process was started by torchrun and has not joined one yet.

    Yields:
        This process's rank, 0 for a single process.
    """
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized()
    if joins:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # gloo for CPU tensors too, because checkpoints gather random-number states there
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank() if is_distributed() else 0
    finally:
        if joins:
            dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place.

    Args:
        values: A tensor of the same shape on each rank.

    Returns:
        The same tensor.
    """
    if is_distributed():
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Find out whether a flag is set on any rank, so that all ranks take the same decision.

    Args:
        flag: This rank's flag.
        device: Where the process group communicates.

    Returns:
        True on all ranks or False on all ranks.
    """
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device))) if is_distributed() else flag


def all_gather(values: Tensor) -> list[Tensor]:
    """Gather a tensor of each rank.

    Args:
        values: A tensor of the same shape on each rank.

    Returns:
        The tensors, by rank.
    """
    if not is_distributed():
        return [values]
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values)
    return gathered


def all_reduce_gradients(dense: Sequence[nn.Parameter], sparse: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over ranks.

    Every rank takes part in every exchange, so a rank without a batch contributes zeros or no rows.

    Args:
        dense: Parameters with dense gradients, in the same order on each rank.
        sparse: Tables with sparse gradients.
    """
    if not is_distributed():
        return
    # one exchange of a flat vector is faster than one per parameter
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
    flat = all_reduce_sum(torch.cat([grad.flatten() for grad in grads]))
    parts = torch.split(flat, [p.numel() for p in dense])
    for parameter, part in zip(dense, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    for parameter in sparse:
        parameter.grad = _all_reduce_sparse(parameter)


def _all_reduce_sparse(table: nn.Parameter) -> Tensor:
    """A table's sparse gradient summed over ranks: the rows and their values are gathered, and equal rows added.

    Example of two ranks:
        rank 0: rows [2 7], values [a b]; rank 1: rows [7], values [c]
        gathered on both: rows [2 7 7], values [a b c]
        coalesced: rows [2 7], values [a, b + c]
    """
    # coalesced first, so that repeated rows of one rank are sent once
    grad = None if table.grad is None else table.grad.coalesce()
    rows = torch.zeros(0, dtype=torch.int64, device=table.device) if grad is None else grad.indices()[0]
    values = table.new_zeros(0, table.shape[1]) if grad is None else grad.values()
    # ranks have different numbers of rows, but all_gather needs equal shapes: exchange the counts first
    counts = [int(count) for count in all_gather(torch.tensor(len(rows), device=table.device))]
    all_rows, all_values = (_all_gather_ragged(part, counts) for part in (rows, values))
    # coalesce adds the values of equal rows; all ranks do so for the same list
    return torch.sparse_coo_tensor(all_rows[None], all_values, table.shape).coalesce()


def _all_gather_ragged(part: Tensor, counts: Sequence[int]) -> Tensor:
    """The ranks' parts (counts[rank], ..) concatenated; padded to one length only for the exchange."""
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    return torch.cat([values[:count] for values, count in zip(all_gather(padded), counts, strict=True)])
