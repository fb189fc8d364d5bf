from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.bootstrap import load_service
from glm3sdk.bootstrap.models import open_model
from glm3sdk.cli.app import app
from glm3sdk.domain.chat import Message
from glm3sdk.domain.generation import GenerationConfig

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=8)


def glm3(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="glm3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of four steps."""
    folder = tmp_path_factory.mktemp("lora")
    data, out = folder / "data.jsonl", folder / "run"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    data.write_text(f"{json.dumps({'messages': turns})}\n" * 8, encoding="utf-8")
    settings = (
        f"train_data.path={data}",
        f"output={out}",
        "train_data.max_seq_length=16",
        "training.seq_length=16",
        "training.epochs=2",
        "schedule.warmup_steps=0",
    )
    options = [part for setting in settings for part in ("--set", setting)]
    result = glm3("finetune", "lora_tiny", *options)
    assert result.exit_code == 0, result.stderr
    return out


def answer(model: Path) -> str:
    with load_service(model, slots=1, max_seq_length=64) as service:
        return service.chat([Message.user("hi")], GREEDY).content


def test_a_merged_model_answers_as_the_adapter_on_its_base(run: Path, tmp_path: Path):
    options = ("--dtype", "float32", "--json")
    result = glm3("checkpoint", "merge-lora", run, tmp_path / "merged", *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "path": str(tmp_path / "merged"),
        "tensors": len(HuggingFaceDirectory(tmp_path / "merged").tensors),
        "dtype": "float32",
    }
    assert answer(tmp_path / "merged") == answer(run)


def test_the_dtype_is_the_bases_unless_it_is_named(run: Path, tmp_path: Path):
    base = {spec.dtype for spec in open_model("tiny").checkpoint.tensors.values()}
    for options, expected in (((), base), (("--dtype", "bfloat16"), {"bfloat16"})):
        out = tmp_path / "-".join(expected)
        assert glm3("checkpoint", "merge-lora", run / "result", out, *options).exit_code == 0
        merged = HuggingFaceDirectory(out)
        assert {spec.dtype for spec in merged.tensors.values()} == expected
        assert merged.tokenizer_path is not None


@pytest.mark.parametrize("there", ["file", "folder", "adapter"])
def test_nothing_is_written_over(run: Path, tmp_path: Path, there: str):
    out = run / "result" if there == "adapter" else tmp_path / there
    if there == "file":
        out.write_bytes(b"mine")
    elif there == "folder":
        out.mkdir()
        (out / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    result = glm3("checkpoint", "merge-lora", run, out)
    assert result.exit_code == 2
    assert "is there already; pass a new directory" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_whole_model_has_nothing_to_merge(tmp_path: Path):
    result = glm3("checkpoint", "merge-lora", "tiny", tmp_path / "out")
    assert result.exit_code == 2
    assert "is no LoRA adapter (no adapter_config.json)" in result.stderr
    assert not (tmp_path / "out").exists()
