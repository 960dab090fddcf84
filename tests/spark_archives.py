"""What a Spark job sends to workers that have only Python: the code as a zip, the dependencies as an archive."""

from __future__ import annotations

import os
import re
import sys
import tarfile
from pathlib import Path

import pyspark

from longbatch.jobs.engines.spark_session import zip_package

NEEDED = (
    "numpy",
    "obstore",
    "polars",
    "pyarrow",
    "pydantic",
    "typing_inspection",
    "annotated_types",
    "typing_extensions",
)


def options_for_bare_workers(folder: Path) -> list[str]:
    """Pack code and dependencies into a folder; return the options of spark-submit that send them along."""
    dependencies = pack_dependencies(folder / "dependencies.tar")
    python = getattr(sys, "_base_executable", sys.executable)  # the interpreter without the virtual environment
    return [
        *("--py-files", str(zip_package(folder / "longbatch.zip"))),
        *("--archives", f"{dependencies}#dependencies"),
        *("--conf", "spark.executorEnv.PYTHONPATH=./dependencies"),
        *("--conf", f"spark.pyspark.python={python}"),
    ]


def pack_dependencies(path: Path) -> Path:
    """Pack the packages that longbatch needs on a worker, as installed here."""
    site = Path(pyspark.__file__).parents[1]

    def without_tests(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if re.search(r"/(tests?|include|__pycache__)(/|$)", info.name) else info

    with tarfile.open(path, "w") as archive:
        for name in sorted(os.listdir(site)):
            if name.split("-")[0].split(".")[0].lstrip("_").startswith(NEEDED) and "dist-info" not in name:
                archive.add(site / name, name, filter=without_tests)
    return path
