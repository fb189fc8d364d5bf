"""What prompt lookup saves: replies of a random ChatGLM3 in 8 or 4 bits, with and without guesses.

    .venv/bin/python benchmarks/prompt_lookup.py SCRATCH [--bits 4] [--layers N] [--most 7] [--peer]

The weights are random and the replies are written down: each step reads and multiplies what it
would with the published model, and then the next token of the reply is taken. So the reply
alone decides what guesses are worth. SCRATCH is a directory for the model's file, which is
removed: 6.7 GB for all 28 layers in 8 bits, 3.6 GB in 4. With --peer (and as much again of
SCRATCH, and the environment of README.md) llama.cpp decodes a sequence of the same length in
every round, without guesses. Prints one JSON object; what counts are the ratios, since a
machine's bandwidth swings from hour to hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import attrs
from openvino_decode import Engine
from quantized_peers import KINDS, write_gguf, write_ours

from glm3sdk import load_runtime, load_tokenizer
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.services.decode_loop import TokenEvent
from glm3sdk.services.scheduler import Scheduler

DIALOGUES = Path(__file__).parents[1] / "training" / "tiny" / "dialogues"
RECORDS = [
    {"city": city, "temperature": 8 + 3 * n, "condition": "晴" if n % 2 else "多云", "wind": n}
    for n, city in enumerate(("北京", "上海", "广州", "深圳", "成都", "武汉"))
]
PEER_TOKENS = 32
PLAIN = (
    "快速排序先选一个数，把比它小的放在左边，比它大的放在右边，再对两边重复同样的步骤。"
    "平均要用 n log n 步，最坏的情况下要用 n 的平方步。归并排序总是先分成两半，分别排好以后"
    "再合并，因此它需要另外一份内存，但是步数不会变多。"
    "The choice between them depends on how much memory a machine has, and on whether equal "
    "entries must keep their order; most libraries mix several methods and switch by size."
)


class Script:
    """Takes the tokens of a written reply, whatever the logits are."""

    def __init__(self, reply: Sequence[int]) -> None:
        self._reply = reply

    def sample(self, logits: FloatArray, generated: Sequence[int]) -> int:
        """The next token of the reply."""
        logits.argmax()  # which a greedy choice takes time for, too
        return self._reply[len(generated)]


def texts() -> dict[str, tuple[str, str]]:
    """A prompt and its reply, by what the reply is like."""
    lines = [json.loads(line) for line in (DIALOGUES / "knowledge.jsonl").open(encoding="utf-8")]
    answers = [line["messages"][-1]["content"] for line in lines]
    table = json.dumps(RECORDS, ensure_ascii=False)
    tools = (DIALOGUES / "tools.jsonl").read_text("utf-8").splitlines()
    calls = "\n".join(
        f"get_weather\n```python\ntool_call(city='{each['city']}')\n```" for each in RECORDS
    )
    code = max(answers, key=len)
    return {
        "plain text": ("写一篇关于排序的短文。", PLAIN),
        "code": ("写一个快排算法", code),
        "JSON records": ("用 JSON 列出这些城市的天气。", json.dumps(RECORDS, indent=2)),
        "tool calls": (tools[0][:600], calls),
        "a quoted table": (f"把下面的表重复一遍：{table}", f"好的：{table}"),
    }


def play(scheduler: Scheduler, prompt: Sequence[int], reply: Sequence[int], most: int) -> float:
    """Seconds from a reply's first token to its last one."""
    events: SimpleQueue[TokenEvent] = SimpleQueue()
    scheduler.submit(
        prompt_ids=tuple(prompt),
        sampler=Script(reply),
        stop_ids=frozenset(),
        max_new_tokens=len(reply),
        deliver=events.put,
        guesses=most,
    )
    events.get()
    began = time.perf_counter()
    while isinstance(event := events.get(), int):
        pass
    if isinstance(event, Exception):
        raise event
    return time.perf_counter() - began


def decoded_by(peer: Engine, length: int) -> list[float]:
    """Seconds that a token takes the peer, behind a prompt of some length."""
    peer.call("prefill", length)
    peer.call("decode", 1)
    return [peer.call("decode", PEER_TOKENS) / PEER_TOKENS]


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Theirs over ours of each round: median, least and most."""
    each = sorted(other / mine for other, mine in zip(theirs, ours, strict=True))
    return [round(value, 2) for value in (statistics.median(each), each[0], each[-1])]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--most", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settle", type=float, default=0, help="seconds before the first round")
    parser.add_argument("--peer", action="store_true", help="llama.cpp, q8_0 or q4_0")
    arguments = parser.parse_args()
    config = attrs.evolve(Glm3Config(), num_layers=arguments.layers)
    tokenizer = load_tokenizer("tiny")
    pairs = {
        name: (tokenizer.encode(prompt), tokenizer.encode(reply))
        for name, (prompt, reply) in texts().items()
    }
    report: dict[str, Any] = {"layers": arguments.layers, "bits": arguments.bits}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        write_ours(Path(folder) / "model", config, f"int{arguments.bits}")
        peer = None
        if arguments.peer:
            write_gguf(Path(folder) / "peer", config, KINDS[f"q{arguments.bits}_0"])
            peer = Engine("llama.cpp", Path(folder) / "peer")
        runtime = load_runtime(Path(folder) / "model")
        session = runtime.start_decode(slots=1, max_seq_length=2048)
        steps = 0

        def counted(method):  # type: ignore[no-untyped-def]  # wraps both ways to take a step
            def call(*args, **options):  # type: ignore[no-untyped-def]  # as above
                nonlocal steps
                steps += 1
                return method(*args, **options)

            return call

        session.prefill, session.decode = counted(session.prefill), counted(session.decode)  # type: ignore[method-assign]  # counts calls
        scheduler = Scheduler(session)
        time.sleep(arguments.settle)
        for name, (prompt, reply) in pairs.items():
            play(scheduler, prompt, reply[:4], arguments.most)  # warms up
            found: dict[int, list[float]] = {0: [], arguments.most: []}
            taken: dict[int, int] = {}
            theirs: list[float] = []  # seconds a token
            for _ in range(arguments.rounds):
                theirs += decoded_by(peer, len(prompt)) if peer else []
                for most, seconds in found.items():
                    steps = -1  # the prompt's is none of the reply's
                    seconds.append(play(scheduler, prompt, reply, most))
                    taken[most] = steps
            plain, guessing = map(statistics.median, found.values())
            report[name] = {
                "tokens": len(reply),
                "steps": list(taken.values()),
                "tokens/s": [round((len(reply) - 1) / each, 1) for each in (plain, guessing)],
                "faster": round(plain / guessing, 2),
            }
            if peer:
                mine = [seconds / (len(reply) - 1) for seconds in found[arguments.most]]
                report[name]["over llama.cpp"] = ratios(theirs, mine)
        scheduler.close()
        runtime.close()
        if peer:
            peer.close()
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
