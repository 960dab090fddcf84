"""The Spark session of a build: the active one, the one that spark-submit prepared, or one of our own.

It may be a session of Spark Connect, which has no `sparkContext`, no Java in this process, and on managed services few
settings and no `persist`.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from longbatch.schemas.errors import MachineError

from .java import provide_java

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

# Settings of a local session of our own: quiet, ports on loopback only, and all files in the scratch folder.
LOCAL_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.local.dir": "{scratch}",
    "spark.sql.warehouse.dir": "{scratch}/warehouse",
    "spark.driver.extraJavaOptions": '-XX:TieredStopAtLevel=1 -XX:-UsePerfData -Djava.io.tmpdir="{java}"',
}
CONNECT_SCHEME, CONNECT_PORT, CONNECT_SECONDS = "sc://", 15002, 10
EXECUTOR_FOLDERS = ("schemas", "validation", "pipelines", "jobs")


@contextmanager
def open_session(master: str | None, scratch: Path) -> Iterator[SparkSession]:
    """Get a Spark session for the block. One that is active already is left running at the end.

    Args:
        master: Master of a new session, or `sc://host:port` of a Spark Connect server; default: the one of
            spark-submit, else `local[*]`.
        scratch: Folder for temporary files of a new local session.

    Yields:
        The session.

    Raises:
        MachineError: PySpark, Java or the client of Spark Connect is missing, or no server answers.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise MachineError('The spark engine needs pyspark: pip install "longbatch[spark]".') from None
    # A notebook or a test has its own session, whose settings and tables we must use and which we must not stop.
    active = SparkSession.getActiveSession()
    if active is not None:
        yield active
    elif master and master.startswith(CONNECT_SCHEME):
        session = _connect(master)
        try:
            yield session
        finally:
            session.stop()
    else:
        session = _new_session(master, scratch)
        try:
            yield session
        finally:
            _stop(session)


@contextmanager
def session_setting(session: SparkSession, key: str, value: str) -> Iterator[None]:
    """Change a setting of the session for the block, if the session allows it.

    Args:
        session: The session.
        key: Name of a setting that saves time or memory; the result must not depend on it.
        value: Its value.
    """
    from pyspark.errors import PySparkException

    # Restored, because the session may belong to someone else.
    try:
        before = session.conf.get(key)
        session.conf.set(key, value)
    except PySparkException as error:
        # Managed services allow few settings.
        logger.debug("Spark refused %s=%s: %s", key, value, error)
        yield
        return
    try:
        yield
    finally:
        session.conf.set(key, before)


def _connect(url: str) -> SparkSession:
    from pyspark.sql import SparkSession

    _check_reachable(url)
    try:
        session = SparkSession.builder.remote(url).getOrCreate()
    except ImportError as error:  # grpc and others, which pyspark does not require
        raise MachineError(f'Spark Connect needs more packages: pip install "pyspark[connect]" ({error}).') from None
    with tempfile.TemporaryDirectory(prefix="longbatch-") as folder:
        # The server's Python then has this version of longbatch, whether it has one of its own or none.
        session.addArtifacts(str(zip_package(Path(folder, "longbatch.zip"))), pyfile=True)
    return session


def zip_package(path: Path) -> Path:
    """Pack the part of longbatch that runs on executors, in the layout of the wheel.

    Args:
        path: The new file.

    Returns:
        The same path, for `spark-submit --py-files` or `session.addArtifacts(path, pyfile=True)`.
    """
    package = Path(__file__).parents[2]
    with zipfile.ZipFile(path, "w") as archive:
        for file in package.glob("*.py"):
            archive.write(file, f"{package.name}/{file.name}")
        for folder in EXECUTOR_FOLDERS:
            # In a checkout the folders are links, which `rglob` does not follow.
            root = (package / folder).resolve()
            for file in root.rglob("*.py"):
                archive.write(file, f"{package.name}/{folder}/{file.relative_to(root).as_posix()}")
    return path


def _check_reachable(url: str) -> None:
    """Raise MachineError if nothing listens at the address: Spark would retry for minutes."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or CONNECT_PORT), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise MachineError(
            f"No Spark Connect server answers at {address.hostname}:{address.port or CONNECT_PORT}: {error}. "
            "Start one, or check --master."
        ) from None


def _new_session(master: str | None, scratch: Path) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("longbatch build")
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit has set up Java, the master and all settings
        return builder.getOrCreate()
    provide_java()
    # Workers would start the first python3 on the PATH, which may lack longbatch.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    scratch.mkdir(parents=True, exist_ok=True)
    if master:
        builder = builder.master(master)
    # A cluster has its own settings, which these would override.
    for key, value in LOCAL_SETTINGS.items() if (master or "local").startswith("local") else ():
        builder = builder.config(key, value.format(scratch=scratch, java=_java_folder()))
    return builder.getOrCreate()


def _stop(session: SparkSession) -> None:
    """Stop a session, and make Java forget its scratch folder, because the next session has another one."""
    java: Any = session.sparkContext._jvm
    session.stop()
    getattr(getattr(java.org.apache.spark.util, "Utils$"), "MODULE$").clearLocalRootDirs()


@cache
def _java_folder() -> str:
    """A folder for the temporary files of Java, which outlives every session of this process."""
    folder = tempfile.mkdtemp(prefix="longbatch-spark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
