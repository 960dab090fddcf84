"""The simulated world: users with interests that return, and the plan of all their requests over time.

A log of N rows is planned as N / 8 requests, and only the plan is held in memory: 2 bytes per row once made, 8
while it is. The plan is sorted by time, cut into files, and each file's rows are drawn on their own, already in
log order, from a generator seeded by (seed, file): no row is ever sorted, files can be drawn on any number of
threads, and the result is the same.

What is planted. Every user likes 10 of 40 topics, by a gamma-distributed long-run affinity. In any stretch of
600 events the feed shows two of them, drawn by affinity, plus 30 % noise. The feed's clicks depend only on
whether a topic is active now, so they say nothing about affinity that the topics shown did not say. Near the end
of the period come discover requests: random exposure to the user's ten topics and to any others, rarely to the
two that the feed shows now. Their labels follow the affinity: they are the targets, and only a long history
tells who likes what. Discover rows must stay out of the history (the spec does that): they come densely, and
their clicks would give the affinities away after some hundred events.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longbatch.schemas.errors import SpecError
from longbatch.schemas.types import Int64Array

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.int8]

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z, the first day of every simulated log
DAY_MS = 86_400_000
TOPICS = 40
TOPICS_PER_USER = 10
STRETCH_EVENTS = 600  # two topics are active for this many events of a user
SMALLEST_REQUEST, LARGEST_REQUEST = 4, 12
MEAN_REQUEST = (SMALLEST_REQUEST + LARGEST_REQUEST) / 2
ITEMS_PER_TOPIC = 4_992  # a multiple of LARGEST_REQUEST, see draw_items
AUTHORS_PER_TOPIC = 50
LONGEST_USER = 40_000
LENGTH_SIGMA = 0.6  # of the log of a user's number of events
FEED, DISCOVER, DISCOVER_TOP = 0, 1, 2  # values of the request feature `tab`
WINDOW_SHARE = 0.2  # the last part of the period, in which discover requests happen
ROWS_PER_FILE = 1_000_000
USERS_PER_CHUNK = 2_048

AFFINITY_SHAPE = 2.0  # of the gamma distribution of affinities


@dataclass(frozen=True)
class Catalogue:
    """Items and their authors; item index i has topic i % TOPICS and popularity rank i // TOPICS.

    `item_id`: (items,) int64, shuffled; `author_id`: (items,) int32, each author writes on one topic.
    """

    item_id: Int64Array
    author_id: Ints


@dataclass(frozen=True)
class Population:
    """Who likes what, and when: U users, S stretches of 600 events.

    `topics`: (U, 10) int8; `affinity`: (U, 10) float32, mean 1 per user; `active`: (S, 2) int8, columns of
    `topics`; `stretch_offsets`: (U + 1,) int64, the stretches of each user; `events`: (U,) int64.
    """

    topics: Bytes
    affinity: Floats
    active: Bytes
    stretch_offsets: Int64Array
    events: Int64Array


@dataclass(frozen=True)
class Requests:
    """All requests of the log in time order; each column is (R,).

    `user` is an index from 0, `size` the number of shown items, `stretch` a row of `Population.active`.
    """

    user: Ints
    time_ms: Int64Array
    size: Bytes
    tab: Bytes
    stretch: Ints

    def between(self, start: int, stop: int) -> "Requests":
        """The requests numbered [start, stop), as views."""
        cut = slice(start, stop)
        return Requests(self.user[cut], self.time_ms[cut], self.size[cut], self.tab[cut], self.stretch[cut])


@dataclass(frozen=True)
class File:
    """One file of the log: the requests [start, stop) and its name without a suffix."""

    number: int
    name: str
    start: int
    stop: int


def window_start_ms(days: int) -> int:
    """When discover requests, the targets, begin."""
    return EPOCH_MS + round(days * DAY_MS * (1 - WINDOW_SHARE))


def draw_catalogue(rng: np.random.Generator) -> Catalogue:
    """Items with shuffled ids and Zipf-distributed authors."""
    items = ITEMS_PER_TOPIC * TOPICS
    rank = np.exp(rng.random(items) * np.log(AUTHORS_PER_TOPIC)).astype(np.int64)
    author_id = 1 + rank * TOPICS + np.arange(items) % TOPICS
    return Catalogue(rng.permutation(items) + 1, author_id.astype(np.int32))


def draw_request_counts(users: int, events: int, rng: np.random.Generator) -> Int64Array:
    """Requests per user, (users,): log-normal lengths, the longest capped, the mean as asked for."""
    weight = rng.lognormal(0.0, LENGTH_SIGMA, users)
    length = weight * (events / weight.sum())
    for _ in range(20):  # capping takes events away, scaling gives them to the others
        length = np.minimum(length * (events / length.sum()), LONGEST_USER)
    counts: Int64Array = np.maximum(np.round(length / MEAN_REQUEST), 1).astype(np.int64)
    return counts


def draw_sizes(requests: int, events: int, rng: np.random.Generator) -> Bytes:
    """Rows per request, (requests,) int8 in [4, 12], with exactly `events` rows in all."""
    sizes: Bytes = rng.integers(SMALLEST_REQUEST, LARGEST_REQUEST + 1, requests, dtype=np.int8)
    if not SMALLEST_REQUEST * requests <= events <= LARGEST_REQUEST * requests:
        raise SpecError(f"{events} events do not fit {requests} requests of 4 to 12 rows; ask for more events")
    while missing := events - int(sizes.sum(dtype=np.int64)):
        step = 1 if missing > 0 else -1
        room = np.flatnonzero(sizes < LARGEST_REQUEST if step > 0 else sizes > SMALLEST_REQUEST)
        chosen = rng.choice(room, min(abs(missing), len(room)), replace=False)
        sizes[chosen] += np.int8(step)
    return sizes


def draw_population(events: Int64Array, seed: np.random.SeedSequence) -> Population:
    """Interests of users with the given numbers of events, (U,), each chunk of users from its own generator."""
    stretches = (events + STRETCH_EVENTS - 1) // STRETCH_EVENTS
    offsets = np.concatenate(([0], np.cumsum(stretches)))
    firsts = range(0, len(events), USERS_PER_CHUNK)
    parts = [
        draw_interests(stretches[first : first + USERS_PER_CHUNK], np.random.Generator(np.random.SFC64(child)))
        for first, child in zip(firsts, seed.spawn(len(firsts)), strict=True)
    ]
    topics, affinity, active = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Population(topics, affinity, active, offsets, events)


def draw_interests(stretches: Int64Array, rng: np.random.Generator) -> tuple[Bytes, Floats, Bytes]:
    """Topics and affinities, (users, 10) each, and the two active columns of every stretch, (stretches, 2)."""
    users = len(stretches)
    topics = rng.random((users, TOPICS), np.float32).argsort(axis=1)[:, :TOPICS_PER_USER].astype(np.int8)
    affinity = rng.standard_gamma(AFFINITY_SHAPE, (users, TOPICS_PER_USER)) + 1e-6
    affinity *= TOPICS_PER_USER / affinity.sum(axis=1, keepdims=True)
    # Gumbel noise on log affinities: the two largest are two draws without replacement, by affinity.
    noise = rng.gumbel(size=(int(stretches.sum()), TOPICS_PER_USER))
    keys = np.repeat(np.log(affinity), stretches, axis=0) + noise
    active = np.argpartition(keys, -2, axis=1)[:, -2:].astype(np.int8)
    return topics, affinity.astype(np.float32), active


def draw_requests(
    users: int, events: int, days: int, targets_per_user: int, seed: np.random.SeedSequence
) -> tuple[Requests, Population]:
    """The plan of the whole log: every request in time order, and the interests behind them."""
    for_lengths, for_times, for_interests = seed.spawn(3)
    rng = np.random.Generator(np.random.SFC64(for_lengths))
    counts = draw_request_counts(users, events, rng)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    size = draw_sizes(int(offsets[-1]), events, rng)
    before = np.concatenate(([0], np.cumsum(size, dtype=np.int64)))  # rows of all earlier requests
    population = draw_population(np.diff(before[offsets]), for_interests)
    time_ms, tab = np.empty(len(size), np.int64), np.empty(len(size), np.int8)
    firsts = range(0, users, USERS_PER_CHUNK)
    for first, child in zip(firsts, for_times.spawn(len(firsts)), strict=True):
        chunk = np.arange(first, min(first + USERS_PER_CHUNK, users))
        cut = slice(offsets[first], offsets[chunk[-1] + 1])
        time_rng = np.random.Generator(np.random.SFC64(child))
        time_ms[cut] = draw_times(counts[chunk], size[cut], days, time_rng)
        tab[cut] = draw_tabs(counts[chunk], time_ms[cut], window_start_ms(days), targets_per_user, time_rng)
    user = np.repeat(np.arange(users, dtype=np.int32), counts)
    stretch = (before[:-1] - before[offsets[user]]) // STRETCH_EVENTS + population.stretch_offsets[user]
    order = np.argsort(time_ms, kind="stable")
    plan = Requests(user[order], time_ms[order], size[order], tab[order], stretch[order].astype(np.int32))
    return plan, population


def draw_times(counts: Int64Array, size: Bytes, days: int, rng: np.random.Generator) -> Int64Array:
    """Request times in ms, (requests,), users one after another: sessions of about 12 requests, hours apart.

    Requests of a session follow each other by the viewing time and half a minute; the gaps between sessions are
    exponential and stretched so that each user's requests fill the time from joining to the end of the period.
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


def draw_tabs(
    counts: Int64Array, time_ms: Int64Array, start_ms: int, targets_per_user: int, rng: np.random.Generator
) -> Bytes:
    """The tab of each request, (requests,): about `targets_per_user` of a user's newest are discover requests.

    At most every second request in the window is one, so that the feed, and the history, goes on.
    """
    in_window = time_ms >= start_ms
    candidates = np.add.reduceat(in_window, np.cumsum(counts) - counts, dtype=np.int64)
    chance = np.minimum(0.5, targets_per_user / np.maximum(candidates, 1))
    discover = in_window & (rng.random(len(time_ms)) < np.repeat(chance, counts))
    kind = rng.integers(DISCOVER, DISCOVER_TOP + 1, len(time_ms), dtype=np.int8)
    tabs: Bytes = np.where(discover, kind, np.int8(FEED))
    return tabs


def cut_files(requests: Requests, smallest: int = ROWS_PER_FILE // 10, largest: int = ROWS_PER_FILE) -> list[File]:
    """One file per day in time order; short days share a file, and a day of more than `largest` rows is cut."""
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
