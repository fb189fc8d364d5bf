"""The program that a code cell runs in: a supervisor and, fenced in as far as may be, the cell.

It is started by its path with `python -I`, imports nothing of glm3sdk, and nothing imports it.
The supervisor reads a request (JSON) from standard input, enters namespaces of its own where
the system lets it, starts the cell, ends it with all of its children, and tells how it went
(JSON) on the descriptor that its argument names. What the cell says is standard output.

Constants are those of Linux, of include/uapi/linux/{sched,mount,prctl,capability}.h; the system
call number of mount_setattr is the same on every architecture.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import json
import linecache
import os
import resource
import signal
import sys
import time
import traceback
import types
from contextlib import suppress
from typing import Any

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC, _NEW_MOUNT = (
    *(0x10000000, 0x20000000, 0x40000000, 0x08000000),
    0x00020000,
)
_OTHERS = _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_MOUNT
_PRIVATE_RECURSIVELY = (1 << 18) | (1 << 14)  # MS_PRIVATE | MS_REC
_NO_SUID_NO_DEVICES = 2 | 4  # MS_NOSUID | MS_NODEV
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_DIE_WITH_PARENT, _ADOPT_ORPHANS, _NO_NEW_PRIVILEGES = 1, 36, 38
_CAPABILITIES_VERSION = 0x20080522
_NOBODY = 65534
_NAME = "<cell>"
_ENDING_S = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Supervise one cell."""
    request = json.load(sys.stdin.buffer)
    report = int(sys.argv[1])
    # Blocked, so that neither is missed between looking and waiting. SIGTERM comes when the
    # parent is gone: then there is still time to end the cell.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != request["parent"]:
        return  # it ended before it could be told
    user = _user()
    own_users, reason = _isolate(user) if request["isolate"] else (False, "switched off")
    _libc.prctl(_ADOPT_ORPHANS, 1)
    locked_end, locking_end = os.pipe()
    cell = os.fork()
    if cell == 0:
        os.close(report)
        os.close(locked_end)
        locked = _fence(request, user, isolated=not reason, own_users=own_users)
        os.write(locking_end, b"y" if locked else b"n")
        os.close(locking_end)
        sys.exit(_run(request["code"]))
    os.close(locking_end)
    ended = _end(cell, timeout_s=request["timeout_s"])
    files = os.read(locked_end, 1) == b"y"
    isolation = {"network": not reason, "processes": not reason, "files": files, "reason": reason}
    os.write(report, json.dumps({"isolation": isolation, "ended": ended}).encode())


def _user() -> int:
    """Whom the cell runs as: root becomes nobody, where nobody can read this Python."""
    uid = os.getuid()
    library = os.path.realpath(os.__file__)
    paths = [library]
    while paths[-1] != "/":
        paths.append(os.path.dirname(paths[-1]))
    readable = os.stat(library).st_mode & 0o004 and all(
        os.stat(path).st_mode & 0o001 for path in paths[1:]
    )
    return _NOBODY if uid == 0 and readable else uid


def _isolate(user: int) -> tuple[bool, str]:
    """Enter namespaces without a network or other processes.

    Returns:
        Whether it is a namespace of users too; and why no namespace was to be had, or "".
    """
    uid, gid = os.getuid(), os.getgid()
    # In a namespace of users, root could not become somebody else.
    for flags in (_OTHERS, _NEW_USER | _OTHERS) if user != uid else (_NEW_USER | _OTHERS,):
        if _libc.unshare(flags):
            continue
        if flags & _NEW_USER:
            with suppress(OSError):
                _write("/proc/self/setgroups", "deny")
                _write("/proc/self/uid_map", f"{uid} {uid} 1")
                _write("/proc/self/gid_map", f"{gid} {gid} 1")
        return bool(flags & _NEW_USER), ""
    return False, os.strerror(ctypes.get_errno())


