from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.scripted import TOKENIZER, scripted_loaders
from click.testing import CliRunner, Result
from scripted_model import play

from glm3sdk.cli.app import app
from glm3sdk.cli.generate import with_newlines
from glm3sdk.domain.prompt import parse_ready_made
from glm3sdk.services.encoding import encode_segments
from glm3sdk.services.scheduler import Scheduler

PREDICT = "mode: predict\ngeneration: {batch_size: 2, max_new_tokens: 3}\n"
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


def test_prompt_lookup_gives_the_same_text():
    plain, fast = (
        glm3("ab", "--greedy", "--json", *more, reply="天空蓝，天空蓝，天空蓝")
        for more in ((), ("--prompt-lookup", "8"))
    )
    assert json.loads(fast.stdout) == json.loads(plain.stdout)
    assert json.loads(fast.stdout)["text"] == "天空蓝，天空蓝，天空蓝"
    refused = glm3("x", "--prompt-lookup", "-1")
    assert (refused.exit_code, "prompt_lookup_num_tokens" in refused.stderr) == (2, True)


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


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "predict.yaml"
    path.write_text(PREDICT, "utf-8")
    return str(path)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "in.jsonl"
    lines = (
        {"prompt": "蓝色的", "id": 1},
        {"messages": [{"role": "user", "content": "你好"}]},
        {"content": "类型#裙", "summary": "裙"},
    )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return str(path)


def test_a_configuration_says_how_a_prompt_is_continued(config: str, monkeypatch):
    loaded = play(monkeypatch, "abcdefgh")
    values = json.loads(glm3("蓝色的", "--config", config, "--json").stdout)
    assert (values["finish_reason"], values["usage"]["completion_tokens"]) == ("length", 3)
    assert loaded.options[0]["runtime"] is None  # what the model was made for


def test_options_stand_above_a_configuration_and_set_above_them(config: str, monkeypatch):
    for more, tokens in (
        (("--max-new-tokens", "2"), 2),
        (("--max-new-tokens", "2", "--set", "generation.max_new_tokens=1"), 1),
    ):
        play(monkeypatch, "abcdefgh")
        values = json.loads(glm3("蓝色的", "--config", config, "--json", *more).stdout)
        assert values["usage"]["completion_tokens"] == tokens


def test_the_model_of_a_configuration_is_kept_unless_another_is_named(tmp_path: Path, monkeypatch):
    play(monkeypatch, "x")
    config = tmp_path / "predict.yaml"
    config.write_text("mode: predict\nmodel: {path: /nowhere}\n", "utf-8")
    assert "/nowhere" in glm3("a", "--config", str(config)).stderr
    assert glm3("a", "--config", str(config), "--model", "tiny").exit_code == 0


@pytest.mark.parametrize("configured", [True, False])
def test_a_file_of_prompts_is_answered_line_by_line(
    configured: bool, config: str, prompts: str, tmp_path: Path, monkeypatch
):
    play(monkeypatch, "天")
    out = tmp_path / "out.jsonl"
    options = ("--config", config) if configured else ("--max-new-tokens", "3")
    result = glm3("--input", prompts, "--output", str(out), *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote 3 answers to {out}\n"
    answers = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    given = [json.loads(line) for line in Path(prompts).read_text("utf-8").splitlines()]
    for line, answer in zip(given, answers, strict=True):
        assert list(answer) == [*line, "prediction", "finish_reason"]
        assert {key: answer[key] for key in line} == line
        assert answer["prediction"].strip() == "天"


def test_prompt_lookup_is_taken_for_a_file_too(prompts: str, tmp_path: Path, monkeypatch):
    play(monkeypatch, "天空蓝，天空蓝，天空蓝")
    answers, guesses, submit = [], set(), Scheduler.submit

    def noting(self, **request):
        guesses.add(request["guesses"])
        return submit(self, **request)

    monkeypatch.setattr(Scheduler, "submit", noting)
    for tokens in ("0", "8"):
        out = tmp_path / tokens
        result = glm3("--input", prompts, "--output", str(out), "--prompt-lookup", tokens)
        assert result.exit_code == 0, result.output
        answers.append(out.read_text("utf-8"))
    assert answers[0] == answers[1]
    assert guesses == {0, 8}


def test_a_broken_line_is_named_and_nothing_is_written(config: str, tmp_path: Path, monkeypatch):
    loaded = play(monkeypatch, "x")
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt"\n{"text": "a"}\n', "utf-8")
    result = glm3("--config", config, "--input", str(path), "--output", str(out))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"glm3: error: {path}:2: not JSON" in result.stderr
    assert f"{path}:3: missing key" in result.stderr
    assert loaded.runtimes == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "a"), "--input and --output belong together"),
        (("a", "--output", "b"), "--input and --output belong together"),
        (("a", "--input", "a", "--output", "b"), "either PROMPT or --input"),
        (("--input", "a", "--output", "b", "--json"), "--output is JSON Lines anyway"),
        (("--input", "none.jsonl", "--output", "b"), "cannot read dataset none.jsonl"),
        (("a", "--set", "mode=predict"), "pass one with --config"),
        (("a", "--config", "none.yaml"), "none.yaml: no such file or preset"),
        (("--config", "predict"), "Missing argument"),
        (
            ("--input", "a", "--output", "b", "--prompt-lookup", "-1"),
            "error: --prompt-lookup: must be at least 0",
        ),
        (("a", "--config", "predict", "--top-p", "2"), "generation.top_p: must be above 0"),
    ],
)
def test_options_that_do_not_go_together_are_a_mistake(arguments: tuple[str, ...], message: str):
    result = glm3(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.output
