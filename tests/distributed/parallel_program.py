"""One rank of every plan of its number of processes: `python parallel_program.py FOLDER`.

FOLDER holds what one process had after some steps, KIND.npz; rankN.npz is written into it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from distributed.parallel_cases import (
    CASES,
    CONFIG,
    DECODED,
    MIDDLE,
    STEPS,
    TRAINED,
    WEIGHTS,
    WHOLE,
    ArrayReader,
    case_name,
    chat,
    decode,
    disagree,
    evaluate,
    overflow,
    save_arrays,
    state,
    train,
)

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.bootstrap.topology import load_topology
from glm3sdk.domain.parallel import ParallelPlan, Place


def train_case(folder: Path, place: Place, kind: str) -> dict[str, np.ndarray]:
    """Train from the beginning; then again from the middle of another process's run."""
    reader = ArrayReader(WEIGHTS)
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=reader, profile=CPU, place=place)
    session = runtime.start_training(plan=TRAINED[kind])
    found = {
        "read": np.array(sum(reader.read_bytes.values())),
        "before": evaluate(session, place, kind),
        "metrics": train(session, place, kind, range(STEPS)),
        "after": evaluate(session, place, kind),
    }
    found |= {f"state/{name}": value for name, value in state(session).items()}
    middle = dict(np.load(folder / f"{kind}.npz"))
    session.restore(ArrayReader(middle))
    found["resumed"] = train(session, place, kind, range(MIDDLE, STEPS))
    if kind in WHOLE:
        found["overflow"] = overflow(session, place, middle)
    session.close()
    if kind in WHOLE and (place.plan.data, place.plan.tensor) in DECODED:
        runtime.close()  # its weights were trained
        runtime = MindSporeRuntime(config=CONFIG, checkpoint=reader, profile=CPU, place=place)
        decoding = runtime.start_decode(slots=2, max_seq_length=32)
        found |= decode(decoding)
        found["disagreement"] = disagree(decoding, place.rank_id)
        decoding.close()
    runtime.close()
    return found


def main() -> None:
    folder, started = Path(sys.argv[1]), time.perf_counter()
    topology = load_topology("cpu")
    topology.initialize()
    rank = topology.placement.rank_id
    found: dict[str, np.ndarray] = {}
    times = [time.perf_counter() - started]

    def run(plan: ParallelPlan, kind: str) -> None:
        for key, value in train_case(folder, plan.place(rank), kind).items():
            found[f"{case_name(plan, kind)}/{key}"] = value
        times.append(time.perf_counter() - started)

    for plan, kind in CASES[topology.placement.rank_size]:
        run(plan, kind)
    if topology.placement.rank_size == 2:
        found["replies"] = chat(tensor_parallel=2)
        times.append(time.perf_counter() - started)
    save_arrays(folder / f"rank{rank}.npz", {**found, "times": np.array(times)})
    topology.finalize()


if __name__ == "__main__":
    main()
