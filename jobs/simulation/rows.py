"""The rows of a simulated log: what requests show, what the user makes of it, and with what probability.

Every function maps arrays of requests or rows to arrays of rows, in log order. `simulated_world` says why the
feed and the discover rows differ.
"""

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
    Bytes,
    Catalogue,
    Floats,
    Ints,
    Population,
    Requests,
)

FEED_NOISE = 0.3  # share of feed rows with any topic
TARGET_NOISE = 0.4  # share of discover rows with any topic
LIKING_CAP = 1.0  # affinity above the mean is not liked more
CLICK_BASE, CLICK_GAIN = -2.0, 3.5
POSITION_BIAS = 0.12
TAB_BIAS = 0.05
FEED_CLICK_ACTIVE, FEED_CLICK_NOISE = -0.4, -1.8
LABELS = ("click", "long_view", "like")


@dataclass(frozen=True)
class Rows:
    """The rows of one file: the `log` as readers see it, and for its discover rows (`target_rows`, (G,)) the truth.

    `probability`: (G, 3) float32, the true probability of each of LABELS.
    """

    log: pl.DataFrame
    target_rows: Int64Array
    probability: Floats


def draw_rows(
    requests: Requests, first_id: int, population: Population, catalogue: Catalogue, rng: np.random.Generator
) -> Rows:
    """The rows of some requests, in their order; the first request gets the id `first_id`."""
    size = requests.size.astype(np.int64)
    request = np.repeat(np.arange(len(size), dtype=np.int32), size)
    starts = np.repeat((np.cumsum(size) - size).astype(np.int32), size)
    position = (np.arange(len(request), dtype=np.int32) - starts).astype(np.int8)
    tab, user = requests.tab[request], requests.user[request]
    target_rows = np.flatnonzero(tab != FEED)
    topic, is_noise = draw_feed_topics(requests, request, population, rng)
    probability = feed_probabilities(is_noise, position)
    topic[target_rows], affinity = draw_target_topics(
        user[target_rows], population.active[requests.stretch[request[target_rows]]], population, rng
    )
    probability[:, target_rows] = target_probabilities(affinity, position[target_rows], tab[target_rows])
    labels = draw_labels(probability, rng)
    item = draw_items(topic, request, position, rng)
    request_time = requests.time_ms[request]
    event_time, arrival_time = draw_event_times(request_time, position, rng)
    log = pl.DataFrame(
        {
            "request_id": request + np.int64(first_id),
            "user_id": user + np.int64(1),
            "item_id": catalogue.item_id[item],
            "author_id": catalogue.author_id[item],
            "topic": topic.astype(np.int16),
            "position": position,
            "tab": tab,
            "request_time": request_time,
            "event_time": event_time,
            "arrival_time": arrival_time,
            "dwell_ms": draw_dwell(labels, rng),
            **dict(zip(LABELS, labels, strict=True)),
        }
    )
    return Rows(log, target_rows, np.ascontiguousarray(probability[:, target_rows].T))


def draw_feed_topics(
    requests: Requests, request: Ints, population: Population, rng: np.random.Generator
) -> tuple[Bytes, BoolArray]:
    """Topic of each row as the feed shows it, (rows,) int8, and whether it is noise rather than an active one."""
    active = population.topics[requests.user[:, None], population.active[requests.stretch]]  # (requests, 2)
    draw = rng.random(len(request), np.float32)
    is_noise = draw < FEED_NOISE
    second = draw < FEED_NOISE + (1 - FEED_NOISE) / 2
    topic = active.reshape(-1)[request * 2 + second]
    topic[is_noise] = rng.integers(0, TOPICS, int(is_noise.sum()), dtype=np.int8)
    return topic, is_noise


def draw_target_topics(
    user: Ints, active: Bytes, population: Population, rng: np.random.Generator
) -> tuple[Bytes, Floats]:
    """Topics of discover rows and the user's affinity for them, (rows,) each: one of the ten, or any topic.

    `active`: (rows, 2), the columns the feed shows now; they are drawn again, once, so mostly avoided.
    """
    column = rng.integers(0, TOPICS_PER_USER, len(user), dtype=np.int8)
    again = (column[:, None] == active).any(axis=1)
    column[again] = rng.integers(0, TOPICS_PER_USER, int(again.sum()), dtype=np.int8)
    topic = population.topics[user, column]
    is_any = rng.random(len(user), np.float32) < TARGET_NOISE
    topic[is_any] = rng.integers(0, TOPICS, int(is_any.sum()), dtype=np.int8)
    affinity = np.zeros(len(user), np.float32)
    for k in range(TOPICS_PER_USER):
        affinity += population.affinity[user, k] * (population.topics[user, k] == topic)
    return topic, affinity


