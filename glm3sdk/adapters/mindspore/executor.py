"""One thread of the process runs every MindSpore call (see docs/adr/0003)."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from glm3sdk.errors import ServiceClosedError

T = TypeVar("T")
Job = tuple["Future[Any] | None", Callable[[], Any]]

LONGEST_EXIT_S = 30.0

logger = logging.getLogger(__name__)


class Executor:
    """Runs callables one after another on a thread of its own, started at first use.

    MindSpore compiles and runs graphs on one thread only: two threads raise "Nested
    execution" or crash the process, even with two models. The thread is a daemon, so
    that a process with work under way can still exit.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._exiting = False
        self._waits_at_exit = False

    def run(self, job: Callable[[], T]) -> T:
        """Run `job` on the thread and return what it returns, or raise what it raises.

        A caller that is interrupted while it waits gets its KeyboardInterrupt at once; the
        job runs to its end and its result is dropped.

        Raises:
            ServiceClosedError: the interpreter is exiting.
        """
        thread = self._started()
        if threading.current_thread() is thread:
            return job()
        if self._exiting and threading.current_thread() is threading.main_thread():
            raise ServiceClosedError("the interpreter is exiting; MindSpore runs nothing any more")
        # A daemon thread that comes while the interpreter exits waits here for its own end.
        future: Future[T] = Future()
        self._jobs.put((future, job))
        try:
            return future.result()
        finally:
            # An exception holds this frame: a future in it would make a cycle, which keeps
            # the job's tensors until some later collection on some other thread.
            del future

    def clear_up(self, job: Callable[[], object]) -> None:
        """Run `job` and wait for it, or do nothing while the interpreter exits."""
        if not self._exiting:
            self.run(job)

    def post(self, job: Callable[[], object]) -> None:
        """Run `job` on the thread some time, without waiting; its exceptions are logged.

        For finalizers, which run on any thread and inside any lock.
        """
        self._jobs.put((None, job))

    def wait_at_exit(self) -> None:
        """From now on, let a job that is under way end before the interpreter does.

        A thread that comes back from MindSpore to an interpreter that is gone aborts the
        process. Called after MindSpore's import: what it clears up at exit must come later.
        """
        if not self._waits_at_exit:
            self._waits_at_exit = True
            atexit.register(self._end)

    def _end(self) -> None:
        self._exiting = True
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(LONGEST_EXIT_S)

    def _started(self) -> threading.Thread:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="glm3sdk-mindspore", daemon=True
                )
                self._thread.start()
            return self._thread

    def _work(self) -> None:
        while not self._exiting:
            entry = self._jobs.get()
            if entry is None:
                return
            future, job = entry
            try:
                result = job()
            except BaseException as exc:
                # Even SystemExit belongs to the caller, or its wait would never end.
                if future is None:
                    logger.warning("clearing up after a session failed", exc_info=exc)
                else:
                    future.set_exception(exc)
            else:
                if future is not None:
                    future.set_result(result)
                del result
            # A job holds tensors; do not keep them alive while waiting for the next one.
            del entry, future, job


EXECUTOR = Executor()
"""The process's one executor; nothing runs until it is used."""
