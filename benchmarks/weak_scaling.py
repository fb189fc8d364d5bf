"""Weak scaling from one process to two on this machine's CPU: the same work for each.

    .venv/bin/python benchmarks/weak_scaling.py

Starts `glm3 launch` for every case, in turns, and prints one JSON object. Each process is kept on
one CPU of its own, in the runs of one process too: MindSpore alone would use every CPU, and two
processes could then only share what one already had. One case is that process unbound, one two
processes that train on their own. float32, every weight, random data; a step of `--accumulate`
micro-batches a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from timing import seconds

from glm3sdk import Glm3Config
from glm3sdk.domain.communication import Collectives, StepLoad, sent_bytes, step_collectives
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.domain.tensor_shares import TensorShares
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.training import TokenBatch, TrainingPlan
from glm3sdk.testing.random_checkpoint import random_weights


@attrs.frozen
class Case:
    """A number of processes and what they share.

    Attributes:
        processes: how many are started.
        plan: of those that train together; of one alone, each for itself.
        bound: each stays on a CPU of its own.
    """

    processes: int
    plan: ParallelPlan = attrs.field(factory=ParallelPlan)
    bound: bool = True


ONE, UNBOUND = "one process", "one process, every CPU"
CASES = {
    ONE: Case(1),
    UNBOUND: Case(1, bound=False),
    "two that exchange nothing": Case(2),
    "data": Case(2, ParallelPlan(data=2)),
    "data, optimizer sharded": Case(2, ParallelPlan(data=2, optimizer_shard=True)),
    "tensor": Case(2, ParallelPlan(tensor=2)),
}
RATE = 1e-4
COLLECTIVES = Collectives(gathers_in_groups=False, reduce_scatter=False)


@attrs.frozen
class Weights:
    """A `CheckpointReader` of arrays."""

    arrays: Mapping[str, np.ndarray]

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        return self.arrays[name][index].copy()


def model(arguments: argparse.Namespace) -> Glm3Config:
    return Glm3Config(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden,
        ffn_hidden_size=arguments.ffn,
        num_attention_heads=arguments.hidden // 64,
        kv_channels=64,
        padded_vocab_size=arguments.vocab,
        seq_length=arguments.length,
    )


def step(arguments: argparse.Namespace, plan: ParallelPlan) -> StepLoad:
    """A rank's work: tensor ranks share each sequence, and so get as many more of them."""
    return StepLoad(
        batch_size=arguments.batch * plan.tensor,
        seq_length=arguments.length,
        micro_batches=arguments.accumulate,
        item_bytes=4,
        collectives=COLLECTIVES,
    )


def train(arguments: argparse.Namespace, case: Case) -> None:
    """One rank: seconds of each step, into a file."""
    if case.bound:  # before MindSpore counts the CPUs
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[int(os.environ["LOCAL_RANK"])]})
    from glm3sdk.adapters.mindspore.profiles import CPU
    from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
    from glm3sdk.bootstrap.topology import load_topology

    topology = load_topology("cpu")
    topology.initialize()
    rank, config, load = topology.placement.rank_id, model(arguments), step(arguments, case.plan)
    place = case.plan.place(rank % case.plan.ranks)
    runtime = MindSporeRuntime(
        config=config, checkpoint=Weights(random_weights(config)), profile=CPU, place=place
    )
    session = runtime.start_training(plan=TrainingPlan())
    rng = np.random.default_rng(place.data_rank)
    batches = []
    for _ in range(arguments.accumulate):
        ids = rng.integers(0, arguments.vocab, (load.batch_size, arguments.length + 1))
        batches.append(TokenBatch(ids[:, :-1], ids[:, 1:].copy()))
    times = [
        seconds(lambda: session.train_step(batches, learning_rate=RATE))
        for _ in range(arguments.warm_up + arguments.steps)
    ]
    if rank == 0:
        arguments.out.write_text(json.dumps(times[arguments.warm_up :]), encoding="utf-8")
    session.close()
    runtime.close()
    topology.finalize()


def launched(arguments: argparse.Namespace, case: str, folder: Path) -> list[float]:
    """Seconds of the steps of a case."""
    out = folder / "seconds.json"
    command = ["-m", "glm3sdk", "launch", "--nproc", str(CASES[case].processes), "--device", "cpu"]
    command += ["--log-dir", str(folder / "logs"), "--", sys.executable, str(Path(__file__))]
    for name in ("layers", "hidden", "ffn", "vocab", "batch", "length", "accumulate", "steps"):
        command += [f"--{name}", str(getattr(arguments, name))]
    threads = "1" if CASES[case].bound else str(os.cpu_count())
    environment = os.environ | {"OMP_NUM_THREADS": threads, "GLOG_v": "3"}
    done = subprocess.run(
        [sys.executable, *command, "--case", case, "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    times: list[float] = json.loads(out.read_text(encoding="utf-8"))
    return times


def report(arguments: argparse.Namespace, times: Mapping[str, list[float]]) -> dict[str, Any]:
    speeds, cases = {}, {}
    for name, case in CASES.items():
        load = step(arguments, case.plan)
        tokens = load.batch_size * load.seq_length * load.micro_batches
        replicas = case.processes // case.plan.tensor
        speeds[name] = tokens * replicas / statistics.median(times[name])
    for name, case in CASES.items():
        shares = TensorShares(config=model(arguments), plan=case.plan)
        sent = sent_bytes(step_collectives(shares, step(arguments, case.plan)))
        cases[name] = {
            "milliseconds a step": round(1000 * statistics.median(times[name])),
            "fastest and slowest step": [round(1000 * f(times[name])) for f in (min, max)],
            "tokens/s": round(speeds[name]),
            "efficiency": round(speeds[name] / speeds[ONE] / case.processes, 2),
            "speed / one process on every CPU": round(speeds[name] / speeds[UNBOUND], 2),
            "MB sent a rank and step": round(sent / 1e6, 1),
        }
    del cases[UNBOUND]["efficiency"]
    return {"parameters": model(arguments).parameter_count, "cases": cases}


def main() -> None:
    """Measure and print one JSON object; or be one rank of a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1376)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        train(arguments, CASES[arguments.case])
        return
    times: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(arguments.rounds):
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                times[case] += launched(arguments, case, Path(folder))
    print(json.dumps(report(arguments, times), indent=2))


if __name__ == "__main__":
    main()
