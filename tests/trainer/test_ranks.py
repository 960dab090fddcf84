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
from longbatch.trainer.loop import new_model, train, train_step
from longbatch.trainer.optimisers import make_optimisers

RANK = """
import sys
import torch
from longbatch.trainer.config import TrainConfig
from longbatch.trainer.loop import train
torch.set_num_threads(1)
config = TrainConfig.model_validate_json(sys.argv[3])
report = train(sys.argv[1], sys.argv[2], config, resume=sys.argv[4] == "resume")
print(report.steps, report.targets, len(report.metrics))
"""


def train_on_two_ranks(tmp_path, dataset, run, config, resume="anew"):
    """Steps, targets and number of metrics that each rank reports."""
    command = [sys.executable, "-c", RANK, str(dataset), str(run), config.model_dump_json(), resume]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(r)}, stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    return [tuple(map(int, rank.communicate(timeout=120)[0].split())) for rank in ranks]


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


def test_two_ranks_equal_one_process_with_both_their_batches(dataset, config, alone, tmp_path):
    found = train_on_two_ranks(tmp_path, dataset, tmp_path / "run", config)
    run, report = alone
    assert found == [(report.steps, report.targets, 2), (report.steps, report.targets, 0)]
    assert_close(checkpoint.load(tmp_path / "run"), checkpoint.load(run))


def test_a_run_of_two_ranks_goes_on_as_if_it_had_not_stopped(dataset, config, alone, tmp_path):
    first = config.model_copy(update={"max_steps": 5})
    assert train_on_two_ranks(tmp_path, dataset, tmp_path / "run", first)[0][0] == 5
    assert len(checkpoint.load(tmp_path / "run").random) == 2
    assert train_on_two_ranks(tmp_path, dataset, tmp_path / "run", config, "resume")[0][0] == alone[1].steps
    assert_close(checkpoint.load(tmp_path / "run"), checkpoint.load(alone[0]))


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
        train_step(model, make_optimisers(model, config), list(data)[: config.accumulate], config)
        models.append(model.state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-10, atol=1e-10)
