"""Conversion of a synthetic ChatGLM3-6B both ways, against `cp` of the same bytes in the same run.

    .venv/bin/python benchmarks/checkpoint_convert.py SCRATCH [--layers N] [--source bin]

SCRATCH is a directory with twice the model's size free (26.4 GB for all 28 layers, of which
never more than 27 GB are used); what is written there is removed. The model has the real
shapes in random float16, in shards as on the Hugging Face hub: safetensors, or torch's .bin.
It is converted to MindSpore's .ckpt and back by `glm3 convert`, one step at a time, each in a
process of its own. After each step every tensor's sha256 is compared with the one that was
written first, and the step's source is removed. `cp` copies the step's source and is followed
by fsync, as ours is. Ours is timed twice: with --no-verify, and as it is by default, reading
what it wrote and comparing it. All begin with nothing of the source in memory. Prints one JSON
object; megabytes are 10**6 bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, HuggingFaceDirectory
from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile
from glm3sdk.adapters.storage.safetensors_file import write_safetensors
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.weight_names import to_hugging_face
from glm3sdk.errors import CheckpointWriteError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec

SHARD_BYTES = 2 * 10**9
BLOCK = 1 << 25  # random numbers that are made once
MARGIN_BYTES = 500 * 10**6
GLM3 = (sys.executable, "-c", "from glm3sdk.cli import main; main()")

Shapes = dict[str, tuple[int, ...]]


def values(shapes: Shapes) -> Iterator[tuple[str, HostArray]]:
    """Random float16 tensors: one block, turned differently for each and repeated."""
    block = (0.02 * np.random.default_rng(0).standard_normal(BLOCK, np.float32)).astype(np.float16)
    for number, (name, shape) in enumerate(shapes.items()):
        # A different last number too: no two tensors of one shape are alike.
        tensor = np.resize(np.roll(block, 7919 * number), math.prod(shape))
        tensor[-1] = number
        yield name, tensor.reshape(shape)


def in_shards(shapes: Shapes) -> list[Shapes]:
    """The tensors in order, in groups of at most SHARD_BYTES or one tensor."""
    shards: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        length = 2 * math.prod(shape)
        if shards[-1] and size + length > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += length
    return shards


def write_source(directory: Path, config: Glm3Config, *, torch: bool) -> dict[str, str]:
    """Write the model in Hugging Face layout; returns every tensor's sha256."""
    shards = in_shards(config.tensor_shapes())
    stem, suffix = ("pytorch_model", "bin") if torch else ("model", "safetensors")
    digests: dict[str, str] = {}
    placed: dict[str, str] = {}
    everything = values(config.tensor_shapes())
    directory.mkdir()
    for number, shard in enumerate(shards, start=1):
        path = directory / f"{stem}-{number:05}-of-{len(shards):05}.{suffix}"

        def hashed(shard: Shapes = shard) -> Iterator[tuple[str, HostArray]]:
            for _ in shard:
                name, tensor = next(everything)
                digests[name] = hashlib.sha256(tensor.data).hexdigest()
                yield name, tensor

        if torch:
            write_torch(path, shard, hashed())
        else:
            specs = {name: TensorSpec(shape, "float16") for name, shape in shard.items()}
            write_safetensors(path, specs, hashed())
        placed |= dict.fromkeys(shard, path.name)
    index = {"metadata": {"total_size": 2 * config.parameter_count}, "weight_map": placed}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_hugging_face()))
    return digests


def write_torch(path: Path, shapes: Shapes, tensors: Iterator[tuple[str, HostArray]]) -> None:
    """A file as torch.save writes one: the pickle's opcodes are put together by hand."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(*items: int) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", item) for item in items) + b"t"

    pickled = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for key, (name, shape) in enumerate(shapes.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = text("storage") + b"ctorch\nHalfStorage\n" + text(str(key)) + text("cpu")
        pickled += [
            text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage,
            b"J" + struct.pack("<i", math.prod(shape)) + b"tQJ\0\0\0\0",
            numbers(*shape) + numbers(*strides) + b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", b"".join([*pickled, b"u."]))
        for key, (_, tensor) in enumerate(tensors):
            with archive.open(f"{path.stem}/data/{key}", "w", force_zip64=True) as member:
                member.write(tensor.data)


def digests_of(reader: CheckpointReader) -> dict[str, str]:
    """Every tensor's sha256, under Hugging Face's names."""
    return {
        to_hugging_face(name): hashlib.sha256(reader.read(name).data).hexdigest()
        for name in reader.tensors
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def forget(path: Path) -> None:
    """Have the system drop what it holds of the files in memory."""
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(*command: str) -> tuple[float, int]:
    """Run a program; returns its seconds, and the bytes of memory that it had at most."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return seconds, usage.ru_maxrss * 1024


