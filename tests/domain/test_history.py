from __future__ import annotations

from typing import Any

import pytest

from glm3sdk.domain.chat import Message, Role, ToolSpec
from glm3sdk.domain.history import read_history, read_tools, tool_spec
from glm3sdk.errors import InvalidMessageError, InvalidToolError


def call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def fenced(arguments: str) -> str:
    return f"```python\ntool_call({arguments})\n```"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("system", Role.SYSTEM),
        ("developer", Role.SYSTEM),
        ("user", Role.USER),
        ("assistant", Role.ASSISTANT),
        ("tool", Role.OBSERVATION),
        ("function", Role.OBSERVATION),
        ("observation", Role.OBSERVATION),
        (Role.USER, Role.USER),
    ],
)
def test_every_known_role_is_read(name: object, role: Role) -> None:
    assert read_history([{"role": name, "content": "x"}]) == (Message(role, "x"),)


def test_messages_and_dicts_mix() -> None:
    message = Message.assistant("你好")
    history = read_history([{"role": "user", "content": "hi"}, message])
    assert history == (Message.user("hi"), message)
    assert history[1] is message


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_history([{"role": "user", "content": parts}]) == (Message.user("ab"),)


def test_metadata_and_tools_are_kept() -> None:
    history = [
        {"role": "system", "content": "s", "tools": [{"name": "t"}]},
        {"role": "assistant", "content": fenced(""), "metadata": "t"},
        {"role": "observation", "content": "1", "metadata": ""},
    ]
    assert read_history(history) == (
        Message.system("s", tools=[{"name": "t"}]),
        Message.assistant(fenced(""), metadata="t"),
        Message.observation("1"),
    )


def test_each_tool_call_is_followed_by_its_result() -> None:
    history = [
        {"role": "user", "content": "天气"},
        {
            "role": "assistant",
            "content": "Looking.",
            "tool_calls": [
                call("1", "weather", '{"city": "北京"}'),
                call("2", "clock", {"utc": True}),
                call("3", "ping", ""),
            ],
        },
        {"role": "tool", "tool_call_id": "3", "content": "pong"},
        {"role": "tool", "tool_call_id": "2", "content": "12:00"},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    assert read_history(history) == (
        Message.user("天气"),
        Message.assistant("Looking."),
        Message.assistant(fenced("city='北京'"), metadata="weather"),
        Message.observation("sunny"),
        Message.assistant(fenced("utc=True"), metadata="clock"),
        Message.observation("12:00"),
        Message.assistant(fenced(""), metadata="ping"),
        Message.observation("pong"),
        Message.assistant("Sunny."),
    )


def test_a_result_is_not_moved_to_a_call_of_another_round() -> None:
    first = {"role": "assistant", "content": None, "tool_calls": [call("1", "a", {})]}
    second = {"role": "assistant", "content": None, "tool_calls": [call("1", "b", {})]}
    results = [{"role": "tool", "tool_call_id": "1", "content": text} for text in "xy"]
    user = {"role": "user", "content": "again"}
    history = read_history([first, user, second, results[0], user, results[1]])
    assert [message.metadata or message.content for message in history] == [
        *("a", "again", "b", "x", "again", "y")
    ]


def test_a_legacy_function_call_is_read() -> None:
    legacy = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "f", "arguments": '{"class": 1}'},
    }
    history = read_history([legacy, {"role": "function", "name": "f", "content": "ok"}])
    assert history == (
        Message.assistant(fenced("class=1"), metadata="f"),
        Message.observation("ok"),
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "robot", "content": "x"}, "unknown role 'robot' .*known: assistant, developer"),
        ({"role": ["user"], "content": "x"}, "unknown role"),
        ({"content": "x"}, "no role .*known: assistant"),
        ("hi", "expected a Message or a dict, not 'hi'"),
        ({"role": "user", "content": None}, "must be text, not None"),
        ({"role": "user"}, "must be text, not None"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "must be text, not None"),
        ({"role": "user", "content": 5}, "must be text, not 5"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, "image_url"),
        ({"role": "user", "content": ["x"]}, "text alone .* not 'x'"),
        ({"role": "user", "content": "\ud800"}, "surrogate"),
        ({"role": "user", "content": "x", "metadata": "m"}, "metadata"),
        ({"role": "user", "content": "x", "tools": [1]}, "only a system message carries tools"),
        ({"role": "user", "content": "x", "tool_calls": [call("1", "f", {})]}, "only an assistant"),
        ({"role": "assistant", "tool_calls": {}}, "must be a list"),
        ({"role": "assistant", "tool_calls": ["f"]}, "must be an object, not 'f'"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "needs a function"),
        ({"role": "assistant", "tool_calls": [call("1", "", {})]}, "needs a function"),
        ({"role": "assistant", "tool_calls": [call("1", "f", "{")]}, "are not JSON: '{'"),
        ({"role": "assistant", "tool_calls": [call("1", "f", "[" * 9999)]}, "are not JSON"),
        ({"role": "assistant", "tool_calls": [call("1", "f", "[1]")]}, "must be an object"),
        ({"role": "assistant", "tool_calls": [call("1", "f", '{"a": NaN}')]}, "finite"),
    ],
)
def test_an_unreadable_item_is_named_with_its_index(item: Any, message: str) -> None:
    with pytest.raises(InvalidMessageError, match=f"^message 1: .*{message}"):
        read_history([Message.user("hi"), item])


@pytest.mark.parametrize(
    "history", ["hi", {"role": "user", "content": "hi"}, None, Message.user("x")]
)
def test_a_history_must_be_a_list(history: Any) -> None:
    with pytest.raises(InvalidMessageError, match="list of messages"):
        read_history(history)


def test_tools_of_a_system_message_must_be_a_list() -> None:
    with pytest.raises(InvalidToolError, match="message 0: tools are a list"):
        read_history([{"role": "system", "content": "", "tools": "weather"}])


def test_tools_are_read_from_every_known_shape() -> None:
    spec = ToolSpec("f", "does f", {"type": "object"})
    function = {"name": "f", "description": "does f", "parameters": {"type": "object"}}
    assert tool_spec(spec) is spec
    assert tool_spec(function) == spec
    assert tool_spec({"type": "function", "function": function}) == spec
    assert tool_spec({"name": "g", "description": None, "parameters": None}) == ToolSpec("g")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "f",
        {},
        {"type": "function", "function": "f"},
        {"type": "web_search"},
        {"name": 5},
        {"name": "f", "description": 5},
        {"name": "f", "parameters": []},
        {"name": "f", "parameters": {"x": object()}},
    ],
)
def test_a_tool_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(InvalidToolError):
        tool_spec(value)


def test_two_tools_of_one_name_are_refused() -> None:
    assert read_tools([{"name": "f"}, ToolSpec("g")]) == (ToolSpec("f"), ToolSpec("g"))
    with pytest.raises(InvalidToolError, match="two tools are named 'f'"):
        read_tools([{"name": "f"}, ToolSpec("f")])


@pytest.mark.parametrize("values", ["f", {"name": "f"}, None, ToolSpec("f")])
def test_tools_must_be_a_list(values: Any) -> None:
    with pytest.raises(InvalidToolError, match="list of tools"):
        read_tools(values)
