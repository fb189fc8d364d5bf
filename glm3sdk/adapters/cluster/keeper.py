"""Runs one command and leaves nothing of it behind: `python keeper.py CONTROL COMMAND...`.

CONTROL is the number of an inherited descriptor, the reading end of a pipe that only the
launcher writes to. When it ends, the launcher is gone (even by SIGKILL) or wants an end at
once, and everything that the command started is killed. The keeper adopts orphans, so a
daemon of the command's is found too. Were the keeper itself killed, the kernel kills the
command. It ends as the command ended, by the same signal or with the same exit code.

A file of its own that imports the standard library alone: there is one such process a rank.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> NoReturn:
    """Run the command of the process's arguments."""
    control, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(control, False)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"glm3 launch: prctl failed: {os.strerror(ctypes.get_errno())}")
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    # The group gets its signals together; the keeper stays, to tell how the command ended.
    # Handlers, unlike SIG_IGN, do not pass on to the command.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, libc, keeper)
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        # Before `control`: an end that came first is how the command ended.
        status = _reap(pid)
        if status is None and control in ready:
            _kill_children()
            _end_by(signal.SIGKILL)
        if status is not None:
            _kill_children()
            if os.WIFSIGNALED(status):
                _end_by(os.WTERMSIG(status))
            os._exit(os.WEXITSTATUS(status))


def _become(command: list[str], libc: ctypes.CDLL, keeper: int) -> NoReturn:
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)
        # The command line blocks SIGINT before it starts others.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)  # noqa: S606  # what the user asked to run
    except OSError as exc:
        os.write(2, f"glm3 launch: {command[0]}: {exc.strerror}\n".encode())
        os._exit(127 if isinstance(exc, FileNotFoundError) else 126)
    finally:
        os._exit(1)


def _reap(pid: int) -> int | None:
    """Take every process that ended; the command's status if it is one of them."""
    found = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if ended == 0:
            return found
        if ended == pid:
            found = status


def _kill_children() -> None:
    """Kill every descendant: a killed one's children become ours, and are next."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        # The name stands in parentheses and may hold any; state and parent come behind.
        if int(stat.rpartition(b")")[2].split()[1]) == os.getpid():
            found.append(int(name))
    return found


def _end_by(number: int) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