def copied(source: Path, target: Path) -> float:
    """Seconds of cp and fsync; the copy is removed."""
    forget(source)
    started = time.perf_counter()
    run("cp", "-r", "--reflink=never", str(source), str(target))
    for file in target.rglob("*") if target.is_dir() else [target]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    seconds = time.perf_counter() - started
    remove(target)
    return seconds


def remove(path: Path) -> None:
    """Remove a directory, or a file and the sum beside it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
        path.with_name(path.name + ".sha256").unlink(missing_ok=True)


def step(source: Path, target: Path, to: str, *options: str) -> dict[str, Any]:
    """Copy, convert without reading back, convert, and report."""
    size, copy_seconds = size_of(source), copied(source, target.with_name("copy"))
    convert = (*GLM3, "convert", str(source), str(target), "--to", to, *options)
    report: dict[str, Any] = {"to": to, "bytes": size, "cp": speed(size, copy_seconds)}
    for name, flags in (("unread", ("--no-verify",)), ("read_back", ())):
        if target.exists():
            remove(target)
        forget(source)
        seconds, peak = run(*convert, *flags)
        report[name] = {
            **speed(size, seconds),
            "over_cp": round(seconds / copy_seconds, 2),
            "peak_rss_gb": round(peak / 10**9, 3),
        }
    return report


def speed(size: int, seconds: float) -> dict[str, float]:
    """Seconds, and megabytes a second."""
    return {"seconds": round(seconds, 2), "mb_per_s": round(size / seconds / 10**6)}


def require_space(scratch: Path, config: Glm3Config) -> None:
    """Check that a model and its conversion fit at once.

    Raises:
        CheckpointWriteError: they do not.
    """
    needed = 2 * 2 * config.parameter_count + MARGIN_BYTES
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise CheckpointWriteError(
            f"{scratch} has {free / 10**9:.1f} GB free and {needed / 10**9:.1f} GB are needed; "
            "pass a directory on another disk, or fewer --layers"
        )


def measure(scratch: Path, config: Glm3Config, *, torch: bool) -> dict[str, Any]:
    """Convert there and back in a new directory below `scratch`, which is removed."""
    require_space(scratch, config)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="convert-") as folder:
        source, ckpt, back = (Path(folder) / name for name in ("source", "glm3.ckpt", "back"))
        started = time.perf_counter()
        written = write_source(source, config, torch=torch)
        report: dict[str, Any] = {
            "layers": config.num_layers,
            "source": "bin" if torch else "safetensors",
        }
        report["writing_the_source_seconds"] = round(time.perf_counter() - started, 2)
        steps = [step(source, ckpt, "mindspore")]
        if digests_of(MindSporeCkptFile(ckpt)) != written:
            raise SystemExit("the .ckpt holds other tensors")
        config_file = shutil.move(source / CONFIG_FILE, folder)  # a .ckpt has none
        remove(source)
        steps.append(step(ckpt, back, "safetensors", "--config", str(config_file)))
        if digests_of(HuggingFaceDirectory(back)) != written:
            raise SystemExit("what came back are other tensors")
        return {**report, "tensors_equal": len(written), "steps": steps}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="of the model  [default: 28]")
    parser.add_argument("--source", choices=("safetensors", "bin"), default="safetensors")
    arguments = parser.parse_args()
    config = attrs.evolve(Glm3Config.preset("glm3-6b"), num_layers=arguments.layers)
    try:
        report = measure(arguments.scratch, config, torch=arguments.source == "bin")
    except CheckpointWriteError as exc:
        raise SystemExit(f"error: {exc}") from exc
    print(json.dumps(report))


if __name__ == "__main__":
    main()
