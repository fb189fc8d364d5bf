"""Gives requests from any thread to the one worker thread of a decode session."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import attrs

from glm3sdk.errors import ServiceClosedError
from glm3sdk.ports.model_runtime import DecodeSession
from glm3sdk.services.decode_loop import DecodeLoop, Job, TokenChooser, TokenEvent
from glm3sdk.services.structure import TokenConstraint


@attrs.frozen
class Load:
    """How much there is to do at a moment.

    Attributes:
        slots: sequences that can be decoded side by side.
        busy: slots in which a request runs.
        waiting: requests that wait for a slot.
    """

    slots: int
    busy: int
    waiting: int


class Scheduler:
    """Owns a decode session and the thread that runs it, started at the first request.

    The thread knows the loop and not the scheduler, so a scheduler that nobody holds any
    more is collected, and the thread ends by itself.
    """

    def __init__(self, session: DecodeSession) -> None:
        self._loop = DecodeLoop(session)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        # SimpleQueue.put is re-entrant, so the garbage collector may call it anywhere.
        self._stop = weakref.finalize(self, self._loop.inbox.put, None)

    @property
    def load(self) -> Load:
        """How much there is to do; between two steps of the loop it may be a step old."""
        return Load(self._loop.slots, self._loop.busy, self._loop.waiting)

    def check_open(self) -> None:
        """Raise a ServiceClosedError after `close`."""
        if not self._stop.alive:
            raise ServiceClosedError("the service was closed; load another one")

    def submit(
        self,
        *,
        prompt_ids: tuple[int, ...],
        sampler: TokenChooser,
        stop_ids: frozenset[int],
        max_new_tokens: int,
        deliver: Callable[[TokenEvent], None],
        constraint: TokenConstraint | None = None,
        guesses: int = 0,
    ) -> Job:
        """Queue a request; the arguments are those of `Job`.

        Raises:
            ServiceClosedError: after `close`.
        """
        job = Job(prompt_ids, sampler, stop_ids, max_new_tokens, deliver, constraint, guesses)
        with self._lock:
            self.check_open()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._loop.run, name="glm3sdk-scheduler", daemon=True
                )
                self._thread.start()
            self._loop.inbox.put(job)
        return job

    def close(self) -> None:
        """Refuse unfinished requests, close the session and wait for the thread to end."""
        with self._lock:
            first = self._stop.alive
            self._stop()
        if self._thread is not None:
            self._thread.join()
        elif first:
            self._loop.run()
