from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from scripted_model import TrainableRuntime, play

from glm3sdk import load_tokenizer
from glm3sdk.bootstrap.evaluation import EvaluationProgress, load_evaluation
from glm3sdk.bootstrap.prediction import load_predictor
from glm3sdk.config.loader import config_from_mapping
from glm3sdk.domain.chat import Message
from glm3sdk.errors import (
    InvalidCheckpointError,
    InvalidDatasetError,
    InvalidRunConfigError,
    NonFiniteLossError,
    UnknownNameError,
    UserError,
)
from glm3sdk.ports.training import StepMetrics
from glm3sdk.testing.scripted_runtime import Prefill

TOKENIZER = load_tokenizer("tiny")
PAIRS = [{"content": f"问{n}", "summary": "a b c d"} for n in range(3)]
CALL = Message.assistant("```python\ntool_call(city='北京')\n```", metadata="get_weather")
TALK = {
    "tools": ["get_weather"],
    "conversations": [
        {"role": "user", "content": "天气"},
        {"role": "assistant", "content": "I look."},
        {
            "role": "tool",
            "name": "get_weather",
            "parameters": {"city": "北京"},
            "observation": "晴",
        },
        {"role": "assistant", "content": "晴"},
    ],
}


def written(path: Path, *records: object) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def evaluate_config(path: Path, **sections: Any) -> dict[str, Any]:
    data = {"format": "adgen", "max_source_length": 16, "max_target_length": 16}
    if sections.pop("talk", False):
        data = {"format": "multiturn", "max_seq_length": 128}
    return {"mode": "evaluate", "eval_data": {"path": str(path), **data}, **sections}


def test_pairs_are_predicted_in_batches_and_scored(tmp_path: Path, monkeypatch):
    loaded = play(monkeypatch, "a b c d")
    path = written(tmp_path / "d.jsonl", *PAIRS)
    evaluation = load_evaluation(evaluate_config(path, generation={"batch_size": 2}))
    assert (evaluation.turns, evaluation.left_out, evaluation.data.taken) == (3, 0, 3)
    assert loaded.runtimes == []
    report = evaluation.run()
    assert report.text is not None
    assert report.text.official is not None
    assert report.text.official.rouge_1 == pytest.approx(100.0)
    assert (report.turns, report.tools, report.loss) == (3, None, None)
    (runtime,) = loaded.runtimes
    assert runtime._closed
    assert {call.slot for call in runtime.calls if isinstance(call, Prefill)} == {0, 1}


def test_every_trained_turn_is_predicted_from_the_file(tmp_path: Path, monkeypatch):
    play(monkeypatch, "I look.", CALL, "晴")
    path = written(tmp_path / "d.jsonl", TALK)
    config = evaluate_config(path, talk=True, generation={"batch_size": 1})
    predictions: list[Any] = []
    report = load_evaluation(config).run(on_prediction=predictions.append)
    assert [len(each.prompt) for each in predictions] == [2, 3, 5]
    assert [each.expected.content for each in predictions] == ["I look.", CALL.content, "晴"]
    assert report.tools is not None
    assert (report.tools.turns, report.tools.right_call) == (1, 1)
    assert report.text is not None
    assert report.text.turns == 2


def test_the_loss_is_that_of_the_training_sequences(tmp_path: Path, monkeypatch):
    loaded = play(monkeypatch, "x", kind=TrainableRuntime)
    path = written(tmp_path / "d.jsonl", *PAIRS)
    seen: list[EvaluationProgress] = []
    config = evaluate_config(path, training={"batch_size": 2})
    report = load_evaluation(config).run(progress=seen.append)
    assert report.loss is not None
    assert report.loss.tokens == 3 * (len(TOKENIZER.encode("a b c d")) + 1)
    # An untrained bigram table knows next to nothing: nearly log V.
    assert report.loss.loss == pytest.approx(math.log(TOKENIZER.vocab_size), abs=0.2)
    assert loaded.runtimes[0].sessions == 1
    stages = [(at.stage.value, at.done, at.total) for at in seen]
    assert stages[:2] == [("predict", 0, 3), ("predict", 3, 3)]
    assert stages[2:] == [("loss", 0, 3), ("loss", 2, 3), ("loss", 3, 3)]


def test_packing_is_for_training_alone(tmp_path: Path, monkeypatch):
    play(monkeypatch, "x", kind=TrainableRuntime)
    path = written(tmp_path / "d.jsonl", *[TALK] * 2)
    config = evaluate_config(path, talk=True)
    config["eval_data"]["pack"] = True
    seen: list[EvaluationProgress] = []
    load_evaluation(config).run(progress=seen.append)
    assert seen[-1].total == 2


