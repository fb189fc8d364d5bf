"""What ranks write: whole into a file a rank, and line by line to the launcher's output."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from glm3sdk.errors import LaunchError

LONGEST_LINE = 8192
"""Bytes of a line that are shown live; the file has all of it."""

_LAST_LINES = 20
# A bar that is redrawn in place would fill the output of eight ranks; now and then one shows.
_PROGRESS_EVERY_S = 10.0
_COLOURS = (36, 32, 33, 35, 34, 31, 96, 92, 93, 95, 94, 91)
_LINE_END = re.compile(rb"[\r\n]")
# What a worker writes must not steer the terminal.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) != "\t"}
_PICTURES |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


class LiveOutput:
    """The launcher's output: whole lines only, so that two ranks' never mix.

    Attributes:
        terminal: whether prefixes are coloured and control characters shown as pictures.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self.terminal = stream.isatty()

    def show(self, prefix: str, line: str, *, colour: int = 0) -> None:
        """Show a line behind a prefix; an empty prefix shows it as it is."""
        if self._stream is None:
            return
        if self.terminal:
            line = line.translate(_PICTURES)
            if prefix:
                prefix = f"\x1b[{_COLOURS[colour % len(_COLOURS)]}m{prefix}\x1b[0m"
        try:
            self._stream.write(f"{prefix} {line}\n" if prefix else f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads any more (`| head`); the files go on.
            self._stream = None


class RankLog:
    """One process's output on its way to its file and to the live output.

    Attributes:
        path: the file.
        last_lines: what the process wrote last, for the message when it fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        prefix: str,
        live: LiveOutput | None,
        colour: int = 0,
        append: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the file.

        Args:
            path: the file; its directory is made.
            prefix: stands before every line that is shown.
            live: where lines are shown; None shows none.
            colour: which of the colours the prefix has.
            append: keep what the file holds.
            clock: seconds that pass.

        Raises:
            LaunchError: the file cannot be written.
        """
        self.path = path
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._prefix, self._live, self._colour, self._clock = prefix, live, colour, clock
        self._line = bytearray()
        self._dropped = 0
        self._progress = b""
        self._progress_shown = clock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO | None = path.open("ab" if append else "wb", buffering=0)
        except OSError as exc:
            raise LaunchError(
                f"{path}: cannot be written: {exc.strerror}; pass another --log-dir"
            ) from exc

    def write(self, data: bytes) -> None:
        """Take what the process wrote, cut anywhere."""
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError as exc:
                # A full disk must not end a job; the live output says so, once.
                self._file = None
                self._show(f"{self.path}: {exc.strerror}; the log ends here")
        start = 0
        for match in _LINE_END.finditer(data):
            self._extend(data[start : match.start()])
            self._end_line(newline=match[0] == b"\n")
            start = match.end()
        self._extend(data[start:])

    def close(self) -> None:
        """Show a last line that has no end, and close the file."""
        if self._line or self._progress:
            self._end_line(newline=True)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _extend(self, piece: bytes) -> None:
        room = LONGEST_LINE - len(self._line)
        self._line += piece[:room]
        self._dropped += max(0, len(piece) - room)

    def _end_line(self, *, newline: bool) -> None:
        line, dropped = bytes(self._line), self._dropped
        self._line.clear()
        self._dropped = 0
        if not newline:
            # Empty at "\r\n", whose line stays until "\n" shows it.
            if line:
                self._progress = line
                self._show_progress()
            return
        # The last state of a bar is shown where nothing was written over it.
        text = (line or self._progress).decode("utf-8", errors="replace")
        self._progress = b""
        if dropped:
            text += f" ... ({dropped} bytes more in {self.path})"
        self.last_lines.append(text)
        self._show(text)

    def _show_progress(self) -> None:
        now = self._clock()
        if now - self._progress_shown >= _PROGRESS_EVERY_S:
            self._progress_shown = now
            self._show(self._progress.decode("utf-8", errors="replace"))

    def _show(self, text: str) -> None:
        if self._live is not None:
            self._live.show(self._prefix, text, colour=self._colour)
