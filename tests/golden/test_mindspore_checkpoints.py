"""MindSpore itself reads what we write, and we read what it writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs, write_safetensors
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import DTYPES

Tensors = Mapping[str, HostArray]

# By type: while tests are collected, numpy's name "bfloat16" may be MindSpore's.
TYPES = {d: np.dtype(ml_dtypes.bfloat16 if d == "bfloat16" else d) for d in DTYPES}

_rng = np.random.default_rng(5)
TENSORS: Tensors = {
    **{f"层.{d}": (100 * _rng.standard_normal((7, 5))).astype(t) for d, t in TYPES.items()},
    "number": np.array(2.5, np.float32),
    "cube": _rng.standard_normal((3, 4, 5)).astype(np.float16),
}


@pytest.fixture
def ms() -> Any:
    import mindspore

    return mindspore


def saved_by_mindspore(ms: Any, path: Path, tensors: Tensors, **options: Any) -> Path:
    """Let MindSpore save tensors, which are handed over as bytes: it has a bfloat16 of its own."""
    from mindspore._c_expression import TensorPy

    types = {str(t).lower(): t for t in ms.train.serialization.tensor_to_ms_type.values()}
    items = [
        {
            "name": name,
            "data": ms.Tensor(
                TensorPy.convert_bytes_to_tensor(a.tobytes(), a.shape, types[a.dtype.name])
            ),
        }
        for name, a in tensors.items()
    ]
    ms.save_checkpoint(items, str(path), **options)
    return path


def bytes_of(parameters: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return {
        name: (tuple(p.shape), str(p.dtype).lower(), p.asnumpy().tobytes())
        for name, p in parameters.items()
    }


def expected_of(tensors: Tensors) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return {name: (a.shape, a.dtype.name, a.tobytes()) for name, a in tensors.items()}


def read_of(reader: CheckpointReader) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return expected_of({name: reader.read(name) for name in reader.tensors})


def specs_of(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: TensorSpec(array.shape, array.dtype.name) for name, array in tensors.items()}


@pytest.mark.parametrize("crc_check", [False, True])
def test_we_read_what_mindspore_saves(ms: Any, tmp_path: Path, crc_check: bool) -> None:
    path = saved_by_mindspore(ms, tmp_path / "m.ckpt", TENSORS, crc_check=crc_check)
    file = MindSporeCkptFile(path)
    assert read_of(file) == expected_of(TENSORS)
    assert file.verify() is crc_check


def test_mindspore_loads_what_we_write(ms: Any, tmp_path: Path) -> None:
    tensors = {**TENSORS, "empty": np.empty((0, 3), np.float32)}
    write_mindspore_ckpt(tmp_path / "m.ckpt", specs_of(tensors), tensors.items())
    assert bytes_of(ms.load_checkpoint(str(tmp_path / "m.ckpt"))) == expected_of(tensors)


def test_we_write_the_bytes_that_mindspore_writes_split_tensors_too(
    ms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        "long": np.arange(1500, dtype=np.float32).reshape(500, 3),
        "brain": np.arange(600).reshape(30, 20).astype(ml_dtypes.bfloat16),
        "just": np.arange(512, dtype=np.float16),
    }
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)  # KiB
    theirs = saved_by_mindspore(ms, tmp_path / "theirs.ckpt", tensors)
    ours = tmp_path / "ours.ckpt"
    write_mindspore_ckpt(ours, specs_of(tensors), tensors.items(), piece_bytes=1024)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.read_bytes().count(b"long") == 6
    assert read_of(MindSporeCkptFile(theirs)) == expected_of(tensors)
    assert bytes_of(ms.load_checkpoint(str(ours))) == expected_of(tensors)


def test_we_read_tensors_that_mindspore_split_between_rows(
    ms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saved from a thread, a tensor is split along its first axis and not at a byte.
    tensors = {"long": np.arange(1500, dtype=np.float32).reshape(3, 500), "one": np.ones((1, 700))}
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)
    path = saved_by_mindspore(ms, tmp_path / "m.ckpt", tensors, async_save="thread")
    ms.train.serialization._wait_async_thread_save_ckpt()
    assert read_of(MindSporeCkptFile(path)) == expected_of(tensors)


def test_the_texts_and_numbers_that_a_training_run_appends_are_listed(
    ms: Any, tmp_path: Path
) -> None:
    added = {"note": "步骤", "blank": "", "step_num": 7, "loss_scale": 0.5, "done": True}
    ms.save_checkpoint(
        [{"name": "a", "data": ms.Tensor([1.0])}], str(tmp_path / "m.ckpt"), append_dict=added
    )
    file = MindSporeCkptFile(tmp_path / "m.ckpt")
    assert {name: spec.dtype for name, spec in file.tensors.items()} == {
        "a": "float32",
        "note": "str",
        "blank": "str",
        "step_num": "int64",
        "loss_scale": "float32",
        "done": "bool",
    }
    assert (int(file.read("step_num")), float(file.read("loss_scale"))) == (7, 0.5)
    with pytest.raises(InvalidCheckpointError, match="note is str, which is not read as a tensor"):
        file.read("note")


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_an_encrypted_file_is_said_to_be_one(ms: Any, tmp_path: Path, mode: str) -> None:
    path = saved_by_mindspore(
        ms, tmp_path / "m.ckpt", TENSORS, enc_key=b"0123456789ABCDEF", enc_mode=mode
    )
    with pytest.raises(InvalidCheckpointError, match="is encrypted; load it in MindSpore"):
        MindSporeCkptFile(path)


@pytest.mark.parametrize("position", [30, -1])
def test_a_byte_that_changed_is_found_by_the_crc(ms: Any, tmp_path: Path, position: int) -> None:
    tensors = {"a": np.arange(100, dtype=np.float32)}
    path = saved_by_mindspore(ms, tmp_path / "m.ckpt", tensors, crc_check=True)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    os.chmod(path, 0o600)
    path.write_bytes(data)
    file = MindSporeCkptFile(path)
    with pytest.raises(InvalidCheckpointError, match=r"m\.ckpt is not what was written: its CRC"):
        file.verify()


def test_safetensors_go_both_ways_without_more(ms: Any, tmp_path: Path) -> None:
    theirs = saved_by_mindspore(ms, tmp_path / "t.safetensors", TENSORS, format="safetensors")
    reader = TensorFiles(tmp_path)
    reader.add(theirs, read_specs(theirs))
    assert read_of(reader) == expected_of(TENSORS)
    ours = tmp_path / "o.safetensors"
    write_safetensors(ours, specs_of(TENSORS), TENSORS.items())
    loaded = ms.load_checkpoint(str(ours), format="safetensors")
    assert bytes_of(loaded) == expected_of(TENSORS)
