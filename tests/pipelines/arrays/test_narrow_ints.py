"""Codes of fewer bits: every value comes back, whatever chunks it travelled in."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from longbatch.pipelines.arrays.narrow_ints import narrow, widen, with_codes

EDGE = [-(2**63), 2**63 - 1, 0, 1_700_000_000_000_000, 1_700_000_086_400_000]
chunks = st.lists(st.lists(st.one_of(st.sampled_from(EDGE), st.integers(-9, 9), st.none()), min_size=1), min_size=1)


def sent(frame: pl.DataFrame) -> pa.RecordBatch:
    narrowed, codes = narrow(frame)
    table = narrowed.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    return with_codes(table.to_batches()[0], codes)


@given(chunks)
def test_every_value_is_restored(parts: list[list[int | None]]) -> None:
    frames = [
        pl.DataFrame({"n": part, "string": list(map(str, part))}, schema_overrides={"n": pl.Int64}) for part in parts
    ]
    assert widen([sent(frame) for frame in frames]).equals(pl.concat(frames))


def test_times_of_a_day_in_milliseconds_take_four_bytes() -> None:
    times = pl.DataFrame({"time": [1_700_000_000_000_000, 1_700_000_086_400_000, 1_700_050_000_001_000]})
    narrowed, codes = narrow(times)
    assert narrowed.schema["time"] == pl.UInt32
    assert codes == {"time": (1_700_000_000_000_000, 1_000)}


def test_types_other_than_64_bit_integers_stay_as_they_are() -> None:
    frame = pl.DataFrame(
        {"small": [1, 2], "flag": [True, None], "score": [0.5, None]}, schema_overrides={"small": pl.Int8}
    )
    assert widen([sent(frame), sent(frame)]).equals(pl.concat([frame, frame]))
