"""Prompt lookup on the bundled model: the same replies in fewer steps, on each runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from glm3sdk import GenerationConfig, Glm3Service, Message, load_service
from glm3sdk.domain.history import read_history

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=48)
GUESSING = attrs.evolve(GREEDY, prompt_lookup_num_tokens=7)
DIALOGUES = Path(__file__).parents[2] / "training" / "tiny" / "dialogues"


@pytest.fixture(scope="module")
def int8() -> Iterator[Glm3Service]:
    with load_service("tiny", runtime="openvino", dtype="int8") as service:
        yield service


@pytest.fixture(params=["mindspore", "openvino"])
def model(request: pytest.FixtureRequest) -> Glm3Service:
    """The bundled model; MindSpore's graphs are those of the other tests."""
    name = "tiny" if request.param == "mindspore" else "int8"
    service: Glm3Service = request.getfixturevalue(name)
    return service


@pytest.fixture
def steps(model: Glm3Service, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step reads, in one slot."""
    counted: list[int] = []
    session = model._scheduler._loop._session
    prefill, decode = session.prefill, session.decode

    def counted_prefill(slot: int, input_ids: Sequence[int], **options: bool) -> object:
        counted.append(len(input_ids))
        return prefill(slot, input_ids, **options)

    def counted_decode(slots: Sequence[int], token_ids: Sequence[int]) -> object:
        counted.append(1)
        return decode(slots, token_ids)

    monkeypatch.setattr(session, "prefill", counted_prefill)
    monkeypatch.setattr(session, "decode", counted_decode)
    return counted


def trained_prompts(every: int) -> list[Sequence[Message]]:
    prompts = []
    for path in sorted(DIALOGUES.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines()[::every]:
            dialogue = read_history(json.loads(line)["messages"])
            end = max(i for i, message in enumerate(dialogue) if message.role.value == "assistant")
            prompts.append(dialogue[:end])
    return prompts


def test_replies_are_the_same_token_for_token(model: Glm3Service, steps: list[int]) -> None:
    for prompt in trained_prompts(25):
        plain = model.chat(prompt, GREEDY)
        taken = len(steps)
        fast = model.chat(prompt, GUESSING)
        assert fast.history[-1].tokens == plain.history[-1].tokens
        assert fast.usage.completion_tokens == plain.usage.completion_tokens
        assert len(steps) - taken <= taken
        steps.clear()


def test_a_reply_that_quotes_takes_few_steps(model: Glm3Service, steps: list[int]) -> None:
    question = Message.user("请介绍一下华为")
    asked_again = [*model.chat([question], GREEDY).history, question]
    steps.clear()
    plain = model.chat(asked_again, GREEDY)
    taken = len(steps)
    fast = model.chat(asked_again, GUESSING)
    assert fast.history[-1].tokens == plain.history[-1].tokens
    assert len(steps) - taken < taken / 2


def test_verifying_compiles_no_graph_of_its_own(tiny: Glm3Service) -> None:
    session = tiny._scheduler._loop._session
    prompts = trained_prompts(60)
    for prompt in prompts:
        tiny.chat(prompt, GREEDY)
    graphs = session.compiled_graphs  # type: ignore[attr-defined]  # MindSpore's alone has it
    for prompt in prompts:
        tiny.chat(prompt, GUESSING)
    assert session.compiled_graphs == graphs  # type: ignore[attr-defined]  # as above
