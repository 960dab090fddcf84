"""Other loaders on the same requests: each yields the same tensors, from rows of samples or of requests.

A row is a dict of arrays, with its own copy of the history. Each peer stores rows as its documentation recommends,
reads them in order, and concatenates each batch of rows to values and offsets. A peer that is not installed is skipped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longbatch.loaders import RequestBatch
from longbatch.schemas.types import ArrowArray, ArrowListArray

Row = dict[str, npt.NDArray[Any]]
Rows = Iterable[Sequence[Row]]
Read = Callable[[Path, int], Rows]


@dataclass(frozen=True)
class Peer:
    """A loader to compare with.

    Attributes:
        package: The package it imports.
        write: Writes rows to a folder.
        read: Reads them back in batches.
        shares: Whether it divides the rows among the worker processes of a DataLoader by itself. None if its workers
            need a dataset that was created before them, so that it is measured in one process only.
    """

    package: str
    write: Callable[[Path, list[Row]], None]
    read: Read
    shares: bool | None = False


class Batches(IterableDataset[dict[str, Tensor]]):
    """A peer's batches of tensors, read by worker processes of a DataLoader or in this process.

    Args:
        peer: The peer.
        parts: A folder for each worker.
        size: Rows per batch.
    """

    def __init__(self, peer: Peer, parts: Sequence[Path], size: int) -> None:
        super().__init__()
        self._peer, self._parts, self._size = peer, parts, size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Iterate over the batches of this worker's part."""
        worker = get_worker_info()
        return map(joined, self._peer.read(self._parts[worker.id if worker else 0], self._size))

    def loader(self, num_workers: int) -> DataLoader[dict[str, Tensor]]:
        """Return a DataLoader with persistent workers, which are spawned because not every peer survives a fork.

        Args:
            num_workers: Number of worker processes.
        """
        return DataLoader(
            self, batch_size=None, num_workers=num_workers, persistent_workers=True, multiprocessing_context="spawn"
        )


