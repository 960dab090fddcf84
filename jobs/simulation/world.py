"""The simulated world: users with recurring interests, and the plan of all their requests over time.

A log of N rows is planned as N / 8 requests. Only this plan is kept in memory: 2 bytes per row, and 8 while drawn.
The plan is sorted by time and split into files. The rows of each file are drawn in log order from a generator seeded by
(seed, file), so no row is ever sorted, and any number of threads gives the same files.

The planted signal: every user likes 10 of 40 topics, with a gamma-distributed long-run affinity for each. During each
stretch of 600 events the feed shows two of them, drawn by affinity, plus 30 % noise. Feed clicks depend only on
whether a topic is active now, so they contain no information about affinity beyond the topics shown. Discover requests
happen near the end of the period. They show the user's ten topics and others at random, but rarely the two topics of
the current stretch. Their labels follow the affinity, and they are the targets: only a long history reveals what a
user likes. The spec excludes discover rows from the history, because their clicks would reveal the affinities after a
few hundred events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longbatch.schemas.errors import SpecError
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.types import Int64Array

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
Int8Array = npt.NDArray[np.int8]

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z, the first day of every simulated log
DAY_MS = 86_400_000
TOPICS = 40
TOPICS_PER_USER = 10
STRETCH_EVENTS = 600  # two topics are active for this many events of a user
SMALLEST_REQUEST, LARGEST_REQUEST = 4, 12
MEAN_REQUEST = (SMALLEST_REQUEST + LARGEST_REQUEST) / 2
ITEMS_PER_TOPIC = 4_992  # a multiple of LARGEST_REQUEST, which drawing the items of a request needs
AUTHORS_PER_TOPIC = 50
LONGEST_USER = 40_000
LENGTH_SIGMA = 0.6  # standard deviation of the logarithm of a user's number of events
FEED, DISCOVER, DISCOVER_TOP = 0, 1, 2  # values of the request feature `tab`
TARGET_PERIOD_SHARE = 0.2  # the last part of the period, in which discover requests happen
ROWS_PER_FILE = 1_000_000
USERS_PER_CHUNK = 2_048

AFFINITY_SHAPE = 2.0  # of the gamma distribution of affinities


@dataclass(frozen=True)
class Catalog:
    """Items and their authors. Item index i has topic `i % TOPICS` and popularity rank `i // TOPICS`.

    Attributes:
        item_id: (items,) int64, shuffled, so that an id reveals neither topic nor rank.
        author_id: (items,) int32; all items of an author have one topic.
    """

    item_id: Int64Array
    author_id: Int32Array


@dataclass(frozen=True)
class Population:
    """The interests of U users over S stretches of 600 events.

    Attributes:
        topics: (U, 10) int8, the topics each user likes.
        affinity: (U, 10) float32, how much; the mean is 1 per user.
        active: (S, 2) int8, the two columns of `topics` that the feed shows in a stretch.
        stretch_offsets: (U + 1,) int64, the first stretch of each user.
        events: (U,) int64, the number of events of each user.
    """

    topics: Int8Array
    affinity: Float32Array
    active: Int8Array
    stretch_offsets: Int64Array
    events: Int64Array


@dataclass(frozen=True)
class Requests:
    """R requests in time order, as columns (R,).

    Attributes:
        user: Index of the user, from 0.
        time_ms: Milliseconds since 1970.
        size: The number of items shown.
        tab: FEED, DISCOVER or DISCOVER_TOP.
        stretch: The row of `Population.active` that the feed follows.
    """

    user: Int32Array
    time_ms: Int64Array
    size: Int8Array
    tab: Int8Array
    stretch: Int32Array

    def between(self, start: int, stop: int) -> Requests:
        """Return views of the requests from `start` up to but excluding `stop`."""
        part = slice(start, stop)
        return Requests(self.user[part], self.time_ms[part], self.size[part], self.tab[part], self.stretch[part])


@dataclass(frozen=True)
class File:
    """One file of the log: its requests from `start` up to but excluding `stop`, and its name without a suffix."""

    number: int
    name: str
    start: int
    stop: int


def target_start_ms(days: int) -> int:
    """Return when the discover requests, which are the targets, begin: milliseconds since 1970."""
    return EPOCH_MS + round(days * DAY_MS * (1 - TARGET_PERIOD_SHARE))


def draw_catalog(rng: np.random.Generator) -> Catalog:
    """Return items with shuffled ids and Zipf-distributed authors."""
    items = ITEMS_PER_TOPIC * TOPICS
    rank = np.exp(rng.random(items) * np.log(AUTHORS_PER_TOPIC)).astype(np.int64)
    author_id = 1 + rank * TOPICS + np.arange(items) % TOPICS
    return Catalog(rng.permutation(items) + 1, author_id.astype(np.int32))


def _draw_request_counts(users: int, events: int, rng: np.random.Generator) -> Int64Array:
    """Requests per user, (users,): log-normal numbers of events, capped at LONGEST_USER, with the wanted sum."""
    weight = rng.lognormal(0.0, LENGTH_SIGMA, users)
    length = weight * (events / weight.sum())
    for _ in range(20):  # the events that the cap removes are spread over the other users
        length = np.minimum(length * (events / length.sum()), LONGEST_USER)
    counts: Int64Array = np.maximum(np.round(length / MEAN_REQUEST), 1).astype(np.int64)
    return counts


def draw_sizes(requests: int, events: int, rng: np.random.Generator) -> Int8Array:
    """Draw the number of rows of each request, 4 to 12, with a given sum.

    Args:
        requests: The number of requests R.
        events: The sum.
        rng: The source of random numbers.

    Returns:
        (R,) int8.

    Raises:
        SpecError: There is no such sum of R numbers from 4 to 12.
    """
    sizes: Int8Array = rng.integers(SMALLEST_REQUEST, LARGEST_REQUEST + 1, requests, dtype=np.int8)
    if not SMALLEST_REQUEST * requests <= events <= LARGEST_REQUEST * requests:
        raise SpecError(f"{events} events do not fit {requests} requests of 4 to 12 rows. Ask for more events.")
    while missing := events - int(sizes.sum(dtype=np.int64)):
        step = 1 if missing > 0 else -1
        candidates = np.flatnonzero(sizes < LARGEST_REQUEST if step > 0 else sizes > SMALLEST_REQUEST)
        chosen = rng.choice(candidates, min(abs(missing), len(candidates)), replace=False)
        sizes[chosen] += np.int8(step)
    return sizes


def _draw_population(events: Int64Array, seed: np.random.SeedSequence) -> Population:
    """Interests of users with these numbers of events, (U,); each chunk of users has its own generator."""
    stretches = (events + STRETCH_EVENTS - 1) // STRETCH_EVENTS
    offsets = offsets_of(stretches)
    firsts = range(0, len(events), USERS_PER_CHUNK)
    parts = [
        _draw_interests(stretches[first : first + USERS_PER_CHUNK], np.random.Generator(np.random.SFC64(child)))
        for first, child in zip(firsts, seed.spawn(len(firsts)), strict=True)
    ]
    topics, affinity, active = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Population(topics, affinity, active, offsets, events)


def _draw_interests(stretches: Int64Array, rng: np.random.Generator) -> tuple[Int8Array, Float32Array, Int8Array]:
    """Topics and affinities, (users, 10) each, and the two active columns of every stretch, (stretches, 2)."""
    users = len(stretches)
    topics = rng.random((users, TOPICS), np.float32).argsort(axis=1)[:, :TOPICS_PER_USER].astype(np.int8)
    affinity = rng.standard_gamma(AFFINITY_SHAPE, (users, TOPICS_PER_USER)) + 1e-6
    affinity *= TOPICS_PER_USER / affinity.sum(axis=1, keepdims=True)
    # Gumbel top-k trick: the two largest of log affinity + Gumbel noise are two draws without replacement by affinity.
    noise = rng.gumbel(size=(int(stretches.sum()), TOPICS_PER_USER))
    keys = np.repeat(np.log(affinity), stretches, axis=0) + noise
    active = np.argpartition(keys, -2, axis=1)[:, -2:].astype(np.int8)
    return topics, affinity.astype(np.float32), active


def draw_requests(
    users: int, events: int, days: int, targets_per_user: int, seed: np.random.SeedSequence
) -> tuple[Requests, Population]:
    """Draw the plan of a log: every request in time order, and the interests of its users.

    Args:
        users: The number of users.
        events: The number of rows of the log.
        days: The length of the period.
        targets_per_user: The mean number of discover requests of a user.
        seed: The source of all random numbers.

    Returns:
        The requests and the population.

    Raises:
        SpecError: There are too few events for so many users.
    """
    for_lengths, for_times, for_interests = seed.spawn(3)
    rng = np.random.Generator(np.random.SFC64(for_lengths))
    counts = _draw_request_counts(users, events, rng)
    offsets = offsets_of(counts)
    size = draw_sizes(int(offsets[-1]), events, rng)
    before = offsets_of(size)  # rows of all earlier requests
    population = _draw_population(np.diff(before[offsets]), for_interests)
    time_ms, tab = np.empty(len(size), np.int64), np.empty(len(size), np.int8)
    firsts = range(0, users, USERS_PER_CHUNK)
    for first, child in zip(firsts, for_times.spawn(len(firsts)), strict=True):
        chunk = np.arange(first, min(first + USERS_PER_CHUNK, users))
        part = slice(offsets[first], offsets[chunk[-1] + 1])
        time_rng = np.random.Generator(np.random.SFC64(child))
        time_ms[part] = _draw_times(counts[chunk], size[part], days, time_rng)
        tab[part] = _draw_tabs(counts[chunk], time_ms[part], target_start_ms(days), targets_per_user, time_rng)
    user = np.repeat(np.arange(users, dtype=np.int32), counts)
    stretch = (before[:-1] - before[offsets[user]]) // STRETCH_EVENTS + population.stretch_offsets[user]
    order = np.argsort(time_ms, kind="stable")
    plan = Requests(user[order], time_ms[order], size[order], tab[order], stretch[order].astype(np.int32))
    return plan, population


def _draw_times(counts: Int64Array, size: Int8Array, days: int, rng: np.random.Generator) -> Int64Array:
    """Request times in ms, (requests,), grouped by user: sessions of about 12 requests, hours apart.

    Within a session, requests are separated by the viewing time and about half a minute. Gaps between sessions are
    exponential, scaled so that the requests of a user fill the time from joining to the end of the period.
    """
    first = np.cumsum(counts) - counts
    within = (10.0 + 6.0 * size + 30.0 * rng.standard_exponential(len(size))) * 1_000
    starts_session = rng.random(len(size), np.float32) < 1 / 12
    starts_session[first] = True
    within[starts_session] = 0.0
    between = np.where(starts_session, rng.standard_exponential(len(size)) + 0.1, 0.0)
    after_last = rng.standard_exponential(len(counts)) + 0.1
    joined = rng.random(len(counts)) * 0.4 * days * DAY_MS
    spare = days * DAY_MS - joined - np.add.reduceat(within, first)
    unit = spare / (np.add.reduceat(between, first) + after_last)
    elapsed = np.cumsum(within + between * np.repeat(unit, counts))
    before_user = np.repeat(elapsed[first] - between[first] * unit - joined, counts)
    times: Int64Array = EPOCH_MS + (elapsed - before_user).astype(np.int64)
    return times


def _draw_tabs(
    counts: Int64Array, time_ms: Int64Array, start_ms: int, targets_per_user: int, rng: np.random.Generator
) -> Int8Array:
    """The tab of each request, (requests,): about `targets_per_user` requests of a user since `start_ms` are discover.

    At most half of them are, so that the feed, and with it the history, continues.
    """
    is_late = time_ms >= start_ms
    candidates = np.add.reduceat(is_late, np.cumsum(counts) - counts, dtype=np.int64)
    chance = np.minimum(0.5, targets_per_user / np.maximum(candidates, 1))
    discover = is_late & (rng.random(len(time_ms)) < np.repeat(chance, counts))
    discover_tab = rng.integers(DISCOVER, DISCOVER_TOP + 1, len(time_ms), dtype=np.int8)
    tabs: Int8Array = np.where(discover, discover_tab, np.int8(FEED))
    return tabs


def split_into_files(
    requests: Requests, smallest: int = ROWS_PER_FILE // 10, largest: int = ROWS_PER_FILE
) -> list[File]:
    """Split the log into files of whole requests, in time order.

    A file holds a day. Days of few rows share a file, and days of many rows are split.

    Args:
        requests: All requests.
        smallest: Days are added to a file until it has about this many rows.
        largest: A file has about this many rows at most.

    Returns:
        The files, numbered from 0.
    """
    day = (requests.time_ms - EPOCH_MS) // DAY_MS
    present, starts = np.unique(day, return_index=True)
    stops = np.append(starts[1:], len(day))
    rows = np.add.reduceat(requests.size, starts, dtype=np.int64)
    group = (np.cumsum(rows) - rows) // smallest
    files: list[File] = []
    for number in np.unique(group):
        days = np.flatnonzero(group == number)
        first, last = int(present[days[0]]) + 1, int(present[days[-1]]) + 1
        pieces = -(-int(rows[days].sum()) // largest)
        bounds = np.linspace(starts[days[0]], stops[days[-1]], pieces + 1).astype(np.int64).tolist()
        for piece in range(pieces):
            name = f"day-{first:04d}" + (f"-to-{last:04d}" if last > first else "")
            name += f"-part-{piece + 1:03d}" if pieces > 1 else ""
            files.append(File(len(files), name, bounds[piece], bounds[piece + 1]))
    return files
