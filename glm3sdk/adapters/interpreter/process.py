"""The code interpreter: a code cell in a process of its own, with limits."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.domain.chat import ToolSpec
from glm3sdk.domain.tool_functions import Tool
from glm3sdk.errors import BackendUnavailableError, UnsupportedOptionError

_log = logging.getLogger(__name__)

_PROGRAM = Path(__file__).with_name("cell.py")
_MIB = 1024 * 1024
# What the supervisor gets to start and to end the cell in, before it is ended itself.
_GRACE_S = 10.0
_CHUNK = 65536

_DESCRIPTION = (
    "Runs Python code and returns what it prints and the value of its last line. Every call "
    "starts anew in an empty directory; there is no network."
)


@attrs.frozen
class Isolation:
    """What the system keeps a cell away from, besides the limits.

    Attributes:
        network: it has no network, not even the loopback one.
        processes: it sees no other process, and none of its own outlives it.
        files: it can write in its own directory alone.
        reason: why it is not all of these; "" where it is.
    """

    network: bool
    processes: bool
    files: bool
    reason: str = ""


@attrs.frozen(kw_only=True)
class CodeInterpreter:
    """Runs code cells, each in a new process that ends with all of its children.

    It is no wall against somebody who means harm: docs/code-interpreter.md says what it does
    not protect from.

    Attributes:
        timeout_s: seconds that a cell may take.
        memory_bytes: address space of each of its processes.
        processes: most processes and threads at once. Root's are not counted before Linux 6.14,
            and up to 301 after it.
        file_bytes: most bytes of a file.
        folder_bytes: most bytes of all of its files, where the system allows to isolate them.
        output_chars: most characters that are returned; of more, the middle is left out.
        require_isolation: refuse to run where the network cannot be kept away.
        isolate: False runs without namespaces, as on a system that has none.
    """

    timeout_s: float = 10.0
    memory_bytes: int = 1024 * _MIB
    processes: int = 16
    file_bytes: int = 16 * _MIB
    folder_bytes: int = 64 * _MIB
    output_chars: int = 8000
    require_isolation: bool = False
    isolate: bool = True

    def __attrs_post_init__(self) -> None:
        for field in ("timeout_s", "memory_bytes", "processes", "file_bytes", "output_chars"):
            if getattr(self, field) <= 0:
                raise UnsupportedOptionError(
                    f"{field} is {getattr(self, field)!r}; a code cell needs more than 0"
                )

    def run(self, code: str) -> str:
        """Run a cell.

        Args:
            code: Python.

        Returns:
            What it wrote to its standard streams, the value of its last line, the traceback of
            an exception, and in brackets why it was stopped, where it was.

        Raises:
            BackendUnavailableError: the network cannot be kept away and has to be.
        """
        if sys.platform != "linux":
            raise BackendUnavailableError("the code interpreter runs on Linux alone")
        if self.require_isolation and not (found := isolation(self)).network:
            raise BackendUnavailableError(
                f"this system does not keep the network from a code cell ({found.reason}); allow "
                "user namespaces, or pass require_isolation=False"
            )
        output, report = self._run(code)
        if report is not None and not report["isolation"]["network"]:
            _warn_once(report["isolation"]["reason"])
        return _told(output.text(), self._stopped(report)) or "(no output)"

    def _stopped(self, report: dict[str, Any] | None) -> str:
        """Why the cell did not come to its end; "" where it did."""
        if report is None:
            return "the process was ended from outside"
        ended = report["ended"]
        if ended["timed_out"]:
            return f"stopped after {self.timeout_s:g} s"
        if not ended["signal"]:
            return ""
        name = signal.Signals(ended["signal"]).name
        if name == "SIGXFSZ":
            return f"stopped: a file would have become larger than {self.file_bytes} bytes"
        return f"ended by {name}"

    def _run(self, code: str) -> tuple[_Output, dict[str, Any] | None]:
        """Run a cell; its output, and the supervisor's report, None where it had no time to."""
        with tempfile.TemporaryDirectory(
            prefix="glm3sdk-cell-", ignore_cleanup_errors=True
        ) as folder:
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb") as reports:
                try:
                    process = self._start(folder, writing)
                finally:
                    os.close(writing)
                output = _Output(self.output_chars)
                try:
                    self._ask(process, folder, code)
                    output.take(process, time.monotonic() + self.timeout_s + _GRACE_S)
                finally:
                    _end(process)
                # It was written whole or not at all; no process that could write more is left.
                os.set_blocking(reading, False)
                report = reports.read()
            return output, json.loads(report) if report else None

    def _start(self, folder: str, report: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  # our own program and a number
            [sys.executable, "-I", "-u", "-X", "utf8", str(_PROGRAM), str(report)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Nothing of this process's environment: it may hold keys.
            env={
                "HOME": folder,
                "LANG": "C.UTF-8",
                "MPLBACKEND": "agg",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PATH": os.defpath,
                "TMPDIR": folder,
            },
            pass_fds=[report],
            start_new_session=True,
        )

    def _ask(self, process: subprocess.Popen[bytes], folder: str, code: str) -> None:
        assert process.stdin is not None  # noqa: S101  # a pipe was asked for
        request = attrs.asdict(self) | {"parent": os.getpid(), "folder": folder, "code": code}
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps(request).encode())


