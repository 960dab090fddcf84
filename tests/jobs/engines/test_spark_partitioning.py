"""Keys that send rows to chosen partitions, compared with Murmur3 as Spark computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from longbatch.jobs.engines.spark_partitioning import PARTITION_KEY, partition_keys

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def spark_hash(value: int) -> int:
    """Spark's `hash` of one 32-bit integer, step by step."""

    def rotate_left(bits: int, count: int) -> int:
        return (bits << count | bits >> (32 - count)) & 0xFFFFFFFF

    block = rotate_left((value & 0xFFFFFFFF) * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
    hashed = (rotate_left(42 ^ block, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF ^ 4
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return hashed ^ hashed >> 16


def test_the_hash_of_a_key_is_the_number_of_its_partition() -> None:
    partitions = np.arange(70_000)
    assert [spark_hash(key) for key in partition_keys(partitions).tolist()] == partitions.tolist()


@pytest.mark.spark
@pytest.mark.parametrize("partitions", [1, 7, 300])
def test_spark_gives_each_key_a_partition_of_its_own(spark_session: SparkSession, partitions: int) -> None:
    keys = [(key,) for key in partition_keys(np.arange(partitions)).tolist()]
    rows = spark_session.createDataFrame(keys, f"{PARTITION_KEY} int").repartition(partitions, PARTITION_KEY)
    numbered = rows.selectExpr(PARTITION_KEY, "spark_partition_id() AS partition").orderBy("partition").collect()
    assert [tuple(row) for row in numbered] == [(*key, number) for number, key in enumerate(keys)]
