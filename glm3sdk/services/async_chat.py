"""Requests of asyncio programs: the event loop waits for tokens and never works for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from glm3sdk.services.decode_loop import TokenEvent
from glm3sdk.services.request import Event, Request, Running
from glm3sdk.services.scheduler import Scheduler


async def arun(
    scheduler: Scheduler, requests: Sequence[Request[Event]]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Run requests side by side; yields each event with its request's index.

    All are submitted at the first step. One that fails raises here and ends the others;
    closing the generator, or cancelling the task that waits for it, frees their slots.
    """
    loop = asyncio.get_running_loop()
    arrivals: asyncio.Queue[tuple[int, TokenEvent]] = asyncio.Queue()

    def deliver(index: int, event: TokenEvent) -> None:
        # In a loop that was closed nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(arrivals.put_nowait, (index, event))

    running = Running(requests)
    try:
        running.submit(scheduler, deliver)
        while running.unfinished:
            index, event = await arrivals.get()
            for each in running.take(index, event):
                yield index, each
            # A queue that is never empty would not let anything else have its turn.
            await asyncio.sleep(0)
    finally:
        running.cancel()
