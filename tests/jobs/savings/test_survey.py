"""Surveys of a part of the blocks."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from longbatch.jobs.savings import survey as survey_module
from longbatch.jobs.savings.survey import survey
from longbatch.schemas.format.dataset import Dataset


def test_a_dataset_too_large_for_memory_is_sampled(larger: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "SURVEY_RECORDS", 900)
    part = survey(larger, np.random.default_rng(0))
    assert 0 < len(part.blocks) < sum(len(shard.blocks) for shard in larger.shards)
    assert int(part.history_sizes.sum()) * part.history_scale == pytest.approx(larger.counts.history_events)
    assert len(part.events) * part.event_scale == pytest.approx(larger.counts.stored_with_overlap)
    owner = part.timelines["user_id"].take(part.requests["timeline_row"])
    assert pc.all(pc.equal(owner, part.requests["user_id"])).as_py()
