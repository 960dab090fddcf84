"""The arms of `longbatch bench studies`, and what their seeds say together.

Arms of one study differ in one thing. *Equal data*: the same requests. *Equal compute*: as many as the operations counted for
STCA's run pay for, at most EQUAL_COMPUTE_MOST times its requests.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from longbatch.trainer.config import Length, ModelConfig, ModelName, TrainConfig
from longbatch.trainer.models.flops import request_flops

LABEL = "click"
LENGTHS = (500, 2_000, 4_000, 10_000)
SHORT, FULL = 2_000, 10_000
MORE_DATA: tuple[ModelName, ...] = ("stca", "din")
COMPARED = 1_000  # where models are compared: a Transformer is to be affordable
MIXED = Length(minimum=1_000, maximum=FULL, alpha=0.1, beta=0.8)  # U-shaped, mean 2,000
EQUAL_COMPUTE_MOST = 4
# of dense weights, and half of it for embeddings: the best of 0.001, 0.002, 0.004 and, beyond an end that was best, further
# factors of two, by a seed that no study has
RATES: dict[ModelName, float] = {"stca": 2e-3, "longer": 1e-3, "transformer": 2e-3, "din": 8e-3, "mean": 4e-3}
PAR = 0.005  # AUC that another model may be ahead by, and STCA be on par


@dataclass(frozen=True)
class Arm:
    """What distinguishes the runs of a study.

    length: of histories in training.  served: those at inference.  run: requests that stay neighbours, see `TrainConfig.shuffle_run`.
    """

    name: str
    model: ModelConfig
    length: int | Length
    steps: int
    served: tuple[int, ...] = LENGTHS
    run: int = 1

    def config(self, seed: int) -> TrainConfig:
        """The run with a seed, for initial weights and the order of requests."""
        return TrainConfig(
            model=self.model,
            labels=(LABEL,),
            history_length=self.length,
            batch_size=32,
            shuffle_run=self.run,
            learning_rate=RATES[self.model.name],
            embedding_learning_rate=RATES[self.model.name] / 2,
            warmup_steps=min(10, self.steps // 4),
            decay="cosine",
            epochs=1_000,
            max_steps=self.steps,
            evaluate_requests=1,
            seed=seed,
        )


def _model(name: ModelName = "stca", width: int = 32, elapsed: Literal["event", "attention"] = "event") -> ModelConfig:
    return ModelConfig(name=name, width=width, elapsed=elapsed, id_rows=4_096)


def arms(steps: int) -> list[Arm]:
    """All arms; the same run serves several studies."""
    stca = _model()
    found = [
        Arm("train 2K", stca, SHORT, steps),
        Arm("train 10K", stca, FULL, steps),
        Arm("train mixed lengths", stca, MIXED, steps),
        *(Arm(f"width {width}", _model(width=width), MIXED, steps) for width in (16, 64)),
        *(Arm(f"train 2K, {run} of a user", _model(elapsed="attention"), SHORT, steps, run=run) for run in (1, 8)),
    ]
    for name in MORE_DATA:
        arm = f"{name}, {EQUAL_COMPUTE_MOST} times the data"
        found.append(Arm(arm, _model(name), COMPARED, EQUAL_COMPUTE_MOST * steps, (COMPARED,)))
    names: tuple[ModelName, ...] = ("stca", "longer", "transformer", "din", "mean")
    for name in names:
        model = _model(name)
        times = min(EQUAL_COMPUTE_MOST, forward_flops(stca, COMPARED) / forward_flops(model, COMPARED))
        found.append(Arm(f"{name}, equal data", model, COMPARED, steps, (COMPARED,)))
        if name != "stca":
            found.append(Arm(f"{name}, equal compute", model, COMPARED, max(1, round(times * steps)), (COMPARED,)))
    return found


def forward_flops(model: ModelConfig, length: float, targets: int = 8) -> float:
    """Operations of the forward pass of one request."""
    return request_flops(model, round(length), targets).request


def training_flops(arm: Arm, requests: int, events: int, targets: int) -> float:
    """Operations of a run, forward and backward, from the events it encoded and the targets it scored.

    Where requests share events, a target reads a history as long as the arm's.
    """
    encoded, count = events / requests, targets / requests
    window = float(arm.length) if arm.model.shares_timelines and isinstance(arm.length, int) else encoded
    sharing = max(1, round(count * window / max(encoded, 1)))  # targets per event, which decides the form of attention
    history = request_flops(arm.model, round(encoded), sharing).history
    return 3 * requests * (history + count * request_flops(arm.model, round(window), sharing).target)


@dataclass(frozen=True)
class Summary:
    """An arm's seeds together. auc: by history length at inference, of each seed, in their order."""

    auc: dict[int, list[float]]
    events: float
    flops: float

    def mean(self, length: int) -> float:
        """Over seeds."""
        return statistics.mean(self.auc[length])

    def spread(self, length: int) -> float:
        """From the lowest to the highest seed."""
        return max(self.auc[length]) - min(self.auc[length])


def summary(results: Iterable[dict[str, Any]], arm: str) -> Summary:
    """The seeds of one arm."""
    seeds = sorted((result for result in results if result["arm"] == arm), key=lambda result: int(result["seed"]))
    return Summary(
        {int(length): [float(seed["auc"][length]) for seed in seeds] for length in seeds[0]["auc"]},
        statistics.mean(seed["events"] for seed in seeds),
        statistics.mean(seed["flops"] for seed in seeds),
    )


def least_rise(arm: Summary, shorter: int, longer: int) -> float:
    """The mean rise of AUC between two lengths, less the distance of the smallest and the largest seed's rise."""
    rises = [after - before for before, after in zip(arm.auc[shorter], arm.auc[longer], strict=True)]
    return statistics.mean(rises) - (max(rises) - min(rises))


def least_lead(arm: Summary, rival: Summary) -> float:
    """The smallest lead in AUC over a rival with the same seed."""
    return min(mine - theirs for mine, theirs in zip(arm.auc[COMPARED], rival.auc[COMPARED], strict=True))
