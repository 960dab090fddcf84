"""File systems of local paths and URIs, and the files that a path, glob or URI names."""

from __future__ import annotations

import fnmatch
import glob
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from longbatch.schemas.errors import SourceError


def filesystem_of(path: str) -> tuple[pafs.FileSystem, str]:
    """Find the file system of a local path or a URI.

    Args:
        path: A local path, or a URI that pyarrow knows, such as `s3://bucket/key`.

    Returns:
        The file system, and the path within it.

    Raises:
        SourceError: The URI's file system is unknown or cannot be reached.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    try:
        return pafs.FileSystem.from_uri(path)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise SourceError(f"cannot reach {path!r}: {error}") from None


def list_files(pattern: str) -> list[tuple[str, int]]:
    """List the files that a path, glob or URI names.

    Args:
        pattern: A local path or a URI; either may be a glob.

    Returns:
        (path or URI, size in bytes) of each file, sorted by path.

    Raises:
        SourceError: Not one file matches, or the file system cannot be reached.
    """
    filesystem, inner = filesystem_of(pattern)
    is_glob = glob.has_magic(inner)
    if "://" not in pattern:
        paths = sorted(glob.glob(inner, recursive=True)) if is_glob else [inner]
    elif is_glob:
        # Object stores cannot glob: list the folder before the first wildcard, and match each name here.
        folder = inner[: inner.index(next(c for c in inner if c in "*?["))].rpartition("/")[0]
        listed = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
        paths = sorted(info.path for info in listed if fnmatch.fnmatch(info.path, inner))
    else:
        paths = [inner]
    infos = [info for info in filesystem.get_file_info(paths) if info.type == pafs.FileType.File] if paths else []
    if not infos:
        problem = "no file matches" if is_glob else "file not found:"
        raise SourceError(f"{problem} {pattern!r}. Check the path; relative paths start at the spec's folder.")
    return [(_path_or_uri(pattern, inner, info.path), int(info.size or 0)) for info in infos]


def _path_or_uri(pattern: str, inner: str, path: str) -> str:
    """Give a matched path the scheme, host and options of the URI that it was matched by.

    pattern = "s3://bucket/logs/*.csv?region=eu", inner = "bucket/logs/*.csv", path = "bucket/logs/a.csv"
    -> "s3://bucket/logs/a.csv?region=eu"
    """
    if "://" not in pattern:
        return path
    parts = urlsplit(pattern)
    container = inner.removesuffix(parts.path.lstrip("/"))
    return urlunsplit(parts._replace(path="/" + path.removeprefix(container).lstrip("/")))
