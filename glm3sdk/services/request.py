"""Requests that are ready to run, and running them side by side."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

import attrs

from glm3sdk.domain.chat import FinishReason, Usage
from glm3sdk.services.decode_loop import GenerationEnd, Job, TokenChooser, TokenEvent
from glm3sdk.services.scheduler import Scheduler
from glm3sdk.services.structure import TokenConstraint

Event = TypeVar("Event")
Event_co = TypeVar("Event_co", covariant=True)


class EventStream(Protocol[Event_co]):
    """Turns the token ids of one generation into events."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text, so that no more tokens are wanted."""

    def push(self, token_id: int) -> Sequence[Event_co]:
        """Take one more token id and return the events that it completes."""

    def finish(self, reason: FinishReason, usage: Usage) -> Sequence[Event_co]:
        """Return the events that were held back, and the last one."""


@attrs.frozen(eq=False)
class Request(Generic[Event]):
    """One generation, checked and ready to be submitted.

    Attributes:
        prompt_ids: the prompt.
        sampler: chooses each token.
        stop_ids: ids that end the reply.
        max_new_tokens: most tokens to generate.
        stream: makes the events.
        constraint: what the reply is held to, or None.
        guesses: the most tokens to guess and verify in one step.
    """

    prompt_ids: tuple[int, ...]
    sampler: TokenChooser
    stop_ids: frozenset[int]
    max_new_tokens: int
    stream: EventStream[Event]
    constraint: TokenConstraint | None = None
    guesses: int = 0


class Running(Generic[Event]):
    """Requests that run side by side, whoever waits for their tokens.

    Attributes:
        unfinished: the indices of those that go on.
    """

    def __init__(self, requests: Sequence[Request[Event]]) -> None:
        self._requests = requests
        self._jobs: list[Job] = []
        self._taken = [0] * len(requests)
        self.unfinished = set(range(len(requests)))

    def submit(self, scheduler: Scheduler, deliver: Callable[[int, TokenEvent], None]) -> None:
        """Submit all; `deliver` is given each token with its request's index, and never blocks."""
        for index, request in enumerate(self._requests):
            self._jobs.append(
                scheduler.submit(
                    prompt_ids=request.prompt_ids,
                    sampler=request.sampler,
                    stop_ids=request.stop_ids,
                    max_new_tokens=request.max_new_tokens,
                    deliver=partial(deliver, index),
                    constraint=request.constraint,
                    guesses=request.guesses,
                )
            )

    def take(self, index: int, event: TokenEvent) -> Sequence[Event]:
        """Take what was delivered; returns what its caller reads of it, or raises a failure."""
        if index not in self.unfinished:
            return ()  # the loop was ahead of a stop string
        if isinstance(event, Exception):
            raise event
        stream = self._requests[index].stream
        if isinstance(event, GenerationEnd):
            self.unfinished.remove(index)
            return stream.finish(event.finish_reason, event.usage)
        self._taken[index] += 1
        events = stream.push(event)
        if not stream.stopped:
            return events
        self.unfinished.remove(index)
        self._jobs[index].cancel()
        usage = self._jobs[index].usage(self._taken[index])
        return [*events, *stream.finish(FinishReason.STOP, usage)]

    def cancel(self) -> None:
        """Give free every slot that is still theirs."""
        for job in self._jobs:
            job.cancel()


def run(
    scheduler: Scheduler, requests: Sequence[Request[Event]]
) -> Generator[tuple[int, Event], None, None]:
    """Run requests side by side; yields each event with its request's index.

    All are submitted at the first `next`. One that fails raises here and ends the others,
    and so does closing the generator.
    """
    arrivals: SimpleQueue[tuple[int, TokenEvent]] = SimpleQueue()
    running = Running(requests)
    try:
        running.submit(scheduler, lambda index, event: arrivals.put((index, event)))
        while running.unfinished:
            index, event = arrivals.get()
            yield from ((index, each) for each in running.take(index, event))
    finally:
        running.cancel()
