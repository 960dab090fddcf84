"""The files of examples/kubernetes fit each other, the command line and Spark. The image itself is not built here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from command_line import run_command
from paths import ROOT
from three_row_log import write_three_row_log

FOLDER = ROOT / "examples" / "kubernetes"
PRINT_ARGUMENTS = '#!/bin/sh\nfor argument in "$0" "$@"; do echo "$argument"; done\n'
RUN_COMMAND = '#!/bin/sh\nshift 2\nexec "$@"\n'
EXECUTOR = {
    "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@driver:7078",
    "SPARK_EXECUTOR_ID": "3",
    "SPARK_EXECUTOR_CORES": "4",
    "SPARK_EXECUTOR_MEMORY": "2g",
    "SPARK_APPLICATION_ID": "spark-1",
    "SPARK_EXECUTOR_POD_IP": "10.0.0.7",
    "SPARK_EXECUTOR_POD_NAME": "pod-3",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_JAVA_OPT_0": "-Dname=a value",
    "SPARK_JAVA_OPT_1": "--add-opens=java.base/java.nio=ALL-UNNAMED",
}


def start(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """Run the entrypoint with a `tini`, `java` and `spark-submit` that print their arguments, and return the lines."""
    for name, script in {"tini": RUN_COMMAND, "java": PRINT_ARGUMENTS, "spark-submit": PRINT_ARGUMENTS}.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        [str(FOLDER / "entrypoint.sh"), *arguments],
        env={"PATH": path, "SPARK_HOME": str(folder), "JAVA_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


def test_a_driver_is_submitted_in_client_mode(tmp_path: Path) -> None:
    main = "local:///opt/longbatch/lib/python3.11/site-packages/longbatch/__main__.py"
    lines = start(tmp_path, "driver", "--class", "PythonRunner", main, "build", SPARK_DRIVER_BIND_ADDRESS="10.0.0.7")
    assert lines[0].endswith("/bin/spark-submit")
    assert lines[1:] == [
        *("--conf", "spark.driver.bindAddress=10.0.0.7", "--deploy-mode", "client"),
        *("--class", "PythonRunner", main, "build"),
    ]


def test_an_executor_gets_its_settings_from_the_environment(tmp_path: Path) -> None:
    lines = start(tmp_path, "executor", **EXECUTOR)
    assert lines[0].endswith("/bin/java")
    assert lines[1:5] == ["-Dname=a value", EXECUTOR["SPARK_JAVA_OPT_1"], "-Xms2g", "-Xmx2g"]
    options = dict(zip(lines[8::2], lines[9::2], strict=True))
    assert options == {
        "--driver-url": EXECUTOR["SPARK_DRIVER_URL"],
        "--executor-id": "3",
        "--cores": "4",
        "--app-id": "spark-1",
        "--hostname": "10.0.0.7",
        "--resourceProfileId": "0",
        "--podName": "pod-3",
    }


@pytest.mark.spark
def test_the_backend_that_the_executor_starts_is_part_of_spark() -> None:
    pyspark = pytest.importorskip("pyspark")
    (backend,) = re.findall(r"org\.apache\.spark\.\S+ExecutorBackend", (FOLDER / "entrypoint.sh").read_text())
    (jar,) = (Path(pyspark.__file__).parent / "jars").glob("spark-kubernetes_*.jar")
    assert backend.replace(".", "/").encode() in jar.read_bytes()


def test_another_command_runs_as_it_is(tmp_path: Path) -> None:
    assert start(tmp_path, "echo", "two words")[0] == "two words"


def job() -> dict[str, Any]:
    (document,) = yaml.safe_load_all((FOLDER / "job.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_the_arguments_of_the_job_build_a_dataset(tmp_path: Path) -> None:
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    write_three_row_log(tmp_path)
    command, *arguments = [argument.replace("/shared", str(tmp_path)) for argument in container["args"]]
    assert command == "longbatch"
    built = run_command(*arguments)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "metrics.json").exists()


def test_the_job_mounts_the_volume_that_it_declares_and_does_not_retry_bad_input() -> None:
    spec = job()["spec"]
    pod = spec["template"]["spec"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]


def test_the_image_installs_what_the_page_and_the_entrypoint_name() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (home,) = re.findall(r"SPARK_HOME=(\S+)/pyspark$", dockerfile, re.MULTILINE)
    assert f"local://{home}/longbatch/__main__.py" in page
    assert "COPY examples/kubernetes/entrypoint.sh /opt/entrypoint.sh" in dockerfile
    assert re.search(r"apt-get install .* tini ", dockerfile)
