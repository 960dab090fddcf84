"""From what a user writes to a `Store`: a folder, a URL of an object store, or a store itself."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from urllib.parse import urlsplit

from longbatch.schemas.errors import SpecError

from .hdfs_store import HdfsStore
from .local_store import LocalStore
from .object_store import ATTEMPTS, ObjectStore
from .store import Store

Location = str | PathLike[str] | Store
"""Where a folder of files is: a path, a URL, or a store with options of its own."""

FileLocation = str | PathLike[str]
"""Where a file is: a path or a URL."""

# The schemes that people and Hadoop write, and the one that obstore knows.
SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
    "wasb": "az",
    "wasbs": "az",
}

ONE_SLASH = re.compile(rf"({'|'.join((*SCHEMES, 'hdfs'))}):/(?!/)")


def is_url(location: object) -> bool:
    """Whether a location is a URL rather than a path of this machine.

    Args:
        location: The location.
    """
    return isinstance(location, str) and "://" in location


def open_store(location: Location, storage: Mapping[str, str] | None = None, attempts: int = ATTEMPTS) -> Store:
    """Open the folder of files at a location. Nothing is requested yet.

    Args:
        location: A folder, or `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
            `abfss://container@account.dfs.core.windows.net/prefix` or `hdfs://host/folder`. A store is returned as it
            is.
        storage: Settings of an object store by obstore's names, such as `endpoint`, `region` or credentials. What is
            not given comes from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
        attempts: Number of attempts of a request to an object store.

    Returns:
        The store.

    Raises:
        SpecError: The scheme is unknown, a slash of the URL is missing, or it contains credentials or settings.

    Example:
        >>> open_store("dataset")
        LocalStore('dataset')
        >>> open_store("s3a://bucket/dataset", {"region": "eu-west-1"})
        ObjectStore('s3a://bucket/dataset')
    """
    if isinstance(location, Store):
        return location
    if not is_url(location):
        return LocalStore(_local_path(location))
    url = urlsplit(str(location))
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.query or url.fragment:
        raise SpecError(
            f"{shown}: a URL of a store has no part after '?' or '#'. Set the endpoint, the region and credentials in "
            "the environment (such as AWS_ENDPOINT_URL), or pass them as `storage` options."
        )
    if url.scheme == "file":
        return LocalStore(url.path)
    if url.scheme == "hdfs":
        return HdfsStore(str(location))
    kind = SCHEMES.get(url.scheme)
    if kind is None:
        raise SpecError(
            f"{shown}: longbatch does not know {url.scheme}://. Use a path, or one of "
            f"{', '.join(f'{scheme}://' for scheme in (*SCHEMES, 'hdfs'))}."
        )
    options, netloc = dict(storage or {}), url.netloc
    if kind == "az" and "@" in netloc:
        # Hadoop's form names the account: container@account.dfs.core.windows.net
        netloc, _, host = netloc.partition("@")
        options.setdefault("account_name", host.partition(".")[0])
    elif "@" in netloc:
        raise SpecError(
            f"{shown}: the URL contains credentials. Set them in the environment, or pass them as `storage` options."
        )
    if not netloc:
        raise SpecError(f"{shown}: the URL names no bucket. Write {url.scheme}://bucket/folder.")
    path = url.path.strip("/")
    return ObjectStore(f"{kind}://{netloc}/{path}", f"{url.scheme}://{url.netloc}/{path}", options, attempts)


def open_file(location: FileLocation) -> tuple[Store, str]:
    """Open the folder that contains a file. Nothing is requested yet.

    Args:
        location: Path or URL of the file.

    Returns:
        The folder, and the name of the file in it.

    Raises:
        SpecError: As for `open_store`; or a URL names no file.

    Example:
        >>> open_file("s3://bucket/specs/spec.toml")
        (ObjectStore('s3://bucket/specs'), 'spec.toml')
    """
    if not is_url(location):
        path = Path(_local_path(location))
        return LocalStore(path.parent), path.name
    folder, _, name = str(location).rpartition("/")
    if not name or folder.endswith(("://", ":/")):
        raise SpecError(f"{location} is not the URL of a file. Write one such as s3://bucket/folder/file.")
    return open_store(folder), name


def folder_of(location: FileLocation) -> str:
    """Return the folder that contains a file: its absolute path without links, or its URL.

    Args:
        location: Path or URL of the file.

    Raises:
        SpecError: As for `open_file`.
    """
    store, name = open_file(location)
    return str(store.path(name).resolve().parent) if isinstance(store, LocalStore) else store.location


def read_file(location: FileLocation) -> bytes:
    """Read a file of this machine or of a store.

    Args:
        location: Path or URL of the file.

    Returns:
        Its bytes.

    Raises:
        OSError: The file does not exist, or this machine cannot read it.
        MachineError: The store cannot be reached or read.
        SpecError: As for `open_file`.
    """
    if not is_url(location):
        return Path(_local_path(location)).read_bytes()
    store, name = open_file(location)
    try:
        return store.read(name).to_pybytes()
    except FileNotFoundError:
        # with the number and the text that a disk reports, so that callers can show it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(location)) from None


def is_file(location: FileLocation) -> bool:
    """Whether a file exists.

    Args:
        location: Path or URL of the file.

    Raises:
        MachineError: The store cannot be reached or read.
        SpecError: As for `open_file`.
    """
    if not is_url(location):
        return Path(_local_path(location)).is_file()
    store, name = open_file(location)
    try:
        store.size(name)
    except FileNotFoundError:
        return False
    return True


def _local_path(location: str | PathLike[str]) -> str:
    """The path of a location that is no URL, with ~ expanded."""
    path = os.path.expanduser(fspath(location))
    if match := ONE_SLASH.match(path):
        raise SpecError(
            f"{path}: a URL has two slashes after the scheme. Write {match[1]}:/{path[len(match[1]) + 1 :]}, and in "
            "Python pass it as a string, because a Path drops a slash."
        )
    return path