def feed_probabilities(is_noise: BoolArray, position: Bytes) -> Floats:
    """Label probabilities of feed rows, (3, rows): a function of the position and of being active now."""
    bias = position_bias()
    click = np.stack([sigmoid(FEED_CLICK_ACTIVE + bias), sigmoid(FEED_CLICK_NOISE + bias)])
    of_click = np.array([[1.0, 1.0], [0.5, 0.3], [0.08, 0.03]], np.float32)  # label, then active or noise
    table = (of_click[:, :, None] * click).reshape(len(LABELS), -1)
    return table[:, is_noise * np.int8(LARGEST_REQUEST) + position]


def target_probabilities(affinity: Floats, position: Bytes, tab: Bytes) -> Floats:
    """Label probabilities of discover rows, (3, rows): a long view or a like needs a click, and more affinity."""
    liking = np.minimum(affinity, LIKING_CAP)
    shift = target_shift(position, tab)
    click = sigmoid(CLICK_BASE + CLICK_GAIN * liking + shift)
    long_view = sigmoid(-1.5 + 1.5 * liking)
    like = sigmoid(-3.5 + 2.0 * liking)
    return np.stack([click, np.multiply(click, long_view), np.multiply(click, like)])


def target_shift(position: Bytes, tab: Bytes) -> Floats:
    """What position and tab add to the log-odds of a click on a discover row, (rows,) float32."""
    of_tab = np.where(tab == DISCOVER_TOP, TAB_BIAS, -TAB_BIAS)
    shift: Floats = (position_bias()[position] + of_tab).astype(np.float32)
    return shift


def position_bias() -> Floats:
    """What each position of a request adds to the log-odds of a click, (12,): later rows are looked at less."""
    bias: Floats = (-POSITION_BIAS * np.log1p(np.arange(LARGEST_REQUEST))).astype(np.float32)
    return bias


def sigmoid(logit: npt.NDArray[np.floating[Any]]) -> Floats:
    """1 / (1 + exp(-logit)), element by element."""
    probability: Floats = np.reciprocal(1 + np.exp(-logit)).astype(np.float32, copy=False)
    return probability


def draw_labels(probability: Floats, rng: np.random.Generator) -> list[Bytes]:
    """Click, long view and like of each row, (rows,) int8 each, with the given marginal probabilities, (3, rows).

    One uniform number decides the click; another, given the click, the long view; a third, the like.
    """
    rows = probability.shape[1]
    click = rng.random(rows, np.float32) < probability[0]
    rest = [click & (rng.random(rows, np.float32) * probability[0] < probability[k]) for k in (1, 2)]
    return [label.view(np.int8) for label in (click, *rest)]


def draw_items(topic: Bytes, request: Ints, position: Bytes, rng: np.random.Generator) -> Int64Array:
    """Catalogue index of each row, (rows,): Zipf with exponent 1 within the topic, no item twice in a request.

    Ranks come in groups of 12; a request's rows take different members of the groups, turned at random, so that
    neither does an item repeat nor does its id tell the position.
    """
    groups = ITEMS_PER_TOPIC // LARGEST_REQUEST
    group = np.exp(rng.random(len(topic), np.float32) * np.float32(np.log(groups + 1))).astype(np.int32) - 1
    np.clip(group, 0, groups - 1, out=group)
    turn = rng.integers(0, LARGEST_REQUEST, int(request[-1]) + 1, dtype=np.int32)
    member = (turn[request] + position) % LARGEST_REQUEST
    index: Int64Array = ((group * LARGEST_REQUEST + member) * TOPICS + topic).astype(np.int64)
    return index


def draw_event_times(
    request_time: Int64Array, position: Bytes, rng: np.random.Generator
) -> tuple[Int64Array, Int64Array]:
    """When each row was seen (six seconds a position) and when it arrived: 3 % are late by about an hour."""
    rows = len(position)
    seen = position * np.int32(6_000) + rng.integers(500, 5_500, rows, dtype=np.int32)
    delay = 200 + 2_000 * rng.standard_exponential(rows, np.float32)
    late = np.flatnonzero(rng.random(rows, np.float32) < 0.03)
    delay[late] += np.float32(3_600_000) * rng.standard_exponential(len(late), np.float32)
    event_time = request_time + seen
    return event_time, event_time + delay.astype(np.int32)


def draw_dwell(labels: list[Bytes], rng: np.random.Generator) -> Ints:
    """Milliseconds watched, (rows,) int32: longer for a click, longest for a long view."""
    scale = np.array([1_500, 8_000, 30_000], np.float32)[labels[0] + labels[1]]
    dwell: Ints = (300 + scale * rng.standard_exponential(len(scale), np.float32)).astype(np.int32)
    return dwell
