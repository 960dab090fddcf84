"""Shards that are cut, flipped or swapped: a named error or the same batches, never a crash, a hang or another value."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import settings

from longbatch.loaders import RequestDataset
from longbatch.schemas.errors import DatasetError

MUTATIONS = 2_000 if settings.get_current_profile_name() == "fuzz" else 400  # `make fuzz` draws them all


def contents(path, **options):
    """All values of all batches."""
    batches = RequestDataset(path, batch_size=64, **options)
    return [[(f, n, t.numpy().tobytes()) for f, n, t in batch.tensors()] for batch in batches]


def mutated(random, content):
    """The content cut, with a bit flipped, a range overwritten or two ranges swapped."""
    data = bytearray(content)
    size = int(random.integers(1, 64))
    a, b = (int(place) for place in random.integers(0, max(1, len(data) - size), 2))
    kind = random.integers(5)
    if kind == 0:
        return bytes(data[:a])
    if kind == 1:
        data[a] ^= 1 << int(random.integers(8))
    elif kind == 2:
        data[a : a + size] = random.bytes(len(data[a : a + size]))
    elif kind == 3:
        data[a : a + size] = b"\xff" * len(data[a : a + size])
    else:
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(data)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_no_mutation_crashes_or_changes_a_value(tmp_path, rows, compression):
    write_dataset, random_shards = rows[4:]
    path = write_dataset(tmp_path / "d", random_shards(shards=1, blocks=2, users=2), compression=compression)
    files = [file for table in ("timelines", "requests", "dictionaries") for file in (path / table).glob("*")]
    whole, whole_files = contents(path), [file.read_bytes() for file in files]
    random = np.random.default_rng(0)
    errors = same = 0
    for _ in range(MUTATIONS // 2):
        number = int(random.integers(len(files)))
        data = mutated(random, whole_files[number])
        replace(files[number], data)
        try:
            assert contents(path) == whole
            same += 1
        except DatasetError as error:
            assert files[number].name in str(error)  # noqa: PT017
            errors += 1
        replace(files[number], whole_files[number])
    assert errors + same == MUTATIONS // 2
    assert errors > 0.8 * MUTATIONS // 2


def replace(file, data):
    """Write a file anew: one that is mapped keeps its bytes."""
    file.unlink()
    file.write_bytes(data)


def test_swapped_files_of_two_shards_are_refused(tmp_path, rows):
    write_dataset, random_shards = rows[4:]
    path = write_dataset(tmp_path / "d", random_shards(shards=2, blocks=1))
    a, b = sorted((path / "requests").iterdir())
    shutil.move(a, tmp_path / "held")
    shutil.move(b, a)
    shutil.move(tmp_path / "held", b)
    with pytest.raises(DatasetError, match=r"requests/0000[01]-0\.arrow"):
        contents(path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_damaged_blocks_are_skipped_and_counted_on_request(tmp_path, rows, shuffle, caplog):
    write_dataset, random_shards = rows[4:]
    path = write_dataset(tmp_path / "d", random_shards(shards=2, blocks=3))
    wanted = {i for batch in RequestDataset(path) for i in batch.request_id.tolist()}
    dataset = RequestDataset(path, batch_size=4, shuffle=shuffle, on_error="skip")
    file = sorted((path / "timelines").iterdir())[0]
    data = bytearray(file.read_bytes())
    block = dataset.open().dataset.shards[0].blocks[1]
    data[block.timelines_offset + 200] ^= 1
    replace(file, bytes(data))
    batches = list(dataset)
    found = {i for batch in batches for i in batch.request_id.tolist()}
    assert sum(batch.skipped for batch in batches) == block.requests == len(wanted - found)
    assert len(batches) == len(dataset)
    assert all(batch.num_requests + batch.skipped > 0 for batch in batches)
    assert f"skipped {block.requests} requests" in caplog.text
    with pytest.raises(DatasetError, match="block 1 was altered: its crc32"):
        list(RequestDataset(path, batch_size=4))
