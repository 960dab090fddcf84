"""Truncated, altered or swapped shards: a clear error or the same batches, never a crash, a hang or another value."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from block_rows import exact_contents, random_shards, write_dataset
from hypothesis import settings

from longbatch.loaders import RequestDataset
from longbatch.schemas.errors import DatasetError

MUTATIONS = 2_000 if settings.get_current_profile_name() == "fuzz" else 400  # `make fuzz` draws them all


def contents(path: Path) -> list[object]:
    """All values of all batches."""
    return [exact_contents(batch) for batch in RequestDataset(path, batch_size=64)]


def mutated(random: np.random.Generator, content: bytes) -> bytes:
    """The content truncated, with a bit flipped, a range overwritten or two ranges swapped."""
    data = bytearray(content)
    size = int(random.integers(1, 64))
    a, b = (int(offset) for offset in random.integers(0, max(1, len(data) - size), 2))
    mutation = random.integers(5)
    if mutation == 0:
        return bytes(data[:a])
    if mutation == 1:
        data[a] ^= 1 << int(random.integers(8))
    elif mutation == 2:
        data[a : a + size] = random.bytes(len(data[a : a + size]))
    elif mutation == 3:
        data[a : a + size] = b"\xff" * len(data[a : a + size])
    else:
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_mutation_never_crashes_or_changes_a_value(tmp_path: Path, compression: str) -> None:
    path = write_dataset(tmp_path / "d", random_shards(shards=1, blocks=2, users=2), compression=compression)
    files = [file for table in ("timelines", "requests", "dictionaries") for file in (path / table).glob("*")]
    intact, intact_files = contents(path), [file.read_bytes() for file in files]
    random = np.random.default_rng(0)
    errors = same = 0
    for _ in range(MUTATIONS // 2):
        number = int(random.integers(len(files)))
        data = mutated(random, intact_files[number])
        replace(files[number], data)
        try:
            assert contents(path) == intact
            same += 1
        except DatasetError as error:
            assert files[number].name in str(error)  # noqa: PT017
            errors += 1
        replace(files[number], intact_files[number])
    assert errors + same == MUTATIONS // 2
    assert errors > 0.8 * MUTATIONS // 2


def replace(file: Path, data: bytes) -> None:
    """Write a new file of this name: readers that have mapped the old one keep its bytes."""
    file.unlink()
    file.write_bytes(data)


def test_swapped_files_of_two_shards_are_an_error(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", random_shards(shards=2, blocks=1))
    a, b = sorted((path / "requests").iterdir())
    shutil.move(a, tmp_path / "swap")
    shutil.move(b, a)
    shutil.move(tmp_path / "swap", b)
    with pytest.raises(DatasetError, match=r"requests/0000[01]-0\.arrow"):
        contents(path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_damaged_blocks_are_skipped_and_counted_on_request(
    tmp_path: Path, shuffle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_dataset(tmp_path / "d", random_shards(shards=2, blocks=3))
    expected = {i for batch in RequestDataset(path) for i in batch.request_id.tolist()}
    dataset = RequestDataset(path, batch_size=4, shuffle=shuffle, on_error="skip")
    file = sorted((path / "timelines").iterdir())[0]
    data = bytearray(file.read_bytes())
    block = dataset.open().dataset.shards[0].blocks[1]
    data[block.timelines_offset + 200] ^= 1
    replace(file, bytes(data))
    batches = list(dataset)
    read_ids = {i for batch in batches for i in batch.request_id.tolist()}
    assert sum(batch.skipped for batch in batches) == block.requests == len(expected - read_ids)
    assert len(batches) == len(dataset)
    assert all(batch.num_requests + batch.skipped > 0 for batch in batches)
    assert f"skipped {block.requests} requests" in caplog.text
    with pytest.raises(DatasetError, match="block 1 was altered: its crc32"):
        list(RequestDataset(path, batch_size=4))
