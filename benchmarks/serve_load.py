"""Load on `glm3 serve`: one client, then many at once, some of which leave in mid-reply.

It starts the server with the bundled model, and ends with an error where a request failed, a
slot or a place in the queue was not given back, memory went on growing, or the clients
together were not as much faster as wanted.

    python benchmarks/serve_load.py            # 32 clients for two minutes
    python benchmarks/serve_load.py --short    # 32 clients for fifteen seconds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import attrs

QUESTIONS = (
    "你好",
    "请介绍一下华为",
    "晚上睡不着应该怎么办",
    "写一个快排算法",
    "你是谁",
    "讲个故事",
)
# One request in so many is left after its first bytes.
LEAVES = 8
# Memory may still settle after the first quarter: allocators keep what they had.
GROWTH_MIB = 64


@attrs.define
class Tally:
    replies: int = 0
    left: int = 0
    tokens: int = 0
    errors: list[str] = attrs.field(factory=list)
    seconds: list[float] = attrs.field(factory=list)


async def request(port: int, method: str, path: str, body: bytes = b"") -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    reader.writer = writer  # closed by the caller
    return reader


async def client(port: int, seed: int, until: float, tally: Tally, *, leaves: bool) -> None:
    choose = random.Random(seed)
    while time.monotonic() < until:
        stream = choose.random() < 0.5
        leave = leaves and stream and choose.randrange(LEAVES // 2) == 0
        asked = {
            "messages": [{"role": "user", "content": choose.choice(QUESTIONS)}],
            "max_tokens": 64,
            "stream": stream,
        }
        if stream:
            asked["stream_options"] = {"include_usage": True}
        started = time.monotonic()
        reader = await request(port, "POST", "/v1/chat/completions", json.dumps(asked).encode())
        try:
            if leave:
                await reader.readuntil(b"\n\n")
                tally.left += 1
                continue
            answer = (await reader.read()).decode()
        finally:
            reader.writer.close()
        found = re.findall(r'"completion_tokens":\s*(\d+)', answer)
        if not answer.startswith("HTTP/1.1 200") or not found or '"error"' in answer:
            tally.errors.append(answer[:300])
            continue
        tally.replies += 1
        tally.tokens += int(found[-1])
        tally.seconds.append(time.monotonic() - started)


async def crowd(port: int, clients: int, seconds: float, process: int) -> tuple[Tally, list[float]]:
    tally, memory = Tally(), []
    began = time.monotonic()
    until = began + seconds

    async def watch() -> None:
        for part in range(1, 5):
            await asyncio.sleep(max(0.0, began + seconds * part / 4 - time.monotonic()))
            memory.append(rss_mib(process))

    await asyncio.gather(
        watch(), *(client(port, n, until, tally, leaves=clients > 1) for n in range(clients))
    )
    return tally, [*memory, time.monotonic() - began]


def rss_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text("utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def metrics(port: int) -> dict[str, float]:
    reader = await request(port, "GET", "/metrics")
    text = (await reader.read()).decode()
    reader.writer.close()
    return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+]+)$", text, re.M)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--short", action="store_true", help="fifteen seconds in all")
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--slots", type=int, default=8)
    options.add_argument("--wanted", type=float, default=4.0, help="times one client's tokens")
    given = options.parse_args()
    one_s, many_s = (5.0, 15.0) if given.short else (20.0, 120.0)
    command = [sys.executable, "-m", "glm3sdk", "serve", "tiny", "--port", "0"]
    command += ["--slots", str(given.slots), "--max-queue", str(given.clients)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        if not line.startswith("serving "):
            sys.exit("the server did not start")
        port = int(line.rpartition(":")[2])
        warm, (*_, warm_took) = asyncio.run(crowd(port, given.clients, 3.0, server.pid))
        one, (*_, one_took) = asyncio.run(crowd(port, 1, one_s, server.pid))
        many, (*memory, took) = asyncio.run(crowd(port, given.clients, many_s, server.pid))
        again, (*_, again_took) = asyncio.run(crowd(port, 1, one_s, server.pid))
        left = asyncio.run(settled(port))
    finally:
        server.terminate()
        code = server.wait(timeout=60)
    report(warm, "warm-up", warm_took)
    # The better of two, because a machine's speed swings.
    alone = max(report(one, "one client", one_took), report(again, "one client again", again_took))
    together = report(many, f"{given.clients} clients", took)
    print(f"together / alone: {together / alone:.2f} (wanted: {given.wanted})")
    print("memory at each quarter, MiB:", " ".join(f"{each:.0f}" for each in memory))
    errors = warm.errors + one.errors + many.errors + again.errors
    assert not errors, errors[:3]
    assert left == {"glm3_slots_busy": 0.0, "glm3_queue": 0.0}, left
    assert memory[-1] - memory[0] < GROWTH_MIB, memory
    assert code == 0, code
    assert together >= given.wanted * alone, "too slow"


async def settled(port: int) -> dict[str, float]:
    """The load after the last client has gone, as soon as it is nothing, or after a while."""
    wanted = ("glm3_slots_busy", "glm3_queue")
    for _ in range(100):
        found = await metrics(port)
        left = {name: found[name] for name in wanted}
        if not any(left.values()):
            break
        await asyncio.sleep(0.1)
    return left


def report(tally: Tally, name: str, seconds: float) -> float:
    speed = tally.tokens / seconds
    waits = sorted(tally.seconds) or [0.0]
    print(
        f"{name}: {tally.replies} replies, {tally.left} left, {len(tally.errors)} errors, "
        f"{speed:.0f} tokens/s, median {waits[len(waits) // 2]:.2f} s, "
        f"slowest {waits[-1]:.2f} s"
    )
    return speed


if __name__ == "__main__":
    main()
