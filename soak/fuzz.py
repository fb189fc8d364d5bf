"""Fuzz one parser for a while: with atheris, which follows what code an input reaches, or without.

    python -m soak.fuzz rank_table --seconds 60

It ends with 0, or with the traceback of the first finding, whose input is kept in --findings.
Without atheris Hypothesis changes the sound inputs blindly.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:  # there is no wheel of it for this Python or machine
    atheris = None

# What one input may take. A parser of some hundred bytes that needs more does not end in practice.
INPUT_S, MEMORY_MIB, INPUT_BYTES = 20, 2048, 4096


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("target")
    options.add_argument("--seconds", type=int, default=10)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--findings", type=Path, default=Path())
    options.add_argument("--again", type=Path, help="an input that was found, to be run once")
    given = options.parse_args()
    # Coverage is counted in modules that are imported here.
    with atheris.instrument_imports(include=["glm3sdk"]) if atheris else nullcontext():
        from soak import fuzz_targets
    target = fuzz_targets.TARGETS[given.target]
    logging.disable()  # what is dropped or ignored is told by the thousand
    if given.again:
        run(target.call, given.again.read_bytes())
    elif atheris:
        follow(target, given)
    else:
        change(target, given)


def run(call: Any, data: bytes) -> None:
    from glm3sdk.errors import Glm3Error

    try:
        call(data)
    except Glm3Error as exc:
        # One that is empty helps nobody.
        assert str(exc), repr(exc)  # noqa: PT017


def follow(target: Any, given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as kept:
        inputs, words = Path(kept, "inputs"), Path(kept, "words")
        inputs.mkdir()
        for name, data in target.seeds().items():
            (inputs / name).write_bytes(data)
        longest = max(INPUT_BYTES, *(path.stat().st_size for path in inputs.iterdir()))
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
        words.write_text("".join(f'"{word}"\n' for word in escaped), "utf-8")
        options = [
            *(f"-max_total_time={given.seconds}", f"-seed={given.seed}"),
            *(f"-timeout={INPUT_S}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={longest}"),
            *(f"-artifact_prefix={given.findings}/{given.target}-", "-print_final_stats=1"),
            *([f"-dict={words}"] if target.words else []),
        ]
        atheris.Setup([sys.argv[0], *options, str(inputs)], lambda data: run(target.call, data))
        atheris.Fuzz()  # ends the process


def change(target: Any, given: argparse.Namespace) -> None:
    from hypothesis import HealthCheck, seed, settings
    from hypothesis import given as drawn
    from hypothesis import strategies as st

    seeds = [*target.seeds().values(), *(word.encode() for word in target.words), b""]
    pieces = st.sampled_from(seeds) | st.binary(max_size=8)

    @st.composite
    def inputs(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(0, 6))):
            place = draw(st.integers(0, len(data)))
            data[place : place + draw(st.integers(0, 8))] = draw(pieces)
        return bytes(data[:INPUT_BYTES])

    until = time.monotonic() + given.seconds
    tried = 0
    while time.monotonic() < until:

        @seed(given.seed + tried)
        @settings(
            max_examples=1000,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @drawn(inputs())
        def check(data: bytes) -> None:
            nonlocal tried
            tried += 1
            run(target.call, data)

        check()
    print(f"stat::number_of_executed_units: {tried}", file=sys.stderr)


if __name__ == "__main__":
    main()
