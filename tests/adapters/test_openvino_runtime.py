from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import attrs
import numpy as np
import pytest
from reference.glm3_numpy import forward
from safetensors.numpy import save_file

from glm3sdk.adapters.openvino.directory import MappedTensors
from glm3sdk.adapters.openvino.quantization import unpack
from glm3sdk.adapters.openvino.quantized import (
    MemoryTensors,
    quantized_specs,
    quantized_values,
    require_quantized,
)
from glm3sdk.adapters.openvino.runtime import OpenVinoRuntime
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import (
    BackendUnavailableError,
    InvalidCheckpointError,
    RuntimeFailureError,
    ServiceClosedError,
    UnsupportedOptionError,
)
from glm3sdk.ports.training import TrainingPlan
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract
from glm3sdk.testing.random_checkpoint import random_weights

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=40,  # no group divides it
    num_attention_heads=2,
    kv_channels=16,
    multi_query_group_num=1,
    padded_vocab_size=40,
    seq_length=64,
)
SOURCE = MemoryTensors(random_weights(CONFIG))
OLD_CPU = "processor\t: 0\nflags\t\t: fpu sse4_2 avx\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n"


def load(**options: object) -> OpenVinoRuntime:
    return OpenVinoRuntime(config=CONFIG, checkpoint=SOURCE, **options)


def converted(quantize: str) -> dict[str, np.ndarray]:
    return dict(quantized_values(SOURCE, CONFIG, quantize))


def test_the_plugin_recognises_every_pattern():
    from glm3sdk.adapters.openvino.compiled import CompiledGlm3

    # Where weights are unpacked to float32, zero points are multiplied by themselves: in all
    # matrices but dense_4h_to_h, which no group of 4 bits divides.
    for quantize, multiplies_bytes, more in (
        ("none", True, 0),
        ("int8", True, 0),
        ("int4", True, 0),
        ("int8", False, 0),
        ("int4", False, 3 * CONFIG.num_layers + 1),
    ):
        compiled = CompiledGlm3(
            CONFIG,
            MemoryTensors(converted(quantize)),
            cache_dtype="f32",
            multiplies_bytes=multiplies_bytes,
        )
        kinds = Counter(
            node.get_rt_info()["layerType"].astype(str)
            for node in compiled.model.get_runtime_model().get_ops()
        )
        layers = CONFIG.num_layers
        wanted = {
            "RoPE": 2 * layers,
            "RMS": 2 * layers + 1,
            "PagedAttention": layers,
            "FullyConnected": 4 * layers + 1 + more,
        }
        # A matrix that is not recognised as compressed would be unpacked before it is used.
        assert {kind: kinds[kind] for kind in (*wanted, "MatMul")} == {**wanted, "MatMul": 0}
        assert kinds["Convert"] == 0


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_converted_model_computes_what_it_computes_when_quantised_while_loading(quantize: str):
    ids = list(range(10))
    dtype = {"none": "float32"}.get(quantize, quantize)
    rows = []
    for checkpoint in (SOURCE, MemoryTensors(converted(quantize))):
        runtime = OpenVinoRuntime(
            config=CONFIG, checkpoint=checkpoint, dtype=dtype if checkpoint is SOURCE else None
        )
        assert runtime.capabilities.dtype == dtype
        session = runtime.start_decode(slots=1, max_seq_length=16)
        rows.append(session.prefill(0, ids, all_logits=True))
        session.close()
        runtime.close()
    np.testing.assert_array_equal(rows[0], rows[1])


def floats(name: str, made: dict[str, np.ndarray]) -> np.ndarray:
    """A tensor of a converted model as it was meant."""
    values = made[name]
    if values.ndim == 1:
        return values
    if values.dtype == np.int8:
        return values * made[name + ".scale"]
    scales = made[name + ".scale"].astype(np.float32)
    rows, groups, _ = scales.shape
    points = unpack(made[name + ".zero_point"], scales.size).reshape(scales.shape)
    centred = unpack(values, 2 * values.size).reshape(rows, groups, -1) - points.astype(np.float32)
    return (centred * scales).reshape(rows, -1)


