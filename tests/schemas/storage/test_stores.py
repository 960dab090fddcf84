"""Every store keeps the contract of `Store`: a disk, S3, Azure, Google Cloud Storage, and HDFS by a stand-in."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from longbatch.benchmarks.object_proxy import FaultName
from longbatch.benchmarks.object_servers import SECRET, Bucket, gcs_server
from longbatch.schemas.errors import DatasetError, MachineError, SpecError
from longbatch.schemas.storage import hdfs_store, object_store
from longbatch.schemas.storage.local_copy import local_copy
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import open_store, read_file
from longbatch.schemas.storage.store import Store


class HdfsStandIn:
    """What `HdfsStore` uses of pyarrow's HadoopFileSystem, on a local folder: a rename never replaces a file."""

    def __init__(self) -> None:
        self._local = fs.LocalFileSystem()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(self._local, name)

    def move(self, source: str, target: str) -> None:
        with self._lock:
            if os.path.exists(target):
                raise OSError(f"rename: {target} exists")
            self._local.move(source, target)


@pytest.fixture(params=["disk", "s3", "azure", "gcs", "hdfs stand-in"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of each kind, empty."""
    if request.param in ("s3", "azure", "gcs"):
        bucket: Bucket = request.getfixturevalue(request.param)
        return bucket.open(tmp_path.name)
    if request.param == "disk":
        return open_store(tmp_path / "store")
    stand_in = HdfsStandIn()
    monkeypatch.setattr(hdfs_store, "_file_system", lambda url: (stand_in, str(tmp_path / "store")))
    return open_store("hdfs://name-node:8020/store")


def paths(store: Store, folder: str = "") -> list[str]:
    return sorted(file.path for file in store.list_files(folder))


def test_what_is_written_can_be_listed_and_read(store: Store) -> None:
    store.write("a/one", b"0123456789")
    store.write("a/b/two", b"")
    store.write("three", b"3")
    assert paths(store) == ["a/b/two", "a/one", "three"]
    assert paths(store, "a") == ["a/b/two", "a/one"]
    assert paths(store, "nothing") == []
    assert store.size("a/one") == 10
    assert store.read("a/one").to_pybytes() == b"0123456789"
    assert store.read("a/b/two").to_pybytes() == b""
    assert store.read_range("a/one", 3, 4).to_pybytes() == b"3456"
    assert store.read_range("a/one", 3, 0).to_pybytes() == b""
    (file,) = (file for file in store.list_files() if file.path == "three")
    assert file.size_bytes == 1
    assert abs(file.modified - store.now("clock")) < 60
    store.delete(["three", "a/one", "never there"])
    assert paths(store) == ["a/b/two"]


def test_a_file_is_opened_for_random_access(store: Store) -> None:
    table = pa.table({"number": range(100_000)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1_000)
    data = sink.getvalue().to_pybytes()
    store.write("table.arrow", data)
    with store.open_input("table.arrow") as file, store.open_input("table.arrow", len(data)) as known:
        assert pa.ipc.open_file(file).read_all() == pa.ipc.open_file(known).read_all() == table


def test_a_missing_file_is_not_found(store: Store) -> None:
    for operation in (store.size, store.read, store.open_input, lambda path: store.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError, match="no/where"):
            operation("no/where")


def test_a_large_file_is_written_in_parts(store: Store) -> None:
    part = os.urandom(1 << 20)
    writer = store.create("large")
    for _ in range(40):
        writer.write(memoryview(part))
    writer.close()
    writer.close()
    assert store.size("large") == 40 << 20
    assert store.read_range("large", 39 << 20, 1 << 20).to_pybytes() == part


def test_an_aborted_file_does_not_appear(store: Store) -> None:
    writer = store.create("aborted")
    writer.write(memoryview(b"part"))
    writer.abort()
    writer = store.create("closed, then aborted")
    writer.write(memoryview(b"whole"))
    writer.close()
    writer.abort()
    assert paths(store) == []


def test_of_racing_exclusive_creations_one_wins(store: Store) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        try:
            store.create_exclusively("commit", b"by %d" % number)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert store.read("commit").to_pybytes() == b"by %d" % winner
    assert paths(store) == ["commit"]


def test_replacing_overwrites(store: Store) -> None:
    store.replace("report", b"first")
    store.replace("report", b"second")
    assert store.read("report").to_pybytes() == b"second"
    assert paths(store) == ["report"]


def test_a_replacement_appears_at_the_end_of_its_block_unless_there_was_an_error(store: Store) -> None:
    store.write("folder/report", b"first")

    def fail() -> None:
        with store.open_replacement("folder/report") as file:
            file.write(b"half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.read("folder/report").to_pybytes() == b"first"
    with store.open_replacement("folder/report") as file:
        file.write(b"second")
        file.write(bytes(40 << 20))
        assert store.size("folder/report") == 5
    assert store.size("folder/report") == 6 + (40 << 20)
    assert paths(store) == ["folder/report"]


def test_a_local_copy_has_the_content_of_the_file(store: Store, tmp_path: Path) -> None:
    content = os.urandom(40 << 20)
    store.write("folder/large", content)
    with local_copy(store, "folder/large") as path:
        assert path.read_bytes() == content
    assert store.size("folder/large") == len(content)
    with pytest.raises(FileNotFoundError, match="no/where"), local_copy(store, "no/where"):
        pass


def test_a_probe_leaves_nothing(store: Store) -> None:
    store.probe()
    assert paths(store) == []


@pytest.mark.parametrize("path", ["../other", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\\b", "a\0b"])
def test_a_path_that_leaves_the_store_is_refused(store: Store, path: str) -> None:
    if path:
        with pytest.raises(DatasetError, match="is not a path inside"):
            store.read(path)
    with pytest.raises(DatasetError, match="is not a path inside"):
        store.delete(["fine", path or "/"])


def test_a_store_can_be_pickled(store: Store) -> None:
    store.write("file", b"data")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.location == store.location
    assert copy.read("file").to_pybytes() == b"data"


def read_in_fork(store: Store, answers: multiprocessing.SimpleQueue[object]) -> None:
    """Put what a forked process reads, and the errors it meets."""
    answers.put((store.read("file").to_pybytes(), store.read_range("file", 1, 2).to_pybytes()))
    operations: list[Callable[[], object]] = [lambda: store.read("missing"), lambda: store.write("new", b"")]
    for operation in operations:
        try:
            operation()
        except (FileNotFoundError, MachineError) as error:
            answers.put((type(error).__name__, str(error)))


def test_a_forked_process_can_read_an_object_store(bucket: Bucket, tmp_path: Path) -> None:
    store = bucket.open(tmp_path.name)
    store.write("file", b"data")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=read_in_fork, args=(store, answers))
    process.start()
    found, missing, refused = (answers.get() for _ in range(3))
    process.join()
    assert found == (b"data", b"at")
    assert missing == ("FileNotFoundError", store.name("missing"))
    assert refused[0] == "MachineError"
    assert "can only read files" in refused[1]


def test_files_that_are_gone_do_not_keep_others_from_being_deleted(store: Store) -> None:
    names = [f"file {number}" for number in range(12)]
    for name in names[::2]:
        store.write(name, b"")
    store.delete(names)
    assert paths(store) == []


def test_options_of_a_store_are_not_shown(s3: Bucket) -> None:
    storage = {**s3.storage, "endpoint": "http://127.0.0.1:1"}
    store = open_store("s3://bucket/folder", storage, attempts=1)
    assert SECRET not in repr(store)
    with pytest.raises(MachineError, match=r"s3://bucket/folder/file: the store did not answer") as raised:
        store.read("file")
    assert SECRET not in str(raised.value)


def test_a_store_without_conditional_writes_is_refused() -> None:
    with gcs_server(condition=False) as bucket:
        store = bucket.open("folder")
        with pytest.raises(MachineError, match=r"gs://bucket/folder .* does not support conditional writes"):
            store.probe()
        assert paths(store) == []


@pytest.mark.slow
def test_a_listing_that_fails_in_between_is_continued(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.01)
    store = bucket.open(tmp_path.name)
    # A store lists 1,000 objects in an answer on S3 and Google, and 5,000 on Azure.
    names = [f"folder/{number:04d}" for number in range(1_010)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: store.write(name, b""), names))
    faults: tuple[FaultName, ...] = ("error", "slow down", "cut off")
    for fault in faults:
        bucket.proxy.plan(fault, 3, lambda request: request.method == "GET" and "list" in request.path)
        assert paths(store) == names
        assert not bucket.proxy.planned
        bucket.proxy.plan(fault, 2, lambda request: "continuation-token" in request.path)
        assert paths(store, "folder") == names
        assert bucket.url.startswith("az") or not bucket.proxy.planned or bucket.proxy.planned[0].times == 1
        bucket.proxy.reset()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/folder", "s3://bucket/folder: the URL contains credentials"),
        ("s3://bucket/folder?region=x", r"s3://bucket/folder: a URL of a store has no part after '\?'"),
        ("ftp://host/folder", "does not know ftp://"),
        ("s3:///folder", "names no bucket"),
    ],
)
def test_an_unsuitable_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        open_store(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfss", "hdfs"])
def test_a_url_with_one_slash_is_refused(scheme: str) -> None:
    with pytest.raises(SpecError, match=rf"{scheme}:/bucket/x: a URL has two slashes .*Write {scheme}://bucket/x"):
        open_store(f"{scheme}:/bucket/x")
    with pytest.raises(SpecError, match="a Path drops a slash"):
        open_store(Path(f"{scheme}://bucket/x"))
    assert open_store(f"./{scheme}:/bucket/x").location == f"./{scheme}:/bucket/x"


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_store("~/dataset").location == "/home/someone/dataset"


def test_a_file_is_read_by_path_and_by_url(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"local")
    assert read_file(tmp_path / "file") == b"local"
    assert read_file(f"file://{tmp_path}/file") == b"local"
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://bucket/{tmp_path.name}"
    open_store(url).write("file", b"remote")
    assert read_file(f"{url}/file") == b"remote"
    for missing in (f"{url}/missing", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=f"No such file or directory.*{missing}"):
            read_file(missing)
    for folder in ("s3://bucket", "s3://bucket/folder/"):
        with pytest.raises(SpecError, match=f"{folder} is not the URL of a file"):
            read_file(folder)


def test_urls_as_hadoop_writes_them_are_known() -> None:
    store = open_store("abfss://container@account.dfs.core.windows.net/folder/dataset")
    assert vars(store)["url"] == "az://container/folder/dataset"
    assert dict(vars(store)["options"]) == {"account_name": "account"}
    assert vars(open_store("s3a://bucket/folder/"))["url"] == "s3://bucket/folder"


def test_a_place_without_hard_links_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(MachineError, match=r"Function not implemented.*needs hard links.*name the store itself"):
        LocalStore(tmp_path).probe()
    assert not list(tmp_path.iterdir())


def test_a_read_only_place_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *arguments: object, **more: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(MachineError, match=r"Read-only file system.*Choose another folder"):
        LocalStore(tmp_path).probe()


def test_a_listing_of_a_store_that_does_not_answer_is_an_error(s3: Bucket) -> None:
    store = open_store("s3://bucket/folder", {**s3.storage, "endpoint": "http://127.0.0.1:1"}, attempts=1)
    with pytest.raises(MachineError, match=r"s3://bucket/folder: the store did not answer"):
        list(store.list_files())
