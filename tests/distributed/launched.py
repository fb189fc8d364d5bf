"""Launches `glm3 launch` and talks to its ranks, for the tests of this folder."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
TIMEOUT_S = 60.0


class Rank:
    """The test's end of a worker."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_S)
        self._connection = connection
        self._lines = connection.makefile("rw", encoding="utf-8")
        hello = json.loads(self.hear())
        self.rank_id: int = hello["rank"]
        self.restart: int = hello["restart"]
        self.pids: list[int] = hello["pids"]
        self.keeper: int = hello["keeper"]

    def say(self, text: str) -> None:
        self._lines.write(f"{text}\n")
        self._lines.flush()

    def hear(self) -> str:
        return self._lines.readline().rstrip("\n")

    def close(self) -> None:
        self._connection.close()


class Meeting:
    """Where workers come, from any network namespace; their processes are looked after."""

    def __init__(self) -> None:
        # A socket's path is at most 107 bytes: pytest's folders may be deeper.
        self._folder = tempfile.TemporaryDirectory(prefix="glm3-")
        self.path = f"{self._folder.name}/meeting"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen()
        self._server.settimeout(TIMEOUT_S)
        self.ranks: list[Rank] = []

    def expect(self, number: int) -> list[Rank]:
        """The next ranks that come, by rank_id."""
        found = [Rank(self._server.accept()[0]) for _ in range(number)]
        self.ranks += found
        return sorted(found, key=lambda rank: rank.rank_id)

    def assert_nothing_is_left(self) -> None:
        for rank in self.ranks:
            for pid in [rank.keeper, *rank.pids]:
                assert gone(pid), f"process {pid} of rank {rank.rank_id} is still there"

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()
        self._server.close()
        self._folder.cleanup()


class Launched:
    """A launcher under way."""

    def __init__(
        self,
        *arguments: object,
        directory: Path,
        environ: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        known = ("MS_", "RANK_", "MA_", "VC_", "DEVICE_ID")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(known)}
        command = [*prefix, sys.executable, "-m", "glm3sdk", "launch", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=clean | {"PYTHONPATH": str(REPOSITORY)} | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, timeout_s: float = TIMEOUT_S) -> tuple[int, str, str]:
        """Its exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def end(self) -> None:
        """End it, if it is there: what it started goes with it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)


def gone(pid: int) -> bool:
    """Whether a process ends within the time that tests wait (or is a zombie, of nobody's)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], TIMEOUT_S)[0])
    finally:
        os.close(descriptor)


def worker_command(meeting: Meeting) -> list[str]:
    return [sys.executable, str(WORKER), meeting.path]


SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
