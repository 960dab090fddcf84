"""Ranks end together, workers that die are told of, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from longbatch.loaders import RequestDataset, make_dataloader
from longbatch.schemas.errors import DatasetError

RANK = """
import sys
import torch.distributed as dist
from longbatch.loaders import RequestDataset, RequestLoader
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
for path in sys.argv[3:]:
    steps = 0
    for _ in RequestLoader(RequestDataset(path, batch_size=1), num_workers=1):
        dist.barrier()
        steps += 1
    dist.barrier()
    print(steps)
dist.destroy_process_group()
"""


def test_two_gloo_ranks_end_together_whatever_the_number_of_requests(tmp_path, rows):
    event, target, request, _, write_dataset, _ = rows
    timelines = [{"user_id": 1, "segment": 0, "events": [event(10, 1)]}]
    paths = []
    for requests in (0, 1, 2, 3):
        shards = [[(timelines, [request(n, 1, 0, 2, 1, [target(20)]) for n in range(requests)])]] if requests else []
        paths.append(str(write_dataset(tmp_path / str(requests), shards)))
    command = [sys.executable, "-c", RANK, str(tmp_path / "meet")]
    ranks = [subprocess.Popen([*command, str(r), *paths], stdout=subprocess.PIPE, text=True) for r in range(2)]
    steps = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert steps == [["0", "1", "1", "2"]] * 2


DYING = """
import os, signal, sys
from longbatch.loaders import RequestDataset, make_dataloader
loader = make_dataloader(RequestDataset(sys.argv[1], batch_size=1), num_workers=1)
batches = iter(loader)
next(batches)
os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
list(batches)
"""


def test_a_worker_that_dies_is_told_of_and_leaves_nothing(random_dataset):
    before = set(os.listdir("/dev/shm"))
    # in a process of its own: torch raises out of the handler of SIGCHLD, wherever the main thread then is
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(random_dataset)], capture_output=True, text=True, timeout=60
    )
    assert died.returncode == 1
    assert re.search(r"RuntimeError: DataLoader worker .* (killed by signal|exited unexpectedly)", died.stderr)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith(("torch", "pym"))}


def test_an_error_in_a_worker_comes_with_its_traceback(random_dataset, tmp_path):
    path = shutil.copytree(random_dataset, tmp_path / "damaged")
    shard = next((path / "requests").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    loader = make_dataloader(RequestDataset(path), num_workers=1)
    with pytest.raises(
        DatasetError, match=r"(?s)worker process 0.*Original Traceback.*reader\.py.*was altered: its crc32"
    ):
        list(loader)


def test_nothing_is_left_when_the_main_process_is_killed(random_dataset):
    code = f"""
    import time
    from longbatch.loaders import RequestDataset, make_dataloader
    for batch in make_dataloader(RequestDataset({str(random_dataset)!r}, batch_size=1), num_workers=2):
        print("ready", flush=True)
        time.sleep(60)
    """
    folder = tempfile.mkdtemp(dir="/tmp")  # short: the paths of the workers' sockets have room for 107 characters
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": folder},
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 20
    while set(os.listdir("/dev/shm")) - before and time.monotonic() < end:
        time.sleep(0.2)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith(("torch", "pym"))}
    assert not [path for path in Path(folder).rglob("*") if path.is_file()]
    shutil.rmtree(folder)
