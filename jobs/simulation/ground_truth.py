"""What the simulator knows beside the log: true probabilities, planted dirt, and the AUC that can be attained.

The yardstick. For each label of the targets of a sample of users, `attainable` holds the AUC of
* "true_probability": the probability the label was drawn from; no model does better, but for luck;
* "100", "500", ...: a logistic regression that knows the position and the tab and counts the target's topic in
  the newest L events visible to the request. It is fitted on half of the sampled users and scored on the other
  half, both ways round. A count is nearly all that the history tells here (see `simulated_world`), so this is
  about what a model with a history of L events can reach; it is an estimate, not a bound;
* "0": the same without any history.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longbatch.schemas.types import BoolArray, Int64Array

from .rows import LABELS, Rows, target_shift
from .world import FEED, TOPICS, Bytes, Doubles, Floats

TRUTH_VERSION = 1
FITTED_TARGETS = 20_000
HISTORY_LENGTHS = (0, 100, 500, 1_000, 2_000, 4_000, 10_000)


@dataclass(frozen=True)
class Truth:
    """What `read_truth` finds beside a log.

    `document` is truth.json; `targets` has one row per target: request_id, item_id, position, p_<label>.
    """

    document: dict[str, Any]
    targets: pl.DataFrame

    @property
    def attainable(self) -> dict[str, dict[str, float]]:
        """label -> "true_probability" or a history length -> AUC."""
        found: dict[str, dict[str, float]] = self.document["attainable"]
        return found


@dataclass(frozen=True)
class Sample:
    """Feed events (E,) and targets (G,) of the sampled users, as the yardstick needs them.

    `event_user`, `event_topic`, `visible_ms`: (E,); `user`, `topic`, `request_ms`, `shift` (what position and tab
    add to the log-odds of a click): (G,); `probability`, `labels`: (G, 3), columns as LABELS.
    """

    event_user: Int64Array
    event_topic: Bytes
    visible_ms: Int64Array
    user: Int64Array
    topic: Bytes
    request_ms: Int64Array
    shift: Floats
    probability: Floats
    labels: Bytes


def read_truth(out: Path) -> Truth:
    """The truth beside the simulated log in `out`.

    Raises FileNotFoundError if there is none, ValueError if it was written by another version.
    """
    path = out / "truth.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {out} holds no simulated log; write one with `simulate`")
    document = json.loads(path.read_text())
    if document.get("version") != TRUTH_VERSION:
        raise ValueError(
            f"{path} has version {document.get('version')!r}, this longbatch reads {TRUTH_VERSION}; simulate again"
        )
    return Truth(document, pl.read_parquet(out / "truth" / "*.parquet"))


def truth_table(rows: Rows) -> pl.DataFrame:
    """request_id, item_id, position and p_<label> of the targets among the rows of one file."""
    keys = rows.log.select("request_id", "item_id", "position")[rows.target_rows]
    return keys.hstack([pl.Series(f"p_{label}", rows.probability[:, k]) for k, label in enumerate(LABELS)])


def take_sample(rows: Rows, users: int) -> Sample:
    """The rows of the users with ids 1 to `users` (ids are in no order, so these are as good as any)."""
    targets = rows.log[rows.target_rows]
    chosen = (targets["user_id"] <= users).to_numpy()
    targets = targets.filter(chosen)
    feed = rows.log.select("user_id", "topic", "event_time", "arrival_time", "tab").filter(
        (pl.col("user_id") <= users) & (pl.col("tab") == FEED)
    )
    return Sample(
        event_user=feed["user_id"].to_numpy(),
        event_topic=feed["topic"].cast(pl.Int8).to_numpy(),
        visible_ms=feed.select(pl.max_horizontal("event_time", "arrival_time")).to_series().to_numpy(),
        user=targets["user_id"].to_numpy(),
        topic=targets["topic"].cast(pl.Int8).to_numpy(),
        request_ms=targets["request_time"].to_numpy(),
        shift=target_shift(targets["position"].to_numpy(), targets["tab"].to_numpy()),
        probability=rows.probability[chosen],
        labels=targets.select(LABELS).to_numpy(),
    )


def join_samples(samples: Sequence[Sample]) -> Sample:
    """The samples of several files as one, in the order given."""
    names = [field.name for field in fields(Sample)]
    return Sample(**{name: np.concatenate([getattr(sample, name) for sample in samples]) for name in names})


def attainable_auc(sample: Sample, lengths: Sequence[int] = HISTORY_LENGTHS) -> dict[str, dict[str, float | None]]:
    """label -> "true_probability" or a history length -> AUC, see the top of this file.

    None where the sample has no AUC: fewer than two users with targets, or labels all alike.
    """
    counts = count_topics(sample, lengths)
    table: dict[str, dict[str, float | None]] = {}
    for k, label in enumerate(LABELS):
        outcome = sample.labels[:, k] == 1
        table[label] = {"true_probability": auc(sample.probability[:, k], outcome)}
        for length in lengths:
            score = cross_fitted_scores(features(*counts[length], sample.shift), outcome, sample.user % 2 == 0)
            table[label][str(length)] = None if score is None else auc(score, outcome)
    return table


def count_topics(sample: Sample, lengths: Sequence[int]) -> Mapping[int, tuple[Int64Array, Int64Array]]:
    """length -> (events of the target's topic, events in all) among the newest `length` visible ones, (G,) each.

    An event is numbered by its place in the list of all events, ordered by user and visible time. Its key puts
    events of the same user and topic together, in that order, so that a count is the distance of two searches.
    """
    order = np.lexsort((sample.visible_ms, sample.event_user))
    user, topic = sample.event_user[order], sample.event_topic[order]
    visible_end = search_by_user(user, sample.visible_ms[order], sample.user, sample.request_ms)
    first = np.searchsorted(user, sample.user)
    size = len(user) + 1
    keys = np.sort((user * TOPICS + topic) * size + np.arange(len(user)))
    base = (sample.user * TOPICS + sample.topic) * size
    at_end = np.searchsorted(keys, base + visible_end)
    counts = {}
    for length in lengths:
        start = np.maximum(first, visible_end - length)
        counts[length] = (at_end - np.searchsorted(keys, base + start), visible_end - start)
    return counts


def search_by_user(user: Int64Array, time: Int64Array, wanted_user: Int64Array, before: Int64Array) -> Int64Array:
    """For each wanted (user, time): the number of entries of earlier users, or of that user strictly earlier.

    `user`, `time`: (E,), ordered by both; `wanted_user`, `before`: (G,).
    """
    if not len(user):
        return np.zeros(len(wanted_user), np.int64)
    origin = min(int(time.min()), int(before.min(initial=time.min())))
    span = max(int(time.max()), int(before.max(initial=time.max()))) - origin + 1
    found: Int64Array = np.searchsorted(user * span + (time - origin), wanted_user * span + (before - origin))
    return found


def features(count: Int64Array, total: Int64Array, shift: Floats) -> Doubles:
    """What the yardstick's regression sees of each target, (G, 5): the count in three forms, the known shift, 1."""
    share = count / np.maximum(total, 1)
    log_share = np.log((count + 1) / (total + TOPICS))
    return np.stack([share, np.sqrt(share), log_share, shift, np.ones(len(share))], axis=1)


def cross_fitted_scores(inputs: Doubles, outcome: BoolArray, is_even: BoolArray) -> Doubles | None:
    """Scores of each half by a logistic regression fitted on the other, (G,); None if a half has one outcome."""
    if any(len(np.unique(outcome[half])) < 2 for half in (is_even, ~is_even)):
        return None
    scores = np.empty(len(outcome))
    for half in (is_even, ~is_even):
        others = np.flatnonzero(~half)
        others = others[:: 1 + len(others) // FITTED_TARGETS]  # five weights need no more
        scores[half] = inputs[half] @ fit_logistic(inputs[others], outcome[others])
    return scores


def fit_logistic(inputs: Doubles, outcome: BoolArray, steps: int = 6, ridge: float = 1.0) -> Doubles:
    """Weights of a slightly ridged logistic regression by Newton's method, (features,)."""
    weights = np.zeros(inputs.shape[1])
    penalty = ridge * np.eye(inputs.shape[1])
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        gradient = inputs.T @ (outcome - probability) - penalty @ weights
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + penalty
        weights = weights + np.linalg.solve(curvature, gradient)
    return weights


def auc(score: Floats | Doubles, outcome: BoolArray) -> float | None:
    """Area under the ROC curve, ties counted half (Mann-Whitney); None if all outcomes are alike."""
    positives = int(outcome.sum())
    negatives = len(outcome) - positives
    if not positives or not negatives:
        return None
    negative, positive = np.sort(score[~outcome]), np.sort(score[outcome])
    below = np.searchsorted(negative, positive, "left").sum()
    not_above = np.searchsorted(negative, positive, "right").sum()
    return float((below + not_above) / 2 / (positives * negatives))
