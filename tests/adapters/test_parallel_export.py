"""The graphs of one rank among several, exported without a job and read as protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference.mindir import MindIr

from glm3sdk.adapters.mindspore.export import export_training
from glm3sdk.adapters.mindspore.profiles import ASCEND, CPU, DeviceProfile
from glm3sdk.domain.communication import (
    Collective,
    Collectives,
    StepLoad,
    sent_bytes,
    step_collectives,
)
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, Place
from glm3sdk.domain.tensor_shares import TensorShares
from glm3sdk.ports.training import TrainingPlan

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=48,
    num_attention_heads=4,
    kv_channels=16,
    multi_query_group_num=2,
    padded_vocab_size=96,
)
LENGTH, MICRO_BATCHES = 16, 3
BYTES = {"FLOAT": 4, "BFLOAT16": 2}
COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter")


@pytest.fixture(scope="module", autouse=True)
def no_graph_is_kept() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLM3SDK_CACHE_DIR", "")
        yield


def export(
    folder: Path, profile: DeviceProfile, place: Place, plan: TrainingPlan, dtype: str
) -> dict[str, MindIr]:
    paths = export_training(
        CONFIG, profile, folder, seq_length=LENGTH, dtype=dtype, plan=plan, place=place
    )
    return {path.stem: MindIr(path) for path in paths}


def counted(graphs: dict[str, MindIr], ranks: int) -> Counter[Collective]:
    """What the graphs of a step run, each as often as a step runs it."""
    times = {"gradient": 1, "accumulate": MICRO_BATCHES - 1, "reduce": 1, "update": 1}
    assert set(times) == set(graphs)
    found: Counter[Collective] = Counter()
    for name, graph in graphs.items():
        for kind in COLLECTIVES:
            for operator in graph.every(kind):
                value = operator.inputs[0]
                size = BYTES[value.dtype]
                for length in value.dims:
                    size *= length
                # Groups of an export are named by first rank, distance and number of ranks.
                distance, members = map(int, operator.group.split("-")[-2:])
                found[Collective(kind, members, size, distance)] += times[name]
    # A step begins with the number of counted labels, a graph of one collective.
    found[Collective("AllGather", ranks, 4)] += 1
    return found


CASES = {
    "ascend, every weight, recomputed": (
        ASCEND,
        ParallelPlan(data=4, tensor=2, optimizer_shard=True),
        TrainingPlan(recompute=True),
        "bfloat16",
    ),
    # More tensor ranks than groups, and fewer optimizer shards of some tensors than data ranks.
    "cpu, adapter": (
        CPU,
        ParallelPlan(data=6, tensor=4, optimizer_shard=True),
        TrainingPlan(lora=Lora(rank=3, targets=("query_key_value", "dense", "dense_4h_to_h"))),
        "float32",
    ),
    "ascend, data ranks alone": (ASCEND, ParallelPlan(data=5), TrainingPlan(), "bfloat16"),
    # Each key/value group on two ranks.
    "cpu, tensor ranks alone": (CPU, ParallelPlan(tensor=4), TrainingPlan(), "float32"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_steps_collectives_are_those_of_the_formulas(tmp_path: Path, case: str) -> None:
    profile, plan, training, dtype = CASES[case]
    graphs = export(tmp_path, profile, plan.place(plan.ranks - 1), training, dtype)
    load = StepLoad(
        batch_size=1,
        seq_length=LENGTH,
        micro_batches=MICRO_BATCHES,
        item_bytes=2 if dtype == "bfloat16" else 4,
        recompute=training.recompute,
        collectives=Collectives(
            gathers_in_groups=profile.gathers_in_groups, reduce_scatter=profile.reduce_scatter
        ),
    )
    shares = TensorShares(config=CONFIG, plan=plan, lora=training.lora)
    expected = step_collectives(shares, load)
    found = counted(graphs, plan.ranks)
    assert found == expected
    assert sent_bytes(found) == sent_bytes(expected) > 0
    if profile is ASCEND and plan.tensor > 1:
        kernels = {"FlashAttentionScore", "RmsNorm", "Swiglu", "RotaryPositionEmbedding"}
        assert kernels <= graphs["gradient"].counts.keys()
        assert graphs["reduce"].counts["ReduceScatter"] > 0
        # Each rank's kernel has its own heads.
        for operator in graphs["gradient"].every("FlashAttentionScore"):
            assert operator.inputs[0].dims == (1, 2, LENGTH, CONFIG.kv_channels)
            assert operator.inputs[1].dims == (1, 1, LENGTH, CONFIG.kv_channels)
    if profile is CPU:
        # A CPU gathers over all ranks alone, and scatters nothing.
        assert {o.group for g in graphs.values() for o in g.every("AllGather")} == {
            f"glm3sdk-0-1-{plan.ranks}"
        }
        assert not any(graph.counts["ReduceScatter"] for graph in graphs.values())


def test_a_rank_alone_has_no_collective(tmp_path: Path) -> None:
    graphs = export(tmp_path, CPU, Place(), TrainingPlan(), "float32")
    assert set(graphs) == {"gradient", "update"}
    assert not any(graph.counts[kind] for graph in graphs.values() for kind in COLLECTIVES)
    assert not any(graph.counts["Identity"] for graph in graphs.values())
    load = StepLoad(batch_size=1, seq_length=LENGTH)
    assert not step_collectives(TensorShares(config=CONFIG, plan=ParallelPlan()), load)
