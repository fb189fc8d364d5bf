"""Ctrl-C that MindSpore cannot take away.

Once MindSpore has run a graph, its own handler of SIGINT ends the process, and Python
cannot put its handler back. So SIGINT is blocked before any other thread starts, which all
of them inherit. One thread waits for it and passes it on to the main thread as another
signal, whose handler raises KeyboardInterrupt there, even out of a wait or a read.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""

# Nobody else sends SIGURG, and where it has no handler it does nothing.
_PASSED_ON_AS = signal.SIGURG
_AGAIN_S = 0.02


def take_interrupts() -> None:
    """Make Ctrl-C a KeyboardInterrupt in the main thread for the rest of the process.

    Call it from the main thread, before any other thread exists. Where SIGINT is ignored,
    as under nohup, it stays so.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    relay = _Relay(threading.get_ident())
    signal.signal(_PASSED_ON_AS, relay.deliver)
    threading.Thread(target=relay.run, name="glm3-interrupts", daemon=True).start()


class _Relay:
    def __init__(self, main_thread: int) -> None:
        self._main_thread = main_thread
        self._owed = False

    def run(self) -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            self._owed = True
            # Just before a blocking call the signal is noticed too late to wake it, and the
            # interrupt would have to wait for the next key; so it is sent until it arrives.
            while self._owed:
                signal.pthread_kill(self._main_thread, _PASSED_ON_AS)
                time.sleep(_AGAIN_S)

    def deliver(self, _signum: int, _frame: FrameType | None) -> None:
        if self._owed:
            self._owed = False
            raise KeyboardInterrupt
