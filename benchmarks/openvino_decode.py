"""A random ChatGLM3 in 8 or 4 bits on OpenVINO, beside llama.cpp and chatglm.cpp.

    .venv/bin/python benchmarks/openvino_decode.py SCRATCH [--bits 4] [--layers N]
        [--peers llama.cpp chatglm.cpp]

SCRATCH is a directory for the models' files: with all 28 layers 6.4 GB an engine in 8 bits and
3.5 GB in 4, which is checked first; they are removed. Each engine has a process of its own, and all
take turns at every measurement. What counts are the ratios: a machine's bandwidth swings from
hour to hour. Prints one JSON object. How to build the peers is in README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
from quantized_peers import BATCH, KINDS, write_chatglm_cpp, write_gguf, write_ours

from glm3sdk.adapters.machine import memory_bytes_per_s
from glm3sdk.domain.model import Glm3Config
from glm3sdk.services.benchmark import token_bytes

LENGTH = 1280
HISTORY, SECOND_TURN = 1000, 24


class Engine:
    """A process that loads one model and is called over its pipes."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        worker = str(Path(__file__).parent / "quantized_peers.py")
        self._process = subprocess.Popen(
            [sys.executable, worker, name, str(path), str(LENGTH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = self._answer()
        self.last = self.loaded
        self.most_anonymous = self.loaded["anonymous"]

    def call(self, name: str, *arguments: int) -> float:
        """Seconds that a call took."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        self.last = self._answer()
        self.most_anonymous = max(self.most_anonymous, self.last["anonymous"])
        return float(self.last["s"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self._process.wait()}; its message stands above")
        return json.loads(line)  # type: ignore[no-any-return]


def measure(engine: Engine, tokens: int) -> dict[str, float]:
    """One turn of an engine: tokens a second, and seconds to the first token of a turn."""
    found = {f"prefill {size}": size / engine.call("prefill", size) for size in (512, 128)}
    found["decode"] = tokens / engine.call("decode", tokens)
    if engine.loaded["can_batch"]:
        engine.call("prefill", 128)
        engine.call("batch", 1)
        found[f"decode of {BATCH}"] = BATCH * tokens / engine.call("batch", tokens)
    found["first turn s"] = engine.call("prefill", HISTORY)
    found["second turn s"] = engine.call("prefill", HISTORY + SECOND_TURN, HISTORY)
    return found


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocab", type=int, default=65024)
    parser.add_argument("--peers", nargs="*", choices=("llama.cpp", "chatglm.cpp"), default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    config = attrs.evolve(
        Glm3Config(), num_layers=arguments.layers, padded_vocab_size=arguments.vocab
    )
    quantize, kind = f"int{arguments.bits}", KINDS[f"q{arguments.bits}_0"]
    size = int(config.parameter_count * (1.07 if arguments.bits == 8 else 0.58))
    free = shutil.disk_usage(arguments.scratch).free
    needed = size * (1 + len(arguments.peers))
    if free < needed + 2**30:
        sys.exit(
            f"{arguments.scratch} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} are taken"
        )
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        write_ours(Path(folder) / "ours", config, quantize)
        engines = [Engine("ours", Path(folder) / "ours")]
        for peer in arguments.peers:
            path = Path(folder) / f"{peer}.bin"
            write = write_gguf if peer == "llama.cpp" else write_chatglm_cpp
            write(path, config, kind)
            engines.append(Engine(peer, path))
        rounds: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
        bandwidths = []
        for number in range(arguments.rounds + 1):
            bandwidths.append(memory_bytes_per_s())
            for engine in engines:
                found = measure(engine, arguments.tokens)
                if number:  # the first round warms up
                    rounds[engine.name].append(found)
        for engine in engines:
            engine.close()
        stored = sum(each.stat().st_size for each in (Path(folder) / "ours").iterdir())
    medians = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in rounds.items()
    }
    ours = medians["ours"]
    bandwidth = statistics.median(bandwidths)
    report = {
        "config": {"layers": arguments.layers, "vocab": arguments.vocab, "bits": arguments.bits},
        "medians": {n: {k: round(v, 3) for k, v in found.items()} for n, found in medians.items()},
        "ours over peers": {
            name: {
                key: round(value / ours[key] if key.endswith(" s") else ours[key] / value, 2)
                for key, value in found.items()
            }
            for name, found in medians.items()
            if name != "ours"
        },
        "first turn over second": round(ours["first turn s"] / ours["second turn s"], 1),
        "load to first token s": {e.name: round(e.loaded["s"], 1) for e in engines},
        "most anonymous memory over the weights": {
            e.name: round(e.most_anonymous / stored, 2) for e in engines
        },
        "peak memory GB": {e.name: round(e.last["peak"] / 1e9, 2) for e in engines},
        "share of the memory's bandwidth": round(
            token_bytes(config, quantize) * ours["decode"] / bandwidth, 2
        ),
        "memory reads GB/s": round(bandwidth / 1e9, 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
