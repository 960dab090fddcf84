"""Streams of text files: decompressed by their suffix, of all bytes or a range of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from .chunks import Piece
from .files import open_file

NEWLINE, RETURN = 10, 13
CODECS: dict[str, Literal["gzip", "zstd", "bz2", "lz4"]] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


def is_compressed(path: str) -> bool:
    """Return whether a file is compressed, by its suffix."""
    return path.endswith(tuple(CODECS))


def open_text(path: str, size_bytes: int | None) -> pa.NativeFile:
    """Open a text file as a stream of its decompressed bytes.

    Args:
        path: Local path or URI.
        size_bytes: Length of the file, if it is known.
    """
    file = open_file(path, size_bytes)
    codec = next((codec for suffix, codec in CODECS.items() if path.endswith(suffix)), None)
    return pa.CompressedInputStream(file, codec) if codec else file


class TextStream:
    """The bytes of a piece of a text file, followed by bytes of the caller. pyarrow reads it like a file.

    Args:
        piece: All of a file, or bytes [first, last) of one that is not compressed.
        end: Bytes to add after the last one.

    Attributes:
        lines: Number of lines that were read, without empty ones.
    """

    def __init__(self, piece: Piece, end: bytes = b"") -> None:
        self._file = open_text(piece.path, piece.file_size)
        self._end = end
        self._left = piece.last - piece.first if piece.last else None
        self._last_byte = NEWLINE
        self.lines = 0
        if piece.first:
            self._file.seek(piece.first)
        self.closed = False

    def read(self, size: int) -> bytes:
        """Read some bytes and count the lines that start in them; fewer bytes than `size` only at the end."""
        wanted = size if self._left is None else min(size, self._left)
        parts: list[bytes] = []
        while wanted and (data := self._file.read(wanted)):
            parts.append(data)
            self._count_lines(data)
            wanted -= len(data)
            size -= len(data)
            if self._left is not None:
                self._left -= len(data)
        # pyarrow needs the header in the first block, so bytes of the file are not returned alone at its end.
        if size and self._end:
            parts.append(self._end[:size])
            self._end = self._end[size:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _count_lines(self, data: bytes) -> None:
        """Count the first bytes of lines that are not empty."""
        byte = np.frombuffer(data, dtype=np.uint8)
        starts = byte[np.flatnonzero(byte[:-1] == NEWLINE) + 1]
        if self._last_byte == NEWLINE:
            starts = np.append(starts, byte[0])
        self.lines += int(((starts != NEWLINE) & (starts != RETURN)).sum())
        self._last_byte = int(byte[-1])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self.closed = True
