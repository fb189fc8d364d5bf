"""A model converted from one format to another, a tensor at a time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE
from glm3sdk.adapters.storage.local import local_path
from glm3sdk.adapters.storage.local_checkpoint import reading
from glm3sdk.adapters.storage.manifest import (
    MANIFEST_FILE,
    FileEntry,
    digest_file,
    parse_manifest,
)
from glm3sdk.adapters.storage.mindspore_ckpt import CKPT_SUFFIX, write_mindspore_ckpt
from glm3sdk.adapters.storage.rank_files import new_file, require_absent
from glm3sdk.adapters.storage.safetensors_file import write_safetensors
from glm3sdk.adapters.storage.staged_writer import write_through
from glm3sdk.adapters.storage.tensor_file import DIGEST_SUFFIX, forget_pages, open_tensor_file
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.bootstrap.conversion_source import ConversionSource, open_source
from glm3sdk.bootstrap.storage import (
    LOCAL_SCHEME,
    blob_store,
    checkpoint_store,
    has_blob_store,
    scheme_of,
)
from glm3sdk.domain.weight_names import to_mindformers
from glm3sdk.errors import (
    CheckpointWriteError,
    Glm3Error,
    InvalidCheckpointError,
    UnsupportedOptionError,
)
from glm3sdk.ports.checkpoint_store import CheckpointReader, CheckpointStore, TensorSpec
from glm3sdk.ports.tensor_values import TENSOR_SUFFIX
from glm3sdk.services.conversion import (
    INDEX_FILE,
    ConversionReport,
    ConvertedFile,
    Copying,
    RenamedTensors,
    encode_index,
    file_order,
    plan_files,
    size_of,
)

HUGGING_FACE, MINDSPORE, MINDSPORE_SAFETENSORS = "hf", "mindspore", "mindspore-safetensors"
FORMATS = (HUGGING_FACE, "safetensors", MINDSPORE, MINDSPORE_SAFETENSORS)
DTYPES = ("float16", "bfloat16", "float32")
DEFAULT_SHARD_BYTES = 2 * 10**9

_SUFFIXES = {MINDSPORE: CKPT_SUFFIX, MINDSPORE_SAFETENSORS: TENSOR_SUFFIX}
_SLACK = 16 * 1024 * 1024  # headers, the index, the tokenizer
_GB = 10**9

Progress = Callable[[str, int, int], None]
"""Is told what is done ("reading" of what has known sums, "writing", "checking"), how many bytes
of it are, and of how many."""


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str,
    dtype: str | None = None,
    config: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    strategy: str | os.PathLike[str] | None = None,
    check_replicas: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write a model in another format. It appears when it is whole and was read back.

    Files of the source whose sha256 is known (as `verify_model` finds it) are compared first.

    Memory: a tensor and its converted copy, or two neighbouring tensors.

    Args:
        source: what `load_service` opens (a directory, a finetune run, a LoRA adapter, a name,
            a URI), or a .ckpt, .safetensors or .bin file, or the directory of one.
        destination: where nothing is yet; for "hf" a directory or a URI of one, else a file.
        to: "hf" (or "safetensors"): a directory that `load_service` opens; "mindspore": a .ckpt
            file with MindFormers' names; "mindspore-safetensors": a .safetensors file with them.
        dtype: "float16", "bfloat16" or "float32"; None keeps each tensor's own.
        config: a config.json, the directory of one, or a preset's name, for a source that has
            none beside it.
        max_shard_bytes: of a safetensors file of a directory.
        strategy: the strategy of the run that wrote a sharded source (rank_0, rank_1, ...), which
            is merged while it is read.
        check_replicas: with `verify`, compare all replicas of such a source; else the lowest
            rank's is taken.
        verify: compare the source with the sha256 that are known, read everything back and
            compare names, shapes, dtypes and sums.
        progress: is told of every tensor.

    Returns:
        What was written and left out, the files with their sha256, and what was verified.

    Raises:
        InvalidConfigError: a config.json that cannot be used.
        InvalidCheckpointError: a source that cannot be used, something is at the destination,
            or a value is too large for the dtype.
        UnsafeCheckpointError: the source asks for code to be run; nothing was.
        CheckpointWriteError: no room, no permission, or it did not read back; nothing is left.
    """
    began = time.monotonic()
    target = os.fspath(destination)
    if to not in FORMATS or dtype not in (None, *DTYPES):
        raise UnsupportedOptionError(
            f"cannot convert to {to!r} in {dtype!r}; pass one of {', '.join(FORMATS)} and one of "
            f"{', '.join(DTYPES)}, or no dtype"
        )
    if max_shard_bytes < 1:
        raise UnsupportedOptionError(f"files of {max_shard_bytes} bytes hold nothing; pass more")
    kind = HUGGING_FACE if to == "safetensors" else to
    if kind == HUGGING_FACE:
        require_nothing_at(target)
    else:
        target = str(_file_target(target, kind))
    opened = open_source(source, config, strategy=strategy, check_replicas=check_replicas)
    if verify:
        opened.check(partial(progress, "reading") if progress else lambda *_: None)
    weights, own_dtype = opened.weights, dtype or opened.dtype
    reader: CheckpointReader = weights.reader
    if kind != HUGGING_FACE:
        reader = RenamedTensors(reader, {to_mindformers(name): name for name in reader.tensors})
    specs = {
        name: TensorSpec(spec.shape, own_dtype or spec.dtype)
        for name, spec in reader.tensors.items()
    }
    total = sum(map(size_of, specs.values()))
    copying = Copying(reader, specs, _Meter(total, progress).add)
    if kind == HUGGING_FACE:
        files = _write_directory(target, opened, copying, max_shard_bytes, verify=verify)
    else:
        files = _write_file(Path(target), kind, copying, verify=verify)
    dtypes = [spec.dtype for spec in specs.values()]
    return ConversionReport(
        destination=target,
        format=kind,
        tensors=len(specs),
        bytes=total,
        dtypes={name: dtypes.count(name) for name in sorted(set(dtypes))},
        files=tuple(ConvertedFile(name, e.size, e.sha256) for name, e in sorted(files.items())),
        model=opened.model,
        training_state=weights.training_state,
        unknown=weights.unknown,
        seconds=time.monotonic() - began,
        verified=verify,
    )


