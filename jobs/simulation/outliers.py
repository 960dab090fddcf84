"""Outlier users, which policies leave out of a corrupt log: bots with too many events, and newcomers with too few.

Both are added users whose rows are copies of clean rows. Each of their rows is a request of its own.
"""

from __future__ import annotations

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
    """How many events the spec of a corrupt log lets a user have; every regular user is within these limits."""

    max_events: int
    min_events: int


def regular_limits(requests: Requests, users: int) -> Limits:
    """Return limits that every regular user keeps.

    Args:
        requests: The requests of the regular users.
        users: The number of regular users.

    Returns:
        The most events of a user; and MIN_EVENTS, or the fewest events of a user if that is less.
    """
    events = np.bincount(requests.user, np.where(requests.tab == FEED, requests.size, 0), minlength=users)
    return Limits(max(1, int(events.max())), min(MIN_EVENTS, int(events.min())))


def draw_outliers(
    log: pl.DataFrame, limits: Limits, first_user: int, first_id: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    """Draw the rows of all outlier users as copies of the rows of one file. A bot has one event per millisecond.

    Args:
        log: The clean rows of the file.
        limits: How many events a user may have.
        first_user: The id of the first outlier user; the others follow.
        first_id: The id of the first request; the others follow.
        rng: The source of random numbers.

    Returns:
        The rows, and the number of rows by table of the spec, then by policy.
    """
    bot_events = limits.max_events + 1
    bots = _draw_copies(log, first_user, BOTS, bot_events, BOT_TARGETS, rng)
    clock = pl.Series(log.item(0, "request_time") + np.tile(np.arange(bot_events + BOT_TARGETS), BOTS))
    bots = bots.with_columns(request_time=clock, event_time=clock, arrival_time=clock)
    newcomers, newcomer_events = (NEWCOMERS, limits.min_events - 1) if limits.min_events else (0, 0)
    rows = pl.concat([bots, _draw_copies(log, first_user + BOTS, newcomers, newcomer_events, NEWCOMER_TARGETS, rng)])
    rows = rows.with_columns(request_id=pl.Series(first_id + np.arange(rows.height)))
    planted = {
        "history": {"rejected_user": BOTS * bot_events, "short_history": newcomers * newcomer_events},
        "requests": {"rejected_user": BOTS * BOT_TARGETS, "short_history": newcomers * NEWCOMER_TARGETS},
    }
    return rows, planted


def _draw_copies(
    log: pl.DataFrame, first_user: int, users: int, events: int, targets: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Copies of random rows as the events and targets of new users, one user after another."""
    tabs: Int64Array = np.repeat([FEED, DISCOVER], [events, targets])
    copies = log[rng.integers(0, log.height, users * len(tabs))]
    return copies.with_columns(
        user_id=pl.Series(np.repeat(first_user + np.arange(users), len(tabs))),
        tab=pl.Series(np.tile(tabs, users), dtype=log.schema["tab"]),
    )
