"""The examples of docs/plugins.md: each is a plugin that works."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glm3sdk.bootstrap.plugin_list import HOOKS
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.tool_functions import tool
from glm3sdk.plugins import plugin_manager, registered

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")


def example(hook: str) -> Any:
    """The factory that the page's example registers through a hook."""
    (block,) = [
        text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if hook in text
    ]
    plugin = types.ModuleType("of_the_page")
    exec(compile(block, "docs/plugins.md", "exec"), plugin.__dict__)
    found = registered(plugin_manager([plugin], discover=False), hook, "part")
    (factory,) = found.values()
    return factory


def test_every_hook_is_in_the_table_and_has_an_example() -> None:
    for hook in HOOKS.values():
        assert re.search(rf"^\| \[`{hook}`\]", PAGE, re.MULTILINE), hook
        assert callable(example(hook))


def test_the_runtime_starts() -> None:
    runtime = example("glm3_register_runtimes")(
        config=Glm3Config.preset("tiny"),
        checkpoint=None,
        dtype=None,
        device_id=0,
        max_device_memory=None,
    )
    assert runtime.start_decode(slots=1, max_seq_length=8).slots == 1


def test_the_tokenizer_encodes() -> None:
    tokenizer = example("glm3_register_tokenizers")(Path())
    assert tokenizer.decode(tokenizer.encode("你好")) == "你好"


def test_the_topology_is_alone() -> None:
    topology = example("glm3_register_topologies")(environ={"MY_DEVICE": "3"})
    assert topology.placement.device_id == 3


def test_the_sink_logs(caplog: pytest.LogCaptureFixture) -> None:
    sink = example("glm3_register_metric_sinks")(folder=Path(), uri="obs://b/r", first_step=1)
    with caplog.at_level("INFO"):
        sink.record(3, {"loss": 2.5})
    sink.close()
    assert caplog.messages == ["obs://b/r step 3: {'loss': 2.5}"]


def test_the_tool_is_described() -> None:
    made = tool(example("glm3_register_tools")())
    assert made.spec.parameters["properties"]["sides"]["description"] == "how many sides it has."
    assert made(sides=6) == 4


def test_the_command_greets() -> None:
    command = example("glm3_register_commands")()
    assert CliRunner().invoke(command, ["世界"]).stdout == "你好, 世界!\n"
