from __future__ import annotations

import json
import weakref
from collections.abc import Mapping

import attrs
import ml_dtypes
import numpy as np
import pytest

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.services.conversion import (
    Copying,
    RenamedTensors,
    encode_index,
    file_order,
    find_weights,
    plan_files,
)
from glm3sdk.testing.random_checkpoint import random_weights

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=2,
    kv_channels=4,
    multi_query_group_num=1,
    padded_vocab_size=16,
    seq_length=32,
)
EMBEDDING = "transformer.embedding.word_embeddings.weight"
TABLE = "transformer.embedding.embedding_table"
OUTPUT = "transformer.output_layer.weight"
NORM = "transformer.encoder.final_layernorm.weight"


@attrs.define
class Arrays:
    """A checkpoint in memory; `broken` changes what is read of one tensor."""

    arrays: Mapping[str, HostArray]
    broken: str = ""

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        array = self.arrays[name][index].copy()
        if name == self.broken:
            array.reshape(-1)[-1] += 1
        return array


@attrs.define
class Listed:
    """A checkpoint of which only the list is there."""

    tensors: Mapping[str, TensorSpec]


def of_run() -> dict[str, HostArray]:
    """What a MindFormers run keeps beside the weights."""
    weights = random_weights(CONFIG)
    weights[TABLE] = weights.pop(EMBEDDING)
    state = {
        f"{kind}.{name}": np.zeros_like(array)
        for kind in ("adam_m", "adam_v")
        for name, array in weights.items()
    }
    counters = {name: np.zeros((), np.int32) for name in ("epoch_num", "step_num", "global_step")}
    more = {name: np.ones(1, np.float32) for name in ("loss_scale", "learning_rate")}
    return {**weights, **state, **counters, **more}


def test_weights_come_in_the_models_order_by_hugging_faces_names():
    found = find_weights(Arrays(dict(reversed(of_run().items()))), CONFIG, "x.ckpt")
    assert list(found.reader.tensors) == list(CONFIG.tensor_shapes())
    np.testing.assert_array_equal(found.reader.read(EMBEDDING), of_run()[TABLE])
    assert found.config == CONFIG
    assert found.presets == ()


def test_what_a_training_run_keeps_is_counted():
    found = find_weights(Arrays(of_run()), CONFIG, "x.ckpt")
    assert found.training_state == 2 * len(CONFIG.tensor_shapes()) + 5
    assert found.unknown == ()


def test_what_nobody_knows_is_named_and_what_is_derived_is_not():
    more = {"scaler.weight": np.ones(3), "transformer.rotary_pos_emb.inv_freq": np.ones(1)}
    found = find_weights(Arrays({**random_weights(CONFIG), **more}), CONFIG, "x.ckpt")
    assert found.unknown == ("scaler.weight",)
    assert found.training_state == 0


def test_text_beside_the_weights_is_none_of_them():
    listed = {**Arrays(random_weights(CONFIG)).tensors, "run.note": TensorSpec((), "str")}
    found = find_weights(Listed(listed), CONFIG, "x.ckpt")
    assert (found.training_state, found.unknown) == (1, ())


def test_lora_matrices_are_never_left_out():
    name = "transformer.encoder.layers.0.self_attention.query_key_value.mindpet_delta_lora_a"
    arrays = {**random_weights(CONFIG), name: np.ones((4, 8))}
    with pytest.raises(InvalidCheckpointError, match=f"LoRA matrices .{name}.*merge them"):
        find_weights(Arrays(arrays), CONFIG, "x.ckpt")


def test_a_weight_under_both_names_is_refused():
    arrays = random_weights(CONFIG)
    arrays[TABLE] = arrays[EMBEDDING]
    with pytest.raises(InvalidCheckpointError, match=f"twice, as {EMBEDDING} and as {TABLE}"):
        find_weights(Arrays(arrays), CONFIG, "x.ckpt")


def listed(config: Glm3Config) -> Listed:
    return Listed({n: TensorSpec(s, "float16") for n, s in config.tensor_shapes().items()})


def test_a_published_model_is_recognised_by_its_shapes():
    found = find_weights(listed(Glm3Config.preset("glm3-6b")), None, "x.ckpt")
    assert found.config == Glm3Config.preset("glm3-6b")
    assert found.presets == ("glm3-6b", "glm3-6b-32k", "glm3-6b-128k")


def test_shapes_of_no_known_model_ask_for_its_config():
    with pytest.raises(InvalidCheckpointError, match=r"num_layers=2, .*pass its config\.json"):
        find_weights(listed(CONFIG), None, "x.ckpt")


@pytest.mark.parametrize("arrays", [{}, {"w": np.ones(3)}, {EMBEDDING: np.ones((16, 8))}])
def test_what_is_no_model_is_said(arrays: dict[str, HostArray]):
    with pytest.raises(InvalidCheckpointError, match=r"x\.ckpt is not a whole ChatGLM3"):
        find_weights(Arrays(arrays), None, "x.ckpt")


