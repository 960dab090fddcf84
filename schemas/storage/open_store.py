"""From what a user writes to a `Store`: a folder, a URL of an object store, or a store itself."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from urllib.parse import urlsplit

from longbatch.schemas.errors import SpecError

from .hdfs_store import HdfsStore
from .local_store import LocalStore
from .object_store import ATTEMPTS, ObjectStore
from .store import Store

Location = str | PathLike[str] | Store
"""Where a dataset or a file is: a path, a URL, or a store with options of its own."""

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
        SpecError: The scheme is unknown, or the URL contains credentials or settings.

    Example:
        >>> open_store("dataset")
        LocalStore('dataset')
        >>> open_store("s3a://bucket/dataset", {"region": "eu-west-1"})
        ObjectStore('s3a://bucket/dataset')
    """
    if isinstance(location, Store):
        return location
    if not is_url(location):
        return LocalStore(fspath(location))
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
