"""MindSpore's strategy files: how a run that wrote a checkpoint was spread over its ranks.

A file is a ParallelStrategyMap of MindSpore's node_strategy.proto, or, named `.json`, an object
with the same field names. It has the layouts of one stage of the pipeline, or of all of them,
merged: then a tensor's name is STAGE-NAME. Nothing is ever written into a directory that is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.storage import protobuf_wire as wire
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.errors import InvalidCheckpointError

_SUFFIXES = (".ckpt", ".json")
_MAX_BYTES = 64 * 1024 * 1024
_MAX_NAME_BYTES = 4096
_MAX_DIMS_BYTES = 1 << 20
_MERGED_NAME = re.compile(r"(?P<stage>\d{1,6})-(?P<name>.+)", re.DOTALL)

_CURRENT_STAGE, _STRATEGY_ITEM, _LAYOUT_ITEM = 1, 2, 3  # ParallelStrategyMap
_ITEM_NAME, _ITEM_CONTENT = 1, 2  # ParallelStrategyItem, ParallelLayoutItem
_STAGE = 1  # ParallelStrategys
_DIM = 1  # DevMatrix and its like
_DEV_MATRIX, _TENSOR_MAP, _PARAM_SPLIT_SHAPE, _INDICES_OFFSET = 1, 2, 3, 4  # ParallelLayouts
_FIELD, _SHARD_STEP, _SHARD_SIZE = 5, 6, 7


@attrs.define
class _Content:
    """What a file says: the stage of its first operator, and the tensors' layouts."""

    stage: int = 0
    layouts: dict[str, Layout] = attrs.field(factory=dict)


def read_strategy(path: str | os.PathLike[str]) -> Strategy:
    """Read a strategy.

    Args:
        path: a file, of one stage or merged, or a directory of such files (`*.ckpt`, `*.json`),
            such as the one that a run left; it may name a stage often, if always the same way.

    Raises:
        InvalidCheckpointError: nothing there, a file that is no strategy, files that contradict
            each other, or a stage that is missing.
    """
    path = Path(path)
    stages: dict[int, dict[str, Layout]] = {}
    origin: dict[int, Path] = {}
    for file in _files(path):
        for stage, layouts in _by_stage(file, _read(file)).items():
            if stages.setdefault(stage, layouts) != layouts:
                raise InvalidCheckpointError(
                    f"{origin[stage]} and {file} lay stage {stage} out differently; "
                    "keep the files of one run"
                )
            origin.setdefault(stage, file)
    missing = next(stage for stage in range(len(stages) + 1) if stage not in stages)
    if missing < len(stages):
        raise InvalidCheckpointError(
            f"{path} has stage {max(stages)} of the pipeline and lacks stage {missing}; "
            "pass a directory with the files of all stages, or the merged file"
        )
    try:
        return Strategy(tuple(_spread(stages)[stage] for stage in sorted(stages)))
    except InvalidCheckpointError as exc:
        raise InvalidCheckpointError(f"{path}: {exc}") from exc


def decode_strategy(data: bytes, name: str) -> Strategy:
    """Read the bytes of a strategy file of all stages.

    Args:
        data: the bytes.
        name: of the file, for messages; one that ends in .json is an object of that form.

    Raises:
        InvalidCheckpointError: it is no strategy.
    """
    file = Path(name)
    stages = _spread(_by_stage(file, _parsed(file, data)))
    return Strategy(tuple(stages[stage] for stage in sorted(stages)))


def encode_strategy(strategy: Strategy) -> bytes:
    """The bytes of a strategy file of all stages, as MindSpore's own merge writes them."""
    if len(strategy.stages) == 1:
        return encode_stage(strategy.stages[0], stage=0)
    items = [_strategy_item(stage) for stage in range(len(strategy.stages))]
    items += [
        _layout_item(f"{stage}-{name}", layout)
        for stage, layouts in enumerate(strategy.stages)
        for name, layout in layouts.items()
    ]
    return wire.integer_field(_CURRENT_STAGE, 1) + b"".join(items)


def encode_stage(layouts: Mapping[str, Layout], *, stage: int) -> bytes:
    """The bytes of the strategy file of one stage, as a MindSpore run writes it."""
    items = [_layout_item(name, layout) for name, layout in layouts.items()]
    return wire.integer_field(_CURRENT_STAGE, 1) + b"".join((_strategy_item(stage), *items))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidCheckpointError(
            f"there is no strategy at {path}; pass a file, or the directory of a run's files"
        )
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise InvalidCheckpointError(
            f"{path} holds no strategy file ({' or '.join('*' + end for end in _SUFFIXES)}); "
            "pass another directory"
        )
    return files


