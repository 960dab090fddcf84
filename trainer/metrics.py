"""Exact ranking and calibration metrics over all targets, in float64, from arrays of shape (G,).

They are exact, not approximated by thresholds. Ties count one half, which matters for the few targets of a request
and the saturated scores of early training.

Sources: AUC as the Mann-Whitney U statistic; GAUC from DIN (arXiv 1706.06978); normalized entropy from He et al.,
"Practical Lessons from Predicting Clicks on Ads at Facebook" (ADKDD 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array = NDArray[np.float64]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the probability that a positive has a higher score than a negative, a tie counting one half.

    Args:
        labels: Labels (G,), 0 or 1.
        scores: Scores (G,) of any scale.

    Returns:
        The AUC; NaN where all labels are equal.

    Raises:
        ValueError: The shapes differ, a label is neither 0 nor 1, or a score is NaN.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
    """
    checked_labels, checked_scores = _checked(labels, scores)
    areas, _ = _auc_by_group(checked_labels, checked_scores, np.zeros(len(checked_labels), dtype=np.int64))
    return float(areas[0]) if len(areas) else float("nan")


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Compute the mean AUC of groups, usually users, weighted by their numbers of targets.

    Groups with only one class have no AUC and are left out, their weights too (DIN, arXiv 1706.06978).

    Args:
        labels: Labels (G,), 0 or 1.
        scores: Scores (G,) of any scale.
        groups: The group of each target (G,).

    Returns:
        The GAUC; NaN where no group has both classes.

    Raises:
        ValueError: The shapes differ, a label is neither 0 nor 1, or a score is NaN.

    Example:
        >>> gauc([1, 0, 1, 0, 1], [0.9, 0.1, 0.2, 0.8, 0.5], [7, 7, 8, 8, 9])
        0.5
    """
    checked_labels, checked_scores = _checked(labels, scores)
    areas, sizes = _auc_by_group(checked_labels, checked_scores, np.asarray(groups))
    defined = ~np.isnan(areas)
    if not defined.any():
        return float("nan")
    return float(np.average(areas[defined], weights=sizes[defined]))


def log_loss(labels: ArrayLike, logits: ArrayLike) -> float:
    """Compute the mean binary cross entropy.

    Args:
        labels: Labels (G,), 0 or 1.
        logits: Logits (G,).

    Returns:
        The mean in nats; NaN where there are no targets.

    Raises:
        ValueError: The shapes differ, a label is neither 0 nor 1, or a logit is NaN.

    Example:
        >>> round(log_loss([1, 0], [0.0, 0.0]), 6)
        0.693147
    """
    checked_labels, checked_logits = _checked(labels, logits)
    if not len(checked_labels):
        return float("nan")
    return float(np.mean(np.logaddexp(0, checked_logits) - checked_labels * checked_logits))


def normalized_entropy(labels: ArrayLike, logits: ArrayLike) -> float:
    """Compute the log loss divided by that of always predicting the mean label (He et al., ADKDD 2014).

    Args:
        labels: Labels (G,), 0 or 1.
        logits: Logits (G,).

    Returns:
        The ratio, below 1 for a model that beats the base rate; NaN where all labels are equal.

    Raises:
        ValueError: The shapes differ, a label is neither 0 nor 1, or a logit is NaN.

    Example:
        >>> normalized_entropy([1, 0], [0.0, 0.0])
        1.0
    """
    checked_labels, checked_logits = _checked(labels, logits)
    rate = checked_labels.mean() if len(checked_labels) else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return log_loss(checked_labels, checked_logits) / float(entropy)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Float64Array, Float64Array]:
    float_labels, float_scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if float_labels.shape != float_scores.shape or float_labels.ndim != 1:
        raise ValueError(
            f"labels have shape {float_labels.shape} and scores {float_scores.shape}; both must be (targets,)"
        )
    if not np.isin(float_labels, (0.0, 1.0)).all():
        raise ValueError("labels have values other than 0 and 1; ranking metrics require binary labels")
    if missing := int(np.isnan(float_scores).sum()):
        raise ValueError(f"{missing} of {len(float_scores)} scores are NaN; the model has diverged")
    return float_labels, float_scores


def _auc_by_group(
    labels: Float64Array, scores: Float64Array, groups: NDArray[np.generic]
) -> tuple[Float64Array, Float64Array]:
    """AUC and size of each group, (groups,) both, from average ranks (Mann-Whitney U).

    Example of one group with 2 positives and 2 negatives:
        labels sorted by score [0 0 1 1], scores [.1 .4 .4 .8]: average ranks [1 2.5 2.5 4]
        U = (2.5 + 4) - 2 * 3 / 2 = 3.5
        AUC = 3.5 / (2 * 2) = 0.875
    """
    if not len(labels):
        return np.zeros(0), np.zeros(0)
    # one sort by (group, score) for all groups, so that millions of small groups need no Python loop
    order = np.lexsort((scores, groups))
    group, score, positive = groups[order], scores[order], labels[order]
    new_group = np.append(True, group[1:] != group[:-1])
    new_tie = new_group | np.append(True, score[1:] != score[:-1])
    group_starts, tie_starts = np.flatnonzero(new_group), np.flatnonzero(new_tie)
    group_sizes = np.diff(np.append(group_starts, len(labels)))
    tie_sizes = np.diff(np.append(tie_starts, len(labels)))
    rank_in_group = np.arange(1, len(labels) + 1) - np.repeat(group_starts, group_sizes)
    # equal scores share the mean of their ranks: a tie counts as half a win
    average_rank = np.repeat(rank_in_group[tie_starts] + (tie_sizes - 1) / 2, tie_sizes)
    positives = np.add.reduceat(positive, group_starts)
    wins = np.add.reduceat(average_rank * positive, group_starts) - positives * (positives + 1) / 2
    pairs = positives * (group_sizes - positives)
    areas = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return areas, group_sizes.astype(np.float64)