def write_parts(folder: Path, peer: Peer, rows: list[Row], parts: int) -> list[Path]:
    """Write a part of the rows for each worker, or all of them once if the peer divides them by itself.

    Args:
        folder: Where the folders of the parts are created.
        peer: The peer.
        rows: The rows.
        parts: Number of workers.

    Returns:
        The folder that each worker reads.
    """
    count = 1 if peer.shares else parts
    paths = [folder / str(part) for part in range(count)]
    for part, path in enumerate(paths):
        path.mkdir(parents=True)
        peer.write(path, rows[part * len(rows) // count : (part + 1) * len(rows) // count])
    return paths * (parts // count)


def rows_of(batches: Iterable[RequestBatch]) -> list[Row]:
    """Return one row per request, with arrays of its history, its targets and its labels."""
    rows: list[Row] = []
    for batch in batches:
        for r in range(batch.num_requests):
            events = slice(*batch.history_offsets[r : r + 2].tolist())
            targets = slice(*batch.target_offsets[r : r + 2].tolist())
            rows.append(
                {
                    **{f"history__{name}": values[events].numpy() for name, values in batch.history.items()},
                    **{f"targets__{name}": values[targets].numpy() for name, values in batch.targets.items()},
                    **{f"labels__{name}": values[targets].numpy() for name, values in batch.labels.items()},
                }
            )
    return rows


def joined(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Concatenate rows to values and offsets: the tensors that every loader must yield."""
    first = rows[0]
    tensors = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in first}
    for role in ("history", "targets"):
        sizes = [len(row[f"{role}__item_id"]) for row in rows]
        tensors[f"{role}_offsets"] = torch.from_numpy(np.cumsum([0, *sizes]))
    return tensors


def checksum(tensors: Iterable[dict[str, Tensor]]) -> int:
    """Sum all values of all batches, floats by their bits, each weighted by its name, its index and its batch."""
    total = 0
    for number, batch in enumerate(tensors, start=1):
        for name in sorted(batch):
            values = batch[name].numpy()
            bits = values.view(f"i{values.itemsize}").astype(np.int64)
            weights = np.arange(1, len(bits) + 1, dtype=np.int64) * number * (1 + sum(map(ord, name)))
            total = (total + int(np.sum(bits * weights))) % 2**63
    return total


def _table(rows: list[Row]) -> pa.Table:
    columns = {}
    for name in rows[0]:
        values = np.concatenate([row[name] for row in rows])
        offsets = np.cumsum([0, *(len(row[name]) for row in rows)])
        columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
    return pa.table(columns)


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _from_arrow(batch: pa.Table | pa.RecordBatch) -> list[Row]:
    columns = {}
    for name in batch.column_names if isinstance(batch, pa.Table) else batch.schema.names:
        lists = _one_array(batch[name])
        offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
        columns[name] = [values[a:b] for a, b in pairwise(offsets)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _one_array(column: ArrowArray | pa.ChunkedArray[Any]) -> ArrowListArray:
    """The lists of a column as one array."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    # combine_chunks may return an array of one chunk
    return cast("ArrowListArray", array.chunk(0) if isinstance(array, pa.ChunkedArray) else array)


def _write_parquet(folder: Path, rows: list[Row]) -> None:
    pq.write_table(_table(rows), folder / "rows.parquet", compression="zstd", row_group_size=64)


def _read_parquet(folder: Path, size: int) -> Rows:
    return map(_from_arrow, pq.ParquetFile(folder / "rows.parquet").iter_batches(size))


def _write_datasets(folder: Path, rows: list[Row]) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(_table(rows)).save_to_disk(str(folder / "hf"))


def _read_datasets_rows(folder: Path, size: int) -> Rows:
    import datasets

    return _batched(iter(datasets.load_from_disk(str(folder / "hf")).with_format("numpy")), size)


def _read_datasets_arrow(folder: Path, size: int) -> Rows:
    import datasets

    return map(_from_arrow, datasets.load_from_disk(str(folder / "hf")).with_format("arrow").iter(size))


def _write_litdata(folder: Path, rows: list[Row]) -> None:
    from litdata.streaming import Cache

    cache = Cache(str(folder / "lit"), chunk_bytes="64MB")
    for number, row in enumerate(rows):
        cache[number] = {name: torch.from_numpy(values.copy()) for name, values in row.items()}
    cache.done()
    cache.merge()


def _read_litdata(folder: Path, size: int) -> Rows:
    from litdata import StreamingDataset

    rows = ({name: v.numpy() for name, v in row.items()} for row in StreamingDataset(str(folder / "lit")))
    return _batched(rows, size)


def _write_webdataset(folder: Path, rows: list[Row]) -> None:
    import webdataset

    with webdataset.TarWriter(str(folder / "rows.tar")) as sink:
        for number, row in enumerate(rows):
            sink.write({"__key__": f"{number:08d}", "npz": _npz(row)})


def _npz(row: Row) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **row)
    return file.getvalue()


def _read_webdataset(folder: Path, size: int) -> Rows:
    import webdataset

    dataset = webdataset.WebDataset(str(folder / "rows.tar"), shardshuffle=False, workersplitter=None).decode()
    return _batched(({name: row["npz"][name] for name in row["npz"]} for row in dataset), size)


def _write_lance(folder: Path, rows: list[Row]) -> None:
    import lance

    lance.write_dataset(_table(rows), str(folder / "rows.lance"))


def _read_lance(folder: Path, size: int) -> Rows:
    import lance

    return map(_from_arrow, lance.dataset(str(folder / "rows.lance")).to_batches(batch_size=size))


def _write_streaming(folder: Path, rows: list[Row]) -> None:
    from streaming import MDSWriter

    columns = {name: f"ndarray:{values.dtype}" for name, values in rows[0].items()}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as sink:
        for row in rows:
            sink.write(row)


def _read_streaming(folder: Path, size: int) -> Rows:
    from streaming import StreamingDataset

    return _batched(iter(StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=size)), size)


PEERS = {
    "pyarrow and Parquet": Peer("pyarrow", _write_parquet, _read_parquet),
    "datasets, rows": Peer("datasets", _write_datasets, _read_datasets_rows),
    "datasets, arrow": Peer("datasets", _write_datasets, _read_datasets_arrow),
    "litdata": Peer("litdata", _write_litdata, _read_litdata, shares=True),
    "webdataset": Peer("webdataset", _write_webdataset, _read_webdataset),
    "lance": Peer("lance", _write_lance, _read_lance),
    "mosaicml-streaming": Peer("streaming", _write_streaming, _read_streaming, shares=None),
}