def _read(file: Path) -> _Content:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _not_a_strategy(file, f"it is longer than {_MAX_BYTES} bytes")
        data = file.read_bytes()
    except OSError as exc:
        raise InvalidCheckpointError(f"{file} cannot be read: {exc.strerror or exc}") from exc
    return _parsed(file, data)


def _parsed(file: Path, data: bytes) -> _Content:
    try:
        content = _from_json(data) if file.suffix == ".json" else _from_protobuf(data)
    except InvalidCheckpointError as exc:
        raise InvalidCheckpointError(f"{file}: {exc}") from exc
    except (wire.WireError, ValueError, RecursionError) as exc:
        raise _not_a_strategy(file, str(exc)) from exc
    if not content.layouts:
        raise _not_a_strategy(file, "it lists no tensors")
    return content


def _by_stage(file: Path, content: _Content) -> dict[int, dict[str, Layout]]:
    matches = {name: _MERGED_NAME.fullmatch(name) for name in content.layouts}
    stages: dict[int, dict[str, Layout]] = {}
    if not any(matches.values()):
        stages[content.stage] = content.layouts
        return stages
    for name, match in matches.items():
        if match is None:
            raise _not_a_strategy(file, f"tensor {name} has no stage, and others have one")
        stages.setdefault(int(match["stage"]), {})[match["name"]] = content.layouts[name]
    return stages


def _spread(stages: dict[int, dict[str, Layout]]) -> dict[int, dict[str, Layout]]:
    """The stages, with tensors that are on no device matrix on all devices of their stage."""
    devices = max(layout.devices for part in stages.values() for layout in part.values())
    return {
        stage: {
            name: layout if layout.dev_matrix else attrs.evolve(layout, dev_matrix=(devices,))
            for name, layout in part.items()
        }
        for stage, part in stages.items()
    }


def _from_protobuf(data: bytes) -> _Content:
    source, content, first = wire.MemorySource(data), _Content(), True
    for field in wire.fields(source):
        if field.number == _STRATEGY_ITEM and first:
            first = False
            _, strategys = _item(source, field)
            for part in wire.fields(source, strategys.start, strategys.stop):
                if part.number == _STAGE:
                    content.stage = _integer(source, part)
        elif field.number == _LAYOUT_ITEM:
            name, layouts = _item(source, field)
            _add(content, name, _layout_fields(source, layouts))
    return content


def _item(source: wire.Source, item: wire.Field) -> tuple[str, wire.Field]:
    """A named message: its name, and where the message is."""
    _require_message(item)
    name, content = None, None
    for field in wire.fields(source, item.start, item.stop):
        if field.number == _ITEM_NAME:
            name = wire.read_text(source, field, _MAX_NAME_BYTES)
        elif field.number == _ITEM_CONTENT:
            _require_message(field)
            content = field
    if name is None or content is None:
        raise wire.WireError(f"the item at byte {item.start} has no name or no content")
    return name, content


def _layout_fields(source: wire.Source, layouts: wire.Field) -> dict[str, Any]:
    """A layout's fields as the JSON form has them."""
    lists: dict[int, list[list[int]]] = {}
    numbers: dict[int, int] = {}
    for field in wire.fields(source, layouts.start, layouts.stop):
        if field.number in (_FIELD, _SHARD_STEP, _SHARD_SIZE):
            numbers[field.number] = _integer(source, field)
        elif field.number <= _INDICES_OFFSET:
            _require_message(field)
            dims: list[int] = []
            for part in wire.fields(source, field.start, field.stop):
                if part.number == _DIM:
                    dims += wire.read_integers(source, part, _MAX_DIMS_BYTES)
            lists.setdefault(field.number, []).append(dims)
    # A map for each dimension is how a dimension that several axes split is written.
    maps = lists.get(_TENSOR_MAP, [[]])
    return {
        "dev_matrix": lists.get(_DEV_MATRIX, [[]])[0],
        "tensor_map": maps[0] if len(maps) == 1 else [axes for axes in maps if axes],
        "param_split_shape": lists.get(_PARAM_SPLIT_SHAPE, [[]])[0],
        "indices_offset": lists.get(_INDICES_OFFSET, [[]])[0],
        "field": numbers.get(_FIELD, 0),
        "opt_weight_shard_step": numbers.get(_SHARD_STEP, 0),
        "opt_weight_shard_size": numbers.get(_SHARD_SIZE, 0),
    }


