"""Datasets by URI, from a server of the S3 protocol on this machine, with the faults that stores have."""

from __future__ import annotations

import http.client
import itertools
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from longbatch.loaders import RequestDataset, make_dataloader
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format import remote_cache as module
from longbatch.schemas.format.remote_cache import RemoteRoot

moto = pytest.importorskip("moto.server")


class Faults(BaseHTTPRequestHandler):
    """Passes requests on to the server, but for those that a fault is planned for."""

    protocol_version = "HTTP/1.1"
    target = ("", 0)
    planned: ClassVar[list] = []

    def _pass_on(self):
        fault = self.planned.pop(0) if self.planned and "Range" in self.headers else None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "error":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "slow":
            time.sleep(1)
        connection = http.client.HTTPConnection(*self.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "flip":
            self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
        elif self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def store(random_dataset):
    """URI of the dataset behind the faulty server, in a bucket."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    Faults.target = server.get_host_and_port()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Faults)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{proxy.server_port}"
    upload = http.client.HTTPConnection(*Faults.target)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20240101/us-east-1/s3/aws4_request"}
    for path in ("", *(p.relative_to(random_dataset) for p in random_dataset.rglob("*") if p.is_file())):
        content = (random_dataset / path).read_bytes() if path else b""
        upload.request("PUT", f"/bucket/dataset/{path}" if path else "/bucket", content, signed)
        answer = upload.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    upload.close()
    yield f"s3://x:y@bucket/dataset?scheme=http&endpoint_override={host}&region=us-east-1"
    proxy.shutdown()
    proxy.server_close()
    server.stop()


@pytest.fixture
def plan(monkeypatch):
    """Plan faults; waits are short."""
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    Faults.planned.clear()
    yield Faults.planned.extend
    Faults.planned.clear()


def ids(batches):
    return [request_id for batch in batches for request_id in batch.request_id.tolist()]


def files_in(folder: Path):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_in_a_store_yields_the_batches_of_a_local_one(store, random_dataset, tmp_path, plan, num_workers):
    options = {"batch_size": 7, "shuffle": True}
    dataset = RequestDataset(RemoteRoot(store, tmp_path), **options)
    loader = make_dataloader(dataset, num_workers=num_workers) if num_workers else dataset
    if num_workers:
        loader.multiprocessing_context = "spawn"
    assert ids(loader) == ids(RequestDataset(random_dataset, **options))
    assert dataset.fingerprint == RequestDataset(random_dataset).fingerprint


@pytest.mark.parametrize("fault", ["error", "slow", "cut"])
def test_faults_that_pass_are_waited_out(store, random_dataset, tmp_path, plan, fault):
    dataset = RequestDataset(RemoteRoot(store, tmp_path), batch_size=7)
    dataset.open()
    plan([fault, fault])
    assert ids(dataset) == ids(RequestDataset(random_dataset, batch_size=7))


def test_bytes_that_change_on_the_way_are_an_error(store, tmp_path, plan):
    dataset = RequestDataset(RemoteRoot(store, tmp_path), batch_size=7)
    dataset.open()
    plan(["flip"] * 99)
    with pytest.raises(DatasetError, match=r"(requests|timelines|dictionaries)/00000-0\.arrow.* was altered"):
        list(dataset)
    assert not [path for path in files_in(tmp_path) if "ranges" in path.parts]


def test_the_cache_keeps_within_its_limit_and_serves_again_without_the_store(store, random_dataset, tmp_path, plan):
    wanted = ids(RequestDataset(random_dataset, batch_size=7))
    limit = 30_000
    dataset = RequestDataset(RemoteRoot(store, tmp_path / "small", limit), batch_size=7)
    assert ids(dataset) == wanted
    kept = [path.stat().st_size for path in files_in(tmp_path / "small") if "ranges" in path.parts]
    assert 0 < sum(kept) <= limit
    everything = RemoteRoot(store, tmp_path / "large")
    assert ids(RequestDataset(everything, batch_size=7)) == wanted
    ranges = [path for path in files_in(tmp_path / "large") if "ranges" in path.parts]
    before = {path: path.stat().st_ino for path in ranges}
    assert ids(RequestDataset(everything, batch_size=7)) == wanted
    assert {path: path.stat().st_ino for path in before} == before, "fetched again"


def test_a_file_of_the_cache_that_was_damaged_is_fetched_again(store, random_dataset, tmp_path, plan):
    root = RemoteRoot(store, tmp_path)
    list(RequestDataset(root, batch_size=7))
    for path in files_in(tmp_path):
        if "ranges" in path.parts:
            path.write_bytes(b"\0" * path.stat().st_size)
    assert ids(RequestDataset(root, batch_size=7)) == ids(RequestDataset(random_dataset, batch_size=7))


def test_a_store_that_stays_away_is_a_clear_error(store, tmp_path, plan, monkeypatch):
    with pytest.raises(DatasetError, match="is not a readable URI"):
        RequestDataset("nowhere://x/y").open()
    root = RemoteRoot(f"file://{tmp_path}/none", tmp_path / "cache")
    with pytest.raises((DatasetError, MachineError), match="snapshot"):
        RequestDataset(root).open()
    dataset = RequestDataset(RemoteRoot(store, tmp_path, attempts=2), batch_size=7)
    dataset.open()

    def fail(*arguments):
        raise OSError("connection refused")

    monkeypatch.setattr(module, "_connect", fail)
    dataset._shards = None
    with pytest.raises(MachineError, match=r"could not be read in 2 attempts: connection refused\. Check the store"):
        next(iter(dataset))


def test_a_killed_download_leaves_no_part_of_a_file(tmp_path):
    child = os.fork()
    if child == 0:
        handle = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY)
        os.write(handle, b"half")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_by_its_uri(random_dataset, tmp_path):
    root = RemoteRoot(f"file://{random_dataset}", tmp_path)
    assert ids(RequestDataset(root, batch_size=7)) == ids(RequestDataset(random_dataset, batch_size=7))
    assert len(list(itertools.islice(RequestDataset(root, batch_size=7), 2))) == 2
