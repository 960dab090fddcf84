"""The files that a path, folder, glob or URI of a spec names.

Files that writers leave beside the data are ignored: names that start with "_" or "." (`_SUCCESS`, `_committed_*`,
`.part-0.crc`) and everything below such folders, unless the spec names them itself.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa

from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store

MAGIC = re.compile(r"[*?\[]")
ICEBERG_METADATA = re.compile(r"(?:(.*)/)?metadata/[^/]*\.metadata\.json")
IRREGULAR = -1  # size of what a folder lists but cannot be read: a dangling link, a socket
DELTA_LOG = re.compile(r"(?:(.*)/)?_delta_log/[^/]*")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        path: Local path or URI.
        size_bytes: Length of the file.
    """

    path: str
    size_bytes: int


def split_uri(path: str) -> tuple[str, str]:
    """Split a path into the place that a store is opened for, and the path within it.

    Args:
        path: Local path or URI.

    Returns:
        "" and the path if it is local, else the URI's scheme and host, and the rest.

    Example:
        >>> split_uri("s3://bucket/logs/a.csv")
        ('s3://bucket', 'logs/a.csv')
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return "", path
    if scheme == "file":
        return "", rest
    host, _, inner = rest.partition("/")
    return f"{scheme}://{host}", inner.strip("/")


def open_file(path: str, size_bytes: int | None = None) -> pa.NativeFile:
    """Open a file for random access.

    Args:
        path: Local path or URI.
        size_bytes: Length of the file, if it is known, which saves a request.

    Returns:
        The open file.

    Raises:
        SourceError: The file does not exist.
        MachineError: The place cannot be reached or read.
    """
    store, inner = _store_of(path)
    try:
        return store.open_input(inner, size_bytes)
    except FileNotFoundError:
        raise _vanished(path) from None


def read_range(path: str, offset: int, size_bytes: int) -> bytes:
    """Read a range of a file.

    Args:
        path: Local path or URI.
        offset: First byte.
        size_bytes: Number of bytes.

    Returns:
        The bytes; fewer if the file ends before.

    Raises:
        SourceError: The file does not exist.
        MachineError: The place cannot be reached or read.
    """
    store, inner = _store_of(path)
    try:
        return store.read_range(inner, offset, size_bytes).to_pybytes()
    except FileNotFoundError:
        raise _vanished(path) from None


def _vanished(path: str) -> SourceError:
    return SourceError(f"file not found: {path!r}. It was there when the build was planned; run it again.")


def _store_of(path: str) -> tuple[Store, str]:
    root, inner = split_uri(path)
    if root:
        try:
            return open_store(root), inner
        except SpecError as error:
            raise SourceError(str(error)) from None
    folder, name = os.path.split(os.path.abspath(inner))
    return open_store(folder), name


def list_files(pattern: str) -> list[SourceFile]:
    """List the files that a path, folder, glob or URI names.

    A folder, also one that a glob matches, stands for all files below it. `*`, `?` and `[...]` match within a name,
    `**` also across folders.

    Args:
        pattern: A local path or a URI; either may be a glob.

    Returns:
        The files, sorted by path.

    Raises:
        SourceError: Not one file matches, the files belong to a Delta or Iceberg table, or the URI is of an unknown
            scheme or contains credentials.
        MachineError: The place cannot be reached or read.
    """
    root, inner = split_uri(pattern)
    if root and re.search(r"\?[^/]*=", inner):
        raise SourceError(
            f"{pattern.partition('?')[0]!r} is followed by options, which a path cannot have. Set the region, the "
            "endpoint and credentials in the environment, such as AWS_ENDPOINT_URL."
        )
    if not root and os.path.exists(inner):
        inner = glob.escape(inner)  # its own name may have brackets
    files = _remote_files(root, inner) if root else list(_local_files(inner))
    base = _base_folder(inner)
    _refuse_tables(pattern, (file.path for file in files))
    visible = sorted((f for f in files if not _is_hidden(f.path, base, inner)), key=lambda file: file.path)
    if not root:
        _refuse_local_tables(pattern, visible)
        for file in visible:
            _check_regular(file)
    if not visible:
        raise SourceError(f"{_none_found(pattern, files)} Check the path; relative paths start at the spec's folder.")
    prefix = f"{root}/" if root else ("file://" if "://" in pattern else "")
    return [SourceFile(f"{prefix}{file.path}", file.size_bytes) for file in visible]


def _none_found(pattern: str, files: list[SourceFile]) -> str:
    if files:
        return f"all {len(files):,} files of {pattern!r} are hidden (their names start with '_' or '.')."
    return f"no file matches {pattern!r}." if MAGIC.search(pattern) else f"file not found: {pattern!r}."


def _base_folder(inner: str) -> str:
    """Return the folder before the first wildcard, or the path itself if it has none."""
    match = MAGIC.search(inner)
    return inner[: match.start()].rpartition("/")[0] if match else inner


def _is_hidden(path: str, base: str, pattern: str) -> bool:
    """Return whether a file is below a hidden name that the pattern does not name itself."""
    if path == pattern or any(part.startswith(("_", ".")) for part in pattern[len(base) :].split("/")):
        return False
    names = path[len(base) :].strip("/").split("/")
    # A folder like _day=7 is a partition, not a file that a writer left behind.
    return names[-1].endswith(".crc") or any(name.startswith(("_", ".")) and "=" not in name for name in names)


def _pattern_regex(inner: str) -> re.Pattern[str]:
    """Compile a glob: `*` stays within a name, `**` spans folders; what it matches may be a folder of the file.

    log/**/part-* matches log/part-0 and log/a/b/part-0; log/* matches log/a.csv and log/a/b.csv.
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^/\]]+\])", inner)
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = "".join(
        wildcards.get(part) or (_character_class(part) if part.startswith("[") else re.escape(part)) for part in parts
    )
    return re.compile(f"{regex}(?:/.*)?", re.DOTALL)


def _character_class(part: str) -> str:
    """Convert [...] of a glob to a regular expression: [!a] is [^a], and [[] is a bracket."""
    characters = part[1:-1].replace("\\", r"\\").replace("[", r"\[")
    return f"[^{characters[1:]}]" if characters.startswith("!") else f"[{characters}]"


# Object stores


def _remote_files(root: str, inner: str) -> list[SourceFile]:
    store, _ = _store_of(f"{root}/")
    if not MAGIC.search(inner):
        try:
            return [SourceFile(inner, store.size(inner))] if inner else []
        except FileNotFoundError:
            matches = re.compile(".*", re.DOTALL)
    else:
        matches = _pattern_regex(inner)
    # Object stores cannot glob: list the folder before the first wildcard, and match each name here.
    listed = [SourceFile(file.path, file.size_bytes) for file in store.list_files(_base_folder(inner))]
    tables = [f for f in listed if DELTA_LOG.fullmatch(f.path) or ICEBERG_METADATA.fullmatch(f.path)]
    # The log of a table is beside the folder of a partition or of its data, not below it.
    folder = _base_folder(inner)
    while folder and ("=" in folder.rpartition("/")[2] or folder.rpartition("/")[2] == "data"):
        folder = folder.rpartition("/")[0]
        for name in ("_delta_log", "metadata"):
            log = next(store.list_files(f"{folder}/{name}".lstrip("/")), None)
            tables += [SourceFile(log.path, 0)] if log else []
    # Keys that end with a slash are the folders of some tools.
    matched = [file for file in listed if matches.fullmatch(file.path) and not file.path.endswith("/")]
    if matched:
        _refuse_tables(f"{root}/{inner}", (table.path for table in tables))
    return matched


def _refuse_tables(pattern: str, paths: Iterable[str]) -> None:
    for path in paths:
        for table_format, regex in (("delta", DELTA_LOG), ("iceberg", ICEBERG_METADATA)):
            match = regex.fullmatch(path)
            if match:
                raise SourceError(_table_message(pattern, table_format, match[1] or "."))


def _table_message(pattern: str, table_format: str, table: str) -> str:
    return (
        f"{pattern!r} names files of the {table_format.capitalize()} table in {table!r}, some of which may be deleted "
        f'or replaced rows. Set format = "{table_format}" and the table as the path to read its current rows.'
    )


# Local files


def _local_files(inner: str) -> Iterator[SourceFile]:
    if not MAGIC.search(inner):
        if os.path.isdir(inner):
            yield from _walk(inner, [], ())
        elif os.path.isfile(inner):
            yield SourceFile(inner, os.path.getsize(inner))
        return
    base = _base_folder(inner)
    start = base or ("/" if inner.startswith("/") else ".")
    if not os.path.isdir(start):
        return
    segments = inner[len(base) :].strip("/").split("/")
    matches = _pattern_regex(inner)
    for file in _walk(start, segments, ()):
        path = file.path if base or start == "/" else file.path.removeprefix("./")
        if matches.fullmatch(path):
            yield SourceFile(path, file.size_bytes)


def _walk(folder: str, segments: list[str], seen: tuple[str, ...]) -> Iterator[SourceFile]:
    """Yield the files below a folder that may match the segments of a glob; all files if there are none."""
    real = os.path.realpath(folder)
    if real in seen:
        raise SourceError(f"{folder!r} is a link to a folder above it. Remove the link.")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"cannot list {folder!r}: {error.strerror}. Change its permissions or the path.") from None
    spans_folders = bool(segments) and "**" in segments[0]
    for entry in entries:
        if segments and not spans_folders and not fnmatchcase(entry.name, segments[0].replace("[^", "[!")):
            continue
        path = os.path.join(folder, entry.name)
        if entry.is_dir():
            yield from _walk(path, segments if spans_folders else segments[1:], (*seen, real))
        elif spans_folders or len(segments) < 2:
            yield SourceFile(path, entry.stat().st_size if entry.is_file() else IRREGULAR)


def _check_regular(file: SourceFile) -> None:
    if file.size_bytes == IRREGULAR:
        problem = "a link to a file that does not exist" if os.path.islink(file.path) else "not a regular file"
        raise SourceError(f"{file.path!r} is {problem}. Remove it, or use a path that does not match it.")


def _refuse_local_tables(pattern: str, files: list[SourceFile]) -> None:
    """Raise SourceError if a folder above the files is a Delta or an Iceberg table."""
    folders = {str(parent) for file in files for parent in Path(file.path).absolute().parents}
    for folder in sorted(folders, key=len, reverse=True):
        if os.path.isdir(os.path.join(folder, "_delta_log")):
            raise SourceError(_table_message(pattern, "delta", folder))
        metadata = os.path.join(folder, "metadata")
        if os.path.isdir(metadata) and any(name.endswith(".metadata.json") for name in os.listdir(metadata)):
            raise SourceError(_table_message(pattern, "iceberg", folder))
