"""The bundled model in 8 bits on OpenVINO, beside MindSpore's float32."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from glm3sdk import GenerationConfig, Glm3Service, Message, ReplyEnd, load_service
from glm3sdk.bootstrap.openvino import convert_to_openvino
from glm3sdk.domain.history import read_history

GREEDY = GenerationConfig(do_sample=False)
DIALOGUES = Path(__file__).parents[2] / "training" / "tiny" / "dialogues"
QUESTIONS = ("你好", "请介绍一下华为", "晚上睡不着应该怎么办", "写一个快排算法")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glm3Service]:
    path = tmp_path_factory.mktemp("converted") / "tiny-int8"
    convert_to_openvino("tiny", path)
    with load_service(path) as service:
        yield service


def trained_prompts() -> list[Sequence[Message]]:
    prompts = []
    for path in sorted(DIALOGUES.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines()[::6]:
            dialogue = read_history(json.loads(line)["messages"])
            end = next(i for i, message in enumerate(dialogue) if message.role.value == "assistant")
            if end > 0:
                prompts.append(dialogue[:end])
    return prompts


def test_greedy_replies_to_trained_dialogues_are_mindspores(
    int8: Glm3Service, tiny: Glm3Service
) -> None:
    prompts = trained_prompts()
    assert len(prompts) > 30
    ours = int8.chat_batch(prompts, GREEDY)
    theirs = tiny.chat_batch(prompts, GREEDY)
    assert [reply.history for reply in ours] == [reply.history for reply in theirs]


def test_text_is_the_same_alone_in_a_batch_streamed_and_after_a_reused_prefix(
    int8: Glm3Service,
) -> None:
    alone = [int8.chat([Message.user(question)], GREEDY) for question in QUESTIONS]
    batch = int8.chat_batch([[Message.user(question)] for question in QUESTIONS], GREEDY)
    again = [int8.chat([Message.user(question)], GREEDY) for question in QUESTIONS]
    assert [reply.content for reply in batch] == [reply.content for reply in alone]
    assert [reply.content for reply in again] == [reply.content for reply in alone]
    assert all(reply.usage.cached_tokens > 0 for reply in again)
    for question, reply in zip(QUESTIONS, alone, strict=True):
        events = list(int8.stream_chat([Message.user(question)], GREEDY))
        assert "".join(event.content for event in events) == reply.content
        assert isinstance(events[-1], ReplyEnd)


def test_streams_that_run_together_share_decode_steps(int8: Glm3Service, monkeypatch) -> None:
    from glm3sdk.adapters.openvino.session import OpenVinoDecodeSession

    batches: list[int] = []
    decode = OpenVinoDecodeSession.decode

    def counted(
        self: OpenVinoDecodeSession, slots: Sequence[int], token_ids: Sequence[int]
    ) -> np.ndarray:
        batches.append(len(slots))
        return decode(self, slots, token_ids)

    monkeypatch.setattr(OpenVinoDecodeSession, "decode", counted)
    int8.chat_batch([[Message.user(question)] for question in QUESTIONS], GREEDY)
    assert max(batches) == len(QUESTIONS)