def _from_json(data: bytes) -> _Content:
    values = json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    layouts = values.get("parallel_layout_item") if isinstance(values, dict) else None
    if not isinstance(layouts, dict):
        raise ValueError("it is not an object with parallel_layout_item, an object")
    content = _Content()
    operators = values.get("parallel_strategy_item") or {}
    for operator in list(operators.values())[:1] if isinstance(operators, dict) else ():
        stage = operator.get("stage", 0) if isinstance(operator, dict) else None
        if type(stage) is not int or stage < 0:
            raise ValueError(f"parallel_strategy_item has the stage {stage!r}")
        content.stage = stage
    for name, layout in layouts.items():
        if not isinstance(layout, dict):
            raise ValueError(f"the layout of tensor {name} is not an object")
        _add(content, name, layout)
    return content


def _add(content: _Content, name: str, values: Mapping[str, Any]) -> None:
    if not name or name in content.layouts:
        raise ValueError(f"tensor {name!r} is there twice, or has no name")
    unused = ("param_split_shape", "indices_offset")
    lists = {
        key: values.get(key, [] if key in unused else None)
        for key in ("dev_matrix", "tensor_map", *unused)
    }
    numbers = {
        key: values.get(key, 0)
        for key in ("field", "opt_weight_shard_step", "opt_weight_shard_size")
    }
    for key, value in lists.items():
        if not _integers(value, nested=key == "tensor_map"):
            raise ValueError(f"tensor {name} has the {key} {value!r}, which is no list of integers")
    for key, number in numbers.items():
        if type(number) is not int:
            raise ValueError(f"tensor {name} has the {key} {number!r}, which is no integer")
    if numbers.pop("field"):
        raise InvalidCheckpointError(
            f"tensor {name} is split by fields, as recommender networks' tables are; "
            "that is not read: merge it with MindSpore"
        )
    try:
        content.layouts[name] = Layout(**lists, **numbers)
    except InvalidCheckpointError as exc:
        raise InvalidCheckpointError(f"tensor {name}: {exc}") from exc


def _integers(value: Any, *, nested: bool) -> bool:
    return isinstance(value, list) and all(
        type(part) is int or (nested and _integers(part, nested=False)) for part in value
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice")
    return content


def _strategy_item(stage: int) -> bytes:
    # MindSpore's merge takes the stage from a file's first operator.
    operator = wire.bytes_field(_ITEM_NAME, f"stage_{stage}".encode())
    strategys = wire.integer_field(_STAGE, stage)
    return wire.bytes_field(_STRATEGY_ITEM, operator + wire.bytes_field(_ITEM_CONTENT, strategys))


def _layout_item(name: str, layout: Layout) -> bytes:
    nested = any(len(axes) > 1 for axes in layout.tensor_map)
    axes = [list(part) or [-1] for part in layout.tensor_map]
    maps = axes if nested else [[axis for part in axes for axis in part]]
    content = b"".join(
        wire.bytes_field(number, wire.integer_fields(_DIM, dims))
        for number, dims in (
            (_DEV_MATRIX, layout.dev_matrix),
            *((_TENSOR_MAP, part) for part in maps),
            (_PARAM_SPLIT_SHAPE, layout.param_split_shape),
            (_INDICES_OFFSET, layout.indices_offset),
        )
    )
    content += wire.integer_field(_FIELD, 0)
    content += wire.integer_field(_SHARD_STEP, layout.opt_weight_shard_step)
    content += wire.integer_field(_SHARD_SIZE, layout.opt_weight_shard_size)
    item = wire.bytes_field(_ITEM_NAME, name.encode()) + wire.bytes_field(_ITEM_CONTENT, content)
    return wire.bytes_field(_LAYOUT_ITEM, item)


def _integer(source: wire.Source, field: wire.Field) -> int:
    numbers = wire.read_integers(source, field, _MAX_DIMS_BYTES)
    if len(numbers) != 1:
        raise wire.WireError(f"field {field.number} at byte {field.start} is no number")
    return numbers[0]


def _require_message(field: wire.Field) -> None:
    if field.type != wire.BYTES:
        raise wire.WireError(f"field {field.number} at byte {field.start} is no message")


def _not_a_strategy(file: Path, why: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(
        f"{file} is truncated or no strategy file: {why}; pass a file of MindSpore's, "
        "protobuf or named .json"
    )
