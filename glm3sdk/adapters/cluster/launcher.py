"""Starts a node's processes, shows what they write, and ends them together."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from glm3sdk.adapters.cluster.coordination import Failure, Finish, Order, Start, Stop
from glm3sdk.adapters.cluster.kept_process import KeptProcess
from glm3sdk.adapters.cluster.launch_plan import NodePart, PlannedProcess
from glm3sdk.adapters.cluster.links import Link
from glm3sdk.adapters.cluster.rank_logs import LiveOutput, RankLog
from glm3sdk.errors import JobFailedError

_SCHEDULER = "scheduler"
_TICK_S = 0.2
_READ = 65536
# After this long the others of a failed job are killed: a dead worker ends it within 15 s.
_FAILED_GRACE_S = 10.0
# What a failed process wrote last, as far as it is told to other nodes, in bytes.
_LONGEST_LAST_LINE = 500
_BAD_INPUT = 2  # the exit code of commands for a user's mistake, ours among them


@attrs.frozen(kw_only=True)
class Remote:
    """A launcher on another node, started from here.

    Attributes:
        node: its number.
        host: its name, for messages.
        command: what starts it.
        first_input: what it reads; it ends when this ends.
    """

    node: int
    host: str
    command: tuple[str, ...]
    first_input: bytes


@attrs.define
class _Running:
    process: KeptProcess
    log: RankLog
    planned: PlannedProcess


class Launcher:
    """One node's launcher; everything happens on the thread that calls `run`."""

    def __init__(
        self,
        *,
        part: NodePart,
        plan: Callable[[int, int], tuple[PlannedProcess, ...]],
        link: Link,
        remotes: Sequence[Remote] = (),
        environ: Mapping[str, str],
        log_dir: Path,
        live: LiveOutput,
        say: Callable[[str], None],
        signals: socket.socket,
        grace_s: float = 30.0,
        linked: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a launch.

        Args:
            part: this node's part of the job.
            plan: the processes to start, by the attempt and the scheduler's port.
            link: to the other launchers.
            remotes: launchers to start on other nodes.
            environ: what processes inherit.
            log_dir: where a file a process is written.
            live: where their lines are shown.
            say: shows a line of the launcher's own.
            signals: numbers of signals that came, a byte each; it ends when a person who
                started this launcher from another node is gone.
            grace_s: how long ranks may take to save when the job is asked to end.
            linked: whether the link tells of other nodes; if not, a node that only schedules
                is done when its scheduler is.
            clock: seconds that pass.
        """
        self._linked = linked
        self._part, self._plan, self._link, self._remotes = part, plan, link, remotes
        self._environ, self._log_dir, self._live, self._say = environ, log_dir, live, say
        self._signals, self._grace_s, self._clock = signals, grace_s, clock
        self._selector = selectors.DefaultSelector()
        self._running: dict[str, _Running] = {}
        self._stopping: Failure | None = None
        self._kill_at: float | None = None
        self._ended_told = True
        self._finish: Finish | None = None

    def run(self) -> None:
        """Run the job to its end; nothing of it is left afterwards.

        Raises:
            JobFailedError: a rank failed, a node is gone, or a signal asked for the end.
            LaunchError: a process or a log file cannot be made.
        """
        try:
            self._selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
            self._link.begin(self._selector, self._obey)
            for remote in self._remotes:
                self._start_remote(remote)
            while self._finish is None:
                for key, mask in self._selector.select(_TICK_S):
                    key.data(mask)
                self._link.tick()
                if self._kill_at is not None and self._clock() >= self._kill_at:
                    self._kill_at = None
                    self._kill(self._ranks())
            self._kill([name for name in self._running if not self._is_remote(name)])
            self._link.close()
            self._await_remotes()
        finally:
            self._kill(list(self._running))
            self._link.close()
            self._selector.close()
        if self._finish is not None and (failure := self._finish.failure) is not None:
            raise JobFailedError(failure.message, failure.exit_code)

    def _obey(self, order: Order, port: int) -> None:
        if isinstance(order, Finish):
            self._finish = order
        elif isinstance(order, Stop):
            self._stop(order.failure)
        else:
            self._start(order, port)

    def _start(self, order: Start, port: int) -> None:
        self._kill([name for name in self._running if not self._is_remote(name)])
        if order.attempt and self._stopping is not None:
            self._say(f"{self._stopping.message}; start {order.attempt + 1} of all ranks")
        self._stopping, self._kill_at, self._ended_told = None, None, False
        for planned in self._plan(order.attempt, port):
            rank = self._colour(planned.name)
            self._launch(
                planned,
                RankLog(
                    self._log_dir / planned.log_name,
                    prefix=f"[{planned.name}]",
                    live=None if planned.name == _SCHEDULER else self._live,
                    colour=rank,
                    append=order.attempt > 0,
                ),
            )
        if not self._ranks() and self._linked:
            # A node that only schedules is done from the start; the others' ranks count.
            self._link.done()

    def _start_remote(self, remote: Remote) -> None:
        name = f"host {remote.host}"
        planned = PlannedProcess(name, remote.command, {})
        log = RankLog(self._log_dir / f"node_{remote.node}.log", prefix="", live=self._live)
        self._launch(planned, log, first_input=remote.first_input)

    def _launch(
        self, planned: PlannedProcess, log: RankLog, *, first_input: bytes | None = None
    ) -> None:
        try:
            process = KeptProcess(
                planned.command,
                environment=planned.environment(self._environ),
                first_input=first_input,
            )
        except BaseException:
            log.close()
            raise
        running = _Running(process, log, planned)
        self._running[planned.name] = running
        self._selector.register(
            process.output, selectors.EVENT_READ, lambda _mask: self._read(running)
        )
        self._selector.register(
            process.ended, selectors.EVENT_READ, lambda _mask: self._end(running)
        )

    def _read(self, running: _Running) -> bool:
        """Take some output; False when there is none for now, or none any more."""
        try:
            data = os.read(running.process.output, _READ)
        except BlockingIOError:
            return False
        if data:
            running.log.write(data)
        elif running.process.output in self._selector.get_map():
            self._selector.unregister(running.process.output)
        return bool(data)

    def _end(self, running: _Running) -> None:
        """A process has ended; what that means for the job."""
        if self._running.get(running.planned.name) is not running:
            return
        code = self._take_leave(running)
        name = running.planned.name
        if self._is_remote(name):
            if code != 0:
                self._link.fail(self._failure_of(running, code))
            return
        if self._stopping is None and code != 0:
            self._link.fail(self._failure_of(running, code))
        if not self._ranks():
            if self._stopping is None:
                self._link.done()
            self._tell_ended()

    def _take_leave(self, running: _Running) -> int:
        del self._running[running.planned.name]
        process = running.process
        code = process.reap()
        while self._read(running):
            pass
        for descriptor in (process.output, process.ended):
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        running.log.close()
        process.close()
        return code

    def _stop(self, failure: Failure) -> None:
        if self._stopping is not None:
            return
        self._stopping = failure
        if failure.last_lines:
            self._say("a process failed; the last lines that it wrote:")
        for line in failure.last_lines:
            self._say(f"  {line}")
        self._kill_at = self._clock() + (
            self._grace_s if failure.asked else min(self._grace_s, _FAILED_GRACE_S)
        )
        for name in self._ranks():
            self._running[name].process.terminate()
        self._tell_ended()

    def _tell_ended(self) -> None:
        if self._stopping is not None and not self._ranks() and not self._ended_told:
            self._ended_told = True
            self._kill_at = None
            self._link.ended()

    def _kill(self, names: Sequence[str]) -> None:
        doomed = [self._running[name] for name in names]
        for running in doomed:
            running.process.kill()
        for running in doomed:
            if self._running.get(running.planned.name) is running:
                self._take_leave(running)
        self._tell_ended()

    def _await_remotes(self) -> None:
        """Launchers elsewhere have heard of the end; let them show their last lines."""
        until = self._clock() + _FAILED_GRACE_S
        while self._running and (left := until - self._clock()) > 0:
            for key, mask in self._selector.select(min(left, _TICK_S)):
                if key.fileobj is not self._signals:
                    key.data(mask)

    def _take_signals(self, _mask: int) -> None:
        numbers = self._signals.recv(64)
        if not numbers:
            self._selector.unregister(self._signals)
            self._ask("the launcher that started this one is gone", 128 + signal.SIGHUP)
            return
        for number in numbers:
            if self._stopping is not None and self._stopping.asked and number == signal.SIGINT:
                self._kill(self._ranks())
                continue
            self._ask(f"stopped by {signal.Signals(number).name}", 128 + number)

    def _ask(self, what: str, exit_code: int) -> None:
        if self._ranks():
            self._say(f"{what}: ranks have {self._grace_s:g} s to end; Ctrl-C ends them at once")
        self._link.fail(Failure(f"{self._part.name}: {what}", exit_code, asked=True))

    def _failure_of(self, running: _Running, code: int) -> Failure:
        planned = running.planned
        how = f"exit code {code}" if code >= 0 else _signal_name(-code)
        place = planned.name
        if self._is_remote(place):
            place = f"the launcher on {place}"
        elif place != _SCHEDULER:
            place = f"{place} on {self._part.name}, card {planned.variables['DEVICE_ID']},"
        return Failure(
            f"{place} ended with {how}; its log is {running.log.path}",
            code if code >= 0 else 128 - code,
            tuple(line[:_LONGEST_LAST_LINE] for line in running.log.last_lines),
            # A wrong option or file stays wrong; and a rank that starts again takes it that a run
            # of its own is to be resumed.
            restart=code != _BAD_INPUT and not self._is_remote(planned.name),
        )

    def _ranks(self) -> list[str]:
        return [name for name in self._running if name != _SCHEDULER and not self._is_remote(name)]

    def _is_remote(self, name: str) -> bool:
        return name.startswith("host ")

    def _colour(self, name: str) -> int:
        return int(name.removeprefix("rank ")) if name.startswith("rank ") else 0


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    # Nothing else tells of it: the kernel sends this one.
    return f"{name} (out of memory?)" if number == signal.SIGKILL else name
