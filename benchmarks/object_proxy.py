"""A proxy before a server of an object store: it counts requests, and fails them as real stores and networks do."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal

FaultName = Literal[
    "error",  # 500
    "slow down",  # 503, as S3 answers too many requests
    "denied",  # 403, expired credentials
    "slow",  # the answer takes a second
    "cut off",  # half of the answer's body
    "altered",  # one bit of the answer's body is wrong
    "lost answer",  # carried out, but the connection ends without an answer
    "error behind the answer",  # carried out, but answered by a 503
]
SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Request:
    """A request of a client; the names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Response:
    """An answer of a server."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


RequestFilter = Callable[[Request], bool]
Translation = Callable[[Request, Callable[[Request], Response]], Response]
"""Carries out a request; gets the request and a function that sends one to the server."""

SLOW_DOWN = Response(
    503, {}, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
DENIED = Response(
    403, {}, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)


@dataclass
class Plan:
    """Faults of requests to come.

    Attributes:
        fault: What happens.
        times: How often.
        of: Selects the requests; it is asked once for each.
    """

    fault: FaultName
    times: int
    of: RequestFilter


class Proxy:
    """A running proxy.

    Attributes:
        requests: The requests since the last `reset`, without bodies.
        planned: Faults of requests to come.
    """

    def __init__(self, target: tuple[str, int], translate: Translation) -> None:
        self._target, self._translate, self._lock = target, translate, threading.Lock()
        self.planned: list[Plan] = []
        self.requests: list[Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def plan(self, fault: FaultName, times: int, of: RequestFilter = lambda request: True) -> None:
        """Plan a fault of the next requests that a filter selects."""
        with self._lock:
            self.planned.append(Plan(fault, times, of))

    def reset(self) -> None:
        """Forget the requests so far, and all planned faults."""
        with self._lock:
            self.planned.clear()
            self.requests.clear()

    def count(self, method: str, path: str = "") -> int:
        """Number of requests of a method whose path contains a string."""
        return sum(request.method == method and path in request.path for request in self.requests)

    def answer(self, request: Request) -> Response | None:
        """Carry out a request, with the fault that is planned for it; None for no answer."""
        with self._lock:
            self.requests.append(replace(request, body=b""))
            plan = next((plan for plan in self.planned if plan.of(request)), None)
            if plan:
                plan.times -= 1
                self.planned = [plan for plan in self.planned if plan.times]
        fault = plan and plan.fault
        if fault == "error":
            return Response(500, {}, b"")
        if fault == "slow down":
            return SLOW_DOWN
        if fault == "denied":
            return DENIED
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        response = self._translate(request, self._forward)
        if fault == "lost answer":
            return None
        if fault == "error behind the answer":
            return SLOW_DOWN
        if fault == "cut off":
            # The length stays that of all of it.
            headers = {**response.headers, "content-length": str(len(response.body))}
            return replace(response, headers=headers, body=response.body[: len(response.body) // 2])
        if fault == "altered":
            return replace(response, body=response.body[:-1] + bytes([response.body[-1] ^ 1]))
        return response

    def _forward(self, request: Request) -> Response:
        connection = http.client.HTTPConnection(*self._target)
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            answer = connection.getresponse()
            dropped = {"transfer-encoding", "connection", "server", "date", "keep-alive"}
            headers = {
                name: value for name, value in _by_lower_name(answer.getheaders()).items() if name not in dropped
            }
            return Response(answer.status, headers, answer.read())
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: ClassVar[Proxy]

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        response = self.proxy.answer(Request(self.command, self.path, _by_lower_name(self.headers.items()), body))
        if response is None:
            self.close_connection = True
            return
        headers = dict(response.headers)
        length = headers.pop("content-length", None)
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", length or str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        if length is not None and int(length) > len(response.body) and self.command != "HEAD":
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


def _by_lower_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def unchanged(request: Request, forward: Callable[[Request], Response]) -> Response:
    """Carry out a request as it is."""
    return forward(request)


@contextmanager
def proxy_to(target: tuple[str, int], translate: Translation = unchanged) -> Iterator[Proxy]:
    """Run a proxy before a server.

    Args:
        target: Host and port of the server.
        translate: Carries out a request.

    Yields:
        The proxy.
    """
    proxy = Proxy(target, translate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
