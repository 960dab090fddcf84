"""Servers of object stores on this machine, for tests."""

from __future__ import annotations

import http.client
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server on this machine.

    Attributes:
        url: URL of the bucket.
        storage: Options of its client: endpoint and credentials.
    """

    url: str
    storage: Mapping[str, str]

    def open(self, folder: str, **changed: str) -> Store:
        """Open a folder of the bucket, with changed options."""
        return open_store(f"{self.url}/{folder}", {**self.storage, **changed})


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Run moto's S3 server, with an empty bucket named `bucket`; yield its host and port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = server.get_host_and_port()
        connection = http.client.HTTPConnection(*address)
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20240101/us-east-1/s3/aws4_request"}
        connection.request("PUT", "/bucket", b"", signed)
        assert connection.getresponse().status == 200
        connection.close()
        yield address
    finally:
        server.stop()


def s3_bucket(host: str, port: int) -> Bucket:
    """The bucket of `s3_server`, at this address or at that of a proxy before it."""
    storage = {
        "endpoint": f"http://{host}:{port}",
        "region": "us-east-1",
        "access_key_id": "name",
        "secret_access_key": "not-a-secret",
    }
    return Bucket("s3://bucket", storage)
