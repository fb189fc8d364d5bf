"""A process of a job, run by its keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from glm3sdk.errors import LaunchError

_KEEPER = Path(__file__).with_name("keeper.py")


class KeptProcess:
    """A command in a session of its own, of which nothing stays when the launcher ends.

    Attributes:
        pid: the keeper's, which is also the process group.
        exit_code: the command's, or minus the number of the signal that ended it; None
            while it runs.
        output: descriptor of what the command writes, standard error with it.
        ended: descriptor that becomes readable when it has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        first_input: bytes | None = None,
    ) -> None:
        """Start the command.

        Args:
            command: the program and its arguments.
            environment: all of it.
            first_input: what it can read; its standard input then stays open as long as the
                launcher lives. None gives it an empty one.

        Raises:
            LaunchError: the system starts no more processes.
        """
        control, self._control = os.pipe()
        try:
            # -I and -S: a keeper is there at once, whatever the environment says of Python.
            self._keeper = subprocess.Popen(  # noqa: S603  # what the user asked to run
                [sys.executable, "-I", "-S", str(_KEEPER), str(control), *command],
                env=environment,
                stdin=subprocess.DEVNULL if first_input is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(control,),
                start_new_session=True,
            )
        except OSError as exc:
            os.close(self._control)
            raise LaunchError(f"no process can be started: {exc.strerror}") from exc
        finally:
            os.close(control)
        if self._keeper.stdout is None:  # PIPE makes it
            raise AssertionError("a kept process has an output")
        self.pid = self._keeper.pid
        self.exit_code: int | None = None
        self.output = self._keeper.stdout.fileno()
        os.set_blocking(self.output, False)
        self.ended = os.pidfd_open(self.pid)
        if first_input is not None and self._keeper.stdin is not None:
            with suppress(BrokenPipeError):
                self._keeper.stdin.write(first_input)
                self._keeper.stdin.flush()

    def terminate(self) -> None:
        """Ask the command, and what it started in its group, to end."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill everything that the command started."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    def reap(self) -> int:
        """Take the exit code, once `ended` is readable or after `kill`."""
        if self.exit_code is None:
            # While its number is still taken: if the keeper was killed, its group is still there.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.exit_code = self._keeper.wait()
        return self.exit_code

    def close(self) -> None:
        """Close the descriptors; the process must have ended."""
        self.kill()
        for file in (self._keeper.stdout, self._keeper.stdin):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()
        os.close(self.ended)
