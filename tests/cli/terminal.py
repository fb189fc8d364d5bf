"""A program behind a terminal: types to it, and reads until it has said something."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]

# Ctrl-C goes to the foreground of a controlling terminal, so it must become one first.
_IN_FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """Runs Python with arguments; its standard streams are a terminal of its own."""

    def __init__(
        self, arguments: Sequence[str], *, cwd: Path = REPOSITORY, timeout_s: float = 60
    ) -> None:
        self.transcript = ""
        self._timeout_s = timeout_s
        self._master, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _IN_FOREGROUND, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=cwd,
            env={
                **os.environ,
                "INPUTRC": "/dev/null",
                "LC_ALL": "C.UTF-8",
                "PYTHONPATH": str(REPOSITORY),
                "TERM": "xterm",
            },
            start_new_session=True,
        )
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ctrl_c(self) -> None:
        self.type("\x03")

    def ctrl_d(self) -> None:
        self.type("\x04")

    def until(self, text: str) -> str:
        """Read until `text` has come; returns what came since the last call, with it."""
        deadline = time.monotonic() + self._timeout_s
        while text not in self.transcript:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} never came: {self.transcript[-2000:]!r}")
        before, _, self.transcript = self.transcript.partition(text)
        return before + text

    def exit_code(self) -> int:
        """Read until the program ends; the rest is in `transcript`."""
        deadline = time.monotonic() + self._timeout_s
        while self._read(deadline):
            pass
        return self._process.wait(timeout=self._timeout_s)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
        try:
            data = os.read(self._master, 4096) if ready else b""
        except OSError:  # Linux's end of file of a terminal
            data = b""
        self.transcript += data.decode("utf-8", "replace")
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._master)
