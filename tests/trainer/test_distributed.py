"""Several ranks train as one process with all their batches does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from training_data import tiny

from longbatch.loaders import RequestDataset
from longbatch.trainer import checkpoint
from longbatch.trainer.config import TrainConfig
from longbatch.trainer.optimizers import make_optimizers
from longbatch.trainer.train import new_model, train, train_step

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
for run, part, resume in (("whole", config, False), ("parts", first, False), ("parts", config, True)):
    report = train(dataset, f"{folder}/{run}", part, resume=resume)
    print(report.steps, report.targets, len(report.metrics))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, dataset, config):
    """The folder of the runs "whole" and "parts", and what each rank tells of the three trainings: steps, targets, metrics."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-c", RANK, str(dataset), str(folder), config.model_dump_json()]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(r)}, stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    told = [rank.communicate(timeout=240)[0].splitlines() for rank in ranks]
    return folder, [[tuple(map(int, line.split())) for line in lines] for lines in told]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def assert_close(run, other):
    for (name, value), again in zip(run.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, again, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def config():
    # 480 requests train: 25 batches of 19 and one of 5, so that the ranks' last step is uneven
    return tiny(batch_size=19, epochs=1, evaluate_requests=16)


@pytest.fixture(scope="module")
def alone(dataset, config, tmp_path_factory):
    """A run of one process that takes the batches of both ranks, two a step, and its report."""
    run = tmp_path_factory.mktemp("alone")
    return run, train(dataset, run, config.model_copy(update={"accumulate": 2}))


def test_two_ranks_equal_one_process_with_both_their_batches(two_ranks, alone):
    folder, told = two_ranks
    run, report = alone
    assert [lines[0] for lines in told] == [(report.steps, report.targets, 2), (report.steps, report.targets, 0)]
    assert_close(checkpoint.load(folder / "whole"), checkpoint.load(run))


def test_a_run_of_two_ranks_goes_on_as_if_it_had_not_stopped(two_ranks, alone):
    folder, told = two_ranks
    run, report = alone
    assert [lines[1][0] for lines in told] == [5, 5]
    assert [lines[2][0] for lines in told] == [report.steps, report.steps]
    resumed = checkpoint.load(folder / "parts")
    assert len(resumed.random) == 2
    assert_close(resumed, checkpoint.load(run))


def test_accumulated_batches_equal_one_batch_of_all_their_requests(dataset, tmp_path):
    """In the order of the dataset, which batches of any size follow."""
    found = []
    for size, accumulate in ((4, 4), (16, 1)):
        config = TrainConfig(
            **{
                **tiny().model_dump(),
                "batch_size": size,
                "accumulate": accumulate,
                "max_steps": 1,
                "train_before": None,
            }
        )
        found.append(config)
    models = []
    for config in found:
        data = RequestDataset(dataset, batch_size=config.batch_size)
        model = new_model(data, config).double()
        train_step(model, make_optimizers(model, config), list(data)[: config.accumulate], config)
        models.append(model.state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-10, atol=1e-10)
