from __future__ import annotations

from typing import Any

import pytest

from glm3sdk.config.loader import config_from_mapping
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import Place
from glm3sdk.errors import InvalidRunConfigError, UserError
from glm3sdk.services.planning import plan_run
from glm3sdk.services.run_plan import RunPlan

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
        planned({"parallel": {"data": 2, "tensor": 3}}, devices=12)
    assert str(raised.value).splitlines() == [
        "parallel: data x tensor is 2 x 3 = 6, not 12 devices; with parallel.tensor=3 set "
        "parallel.data=4",
        "parallel.tensor: 3 does not divide num_attention_heads=32, ffn_hidden_size=13696, "
        "padded_vocab_size=65024, multi_query_group_num=2 (nor the other way round); use one of "
        "1, 2, 4, 8, 16, 32",
    ]


def test_devices_that_no_number_of_replicas_would_use_are_refused_alone():
    with pytest.raises(InvalidRunConfigError) as raised:
        planned({"parallel": {"data": 2, "tensor": 8}}, devices=12)
    assert str(raised.value) == "parallel: data x tensor is 2 x 8 = 16, not 12 devices"


@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("lora", [None, {"rank": 8}], ids=["full", "lora"])
def test_a_plan_of_thousands_of_cards_is_made_without_counting_them(
    tensor: int, lora: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> tuple[int, ...]:
        raise AssertionError("a list of all ranks was made")

    monkeypatch.setattr(Place, "every_rank", property(refuse))
    monkeypatch.setattr(Place, "data_ranks", property(refuse))
    parallel = {"data": 1_000_000, "tensor": tensor, "optimizer_shard": True}
    plan = planned({"parallel": parallel, "lora": lora})
    assert plan.devices == 1_000_000 * tensor
    assert plan.sent > plan.sent_between_servers > 0
    assert len(plan.parts) == (10 if lora is None else 12)


def test_what_a_card_sends_is_that_of_the_formulas():
    values = {"parallel": {"data": 8}, "training": {"accumulate": 4}}
    plan = planned(values)
    # Gradients in float32 once around a ring of 8, whatever is accumulated, and three numbers.
    assert plan.sent == 2 * 7 * 4 * MODEL.parameter_count // 8 + 7 * (4 + 8)
    assert (plan.nproc, plan.sent_between_servers) == (8, 0)
    across = planned(values, nproc=2)
    assert across.sent == plan.sent
    # A pair of cards sums up first: each then exchanges its half with 3 other servers.
    gradients = 2 * 3 * 4 * MODEL.parameter_count // 8
    assert across.sent_between_servers == gradients + 3 * (4 + 8)
    assert planned().sent == 0


def test_cards_that_share_a_layer_over_two_servers_are_warned_of():
    values = {"parallel": {"tensor": 16}, "lora": {}}
    assert any(
        "parallel.tensor=16 does not divide the 8 cards" in w for w in planned(values).warnings()
    )
    assert planned(values, nproc=16).warnings() == ()


def test_only_a_finetune_run_is_planned():
    with pytest.raises(UserError, match="not predict"):
        planned({"mode": "predict"})
