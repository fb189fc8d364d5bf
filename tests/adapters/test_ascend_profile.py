"""The Ascend profile's graphs, exported by MindSpore's front end and read as protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import attrs
import pytest
from reference.mindir import MindIr, Value

from glm3sdk.adapters.mindspore.export import export_decoding, export_training
from glm3sdk.adapters.mindspore.profiles import ASCEND, CPU, PROFILES
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.lora import LINEAR_LAYERS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import BackendUnavailableError, RuntimeFailureError, UnsupportedOptionError
from glm3sdk.ports.training import TrainingPlan
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

LAYERS, HEADS, GROUPS, CHANNELS = 2, 4, 2, 128
NORMS = 2 * LAYERS + 1
BATCH, SLOTS, LENGTH, TRAINED_LENGTH = 3, 4, 32, 16
CONFIG = Glm3Config(
    num_layers=LAYERS,
    hidden_size=64,
    ffn_hidden_size=48,
    num_attention_heads=HEADS,
    kv_channels=CHANNELS,
    multi_query_group_num=GROUPS,
    padded_vocab_size=96,
)
BLOCK = {"RmsNorm": NORMS, "RotaryPositionEmbedding": LAYERS, "Swiglu": LAYERS}
# What the explicit branches are made of: none of it may be left beside the kernels.
EXPLICIT = {"Softmax", "BatchMatMul", "Rsqrt", "Square", "ReduceSum", "Sigmoid", "Split"}
EXPLICIT_GRADIENT = {"BatchMatMul", "Sigmoid", "Rsqrt"}
BNSD = 1  # of FASInputLayoutMode in MindSpore's op_enum.h
HALF = {"bfloat16": "BFLOAT16", "float16": "FLOAT16"}


Export = Callable[[str, str], dict[str, MindIr]]
ExportTraining = Callable[..., dict[str, MindIr]]


@pytest.fixture(scope="module", autouse=True)
def no_graph_is_kept() -> Iterator[None]:
    """A compilation that fails, as one does here, ends the keeping of graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLM3SDK_CACHE_DIR", "")
        yield


@pytest.fixture(scope="module")
def decoding(tmp_path_factory: pytest.TempPathFactory) -> Export:
    @cache
    def export(profile: str, dtype: str) -> dict[str, MindIr]:
        directory = tmp_path_factory.mktemp("decoding")
        paths = export_decoding(
            CONFIG,
            PROFILES[profile],
            directory,
            slots=SLOTS,
            max_seq_length=LENGTH,
            dtype=dtype,
            batch_size=BATCH,
        )
        return {path.stem: MindIr(path) for path in paths}

    return export


PLANS = {
    "full": TrainingPlan(),
    "recompute": TrainingPlan(recompute=True),
    "lora": TrainingPlan(lora=Lora(rank=2, targets=LINEAR_LAYERS)),
    "explicit": TrainingPlan(flash_attention=False),
}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> ExportTraining:
    @cache
    def export(profile: str, dtype: str, plan: str = "full") -> dict[str, MindIr]:
        directory = tmp_path_factory.mktemp("training")
        paths = export_training(
            CONFIG,
            PROFILES[profile],
            directory,
            seq_length=TRAINED_LENGTH,
            dtype=dtype,
            plan=PLANS[plan],
        )
        return {path.stem: MindIr(path) for path in paths}

    return export


@pytest.mark.parametrize("dtype", HALF)
def test_prefill_and_decode_hold_each_kernel_once_a_layer(decoding: Export, dtype: str) -> None:
    graphs = decoding("mindspore-ascend", dtype)
    attention = {"prefill": "FlashAttentionScore", "decode": "IncreFlashAttention"}
    for name, kernel in attention.items():
        counts = graphs[name].counts
        expected = {**BLOCK, kernel: LAYERS}
        assert {operator: counts[operator] for operator in expected} == expected
        assert not EXPLICIT & counts.keys()
        # query_key_value, dense and two of the feed-forward layer; the output layer.
        assert counts["MatMul"] == 4 * LAYERS + 1
        assert counts["ScatterUpdate"] == 2 * LAYERS


