"""Fuzzed parsers of tensor files."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.numpy
from reference.torch_files import pickled, tensor, write_torch

from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.adapters.storage.safetensors_header import header_length, parse_header
from glm3sdk.adapters.storage.strategy_file import encode_strategy, read_strategy
from glm3sdk.adapters.storage.torch_bin import TorchBinFile
from glm3sdk.adapters.storage.torch_pickle import read_tensors
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.errors import Glm3Error
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from soak.fuzz_inputs import ARRAYS, Target, file, folder


def read_all(reader: CheckpointReader) -> None:
    for name, spec in reader.tensors.items():
        # A shape may claim more than any file of this size holds; its header may not.
        value = reader.read(name)
        assert value.shape == spec.shape, (name, value.shape, spec.shape)


def safetensors_file(data: bytes) -> None:
    path = file("model.safetensors", data)
    files = TensorFiles(folder())
    files.add(path, read_specs(path))
    read_all(files)


def safetensors_header(data: bytes) -> None:
    length = header_length(data[:8], len(data), "model.safetensors")
    parse_header(data[8 : 8 + length], len(data), "model.safetensors")


def safetensors_files() -> dict[str, bytes]:
    header = b'{"a":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}'
    return {
        "two": safetensors.numpy.save(ARRAYS, {"format": "pt"}),
        "empty": len(header).to_bytes(8, "little") + header,
    }


def ckpt(data: bytes) -> None:
    reader = MindSporeCkptFile(file("model.ckpt", data))
    read_all(reader)
    reader.verify()


def ckpts() -> dict[str, bytes]:
    # MindSpore would write the same, and takes seconds to start: see its own golden tests.
    specs = {name: TensorSpec(value.shape, value.dtype.name) for name, value in ARRAYS.items()}
    write_mindspore_ckpt(folder() / "seed.ckpt", specs, ARRAYS.items())
    return {"two": (folder() / "seed.ckpt").read_bytes()}


def torch_pickle(data: bytes) -> None:
    read_tensors(data, "model.bin")


def torch_pickles() -> dict[str, bytes]:
    codes = {"a": tensor("0", (2, 3)), "b": tensor("1", (4,), dtype="float16", offset=1, size=9)}
    return {"two": pickled(codes), "none": b"\x80\x02}.", "code": b"cos\nsystem\n(S'true'\ntR."}


def torch_bin(data: bytes) -> None:
    read_all(TorchBinFile(file("model.bin", data)))


def torch_bins() -> dict[str, bytes]:
    write_torch(folder() / "seed.bin", ARRAYS)
    golden = Path(__file__).parents[1] / "tests" / "golden"
    real = {path.name: path.read_bytes() for path in golden.glob("torch_*.bin")}
    small = {name: data for name, data in real.items() if len(data) < 20_000}
    return {**small, "two": (folder() / "seed.bin").read_bytes()}


def strategy(data: bytes) -> None:
    for name in ("strategy.ckpt", "strategy.json"):
        try:
            assert read_strategy(file(name, data)).world_size > 0
        except Glm3Error:
            continue


def strategies() -> dict[str, bytes]:
    layout = Layout([2, 2], [0, -1], opt_weight_shard_step=2, opt_weight_shard_size=2)
    values = {"dev_matrix": [2, 2], "tensor_map": [0, -1], "field": 0}
    return {
        "protobuf": encode_strategy(Strategy(({"w": layout}, {"b": layout}))),
        "json": json.dumps({"parallel_layout_item": {"w": values}}).encode(),
    }


TARGETS = {
    "safetensors": Target(safetensors_file, safetensors_files, ("F8_E4M3", "__metadata__")),
    "safetensors_header": Target(
        safetensors_header, safetensors_files, ("F8_E4M3", "__metadata__")
    ),
    "ckpt": Target(ckpt, ckpts, ("BFloat16", "Float32", "Int4")),
    "torch_pickle": Target(torch_pickle, torch_pickles, ("cbuiltins\neval\n", "\x93", "\x94")),
    "torch_bin": Target(torch_bin, torch_bins, ("data.pkl", "PK\x01\x02", "PK\x06\x06")),
    "strategy": Target(strategy, strategies, ("parallel_group_map", "stage")),
}
