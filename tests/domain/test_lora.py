from __future__ import annotations

import json

import pytest

from glm3sdk.domain.lora import LINEAR_LAYERS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError, UnknownNameError

CONFIG = Glm3Config.preset("glm3-6b")
# As PEFT 0.7 writes it for ChatGLM3, keys that say nothing here included.
PEFT = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "THUDM/chatglm3-6b",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["query_key_value"],
    "task_type": "CAUSAL_LM",
}


def test_the_defaults_are_the_official_ones() -> None:
    lora, base = Lora.from_peft(PEFT)
    assert (lora, base) == (Lora(), "THUDM/chatglm3-6b")
    assert lora.scale == 4.0


def test_matrices_have_pefts_names_and_the_layers_shapes() -> None:
    pairs = Lora(rank=8).pairs(CONFIG)
    assert len(pairs) == 28
    first = pairs[0]
    layer = "transformer.encoder.layers.0.self_attention.query_key_value"
    assert first.weight == f"{layer}.weight"
    assert first.name_a == f"base_model.model.{layer}.lora_A.weight"
    assert first.name_b == f"base_model.model.{layer}.lora_B.weight"
    # 32 query heads and 2 + 2 groups of 128 channels come out of 4096.
    assert (first.shape_a, first.shape_b) == ((8, 4096), (4608, 8))
    assert sum(a * b for pair in pairs for a, b in (pair.shape_a, pair.shape_b)) == 1_949_696


def test_every_linear_layer_may_be_adapted_and_nothing_else_is() -> None:
    pairs = Lora(targets=LINEAR_LAYERS).pairs(CONFIG)
    assert len(pairs) == 4 * CONFIG.num_layers
    modules = {pair.weight.split(".")[-2] for pair in pairs}
    assert modules == set(LINEAR_LAYERS)
    # "dense" is not "dense_h_to_4h".
    assert len(Lora(targets=("dense",)).pairs(CONFIG)) == CONFIG.num_layers


def test_a_config_file_comes_back_as_it_was() -> None:
    lora = Lora(rank=4, alpha=6.5, dropout=0.0, targets=("dense", "dense_4h_to_h"))
    written = json.loads(json.dumps(lora.to_peft(base="/models/基座")))
    assert Lora.from_peft(written) == (lora, "/models/基座")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA'"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"target_modules": None}, "target_modules|NoneType|lacks or misuses"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidCheckpointError, match=words):
        Lora.from_peft({**PEFT, **change})


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules", "base_model_name_or_path"])
def test_a_config_file_that_lacks_a_key_names_it(key: str) -> None:
    with pytest.raises(InvalidCheckpointError, match=key):
        Lora.from_peft({name: value for name, value in PEFT.items() if name != key})


def test_values_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="peft_type"):
        Lora.from_peft(["LORA"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank must be a positive integer, not 0"),
        ({"rank": 2.5}, "not 2.5"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"targets": ()}, "needs targets"),
    ],
)
def test_a_value_out_of_range_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidConfigError, match=words):
        Lora(**settings)


def test_an_unknown_layer_names_the_likeliest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'query_key_value'"):
        Lora(targets=("query_key_values",))
