from __future__ import annotations

import json

import pytest
from cli.scripted import TOKENIZER, scripted_loaders
from click.testing import CliRunner, Result

from glm3sdk.cli.app import app
from glm3sdk.cli.generate import with_newlines
from glm3sdk.domain.prompt import parse_ready_made
from glm3sdk.services.encoding import encode_segments

READY_MADE = "[gMASK]sop<|user|> \n 你好<|assistant|> \n"


def glm3(*arguments: str, reply="天空", stdin=None) -> Result:
    # Ids are played as they are: the line of metadata in front of a message is chat's.
    loaders = scripted_loaders(TOKENIZER.encode(reply))
    return CliRunner().invoke(app, ["generate", *arguments], obj=loaders, input=stdin)


def test_a_prompt_is_continued():
    result = glm3("蓝色的")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "天空\n", "")


def test_a_dash_reads_standard_input():
    typed, piped = glm3("蓝色的", "--json"), glm3("-", "--json", stdin="蓝色的\n")
    assert json.loads(typed.stdout) == json.loads(piped.stdout)


def test_json_is_one_object():
    assert json.loads(glm3("ab", "--json", "--max-new-tokens", "3").stdout) == {
        "text": "天",
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 4,  # [gMASK] sop a b
            "completion_tokens": 3,
            "cached_tokens": 0,
            "total_tokens": 7,
        },
    }


def test_a_ready_made_prompt_is_read_back_into_special_tokens():
    segments = parse_ready_made(READY_MADE)
    assert segments is not None
    usage = json.loads(glm3(READY_MADE, "--json").stdout)["usage"]
    assert usage["prompt_tokens"] == len(encode_segments(segments, TOKENIZER))


@pytest.mark.parametrize(
    "typed",
    [
        r"[gMASK]sop<|user|> \n 你好<|assistant|> \n",
        "[gMASK]sop<|user|> \n 你好<|assistant|> \\n",
        READY_MADE,
    ],
)
def test_a_newline_behind_a_role_may_be_typed_as_backslash_and_n(typed: str):
    assert with_newlines(typed) == READY_MADE


@pytest.mark.parametrize("text", [r"<|user|> \n hi", r"C:\new", r"[gMASK] <|user|>\n"])
def test_a_backslash_elsewhere_stays_one(text: str):
    assert with_newlines(text) == text


def test_a_backslash_in_a_message_of_a_ready_made_prompt_stays_one():
    typed = r"[gMASK]sop<|user|>\n print('\n')<|assistant|>"
    assert with_newlines(typed) == "[gMASK]sop<|user|>\n print('\\n')<|assistant|>"


def test_a_prompt_is_required():
    result = glm3()
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr


def test_a_prompt_that_is_not_utf8_is_a_mistake():
    result = glm3("\udcff")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("glm3: error: ")
