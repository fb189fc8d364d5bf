"""Models converted for the runtime openvino, and what is made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from glm3sdk import GenerationConfig, Message, load_runtime, load_service
from glm3sdk.adapters.openvino.directory import WEIGHTS_FILE
from glm3sdk.bootstrap.conversion import convert
from glm3sdk.bootstrap.evaluation import load_evaluation
from glm3sdk.bootstrap.finetune import load_finetune
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.bootstrap.openvino import convert_to_openvino
from glm3sdk.domain.lora import ADAPTER_CONFIG
from glm3sdk.errors import (
    CheckpointWriteError,
    InvalidCheckpointError,
    InvalidConfigError,
    UnknownNameError,
    UnsupportedOptionError,
    UserError,
)

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=12)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "tiny-int8"
    convert_to_openvino("tiny", path)
    return path


@pytest.fixture
def copied(int8: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8, tmp_path / "copy")


def test_a_converted_model_chats_without_being_told_its_runtime(int8: Path) -> None:
    with load_service(int8, slots=2) as service:
        assert service.runtime.capabilities.name == "openvino"
        assert service.runtime.capabilities.dtype == "int8"
        assert service.chat([Message.user("你好")], GREEDY).content.startswith("你好")


def test_the_report_and_the_directory_say_what_was_written(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = convert_to_openvino(
        "tiny", tmp_path / "out", quantize="int4", progress=lambda *at: seen.append(at)
    )
    # Every file's size is the manifest's, and the last progress is the whole.
    sizes = {file.name: file.size for file in report.files}
    assert sizes == {
        name: (tmp_path / "out" / name).stat().st_size
        for name in ("config.json", "model.safetensors", "tokenizer.model")
    }
    writing = [at for at in seen if at[0] == "writing"]
    assert writing[-1][1] == writing[-1][2] == report.bytes
    assert report.format == "openvino"
    assert report.verified
    assert report.dtypes.keys() == {"float16", "float32", "int8", "uint8"}
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["glm3sdk_openvino"] == {"layout": 1, "quantize": "int4"}
    # Four matrices of four layers and the output layer in half a byte a weight, the embedding
    # in one, and for each group of 128 a scale and a zero point (16 + 4 bits).
    weights = open_model("tiny").config.parameter_count
    assert report.bytes < 0.7 * weights


def test_every_quantisation_of_the_bundled_model_is_near_the_original(
    int8: Path, tmp_path: Path
) -> None:
    convert_to_openvino("tiny", tmp_path / "int4", quantize="int4")
    convert_to_openvino("tiny", tmp_path / "none", quantize="none")
    data = Path(__file__).parents[1] / "training" / "tiny" / "dialogues" / "knowledge.jsonl"
    # Bounds of two to three times what was measured: 1e-6, 2e-4 and 1e-13 for the divergence,
    # 0.001%, 0.02% and nothing for the perplexity.
    for model, most_kl, most_change in (
        (int8, 4e-6, 1e-4),
        (tmp_path / "int4", 5e-4, 2e-3),
        (tmp_path / "none", 1e-9, 1e-6),
    ):
        evaluation = load_evaluation(
            {
                "mode": "evaluate",
                "model": {"path": str(model)},
                "eval_data": {"path": str(data), "format": "multiturn", "max_seq_length": 256},
                "evaluation": {"max_records": 12},
            }
        )
        found = evaluation.compare("tiny", runtime="openvino")
        assert found.tokens > 300
        assert 0 <= found.mean_kl < most_kl
        assert found.top_1 == 1
        assert abs(found.perplexity_change) < most_change


def test_an_ordinary_model_can_be_quantised_while_it_loads() -> None:
    with load_service("tiny", runtime="openvino", dtype="int4", slots=1) as service:
        assert service.runtime.capabilities.dtype == "int4"
        assert service.chat([Message.user("你好")], GREEDY).content.startswith("你好")


def test_another_runtime_refuses_a_converted_model(int8: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"converted for the runtime 'openvino' and"):
        load_service(int8, runtime="mindspore-cpu")
    with pytest.raises(UnsupportedOptionError, match=r"cannot be loaded into 'mindspore-cpu'"):
        load_runtime(int8, runtime="mindspore-cpu")


def test_nothing_is_made_of_a_converted_model(int8: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="converted"):
        convert(int8, tmp_path / "hf", to="hf")
    with pytest.raises(UserError, match="converted"):
        convert_to_openvino(int8, tmp_path / "again")
    (tmp_path / "data.jsonl").write_text('{"content": "a", "summary": "b"}\n', "utf-8")
    with pytest.raises(UserError, match="converted"):
        load_finetune(
            {
                "mode": "finetune",
                "model": {"path": str(int8)},
                "train_data": {
                    "path": str(tmp_path / "data.jsonl"),
                    "format": "adgen",
                    "max_source_length": 8,
                    "max_target_length": 8,
                },
                "output": str(tmp_path / "run"),
            }
        )
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / "again").exists()


def test_an_adapter_cannot_lie_on_a_converted_model(int8: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    values = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(int8),
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": ["query_key_value"],
    }
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(values), "utf-8")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1, np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(InvalidCheckpointError, match="converted for the runtime 'openvino'"):
        open_model(adapter)


@pytest.mark.parametrize("left", [0, 100, 100_000, -1])
def test_a_truncated_file_is_a_typed_error(copied: Path, left: int) -> None:
    file = copied / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(InvalidCheckpointError, match=WEIGHTS_FILE):
        load_service(copied)


def test_a_config_of_another_model_is_a_typed_error(copied: Path) -> None:
    values = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps({**values, "num_layers": 5}), "utf-8")
    with pytest.raises(InvalidCheckpointError, match=r"layers\.4\..* is missing"):
        load_service(copied)
    (copied / "config.json").write_text(json.dumps({**values, "model_type": "llama"}), "utf-8")
    with pytest.raises(InvalidConfigError, match="model_type is 'llama'"):
        load_service(copied)


def test_a_later_layout_is_refused(copied: Path) -> None:
    values = json.loads((copied / "config.json").read_text("utf-8"))
    values["glm3sdk_openvino"] = {"layout": 2, "quantize": "int8"}
    (copied / "config.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(InvalidCheckpointError, match=r"layout 2.*upgrade glm3sdk"):
        load_service(copied)


def test_a_directory_of_another_model_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    with pytest.raises(UserError):
        convert_to_openvino(tmp_path / "llama", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_quantisation_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no quantisation 'int7'.*did you mean 'int"):
        convert_to_openvino("nowhere", tmp_path / "out", quantize="int7")


def test_nothing_is_written_over(int8: Path) -> None:
    before = sorted(path.name for path in int8.parent.iterdir())
    with pytest.raises(InvalidCheckpointError, match="there already"):
        convert_to_openvino("tiny", int8)
    assert sorted(path.name for path in int8.parent.iterdir()) == before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_a_conversion_that_is_cut_short_leaves_nothing(
    kind: type[BaseException], tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise kind

    with pytest.raises(kind):
        convert_to_openvino("tiny", tmp_path / "out", verify=False, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_read_back_is_taken_away_again(tmp_path: Path, monkeypatch) -> None:
    from glm3sdk.adapters.storage.local_checkpoint import LocalCheckpoint

    def differ(self: LocalCheckpoint) -> None:
        raise InvalidCheckpointError("the disk lies")

    monkeypatch.setattr(LocalCheckpoint, "verify", differ)
    with pytest.raises(CheckpointWriteError, match="the disk lies"):
        convert_to_openvino("tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_goes_to_a_blob_store_and_comes_back(tmp_path: Path) -> None:
    uri = (tmp_path / "blobs" / "tiny-int8").as_uri()
    report = convert_to_openvino("tiny", uri)
    assert report.destination == uri
    assert open_model(model_directory(uri)).runtime == "openvino"
