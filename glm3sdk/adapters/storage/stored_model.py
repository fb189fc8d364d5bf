"""Whatever the SDK reads tensors from, told by what is at a path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open

from glm3sdk.adapters.storage.directory_files import member, read_json
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, HuggingFaceDirectory
from glm3sdk.adapters.storage.local_checkpoint import LocalCheckpoint, reading
from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry, read_manifest
from glm3sdk.adapters.storage.mindspore_ckpt import CKPT_SUFFIX
from glm3sdk.adapters.storage.rank_files import find_rank_files
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.adapters.storage.tensor_file import DIGEST_SUFFIX, open_tensor_file
from glm3sdk.adapters.storage.torch_bin import TorchBinFile
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.weight_names import to_hugging_face
from glm3sdk.errors import Glm3Error, InvalidCheckpointError, InvalidConfigError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import TENSOR_SUFFIX

HUGGING_FACE, PUBLISHED, LORA, SHARDED = "hugging-face", "published", "lora", "sharded"
MINDSPORE, MINDSPORE_SAFETENSORS = "mindspore", "mindspore-safetensors"
SAFETENSORS, TORCH = "safetensors", "torch"

_TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_SUFFIXES = (CKPT_SUFFIX, TENSOR_SUFFIX, *_TORCH_SUFFIXES)


@attrs.frozen(kw_only=True)
class StoredModel:
    """Tensors at a path, and what is said about them there.

    Attributes:
        kind: one of this module's names of formats.
        reader: the tensors; a sharded checkpoint's are called rank_N/NAME.
        config: the model's hyper-parameters, where they are there.
        adapter: a LoRA adapter's shape and the name of its base model.
    """

    kind: str
    reader: CheckpointReader
    config: Glm3Config | None = None
    adapter: tuple[Lora, str] | None = None


def open_tensors(file: Path) -> CheckpointReader | None:
    """Open one file of tensors; None where its name says that it is something else.

    Raises:
        InvalidCheckpointError: it is damaged, or not what its name says.
    """
    if file.suffix in _TORCH_SUFFIXES:
        return TorchBinFile(file)
    return open_tensor_file(file) if file.suffix in _SUFFIXES else None


def open_stored(path: Path) -> StoredModel:
    """Open what is at a path: names, shapes and dtypes are read, no tensor.

    Raises:
        InvalidConfigError: a config.json of another architecture.
        InvalidCheckpointError: nothing that is known is there, or it is damaged.
    """
    with reading(path):
        if not path.is_dir():
            return _open_file(path)
        kind = kind_of(path)
        if kind == SHARDED:
            return StoredModel(kind=kind, reader=_Ranks(find_rank_files(path)))
        if kind == HUGGING_FACE:
            directory = HuggingFaceDirectory(path)
            return StoredModel(kind=kind, reader=directory, config=directory.config)
        if not (path / MANIFEST_FILE).is_file():
            adapter = Lora.from_peft(_values(path, ADAPTER_CONFIG, InvalidCheckpointError))
            return StoredModel(kind=kind, reader=_adapter_tensors(path), adapter=adapter)
        return _published(path, kind)


def kind_of(directory: Path) -> str:
    """What a directory holds.

    Raises:
        InvalidCheckpointError: nothing that is known.
        OSError: it cannot be read.
    """
    if (directory / "rank_0").is_dir():
        return SHARDED
    published = (directory / MANIFEST_FILE).is_file()
    folder = directory / read_manifest(directory).directory if published else directory
    if (folder / ADAPTER_CONFIG).is_file():
        return LORA
    if published:
        return PUBLISHED
    if (directory / CONFIG_FILE).is_file():
        return HUGGING_FACE
    names = sorted(os.listdir(directory))
    found = [name for name in names if name.endswith(_SUFFIXES)] or names
    raise InvalidCheckpointError(
        f"{directory} has no {CONFIG_FILE}, {ADAPTER_CONFIG}, {MANIFEST_FILE} or rank_0 (it holds "
        f"{', '.join(found[:5]) or 'nothing'}); pass a model's directory, or a file of tensors"
    )


def files_of(path: Path) -> dict[Path, FileEntry | None]:
    """The files that belong to what is at a path, each with its manifest's entry.

    Files that a manifest names may be missing. Hidden files, and those that hold the sums of
    others, do not belong to it.

    Raises:
        InvalidCheckpointError: nothing that is known is there.
    """
    with reading(path):
        if not path.is_dir():
            _require_known(path)
            return {path: None}
        if kind_of(path) == SHARDED:
            return dict.fromkeys(find_rank_files(path))
        if (path / MANIFEST_FILE).is_file():
            manifest = read_manifest(path)
            folder = path / manifest.directory
            return {folder / name: manifest.files[name] for name in sorted(manifest.files)}
        return {
            member(path, file.name, InvalidCheckpointError): None
            for file in sorted(path.iterdir())
            if file.is_file() and file.name[0] != "." and file.suffix != DIGEST_SUFFIX
        }


def _require_known(file: Path) -> None:
    if not file.exists() or file.suffix not in _SUFFIXES:
        what = "is not known" if file.exists() else "is not there"
        raise InvalidCheckpointError(
            f"{file} {what}; pass a directory, or a file that ends in {', '.join(_SUFFIXES)}"
        )


def _open_file(path: Path) -> StoredModel:
    _require_known(path)
    if path.suffix in _TORCH_SUFFIXES:
        return StoredModel(kind=TORCH, reader=TorchBinFile(path))
    tensors = open_tensor_file(path)
    if path.suffix == CKPT_SUFFIX:
        return StoredModel(kind=MINDSPORE, reader=tensors)
    renamed = any(to_hugging_face(name) != name for name in tensors.tensors)
    kind = MINDSPORE_SAFETENSORS if renamed or _written_for(path) == "ms" else SAFETENSORS
    return StoredModel(kind=kind, reader=tensors)


def _written_for(path: Path) -> str | None:
    """The framework that a safetensors file says it was written for."""
    try:
        with safe_open(path, framework="numpy") as opened:
            return (opened.metadata() or {}).get("format")
    except (SafetensorError, OSError) as exc:
        raise InvalidCheckpointError(f"{path} cannot be read: {exc}") from exc


def _published(path: Path, kind: str) -> StoredModel:
    checkpoint = LocalCheckpoint(path)
    folder = path / read_manifest(path).directory
    for name in {ADAPTER_CONFIG, CONFIG_FILE} & set(checkpoint.files):
        checkpoint.read_file(name)  # compares it with the manifest
    if kind == LORA:
        adapter = Lora.from_peft(_values(folder, ADAPTER_CONFIG, InvalidCheckpointError))
        return StoredModel(kind=kind, reader=checkpoint, adapter=adapter)
    if CONFIG_FILE not in checkpoint.files:
        return StoredModel(kind=kind, reader=checkpoint)
    if not checkpoint.tensors:  # a fetched model whose weights are torch's
        directory = HuggingFaceDirectory(folder)
        return StoredModel(kind=kind, reader=directory, config=directory.config)
    config = Glm3Config.from_hugging_face(_values(folder, CONFIG_FILE, InvalidConfigError))
    return StoredModel(kind=kind, reader=checkpoint, config=config)


def _values(directory: Path, name: str, error: type[Glm3Error]) -> Any:
    return read_json(member(directory, name, error), error)


def _adapter_tensors(path: Path) -> TensorFiles:
    file = member(path, ADAPTER_TENSORS, InvalidCheckpointError)
    tensors = TensorFiles(path)
    tensors.add(file, read_specs(file))
    return tensors


class _Ranks:
    """The tensors of all ranks under the names rank_N/NAME."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._readers = {file.parent.name: open_tensor_file(file) for file in files}

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {
            f"{rank}/{name}": spec
            for rank, reader in self._readers.items()
            for name, spec in reader.tensors.items()
        }

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        rank, _, tensor = name.partition("/")
        return self._readers[rank].read(tensor, index)
