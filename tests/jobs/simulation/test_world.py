"""The plan of requests: sizes, users, files."""

from __future__ import annotations

import numpy as np
import pytest

from longbatch.jobs.simulation.world import (
    LARGEST_REQUEST,
    draw_requests,
    draw_sizes,
    split_into_files,
)
from longbatch.schemas.errors import SpecError


def test_some_users_have_more_than_10000_events_at_a_mean_of_4000() -> None:
    plan, population = draw_requests(300, 1_200_000, 60, 40, np.random.SeedSequence(0))
    assert population.events.sum() == plan.size.sum(dtype=np.int64) == 1_200_000
    assert 3 <= (population.events > 10_000).sum() <= 40
    assert population.events.max() < 42_000


@pytest.mark.parametrize("events", [400, 781, 1_200])
def test_sizes_add_up_exactly(events: int) -> None:
    sizes = draw_sizes(100, events, np.random.default_rng(0))
    assert sizes.sum(dtype=np.int64) == events
    assert sizes.min() >= 4
    assert sizes.max() <= LARGEST_REQUEST


def test_sizes_that_cannot_add_up_are_rejected() -> None:
    with pytest.raises(SpecError, match="1300 events do not fit 100 requests"):
        draw_sizes(100, 1_300, np.random.default_rng(0))


def test_files_contain_every_request_once_and_stay_below_their_limit() -> None:
    plan, _ = draw_requests(20, 100_000, 14, 10, np.random.SeedSequence(0))
    files = split_into_files(plan, smallest=2_000, largest=5_000)
    assert [file.start for file in files] == [0, *(file.stop for file in files[:-1])]
    assert files[-1].stop == len(plan.user)
    assert len({file.name for file in files}) == len(files)
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert max(plan.size[f.start : f.stop].sum(dtype=np.int64) for f in files) <= 5_000 + LARGEST_REQUEST