@pytest.mark.parametrize("dtype", HALF)
def test_only_the_logits_leave_half_precision(decoding: Export, dtype: str) -> None:
    for graph in decoding("mindspore-ascend", dtype).values():
        # FlashAttentionScore's first output is a statistic of its own; Depend is the return.
        wide = [
            operator
            for operator in graph.operators
            if "FLOAT" in operator.output.dtype
            and operator.output.dtype != HALF[dtype]
            and operator.name not in {"FlashAttentionScore", "Depend"}
        ]
        assert [operator.name for operator in wide] == ["Cast"]
        assert wide[0].output.dtype == "FLOAT"
        assert wide[0].output.dims[-1] == CONFIG.padded_vocab_size


@pytest.mark.parametrize("dtype", HALF)
def test_kernels_get_the_shapes_dtypes_and_options_that_they_document(
    decoding: Export, dtype: str
) -> None:
    half = HALF[dtype]
    graphs = decoding("mindspore-ascend", dtype)
    for operator in graphs["prefill"].every("FlashAttentionScore"):
        query, key, value, *_, mask = operator.inputs[:7]
        assert query == Value(half, (1, HEADS, -1, CHANNELS))
        assert key == value == Value(half, (1, GROUPS, -1, CHANNELS))
        assert mask == Value("UINT8", (-1, -1))
        heads, keep, scale, *_, layout, sparse_mode = (v.constant for v in operator.inputs[10:])
        assert (heads, keep, sparse_mode) == (HEADS, 1.0, 0)
        assert scale == pytest.approx(CHANNELS**-0.5)
        assert layout == BNSD
    for operator in graphs["decode"].every("IncreFlashAttention"):
        assert operator.inputs[0] == Value(half, (BATCH, HEADS, 1, CHANNELS))
        assert operator.inputs[1] == Value(half, (BATCH, GROUPS, LENGTH, CHANNELS))
        assert operator.inputs[2] == operator.inputs[1]
        assert operator.inputs[3] == Value("BOOL", (BATCH, 1, 1, LENGTH))
        heads, layout, scale, groups, _, precise = (v.constant for v in operator.inputs[15:])
        assert (heads, layout, groups, precise) == (HEADS, BNSD, GROUPS, 0)
        assert scale == pytest.approx(CHANNELS**-0.5)
    for name, rows in (("prefill", -1), ("decode", BATCH)):
        for operator in graphs[name].every("RotaryPositionEmbedding"):
            x, cos, sin, mode = operator.inputs
            # [1, S, N, D] with [1, S, 1, D]: what the interleaved mode allows.
            assert x == operator.output == Value(half, (1, rows, HEADS + GROUPS, CHANNELS))
            assert cos == sin == Value(half, (1, rows, 1, CHANNELS))
            assert mode.constant == 1
        for operator in graphs[name].every("RmsNorm"):
            assert operator.inputs[0] == operator.output
            assert operator.inputs[1].dtype == half
            assert operator.inputs[2].constant == pytest.approx(CONFIG.layernorm_epsilon)


def gradients_of(counts: Mapping[str, int]) -> dict[str, int]:
    return {f"{name}Grad": count for name, count in counts.items()}


TRAINED = {**BLOCK, "FlashAttentionScore": LAYERS}


