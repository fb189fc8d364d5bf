from __future__ import annotations

import attrs
import pytest

from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.model_fit import fit_model

TINY = Glm3Config.preset("tiny")
SIX_B = Glm3Config.preset("glm3-6b")


def test_a_preset_is_known_by_its_shapes():
    found = fit_model(TINY.tensor_shapes())
    assert found is not None
    assert found.presets == ("tiny",)
    assert found.config == TINY
    assert found.missing == found.misshapen == found.unknown == found.state == ()


def test_models_that_differ_in_the_rotary_base_alone_are_told_apart_by_their_config():
    shapes = SIX_B.tensor_shapes()
    found = fit_model(shapes)
    assert found is not None
    assert found.presets == ("glm3-6b", "glm3-6b-32k", "glm3-6b-128k")
    known = fit_model(shapes, Glm3Config.preset("glm3-6b-32k"))
    assert known is not None
    assert known.presets == ("glm3-6b-32k",)


def test_a_model_of_another_size_is_described_by_what_its_shapes_tell():
    config = attrs.evolve(TINY, num_layers=3, hidden_size=96, ffn_hidden_size=40)
    found = fit_model(config.tensor_shapes())
    assert found is not None
    assert found.presets == ()
    assert found.config.tensor_shapes() == config.tensor_shapes()


def test_what_is_missing_misshapen_unknown_or_of_a_training_run_is_named():
    shapes = TINY.tensor_shapes()
    layer = "transformer.encoder.layers.1."
    del shapes[layer + "mlp.dense_4h_to_h.weight"]
    shapes[layer + "input_layernorm.weight"] = (255,)
    shapes |= {
        "transformer.rotary_pos_emb.inv_freq": (32,),
        f"adam_m.{layer}input_layernorm.weight": (256,),
        "step_num": (),
        "epoch_num": (1,),
        "lm_head.weight": (2048, 256),
    }
    found = fit_model(shapes)
    assert found is not None
    assert found.missing == (layer + "mlp.dense_4h_to_h.weight",)
    assert found.misshapen == (layer + "input_layernorm.weight",)
    assert found.unknown == ("lm_head.weight",)
    assert found.state == (f"adam_m.{layer}input_layernorm.weight", "step_num", "epoch_num")


@pytest.mark.parametrize(
    "change",
    [
        {"transformer.embedding.word_embeddings.weight": (2048,)},
        {"transformer.encoder.layers.0.self_attention.dense.weight": (256, 250)},
        {"transformer.encoder.layers.0.mlp.dense_4h_to_h.weight": (256, 0)},
        {"transformer.encoder.layers.0.self_attention.query_key_value.weight": (256, 256)},
    ],
)
def test_shapes_that_no_chatglm3_has_are_no_model(change: dict[str, tuple[int, ...]]):
    assert fit_model({**TINY.tensor_shapes(), **change}) is None


def test_other_tensors_are_no_model():
    assert fit_model({}) is None
    assert fit_model({"transformer.encoder.layers.x.weight": (1,), "a": (2, 2)}) is None
