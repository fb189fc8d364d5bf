"""Training against torch's autograd and AdamW in float64; make_training.py made the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.training import Schedule
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.training import AdamW, StatePart, StepMetrics, TokenBatch, TrainingPlan

GOLDEN = dict(np.load(Path(__file__).with_name("training.npz")))
ABOUT = json.loads(str(GOLDEN["about"]))
CONFIG = Glm3Config(**ABOUT["config"])
RATE = Schedule(**ABOUT["rate"])
PLANS = {
    "full": TrainingPlan(),
    "lora": TrainingPlan(lora=Lora(dropout=0.0, **ABOUT["lora"])),
}
SPLITS = {"one batch": [slice(None)], "micro-batches": [slice(2), slice(2, None)]}

# float32 rounds a loss or a gradient of order 1 by 1e-7, and sums some hundred such terms.
LOSS_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 5e-6
# AdamW divides by the root of the second moment: where a gradient is small, its error counts
# for more, up to a thousandth of a step here; ten steps are at most 2e-2 long together.
WEIGHT_TOLERANCE = 2e-5


@attrs.frozen(eq=False)
class ArrayReader:
    """A `CheckpointReader` of arrays."""

    arrays: Mapping[str, np.ndarray]

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        return self.arrays[name][index].copy()


@attrs.frozen(eq=False)
class Run:
    metrics: list[StepMetrics]
    weights: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]


def train(plan: TrainingPlan, steps: int, rows: Sequence[slice]) -> Run:
    """Steps from the golden's weights over its batches, cut into micro-batches of `rows`."""
    initial = {
        name.removeprefix("initial/"): value
        for name, value in GOLDEN.items()
        if name.startswith("initial/")
    }
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=ArrayReader(initial), profile=CPU)
    session = runtime.start_training(plan=plan)
    session.restore(ArrayReader(dict(session.state(StatePart.OPTIMIZER)) | initial))
    metrics = []
    for step in range(steps):
        ids, labels = GOLDEN["input_ids"][step], GOLDEN["labels"][step]
        batches = [TokenBatch(ids[part], labels[part]) for part in rows]
        metrics.append(session.train_step(batches, learning_rate=RATE(step)))
    weights, optimizer = (dict(session.state(part)) for part in StatePart)
    session.close()
    runtime.close()
    return Run(metrics, weights, optimizer)


def drifting(name: str) -> np.ndarray:
    """Where a gradient is rounding alone, which AdamW makes a step of.

    What is added to all keys alike adds the same to all scores of a row, and softmax drops
    it: so do the key biases of the channels that rope does not turn.
    """
    found = np.zeros(GOLDEN[f"initial/{name}"].shape, bool)
    if name.endswith("query_key_value.bias"):
        first = CONFIG.num_attention_heads * CONFIG.kv_channels
        keys = found[first : first + CONFIG.multi_query_group_num * CONFIG.kv_channels]
        keys.reshape(-1, CONFIG.kv_channels)[:, CONFIG.kv_channels // 2 :] = True
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_every_gradient_is_torchs(plan: str) -> None:
    unclipped = attrs.evolve(PLANS[plan], optimizer=AdamW(clip_norm=None))
    moments = train(unclipped, 1, [slice(None)]).optimizer
    for name in train_names(plan):
        # After the first step, the first moment is (1 - beta1) of the gradient.
        gradient = moments[f"first_moment.{name}"] / 0.1
        expected = GOLDEN[f"{plan}/gradient/{name}"]
        np.testing.assert_allclose(gradient, expected, atol=GRADIENT_TOLERANCE, err_msg=name)


@pytest.mark.parametrize("rows", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("plan", PLANS)
def test_ten_steps_give_torchs_losses_norms_and_weights(plan: str, rows: list[slice]) -> None:
    rates = [RATE(step) for step in range(10)]
    np.testing.assert_allclose(rates, GOLDEN[f"{plan}/rates"], rtol=1e-12)
    assert max(GOLDEN[f"{plan}/norms"]) > 2, "clipping must have something to do"
    run = train(PLANS[plan], 10, rows)
    losses = [metrics.loss for metrics in run.metrics]
    np.testing.assert_allclose(losses, GOLDEN[f"{plan}/losses"], rtol=LOSS_TOLERANCE)
    norms = [metrics.grad_norm for metrics in run.metrics]
    # A norm moves faster with the weights, which are a little off, than a loss does.
    np.testing.assert_allclose(norms, GOLDEN[f"{plan}/norms"], rtol=WEIGHT_TOLERANCE)
    for name in train_names(plan):
        kept = ~drifting(name)
        np.testing.assert_allclose(
            run.weights[name][kept],
            GOLDEN[f"{plan}/final/{name}"][kept],
            atol=WEIGHT_TOLERANCE,
            err_msg=name,
        )


def train_names(plan: str) -> list[str]:
    """What a plan trains."""
    prefix = f"{plan}/gradient/"
    names = [name.removeprefix(prefix) for name in GOLDEN if name.startswith(prefix)]
    assert len(names) == {"full": 3 + 7 * CONFIG.num_layers, "lora": 4 * CONFIG.num_layers}[plan]
    return names
