"""Chat turns of a small crowd, many of them broken off; prints what they cost in the end.

    python -m soak.turns 2000

Threads and asyncio tasks share one service with fewer slots. A turn goes on with its
conversation or begins a new one, asks for the whole reply or streams it, and every second
stream is left after some of its text, by closing it or by cancelling its task. What is chosen
follows from the seed alone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from glm3sdk import GenerationConfig, Glm3Service, Message, load_service

THREADS, TASKS, SLOTS = 4, 4, 4
LENGTH = 512
MOST_TURNS = 4  # of a conversation
QUESTIONS = ("你好", "请介绍一下华为", "晚上睡不着应该怎么办", "写一个快排算法", "讲个故事")


def figures() -> dict[str, float]:
    """What must not grow: resident memory in MiB, threads and open files."""
    gc.collect()
    status = Path("/proc/self/status").read_text("utf-8")
    return {
        "rss_mib": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024,
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "files": len(os.listdir("/proc/self/fd")),
    }


class Crowd:
    """Clients of one service, and what became of their turns."""

    def __init__(self, service: Glm3Service, turns: int) -> None:
        self.service, self.turns = service, turns
        self.ended: Counter[str] = Counter()
        self.samples: list[dict[str, float]] = []
        self.lock = threading.Lock()

    def done(self, how: str) -> None:
        with self.lock:
            self.ended[how] += 1
            if self.ended.total() % max(self.turns // 10, 1) == 0:
                self.samples.append(figures())

    def asked(self, choose: random.Random, history: list[Message]) -> list[Message]:
        if len(history) >= 2 * MOST_TURNS or choose.random() < 0.3:
            history = []
        return [*history, Message.user(choose.choice(QUESTIONS))]

    def config(self, choose: random.Random) -> GenerationConfig:
        return GenerationConfig(
            do_sample=choose.random() < 0.5,
            seed=choose.randrange(2**31),
            max_new_tokens=choose.randint(1, 24),
        )

    def thread(self, number: int, turns: int) -> None:
        choose, history = random.Random(number), []
        for _ in range(turns):
            messages, config = self.asked(choose, history), self.config(choose)
            if choose.random() < 0.3:
                history = list(self.service.chat(messages, config).history)
                self.done("whole")
                continue
            left_after = choose.randint(0, 8) if choose.random() < 0.5 else None
            stream = self.service.stream_chat(messages, config)
            try:
                for count, _ in enumerate(stream):
                    if count == left_after:
                        break
            finally:
                stream.close()
            self.done("streamed" if left_after is None else "left")

    async def task(self, number: int, turns: int) -> None:
        choose, history = random.Random(number), []
        for _ in range(turns):
            messages, config = self.asked(choose, history), self.config(choose)
            if choose.random() < 0.3:
                history = list((await self.service.achat(messages, config)).history)
                self.done("whole")
                continue
            left_after = choose.randint(0, 8) if choose.random() < 0.5 else None
            reading = asyncio.create_task(self.read(messages, config, left_after))
            try:
                await reading
            except asyncio.CancelledError:
                self.done("cancelled")
            else:
                self.done("streamed")

    async def read(
        self, messages: list[Message], config: GenerationConfig, left_after: int | None
    ) -> None:
        count = 0
        async for _ in self.service.astream_chat(messages, config):
            if count == left_after:
                asyncio.current_task().cancel()
            count += 1

    async def tasks(self, turns: int) -> None:
        await asyncio.gather(*(self.task(100 + n, turns) for n in range(TASKS)))

    def run(self) -> None:
        turns = self.turns // (THREADS + TASKS)
        failures: list[BaseException] = []

        def guarded(call: Any, *arguments: Any) -> None:
            try:
                call(*arguments)
            except BaseException as exc:
                failures.append(exc)

        threads = [
            threading.Thread(target=guarded, args=(self.thread, number, turns))
            for number in range(THREADS)
        ]
        threads.append(
            threading.Thread(target=guarded, args=(lambda: asyncio.run(self.tasks(turns)),))
        )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def main() -> None:
    turns = int(sys.argv[1])
    with load_service("tiny", slots=SLOTS, max_seq_length=LENGTH) as service:
        Crowd(service, 8 * (THREADS + TASKS)).run()  # graphs are compiled, pools are filled
        crowd = Crowd(service, turns)
        before = figures()
        crowd.run()
        # A cancelled reply's slot is free with the step under way.
        deadline = time.monotonic() + 10
        while service.load.busy and time.monotonic() < deadline:
            time.sleep(0.01)
        load = service.load
        print(
            json.dumps(
                {
                    "ended": crowd.ended,
                    "before": before,
                    "samples": crowd.samples,
                    "after": figures(),
                    "busy": load.busy,
                    "waiting": load.waiting,
                }
            )
        )


if __name__ == "__main__":
    main()
