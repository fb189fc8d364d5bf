from __future__ import annotations

import json
import math

import attrs
import pytest

from glm3sdk.domain.bleu import bleu_4
from glm3sdk.domain.chat import FinishReason, Message
from glm3sdk.domain.metrics import LossSummary, TextScores
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import InvalidDatasetError, NonFiniteLossError
from glm3sdk.ports.training import StepMetrics
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.evaluation import ToolReport, measure_loss, score
from glm3sdk.services.prediction import Prediction, predict
from glm3sdk.testing import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

QUESTION = (Message.user("北京和上海的天气"),)


def call(arguments: str, name: str = "get_weather") -> Message:
    return Message.assistant(f"```python\ntool_call({arguments})\n```", metadata=name)


def evaluated(replies, records, **options):
    runtime = ScriptedRuntime(*replies)
    with Glm3Service(runtime=runtime, tokenizer=CharacterTokenizer(), slots=1) as service:
        return score(predict(service, records, **options), segment_words=str.split)


def predicted(expected: str, written: str) -> Prediction:
    turns = (Message.assistant(written),)
    return Prediction("source", Message.assistant(expected), turns, FinishReason.STOP)


def test_text_is_scored_in_both_flavours():
    records = [(QUESTION, Message.assistant("a b c d")), (QUESTION, Message.assistant("x y"))]
    report = evaluated(["a b c d", "z"], records)
    assert report.turns == 2
    assert report.tools is None
    assert report.loss is None
    assert report.text is not None
    assert (report.text.turns, report.text.blank) == (2, 0)
    assert report.text.mindformers == TextScores(50.0, 50.0, 50.0, pytest.approx(50.0))
    assert report.text.official == TextScores(50.0, 50.0, 50.0, pytest.approx(0.5))


def test_a_source_and_its_target_are_scored():
    report = evaluated(["a b c d"], [("source", "a b c d")])
    assert report.text is not None
    assert report.text.official == TextScores(100.0, 100.0, 100.0, pytest.approx(1.0))
    # The line break that opens the reply is one of MindFormers' characters.
    bleu = 100 * bleu_4("\na b c d", "a b c d")
    assert report.text.mindformers == TextScores(100.0, 100.0, 100.0, pytest.approx(bleu))


def test_blank_predictions_are_counted_and_left_out_by_mindformers_alone():
    report = score([predicted("a b c d", "a b c d"), predicted("a", " ")], segment_words=str.split)
    assert report.text is not None
    assert report.text.blank == 1
    assert report.text.mindformers == TextScores(100.0, 100.0, 100.0, pytest.approx(100.0))
    assert report.text.official == TextScores(50.0, 50.0, 50.0, pytest.approx(0.5))


def test_where_every_prediction_is_blank_mindformers_has_no_scores():
    report = score([predicted("a", "")], segment_words=str.split)
    assert report.text is not None
    assert report.text.mindformers is None
    assert report.text.official == TextScores(0.0, 0.0, 0.0, 0.0)


def test_tool_calls_are_matched_by_name_and_arguments():
    expected = call("city='北京', days=2")
    replies = {
        "the same": expected,
        "keys in another order": call("days=2, city='北京'"),
        "a JSON object": Message.assistant(
            '{"name": "get_weather", "arguments": {"days": 2.0, "city": "北京"}}',
            metadata="get_weather",
        ),
        "after a thought": ["I should look.", SpecialToken.ASSISTANT, expected],
        "another value": call("city='上海', days=2"),
        "another tool": call("city='北京', days=2", name="get_news"),
        "unreadable": call("city=f(), days=2"),
        "no call": "It is sunny.",
    }
    report = evaluated(replies.values(), [(QUESTION, expected)] * len(replies))
    assert report.tools == ToolReport(turns=8, called=6, right_name=5, right_call=4, malformed=1)
    assert report.text is None
    assert report.tools.to_json() == {
        "turns": 8,
        "called": 6,
        "malformed": 1,
        "name_exact_match": 5 / 8,
        "arguments_exact_match": 4 / 8,
    }


def test_turns_of_text_and_of_calls_are_scored_apart():
    thought = Message.assistant("I should look.")
    expected = call("city='北京'")
    records = [(QUESTION, thought), ((*QUESTION, thought), expected)]
    replies = [["I should look.", SpecialToken.ASSISTANT, expected], expected]
    report = evaluated(replies, records)
    assert report.tools == ToolReport(turns=1, called=1, right_name=1, right_call=1)
    assert report.text is not None
    assert report.text.turns == 1
    # Three words have no quadruple: half a match of one.
    assert report.text.official == TextScores(100.0, 100.0, 100.0, pytest.approx(0.5**0.25))


def test_losses_are_weighed_by_their_tokens():
    losses = iter([StepMetrics(1.0, 30), StepMetrics(math.nan, 0), StepMetrics(5.0, 10)])
    loss = measure_loss(losses)
    assert loss == LossSummary(2.0, 40)
    assert loss.perplexity == pytest.approx(math.e**2)


def test_without_batches_there_is_no_loss():
    assert measure_loss([]) is None


def test_a_loss_that_is_not_finite_is_named_by_its_batch():
    losses = [StepMetrics(1.0, 3), StepMetrics(math.nan, 3)]
    with pytest.raises(NonFiniteLossError, match="loss of batch 2 is nan"):
        measure_loss(losses)


def test_an_expected_call_that_cannot_be_read_is_named_by_its_turn():
    records = [(QUESTION, Message.assistant("a")), (QUESTION, call("city=f()"))]
    with pytest.raises(InvalidDatasetError, match="turn 2: expects a call of 'get_weather'"):
        evaluated(["a"], records)


def test_an_evaluation_without_records_is_an_error():
    with pytest.raises(InvalidDatasetError, match="nothing to evaluate"):
        evaluated(["a"], [])


def test_a_report_is_json():
    records = [("source", "a b"), (QUESTION, call("city='北京'"))]
    report = attrs.evolve(
        evaluated(["a b", "no"], records, batch_size=1), loss=LossSummary(1000.0, 2)
    )
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (read["turns"], read["left_out"]) == (2, 0)
    assert read["text"]["official"]["rouge-1"] == 100.0
    assert set(read["text"]["mindformers"]) == {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}
    assert read["tools"]["name_exact_match"] == 0.0
    assert (read["loss"], read["perplexity"], read["loss_tokens"]) == (1000.0, None, 2)
