"""The examples of a tool and of a runtime: installed as a user would, found, used, tested."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from plugin_site import EXAMPLES, install, run


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both are installed."""
    folders = [
        install(example, tmp_path_factory.mktemp(example))
        for example in ("tool_plugin", "runtime_plugin")
    ]
    return Path(os.pathsep.join(map(str, folders)))


@pytest.mark.parametrize("example", ["tool_plugin", "runtime_plugin"])
def test_its_own_tests_pass(installed: Path, tmp_path: Path, example: str) -> None:
    folder = EXAMPLES / example
    done = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", folder / "pyproject.toml"),
        *("--basetemp", tmp_path / "run", folder / "tests"),
        path=installed,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_they_are_listed_with_what_they_bring(installed: Path, tmp_path: Path) -> None:
    done = run("-m", "glm3sdk", "plugins", "--json", path=installed, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    others = [
        (part["kind"], part["name"], part["distribution"], part["version"])
        for part in found["parts"]
        if part["distribution"] != "glm3sdk"
    ]
    assert others == [
        ("runtime", "numpy", "glm3sdk-numpy", "0.1.0"),
        ("tool", "convert_length", "glm3sdk-units", "0.1.0"),
        ("command", "convert-length", "glm3sdk-units", "0.1.0"),
    ]


_SAME_REPLY = """
import json
from glm3sdk import GenerationConfig, Message, load_service
config = GenerationConfig(max_new_tokens=12, do_sample=False)
with load_service("tiny", runtime="numpy", slots=1) as service:
    print(json.dumps(service.chat([Message.user("你好")], config).content))
"""


def test_the_runtime_answers_as_mindspore_does(installed: Path, tmp_path: Path, tiny) -> None:
    from glm3sdk import GenerationConfig, Message

    done = run("-c", _SAME_REPLY, path=installed, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    config = GenerationConfig(max_new_tokens=12, do_sample=False)
    assert json.loads(done.stdout) == tiny.chat([Message.user("你好")], config).content


_CALLS = """
from glm3sdk import Glm3Service, Message, load_tools
from glm3sdk.testing import CharacterTokenizer, ScriptedRuntime
arguments = "value=10, unit='里', to='km'"
call = Message.assistant(f"```python\\ntool_call({arguments})\\n```", metadata="convert_length")
runtime = ScriptedRuntime(call, "5 km")
with Glm3Service(runtime=runtime, tokenizer=CharacterTokenizer()) as service:
    reply = service.run_tools([Message.user("10里?")], load_tools(["convert_length"]))
print([each.content for each in reply.history if each.role.value == "observation"])
"""


def test_the_tool_and_the_command_are_found_by_their_names(installed: Path, tmp_path: Path) -> None:
    called = run("-c", _CALLS, path=installed, cache=tmp_path)
    assert (called.returncode, called.stdout) == (0, "['5 km']\n"), called.stderr
    command = ("-m", "glm3sdk", "convert-length", "10", "里", "km")
    done = run(*command, path=installed, cache=tmp_path)
    assert (done.returncode, done.stdout) == (0, "5 km\n"), done.stderr
    helped = run("-m", "glm3sdk", "convert-length", "--help", path=installed, cache=tmp_path)
    assert "Convert a length of VALUE UNIT" in helped.stdout
