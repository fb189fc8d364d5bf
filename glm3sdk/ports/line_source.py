"""The port of data files: lines in order, and one line again by its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import attrs


@attrs.frozen
class Line:
    """A line of a file.

    Attributes:
        number: from 1.
        offset: bytes before it.
        size: its bytes, the line end included.
        data: the bytes, or None where the line is longer than the source keeps in memory.
    """

    number: int
    offset: int
    size: int
    data: bytes | None


class LineSource(Protocol):
    """A file of lines that is read without holding it in memory."""

    @property
    def name(self) -> str:
        """What to call it in a message, such as its path."""

    def lines(self) -> Iterator[Line]:
        """Every line from the first.

        Raises:
            InvalidDatasetError: the file cannot be read.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Read a line again.

        Raises:
            InvalidDatasetError: the file cannot be read, or is not what it was.
        """
