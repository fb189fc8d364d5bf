"""What can be typed in `glm3 chat` besides messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.scripted import TOKENIZER, call
from cli.test_conversation import CTRL_C, CTRL_D, WEATHER, typing

from glm3sdk.cli.conversation import Conversation
from glm3sdk.cli.line_input import completions
from glm3sdk.cli.slash_commands import COMMANDS
from glm3sdk.domain.chat import Delta, Message, Reply, ReplyEnd, Text, TextDelta, ToolSpec
from glm3sdk.domain.dataset import Conversation as TrainingConversation
from glm3sdk.domain.dataset import parse_conversation
from glm3sdk.errors import UserError
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

TOOL = {"name": "get_weather", "description": "weather", "parameters": {"type": "object"}}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def converse(*lines: object, history=(), tools=(), **options: object) -> Conversation:
    """A conversation with a model that says how many messages it was asked."""

    def answer(asked: tuple[Message, ...], _: object) -> Iterator[Delta]:
        text = f"{len(asked)}. answer"
        yield TextDelta(text)
        yield ReplyEnd(Reply((Text(text),), history=(*asked, Message.assistant(text))))

    ask, _ = typing(*lines, CTRL_D)
    conversation = Conversation(answer=answer, ask=ask, history=history, tools=tools, **options)
    conversation.run()
    return conversation


def spoken(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.history]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("glm3: error: ")
    ]
    return line.removeprefix("glm3: error: ")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    converse("/help")
    told = capsys.readouterr().err
    for name in ("/help", "/system", "/tools", "/save", "/load", "/retry", "/clear", "/quit"):
        assert f"\n{name}" in told
    assert set(COMMANDS) <= set(told.split())


def test_an_unknown_command_is_one_line_and_no_message(capsys: pytest.CaptureFixture[str]):
    conversation = converse("/sav x.json")
    assert conversation.history == ()
    assert "no command '/sav'" in (line := error_of(capsys))
    assert "did you mean '/save'?" in line


def test_a_blank_sends_what_would_be_a_command():
    assert spoken(converse(" /help is a word")) == ["/help is a word", "1. answer"]


def test_a_command_that_takes_nothing_refuses_more(capsys: pytest.CaptureFixture[str]):
    assert spoken(converse("甲", "/clear all")) == ["甲", "1. answer"]
    assert error_of(capsys) == "/clear stands alone, without 'all'"


def test_the_system_message_is_set_shown_and_removed(capsys: pytest.CaptureFixture[str]):
    conversation = converse("/system", "/system 你是导游。", "/system", "甲", "/system 你是诗人。")
    assert conversation.history[0] == Message.system("你是诗人。")
    assert spoken(conversation)[1:] == ["甲", "2. answer"]
    told = capsys.readouterr().err
    assert told.index("no system message") < told.index("system: 你是导游。")
    assert spoken(converse("/system x", "/system off", "甲")) == ["甲", "1. answer"]


def test_clear_forgets_all_but_the_system_message_and_the_tools():
    tools = (ToolSpec("get_weather"),)
    conversation = converse("/system x", "甲", "/clear", tools=tools)
    assert (conversation.history, conversation.tools) == ((Message.system("x"),), tools)
    assert converse("甲", "/clear").history == ()


def test_retry_answers_the_last_message_again():
    assert spoken(converse("甲", "乙", "/retry")) == ["甲", "1. answer", "乙", "3. answer"]


def test_retry_asks_what_got_no_answer():
    asked: list[list[str]] = []

    def answer(messages: tuple[Message, ...], _: object) -> Iterator[Delta]:
        asked.append([message.content for message in messages])
        if len(asked) in (2, 4):
            raise KeyboardInterrupt
        yield ReplyEnd(Reply((Text("一"),), history=(*messages, Message.assistant("一"))))

    ask, _ = typing("甲", "乙", "/retry", "/retry", "/retry", CTRL_D)
    conversation = Conversation(answer=answer, ask=ask)
    conversation.run()
    assert asked == [["甲"], *[["甲", "一", "乙"]] * 4]
    # The fourth was stopped before it said anything, so the answer before it stays.
    assert spoken(conversation) == ["甲", "一", "乙", "一"]


def test_retry_before_any_message_is_one_line(capsys: pytest.CaptureFixture[str]):
    converse("/retry")
    assert "no message yet" in error_of(capsys)


def test_a_conversation_comes_back_from_its_file(capsys: pytest.CaptureFixture[str]):
    converse("/system x", "你好", "/save talk.json")
    assert "saved 3 messages to talk.json" in capsys.readouterr().err
    assert spoken(converse("/load talk.json", "乙")) == [
        "x",
        "你好",
        "2. answer",
        "乙",
        "4. answer",
    ]
    written = Path("talk.json").read_text(encoding="utf-8")
    assert written.count("\n") == 1
    assert json.loads(written)["messages"][1] == {"role": "user", "content": "你好"}
    assert [path.name for path in Path().iterdir()] == ["talk.json"]


def test_tool_calls_and_tools_come_back_from_a_file():
    tools = (ToolSpec("get_weather", "weather", {"type": "object"}),)
    history = (
        Message.system("x", tools=(TOOL,)),
        Message.user("天气?"),
        call("get_weather", "city='北京'"),
        Message.observation("晴"),
    )
    converse("/save talk.json", history=history, tools=tools)
    loaded = converse("/load talk.json")
    assert (loaded.history, loaded.tools) == (history, tools)


def test_a_saved_conversation_is_a_line_of_training_data():
    converse("你好", "/save talk.json", tools=(ToolSpec("get_weather"),))
    parsed = parse_conversation(Path("talk.json").read_bytes(), line=1)
    assert isinstance(parsed, TrainingConversation)
    said = [(each.message.content, each.trained) for each in parsed.messages[1:]]
    assert said == [("你好", False), ("1. answer", True)]


def test_loaded_tools_ask_for_their_observations():
    Path("talk.json").write_text(json.dumps({"messages": [], "tools": [TOOL]}), encoding="utf-8")
    ask, prompts = typing("/load talk.json", "天气?", "晴", CTRL_D)
    with Glm3Service(runtime=ScriptedRuntime(WEATHER, "晴"), tokenizer=TOKENIZER) as service:
        Conversation(
            answer=lambda asked, tools: service.stream_chat(asked, None, tools), ask=ask
        ).run()
    assert prompts == ["> ", "> ", "observation> ", "> "]


def test_a_question_without_an_answer_can_be_loaded_and_asked():
    Path("talk.json").write_text('[{"role": "user", "content": "甲"}]', encoding="utf-8")
    assert spoken(converse("/load talk.json", "/retry")) == ["甲", "1. answer"]


def test_no_file_of_another_conversation_is_overwritten(capsys: pytest.CaptureFixture[str]):
    Path("talk.json").write_text("mine", encoding="utf-8")
    converse("甲", "/save talk.json")
    assert "talk.json is there already" in error_of(capsys)
    converse("甲", "/save new.json", "/clear", "乙", "/save new.json")
    assert Path("talk.json").read_text(encoding="utf-8") == "mine"
    assert "甲" in Path("new.json").read_text(encoding="utf-8")


def test_save_goes_to_the_same_file_again():
    converse("甲", "/save talk.json", "乙", "/save", "丙", f"/save {Path('talk.json').resolve()}")
    messages = json.loads(Path("talk.json").read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in messages][::2] == ["甲", "乙", "丙"]
    converse("/load talk.json", "丁", "/save")
    assert len(json.loads(Path("talk.json").read_text(encoding="utf-8"))["messages"]) == 8


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("/save", ["/save needs the name of a file"]),
        ("/load", ["/load needs the name of a file"]),
        ("/save .", ["is there already"]),
        ("/save none/talk.json", ["cannot write none/talk.json", "No such file"]),
        ("/load none.json", ["cannot read 'none.json'", "No such file"]),
        ("/load .", ["cannot read '.'", "Is a directory"]),
        ("/load binary", ["binary:1:1: not UTF-8"]),
        ("/load text", ["text:1:1: not JSON"]),
        ("/load number", ["number: no conversation"]),
        ("/load roles", ["roles: message 0: unknown role 'x'"]),
        ("/load tools", ["tools: a tool is"]),
        ("/load half", ["half: message 0", "surrogate"]),
        ("/tools none.json", ["cannot read 'none.json'"]),
        ("/tools number", ["number: expected a list of tools"]),
        ("/tools tools", ["tools: a tool is"]),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_conversation_goes_on(
    line: str, texts: list[str], capsys: pytest.CaptureFixture[str]
):
    for name, content in {
        "binary": b"\xff\x00",
        "text": b"hello",
        "number": b"1",
        "roles": b'[{"role": "x", "content": ""}]',
        "tools": b'{"messages": [], "tools": [1]}',
        "half": b'[{"role": "user", "content": "\\ud800"}]',
    }.items():
        Path(name).write_bytes(content)
    assert spoken(converse("甲", line, "乙")) == ["甲", "1. answer", "乙", "3. answer"]
    told = error_of(capsys)
    for text in texts:
        assert text in told


def test_tools_are_offered_listed_and_taken_away(capsys: pytest.CaptureFixture[str]):
    Path("tools.json").write_text(json.dumps([TOOL]), encoding="utf-8")
    assert converse("/tools", "/tools tools.json").tools[0].name == "get_weather"
    told = capsys.readouterr().err
    assert told.index("no tools") < told.index("tools: get_weather")
    assert converse("/tools tools.json", "/tools off").tools == ()


def test_tools_that_were_run_are_not_run_once_others_are_offered():
    def answer_calls(reply: Reply, asked: int) -> tuple[Message, ...]:
        raise AssertionError("nothing is to be run")

    converse("/tools off", "甲", tools=(ToolSpec("a"),), answer_calls=answer_calls)


def test_a_message_of_several_lines():
    assert spoken(converse("a\\", "b\\", "c"))[0] == "a\nb\nc"
    assert spoken(converse('"""', "a", "", "/quit", '"""'))[0] == "a\n\n/quit"
    assert spoken(converse("/system a\\", "b", "甲"))[0] == "a\nb"


def test_the_end_of_input_ends_a_message_of_several_lines():
    assert spoken(converse('"""', "a", CTRL_D))[0] == "a"
    assert spoken(converse("a\\", CTRL_D))[0] == "a"


def test_ctrl_c_gives_up_a_message_of_several_lines():
    assert spoken(converse("a\\", CTRL_C, "甲"))[0] == "甲"


def test_where_nobody_is_an_error_or_ctrl_c_ends_the_conversation():
    with pytest.raises(UserError, match=r"none\.json"):
        converse("/load none.json", "甲", attended=False)
    with pytest.raises(KeyboardInterrupt):
        converse(CTRL_C, "甲", attended=False)


def test_commands_and_their_files_are_completed():
    Path("talks").mkdir()
    Path("talks/a b.json").touch()
    assert completions("/s", COMMANDS) == ["/save ", "/system "]
    assert completions("/load ta", COMMANDS) == ["talks/"]
    assert completions("/load talks/", COMMANDS) == ["talks/a b.json"]
    assert completions("hello", COMMANDS) == completions("/system ta", COMMANDS) == []
