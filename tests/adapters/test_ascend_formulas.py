"""The Ascend profile with every kernel played by its published formula, on a CPU.

What runs is the profile's own graphs: layouts, masks, options and dtypes. What does not run
is the kernels, so their rounding and their faults are not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest

from glm3sdk.adapters.mindspore.profiles import ASCEND, CPU, DeviceProfile
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.training import AdamW, StatePart, StepMetrics, TokenBatch, TrainingPlan
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=32,
    num_attention_heads=4,
    kv_channels=16,
    multi_query_group_num=2,
    padded_vocab_size=64,
)
ASCEND_KERNELS_ON_CPU = attrs.evolve(ASCEND, device_target="CPU")
IDS = np.arange(5, 15, dtype=np.int32)

Load = Callable[[DeviceProfile, str], MindSporeRuntime]


@pytest.fixture(scope="module", autouse=True)
def no_graph_is_kept() -> Iterator[None]:
    """A kept graph does not know which formulas it was compiled from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLM3SDK_CACHE_DIR", "")
        yield


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    path: Path = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(path, CONFIG)

    def load_with(profile: DeviceProfile, dtype: str) -> MindSporeRuntime:
        checkpoint = HuggingFaceDirectory(path)
        return MindSporeRuntime(config=CONFIG, checkpoint=checkpoint, profile=profile, dtype=dtype)

    return load_with


@pytest.fixture(scope="module")
def cpu_logits(load: Load) -> np.ndarray:
    return _logits(load(CPU, "float32"))


@pytest.fixture
def formulas() -> Iterator[pytest.MonkeyPatch]:
    from reference.published_kernels import played_by_formulas

    with played_by_formulas() as patch:
        yield patch


def _logits(runtime: MindSporeRuntime) -> np.ndarray:
    """Logits of a prefill, a prefill on top of it, and decode steps of one and two slots."""
    session = runtime.start_decode(slots=2, max_seq_length=16)
    logits = [
        session.prefill(0, IDS[:4], all_logits=True),
        session.prefill(0, IDS[4:7], all_logits=True),
        session.decode([0], IDS[7:8]),
    ]
    session.prefill(1, IDS[:2])
    logits.append(session.decode([0, 1], IDS[8:10]))
    session.close()
    runtime.close()
    return np.concatenate(logits)


def _steps(runtime: MindSporeRuntime, *, flash_attention: bool = True) -> list[StepMetrics]:
    session = runtime.start_training(plan=TrainingPlan(flash_attention=flash_attention))
    ids = np.random.default_rng(0).integers(3, 60, (2, 8), dtype=np.int32)
    labels = np.concatenate([ids[:, 1:], np.full((2, 1), -100, np.int32)], axis=1)
    metrics = [session.train_step([TokenBatch(ids, labels)], learning_rate=1e-2) for _ in range(3)]
    session.close()
    runtime.close()
    return metrics


def test_ascend_graphs_compute_what_the_cpu_graphs_do(
    load: Load, cpu_logits: np.ndarray, formulas: pytest.MonkeyPatch
) -> None:
    import mindspore as ms

    from glm3sdk.adapters.mindspore.model import attention

    # The kernels take half precision only; their formulas take float32, which shows more.
    formulas.setattr(attention, "HALF", (ms.float32,))
    logits = _logits(load(ASCEND_KERNELS_ON_CPU, "float32"))
    # Sums run in another order: a few units in the last place of logits up to 4.
    np.testing.assert_allclose(logits, cpu_logits, atol=1e-5)


def test_half_precision_stays_near_float32(
    load: Load, cpu_logits: np.ndarray, formulas: pytest.MonkeyPatch
) -> None:
    logits = _logits(load(ASCEND_KERNELS_ON_CPU, "float16"))
    assert logits.dtype == np.float32
    # float16 keeps 11 bits: 2^-11 of logits up to 4 is 0.002, a few roundings deep.
    np.testing.assert_allclose(logits, cpu_logits, atol=0.02)
    assert np.abs(logits - cpu_logits).max() > 1e-5, "this did not compute in half precision"


def test_training_with_bfloat16_attention_stays_near_float32(
    load: Load, formulas: pytest.MonkeyPatch
) -> None:
    steps = _steps(load(ASCEND_KERNELS_ON_CPU, "float32"))
    # The CPU profile asks for no kernel, so the formulas cannot reach it.
    expected = _steps(load(CPU, "float32"))
    # bfloat16 keeps 8 bits (2^-8 = 0.004), and attention is one term of the residual.
    for step, plain in zip(steps, expected, strict=True):
        assert step.loss == pytest.approx(plain.loss, rel=5e-3)
        assert step.grad_norm == pytest.approx(plain.grad_norm, rel=2e-2)
    assert steps[-1].loss < steps[0].loss


