"""Several ranks train the same model as one process with all their batches."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from child_processes import child_process
from training_data import tiny

from longbatch.trainer import checkpoint
from longbatch.trainer.checkpoint import Checkpoint
from longbatch.trainer.config import TrainConfig
from longbatch.trainer.fit import TrainReport
from longbatch.trainer.train import train

pytestmark = pytest.mark.slow

RANK = """
import sys
import torch
import torch.distributed as dist
from longbatch.trainer.config import TrainConfig
from longbatch.trainer.train import train

torch.set_num_threads(1)
dist.init_process_group("gloo")
dataset, folder, config = sys.argv[1], sys.argv[2], TrainConfig.model_validate_json(sys.argv[3])
first = config.model_copy(update={"max_steps": 5})
for run, part, resume in (("uninterrupted", config, False), ("resumed", first, False), ("resumed", config, True)):
    report = train(dataset, f"{folder}/{run}", part, resume=resume)
    print(report.steps, report.targets, len(report.metrics))
dist.destroy_process_group()
"""


class TwoRanks(NamedTuple):
    """The folder of the runs "uninterrupted" and "resumed"; by rank, (steps, targets, metrics) of three trainings."""

    folder: Path
    reports: list[list[tuple[int, ...]]]


class SingleProcess(NamedTuple):
    """A run of one process that takes the batches of both ranks, two a step."""

    folder: Path
    report: TrainReport


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    # 480 requests are trained on: 25 batches of 19 and one of 5, so the last step of the two ranks is uneven
    return tiny(batch_size=19, epochs=1, evaluate_requests=16)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, dataset: Path, config: TrainConfig) -> TwoRanks:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-c", RANK, str(dataset), str(folder), config.model_dump_json()]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with ExitStack() as children:
        ranks = [
            children.enter_context(child_process(command, environment={**os.environ, **address, "RANK": str(rank)}))
            for rank in range(2)
        ]
        outputs = [rank.communicate()[0].splitlines() for rank in ranks]
    return TwoRanks(folder, [[tuple(map(int, line.split())) for line in lines] for lines in outputs])


@pytest.fixture(scope="module")
def single_process(dataset: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> SingleProcess:
    folder = tmp_path_factory.mktemp("single")
    return SingleProcess(folder, train(dataset, folder, config.model_copy(update={"gradient_accumulation_steps": 2})))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_close(run: Checkpoint, other: Checkpoint) -> None:
    for (name, value), again in zip(run.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, again, rtol=1e-5, atol=1e-5, msg=name)


def test_two_ranks_equal_one_process_with_the_batches_of_both(
    two_ranks: TwoRanks, single_process: SingleProcess
) -> None:
    report = single_process.report
    first_trainings = [reports[0] for reports in two_ranks.reports]
    assert first_trainings == [(report.steps, report.targets, 2), (report.steps, report.targets, 0)]
    assert_close(checkpoint.load(two_ranks.folder / "uninterrupted"), checkpoint.load(single_process.folder))


def test_a_run_of_two_ranks_resumes_as_if_it_had_not_stopped(
    two_ranks: TwoRanks, single_process: SingleProcess
) -> None:
    steps = single_process.report.steps
    assert [reports[1][0] for reports in two_ranks.reports] == [5, 5]
    assert [reports[2][0] for reports in two_ranks.reports] == [steps, steps]
    resumed = checkpoint.load(two_ranks.folder / "resumed")
    assert len(resumed.rng_states) == 2
    assert_close(resumed, checkpoint.load(single_process.folder))