def _write_directory(
    uri: str, opened: ConversionSource, copying: Copying, max_bytes: int, *, verify: bool
) -> Mapping[str, FileEntry]:
    store, specs = checkpoint_store(uri), copying.specs
    total = sum(map(size_of, specs.values()))
    folder = folder_of(store, uri)
    if folder is not None:
        require_space(folder, total, uri)
    writer = store.create(uri)
    publishing = False
    try:
        writer.add_file(CONFIG_FILE, _config(opened, specs))
        for name, data in opened.files.items():
            writer.add_file(name, data)
        plan = plan_files(specs, max_bytes)
        for file, names in plan.items():
            chosen = {name: specs[name] for name in names}
            writer.add_tensors(file, chosen, copying.values(file_order(specs, names)))
        if len(plan) > 1:
            writer.add_file(INDEX_FILE, encode_index(plan, total))
        publishing = True
        writer.commit()
        if verify:
            if scheme_of(uri) == LOCAL_SCHEME:
                for name in plan:
                    forget_pages(local_path(uri) / name)
            stored = store.open(uri)
            stored.verify()
            copying.check(stored, uri)
        return entries_of(uri)
    except BaseException:
        writer.abort()
        if publishing:
            with suppress(Glm3Error):
                store.delete(uri)
        raise


