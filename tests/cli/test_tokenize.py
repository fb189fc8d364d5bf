from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.scripted import scripted_loaders
from click.testing import CliRunner, Result

from glm3sdk.cli.app import app
from glm3sdk.cli.loading import Loaders


def glm3(*arguments: str, loaders: Loaders | None = None) -> Result:
    return CliRunner().invoke(
        app, ["tokenize", *arguments], obj=loaders or scripted_loaders("unused")
    )


def test_a_text_gives_its_ids_and_pieces_on_one_line():
    result = glm3("--text", "ab")
    assert result.exit_code == 0
    assert result.stdout == '{"input_ids": [100, 101], "pieces": ["<0x61>", "<0x62>"]}\n'


def test_a_special_token_in_a_text_is_text():
    assert len(json.loads(glm3("--text", "<|user|>").stdout)["input_ids"]) == len("<|user|>")


def test_an_empty_text_has_no_ids():
    assert json.loads(glm3("--text", "").stdout) == {"input_ids": [], "pieces": []}


@pytest.mark.parametrize("wrapped", [False, True])
def test_messages_give_the_prompt_of_a_chat(tmp_path: Path, wrapped: bool):
    messages = [{"role": "user", "content": "a"}]
    path = tmp_path / "messages.json"
    path.write_text(json.dumps({"messages": messages} if wrapped else messages), encoding="utf-8")
    assert json.loads(glm3("--messages", str(path)).stdout)["pieces"] == [
        "[gMASK]",
        "sop",
        "<|user|>",
        "<0x0A>",
        "<0x61>",
        "<|assistant|>",
    ]


def test_the_published_tokenizer_gives_its_published_ids(shared_data: Path):
    path = str(shared_data / "tokenizer" / "tokenizer.model")
    values = json.loads(glm3("--tokenizer", path, "--text", "你好", loaders=Loaders()).stdout)
    assert values == {"input_ids": [36474, 54591], "pieces": ["▁你", "好"]}


@pytest.mark.parametrize("arguments", [[], ["--text", "a", "--messages", "b.json"]])
def test_exactly_one_of_text_and_messages_is_wanted(arguments: list[str]):
    result = glm3(*arguments)
    assert result.exit_code == 2
    assert "either --text or --messages" in result.stderr


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[", ":1:2: not JSON"),
        ("[]", "empty"),
        ("{}", "expected a list of messages"),
        ('[{"role": "robot", "content": ""}]', "unknown role 'robot'"),
        ('[{"role": "user", "content": 1}]', "content must be text"),
        ('[{"role": "system", "content": "a", "tools": 5}]', "tools are a list"),
    ],
)
def test_a_messages_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, content: str, text: str):
    path = tmp_path / "messages.json"
    path.write_text(content, encoding="utf-8")
    result = glm3("--messages", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"glm3: error: {path}:")
    assert text in result.stderr


def test_a_missing_tokenizer_is_a_mistake(tmp_path: Path):
    path = str(tmp_path / "none.model")
    result = glm3("--tokenizer", path, "--text", "a", loaders=Loaders())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("glm3: error: ")
    assert path in result.stderr
