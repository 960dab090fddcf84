"""What the engines are measured beside: the same log, sorted by user and time and written, by libraries alone.

    python -m longbatch.benchmarks.build_baselines polars|duckdb|spark|spark-fat-rows LOG OUT [HISTORY_LENGTH]

Each run is a process of its own; this file imports nothing else of longbatch but the finder of a Java.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def polars(log: Path, out: Path) -> None:
    """Scan, sort, write Parquet with zstd; in memory, for that is what Polars does fastest."""
    import polars as pl

    pl.scan_parquet(log / "*.parquet").sort("user_id", "event_time").sink_parquet(out, compression="zstd")


def duckdb(log: Path, out: Path) -> None:
    """The same with DuckDB and its defaults."""
    import duckdb as library

    query = f"SELECT * FROM '{log}/*.parquet' ORDER BY user_id, event_time"
    library.sql(f"COPY ({query}) TO '{out}' (FORMAT parquet)")


def _session(out: Path) -> Any:
    """The session that spark-submit has prepared, or one on two cores of this machine."""
    from pyspark.sql import SparkSession

    from longbatch.jobs.engines.java import provide_java

    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return SparkSession.builder.getOrCreate()
    provide_java()
    settings = {"spark.ui.enabled": "false", "spark.driver.memory": "2g", "spark.local.dir": str(out.parent)}
    settings |= {"spark.driver.host": "127.0.0.1", "spark.log.level": "ERROR"}
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def spark(log: Path, out: Path) -> None:
    """Read, repartition by user, sort within partitions, write Parquet with zstd."""
    session = _session(out)
    frame = session.read.parquet(str(log))
    sorted_rows = frame.repartition("user_id").sortWithinPartitions("user_id", "event_time")
    sorted_rows.write.option("compression", "zstd").parquet(str(out))
    session.stop()


def spark_fat_rows(log: Path, out: Path, length: int) -> None:
    """What people write today: a window per user collects each row's history; rows of targets are kept, as Parquet."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    session = _session(out)
    frame = session.read.parquet(str(log))
    event = f.struct("item_id", "event_time", "author_id", "topic", "dwell_ms", "click")
    window = Window.partitionBy("user_id").orderBy("event_time").rowsBetween(-length, -1)
    fat = frame.withColumn("history", f.collect_list(f.when(f.col("tab") == 0, event)).over(window))
    fat.where("tab > 0").write.option("compression", "zstd").parquet(str(out))
    session.stop()


def main() -> None:
    """Run one of them."""
    name, log, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if name == "spark-fat-rows":
        spark_fat_rows(log, out, int(sys.argv[4]))
    else:
        {"polars": polars, "duckdb": duckdb, "spark": spark}[name](log, out)


if __name__ == "__main__":
    main()
