"""`glm3 chat --tool`: tools that are run for the model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli.scripted import call, scripted_loaders
from cli.test_conversation import typing
from click.testing import CliRunner, Result

from glm3sdk.bootstrap import tools
from glm3sdk.cli import chat as chat_module
from glm3sdk.cli import conversation, line_input
from glm3sdk.cli.app import app
from glm3sdk.domain.chat import Message
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_functions import tool

CELL = Message.assistant("```python\nprint(6 * 7)\n```", metadata="interpreter")
ASKS = [CELL, SpecialToken.OBSERVATION]


def glm3(*arguments: str, replies: tuple[Any, ...]) -> Result:
    loaders = scripted_loaders(*replies)
    return CliRunner().invoke(app, ["chat", *arguments], obj=loaders, prog_name="glm3")


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> None:
    @tool
    def get_weather(city: str) -> str:
        """Look up the weather."""
        return f"\x1b[31m{city}: 晴"

    monkeypatch.setattr(tools, "load_tools", lambda names: [get_weather for _ in names])


def test_the_interpreter_runs_what_the_model_writes() -> None:
    result = glm3("6*7?", "--tool", "interpreter", replies=(ASKS, "42!"))
    assert (result.exit_code, result.stdout) == (
        0,
        "→ interpreter\nprint(6 * 7)\n← 42\n42!\n",
    )


def test_it_is_off_unless_it_is_named() -> None:
    result = glm3("6*7?", replies=(ASKS, "42!"))
    assert result.stdout == "→ interpreter\nprint(6 * 7)\n"


def test_json_is_the_last_reply() -> None:
    result = glm3("6*7?", "--tool", "interpreter", "--json", replies=(ASKS, "42!"))
    assert json.loads(result.stdout)["content"] == "42!"


def test_an_unknown_tool_names_the_known_ones() -> None:
    result = glm3("hi", "--tool", "interpeter", replies=("x",))
    assert result.exit_code == 2
    assert "no tool 'interpeter'" in result.stderr
    assert "did you mean 'interpreter'?" in result.stderr


def test_tools_that_are_described_and_tools_that_run_do_not_mix(tmp_path: Any) -> None:
    result = glm3("hi", "--tool", "interpreter", "--tools", "x.json", replies=("x",))
    assert result.exit_code == 2
    assert "pass one of the two" in result.stderr


def test_in_a_conversation_the_tool_answers_and_not_the_person(
    weather: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask, prompts = typing("天气?", EOFError())
    monkeypatch.setattr(line_input, "ask", ask)
    monkeypatch.setattr(chat_module, "stdin_is_terminal", lambda: True)
    replies = ([call("get_weather", "city='北京'"), SpecialToken.OBSERVATION], "今天晴")
    result = glm3("--tool", "get_weather", replies=replies)
    assert result.exit_code == 0, result.output
    assert prompts == ["> ", "> "]
    assert "→ get_weather(city='北京')\n← \x1b[31m北京: 晴\n今天晴\n" in result.stdout


def test_a_model_that_never_stops_calling_is_stopped(
    weather: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, prompts = typing("天气?", EOFError())
    monkeypatch.setattr(line_input, "ask", ask)
    monkeypatch.setattr(chat_module, "stdin_is_terminal", lambda: True)
    calls = [call("get_weather", "city='北京'"), SpecialToken.OBSERVATION]
    result = glm3("--tool", "get_weather", replies=(calls,))
    assert prompts == ["> ", "> "]
    assert result.stdout.count("→ get_weather") == conversation.MAX_ROUNDS + 1
    assert result.stdout.count("← ") == conversation.MAX_ROUNDS
