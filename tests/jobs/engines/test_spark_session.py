"""Sessions of a build: addresses of Spark Connect, and settings that a session may refuse."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyspark")
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from longbatch.jobs.engines.spark_session import open_session, session_setting
from longbatch.schemas.errors import MachineError


class Settings(dict[str, str]):
    """The settings of a session that allows to change only those it has."""

    def set(self, key: str, value: str) -> None:
        if key not in self:
            raise PySparkException("CANNOT_MODIFY_CONFIG")
        self[key] = value


def test_a_setting_is_restored_after_the_block() -> None:
    session: Any = SimpleNamespace(conf=Settings(size="10"))
    with session_setting(session, "size", "3"):
        assert session.conf["size"] == "3"
    assert session.conf["size"] == "10"


def test_a_refused_setting_changes_nothing() -> None:
    session: Any = SimpleNamespace(conf=Settings())
    with session_setting(session, "size", "3"):
        assert session.conf == {}


def test_a_server_that_does_not_answer_is_an_error_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests of this process may have left a session, which would be used.
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        message = rf"No Spark Connect server answers at {address}: .*refused\. Start one, or check --master\.$"
        with pytest.raises(MachineError, match=message), open_session(f"sc://{address}/;token=secret", tmp_path):
            pass
