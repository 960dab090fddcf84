"""The ground truth of a simulated log: true probabilities, planted corrupt rows, and the attainable AUC.

For each label of the targets of a sample of users, `attainable` holds the AUC of
* "true_probability": the probability that the label was drawn from. A model can only beat it by chance.
* "100", "500", ...: the reference model, a logistic regression on the position, the tab, and the count of the target's
  topic among the newest L events visible to the request. It is fitted on half of the sampled users and scored on the
  other half, and vice versa. The count is nearly all that a history reveals here (see `world`), so this estimates what
  a model with a history of L events can attain. It is not a bound.
* "0": the same without any history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longbatch.schemas.types import BoolArray, Int64Array

from .rows import LABELS, Rows, target_shift
from .world import FEED, TOPICS, Float32Array, Float64Array, Int8Array

TRUTH_VERSION = 1
FITTED_TARGETS = 20_000
HISTORY_LENGTHS = (0, 100, 500, 1_000, 2_000, 4_000, 10_000)


@dataclass(frozen=True)
class Truth:
    """The ground truth of a log.

    Attributes:
        document: The content of truth.json.
        targets: One row per target: request_id, item_id, position, p_<label>.
    """

    document: dict[str, Any]
    targets: pl.DataFrame

    @property
    def attainable(self) -> dict[str, dict[str, float]]:
        """The attainable AUC by label, then by history length or "true_probability"."""
        attainable: dict[str, dict[str, float]] = self.document["attainable"]
        return attainable


@dataclass(frozen=True)
class Sample:
    """E feed events and G targets of the sampled users, as the reference model needs them.

    Attributes:
        event_user: (E,) user id.
        event_topic: (E,) topic.
        visible_ms: (E,) when requests begin to see the event: the later of event and arrival time.
        user: (G,) user id.
        topic: (G,) topic.
        request_ms: (G,) request time.
        shift: (G,) what position and tab add to the log-odds of a click.
        probability: (G, 3) true probabilities, columns as LABELS.
        labels: (G, 3) labels, columns as LABELS.
    """

    event_user: Int64Array
    event_topic: Int8Array
    visible_ms: Int64Array
    user: Int64Array
    topic: Int8Array
    request_ms: Int64Array
    shift: Float32Array
    probability: Float32Array
    labels: Int8Array


def read_truth(out: Path) -> Truth:
    """Read the ground truth of a simulated log.

    Args:
        out: The folder of the log.

    Returns:
        The ground truth.

    Raises:
        FileNotFoundError: The folder is not a simulated log.
        ValueError: The truth was written by another version.
    """
    path = out / "truth.json"
    if not path.exists():
        raise FileNotFoundError(
            f"file not found: {path}. {out} is not a simulated log. Write one with `longbatch simulate`."
        )
    document = json.loads(path.read_text())
    if document.get("version") != TRUTH_VERSION:
        raise ValueError(
            f"{path} has version {document.get('version')!r}; this longbatch reads version {TRUTH_VERSION}. "
            "Simulate the log again."
        )
    return Truth(document, pl.read_parquet(out / "truth" / "*.parquet"))


def truth_table(rows: Rows) -> pl.DataFrame:
    """Return request_id, item_id, position and p_<label> of the targets of one file."""
    keys = rows.log.select("request_id", "item_id", "position")[rows.target_rows]
    return keys.hstack([pl.Series(f"p_{label}", rows.probability[:, k]) for k, label in enumerate(LABELS)])


def take_sample(rows: Rows, users: int) -> Sample:
    """Return the rows of the users with ids 1 to `users`; ids are in random order, so this is a random sample."""
    targets = rows.log[rows.target_rows]
    is_sampled = (targets["user_id"] <= users).to_numpy()
    targets = targets.filter(is_sampled)
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
        probability=rows.probability[is_sampled],
        labels=targets.select(LABELS).to_numpy(),
    )


def join_samples(samples: Sequence[Sample]) -> Sample:
    """Join the samples of several files, in their order."""
    names = [field.name for field in fields(Sample)]
    return Sample(**{name: np.concatenate([getattr(sample, name) for sample in samples]) for name in names})


def attainable_auc(sample: Sample, lengths: Sequence[int] = HISTORY_LENGTHS) -> dict[str, dict[str, float | None]]:
    """Compute the attainable AUC, as the module's docstring defines it.

    Args:
        sample: Events and targets of the sampled users.
        lengths: The history lengths.

    Returns:
        AUC by label, then by "true_probability" or history length. None if the sample has no AUC: fewer than two users
        have targets, or all labels are equal.
    """
    counts = count_topics(sample, lengths)
    table: dict[str, dict[str, float | None]] = {}
    for k, label in enumerate(LABELS):
        outcome = sample.labels[:, k] == 1
        table[label] = {"true_probability": auc(sample.probability[:, k], outcome)}
        for length in lengths:
            score = _cross_fitted_scores(_features(*counts[length], sample.shift), outcome, sample.user % 2 == 0)
            table[label][str(length)] = None if score is None else auc(score, outcome)
    return table


def count_topics(sample: Sample, lengths: Sequence[int]) -> Mapping[int, tuple[Int64Array, Int64Array]]:
    """Count the events of each target's topic among the newest events that its request sees.

    Events are numbered in order of user and visible time. Sorted by (user, topic, number), the events of one user and
    topic are contiguous, so the count between two numbers is the difference of two binary searches:

        number of the event        0  1  2  3  4        one user, topics a and b
        topic                      a  b  a  a  b        sorted: a0 a2 a3 b1 b4
        target: topic a, sees numbers 1 to 3            search(a, 4) - search(a, 1) = 3 - 1 = 2

    Args:
        sample: Events and targets of the sampled users.
        lengths: The history lengths.

    Returns:
        By length: the events of the target's topic (G,), and all events (G,).
    """
    order = np.lexsort((sample.visible_ms, sample.event_user))
    user, topic = sample.event_user[order], sample.event_topic[order]
    visible_end = _search_by_user(user, sample.visible_ms[order], sample.user, sample.request_ms)
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


def _search_by_user(user: Int64Array, time: Int64Array, wanted_user: Int64Array, before: Int64Array) -> Int64Array:
    """The number of entries (user, time), (E,), ordered by both, that are less than each (wanted_user, before), (G,).

    The pairs become single integers, so that one binary search finds them:

        user  1  1  2          time   5  7  5         wanted user  1  2        before   6  6
        key  13 15 21          = user * 8 + time      wanted key  14 22        result   1  3
    """
    if not len(user):
        return np.zeros(len(wanted_user), np.int64)
    origin = min(int(time.min()), int(before.min(initial=time.min())))
    span = max(int(time.max()), int(before.max(initial=time.max()))) - origin + 1
    ends: Int64Array = np.searchsorted(user * span + (time - origin), wanted_user * span + (before - origin))
    return ends


def _features(count: Int64Array, total: Int64Array, shift: Float32Array) -> Float64Array:
    """Inputs of the reference model, (G, 5): the count in three scales, the known shift, and 1."""
    share = count / np.maximum(total, 1)
    log_share = np.log((count + 1) / (total + TOPICS))
    return np.stack([share, np.sqrt(share), log_share, shift, np.ones(len(share))], axis=1)


def _cross_fitted_scores(inputs: Float64Array, outcome: BoolArray, is_even: BoolArray) -> Float64Array | None:
    """Scores of each half of the users by a model fitted on the other half, (G,); None if a half has one outcome."""
    if any(len(np.unique(outcome[half])) < 2 for half in (is_even, ~is_even)):
        return None
    scores = np.empty(len(outcome))
    for half in (is_even, ~is_even):
        others = np.flatnonzero(~half)
        others = others[:: 1 + len(others) // FITTED_TARGETS]  # enough to fit five weights
        scores[half] = inputs[half] @ fit_logistic(inputs[others], outcome[others])
    return scores


def fit_logistic(inputs: Float64Array, outcome: BoolArray, steps: int = 6, ridge: float = 1.0) -> Float64Array:
    """Fit a logistic regression with a small ridge penalty by Newton's method.

    Args:
        inputs: (G, features).
        outcome: (G,), the label.
        steps: Newton steps.
        ridge: The weight of the penalty.

    Returns:
        (features,) weights.
    """
    weights = np.zeros(inputs.shape[1])
    penalty = ridge * np.eye(inputs.shape[1])
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        gradient = inputs.T @ (outcome - probability) - penalty @ weights
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + penalty
        weights = weights + np.linalg.solve(curvature, gradient)
    return weights


def auc(score: Float32Array | Float64Array, outcome: BoolArray) -> float | None:
    """Compute the area under the ROC curve as the Mann-Whitney statistic; ties count one half.

    Args:
        score: (G,) predictions.
        outcome: (G,) labels.

    Returns:
        The area, or None if all outcomes are equal.
    """
    positives = int(outcome.sum())
    negatives = len(outcome) - positives
    if not positives or not negatives:
        return None
    negative, positive = np.sort(score[~outcome]), np.sort(score[outcome])
    below = np.searchsorted(negative, positive, "left").sum()
    not_above = np.searchsorted(negative, positive, "right").sum()
    return float((below + not_above) / 2 / (positives * negatives))
