from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.scripted import TOKENIZER, call
from click.testing import CliRunner, Result

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.cli.app import app
from glm3sdk.cli.loading import Loaders
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

CONSTRAINTS = LlguidanceConstraints(TOKENIZER)


def glm3(*arguments: str, replies=("nothing of the kind",), stdin=None) -> Result:
    def load_service(model: str, **options) -> Glm3Service:
        runtime = ScriptedRuntime(*replies)
        return Glm3Service(
            runtime=runtime,
            tokenizer=TOKENIZER,
            owns_runtime=True,
            constraints=CONSTRAINTS,
            **options,
        )

    loaders = Loaders(service=load_service, tokenizer=lambda path: TOKENIZER)
    return CliRunner().invoke(app, ["chat", *arguments], obj=loaders, prog_name="glm3", input=stdin)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text('{"properties": {"n": {"enum": [7]}}, "required": ["n"]}', encoding="utf-8")
    return path


def test_a_reply_is_held_to_what_the_options_say(schema: Path, tmp_path: Path):
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "a" "b"\n', encoding="utf-8")
    assert json.loads(glm3("hi", "--json-schema", str(schema)).stdout) == {"n": 7}
    assert glm3("hi", "--choice", "好, 不好").stdout in ("好\n", "不好\n")
    assert glm3("hi", "--regex", "[0-9]-x").stdout.endswith("-x\n")
    assert glm3("hi", "--grammar", str(grammar)).stdout == "ab\n"


def test_a_tool_must_be_called(tmp_path: Path):
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "now"}]', encoding="utf-8")
    result = glm3("hi", "--tools", str(tools), "--tool-choice", "required", "--json")
    calls = [{"name": "now", "arguments": {}, "repair": None}]
    assert json.loads(result.stdout)["tool_calls"] == calls
    wrong = glm3("hi", "--tools", str(tools), "--tool-choice", "nwo")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "did you mean 'now'" in wrong.stderr


def test_an_incomplete_reply_says_so():
    options = ("hi", "--regex", "[0-9]{30}", "--max-new-tokens", "6")
    result = glm3(*options)
    assert result.exit_code == 0
    assert "the reply is incomplete: the limit of tokens came first" in result.stderr
    told = json.loads(glm3(*options, "--json").stdout)
    assert told["incomplete"]["reason"] == "length"
    assert len(told["incomplete"]["raw"]) == 5
    assert "incomplete" not in json.loads(glm3("hi", "--json").stdout)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--choice", "a,,b"], "a choice must be a text"),
        (["--choice", "a,b", "--regex", "a"], "--choice and --regex"),
        (["--json-schema", "nowhere.json"], "cannot read 'nowhere.json'"),
        (["--grammar", "nowhere.lark"], "cannot read 'nowhere.lark'"),
        (["--regex", "(?=a)"], "look-ahead"),
        (["--tool-choice", "required"], "needs tools to call"),
        (["--tool-choice", "auto", "--choice", "a"], "leave the other out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, told):
    result = glm3("hi", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_schema_file_that_holds_none_is_named(tmp_path: Path):
    path = tmp_path / "list.json"
    path.write_text("[]", encoding="utf-8")
    result = glm3("hi", "--json-schema", str(path))
    assert result.exit_code == 2
    assert f"{path}: a JSON Schema is an object" in result.stderr


def test_without_the_options_nothing_is_constrained():
    assert glm3("hi", replies=(call("now", "a=b"),)).exit_code == 0


@pytest.mark.parametrize(
    ("option", "content", "place"),
    [
        ("--json-schema", '{"properties": {"n": {"pattern": "("}}}', "#/properties/n/pattern"),
        ("--grammar", "{}", "Grammar"),
    ],
)
def test_what_cannot_be_compiled_names_its_file(
    option: str, content: str, place: str, tmp_path: Path
):
    path = tmp_path / "constraint"
    path.write_text(content, encoding="utf-8")
    for more in (["hi"], ["hi", "--json"], ["--interactive"]):
        result = glm3(option, str(path), *more, stdin="hi\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"glm3: error: {path}: ")
        assert result.stderr.count(str(path)) == 1
        assert place in result.stderr
