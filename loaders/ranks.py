"""Which rank a process is: from arguments, torch.distributed, or the environment variables of torchrun."""

from __future__ import annotations

import os
from multiprocessing.context import get_spawning_popen

import torch

from .schedule import RankAndWorker


def look_up_rank(rank: int | None, world_size: int | None) -> RankAndWorker:
    """Look up rank and world size, now: a constructor runs before torch.distributed is initialized.

    Args:
        rank: Number of this rank; None to look it up.
        world_size: Number of ranks; None to look it up.

    Returns:
        The rank, as its only worker.

    Raises:
        ValueError: The rank is not between 0 and world_size - 1.
    """
    rank, world_size = _of_process_group(rank, world_size)
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank  # RANK and WORLD_SIZE: set by torchrun
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    return RankAndWorker(rank, world_size)


def rank_to_pickle(rank: int | None, world_size: int | None) -> tuple[int | None, int | None]:
    """Return the rank and world size that a pickled dataset has to contain.

    A worker process that is started by "spawn" or "forkserver" inherits the environment, but not the process group of
    torch.distributed: it would see rank 0 of 1. So its dataset takes the numbers of the process group along. No other
    pickle does, because it may be loaded by another rank.

    Args:
        rank: Number of this rank as given; None to look it up.
        world_size: Number of ranks as given; None to look it up.

    Returns:
        Rank and world size; None where the process that unpickles them looks them up.
    """
    # This function of the standard library is how objects notice that a process is being started; locks use it, too.
    return (rank, world_size) if get_spawning_popen() is None else _of_process_group(rank, world_size)


def _of_process_group(rank: int | None, world_size: int | None) -> tuple[int | None, int | None]:
    """Fill in what is None from torch.distributed, if that is initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank() if rank is None else rank
        world_size = torch.distributed.get_world_size() if world_size is None else world_size
    return rank, world_size