@pytest.mark.parametrize(("dtype", "weights"), [("float32", "FLOAT"), ("bfloat16", "BFLOAT16")])
def test_training_graph_holds_the_kernels_and_their_gradients(
    training: ExportTraining, dtype: str, weights: str
) -> None:
    graph = training("mindspore-ascend", dtype)["gradient"]
    expected = TRAINED | gradients_of(TRAINED)
    assert {name: graph.counts[name] for name in expected} == expected
    assert not EXPLICIT_GRADIENT & graph.counts.keys()
    for operator in graph.every("FlashAttentionScore"):
        assert operator.inputs[0] == Value("BFLOAT16", (1, HEADS, TRAINED_LENGTH, CHANNELS))
        assert operator.inputs[1] == Value("BFLOAT16", (1, GROUPS, TRAINED_LENGTH, CHANNELS))
        assert operator.inputs[6] == Value("UINT8", (2048, 2048))
        assert operator.inputs[-1].constant == 2  # causal from the upper left
    for operator in graph.every("RmsNorm"):
        assert operator.inputs[0].dtype == operator.inputs[1].dtype == weights
    # The loss and its gradient.
    for name in ("LogSoftmax", "Softmax"):
        (operator,) = graph.every(name)
        assert operator.output == Value("FLOAT", (TRAINED_LENGTH, CONFIG.padded_vocab_size))


def test_recomputed_layers_run_their_kernels_again_before_the_same_gradients(
    training: ExportTraining,
) -> None:
    graph = training("mindspore-ascend", "bfloat16", "recompute")["gradient"]
    # All but the final norm. What ends a recomputed cell is kept: attention's output, and the
    # sum of a layer, but no activation of the feed-forward layer.
    again = dict.fromkeys(BLOCK, 2 * LAYERS) | {"RmsNorm": 2 * NORMS - 1}
    expected = TRAINED | again | gradients_of(TRAINED)
    assert {name: graph.counts[name] for name in expected} == expected
    plain = training("mindspore-ascend", "bfloat16")["gradient"]
    assert graph.counts["MatMul"] == plain.counts["MatMul"] + 4 * LAYERS


@pytest.mark.parametrize("dtype", HALF)
def test_without_flash_attention_the_scores_are_explicit_and_softmax_is_float32(
    training: ExportTraining, dtype: str
) -> None:
    graph = training("mindspore-ascend", dtype, "explicit")["gradient"]
    expected = BLOCK | gradients_of(BLOCK)
    assert {name: graph.counts[name] for name in expected} == expected
    assert "FlashAttentionScore" not in graph.counts
    scores = [o for o in graph.every("Softmax") if o.output.dims[-1] == TRAINED_LENGTH]
    assert [operator.output.dtype for operator in scores] == ["FLOAT"] * LAYERS
    products = list(graph.every("BatchMatMul"))
    assert {operator.output.dtype for operator in products} == {HALF[dtype]}


def test_an_adapters_graph_holds_the_gradients_of_the_kernels_and_of_no_weight(
    training: ExportTraining,
) -> None:
    graph = training("mindspore-ascend", "bfloat16", "lora")["gradient"]
    # Before the first adapter there is nothing to train: its norm has no gradient.
    expected = TRAINED | gradients_of(TRAINED) | {"RmsNormGrad": NORMS - 1}
    assert {name: graph.counts[name] for name in expected} == expected
    assert not EXPLICIT_GRADIENT & graph.counts.keys()
    assert not {"BiasAddGrad", "UnsortedSegmentSum"} & graph.counts.keys()
    adapted = len(LINEAR_LAYERS) * LAYERS
    kept = graph.every("Assign")
    assert len(kept) == 2 * adapted
    shapes = Counter(2 in operator.inputs[0].dims for operator in kept)
    assert shapes == {True: 2 * adapted}  # the rank is 2


def test_half_precision_weights_are_updated_by_way_of_float32(training: ExportTraining) -> None:
    weights = len(CONFIG.tensor_shapes())
    update = training("mindspore-ascend", "bfloat16")["update"]
    for operator in update.every("Adam"):
        assert {value.dtype for value in operator.inputs[:3]} == {"FLOAT"}
    copies = [o for o in update.every("Assign") if o.inputs[0].dtype == "BFLOAT16"]
    assert len(update.every("Adam")) == len(copies) == weights
    plain = training("mindspore-ascend", "float32")["update"]
    assert plain.counts["Adam"] == weights
    assert "Cast" not in plain.counts


