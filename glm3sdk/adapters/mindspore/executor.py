"""One thread of the process runs every MindSpore call (see docs/adr/0003)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Executor:
    """Runs callables one after another on a thread of its own, started at first use.

    MindSpore compiles and runs graphs on one thread only: two threads raise "Nested
    execution" or crash the process, even with two models. The thread is a daemon, so
    that a process with work under way can still exit.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, job: Callable[[], T]) -> T:
        """Run `job` on the thread and return what it returns, or raise what it raises."""
        thread = self._started()
        if threading.current_thread() is thread:
            return job()
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future.result()

    def _started(self) -> threading.Thread:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="glm3sdk-mindspore", daemon=True
                )
                self._thread.start()
            return self._thread

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as exc:
                # Even SystemExit belongs to the caller, or its wait would never end.
                future.set_exception(exc)
            # A job holds tensors; do not keep them alive while waiting for the next one.
            del future, job


EXECUTOR = Executor()
"""The process's one executor; nothing runs until it is used."""
