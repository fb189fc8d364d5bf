"""What is stored at a path, and whether it is what was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from glm3sdk.adapters.storage.directory_files import read_json
from glm3sdk.adapters.storage.file_check import OnBytes, check_file
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE
from glm3sdk.adapters.storage.known_digests import known_digest
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.stored_model import SHARDED, StoredModel, files_of, open_stored
from glm3sdk.adapters.storage.validation import require_tensors
from glm3sdk.bootstrap.models import is_fetched, model_directory
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.published_models import PUBLISHED_MODELS
from glm3sdk.domain.weight_names import to_hugging_face
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError, UserError
from glm3sdk.services.inspection import (
    FileCheck,
    Inspection,
    find_model,
    first_not_finite,
    size_of,
)
from glm3sdk.services.run_checkpoints import CHECKPOINTS, RESULT

Progress = Callable[[int, int], None]


def inspect_model(model: str | os.PathLike[str]) -> Inspection:
    """Tell what is stored at a path or under a model's name; no tensor is read.

    Of a finetune run it is the result, or the newest checkpoint.

    Raises:
        InvalidConfigError: a config.json of another architecture.
        InvalidCheckpointError: nothing that is known is there, or it is damaged.
    """
    path = _place(model)
    notes = []
    if len(places := _places(path)) > 1 or places[0] != path:
        others = ", ".join(str(place.relative_to(path)) for place in places)
        notes.append(f"a finetune run; it holds {others}")
        path = model_directory(path)
    stored = open_stored(path)
    found = None
    if stored.kind == SHARDED:
        notes.append("sharded: glm3 checkpoint merge makes one checkpoint of the ranks' shares")
    elif stored.adapter is None:
        found = find_model(stored.reader.tensors, stored.config, to_hugging_face)
    base = path if path.is_dir() else path.parent
    adapter = stored.adapter
    return Inspection(
        path=str(path),
        format=stored.kind,
        files={
            str(file.relative_to(base)): file.stat().st_size if file.is_file() else 0
            for file in files_of(path)
        },
        tensors=dict(stored.reader.tensors),
        model=found,
        base=adapter[1] if adapter else None,
        adapter=_adapter_values(adapter[0]) if adapter else None,
        notes=tuple(notes),
    )


def verify_model(
    model: str | os.PathLike[str], *, finite: bool = False, progress: Progress | None = None
) -> Iterator[FileCheck]:
    """Check every file at a path or under a model's name, and the tensors together.

    Of a finetune run, the result and all checkpoints are checked. What is damaged is
    reported, and the rest is checked all the same.

    Args:
        model: a path, a name or a URI.
        finite: read all tensors too, and report NaNs and infinities.
        progress: told the bytes that are done, and all that there are.

    Yields:
        A finding for each file, then one for the tensors of each checkpoint, where there is
        something to compare them with.

    Raises:
        InvalidCheckpointError: nothing that is known is there, or its manifest is damaged.
    """
    root = _place(model)
    places = _places(root)
    planned = [(place, _files(place, root)) for place in places]
    sizes = (
        file.stat().st_size
        for _, files in planned
        if not isinstance(files, FileCheck)
        for file in files
        if file.is_file()
    )
    total, done = sum(sizes) * (2 if finite else 1), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done = min(done + count, total)
        if progress is not None:
            progress(done, total)

    for place, files in planned:
        label = "" if place == root else f"{place.relative_to(root)}/"
        yield from _verify_place(place, files, label, on_bytes, finite=finite)


def _verify_place(
    place: Path,
    files: dict[Path, FileEntry | None] | FileCheck,
    label: str,
    on_bytes: OnBytes,
    *,
    finite: bool,
) -> Iterator[FileCheck]:
    if isinstance(files, FileCheck):
        yield files
        return
    sound = True
    for file, entry in files.items():
        name = f"{label}{file.relative_to(place) if place.is_dir() else file.name}"
        size = file.stat().st_size if file.is_file() else 0
        try:
            compared = check_file(file, known_digest(file, entry), on_bytes)
        except UserError as exc:
            sound = False
            yield FileCheck(file=name, size=size, error=str(exc))
        else:
            yield FileCheck(file=name, size=size, compared=compared)
    if sound:
        name = f"tensors of {label.rstrip('/')}" if label else "the tensors"
        check = _verify_tensors(place, name, on_bytes, finite=finite)
        if check.state != "unknown":  # the files' own checks read their structure
            yield check


def _verify_tensors(place: Path, name: str, on_bytes: OnBytes, *, finite: bool) -> FileCheck:
    compared: tuple[str, ...] = ()
    try:
        stored = open_stored(place)
        tensors = stored.reader.tensors
        size = sum(map(size_of, tensors.values()))
        config = stored.config
        if config is not None:
            require_tensors(stored.reader, config)
            compared = (f"names and shapes of {CONFIG_FILE}",)
        elif stored.adapter is not None and (config := _base_config(stored, place)):
            _require_adapter(stored, stored.adapter[0], config, place)
            compared = ("names and shapes of the base model",)
        elif stored.adapter is None and stored.kind != SHARDED:
            compared = _as_preset(stored)
        if finite:
            bad = first_not_finite(stored.reader, on_bytes)
            if bad is not None:
                raise InvalidCheckpointError(f"{place}: tensor {bad} has a NaN or an infinity")
            compared += ("no NaN and no infinity",)
    except UserError as exc:
        return FileCheck(file=name, error=str(exc))
    return FileCheck(file=name, size=size, compared=compared)


def _files(place: Path, root: Path) -> dict[Path, FileEntry | None] | FileCheck:
    try:
        return files_of(place)
    except UserError as exc:
        if place == root:
            raise
        return FileCheck(file=str(place.relative_to(root)), error=str(exc))


def _place(model: str | os.PathLike[str]) -> Path:
    path = Path(model)
    return path if path.exists() else model_directory(model)


def _places(path: Path) -> tuple[Path, ...]:
    """The checkpoints of a finetune run; any other path itself."""
    found = [path / RESULT] if (path / RESULT).is_dir() else []
    if (path / CHECKPOINTS).is_dir():
        found += map(Path, LocalCheckpointStore().list(str(path / CHECKPOINTS)))
    return tuple(found) or (path,)


def _as_preset(stored: StoredModel) -> tuple[str, ...]:
    """What tensors without a config.json agree with: a whole model of known shapes, or nothing."""
    found = find_model(stored.reader.tensors, None, to_hugging_face)
    if found is None or not found.presets or found.missing or found.misshapen:
        return ()
    return (f"names and shapes of {found.presets[0]}",)


def _base_config(stored: StoredModel, adapter: Path) -> Glm3Config | None:
    """The hyper-parameters of an adapter's base model, where it is known or here."""
    name = stored.adapter[1] if stored.adapter else ""
    if name in PUBLISHED_MODELS:
        return PUBLISHED_MODELS[name].config
    if is_fetched(name):
        return None
    try:
        beside = adapter / name
        path = model_directory(beside if beside.is_dir() else name)
        values = read_json(path / CONFIG_FILE, InvalidConfigError)
        return Glm3Config.from_hugging_face(values)
    except UserError:
        return None


def _require_adapter(stored: StoredModel, lora: Lora, config: Glm3Config, place: Path) -> None:
    for pair in lora.pairs(config):
        for name, shape in ((pair.name_a, pair.shape_a), (pair.name_b, pair.shape_b)):
            spec = stored.reader.tensors.get(name)
            if spec is None or spec.shape != shape:
                found = "is missing" if spec is None else f"has shape {list(spec.shape)}"
                raise InvalidCheckpointError(
                    f"{place}: {name} {found}, and the base model asks for {list(shape)}"
                )


def _adapter_values(lora: Lora) -> dict[str, object]:
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
