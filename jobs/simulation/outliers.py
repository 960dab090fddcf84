"""Users that the policies of a corrupt log's spec leave out: bots, with more events than any regular user, and newcomers.

Both are new users whose rows are copies of clean rows; each of their rows is a request of its own.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.schemas.types import Int64Array

from .world import DISCOVER, FEED, Requests

BOTS = 2
BOT_TARGETS = 50
NEWCOMERS = 50
NEWCOMER_TARGETS = 2
MIN_EVENTS = 5


@dataclass(frozen=True)
class Limits:
    """How many events the spec of a corrupt log lets a user have; every regular user keeps them."""

    max_events: int
    min_events: int


def regular_limits(requests: Requests, users: int) -> Limits:
    """The most events that an regular user has, and MIN_EVENTS, or the fewest if that is less."""
    events = np.bincount(requests.user, np.where(requests.tab == FEED, requests.size, 0), minlength=users)
    return Limits(max(1, int(events.max())), min(MIN_EVENTS, int(events.min())))


def draw_outliers(
    log: pl.DataFrame, limits: Limits, first_user: int, first_id: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    """The rows of all outliers, copied from those of one file, and for each table how many a policy leaves out.

    A bot has an event a millisecond. Users get ids from `first_user` on, requests from `first_id` on.
    """
    bot_events = limits.max_events + 1
    bots = draw_copies(log, first_user, BOTS, bot_events, BOT_TARGETS, rng)
    clock = pl.Series(log.item(0, "request_time") + np.tile(np.arange(bot_events + BOT_TARGETS), BOTS))
    bots = bots.with_columns(request_time=clock, event_time=clock, arrival_time=clock)
    newcomers, few = (NEWCOMERS, limits.min_events - 1) if limits.min_events else (0, 0)
    rows = pl.concat([bots, draw_copies(log, first_user + BOTS, newcomers, few, NEWCOMER_TARGETS, rng)])
    rows = rows.with_columns(request_id=pl.Series(first_id + np.arange(rows.height)))
    planted = {
        "history": {"rejected_user": BOTS * bot_events, "short_history": newcomers * few},
        "requests": {"rejected_user": BOTS * BOT_TARGETS, "short_history": newcomers * NEWCOMER_TARGETS},
    }
    return rows, planted


def draw_copies(
    log: pl.DataFrame, first_user: int, users: int, events: int, targets: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Copies of random rows as the events and targets of new users, one user after another."""
    tabs: Int64Array = np.repeat([FEED, DISCOVER], [events, targets])
    copies = log[rng.integers(0, log.height, users * len(tabs))]
    return copies.with_columns(
        user_id=pl.Series(np.repeat(first_user + np.arange(users), len(tabs))),
        tab=pl.Series(np.tile(tabs, users), dtype=log.schema["tab"]),
    )