def test_cpu_graphs_hold_no_kernel_that_only_ascend_has(
    decoding: Export, training: ExportTraining
) -> None:
    fused = {*BLOCK, "FlashAttentionScore", "IncreFlashAttention"}
    gradient = training("mindspore-cpu", "float32")["gradient"]
    graphs = [*decoding("mindspore-cpu", "float32").values(), gradient]
    assert len(graphs) == 3
    for graph in graphs:
        assert not fused & graph.counts.keys()
        # The loss's gradient has another.
        assert graph.counts["Softmax"] == LAYERS + (graph is gradient)


def test_compressed_mask_is_causal_and_set_where_it_discards() -> None:
    import mindspore as ms
    import numpy as np

    from glm3sdk.adapters.mindspore.executor import EXECUTOR
    from glm3sdk.adapters.mindspore.model.attention import training_attention

    core = EXECUTOR.run(
        lambda: training_attention(CONFIG, fused=True, dtype=ms.float32, seq_length=TRAINED_LENGTH)
    )
    row, column = np.indices((2048, 2048))
    np.testing.assert_array_equal(core.mask.asnumpy(), column > row)


def test_float32_weights_decode_without_the_attention_kernels() -> None:
    """They take half precision alone; the front end would not say so of FlashAttentionScore."""
    import mindspore as ms

    from glm3sdk.adapters.mindspore.executor import EXECUTOR
    from glm3sdk.adapters.mindspore.model import attention

    def cores() -> list[object]:
        return [
            attention.decode_attention(CONFIG, ASCEND, dtype=ms.float32, length=LENGTH),
            attention.prefill_attention(CONFIG, ASCEND, dtype=ms.float32),
        ]

    decode, prefill = EXECUTOR.run(cores)
    assert isinstance(decode, attention.ExplicitDecodeAttention)
    assert isinstance(prefill, attention.ExplicitPrefillAttention)


def test_a_profile_exports_only_dtypes_that_it_computes_in(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="bfloat16"):
        export_training(CONFIG, CPU, tmp_path, seq_length=TRAINED_LENGTH, dtype="bfloat16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceDirectory:
    path = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(path, CONFIG)
    return HuggingFaceDirectory(path)


def test_without_a_card_the_error_says_what_to_install_and_the_cpu_still_works(
    checkpoint: HuggingFaceDirectory,
) -> None:
    with pytest.raises(BackendUnavailableError) as raised:
        MindSporeRuntime(config=CONFIG, checkpoint=checkpoint, profile=ASCEND)
    message = str(raised.value)
    for word in ("Ascend", "driver", "CANN", "mindspore-cpu"):
        assert word in message
    assert "\n" not in message
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=checkpoint, profile=CPU)
    session = runtime.start_decode(slots=1, max_seq_length=8)
    assert session.prefill(0, [5, 6]).shape == (CONFIG.padded_vocab_size,)
    session.close()
    runtime.close()


def test_ascend_graphs_on_a_cpu_fail_at_kernel_selection_and_nowhere_earlier(
    checkpoint: HuggingFaceDirectory,
) -> None:
    profile = attrs.evolve(ASCEND, device_target="CPU")
    # bfloat16 would fail too, at the embedding: a CPU has no bfloat16 Gather.
    runtime = MindSporeRuntime(
        config=CONFIG, checkpoint=checkpoint, profile=profile, dtype="float16"
    )
    session = runtime.start_decode(slots=2, max_seq_length=8)
    for step in (lambda: session.prefill(0, [5, 6]), lambda: session.decode([1], [5])):
        with pytest.raises(RuntimeFailureError) as raised:
            step()
        reason = str(raised.value.__cause__)
        assert "Kernel select failed" in reason
        assert "Unsupported op [RmsNorm] on CPU" in reason
    session.close()
    runtime.close()
