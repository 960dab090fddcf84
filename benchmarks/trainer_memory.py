"""Peak memory of one training step, in a process of its own.

    python -m longbatch.benchmarks.trainer_memory DATASET LENGTH ROWS

Prints the peak resident memory in bytes, as the kernel records it. ROWS is "requests", "samples" (the same targets in
one batch, with a copy of the history each), or "no history" (the same targets without histories).
"""

from __future__ import annotations

import sys
from pathlib import Path

from longbatch.loaders import RequestDataset
from longbatch.trainer.config import ModelConfig, TrainConfig
from longbatch.trainer.fit import train_step
from longbatch.trainer.optimizers import make_optimizers
from longbatch.trainer.train import new_model

REQUESTS = 4


def step(path: Path, length: int, rows: str) -> None:
    """Train one step on REQUESTS requests.

    Args:
        path: The dataset.
        length: Newest events of each history.
        rows: "requests", "samples" or "no history".
    """
    config = TrainConfig(model=ModelConfig(width=32, heads=4, layers=2))
    dataset = RequestDataset(path, batch_size=REQUESTS, history_length=length)
    model = new_model(dataset, config)
    batch = next(iter(dataset))
    if rows != "requests":
        batch = batch.newest(0) if rows == "no history" else batch.expand()
    train_step(model, make_optimizers(model, config), [batch], config)


if __name__ == "__main__":
    step(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