def test_a_loss_that_is_not_finite_is_an_error_and_frees_the_model(tmp_path: Path, monkeypatch):
    class BrokenSession:
        closed = False

        def eval_loss(self, batch: object) -> StepMetrics:
            return StepMetrics(math.nan, 1)

        def close(self) -> None:
            BrokenSession.closed = True

    class BrokenRuntime(TrainableRuntime):
        def start_training(self, *, plan: object) -> BrokenSession:
            return BrokenSession()

    loaded = play(monkeypatch, "x", kind=BrokenRuntime)
    path = written(tmp_path / "d.jsonl", *PAIRS)
    with pytest.raises(NonFiniteLossError, match="batch 1 is nan"):
        load_evaluation(evaluate_config(path)).run()
    assert BrokenSession.closed
    assert loaded.runtimes[0]._closed


def test_max_records_counts_records_and_not_lines_or_turns(tmp_path: Path, monkeypatch):
    play(monkeypatch, "x")
    path = written(tmp_path / "d.jsonl", "", "{", TALK, "{}", TALK, TALK)
    config = evaluate_config(path, talk=True, evaluation={"max_records": 2})
    evaluation = load_evaluation(config)
    assert (evaluation.data.taken, evaluation.turns) == (2, 6)
    assert evaluation.run().turns == 6


def test_turns_without_room_are_left_out_and_counted(tmp_path: Path, monkeypatch):
    play(monkeypatch, "x")
    long = {
        "messages": [{"role": "user", "content": "山" * 150}, {"role": "assistant", "content": "x"}]
    }
    path = written(tmp_path / "d.jsonl", long, TALK)
    config = evaluate_config(path, talk=True, generation={"max_length": 130})
    evaluation = load_evaluation(config)
    assert (evaluation.turns, evaluation.left_out) == (3, 1)
    report = evaluation.run()
    assert (report.turns, report.left_out) == (3, 1)
    with pytest.raises(InvalidDatasetError, match="4 leave no room for a reply within 8 tokens"):
        load_evaluation(attrs.evolve(evaluation.config, generation=short(8)))


def short(max_length: int) -> Any:
    return config_from_mapping(
        {"mode": "predict", "generation": {"max_length": max_length}}
    ).generation


def test_a_reply_without_end_is_cut_unless_the_configuration_says_where(tmp_path, monkeypatch):
    path = written(tmp_path / "d.jsonl", PAIRS[0])
    for generation, tokens in (({}, 512), ({"max_new_tokens": 7}, 7)):
        play(monkeypatch, TOKENIZER.encode("a b") * 400)
        predictions: list[Any] = []
        evaluation = load_evaluation(evaluate_config(path, generation=generation))
        evaluation.run(on_prediction=predictions.append)
        assert predictions[0].finish_reason == "length"
        assert len(TOKENIZER.encode(predictions[0].text)) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "d.jsonl holds no record"),
        (["{"], "d.jsonl:1: dropped: not JSON"),
        ([{"messages": [{"role": "user", "content": "u"}]}], "it needs an assistant turn"),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": "u"},
                        {"role": "assistant", "metadata": "f", "content": "f(g())"},
                    ]
                }
            ],
            "d.jsonl:1: expects a call of 'f' that cannot be read",
        ),
    ],
)
def test_data_that_cannot_be_scored_is_known_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch, records: list[object], message: str
):
    loaded = play(monkeypatch, "x")
    path = written(tmp_path / "d.jsonl", *records)
    with pytest.raises(InvalidDatasetError, match=message):
        load_evaluation(evaluate_config(path, talk=True))
    assert loaded.runtimes == []


