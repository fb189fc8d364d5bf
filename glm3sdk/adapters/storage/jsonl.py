"""Lines of a local file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from glm3sdk.errors import InvalidDatasetError
from glm3sdk.ports.line_source import Line

MAX_LINE_BYTES = 16 * 1024 * 1024
_SKIPPED_AT_ONCE = 1024 * 1024


class JsonLinesFile:
    r"""A data file with a record on each line, never held in memory.

    Lines end with `\n`, or `\r\n`.

    Args:
        path: a regular file.
        max_line_bytes: a longer line is given without its bytes.

    Raises:
        InvalidDatasetError: there is no such file, or it is a directory or a pipe.
    """

    def __init__(self, path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._path, self._max_line_bytes = Path(path), max_line_bytes
        with self._open() as file:
            self._opened_state = _state(file)

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def lines(self) -> Iterator[Line]:
        """Every line from the first, at most `max_line_bytes` of it in memory.

        Raises:
            InvalidDatasetError: the file cannot be read or has changed.
        """
        number = offset = 0
        with self._open_again() as file:
            try:
                while data := file.readline(self._max_line_bytes + 1):
                    number += 1
                    size = len(data)
                    if size > self._max_line_bytes:
                        size += _skip_line(file, data)
                        yield Line(number, offset, size, None)
                    else:
                        yield Line(number, offset, size, data)
                    offset += size
            except OSError as exc:
                raise self._unreadable(exc) from exc

    def read(self, offset: int, size: int) -> bytes:
        """Read a line again by its place.

        Raises:
            InvalidDatasetError: the file cannot be read or has changed.
        """
        with self._open_again() as file:
            try:
                file.seek(offset)
                return file.read(size)
            except OSError as exc:
                raise self._unreadable(exc) from exc

    def _open(self) -> io.BufferedReader:
        try:
            # A pipe would wait for its writer, and cannot be read twice.
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise InvalidDatasetError(
                    f"cannot read dataset {self._path}: not a regular file; "
                    "pass the path of a JSON Lines file"
                )
            return self._path.open("rb")
        except (OSError, ValueError) as exc:
            raise self._unreadable(exc) from exc

    def _open_again(self) -> io.BufferedReader:
        file = self._open()
        if _state(file) != self._opened_state:
            file.close()
            raise InvalidDatasetError(
                f"{self._path} has changed since it was opened; start again and leave it alone"
            )
        return file

    def _unreadable(self, cause: OSError | ValueError) -> InvalidDatasetError:
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        return InvalidDatasetError(
            f"cannot read dataset {self._path}: {reason}; pass the path of a JSON Lines file"
        )


def _state(file: io.BufferedReader) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _skip_line(file: io.BufferedReader, data: bytes) -> int:
    """Read on to the end of a line and return how many bytes that were."""
    skipped = 0
    while data and not data.endswith(b"\n"):
        data = file.readline(_SKIPPED_AT_ONCE)
        skipped += len(data)
    return skipped
