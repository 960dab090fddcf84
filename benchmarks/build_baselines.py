"""The baselines of `longbatch bench build`: the same log, sorted by user and time and written, by libraries alone.

    python -m longbatch.benchmarks.build_baselines polars|duckdb|spark|spark-fat-rows LOG OUT [HISTORY_LENGTH]

Each run is a process of its own. This file imports nothing of longbatch except the module that locates Java.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def polars(log: Path, out: Path) -> None:
    """Scan, sort and write Parquet with zstd, in memory, which is the fastest way in Polars.

    Args:
        log: Folder of the log.
        out: File to write.
    """
    import polars as pl

    pl.scan_parquet(log / "*.parquet").sort("user_id", "event_time").sink_parquet(out, compression="zstd")


def duckdb(log: Path, out: Path) -> None:
    """Do the same with DuckDB and its defaults.

    Args:
        log: Folder of the log.
        out: File to write.
    """
    import duckdb as library

    query = f"SELECT * FROM '{log}/*.parquet' ORDER BY user_id, event_time"
    library.sql(f"COPY ({query}) TO '{out}' (FORMAT parquet)")


def _session(out: Path) -> SparkSession:
    """The session that spark-submit prepared, or one on two cores of this machine."""
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
    """Read, repartition by user, sort within partitions and write Parquet with zstd.

    Args:
        log: Folder of the log.
        out: Folder to write.
    """
    session = _session(out)
    frame = session.read.parquet(str(log))
    sorted_rows = frame.repartition("user_id").sortWithinPartitions("user_id", "event_time")
    sorted_rows.write.option("compression", "zstd").parquet(str(out))
    session.stop()


def spark_fat_rows(log: Path, out: Path, length: int) -> None:
    """Collect each row's history with a window function per user, and write the rows of targets as Parquet.

    This is the usual way to build training samples in Spark.

    Args:
        log: Folder of the log.
        out: Folder to write.
        length: Newest events of each history.
    """
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
    """Run the baseline that the command line names."""
    name, log, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if name == "spark-fat-rows":
        spark_fat_rows(log, out, int(sys.argv[4]))
    else:
        {"polars": polars, "duckdb": duckdb, "spark": spark}[name](log, out)


if __name__ == "__main__":
    main()