class _Output:
    """The first and the last bytes of a stream, however long it is."""

    def __init__(self, chars: int) -> None:
        self._chars = chars
        self._kept = 4 * chars  # bytes of the longest character
        self._head, self._tail, self._left_out = bytearray(), bytearray(), 0

    def take(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Read until the stream ends, or the deadline."""
        assert process.stdout is not None  # noqa: S101  # a pipe was asked for
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                # A process that got away may hold the stream open: then the supervisor's end
                # is the end.
                over = process.poll() is not None
                if not selector.select(0 if over else min(left, 1.0)):
                    if over:
                        return
                    continue
                data = os.read(process.stdout.fileno(), _CHUNK)
                if not data:
                    return
                self._add(data)

    def _add(self, data: bytes) -> None:
        room = self._kept - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if (over := len(self._tail) - self._kept) > 0:
            del self._tail[:over]
            self._left_out += over

    def text(self) -> str:
        """The text; its middle is left out where it is too long."""
        head = self._head.decode("utf-8", "replace")
        tail = self._tail.decode("utf-8", "replace")
        if not self._left_out and len(head) + len(tail) <= self._chars:
            return head + tail
        whole, half = head + tail, self._chars // 2
        return f"{whole[:half]}\n... (output left out) ...\n{whole[-half:]}"


@cache
def isolation(interpreter: CodeInterpreter | None = None) -> Isolation:
    """What this system keeps a cell away from; a first call runs an empty cell."""
    _, report = (interpreter or CodeInterpreter())._run("")
    if report is None:
        return Isolation(network=False, processes=False, files=False, reason="it did not run")
    return Isolation(**report["isolation"])


def interpreter_tool(interpreter: CodeInterpreter | None = None) -> Tool:
    """The interpreter as a tool that `run_tools` gives the model's code cells to."""
    spec = ToolSpec(
        "interpreter",
        _DESCRIPTION,
        {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python code"}},
            "required": ["code"],
        },
    )
    return Tool(spec, (interpreter or CodeInterpreter()).run)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _told(output: str, stopped: str) -> str:
    if not stopped:
        return output
    newline = "" if not output or output.endswith("\n") else "\n"
    return f"{output}{newline}[{stopped}]"


@cache
def _warn_once(reason: str) -> None:
    _log.warning(
        "the code interpreter cannot keep the network and other processes from the code that it "
        "runs (%s): docs/code-interpreter.md",
        reason,
    )
