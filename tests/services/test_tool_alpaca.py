from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from glm3sdk.services.tool_alpaca import (
    DroppedInstance,
    FormatTally,
    FormattedConversation,
    format_tool_alpaca,
)

STEP = [["f", '{"a": 1}', " I need f.\nASSISTANT Action: f\nAction Input: {}"], "Status Code: 200"]
INSTANCE = {
    "input": "do it",
    "intermediate_steps": [STEP],
    "Final Thought": "done now",
    "output": "It is done.",
}
TOOL = {"Name": "F", "NLDocumentation": "f: does it", "Instances": [INSTANCE]}


def test_the_published_sample_gives_the_published_file(shared_data: Path):
    folder = shared_data / "toolalpaca"
    tools = json.loads((folder / "train_data.sample.json").read_text("utf-8"))
    tally = FormatTally()
    lines = [item.line + b"\n" for item in tally.taken(format_tool_alpaca(tools))]
    assert b"".join(lines) == (folder / "tool_alpaca.jsonl").read_bytes()
    report = tally.report()
    assert (report.taken, len(report.dropped)) == (14, 1)
    assert (report.dropped[0].tool, report.dropped[0].instance) == ("Steam", 0)
    assert "not JSON" in str(report.dropped[0])
    assert sum(report.turns.values()) == 14


def test_a_step_becomes_a_thought_and_a_tool_turn():
    (item,) = format_tool_alpaca([TOOL])
    assert isinstance(item, FormattedConversation)
    assert item.turns == 4
    assert json.loads(item.line) == {
        "tools": ["f: does it"],
        "conversations": [
            {"role": "user", "content": "do it"},
            {"role": "assistant", "content": "I need f.\nASSISTANT"},
            {"role": "tool", "name": "f", "parameters": {"a": 1}, "observation": STEP[1]},
            {"role": "assistant", "content": "done now\nIt is done."},
        ],
    }


def changed(**values: Any) -> dict[str, Any]:
    return {**TOOL, "Instances": [{**copy.deepcopy(INSTANCE), **values}]}


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        (changed(output=None), "F, instance 0"),
        (changed(intermediate_steps=[[["f", "{", "x"], "y"]]), "arguments of 'f' are not JSON"),
        (changed(intermediate_steps=[[["f", "[1]", "x"], "y"]]), "parameters must be an object"),
        (changed(intermediate_steps=[[["f", "{}"], "y"]]), "not enough values"),
        (changed(input=5), "content must be text"),
        (changed(input="\ud800"), "half of a character"),
        ({**TOOL, "Instances": [{}]}, "missing key: 'input'"),
        ({**TOOL, "Instances": ["x"]}, "F, instance 0"),
        ({"Name": "F", "NLDocumentation": "f"}, "F: missing key: 'Instances'"),
        ({"Name": "F", "NLDocumentation": 3, "Instances": []}, "must be text"),
        ("nonsense", "tool 0"),
    ],
)
def test_an_instance_that_cannot_be_used_is_named_with_its_reason(tool: Any, reason: str):
    (item,) = format_tool_alpaca([tool])
    assert isinstance(item, DroppedInstance)
    assert reason in str(item)
