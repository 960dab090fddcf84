"""Processes: batches from any start method, ranks that end together, dead workers, nothing left behind."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from block_rows import event, exact_contents, request, request_ids, target, timeline, write_dataset
from child_processes import HANG_SECONDS, child_process

from longbatch.loaders import RequestDataset, make_dataloader
from longbatch.loaders.batch import Histories
from longbatch.schemas.errors import DatasetError

pytestmark = pytest.mark.slow


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


def test_two_ranks_take_the_same_number_of_steps(tmp_path: Path) -> None:
    timelines = [timeline(1, [event(10, 1)])]
    paths = []
    for requests in (0, 1, 2, 3):
        shards = [[(timelines, [request(n, 1, 0, 2, 1, [target(20)]) for n in range(requests)])]] if requests else []
        paths.append(str(write_dataset(tmp_path / str(requests), shards)))
    command = [sys.executable, "-c", RANK, str(tmp_path / "rendezvous")]
    with ExitStack() as children:
        ranks = [children.enter_context(child_process([*command, str(rank), *paths])) for rank in range(2)]
        steps = [rank.communicate()[0].split() for rank in ranks]
    assert steps == [["0", "1", "1", "2"]] * 2


RANK_WITH_WORKERS = """
import os, sys
import torch.distributed as dist
from longbatch.loaders import RequestDataset, make_dataloader
_, rendezvous, rank, start_method, path = sys.argv
assert not {"RANK", "WORLD_SIZE"} & set(os.environ)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
loader = make_dataloader(RequestDataset(path, batch_size=16), num_workers=1)
loader.multiprocessing_context = start_method
print(*(request_id for batch in loader for request_id in batch.request_id.tolist()))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_workers_of_any_start_method_know_the_rank_of_the_process_group(
    random_dataset: Path, tmp_path: Path, start_method: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-c", RANK_WITH_WORKERS, str(tmp_path / "rendezvous")]
    with ExitStack() as children:
        ranks = [
            children.enter_context(
                child_process([*command, str(rank), start_method, str(random_dataset)], environment=environment)
            )
            for rank in range(2)
        ]
        ids = [[int(number) for number in rank.communicate()[0].split()] for rank in ranks]
    expected = [
        request_ids(RequestDataset(random_dataset, batch_size=16, rank=rank, world_size=2)) for rank in range(2)
    ]
    assert ids == expected
    assert not set(ids[0]) & set(ids[1])


DYING = """
import os, signal, sys
from longbatch.loaders import RequestDataset, make_dataloader
loader = make_dataloader(RequestDataset(sys.argv[1], batch_size=1), num_workers=1)
batches = iter(loader)
next(batches)
os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
list(batches)
"""


def test_a_killed_worker_is_an_error_and_leaves_nothing_behind(random_dataset: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    # in a process of its own, because torch raises from its SIGCHLD handler, wherever the main thread is at that moment
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(random_dataset)], capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert died.returncode == 1
    assert re.search(r"RuntimeError: DataLoader worker .* (killed by signal|exited unexpectedly)", died.stderr)
    wait_for_empty_shared_memory(before)


def test_an_error_in_a_worker_has_its_traceback(random_dataset: Path, tmp_path: Path) -> None:
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


def test_nothing_is_left_when_the_main_process_is_killed(random_dataset: Path) -> None:
    code = f"""
    import time
    from longbatch.loaders import RequestDataset, make_dataloader
    for batch in make_dataloader(RequestDataset({str(random_dataset)!r}, batch_size=1), num_workers=2):
        print("ready", flush=True)
        time.sleep(600)
    """
    folder = tempfile.mkdtemp(dir="/tmp")  # short: the paths of the workers' sockets have room for 107 characters
    before = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with child_process(command, environment={**os.environ, "TMPDIR": folder}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
    wait_for_empty_shared_memory(before)
    assert not [path for path in Path(folder).rglob("*") if path.is_file()]
    shutil.rmtree(folder)


def wait_for_empty_shared_memory(before: set[str]) -> None:
    """Wait until no new block of a worker process is left; those of other tests come and go meanwhile."""
    end = time.monotonic() + HANG_SECONDS
    while left := {name for name in set(os.listdir("/dev/shm")) - before if name.startswith(("torch", "pym"))}:
        assert time.monotonic() < end, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("context", "histories"),
    [("fork", "per_request"), ("fork", "shared"), ("spawn", "shared"), ("forkserver", "per_request")],
)
def test_batches_arrive_unchanged_from_processes_of_any_start_method(
    random_dataset: Path, histories: Histories, context: str
) -> None:
    dataset = RequestDataset(random_dataset, batch_size=16, histories=histories)
    loader = make_dataloader(dataset, num_workers=1)
    loader.multiprocessing_context = context
    received = list(loader)
    assert [exact_contents(batch) for batch in received] == [exact_contents(batch) for batch in dataset]
    assert len({tensor.untyped_storage().data_ptr() for _, _, tensor in received[0].tensors()}) == 1
    assert exact_contents(pickle.loads(pickle.dumps(received[0]))) == exact_contents(received[0])