def test_zero_points_taken_off_the_product_give_the_logits_of_the_oracle():
    # Rows of two groups of 128, of one of 64, and of one of 32.
    config = attrs.evolve(CONFIG, hidden_size=256, ffn_hidden_size=64)
    made = dict(quantized_values(MemoryTensors(random_weights(config)), config, "int4"))
    ids = list(range(12))
    expected = forward(config, {name: floats(name, made) for name in config.tensor_shapes()}, ids)
    runtime = OpenVinoRuntime(
        config=config, checkpoint=MemoryTensors(made), cpu_info=lambda: "flags : avx2 fma\n"
    )
    session = runtime.start_decode(slots=1, max_seq_length=16)
    rows = [*session.prefill(0, ids[:8], all_logits=True)]
    rows += [session.decode([0], [token_id])[0] for token_id in ids[8:]]
    session.close()
    runtime.close()
    np.testing.assert_allclose(rows, expected, atol=1e-5, rtol=1e-5)


def test_specs_tell_what_values_are():
    for quantize in ("none", "int8", "int4"):
        made = MemoryTensors(converted(quantize))
        assert dict(made.tensors) == quantized_specs(SOURCE.tensors, CONFIG, quantize)
        if quantize != "none":
            require_quantized(made, CONFIG)


def test_a_tensor_of_another_conversion_is_refused():
    values = converted("int4")
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    assert values[name].dtype == np.int8  # no group divides its rows
    for change in ({name: values[name][:, :-1]}, {name + ".scale": values[name + ".scale"][:-1]}):
        with pytest.raises(InvalidCheckpointError, match=r"dense_4h_to_h.*Convert the model again"):
            require_quantized(MemoryTensors({**values, **change}), CONFIG)
    del values[name]
    with pytest.raises(InvalidCheckpointError, match=r"dense_4h_to_h\.weight is missing"):
        OpenVinoRuntime(config=CONFIG, checkpoint=MemoryTensors(values))


def test_a_weight_that_is_not_finite_is_named():
    weights = random_weights(CONFIG)
    weights["transformer.output_layer.weight"][3, 3] = np.inf
    with pytest.raises(
        InvalidCheckpointError, match=r"output_layer.weight has values that are not"
    ):
        dict(quantized_values(MemoryTensors(weights), CONFIG, "int8"))


def test_a_processor_without_avx2_is_told():
    with pytest.raises(
        BackendUnavailableError, match=r"needs a processor with AVX2.*mindspore-cpu"
    ):
        load(cpu_info=lambda: OLD_CPU)


def test_a_system_that_does_not_tell_its_flags_is_taken_at_its_word():
    load(cpu_info=lambda: "").close()


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'glm3sdk\[openvino\]'"):
        load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "no dtype 'bfloat16'; pass one of float32, int8, int4"),
        ({"device_id": 1}, "leave device_id and max_device_memory out"),
        ({"max_device_memory": "4GB"}, "leave device_id and max_device_memory out"),
        ({"cache_dtype": "f8"}, "cannot be 'f8'; pass one of f32, u8"),
    ],
)
def test_options_that_it_has_not_are_refused(options: dict[str, object], message: str):
    with pytest.raises(UnsupportedOptionError, match=message):
        load(**options)


def test_a_converted_model_has_the_dtype_that_it_has():
    with pytest.raises(UnsupportedOptionError, match="converted to int8, and dtype='int4'"):
        OpenVinoRuntime(config=CONFIG, checkpoint=MemoryTensors(converted("int8")), dtype="int4")


