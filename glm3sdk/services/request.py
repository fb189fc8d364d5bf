"""Requests that are ready to run, and running them side by side."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

import attrs

from glm3sdk.domain.chat import FinishReason, Usage
from glm3sdk.services.decode_loop import GenerationEnd, TokenChooser, TokenEvent
from glm3sdk.services.scheduler import Scheduler

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
    """

    prompt_ids: tuple[int, ...]
    sampler: TokenChooser
    stop_ids: frozenset[int]
    max_new_tokens: int
    stream: EventStream[Event]


def run(
    scheduler: Scheduler, requests: Sequence[Request[Event]]
) -> Generator[tuple[int, Event], None, None]:
    """Run requests side by side; yields each event with its request's index.

    All are submitted at the first `next`. One that fails raises here and ends the others,
    and so does closing the generator.
    """
    arrivals: SimpleQueue[tuple[int, TokenEvent]] = SimpleQueue()
    jobs = []
    try:
        for index, request in enumerate(requests):
            jobs.append(
                scheduler.submit(
                    prompt_ids=request.prompt_ids,
                    sampler=request.sampler,
                    stop_ids=request.stop_ids,
                    max_new_tokens=request.max_new_tokens,
                    deliver=partial(_arrive, arrivals, index),
                )
            )
        taken = [0] * len(jobs)
        running = set(range(len(jobs)))
        while running:
            index, event = arrivals.get()
            if index not in running:
                continue  # the loop was ahead of a stop string
            stream = requests[index].stream
            if isinstance(event, Exception):
                raise event
            if isinstance(event, GenerationEnd):
                running.remove(index)
                events = stream.finish(event.finish_reason, event.usage)
            else:
                taken[index] += 1
                events = stream.push(event)
                if stream.stopped:
                    running.remove(index)
                    jobs[index].cancel()
                    usage = jobs[index].usage(taken[index])
                    events = [*events, *stream.finish(FinishReason.STOP, usage)]
            yield from ((index, each) for each in events)
    finally:
        for job in jobs:
            job.cancel()


def _arrive(arrivals: SimpleQueue[tuple[int, TokenEvent]], index: int, event: TokenEvent) -> None:
    arrivals.put((index, event))
