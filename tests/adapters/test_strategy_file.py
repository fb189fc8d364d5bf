from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharded import layouts

from glm3sdk.adapters.storage.strategy_file import (
    decode_strategy,
    encode_stage,
    encode_strategy,
    read_strategy,
)
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.errors import InvalidCheckpointError

LAYOUT = Layout([2, 2], [0, -1], opt_weight_shard_step=2, opt_weight_shard_size=2)


def written(path: Path, content: bytes | dict[str, Any]) -> Path:
    data = json.dumps(content).encode() if isinstance(content, dict) else content
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def json_strategy(**changes: Any) -> dict[str, Any]:
    layout = {
        "dev_matrix": [2, 2],
        "tensor_map": [0, -1],
        "field": 0,
        "opt_weight_shard_step": 0,
        "opt_weight_shard_size": 0,
    }
    return {"parallel_layout_item": {"w": {**layout, **changes}}}


@given(first=layouts(), second=layouts(1))
def test_a_strategy_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, first: Layout, second: Layout
):
    path = tmp_path_factory.getbasetemp() / "round-trip.ckpt"
    for strategy in (
        Strategy(({"层.w": first, "b": second},)),
        Strategy(({"w": first}, {"w": first, "b-1": second})),
    ):
        path.write_bytes(encode_strategy(strategy))
        read = read_strategy(path)
        assert decode_strategy(path.read_bytes(), path.name) == read
        # One map of several axes is also how a map of several dimensions is written.
        assert read == strategy or any(len(axes) > 1 for axes in second.tensor_map)


def test_what_is_not_used_is_kept(tmp_path: Path):
    layout = Layout([2], [0, -1], param_split_shape=[3, 5], indices_offset=[0, 3])
    path = written(tmp_path / "s", encode_strategy(Strategy(({"w": layout},))))
    assert read_strategy(path).stages[0]["w"] == layout


def test_json_needs_only_the_lists_that_say_something(tmp_path: Path):
    path = written(tmp_path / "s.json", json_strategy(tensor_map=[[1, 0], -1]))
    assert read_strategy(path) == Strategy(({"w": Layout([2, 2], [[1, 0], -1])},))


def test_a_directory_may_hold_the_stages_and_their_merge(tmp_path: Path):
    strategy = Strategy(({"a": LAYOUT}, {"b": LAYOUT}))
    folder = tmp_path / "strategy"
    written(folder / "merged_ckpt_strategy.ckpt", encode_strategy(strategy))
    for stage, part in enumerate(strategy.stages):
        written(folder / f"rank_{stage}.ckpt", encode_stage(part, stage=stage))
    (folder / "log.txt").write_text("not a strategy")
    assert read_strategy(folder) == strategy


def test_a_tensor_on_no_device_matrix_is_on_all_devices_of_its_stage(tmp_path: Path):
    content = json_strategy()
    content["parallel_layout_item"]["b"] = {"dev_matrix": [], "tensor_map": [-1]}
    path = written(tmp_path / "s.json", content)
    assert read_strategy(path).stages[0]["b"] == Layout([4], [-1])


def test_a_file_cut_off_anywhere_is_refused_or_shorter(tmp_path: Path):
    data = encode_strategy(Strategy(({"a": LAYOUT, "b": LAYOUT},)))
    refused = 0
    for length in range(len(data)):
        path = written(tmp_path / "s.ckpt", data[:length])
        try:
            assert list(read_strategy(path).stages[0]) == ["a"]
        except InvalidCheckpointError as exc:
            assert str(path) in str(exc)  # noqa: PT017
            refused += 1
    assert refused == len(data) - 1, "only between two layouts a cut cannot be seen"


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    for name in ("noise.ckpt", "noise.json"):
        path = written(tmp_path_factory.getbasetemp() / name, data)
        with pytest.raises(InvalidCheckpointError, match=name):
            read_strategy(path)


