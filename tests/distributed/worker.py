"""A rank without MindSpore: `python worker.py SOCKET` does what the test at SOCKET says.

It connects, sends a line with what it is (rank_id, pid, the pids of a child in its group and of
a daemon outside of it, GLM3SDK_RESTART), then obeys lines: "exit N", "kill N", "print TEXT",
"ignore" (SIGTERM), "save" (take SIGTERM, tell the test, wait for its "saved", exit 0).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys


def main() -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    lines = connection.makefile("rw", encoding="utf-8")
    sleep = [
        sys.executable,
        "-S",
        "-c",
        "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()",
    ]
    child = subprocess.Popen(sleep)
    daemon = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL)
    hello = {
        "rank": int(os.environ["RANK_ID"]),
        "restart": int(os.environ["GLM3SDK_RESTART"]),
        "pids": [os.getpid(), child.pid, daemon.pid],
        "keeper": os.getppid(),
    }

    def tell(text: str) -> None:
        lines.write(f"{text}\n")
        lines.flush()

    tell(json.dumps(hello))
    for line in lines:
        verb, _, argument = line.rstrip("\n").partition(" ")
        if verb == "exit":
            os._exit(int(argument))
        elif verb == "kill":
            os.kill(os.getpid(), int(argument))
        elif verb == "print":
            sys.stdout.write(f"{argument}\n")
            sys.stdout.flush()
        elif verb == "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            tell("ignoring")
        elif verb == "save":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            tell("ready")
            signal.sigwait({signal.SIGTERM})
            tell("asked")
        elif verb == "saved":
            os._exit(0)


if __name__ == "__main__":
    main()