def test_a_configuration_that_cannot_be_evaluated_is_refused(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", *PAIRS)
    with pytest.raises(UserError, match="eval_data is missing"):
        load_evaluation({"mode": "predict"})
    with pytest.raises(InvalidRunConfigError, match="eval_data"):
        load_evaluation({"mode": "evaluate"})
    with pytest.raises(InvalidCheckpointError, match="did you mean 'tiny'"):
        load_evaluation(evaluate_config(path, model={"path": "tinny"}))
    with pytest.raises(UnknownNameError, match="mindspore-cpu"):
        load_evaluation(evaluate_config(path, runtime={"name": "mindspore-cp"}))


def test_a_preset_takes_overrides_and_its_runtime_is_asked_for(tmp_path: Path, monkeypatch):
    loaded = play(monkeypatch, "x")
    path = written(tmp_path / "d.jsonl", *PAIRS)
    overrides = ("model.path=tiny", f"eval_data.path={path}", "generation.max_seq_length=256")
    load_evaluation("predict", overrides=overrides).run()
    assert loaded.options == [
        {
            "runtime": "mindspore-ascend",
            "dtype": "float16",
            "device_id": 0,
            "max_device_memory": "59GB",
        }
    ]


def test_answers_keep_the_order_and_the_fields_of_the_file(tmp_path: Path, monkeypatch):
    play(monkeypatch, "one", "two", "three", "four", "five")
    lines: list[Any] = [{"prompt": f"p{n}", "id": n} for n in range(5)]
    source, target = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    done: list[tuple[int, int]] = []
    predictor = load_predictor({"mode": "predict", "generation": {"batch_size": 1}})
    answered = predictor.run(source, target, progress=lambda *at: done.append(at))
    answers = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert answered == 5
    assert [(each["id"], each["prediction"].strip()) for each in answers] == [
        (0, "one"),
        (1, "two"),
        (2, "three"),
        (3, "four"),
        (4, "five"),
    ]
    assert done == [(0, 5), (4, 5), (5, 5)]


def test_a_stop_text_ends_an_answer(tmp_path: Path, monkeypatch):
    play(monkeypatch, "一二三四")
    source, target = written(tmp_path / "in.jsonl", {"prompt": "p"}), tmp_path / "out.jsonl"
    load_predictor({"mode": "predict"}, stop=("三",)).run(source, target)
    assert json.loads(target.read_bytes())["prediction"].strip() == "一二"


def test_records_are_read_as_eval_data_says(tmp_path: Path, monkeypatch):
    loaded = play(monkeypatch, "x")
    source = written(tmp_path / "in.jsonl", {"q": "a b c"})
    for layout, lengths in (
        ("adgen", {"max_source_length": 3, "max_target_length": 4}),
        ("adgen-chat", {"max_seq_length": 32}),
    ):
        data = {"path": "unused", "format": layout, "columns": ["q", "a"], **lengths}
        load_predictor({"mode": "predict", "eval_data": data}).run(source, tmp_path / "o.jsonl")
    raw, chat = (next(c for c in r.calls if isinstance(c, Prefill)) for r in loaded.runtimes)
    assert raw.input_ids[2:] == tuple(TOKENIZER.encode("a b c")[:1])
    assert TOKENIZER.piece(chat.input_ids[2]) == "<|user|>"


def test_broken_lines_are_named_before_a_model_is_loaded_and_nothing_is_written(
    tmp_path: Path, monkeypatch
):
    loaded = play(monkeypatch, "x")
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    bad = [
        '{"prompt"',
        {"prompt": "山" * 99},
        '{"prompt": "a", "k": "\\ud800"}',
        "",
        "[]",
        "1",
        "2",
    ]
    source = written(tmp_path / "in.jsonl", {"prompt": "fine"}, *bad)
    predictor = load_predictor({"mode": "predict", "generation": {"max_length": 64}})
    with pytest.raises(InvalidDatasetError) as raised:
        predictor.run(source, target)
    message = str(raised.value)
    assert f"{source}:2: not JSON" in message
    assert f"{source}:3: the prompt has" in message
    assert f"{source}:4: holds half of a character" in message
    assert f"{source}:6: wrong type" in message
    assert f"{source}: 1 more lines" in message
    assert loaded.runtimes == []
    assert target.read_text() == "old"


def test_a_failure_on_the_way_leaves_what_was_there(tmp_path: Path, monkeypatch):
    play(monkeypatch, "x")
    source, target = written(tmp_path / "in.jsonl", *PAIRS), tmp_path / "out.jsonl"
    target.write_text("old")
    predictor = load_predictor({"mode": "predict", "generation": {"batch_size": 1}})

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predictor.run(source, target, progress=stop)
    assert target.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_empty_file_and_a_place_that_cannot_be_written_are_mistakes(tmp_path, monkeypatch):
    loaded = play(monkeypatch, "x")
    predictor = load_predictor({"mode": "predict"})
    with pytest.raises(InvalidDatasetError, match="is empty"):
        predictor.run(written(tmp_path / "in.jsonl", ""), tmp_path / "out.jsonl")
    source = written(tmp_path / "in.jsonl", {"prompt": "p"})
    with pytest.raises(UserError, match="cannot write"):
        predictor.run(source, tmp_path / "none" / "out.jsonl")
    assert loaded.runtimes == []


def test_real_records_of_both_kinds_are_evaluated(shared_data: Path, monkeypatch):
    play(monkeypatch, "x", kind=TrainableRuntime)
    config = evaluate_config(shared_data / "advertisegen" / "dev.json")
    report = load_evaluation({**config, "evaluation": {"max_records": 4}}).run()
    assert (report.turns, report.left_out) == (4, 0)
    assert report.loss is not None
    config = evaluate_config(shared_data / "toolalpaca" / "tool_alpaca.jsonl", talk=True)
    report = load_evaluation(config).run()
    # Most are too long for the tiny model, and none is forgotten.
    assert report.turns + report.left_out == trained_turns(shared_data)
    assert report.turns > 0


def trained_turns(shared_data: Path) -> int:
    text = (shared_data / "toolalpaca" / "tool_alpaca.jsonl").read_text("utf-8")
    turns = (turn for line in text.splitlines() for turn in json.loads(line)["conversations"])
    return sum(turn["role"] in ("assistant", "tool") for turn in turns)


def test_the_bundled_model_is_evaluated_on_mindspore(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", *PAIRS[:2])
    config = evaluate_config(
        path,
        generation={"batch_size": 2, "max_new_tokens": 4, "max_length": 64},
        training={"batch_size": 2},
    )
    report = load_evaluation(config).run()
    assert report.text is not None
    assert report.turns == report.text.turns == 2
    assert report.loss is not None
    assert 0 < report.loss.loss < 20
