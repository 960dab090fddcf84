"""What travels with a job to workers that have nothing but Python: the code as a zip, the dependencies as an archive."""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pyspark

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "validation", "pipelines", "jobs")
NEEDED = ("numpy", "polars", "pyarrow", "pydantic", "typing_inspection", "annotated_types", "typing_extensions")


def sent_along(folder: Path) -> list[str]:
    """Pack code and dependencies into a folder; the options of spark-submit that send them to bare interpreters."""
    dependencies, python = (
        pack_dependencies(folder / "dependencies.tar"),
        getattr(sys, "_base_executable", sys.executable),
    )
    return [
        *("--py-files", str(pack_code(folder / "longbatch.zip"))),
        *("--archives", f"{dependencies}#dependencies"),
        *("--conf", "spark.executorEnv.PYTHONPATH=./dependencies"),
        *("--conf", f"spark.pyspark.python={python}"),
    ]


def pack_code(path: Path) -> Path:
    """The package as a zip, in the layout of the wheel."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in (ROOT / "src" / "longbatch").glob("*.py"):
            archive.write(file, f"longbatch/{file.name}")
        for folder in FOLDERS:
            for file in (ROOT / folder).glob("*.py"):
                archive.write(file, f"longbatch/{folder}/{file.name}")
    return path


def pack_dependencies(path: Path) -> Path:
    """What longbatch needs on a worker, as installed here."""
    site = Path(pyspark.__file__).parents[1]

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if re.search(r"/(tests?|include|__pycache__)(/|$)", info.name) else info

    with tarfile.open(path, "w") as archive:
        for name in sorted(os.listdir(site)):
            if name.split("-")[0].split(".")[0].lstrip("_").startswith(tuple(NEEDED)) and "dist-info" not in name:
                archive.add(site / name, name, filter=wanted)
    return path
