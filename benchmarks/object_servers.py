"""Servers of object stores on this machine, each behind a proxy: S3 by moto, Azure by Azurite, Google's API on moto."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path

from longbatch.schemas.errors import MachineError
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store

from .object_proxy import Proxy, Request, Response, proxy_to

SECRET = "not-a-secret"
# Azurite's own account, which its documentation lists.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
GOOGLE_CONDITION = "x-goog-if-generation-match"
AWS_SIGNATURE = "AWS4-HMAC-SHA256 Credential=x/20240101/us-east-1/s3/aws4_request"


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server on this machine.

    Attributes:
        url: URL of the bucket.
        storage: Options of its client: endpoint and credentials.
        environment: The same as variables of the environment.
        proxy: What all requests go through.
    """

    url: str
    storage: Mapping[str, str]
    environment: Mapping[str, str]
    proxy: Proxy

    def open(self, folder: str) -> Store:
        """Open a folder of the bucket."""
        return open_store(f"{self.url}/{folder}", self.storage)


@contextmanager
def s3_server() -> Iterator[Bucket]:
    """Run moto's server of S3, with an empty bucket."""
    with _moto() as address, proxy_to(address) as proxy:
        storage = {
            "endpoint": proxy.url,
            "region": "us-east-1",
            "access_key_id": "name",
            "secret_access_key": SECRET,
        }
        yield Bucket("s3://bucket", storage, _variables(storage, "AWS_", endpoint="AWS_ENDPOINT_URL"), proxy)


@contextmanager
def _moto() -> Iterator[tuple[str, int]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = server.get_host_and_port()
        _put(address, "/bucket", {"Authorization": AWS_SIGNATURE})
        yield address
    finally:
        server.stop()


@contextmanager
def gcs_server(condition: bool = True) -> Iterator[Bucket]:
    """Run a server of Google's XML API, with an empty bucket: moto behind a proxy that translates headers.

    Google's XML API is that of S3, with other names of headers. The emulators on PyPI do not implement it: they have
    no listing, no conditional writes and no uploads in parts.

    Args:
        condition: Whether the server knows conditional writes; an object of the same name is replaced otherwise.
    """
    with _moto() as address, proxy_to(address, as_google if condition else _without_condition) as proxy:
        key = {
            "gcs_base_url": proxy.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": SECRET,
            "private_key_id": "",
        }
        storage = {"service_account_key": json.dumps(key)}
        yield Bucket("gs://bucket", storage, _variables(storage, "GOOGLE_"), proxy)


def as_google(request: Request, forward: Callable[[Request], Response]) -> Response:
    """Carry out a request of Google's XML API on a server of S3."""
    headers = {**request.headers, "authorization": AWS_SIGNATURE}
    # Generation 0 is that of an object that does not exist.
    if headers.pop(GOOGLE_CONDITION, None) == "0":
        headers["if-none-match"] = "*"
    translated = replace(request, headers=headers)
    # Google reports an object that does not exist, where S3 deletes it.
    if request.method == "DELETE" and "uploadId" not in request.path:
        found = forward(replace(translated, method="HEAD", body=b""))
        if found.status == 404:
            return Response(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
    return forward(translated)


def _without_condition(request: Request, forward: Callable[[Request], Response]) -> Response:
    headers = {name: value for name, value in request.headers.items() if name != GOOGLE_CONDITION}
    return as_google(replace(request, headers=headers), forward)


@contextmanager
def azure_server() -> Iterator[Bucket]:
    """Run Azurite, with an empty container.

    Raises:
        MachineError: It is not installed.
    """
    program = azurite()
    if program is None:
        raise MachineError("Azurite is not installed. Run `make azurite`, which needs npm.")
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"]
    with subprocess.Popen([*command, "--skipApiVersionCheck"], stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = (re.search(r"listens on http://(.*):(\d+)", line) for line in process.stdout or ())
            match = next(filter(None, lines))
            address = match[1], int(match[2])
            _create_container(address, "bucket")
            with proxy_to(address) as proxy:
                storage = {
                    "endpoint": f"{proxy.url}/{AZURE_ACCOUNT}",
                    "account_name": AZURE_ACCOUNT,
                    "account_key": AZURE_KEY,
                }
                yield Bucket("az://bucket", storage, _variables(storage, "AZURE_STORAGE_"), proxy)
        finally:
            process.kill()


def azurite() -> str | None:
    """The program of Azurite: on PATH, or where `make azurite` puts it."""
    installed = Path(__file__).resolve().parent.parent / ".cache" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    return str(installed) if os.access(installed, os.X_OK) else shutil.which("azurite-blob")


def _create_container(address: tuple[str, int], name: str) -> None:
    """Create a container with a signed request, because obstore creates none."""
    path, date, version = f"/{AZURE_ACCOUNT}/{name}", formatdate(usegmt=True), "2021-12-02"
    headers = f"x-ms-date:{date}\nx-ms-version:{version}"
    text = "PUT" + "\n" * 12 + f"{headers}\n/{AZURE_ACCOUNT}{path}\nrestype:container"
    signature = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    signed = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signature).decode()}",
    }
    _put(address, f"{path}?restype=container", signed)


def _variables(storage: Mapping[str, str], prefix: str, **names: str) -> dict[str, str]:
    """Options of a client as variables of the environment: PREFIX_NAME, or the names given."""
    return {names.get(name, prefix + name.upper()): value for name, value in storage.items()}


def _put(address: tuple[str, int], path: str, headers: Mapping[str, str]) -> None:
    connection = http.client.HTTPConnection(*address)
    connection.request("PUT", path, b"", dict(headers))
    status = connection.getresponse().status
    connection.close()
    if status not in (200, 201):
        raise MachineError(f"the server of an object store answered {status} to PUT {path}.")
