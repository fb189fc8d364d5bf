from __future__ import annotations

from typing import Any

import pytest

from glm3sdk.config.loader import config_from_mapping
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidRunConfigError, UserError
from glm3sdk.services.planning import RunPlan, plan_run

MODEL = Glm3Config.preset("glm3-6b")
DATA = {"path": "train.jsonl", "max_seq_length": 512}


def planned(values: dict[str, Any] | None = None, **options: Any) -> RunPlan:
    config = config_from_mapping({"train_data": DATA, **(values or {})})
    return plan_run(config, MODEL, **{"dtype": "bfloat16", "fused": True, **options})


def test_steps_and_tokens_follow_from_records_batch_accumulation_and_cards():
    values = {
        "training": {"batch_size": 4, "accumulate": 2, "epochs": 3},
        "parallel": {"data": 2},
    }
    plan = planned(values, records=100)
    assert plan.steps == 19  # 300 records, 16 a step
    assert plan.tokens_per_step == 16 * 512
    assert (plan.epochs, plan.devices) == (3, 2)


def test_max_steps_cuts_the_epochs():
    plan = planned({"training": {"batch_size": 10, "epochs": 3, "max_steps": 15}}, records=100)
    assert (plan.steps, plan.epochs) == (15, 1.5)


def test_without_records_the_steps_are_unknown_unless_max_steps_says():
    assert planned().steps is None
    assert planned({"training": {"max_steps": 7}}).steps == 7


def test_full_training_fits_no_single_card_and_lora_does():
    full = planned({"model": {"recompute": True}})
    assert [warning.split(":")[0] for warning in full.warnings()[:2]] == [
        "does not fit a card of 32 GB",
        "does not fit a card of 64 GB",
    ]
    assert "a lora section" in full.warnings()[-1]
    assert planned({"lora": {}}).warnings() == ()


def test_the_runs_own_bound_is_named():
    plan = planned({"lora": {}, "runtime": {"max_device_memory": "8GB"}})
    assert plan.warnings()[0].startswith("does not fit max_device_memory 8GB: it takes ")


def test_flash_attention_needs_the_kernel():
    values = {"model": {"flash_attention": True}}
    assert planned(values).load.flash_attention
    assert not planned(values, fused=False).load.flash_attention


def test_every_reason_why_cards_do_not_divide_is_told():
    with pytest.raises(InvalidRunConfigError) as raised:
        planned({"parallel": {"data": 2, "tensor": 4}}, devices=4)
    assert str(raised.value).splitlines() == [
        "parallel: data x tensor is 2 x 4 = 8, not 4 devices",
        "parallel.tensor: 4 does not divide multi_query_group_num=2; use one of 1, 2",
    ]


def test_only_a_finetune_run_is_planned():
    with pytest.raises(UserError, match="not predict"):
        planned({"mode": "predict"})
