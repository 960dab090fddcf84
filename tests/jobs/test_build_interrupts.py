"""A build that gets Ctrl-C or SIGTERM ends promptly and leaves no file."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from child_processes import child_process

pytestmark = pytest.mark.slow

SPEC = """
[sources.log]
path = "log.csv"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
"""
# Each chunk takes a while and there are many: without an interrupt this build takes minutes.
SLOW_BUILD = """
import os
import sys
import time
from longbatch.jobs.build import build
from longbatch.jobs.engines import local
from longbatch.jobs.readers import chunks
from longbatch.schemas.spec.build_spec import load_spec

canonicalize_chunk = local.canonicalize_chunk

def slowly(*arguments):
    os.write(1, b"scanning\\n")  # one call: two threads do not mix their lines
    time.sleep(0.2)
    return canonicalize_chunk(*arguments)

local.canonicalize_chunk = slowly
chunks.CHUNK_BYTES = 64
try:
    build(load_spec("spec.toml"), "dataset", engine=local.LocalEngine(2))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_while_it_scans_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "log.csv").write_text("user,item,time\n" + "7,1,1700000000\n" * 20_000)
    with child_process([sys.executable, "-c", SLOW_BUILD], cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "scanning\n"
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "spec.toml"]
