from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.scripted import call, scripted_loaders
from click.testing import CliRunner, Result

from glm3sdk.cli.app import app
from glm3sdk.cli.loading import Loaders
from glm3sdk.domain.chat import Message
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import NonFiniteLogitsError

TOOLS = [{"name": "get_weather", "description": "weather", "parameters": {"type": "object"}}]


def glm3(*arguments: str, replies=("你好!",), loaders: Loaders | None = None, stdin=None) -> Result:
    return CliRunner().invoke(
        app, arguments, obj=loaders or scripted_loaders(*replies), input=stdin, prog_name="glm3"
    )


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS), encoding="utf-8")
    return str(path)


def assert_one_error_line(result: Result, *texts: str, code: int = 2) -> None:
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("glm3: error: ")
    assert result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


def test_a_message_is_answered_with_a_newline_behind():
    result = glm3("chat", "你好", replies=("你好👋！我是助手",))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "你好👋！我是助手\n", "")


def test_a_message_may_begin_with_a_dash():
    assert glm3("chat", "--", "--help").stdout == "你好!\n"


def test_interactive_ends_after_the_message_where_there_is_no_terminal():
    result = glm3("chat", "你好", "--interactive", stdin="never read\n")
    assert (result.exit_code, result.stdout) == (0, "你好!\n")


def test_interactive_over_a_pipe_takes_each_line_as_a_turn(tmp_path: Path):
    talk = tmp_path / "talk.json"
    result = glm3(
        "chat", "--interactive", replies=("一", "二"), stdin=f"甲\n\n乙\\\n丙\n/save {talk}\n"
    )
    assert (result.exit_code, result.stdout) == (0, "一\n二\n")
    assert result.stderr == f"saved 4 messages to {talk}\n"
    said = [each["content"] for each in json.loads(talk.read_text(encoding="utf-8"))["messages"]]
    assert said == ["甲", "一", "乙\n丙", "二"]


def test_over_a_pipe_the_first_mistake_ends_the_conversation():
    result = glm3("chat", "--interactive", stdin="/load none.json\n甲\n")
    assert_one_error_line(result, "none.json", "No such file")


def test_a_conversation_goes_on_from_a_file(tmp_path: Path):
    file = tmp_path / "talk.json"
    messages = [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "一"}]
    file.write_text(json.dumps({"messages": messages, "tools": TOOLS}), encoding="utf-8")
    more = json.loads(glm3("chat", "x", "--json", "--history", str(file)).stdout)["usage"]
    alone = json.loads(glm3("chat", "x", "--json").stdout)["usage"]
    assert more["prompt_tokens"] > alone["prompt_tokens"] + len("get_weather")
    result = glm3("chat", "x", "--history", str(file), "--system", "y")
    assert (result.exit_code, result.stdout) == (2, "")
    assert_one_error_line(glm3("chat", "x", "--history", str(tmp_path)), "Is a directory")


@pytest.mark.parametrize(
    ("option", "limit", "remedy"),
    [
        ("--max-new-tokens", "3", "--max-new-tokens"),
        ("--max-seq-length", "12", "--max-seq-length"),
    ],
)
def test_a_reply_that_was_cut_off_says_what_to_raise(option: str, limit: str, remedy: str):
    note = f"the reply is incomplete: the limit of tokens came first; raise {remedy}"
    result = glm3("chat", "x", option, limit, replies=("abcdefghij",))
    assert (result.exit_code, result.stderr) == (0, f"{note}\n")
    result = glm3("chat", "--interactive", option, limit, replies=("abcdefghij",), stdin="x\n")
    assert (result.exit_code, result.stderr) == (0, f"({note})\n")


def test_without_a_message_standard_input_is_the_message():
    result = glm3("chat", "--json", replies=("ok",), stdin="两行\n文字\n")
    with_argument = glm3("chat", "--json", "两行\n文字", replies=("ok",))
    assert json.loads(result.stdout)["usage"] == json.loads(with_argument.stdout)["usage"]


def test_json_is_one_object_on_one_line():
    result = glm3("chat", "hi", "--json", replies=("你好",))
    assert result.stdout.count("\n") == 1
    assert "你好" in result.stdout
    assert json.loads(result.stdout) == {
        "content": "你好",
        "tool_calls": [],
        "finish_reason": "stop",
        # [gMASK] sop <|user|> \n h i <|assistant|>, and \n with two characters of three bytes
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 8,
            "cached_tokens": 0,
            "total_tokens": 15,
        },
    }


def test_json_holds_tool_calls(tools: str):
    replies = (call("get_weather", "city='北京', days=2"),)
    values = json.loads(glm3("chat", "天气", "--json", "--tools", tools, replies=replies).stdout)
    assert values["finish_reason"] == "tool_calls"
    assert values["tool_calls"] == [
        {"name": "get_weather", "arguments": {"city": "北京", "days": 2}, "repair": None}
    ]


def test_json_holds_code_and_calls_that_cannot_be_read():
    code = Message.assistant("```python\nprint(1)\n```", metadata="interpreter")
    replies = ([code, SpecialToken.ASSISTANT, call("get_weather", "city=city")],)
    values = json.loads(glm3("chat", "x", "--json", replies=replies).stdout)
    assert values["tool_calls"] == [
        {"name": "interpreter", "arguments": {"code": "print(1)"}, "repair": None}
    ]
    assert [each["name"] for each in values["malformed_tool_calls"]] == ["get_weather"]


def test_a_tool_call_is_shown_as_a_line_and_ends_the_program(tools: str):
    replies = (call("get_weather", "city='北京'"),)
    result = glm3("chat", "天气", "--tools", tools, replies=replies)
    assert (result.exit_code, result.stdout) == (0, "→ get_weather(city='北京')\n")


