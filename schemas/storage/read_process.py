"""Reads objects for a forked process, through a new process.

`obstore` runs requests on threads that a forked process does not have, and DataLoader forks its workers by default. So
a forked process starts this file as a program of its own and asks it over a pipe. The program ends with its parent.

A question is one line of JSON; the answer is one line of JSON (`size` or `error`) and then the bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, cast

import pyarrow as pa

from longbatch.schemas.errors import MachineError


class ReadProcess:
    """The other process, from the side of the one that asks. Threads take turns.

    Args:
        url: URL of the store, see `ObjectStore`.
        location: The URL as the user wrote it.
        options: Settings of the client, which are passed through the pipe only.
        attempts: Number of attempts of a request.
    """

    def __init__(self, url: str, location: str, options: Mapping[str, str], attempts: int) -> None:
        self._location, self._lock = location, threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import answer_requests; answer_requests()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._send({"url": url, "location": location, "options": dict(options), "attempts": attempts})

    def read(self, path: str, byte_range: tuple[int, int] | None) -> pa.Buffer:
        """Read a file, or a range (offset, size in bytes) of it.

        Args:
            path: The file.
            byte_range: The range; None for all of the file.

        Returns:
            The bytes.

        Raises:
            FileNotFoundError: The file does not exist.
            MachineError: The store cannot be reached or read.
        """
        with self._lock:
            self._send({"path": path, "range": byte_range})
            output = cast(IO[bytes], self._process.stdout)
            line = output.readline()
            if not line:
                raise MachineError(f"{self._location}: the process that reads it ended. Run again.")
            answer = json.loads(line)
            if answer.get("missing"):
                raise FileNotFoundError(answer["error"])
            if "error" in answer:
                raise MachineError(answer["error"])
            return pa.py_buffer(output.read(answer["size"]))

    def _send(self, message: Mapping[str, object]) -> None:
        pipe = cast(IO[bytes], self._process.stdin)
        try:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()
        except OSError:
            raise MachineError(f"{self._location}: the process that reads it ended. Run again.") from None


def answer_requests() -> None:
    """Answer the requests of standard input until it ends: the program of `ReadProcess`."""
    from .object_store import ObjectStore

    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    store = ObjectStore(**json.loads(questions.readline()))
    for line in questions:
        question = json.loads(line)
        try:
            found = store.read_range(question["path"], *question["range"]) if question["range"] else None
            data = memoryview(store.read(question["path"]) if found is None else found)
        except (FileNotFoundError, MachineError) as error:
            answer = {"error": str(error), "missing": isinstance(error, FileNotFoundError)}
            answers.write(json.dumps(answer).encode() + b"\n")
        else:
            answers.write(json.dumps({"size": data.nbytes}).encode() + b"\n")
            answers.write(data)
        answers.flush()
