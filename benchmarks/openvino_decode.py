"""A random ChatGLM3 in 8 or 4 bits on OpenVINO, beside llama.cpp and chatglm.cpp.

    .venv/bin/python benchmarks/openvino_decode.py SCRATCH [--bits 4] [--layers N]
        [--peers llama.cpp chatglm.cpp] [--measure decode batch prefill turns] [--keep]

SCRATCH is a directory for the models' files: with all 28 layers 6.7 GB an engine in 8 bits and
3.6 GB in 4, which is checked first; they are removed unless --keep is given, and used again
where they are. Each engine has a process of its own, and all take turns at every measurement.
What counts are the ratios: a machine's bandwidth swings from hour to hour. Prints one JSON
object. How to build the peers is in README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
from quantized_peers import BATCH, KINDS, write_chatglm_cpp, write_gguf, write_ours

from glm3sdk.adapters.machine import memory_bytes_per_s
from glm3sdk.domain.model import Glm3Config
from glm3sdk.services.benchmark import token_bytes

LENGTH = 1280
HISTORY, SECOND_TURN = 1000, 24
MEASURES = ("decode", "batch", "prefill", "turns")


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


def warm_up(engine: Engine, kinds: list[str]) -> None:
    """Have every buffer made, and the first sequence read that is then decoded."""
    if "turns" in kinds and engine.name == "ours":
        engine.call("prefill", HISTORY)
    engine.call("prefill", 128)
    for kind in kinds:
        if kind == "decode" or (kind == "batch" and engine.loaded["can_batch"]):
            engine.call(kind, 2)


def measure(engine: Engine, kinds: list[str], tokens: int) -> dict[str, float]:
    """One turn of an engine: tokens a second, and seconds to the first token of a turn."""
    found = {}
    if "decode" in kinds:
        found["decode"] = tokens / engine.call("decode", tokens)
    if "batch" in kinds and engine.loaded["can_batch"]:
        engine.call("batch", 1)
        found[f"decode of {BATCH}"] = BATCH * tokens / engine.call("batch", tokens)
    if "turns" in kinds and engine.name == "ours":
        found["first turn s"] = engine.call("prefill", HISTORY)
        found["second turn s"] = engine.call("prefill", HISTORY + SECOND_TURN, HISTORY)
    if "prefill" in kinds:
        found |= {f"prefill {size}": size / engine.call("prefill", size) for size in (512, 128)}
    return found


def write_missing(folder: Path, peers: list[str], config: Glm3Config, bits: int) -> dict[str, Path]:
    """Write the engines' files where they are not there yet."""
    kind = KINDS[f"q{bits}_0"]
    paths = {name: folder / f"{name}-{bits}-{config.num_layers}" for name in ("ours", *peers)}
    missing = [name for name, path in paths.items() if not path.exists()]
    needed = len(missing) * int(config.parameter_count * (1.07 if bits == 8 else 0.58))
    free = shutil.disk_usage(folder).free
    if free < needed + 2**30:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} are taken")
    for name in missing:
        if name == "ours":
            write_ours(paths[name], config, f"int{bits}")
        else:
            (write_gguf if name == "llama.cpp" else write_chatglm_cpp)(paths[name], config, kind)
    return paths


def ratios(
    ours: list[dict[str, float]], theirs: list[dict[str, float]]
) -> dict[str, dict[str, float]]:
    """By how much ours is the faster: of the rounds' ratios the median, least and greatest."""
    found = {}
    for key in theirs[0]:
        each = sorted(mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True))
        shown = statistics.median(each), each[0], each[-1]
        found[key] = dict(
            zip(("median", "least", "most"), (round(v, 2) for v in shown), strict=True)
        )
    return found


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocab", type=int, default=65024)
    parser.add_argument("--peers", nargs="*", choices=("llama.cpp", "chatglm.cpp"), default=[])
    parser.add_argument("--measure", nargs="*", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--settle", type=float, default=20, help="seconds before the first round")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    config = attrs.evolve(
        Glm3Config(), num_layers=arguments.layers, padded_vocab_size=arguments.vocab
    )
    scratch = arguments.scratch
    rounds: dict[str, list[dict[str, float]]] = {}
    bandwidths = []
    with nullcontext(scratch) if arguments.keep else tempfile.TemporaryDirectory(dir=scratch) as at:
        paths = write_missing(Path(at), arguments.peers, config, arguments.bits)
        if not arguments.rounds:
            return
        stored = sum(each.stat().st_size for each in paths["ours"].iterdir())
        engines = [Engine(name, path) for name, path in paths.items()]
        for engine in engines:
            warm_up(engine, arguments.measure)
        # Until our weights lie in large pages, and what was written has left the page cache.
        time.sleep(arguments.settle)
        for _ in range(arguments.rounds):
            bandwidths.append(memory_bytes_per_s())
            for engine in engines:
                found = measure(engine, arguments.measure, arguments.tokens)
                rounds.setdefault(engine.name, []).append(found)
        for engine in engines:
            engine.close()
    medians = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in rounds.items()
    }
    ours, bandwidth = medians["ours"], statistics.median(bandwidths)
    report = {
        "config": {"layers": arguments.layers, "vocab": arguments.vocab, "bits": arguments.bits},
        "medians": {n: {k: round(v, 3) for k, v in found.items()} for n, found in medians.items()},
        "ours over peers": {
            name: ratios(rounds["ours"], found) for name, found in rounds.items() if name != "ours"
        },
        "load to first token s": {e.name: round(e.loaded["s"], 1) for e in engines},
        "most anonymous memory over the weights": {
            e.name: round(e.most_anonymous / stored, 2) for e in engines
        },
        "peak memory GB": {e.name: round(e.last["peak"] / 1e9, 2) for e in engines},
        "memory reads GB/s": round(bandwidth / 1e9, 1),
    }
    if "turns" in arguments.measure:
        report["first turn over second"] = round(ours["first turn s"] / ours["second turn s"], 1)
    if "decode" in arguments.measure:
        read = token_bytes(config, f"int{arguments.bits}")
        report["share of the memory's bandwidth"] = round(read * ours["decode"] / bandwidth, 2)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
