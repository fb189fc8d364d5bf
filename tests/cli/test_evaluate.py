from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scripted_model import TrainableRuntime, play

from glm3sdk.cli.evaluate import evaluate
from glm3sdk.cli.failures import ReportingGroup
from glm3sdk.domain.chat import Message

CALL = Message.assistant("```python\ntool_call(a=1)\n```", metadata="f")
TALK = {
    "conversations": [
        {"role": "user", "content": "u"},
        {"role": "tool", "name": "f", "parameters": {"a": 1}, "observation": "o"},
        {"role": "assistant", "content": "done"},
    ]
}
GROUP = ReportingGroup(commands=[evaluate])


def glm3(*arguments: object) -> Result:
    return CliRunner().invoke(GROUP, ["evaluate", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(TALK)}\n{{\n{json.dumps(TALK)}\n", "utf-8")
    return path


@pytest.fixture
def options(file: Path) -> tuple[object, ...]:
    return "--data", file, "--max-seq-length", 64


def test_the_report_is_a_table_and_lines(options, monkeypatch):
    play(monkeypatch, CALL, "done", "x", "done", kind=TrainableRuntime)
    result = glm3(*options, "--set", "a=b")
    assert result.exit_code == 2
    assert "pass one with --config" in result.stderr
    result = glm3(*options)
    assert result.exit_code == 0, result.output
    assert "data.jsonl: 2 records taken, 1 dropped; 4 turns to predict" in result.stderr
    assert "4/4 turns predicted" in result.stderr
    assert "2/2 sequences measured" in result.stderr
    assert "text of 2 turns\n" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "ROUGE-1" in line)
    assert row.count("100.0000") == 2
    assert "tool calls: 2 expected, 1 made; name exact match 50.0%" in result.stdout
    assert "perplexity" in result.stdout


def test_json_is_one_object_on_standard_output(options, file: Path, monkeypatch):
    loaded = play(monkeypatch, CALL, "done")
    result = glm3(*options, "--json", "--max-records", "1", "--model", "tiny")
    report = json.loads(result.stdout)
    assert (report["model"], report["data"]) == ("tiny", str(file))
    assert (report["records"], report["turns"], report["perplexity"]) == (1, 2, None)
    assert report["tools"]["arguments_exact_match"] == 1.0
    assert report["text"]["mindformers"]["rouge-l"] == pytest.approx(100.0)
    assert loaded.options[0]["runtime"] is None  # what the model was made for


def test_predictions_are_written_beside_the_report(options, tmp_path: Path, monkeypatch):
    play(monkeypatch, CALL, "no", "x", "done")
    result = glm3(*options, "--predictions", tmp_path / "p.jsonl", "--json")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "p.jsonl").read_text("utf-8").splitlines()
    pairs = [(json.loads(line)["reference"], json.loads(line)["prediction"]) for line in lines]
    called = "f\n```python\ntool_call(a=1)\n```"
    assert sorted(pairs) == sorted(
        [(called, called), ("done", "no"), (called, "x"), ("done", "done")]
    )


def test_a_failure_writes_no_predictions(options, tmp_path: Path, monkeypatch):
    class Broken(TrainableRuntime):
        def start_training(self, *, plan):
            raise KeyboardInterrupt

    play(monkeypatch, "x", kind=Broken)
    result = glm3(*options, "--predictions", tmp_path / "p.jsonl")
    assert result.exit_code == 130
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]


