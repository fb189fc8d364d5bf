"""What a plan tells of a card's memory and parts against what a rank's session holds."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

pytest.importorskip("mindspore")

from glm3sdk.adapters.mindspore.context import set_up
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.profiles import ASCEND, CPU, DeviceProfile
from glm3sdk.domain.card_parts import card_parts
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.memory import CardLoad, training_memory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.domain.tensor_shares import FIRST_MOMENT, TensorShares
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
LORA = Lora(rank=3, targets=("query_key_value", "dense_4h_to_h"))
CASES = {
    "one card": (CPU, ParallelPlan(), None, "float32"),
    "more ranks than groups": (ASCEND, ParallelPlan(data=2, tensor=4), None, "bfloat16"),
    "scattered": (ASCEND, ParallelPlan(data=4, optimizer_shard=True), None, "bfloat16"),
    # 48 rows of the output layer make 6 shards, 64 of dense make 2.
    "uneven": (ASCEND, ParallelPlan(data=6, tensor=2, optimizer_shard=True), None, "float16"),
    "cpu": (CPU, ParallelPlan(data=4, tensor=2, optimizer_shard=True), None, "float32"),
    "adapter": (CPU, ParallelPlan(data=3, tensor=4, optimizer_shard=True), LORA, "float32"),
}


def held(
    profile: DeviceProfile, plan: ParallelPlan, lora: Lora | None, dtype: str
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Bytes that the last rank's session holds, by what they are for, and shapes by name."""

    def work() -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        set_up(CPU)
        from mindspore import Parameter

        from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
        from glm3sdk.adapters.mindspore.ranks import Ranks, plain_group
        from glm3sdk.adapters.mindspore.training import TrainingGraphs
        from glm3sdk.adapters.mindspore.weights import host_to_tensor

        place = plan.place(plan.ranks - 1)
        ranks = None if place.alone else Ranks(CONFIG, place, profile, plain_group)
        local = place.local_config(CONFIG)
        weights = {
            name: Parameter(host_to_tensor(np.zeros(shape, np.float32), dtype), name=name)
            for name, shape in local.tensor_shapes().items()
        }
        cells = Glm3Cells(
            local, profile, weights.__getitem__, ranks=ranks.tensor if ranks else None
        )
        graphs = TrainingGraphs(CONFIG, profile, cells, plan=TrainingPlan(lora=lora), ranks=ranks)
        state = graphs.apply_graph
        kinds = {
            "weights": [*weights.values(), *(graphs.parameters if lora else ())],
            "gradients": [*graphs._state.gradients, *state.gradients],
            "optimizer": [*state.first, *state.second, *state.masters],
        }
        every = {p.name: p for parameters in kinds.values() for p in parameters}
        # A master may be the weight itself, and a summed gradient the gradient.
        names: set[str] = set()
        sizes = {}
        for kind, parameters in kinds.items():
            new = {p.name: p for p in parameters if p.name not in names}
            names |= set(new)
            sizes[kind] = sum(p.nbytes for p in new.values())
        return sizes, {name: tuple(p.shape) for name, p in every.items()}

    return translated(work)


@pytest.mark.parametrize("case", CASES)
def test_a_session_holds_the_parameters_that_a_plan_counts(case: str) -> None:
    profile, plan, lora, dtype = CASES[case]
    load = CardLoad(
        batch_size=1,
        seq_length=8,
        dtype=dtype,
        lora=lora,
        reduce_scatter=profile.reduce_scatter,
        **attrs.asdict(plan),
    )
    found, shapes = held(profile, plan, lora, dtype)
    planned = training_memory(CONFIG, load)
    assert found == {
        "weights": planned.weights,
        "gradients": planned.gradients,
        "optimizer": planned.optimizer,
    }
    for part in card_parts(TensorShares(config=CONFIG, plan=plan, lora=lora)):
        for layer in range(CONFIG.num_layers):
            name = part.name.replace("*", str(layer))
            assert shapes[name] == part.card
            assert shapes.get(FIRST_MOMENT + name) == part.state
