"""The journal of a download: which chunks of an unfinished file are safely on the disk.

The first line, a JSON object, says what is downloaded. Each further line is the number of a
chunk and a checksum of line and first line, so that a line that was torn or damaged, and
with it all that follows, counts as not written.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_MAX_BYTES = 64 * 1024 * 1024


class Journal:
    """A journal file. It is for one process at a time; the unfinished file's lock sees to that.

    Args:
        path: where it is, or will be.
        identity: what is downloaded, as JSON values: with another identity than its own, a
            journal says nothing.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path = path
        self._header = json.dumps(identity, sort_keys=True).encode() + b"\n"
        self._seed = zlib.crc32(self._header)
        self._file = -1

    def is_of_this(self) -> bool:
        """Whether the file that is there now is about the same download."""
        with suppress(OSError), self._path.open("rb") as file:
            return file.read(len(self._header)) == self._header
        return False

    def resume(self) -> set[int]:
        """Go on with the journal that is there; what of it is not sound is cut off.

        Returns:
            The chunks that are on the disk.

        Raises:
            OSError: it cannot be read or written.
        """
        if not self.is_of_this():
            return set()
        content = self._path.read_bytes()[:_MAX_BYTES]
        sound, chunks = len(self._header), set()
        for line in content[sound:].splitlines(keepends=True):
            number = line.split(b" ")[0]
            if not number.isdigit() or line != self._line(int(number)):
                break
            chunks.add(int(number))
            sound += len(line)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        os.ftruncate(self._file, sound)
        return chunks

    def start(self) -> None:
        """Begin a new journal, on the disk when this returns; the one that is there is void.

        Raises:
            OSError: it cannot be written.
        """
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o666)
        self._append(self._header)

    def add(self, chunks: Iterable[int]) -> None:
        """Record chunks whose bytes are on the disk.

        Raises:
            OSError: it cannot be written.
        """
        self._append(b"".join(map(self._line, chunks)))

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Remove the file."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _line(self, chunk: int) -> bytes:
        return b"%d %08x\n" % (chunk, zlib.crc32(b"%d" % chunk, self._seed))

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)