def test_text_before_a_tool_call_has_its_own_line(tools: str):
    replies = (["我查一下", SpecialToken.ASSISTANT, call("get_weather", "")],)
    result = glm3("chat", "天气", "--tools", tools, replies=replies)
    assert result.stdout == "我查一下\n→ get_weather()\n"


def test_tools_may_stand_in_an_object(tmp_path: Path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps({"tools": TOOLS}), encoding="utf-8")
    offered = glm3("chat", "x", "--json", "--tools", str(path))
    alone = glm3("chat", "x", "--json")
    tokens = [json.loads(each.stdout)["usage"]["prompt_tokens"] for each in (offered, alone)]
    assert tokens[0] > tokens[1] + len("get_weather")


def test_a_system_message_opens_the_conversation():
    with_system = glm3("chat", "x", "--json", "--system", "abc")
    usage = json.loads(with_system.stdout)["usage"]
    # <|system|> \n a b c come on top of [gMASK] sop <|user|> \n x <|assistant|>
    assert usage["prompt_tokens"] == 5 + 6


def test_options_reach_the_model_and_the_generation():
    loaded: list[dict] = []
    options = ["--model", "here", "--runtime", "scripted", "--max-seq-length", "64"]
    sampling = ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "5", "--seed", "1"]
    more = ["--repetition-penalty", "1", "--greedy", "--max-new-tokens", "4", "--stop", "!"]
    loaders = scripted_loaders("abcdef", loaded=loaded)
    result = glm3("chat", "x", *options, *sampling, *more, "--json", loaders=loaders)
    assert loaded == [{"model": "here", "slots": 1, "runtime": "scripted", "max_seq_length": 64}]
    values = json.loads(result.stdout)
    # The newline of the first line is one of the four tokens.
    assert (values["content"], values["finish_reason"]) == ("abc", "length")


def test_max_seq_length_bounds_prompt_and_reply():
    result = glm3("chat", "x" * 100, "--max-seq-length", "32")
    assert_one_error_line(result, "105 tokens", "32")


def test_a_stop_string_ends_the_reply():
    assert glm3("chat", "x", "--stop", "cd", "--stop", "e", replies=("abcdef",)).stdout == "ab\n"


@pytest.mark.parametrize("arguments", [["chat", ""], ["chat", " \n"], ["chat"]])
def test_an_empty_message_is_a_mistake(arguments: list[str]):
    assert_one_error_line(glm3(*arguments, stdin=""), "empty")


def test_a_message_that_is_not_utf8_is_a_mistake():
    assert_one_error_line(glm3("chat", "\udcff"), "surrogate")
    result = CliRunner().invoke(app, ["chat"], obj=scripted_loaders("x"), input=b"\xff")
    assert_one_error_line(result, "surrogate")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--temperature", "-1", "temperature"),
        ("--top-p", "1.5", "top_p"),
        ("--top-k", "-1", "top_k"),
        ("--max-new-tokens", "0", "max_new_tokens"),
        ("--repetition-penalty", "0", "repetition_penalty"),
        ("--seed", "-1", "seed"),
        ("--stop", "", "''"),
        ("--max-seq-length", "0", "0"),
    ],
)
def test_a_value_out_of_range_is_a_mistake(option: str, value: str, text: str):
    assert_one_error_line(glm3("chat", "x", option, value), text)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b'[{"name": "a",\n  }]', [":2:3: not JSON"]),
        (b"", [":1:1: not JSON"]),
        ('[\n"中'.encode() + b"\xff", [":2:3: not UTF-8", "0xff"]),
        (b'"text"', ["expected a list of tools"]),
        (b'{"tool": []}', ["expected a list of tools"]),
        (b"[1]", ["a tool is"]),
        (b'[{"name": "a"}, {"name": "a"}]', ["two tools are named 'a'"]),
        (b"[" * 100_000, ["cannot be read"]),
    ],
)
def test_a_tools_file_that_cannot_be_read_is_a_mistake(
    tmp_path: Path, content: bytes, texts: list[str]
):
    path = tmp_path / "tools.json"
    path.write_bytes(content)
    assert_one_error_line(glm3("chat", "x", "--tools", str(path)), str(path), *texts)


def test_a_missing_tools_file_is_a_mistake(tmp_path: Path):
    path = str(tmp_path / "none.json")
    assert_one_error_line(glm3("chat", "x", "--tools", path), path, "No such file")


def test_mistakes_are_found_before_a_model_is_loaded(tmp_path: Path):
    loaded: list[dict] = []
    for wrong in (["\udcff"], ["x", "--top-p", "2"], ["x", "--tools", str(tmp_path)]):
        assert glm3("chat", *wrong, loaders=scripted_loaders("x", loaded=loaded)).exit_code == 2
    assert loaded == []


def test_a_failure_is_one_line_and_exit_code_1():
    def fail(model: str, **options: object) -> None:
        raise NonFiniteLogitsError("step 3 gave NaN;\n  look at the weights")

    result = glm3("chat", "x", loaders=Loaders(service=fail))
    assert_one_error_line(result, "step 3 gave NaN; look at the weights", code=1)


def test_a_wrong_option_is_explained_by_its_usage():
    result = glm3("chat", "x", "--top-q", "1")
    assert result.exit_code == 2
    assert "No such option" in result.stderr
    assert "Usage: glm3 chat" in result.stderr


def test_ctrl_c_ends_a_single_answer_quietly():
    def interrupted(model: str, **options: object) -> None:
        raise KeyboardInterrupt

    result = glm3("chat", "x", loaders=Loaders(service=interrupted))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")