def test_float16_training_without_flash_attention_stays_near_float32(
    load: Load, formulas: pytest.MonkeyPatch
) -> None:
    steps = _steps(load(ASCEND_KERNELS_ON_CPU, "float16"), flash_attention=False)
    expected = _steps(load(CPU, "float32"))
    # float16 keeps 11 bits (2^-11 = 0.0005), in every product of the forward and backward pass.
    for step, plain in zip(steps, expected, strict=True):
        assert step.loss == pytest.approx(plain.loss, rel=2e-3)
        assert step.grad_norm == pytest.approx(plain.grad_norm, rel=1e-2)
    assert steps[0].loss != expected[0].loss, "this did not compute in half precision"


def test_steps_too_small_for_float16_add_up_in_the_float32_masters(
    load: Load, formulas: pytest.MonkeyPatch
) -> None:
    runtime = load(ASCEND_KERNELS_ON_CPU, "float16")
    session = runtime.start_training(plan=TrainingPlan(optimizer=AdamW(weight_decay=0.0)))
    name = "transformer.encoder.final_layernorm.weight"
    before = dict(session.state(StatePart.WEIGHTS))[name].copy()
    ids = np.random.default_rng(0).integers(3, 60, (2, 8), dtype=np.int32)
    for step in range(4):
        # Weights around 1 are 5e-4 apart in float16, or 1e-3.
        session.train_step([TokenBatch(ids, ids)], learning_rate=1e-4, loss_scale=128.0)
        master = dict(session.state(StatePart.OPTIMIZER))[f"master.{name}"]
        weights = dict(session.state(StatePart.WEIGHTS))[name]
        assert master.dtype == np.float32
        assert weights.dtype == before.dtype == np.float16
        np.testing.assert_array_equal(weights, master.astype(np.float16))
        moved = np.abs(master - before)
        assert moved.max() == pytest.approx((step + 1) * 1e-4, rel=0.05)
        assert (weights != before).any() == (step >= 2)
    session.close()
    runtime.close()


def test_formulas_give_the_examples_of_mindspores_documentation() -> None:
    """Numbers printed in the docstrings of ops.rms_norm and ops.swiglu (MindSpore 2.10)."""
    from mindspore import Tensor
    from reference.published_kernels import RmsNorm, Swiglu

    from glm3sdk.adapters.mindspore.executor import EXECUTOR

    def work() -> tuple[np.ndarray, np.ndarray]:
        x = Tensor(np.array([[1, 2, 3], [1, 2, 3]], np.float32))
        normed, _ = RmsNorm(1e-6)(x, Tensor(np.ones(3, np.float32)))
        pairs = np.array([[-0.12, 0.123, 31.122], [2.1223, 4.1212121217, 0.3123]], np.float32)
        return normed.asnumpy(), Swiglu()(Tensor(pairs), 0).asnumpy()

    normed, gated = EXECUTOR.run(work)
    np.testing.assert_allclose(normed, [[0.46290997, 0.92581993, 1.3887299]] * 2, rtol=1e-6)
    np.testing.assert_allclose(gated, [[-0.11970687, 0.2690224, 9.7194]], rtol=1e-5)


def test_explicit_rope_is_the_kernels_interleaved_formula() -> None:
    """`y = x * cos + rotate(x) * sin`, rotate(x) = (-x1, x0, -x3, x2, ...), over whole heads.

    With cosine 1 and sine 0 in the second half, the kernel over whole heads leaves that half be.
    """
    from mindspore import Tensor

    from glm3sdk.adapters.mindspore.executor import EXECUTOR
    from glm3sdk.adapters.mindspore.model.rope import Rope, rope_tables

    x = np.random.default_rng(1).standard_normal((7, 6, 16)).astype(np.float32)
    cos, sin = (table[:, None] for table in rope_tables(CONFIG, 7))
    rotated = np.empty_like(x)
    rotated[..., ::2], rotated[..., 1::2] = -x[..., 1::2], x[..., ::2]

    def work() -> np.ndarray:
        rope = Rope(CONFIG, dtype=Tensor(x).dtype, fused=False)
        return rope(Tensor(x), Tensor(cos), Tensor(sin)).asnumpy()

    turned = EXECUTOR.run(work)
    np.testing.assert_allclose(turned, x * cos + rotated * sin, atol=1e-6)
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
    assert np.abs(turned[1:, :, :8] - x[1:, :, :8]).max() > 0.1
