"""`glm3` as a person meets it: behind a real terminal."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import attrs
import numpy as np
import pytest
import sentencepiece
from cli.terminal import Terminal

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.domain.model import Glm3Config
from glm3sdk.testing.random_checkpoint import (
    random_weights,
    write_random_checkpoint,
    write_weights,
)

SCRIPTED = str(Path(__file__).with_name("scripted_program.py"))
WEATHER = {"content": "```python\ntool_call(city='北京')\n```", "metadata": "get_weather"}


def scripted(*replies: object) -> list[str]:
    return [SCRIPTED, json.dumps(replies)]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers anything with 好 until its context is full."""
    folder = tmp_path_factory.mktemp("endless")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["你好，今天天气怎么样", "hello"] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=3,
    )
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model")
    newline, word = tokenizer.encode("\n")[-1], tokenizer.encode("好")[-1]
    assert tokenizer.decode([word, word]) == "好好"
    config = attrs.evolve(
        Glm3Config.preset("tiny"), num_layers=1, padded_vocab_size=320, seq_length=32_768
    )
    write_random_checkpoint(folder, config, scale=0)
    # Layers of zeros pass the embedding through, so it alone chooses the next token.
    weights = random_weights(config, scale=0)
    embedding = weights["transformer.embedding.word_embeddings.weight"]
    output = weights["transformer.output_layer.weight"]
    embedding[:, 0], output[newline, 0] = 1, 1
    for token_id in (newline, word):
        embedding[token_id] = np.eye(1, config.hidden_size, 1)
    output[word, 1] = 1
    write_weights(folder, weights)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="needs MindSpore")
def test_ctrl_c_stops_a_reply_of_mindspore_and_not_the_program(endless: Path, tmp_path: Path):
    arguments = ["-m", "glm3sdk", "chat", "--model", str(endless), "--greedy"]
    arguments += ["--max-seq-length", "32768"]
    with Terminal(arguments, cwd=tmp_path) as terminal:
        for _ in range(2):
            terminal.until("> ")
            terminal.type("hello\n")
            terminal.until("好" * 20)
            terminal.ctrl_c()
            terminal.until("(stopped)")
        terminal.until("> ")
        terminal.ctrl_c()
        terminal.until("Ctrl-C again")
        terminal.until("> ")
        terminal.type("hello\n")
        terminal.until("好" * 20)
        terminal.ctrl_c()
        terminal.until("(stopped)")
        terminal.until("> ")
        terminal.ctrl_d()
        assert terminal.exit_code() == 0
        assert "Traceback" not in terminal.transcript


@pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="needs MindSpore")
def test_ctrl_c_ends_a_single_answer_of_mindspore(endless: Path, tmp_path: Path):
    arguments = ["-m", "glm3sdk", "chat", "hello", "--model", str(endless), "--greedy"]
    with Terminal([*arguments, "--max-seq-length", "32768"], cwd=tmp_path) as terminal:
        terminal.until("好" * 20)
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
        assert terminal.transcript.endswith("\r\n")
        assert "Traceback" not in terminal.transcript


def test_a_conversation_ends_with_ctrl_d():
    with Terminal([*scripted("一", "二"), "chat"]) as terminal:
        terminal.until("> ")
        terminal.type("甲\n")
        terminal.until("一")
        terminal.until("> ")
        terminal.type("乙\n")
        terminal.until("二")
        terminal.until("> ")
        terminal.ctrl_d()
        assert terminal.exit_code() == 0


def test_a_line_of_chinese_can_be_edited():
    pytest.importorskip("readline")
    with Terminal([*scripted("ok"), "chat"]) as terminal:
        terminal.until("> ")
        # One backspace takes a whole character, or what is left would not be UTF-8.
        terminal.type("中文\x7f\x7f\x7f/quit\n")
        assert terminal.exit_code() == 0


def test_a_message_of_several_lines_can_be_pasted_and_saved(tmp_path: Path):
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit does not know of pasted blocks")
    with Terminal([*scripted("一", "二"), "chat"], cwd=tmp_path) as terminal:
        terminal.until("> ")
        terminal.type("\x1b[200~甲\n乙\n\x1b[201~丙\n")
        terminal.until("一")
        terminal.until("> ")
        terminal.type("丁\\\n")
        terminal.until("... ")
        terminal.type("戊\n")
        terminal.until("二")
        terminal.until("> ")
        terminal.type("/sa\ttalk.json\n")
        terminal.until("saved 4 messages to talk.json")
        terminal.until("> ")
        terminal.ctrl_d()
        assert terminal.exit_code() == 0
    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [each["content"] for each in messages] == ["甲\n乙\n丙", "一", "丁\n戊", "二"]


def test_the_second_ctrl_c_at_the_prompt_ends():
    with Terminal([*scripted("一"), "chat"]) as terminal:
        terminal.until("> ")
        terminal.ctrl_c()
        terminal.until("Ctrl-C again")
        terminal.until("> ")
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
        assert "Traceback" not in terminal.transcript


def test_interactive_goes_on_after_the_message():
    with Terminal([*scripted("一", "二"), "chat", "甲", "--interactive"]) as terminal:
        terminal.until("一")
        terminal.until("> ")
        terminal.type("乙\n")
        terminal.until("二")
        terminal.until("> ")
        terminal.type("/quit\n")
        assert terminal.exit_code() == 0


def test_a_tool_call_asks_for_its_observation(tmp_path: Path):
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "get_weather"}]', encoding="utf-8")
    with Terminal([*scripted(WEATHER, "今天晴"), "chat", "--tools", str(tools)]) as terminal:
        terminal.until("> ")
        terminal.type("天气?\n")
        terminal.until("→ get_weather(city='北京')")
        terminal.until("observation> ")
        terminal.type("晴\n")
        terminal.until("今天晴")
        terminal.until("> ")
        terminal.ctrl_d()
        assert terminal.exit_code() == 0


def test_a_reply_cannot_steer_the_terminal():
    with Terminal([*scripted("a\x1b]0;title\x07b"), "chat", "x"]) as terminal:
        assert terminal.exit_code() == 0
        assert "a␛]0;title␇b" in terminal.transcript


def test_json_does_not_converse():
    with Terminal([*scripted("一"), "chat", "--json"]) as terminal:
        assert terminal.exit_code() == 2
        assert "--json answers once" in terminal.transcript
