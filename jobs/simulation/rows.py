"""The rows of a simulated log: the items that requests show, and the user's reactions with their true probabilities.

Every function maps arrays of requests or rows to arrays of rows, in log order. `world` explains why feed rows and
discover rows differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.schemas.types import BoolArray, Int64Array

from .world import (
    DISCOVER_TOP,
    FEED,
    ITEMS_PER_TOPIC,
    LARGEST_REQUEST,
    TOPICS,
    TOPICS_PER_USER,
    Catalog,
    Float32Array,
    Int8Array,
    Int32Array,
    Population,
    Requests,
)

FEED_NOISE = 0.3  # share of feed rows whose topic is random
TARGET_NOISE = 0.4  # share of discover rows whose topic is random
LIKING_CAP = 1.0  # an affinity above the mean adds nothing
CLICK_BASE, CLICK_GAIN = -2.0, 3.5
POSITION_BIAS = 0.12
TAB_BIAS = 0.05
FEED_CLICK_ACTIVE, FEED_CLICK_NOISE = -0.4, -1.8
LABELS = ("click", "long_view", "like")


@dataclass(frozen=True)
class Rows:
    """The rows of one file, and the true label probabilities of its G discover rows.

    Attributes:
        log: The rows as the log has them.
        target_rows: (G,) int64, the row numbers of the discover rows.
        probability: (G, 3) float32, the true probability of each of LABELS.
    """

    log: pl.DataFrame
    target_rows: Int64Array
    probability: Float32Array


def draw_rows(
    requests: Requests, first_id: int, population: Population, catalog: Catalog, rng: np.random.Generator
) -> Rows:
    """Draw the rows of requests, in their order.

    Args:
        requests: The requests.
        first_id: The id of the first request; the others follow.
        population: The interests of all users.
        catalog: The items.
        rng: The source of random numbers.

    Returns:
        The rows.
    """
    size = requests.size.astype(np.int64)
    request = np.repeat(np.arange(len(size), dtype=np.int32), size)
    starts = np.repeat((np.cumsum(size) - size).astype(np.int32), size)
    position = (np.arange(len(request), dtype=np.int32) - starts).astype(np.int8)
    tab, user = requests.tab[request], requests.user[request]
    target_rows = np.flatnonzero(tab != FEED)
    topic, is_noise = _draw_feed_topics(requests, request, population, rng)
    probability = _feed_probabilities(is_noise, position)
    topic[target_rows], affinity = _draw_target_topics(
        user[target_rows], population.active[requests.stretch[request[target_rows]]], population, rng
    )
    probability[:, target_rows] = _target_probabilities(affinity, position[target_rows], tab[target_rows])
    labels = _draw_labels(probability, rng)
    item = _draw_items(topic, request, position, rng)
    request_time = requests.time_ms[request]
    event_time, arrival_time = _draw_event_times(request_time, position, rng)
    log = pl.DataFrame(
        {
            "request_id": np.add(request, first_id, dtype=np.int64),
            "user_id": np.add(user, 1, dtype=np.int64),
            "item_id": catalog.item_id[item],
            "author_id": catalog.author_id[item],
            "topic": topic.astype(np.int16),
            "position": position,
            "tab": tab,
            "request_time": request_time,
            "event_time": event_time,
            "arrival_time": arrival_time,
            "dwell_ms": _draw_dwell(labels, rng),
            **dict(zip(LABELS, labels, strict=True)),
        }
    )
    return Rows(log, target_rows, np.ascontiguousarray(probability[:, target_rows].T))


def _draw_feed_topics(
    requests: Requests, request: Int32Array, population: Population, rng: np.random.Generator
) -> tuple[Int8Array, BoolArray]:
    """The topic of each row if the feed shows it, (rows,) int8, and whether it is noise instead of an active topic."""
    active = population.topics[requests.user[:, None], population.active[requests.stretch]]  # (requests, 2)
    draw = rng.random(len(request), np.float32)
    is_noise = draw < FEED_NOISE
    second = draw < FEED_NOISE + (1 - FEED_NOISE) / 2
    topic = active.reshape(-1)[request * 2 + second]
    topic[is_noise] = rng.integers(0, TOPICS, int(is_noise.sum()), dtype=np.int8)
    return topic, is_noise


def _draw_target_topics(
    user: Int32Array, active: Int8Array, population: Population, rng: np.random.Generator
) -> tuple[Int8Array, Float32Array]:
    """Topics of discover rows and the user's affinity for them, (rows,) each: one of the user's ten, or any topic.

    `active`, (rows, 2): the columns that the feed shows now. They are redrawn once, so most are avoided.
    """
    column = rng.integers(0, TOPICS_PER_USER, len(user), dtype=np.int8)
    is_active = (column[:, None] == active).any(axis=1)
    column[is_active] = rng.integers(0, TOPICS_PER_USER, int(is_active.sum()), dtype=np.int8)
    topic = population.topics[user, column]
    is_any = rng.random(len(user), np.float32) < TARGET_NOISE
    topic[is_any] = rng.integers(0, TOPICS, int(is_any.sum()), dtype=np.int8)
    affinity = np.zeros(len(user), np.float32)
    for k in range(TOPICS_PER_USER):
        affinity += population.affinity[user, k] * (population.topics[user, k] == topic)
    return topic, affinity


def _feed_probabilities(is_noise: BoolArray, position: Int8Array) -> Float32Array:
    """Label probabilities of feed rows, (3, rows): they depend on the position and on whether the topic is active."""
    bias = _position_bias()
    click = np.stack([_sigmoid(FEED_CLICK_ACTIVE + bias), _sigmoid(FEED_CLICK_NOISE + bias)])
    of_click = np.array([[1.0, 1.0], [0.5, 0.3], [0.08, 0.03]], np.float32)  # (label, active or noise)
    table = (of_click[:, :, None] * click).reshape(len(LABELS), -1)
    return table[:, is_noise * np.int8(LARGEST_REQUEST) + position]


def _target_probabilities(affinity: Float32Array, position: Int8Array, tab: Int8Array) -> Float32Array:
    """Label probabilities of discover rows, (3, rows): long views and likes need a click, and rise with affinity."""
    liking = np.minimum(affinity, LIKING_CAP)
    shift = target_shift(position, tab)
    click = _sigmoid(CLICK_BASE + CLICK_GAIN * liking + shift)
    long_view = _sigmoid(-1.5 + 1.5 * liking)
    like = _sigmoid(-3.5 + 2.0 * liking)
    return np.stack([click, np.multiply(click, long_view), np.multiply(click, like)])


def target_shift(position: Int8Array, tab: Int8Array) -> Float32Array:
    """Return what position and tab add to the log-odds of a click on a discover row.

    Args:
        position: (G,) position in the request.
        tab: (G,) DISCOVER or DISCOVER_TOP.

    Returns:
        (G,) float32.
    """
    of_tab = np.where(tab == DISCOVER_TOP, TAB_BIAS, -TAB_BIAS)
    shift: Float32Array = (_position_bias()[position] + of_tab).astype(np.float32)
    return shift


def _position_bias() -> Float32Array:
    """What each position of a request adds to the log-odds of a click, (12,): later positions get less attention."""
    bias: Float32Array = (-POSITION_BIAS * np.log1p(np.arange(LARGEST_REQUEST))).astype(np.float32)
    return bias


def _sigmoid(logit: npt.NDArray[np.floating[Any]]) -> Float32Array:
    """1 / (1 + exp(-logit)), element by element."""
    probability: Float32Array = np.reciprocal(1 + np.exp(-logit)).astype(np.float32, copy=False)
    return probability


def _draw_labels(probability: Float32Array, rng: np.random.Generator) -> list[Int8Array]:
    """Click, long view and like of each row, (rows,) int8 each, with these marginal probabilities, (3, rows).

    One uniform number decides the click. Given a click, a second one decides the long view, and a third the like.
    """
    rows = probability.shape[1]
    click = rng.random(rows, np.float32) < probability[0]
    rest = [click & (rng.random(rows, np.float32) * probability[0] < probability[k]) for k in (1, 2)]
    return [label.view(np.int8) for label in (click, *rest)]


def _draw_items(topic: Int8Array, request: Int32Array, position: Int8Array, rng: np.random.Generator) -> Int64Array:
    """Item index of each row, (rows,): Zipf with exponent 1 within the topic, and no item twice in a request.

    Popularity ranks form groups of 12. The row at position p takes member (p + t) % 12 of the group that it draws,
    where t is random per request. So items of a request differ, and an item does not reveal its position:

        position        0   1   2          drawn group   7   0   7         t = 11
        member         11   0   1          rank         95   0  85
    """
    groups = ITEMS_PER_TOPIC // LARGEST_REQUEST
    group = np.exp(rng.random(len(topic), np.float32) * np.float32(np.log(groups + 1))).astype(np.int32) - 1
    np.clip(group, 0, groups - 1, out=group)
    shift = rng.integers(0, LARGEST_REQUEST, int(request[-1]) + 1, dtype=np.int32)
    member = (shift[request] + position) % LARGEST_REQUEST
    index: Int64Array = ((group * LARGEST_REQUEST + member) * TOPICS + topic).astype(np.int64)
    return index


def _draw_event_times(
    request_time: Int64Array, position: Int8Array, rng: np.random.Generator
) -> tuple[Int64Array, Int64Array]:
    """Event and arrival time of each row: six seconds per position; 3 % of the rows arrive about an hour late."""
    rows = len(position)
    # With dtype given, because NumPy 1 would multiply int8 by 6,000 in 16 bits, and wrap around.
    viewed_ms = np.multiply(position, 6_000, dtype=np.int32) + rng.integers(500, 5_500, rows, dtype=np.int32)
    delay = 200 + 2_000 * rng.standard_exponential(rows, np.float32)
    late = np.flatnonzero(rng.random(rows, np.float32) < 0.03)
    delay[late] += np.float32(3_600_000) * rng.standard_exponential(len(late), np.float32)
    event_time = request_time + viewed_ms
    return event_time, event_time + delay.astype(np.int32)


def _draw_dwell(labels: list[Int8Array], rng: np.random.Generator) -> Int32Array:
    """Milliseconds watched, (rows,) int32: more for a click, most for a long view."""
    scale = np.array([1_500, 8_000, 30_000], np.float32)[labels[0] + labels[1]]
    dwell: Int32Array = (300 + scale * rng.standard_exponential(len(scale), np.float32)).astype(np.int32)
    return dwell