def test_neighbours_lie_together_in_files_that_are_not_too_large():
    sizes = {"a": 3, "b": 2, "c": 9, "d": 1, "e": 4, "f": 1}
    specs = {name: TensorSpec((size,), "float16") for name, size in sizes.items()}
    assert list(plan_files(specs, 10).items()) == [
        ("model-00001-of-00004.safetensors", ("a", "b")),
        ("model-00002-of-00004.safetensors", ("c",)),  # 18 bytes: in a file of its own
        ("model-00003-of-00004.safetensors", ("d", "e")),
        ("model-00004-of-00004.safetensors", ("f",)),
    ]
    assert plan_files(specs, 40) == {"model.safetensors": tuple(sizes)}


def test_the_published_model_has_seven_files_of_two_gigabytes():
    specs = listed(Glm3Config.preset("glm3-6b")).tensors
    plan = plan_files(specs, 2 * 10**9)
    assert [name for names in plan.values() for name in names] == list(specs)
    assert len(plan) == 7


def test_the_index_places_every_tensor():
    index = json.loads(encode_index({"f1": ("b", "a"), "f2": ("c",)}, 12))
    assert index == {
        "metadata": {"total_size": 12},
        "weight_map": {"a": "f1", "b": "f1", "c": "f2"},
    }


def test_the_order_of_a_file_is_wide_dtypes_first():
    specs = {"a": TensorSpec((1,), "float16"), "b": TensorSpec((1,), "float32")}
    assert file_order({**specs, "c": specs["a"]}, ["c", "a", "b"]) == ["b", "a", "c"]


def copied(source: Arrays, dtype: str) -> tuple[Copying, Arrays, list[int]]:
    told: list[int] = []
    specs = {name: TensorSpec(a.shape, dtype) for name, a in source.arrays.items()}
    copying = Copying(source, specs, told.append)
    return copying, Arrays(dict(copying.values(specs))), told


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_converted_and_counted(dtype: str):
    source = Arrays(random_weights(CONFIG))
    copying, written, told = copied(source, dtype)
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(written.arrays[name], array.astype(dtype))
    size = sum(array.nbytes for array in written.arrays.values())
    assert sum(told) == size
    copying.check(written, "DST")
    assert sum(told) == 2 * size


def test_a_value_that_does_not_fit_the_dtype_is_named():
    arrays = {**random_weights(CONFIG), NORM: np.full(8, 1e6, np.float32)}
    with pytest.raises(InvalidCheckpointError, match=rf"{NORM} .*float16 cannot hold"):
        copied(Arrays(arrays), "float16")
    copied(Arrays(arrays), "bfloat16")


def test_infinities_and_nans_stay():
    value = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    _, written, _ = copied(Arrays({"w": value}), "float16")
    np.testing.assert_array_equal(written.arrays["w"], value.astype(np.float16))


def test_a_changed_byte_is_found_when_it_is_read_back():
    copying, written, _ = copied(Arrays(random_weights(CONFIG)), "float16")
    written.broken = OUTPUT
    with pytest.raises(CheckpointWriteError, match=f"DST is not .* bytes of {OUTPUT} came back"):
        copying.check(written, "DST")


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype"])
def test_another_list_of_tensors_is_found(change: str):
    copying, written, _ = copied(Arrays(random_weights(CONFIG)), "float16")
    arrays = dict(written.arrays)
    if change == "missing":
        del arrays[NORM]
    elif change == "more":
        arrays[NORM + "2"] = np.ones(1, np.float16)
    else:
        array = arrays[NORM]
        arrays[NORM] = (
            array.reshape(2, 4) if change == "shape" else array.astype(ml_dtypes.bfloat16)
        )
    with pytest.raises(CheckpointWriteError, match=f"DST is not what was written: {NORM}"):
        copying.check(Arrays(arrays), "DST")


def test_what_was_written_is_gone_before_the_next_one_is_read():
    alive: list[int] = []
    given: list[weakref.ref[HostArray]] = []

    class Watching(Arrays):
        def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
            alive.append(sum(reference() is not None for reference in given))
            return super().read(name, index)

    source = Watching(random_weights(CONFIG))
    copying = Copying(source, source.tensors, lambda _: None)
    for _, value in copying.values(source.tensors):
        given.append(weakref.ref(value))
        del value
    assert alive == [0] * len(source.arrays)


def test_renamed_tensors_know_only_their_new_names():
    renamed = RenamedTensors(Arrays({"a": np.arange(3), "b": np.arange(2)}), {"c": "a"})
    assert list(renamed.tensors) == ["c"]
    assert renamed.read("c", (slice(1, 2),)).tolist() == [1]
    for name in ("a", "b"):
        with pytest.raises(InvalidCheckpointError, match=f"no tensor '{name}'"):
            renamed.read(name)