def _lock_files(folder: str, size: int, user: int) -> bool:
    """Make every file read-only, but those of a file system in memory at `folder`."""
    options = f"size={size},mode=700,uid={user}".encode()
    if (
        _libc.mount(b"none", b"/", None, _PRIVATE_RECURSIVELY, None)
        # The attributes of a mount, as struct mount_attr: set, cleared, propagation, namespace.
        or _set_attributes(_READ_ONLY)
        or _libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID_NO_DEVICES, options)
    ):
        return False
    os.chdir(folder)
    return True


def _set_attributes(attributes: int) -> int:
    values = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(values))
    done: int = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(values), size
    )
    return done


def _fence(request: dict[str, Any], user: int, *, isolated: bool, own_users: bool) -> bool:
    """What holds for the cell alone; tells whether files are locked."""
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    becomes = user != os.getuid() and not own_users
    processes = request["processes"] + 1  # and the supervisor
    locked = False
    if isolated:
        # RLIMIT_NPROC spares root; a namespace has a limit of its own since Linux 6.14, of at
        # least 301.
        with suppress(OSError):
            _write("/proc/sys/kernel/pid_max", str(max(processes, 301)))
        locked = _lock_files(request["folder"], request["folder_bytes"], user)
    if not own_users:
        processes += _tasks_of(user)  # the limit counts all that the user runs
    _limit(request, processes)
    if becomes:
        if not locked:
            os.chown(request["folder"], user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # a change of user clears it
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    _libc.capset(header, (ctypes.c_uint32 * 6)())
    return locked


def _limit(request: dict[str, Any], processes: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(request["timeout_s"]) + 1),
    ):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def _run(code: str) -> int:
    """Run a cell as a notebook does: the value of its last line is shown."""
    # A real module, so that what the cell defines can be found by its name.
    main_module = types.ModuleType("__main__")
    main_module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main_module
    sys.argv = [""]
    linecache.cache[_NAME] = (len(code), None, code.splitlines(keepends=True), _NAME)
    try:
        tree = ast.parse(code, _NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, _NAME, "exec"), main_module.__dict__)  # noqa: S102  # the purpose
        if last is not None:
            shown = compile(ast.Interactive([last]), _NAME, "single")
            exec(shown, main_module.__dict__)  # noqa: S102  # the purpose
    except SystemExit:
        raise
    except BaseException as exc:
        own = exc.__traceback__.tb_next if exc.__traceback__ else None
        if isinstance(exc, MemoryError):
            traceback.clear_frames(own)  # what filled the memory
        if isinstance(exc, SyntaxError):
            own = None
        traceback.print_exception(type(exc), exc, own)
        return 1
    return 0


def _end(cell: int, *, timeout_s: float) -> dict[str, Any]:
    """Wait for the cell and end all that it leaves behind."""
    deadline = time.monotonic() + timeout_s
    status, timed_out = _wait(cell, deadline), False
    if status is None:
        timed_out = True
    # Its session, its children, and their orphans, which come to the supervisor.
    with suppress(OSError):
        os.killpg(cell, signal.SIGKILL)
    with suppress(OSError):
        os.kill(cell, signal.SIGKILL)
    if status is None:
        status = _wait(cell, time.monotonic() + _ENDING_S)
    last = time.monotonic() + _ENDING_S
    while time.monotonic() < last:
        for child in _children():
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
        try:
            found, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not found:
            signal.sigtimedwait({signal.SIGCHLD}, 0.01)
    killed = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    return {"timed_out": timed_out, "signal": 0 if timed_out else killed}


def _wait(cell: int, deadline: float) -> int | None:
    """The cell's status, or None at the deadline or when the parent is gone."""
    while True:
        found, status = os.waitpid(cell, os.WNOHANG)
        if found:
            return status
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        told = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, left)
        if told is not None and told.si_signo == signal.SIGTERM:
            return None


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(text) for text in file.read().split()]
    except OSError:  # a kernel that was built without it
        return []


def _tasks_of(uid: int) -> int:
    """Threads that a user runs."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


if __name__ == "__main__":
    main()