@given(
    place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["ckpt", "json"])
)
def test_a_changed_byte_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, kind: str
):
    data = bytearray(encode_strategy(Strategy(({"a": LAYOUT}, {"b": LAYOUT}))))
    if kind == "json":
        data = bytearray(json.dumps(json_strategy()).encode())
    data[place % len(data)] = value
    path = written(tmp_path_factory.getbasetemp() / f"changed.{kind}", bytes(data))
    try:
        assert read_strategy(path).world_size > 0
    except InvalidCheckpointError as exc:
        assert str(path) in str(exc)  # noqa: PT017


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_map": [5, -1]}, "tensor w: .* dev_matrix has 2 axes"),
        ({"tensor_map": None}, "tensor w has the tensor_map None, which is no list of integers"),
        ({"tensor_map": [[[0]]]}, "which is no list of integers"),
        ({"dev_matrix": [2, "2"]}, "which is no list of integers"),
        ({"dev_matrix": [2, True]}, "which is no list of integers"),
        ({"dev_matrix": [2, 1.5]}, "which is no list of integers"),
        ({"dev_matrix": [0, 2]}, "sizes of dev_matrix begin at 1"),
        ({"opt_weight_shard_size": "2"}, "opt_weight_shard_size '2', which is no integer"),
        ({"opt_weight_shard_size": 3}, "3 optimizer shards do not divide"),
        ({"field": 39}, "tensor w is split by fields"),
    ],
)
def test_a_layout_that_cannot_be_used_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    path = written(tmp_path / "s.json", json_strategy(**changes))
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        read_strategy(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "truncated or no strategy file"),
        ("[]", "not an object with parallel_layout_item"),
        ('{"parallel_layout_item": []}', "not an object with parallel_layout_item"),
        ('{"parallel_layout_item": {}}', "it lists no tensors"),
        ('{"parallel_layout_item": {"w": 1}}', "the layout of tensor w is not an object"),
        ('{"a": 1, "a": 2}', "a name is there twice"),
        ("[" * 100_000, "truncated or no strategy file"),
        (
            '{"parallel_strategy_item": {"o": {"stage": "x"}}, "parallel_layout_item": {"w": {}}}',
            "has the stage 'x'",
        ),
        (
            '{"parallel_layout_item": {'
            '"0-w": {"dev_matrix": [1], "tensor_map": []},'
            '"v": {"dev_matrix": [1], "tensor_map": []}}}',
            "tensor v has no stage, and others have one",
        ),
    ],
)
def test_json_that_is_no_strategy_is_refused(tmp_path: Path, text: str, message: str):
    path = written(tmp_path / "s.json", text.encode())
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        read_strategy(path)
    assert str(path) in str(caught.value)


def test_layouts_over_different_numbers_of_devices_are_refused(tmp_path: Path):
    layouts = {"a": LAYOUT, "b": Layout([2], [0])}
    path = written(tmp_path / "s.ckpt", encode_stage(layouts, stage=0))
    with pytest.raises(InvalidCheckpointError, match="tensor a over 4 devices and b over 2"):
        read_strategy(path)


def test_files_that_contradict_each_other_are_both_named(tmp_path: Path):
    folder = tmp_path / "strategy"
    written(folder / "a.ckpt", encode_stage({"w": LAYOUT}, stage=0))
    written(folder / "b.ckpt", encode_stage({"w": Layout([4], [0, -1])}, stage=0))
    with pytest.raises(
        InvalidCheckpointError, match=r"a\.ckpt and .*b\.ckpt lay stage 0 out differently"
    ):
        read_strategy(folder)


@pytest.mark.parametrize("stage", [1, 4_000_000_000])
def test_a_missing_stage_is_named(tmp_path: Path, stage: int):
    path = written(tmp_path / "s.ckpt", encode_stage({"w": LAYOUT}, stage=stage))
    with pytest.raises(InvalidCheckpointError, match="lacks stage 0; pass a directory"):
        read_strategy(path)


def test_nothing_there_is_said(tmp_path: Path):
    with pytest.raises(InvalidCheckpointError, match="there is no strategy at"):
        read_strategy(tmp_path / "no.ckpt")
    with pytest.raises(InvalidCheckpointError, match=re.escape("holds no strategy file (*.ckpt")):
        read_strategy(tmp_path)
