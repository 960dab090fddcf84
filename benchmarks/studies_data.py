"""The arms of `longbatch bench studies`, and statistics over their seeds.

Arms of one study differ in one property. *Equal data*: all arms train on the same requests. *Equal compute*: an arm
trains on as many requests as take the operations of STCA's run, at most EQUAL_COMPUTE_MOST times its requests.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from longbatch.trainer.config import ModelConfig, ModelName, SampledLength, TrainConfig
from longbatch.trainer.models.flops import request_flops

LABEL = "click"
LENGTHS = (500, 2_000, 4_000, 10_000)
SHORT, FULL = 2_000, 10_000
MORE_DATA: tuple[ModelName, ...] = ("stca", "din")
COMPARED = 1_000  # history length at which models are compared; a Transformer is affordable at this length
MIXED = SampledLength(minimum=1_000, maximum=FULL, alpha=0.1, beta=0.8)  # U-shaped, mean 2,000
EQUAL_COMPUTE_MOST = 4
# Learning rates of dense weights; embeddings have half of it. The best of 0.001, 0.002 and 0.004, and of further
# factors of two if the best was the smallest or largest, with a seed that no study uses.
RATES: dict[ModelName, float] = {"stca": 2e-3, "longer": 1e-3, "transformer": 2e-3, "din": 8e-3, "mean": 4e-3}
PAR = 0.005  # STCA is on par with a model whose AUC is at most this much higher


@dataclass(frozen=True)
class Arm:
    """One configuration of a study.

    Attributes:
        name: Name of the arm.
        model: The model.
        length: History length in training.
        steps: Training steps.
        served: History lengths at inference.
        run: Requests that stay adjacent when shuffled, see `TrainConfig.shuffle_run`.
    """

    name: str
    model: ModelConfig
    length: int | SampledLength
    steps: int
    served: tuple[int, ...] = LENGTHS
    run: int = 1

    def config(self, seed: int) -> TrainConfig:
        """Return the training config of one run.

        Args:
            seed: Seed of the initial weights and of the order of requests.
        """
        return TrainConfig(
            model=self.model,
            labels=(LABEL,),
            history_length=self.length,
            batch_size=32,
            shuffle_run=self.run,
            learning_rate=RATES[self.model.name],
            embedding_learning_rate=RATES[self.model.name] / 2,
            warmup_steps=min(10, self.steps // 4),
            lr_schedule="cosine",
            epochs=1_000,
            max_steps=self.steps,
            evaluate_requests=1,
            seed=seed,
        )


def _model(
    name: ModelName = "stca",
    width: int = 32,
    time_encoding: Literal["event_feature", "attention_bias"] = "event_feature",
) -> ModelConfig:
    return ModelConfig(name=name, width=width, time_encoding=time_encoding, id_table_rows=4_096)


def arms(steps: int) -> list[Arm]:
    """Return all arms; several studies may use the same arm.

    Args:
        steps: Training steps of an arm with equal data.
    """
    stca = _model()
    arms = [
        Arm("train 2K", stca, SHORT, steps),
        Arm("train 10K", stca, FULL, steps),
        Arm("train mixed lengths", stca, MIXED, steps),
        *(Arm(f"width {width}", _model(width=width), MIXED, steps) for width in (16, 64)),
        *(
            Arm(f"train 2K, {run} of a user", _model(time_encoding="attention_bias"), SHORT, steps, run=run)
            for run in (1, 8)
        ),
    ]
    for name in MORE_DATA:
        arm = f"{name}, {EQUAL_COMPUTE_MOST} times the data"
        arms.append(Arm(arm, _model(name), COMPARED, EQUAL_COMPUTE_MOST * steps, (COMPARED,)))
    names: tuple[ModelName, ...] = ("stca", "longer", "transformer", "din", "mean")
    for name in names:
        model = _model(name)
        times = min(EQUAL_COMPUTE_MOST, forward_flops(stca, COMPARED) / forward_flops(model, COMPARED))
        arms.append(Arm(f"{name}, equal data", model, COMPARED, steps, (COMPARED,)))
        if name != "stca":
            arms.append(Arm(f"{name}, equal compute", model, COMPARED, max(1, round(times * steps)), (COMPARED,)))
    return arms


def forward_flops(model: ModelConfig, length: float, targets: int = 8) -> float:
    """Return the operations of the forward pass of one request.

    Args:
        model: The model.
        length: History length.
        targets: Targets of the request.
    """
    return request_flops(model, round(length), targets).request


def training_flops(arm: Arm, requests: int, events: int, targets: int) -> float:
    """Return the operations of a run, forward and backward.

    If requests share events, a target still attends to a history as long as the arm's.

    Args:
        arm: The arm.
        requests: Requests of the run.
        events: Events that it encoded.
        targets: Targets that it scored.
    """
    encoded, count = events / requests, targets / requests
    window = float(arm.length) if arm.model.shares_timelines and isinstance(arm.length, int) else encoded
    sharing = max(
        1, round(count * window / max(encoded, 1))
    )  # targets per event, which decides whether attention is reordered
    history = request_flops(arm.model, round(encoded), sharing).history
    return 3 * requests * (history + count * request_flops(arm.model, round(window), sharing).target)


@dataclass(frozen=True)
class StudyRun:
    """The result of one run, as it is saved.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the run.
        config: The training config, as JSON values.
        requests: Requests it trained on.
        events: Events it encoded.
        seconds: Wall time of the training.
        flops: Operations of the training.
        auc: History length at inference -> test AUC.
        targets: Targets that were evaluated.
    """

    arm: str
    seed: int
    config: dict[str, Any]
    requests: int
    events: int
    seconds: float
    flops: float
    auc: dict[str, float]
    targets: int


@dataclass(frozen=True)
class Summary:
    """The runs of an arm.

    Attributes:
        auc: History length at inference -> AUC of each seed, in the order of the seeds.
        events: Mean number of events that a run encoded.
        flops: Mean operations of a run.
    """

    auc: dict[int, list[float]]
    events: float
    flops: float

    def mean(self, length: int) -> float:
        """Return the mean AUC over seeds."""
        return statistics.mean(self.auc[length])

    def spread(self, length: int) -> float:
        """Return the difference of AUC between the best and the worst seed."""
        return max(self.auc[length]) - min(self.auc[length])


def summary(runs: Iterable[StudyRun], arm: str) -> Summary:
    """Summarize the seeds of one arm.

    Args:
        runs: All runs.
        arm: Name of the arm.
    """
    seeds = sorted((run for run in runs if run.arm == arm), key=lambda run: run.seed)
    return Summary(
        {int(length): [run.auc[length] for run in seeds] for length in seeds[0].auc},
        statistics.mean(run.events for run in seeds),
        statistics.mean(run.flops for run in seeds),
    )


def least_rise(arm: Summary, shorter: int, longer: int) -> float:
    """Return the mean rise of AUC between two lengths, minus the spread of the rises over seeds.

    Args:
        arm: The arm.
        shorter: Shorter history length at inference.
        longer: Longer history length.
    """
    rises = [after - before for before, after in zip(arm.auc[shorter], arm.auc[longer], strict=True)]
    return statistics.mean(rises) - (max(rises) - min(rises))


def least_lead(arm: Summary, rival: Summary) -> float:
    """Return the smallest lead in AUC over another arm with the same seed.

    Args:
        arm: The arm.
        rival: The arm it is compared with.
    """
    return min(auc - rival_auc for auc, rival_auc in zip(arm.auc[COMPARED], rival.auc[COMPARED], strict=True))