def _write_file(
    path: Path, kind: str, copying: Copying, *, verify: bool
) -> Mapping[str, FileEntry]:
    specs = copying.specs
    require_space(path.parent, sum(map(size_of, specs.values())), str(path))
    with new_file(path) as part:
        if kind == MINDSPORE:
            entry = write_mindspore_ckpt(part, specs, copying.values(specs))
        else:
            values = copying.values(file_order(specs, specs))
            entry = write_safetensors(part, specs, values, framework="ms")
        if verify:
            with writing(part):
                forget_pages(part)
                found = digest_file(part)
            if found != entry:
                raise CheckpointWriteError(
                    f"{path} is not what was written: its sha256 is {found.sha256}, and what was "
                    f"written has {entry.sha256}; see whether the disk is sound"
                )
            copying.check(open_tensor_file(part), str(path))
        beside = part.with_name(part.name + DIGEST_SUFFIX)
        write_through(beside, f"{entry.sha256}  {path.name}\n".encode())
    return {path.name: entry}


class _Meter:
    """Counts the bytes that were written, and then those that were checked."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            checked = self._done - self._total
            stage, done = ("checking", checked) if checked > 0 else ("writing", self._done)
            self._progress(stage, done, self._total)


def _config(opened: ConversionSource, specs: Mapping[str, TensorSpec]) -> bytes:
    dtypes = {spec.dtype for spec in specs.values()}
    values = {name: value for name, value in opened.config.items() if name != "torch_dtype"}
    if len(dtypes) == 1:
        values["torch_dtype"] = dtypes.pop()
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


def _file_target(destination: str, kind: str) -> Path:
    suffix = _SUFFIXES[kind]
    if scheme_of(destination) != LOCAL_SCHEME:
        raise InvalidCheckpointError(
            f"{destination!r} is not local, and {kind} is one local file; write it here and copy "
            "it, or convert to hf"
        )
    path = local_path(destination, of_checkpoint=True)
    if path.is_dir():
        raise InvalidCheckpointError(
            f"{path} is a directory, and {kind} is one file; pass {path / f'model{suffix}'}"
        )
    if path.suffix != suffix:
        raise InvalidCheckpointError(f"{path} does not end in {suffix}, as {kind} files do")
    return path


def require_nothing_at(uri: str) -> None:
    """Check that nothing would be written over.

    Raises:
        InvalidCheckpointError: something is there, other than an empty directory.
    """
    if scheme_of(uri) == LOCAL_SCHEME:
        path = local_path(uri, of_checkpoint=True)
        with reading(path):
            require_absent(path)
        return
    store = checkpoint_store(uri)
    if isinstance(store, BlobCheckpointStore):  # what a killed conversion sent is gone on with
        free = store.is_free(uri)
    else:
        free = uri.rstrip("/") not in store.list(uri.rstrip("/").rpartition("/")[0])
    if not free:
        raise InvalidCheckpointError(f"{uri} is there already; remove it or pass another URI")


def folder_of(store: CheckpointStore, uri: str) -> Path | None:
    """Where on a local disk a checkpoint is put together; None where the store does not tell."""
    if scheme_of(uri) == LOCAL_SCHEME:
        return local_path(uri).parent
    return store.staging if isinstance(store, BlobCheckpointStore) else None


def require_space(folder: Path, size: int, target: str) -> None:
    """Check that a disk has room for so many bytes.

    Raises:
        CheckpointWriteError: it has not; the message has the figures.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    with writing(place):
        disk = shutil.disk_usage(place)
    free = disk.free
    if not disk.total:  # /proc and its like
        raise CheckpointWriteError(f"{place} can hold no files: write {target} elsewhere")
    if free < size + _SLACK:
        raise CheckpointWriteError(
            f"{place} has {free / _GB:.2f} GB free and {target} takes {size / _GB:.2f} GB; free "
            "some space there or write elsewhere"
        )


def entries_of(uri: str) -> Mapping[str, FileEntry]:
    """The files that the manifest of what was written names."""
    if not has_blob_store(uri):
        return {}
    blobs, manifest = blob_store(uri), f"{uri.rstrip('/')}/{MANIFEST_FILE}"
    blob = blobs.stat(manifest)
    if blob is None:
        raise CheckpointWriteError(f"{manifest} was written and is gone; convert it again")
    return parse_manifest(blobs.read(blob, 0, blob.size), manifest).files
