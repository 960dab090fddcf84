"""Exact ranking and calibration metrics over all targets, in float64, from arrays of shape (G,).

Exact, not bucketed by thresholds; ties count one half, which matters with the few targets of a request
and the saturated scores of early training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The probability that a positive scores above a negative, a tie counting one half.

    labels (G,) of 0 and 1, scores (G,) of any scale. NaN where one of the classes is missing.
    """
    truth, found = _checked(labels, scores)
    areas, _ = _area_by_group(truth, found, np.zeros(len(truth), dtype=np.int64))
    return float(areas[0]) if len(areas) else float("nan")


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """The mean AUC of groups (of users, as a rule), weighted by their numbers of targets.

    Groups with only one class have no AUC and are left out, weights too (as in DIN, arXiv 1706.06978).
    NaN where no group has both classes.
    """
    truth, found = _checked(labels, scores)
    areas, sizes = _area_by_group(truth, found, np.asarray(groups))
    defined = ~np.isnan(areas)
    if not defined.any():
        return float("nan")
    return float(np.average(areas[defined], weights=sizes[defined]))


def log_loss(labels: ArrayLike, logits: ArrayLike) -> float:
    """Mean binary cross entropy of logits (G,), in nats; NaN where there are no targets."""
    truth, found = _checked(labels, logits)
    if not len(truth):
        return float("nan")
    return float(np.mean(np.logaddexp(0, found) - truth * found))


def normalized_entropy(labels: ArrayLike, logits: ArrayLike) -> float:
    """The log loss divided by that of always predicting the mean label (He et al., ADKDD 2014).

    Below 1 is better than no model. NaN where one of the classes is missing.
    """
    truth, found = _checked(labels, logits)
    rate = truth.mean() if len(truth) else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return log_loss(truth, found) / float(entropy)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    truth, found = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if truth.shape != found.shape or truth.ndim != 1:
        raise ValueError(f"labels are {truth.shape} and scores {found.shape}; both must be (targets,)")
    if not np.isin(truth, (0.0, 1.0)).all():
        raise ValueError("labels hold other values than 0 and 1; metrics of ranking need binary labels")
    if np.isnan(found).any():
        raise ValueError(f"{int(np.isnan(found).sum())} of {len(found)} scores are NaN; the model has diverged")
    return truth, found


def _area_by_group(truth: Floats, scores: Floats, groups: NDArray[np.generic]) -> tuple[Floats, Floats]:
    """AUC and size of each group, (groups,) both, from average ranks (Mann-Whitney U)."""
    if not len(truth):
        return np.zeros(0), np.zeros(0)
    order = np.lexsort((scores, groups))
    group, score, positive = groups[order], scores[order], truth[order]
    new_group = np.append(True, group[1:] != group[:-1])
    new_run = new_group | np.append(True, score[1:] != score[:-1])
    group_starts, run_starts = np.flatnonzero(new_group), np.flatnonzero(new_run)
    sizes = np.diff(np.append(group_starts, len(truth)))
    run_sizes = np.diff(np.append(run_starts, len(truth)))
    first_rank = np.arange(1, len(truth) + 1) - np.repeat(group_starts, sizes)
    rank = np.repeat(first_rank[run_starts] + (run_sizes - 1) / 2, run_sizes)
    positives = np.add.reduceat(positive, group_starts)
    wins = np.add.reduceat(rank * positive, group_starts) - positives * (positives + 1) / 2
    pairs = positives * (sizes - positives)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0), sizes.astype(np.float64)