def test_options_stand_above_a_configuration_and_set_above_them(file, tmp_path, monkeypatch):
    loaded = play(monkeypatch, "x")
    config = tmp_path / "e.yaml"
    config.write_text(
        "mode: evaluate\n"
        "model: {path: /nowhere}\n"
        "eval_data: {path: /nowhere, format: adgen, max_source_length: 9, max_target_length: 9}\n"
    )
    options = ("--data", file, "--format", "multiturn", "--max-seq-length", 64, "--model", "tiny")
    result = glm3("--config", config, *options, "--set", "evaluation.max_records=1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["turns"] == 2
    assert len(loaded.runtimes) == 1


def test_pairs_with_other_columns_are_evaluated(tmp_path: Path, monkeypatch):
    play(monkeypatch, "x")
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"q": "a", "a": "b"}\n', "utf-8")
    lengths = ("--max-source-length", 8, "--max-target-length", 8)
    result = glm3("--data", path, "--format", "adgen", "--columns", "q", "a", *lengths, "--json")
    assert json.loads(result.stdout)["text"]["turns"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to evaluate on: pass --config, or --data FILE"),
        (("--data", "none.jsonl", "--max-seq-length", 8), "cannot read dataset none.jsonl"),
        (("--data", "x"), "error: --max-seq-length: is required by format multiturn"),
        (
            ("--data", "x", "--format", "adgen"),
            "error: --max-source-length: is required by format adgen\n"
            "glm3: error: --max-target-length: is required by format adgen\n",
        ),
        (
            ("--data", "x", "--max-seq-length", 8, "--max-records", 0),
            "error: --max-records: must be at least 1",
        ),
        (("--config", "none.yaml"), "none.yaml: no such file or preset"),
        (("--config", "predict", "--max-records", 0), "evaluation.max_records: must be at least 1"),
        (("--config", "predict", "--set", "modell.path=1"), "did you mean 'model'"),
    ],
)
def test_a_mistake_is_told_in_a_line(arguments: tuple[object, ...], message: str):
    result = glm3(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_predictions_that_cannot_be_written_are_known_before_a_model_is_loaded(
    options, tmp_path: Path, monkeypatch
):
    loaded = play(monkeypatch, "x")
    result = glm3(*options, "--predictions", tmp_path / "none" / "p.jsonl")
    assert result.exit_code == 2
    assert "glm3: error: cannot write" in result.stderr
    assert loaded.runtimes == []


def test_a_call_can_be_required_where_the_data_has_one(tmp_path: Path, monkeypatch):
    tools = [{"name": "f", "parameters": {"properties": {"a": {"enum": [1]}}, "required": ["a"]}}]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"tools": tools, **TALK}), "utf-8")
    arguments = "--data", path, "--max-seq-length", 400, "--json"
    malformed = Message.assistant("```python\ntool_call(a=b)\n```", metadata="f")
    play(monkeypatch, malformed, "done")
    found = json.loads(glm3(*arguments).stdout)["tools"]
    assert (found["called"], found["malformed"], found["arguments_exact_match"]) == (0, 1, 0.0)
    play(monkeypatch, malformed, "done")
    found = json.loads(glm3(*arguments, "--tool-choice", "required").stdout)
    assert (found["tools"]["called"], found["tools"]["arguments_exact_match"]) == (1, 1.0)
    # Text is not made a call of.
    assert found["text"]["turns"] == 1
    assert found["text"]["blank"] == 0
    wrong = glm3(*arguments, "--tool-choice", "g")
    assert wrong.exit_code == 2
    assert "no tool 'g' (known: f)" in wrong.stderr


def test_a_model_is_compared_with_another(options):
    result = glm3(
        *options,
        "--max-records",
        1,
        "--runtime",
        "openvino",
        "--against",
        "tiny",
        "--against-runtime",
        "openvino",
        "--max-new-tokens",
        2,
        "--json",
    )
    assert result.exit_code == 0, result.output
    against = json.loads(result.stdout)["against"]
    assert against["model"] == "tiny"
    assert against["mean_kl"] == pytest.approx(0, abs=1e-9)
    assert (against["top_1"], against["perplexity_change"]) == (1.0, 0.0)
    assert "2/2 sequences compared" in result.stderr


def test_what_runs_another_model_is_asked_for_with_it(options):
    result = glm3(*options, "--against-runtime", "openvino")
    assert result.exit_code == 2
    assert "name it with --against" in result.stderr