def test_it_does_not_train_and_a_closed_one_does_not_decode():
    runtime = load()
    assert not runtime.capabilities.training
    assert runtime.load_s > 0
    with pytest.raises(UnsupportedOptionError, match="does not train"):
        runtime.start_training(plan=TrainingPlan())
    session = runtime.start_decode(slots=1, max_seq_length=8)
    runtime.close()
    runtime.close()
    with pytest.raises(ServiceClosedError, match="load it again"):
        runtime.start_decode(slots=1, max_seq_length=8)
    assert np.isfinite(session.prefill(0, [1, 2])).all()
    session.close()


def test_a_failure_of_the_library_is_one_typed_error_and_changes_nothing(monkeypatch):
    from glm3sdk.adapters.openvino.compiled import PagedRequest

    runtime = load()
    session = runtime.start_decode(slots=2, max_seq_length=40)
    expected = session.prefill(0, [*range(34), 5])
    session.truncate(0, 34)
    session.copy(0, 1, 34)

    def fail(*_: object) -> None:
        raise RuntimeError("Exception from src/x.cpp:1:\n\nCheck 'a' failed\nno memory\n")

    with monkeypatch.context() as patched:
        patched.setattr(PagedRequest, "run", fail)
        with pytest.raises(RuntimeFailureError, match=r"^OpenVINO failed: no memory$"):
            session.prefill(0, [1, 2, 3])
        with pytest.raises(RuntimeFailureError):
            session.decode([0, 1], [1, 2])
    assert [session.length(0), session.length(1)] == [34, 34]
    for row in session.decode([0, 1], [5, 5]):
        np.testing.assert_allclose(row, expected, atol=1e-5)
    session.close()
    runtime.close()


class TestMappedTensors(CheckpointReaderContract):
    @pytest.fixture
    def expected(self) -> dict[str, np.ndarray]:
        return {
            "rows": np.arange(12, dtype=np.int8).reshape(3, 4),
            "scales": np.linspace(1, 2, 3, dtype=np.float32),
            "halves": np.arange(6, dtype=np.float16).reshape(2, 3),
            "packed": np.arange(5, dtype=np.uint8),
        }

    @pytest.fixture
    def reader(self, expected: dict[str, np.ndarray], tmp_path: Path) -> MappedTensors:
        save_file(expected, tmp_path / "file.safetensors")
        return MappedTensors(tmp_path / "file.safetensors")


@pytest.mark.parametrize("left", [0, 4, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, left: int):
    file = tmp_path / "file.safetensors"
    save_file({"rows": np.ones((3, 4), np.int8)}, file)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(InvalidCheckpointError, match=r"file\.safetensors"):
        MappedTensors(file)


def test_a_file_that_is_gone_since_it_was_opened_is_told(tmp_path: Path):
    file = tmp_path / "file.safetensors"
    save_file({"rows": np.ones((3, 4), np.int8)}, file)
    reader = MappedTensors(file)
    file.unlink()
    with pytest.raises(InvalidCheckpointError, match="cannot be mapped"):
        reader.read("rows")


def test_writing_to_what_was_mapped_changes_no_file(tmp_path: Path):
    file = tmp_path / "file.safetensors"
    save_file({"rows": np.ones((3, 4), np.int8)}, file)
    before = file.read_bytes()
    MappedTensors(file).read("rows")[:] = 7
    assert file.read_bytes() == before


def test_a_long_context_has_its_own_positions():
    # The table of sines ends at seq_length: the last position is there too.
    config = attrs.evolve(CONFIG, seq_length=33)
    runtime = OpenVinoRuntime(config=config, checkpoint=SOURCE)
    session = runtime.start_decode(slots=1, max_seq_length=33)
    assert np.isfinite(session.prefill(0, [1] * 33, all_logits=True)).all()
    session.close()
    runtime.close()


SIGNALLED = """
import gc, os, signal, threading
from glm3sdk import load_runtime

runtimes = [load_runtime("tiny", runtime="openvino")]
closing = threading.Thread(target=lambda: (runtimes.pop().close(), gc.collect()))
closing.start()
closing.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_handled_after_a_runtime_was_closed_on_another_thread() -> None:
    command = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n")
