from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from glm3sdk.domain.model import PRESETS, Glm3Config
from glm3sdk.errors import InvalidConfigError, UnknownNameError


def test_the_published_config_is_the_preset(shared_data: Path):
    values = json.loads((shared_data / "hf" / "config.json").read_text("utf-8"))
    assert Glm3Config.from_hugging_face(values) == Glm3Config.preset("glm3-6b")


def test_the_published_index_lists_exactly_the_weights_of_the_preset(shared_data: Path):
    index = json.loads((shared_data / "hf" / "pytorch_model.bin.index.json").read_text("utf-8"))
    names = set(index["weight_map"]) - {"transformer.rotary_pos_emb.inv_freq"}
    assert names == set(Glm3Config.preset("glm3-6b").tensor_shapes())


def test_the_6b_preset_has_the_published_number_of_parameters():
    assert Glm3Config.preset("glm3-6b").parameter_count == 6_243_584_000


def test_the_long_presets_scale_the_rotary_base():
    assert Glm3Config.preset("glm3-6b-32k").rope_base == 500_000
    assert Glm3Config.preset("glm3-6b-128k").rope_base == 5_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_the_way_to_a_file_and_back(name: str):
    config = Glm3Config.preset(name)
    values = json.loads(json.dumps(config.to_hugging_face()))
    assert Glm3Config.from_hugging_face(values) == config


def test_without_multi_query_attention_every_head_has_its_own_keys():
    values = Glm3Config.preset("tiny").to_hugging_face()
    config = Glm3Config.from_hugging_face({**values, "multi_query_attention": False})
    assert config.multi_query_group_num == config.num_attention_heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "unknown architecture: model_type is 'llama'"),
        ({"model_type": None}, "unknown architecture"),
        ({"rmsnorm": False}, "rmsnorm=False"),
        ({"add_bias_linear": True}, "add_bias_linear=True"),
        ({"num_layers": 0}, "num_layers must be a positive integer, not 0"),
        ({"hidden_size": "256"}, "hidden_size must be a positive integer, not '256'"),
        ({"num_layers": True}, "num_layers must be a positive integer"),
        ({"multi_query_group_num": 3}, "does not divide"),
        ({"kv_channels": 6}, "multiple of 4"),
        ({"rope_ratio": 0}, "must be positive"),
        ({"rope_ratio": "50"}, "rope_ratio"),
        ({"layernorm_epsilon": None}, "layernorm_epsilon"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change: dict[str, object], message: str):
    values = {**Glm3Config.preset("tiny").to_hugging_face(), **change}
    with pytest.raises(InvalidConfigError, match=message):
        Glm3Config.from_hugging_face(values)


def test_missing_keys_are_named():
    values = Glm3Config.preset("tiny").to_hugging_face()
    del values["num_layers"], values["kv_channels"]
    with pytest.raises(InvalidConfigError, match="lacks kv_channels, num_layers"):
        Glm3Config.from_hugging_face(values)


def test_an_unknown_preset_names_the_likeliest():
    with pytest.raises(UnknownNameError, match="did you mean 'glm3-6b'"):
        Glm3Config.preset("glm3-6")


def test_a_config_is_a_value():
    config = Glm3Config.preset("tiny")
    assert attrs.evolve(config, num_layers=8) != config
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.num_layers = 8  # type: ignore[misc]  # what is tested
