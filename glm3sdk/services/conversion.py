"""Converting a checkpoint: which tensors are the model's, in which files they go, what was done."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import attrs
import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np

from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.model_fit import ModelFit, fit_model
from glm3sdk.domain.weight_names import to_hugging_face
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import DTYPES, converted

INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_NAMED = 3


@attrs.frozen
class ConvertedFile:
    """A file of a converted checkpoint: its name, bytes and sha256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@attrs.frozen(kw_only=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes:
        destination: the path or the URI of it.
        format: "hf", "mindspore", "mindspore-safetensors" or "openvino".
        tensors: how many there are.
        bytes: of the tensors' values.
        dtypes: how many tensors there are of each dtype.
        files: every file; none where the store does not tell.
        model: where the hyper-parameters came from.
        training_state: tensors of a training run's state (optimizer, counters) that were left
            out.
        unknown: names of tensors that are no part of the model and were left out.
        seconds: it took.
        verified: whether everything was read back and compared.
    """

    destination: str
    format: str
    tensors: int
    bytes: int
    dtypes: Mapping[str, int]
    files: tuple[ConvertedFile, ...]
    model: str
    training_state: int
    unknown: tuple[str, ...]
    seconds: float
    verified: bool

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return attrs.asdict(self)


class RenamedTensors:
    """A `CheckpointReader` of some of another's tensors, under other names.

    Args:
        reader: the other one.
        names: each new name, in the order that `tensors` gives, with the old one.
    """

    def __init__(self, reader: CheckpointReader, names: Mapping[str, str]) -> None:
        self._reader, self._names = reader, names
        self._tensors = {new: reader.tensors[old] for new, old in names.items()}

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's new name with its shape and dtype."""
        return MappingProxyType(self._tensors)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it, in its stored dtype.

        Raises:
            InvalidCheckpointError: no such tensor, or it cannot be read.
        """
        if name not in self._names:
            raise InvalidCheckpointError(f"no tensor {name!r} in this checkpoint")
        return self._reader.read(self._names[name], index)


@attrs.frozen(eq=False)
class ModelWeights:
    """The weights of a model among a checkpoint's tensors.

    Attributes:
        reader: the weights that are there, in the model's order, by Hugging Face's names.
        config: the model's hyper-parameters.
        presets: the presets that have these shapes, where the config was not known; it is the
            first one's.
        training_state: how many tensors belong to a training run's state.
        unknown: names of tensors that belong to nothing that is known.
    """

    reader: CheckpointReader
    config: Glm3Config
    presets: tuple[str, ...]
    training_state: int
    unknown: tuple[str, ...]


def find_weights(source: CheckpointReader, config: Glm3Config | None, label: str) -> ModelWeights:
    """Tell a model's weights from whatever else a checkpoint has.

    Args:
        source: the checkpoint, with Hugging Face's names or MindFormers'.
        config: the model's hyper-parameters; None tells them from the shapes.
        label: what to call the checkpoint in a message.

    Raises:
        InvalidCheckpointError: a weight is there under both names, the shapes are of no model
            that is known, or there are LoRA matrices.
    """
    places: dict[str, str] = {}
    for name in source.tensors:
        known = to_hugging_face(name)
        if known in places:
            raise InvalidCheckpointError(
                f"{label} has one weight twice, as {places[known]} and as {name}; remove one"
            )
        places[known] = name
    tensors = {known: source.tensors[name] for known, name in places.items()}
    fit = fit_model({name: spec.shape for name, spec in tensors.items()}, config)
    if fit is None or (config is None and not fit.presets):
        raise _not_recognised(label, fit, tuple(places.values()))
    # Text and tables, which only MindSpore's files have, are no weights.
    notes = [name for name in fit.unknown if tensors[name].dtype not in DTYPES]
    unknown = tuple(places[name] for name in fit.unknown if name not in notes)
    adapted = [name for name in unknown if "lora" in name.lower()]
    if adapted:
        raise InvalidCheckpointError(
            f"{label} has LoRA matrices ({_some(adapted)}), which would be lost; merge them into "
            "the weights first"
        )
    ordered = {name: places[name] for name in fit.config.tensor_shapes() if name in places}
    return ModelWeights(
        reader=RenamedTensors(source, ordered),
        config=fit.config,
        presets=fit.presets if config is None else (),
        training_state=len(fit.state) + len(notes),
        unknown=unknown,
    )


def plan_files(specs: Mapping[str, TensorSpec], max_bytes: int) -> dict[str, tuple[str, ...]]:
    """Lay tensors out over files as Hugging Face does, neighbours together.

    Args:
        specs: the tensors, in the model's order.
        max_bytes: of a file; a tensor that is larger has a file of its own.

    Returns:
        The names of each file's tensors.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        more = size_of(spec)
        if shards[-1] and size + more > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    if len(shards) == 1:
        return {_SINGLE_FILE: tuple(shards[0])}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": tuple(names)
        for number, names in enumerate(shards, start=1)
    }


def encode_index(files: Mapping[str, Iterable[str]], total_bytes: int) -> bytes:
    """The bytes of model.safetensors.index.json."""
    placed = {name: file for file, names in files.items() for name in names}
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: placed[name] for name in sorted(placed)},
    }
    return json.dumps(index, indent=2).encode() + b"\n"


@attrs.define(eq=False)
class Copying:
    """Tensors on their way into another checkpoint, one in memory at a time.

    Args:
        source: the weights.
        specs: what they become: the same names and shapes.
        on_bytes: told the bytes of each tensor that was read, and of each that was checked.
    """

    source: CheckpointReader
    specs: Mapping[str, TensorSpec]
    on_bytes: Callable[[int], None]
    _sums: dict[str, int] = attrs.field(init=False, factory=dict)

    def values(self, names: Iterable[str]) -> Iterator[tuple[str, HostArray]]:
        """Some of the tensors, in the dtype that they become.

        Raises:
            InvalidCheckpointError: one cannot be read, or a value is too large for the dtype.
        """
        with ThreadPoolExecutor(1) as pool:  # a tensor is summed up while it is written
            for name in names:
                dtype = self.specs[name].dtype
                value = converted("the source", name, self.source.read(name), dtype)
                value = np.ascontiguousarray(value).reshape(self.specs[name].shape)
                found = pool.submit(_sum, value)
                self.on_bytes(value.nbytes)
                yield name, value
                del value  # or it stays in memory beside the next one
                self._sums[name] = found.result()

    def check(self, written: CheckpointReader, label: str) -> None:
        """Read everything back and compare names, shapes, dtypes and bytes.

        Args:
            written: the new checkpoint.
            label: what to call it in a message.

        Raises:
            CheckpointWriteError: something differs; the message names it.
        """
        expected, found = dict(self.specs), dict(written.tensors)
        if found != expected:
            differing = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
            raise CheckpointWriteError(
                f"{label} is not what was written: {_some(differing)} came back with another name, "
                "shape or dtype; see whether the disk is sound and convert it again"
            )
        for name in self.specs:
            value = written.read(name)
            if _sum(value) != self._sums[name]:
                raise CheckpointWriteError(
                    f"{label} is not what was written: the bytes of {name} came back "
                    "changed; see whether the disk is sound and convert it again"
                )
            self.on_bytes(value.nbytes)
            del value


def size_of(spec: TensorSpec) -> int:
    """Bytes of a tensor's values."""
    return math.prod(spec.shape) * numpy_dtype(spec.dtype).itemsize


def file_order(specs: Mapping[str, TensorSpec], names: Iterable[str]) -> list[str]:
    """Names as safetensors files have them: then a file is hashed while it is written."""
    return sorted(names, key=lambda name: (-numpy_dtype(specs[name].dtype).itemsize, name))


def _sum(value: HostArray) -> int:
    """A tensor's CRC-32.

    The files' bytes are compared by their sha256; this tells whether each tensor is where it
    belongs in them, at a third of what another sha256 costs.
    """
    flat = np.ascontiguousarray(value).reshape(-1)
    return zlib.crc32(flat.view(np.uint8).data)


def _not_recognised(
    label: str, fit: ModelFit | None, names: tuple[str, ...]
) -> InvalidCheckpointError:
    if fit is None:
        return InvalidCheckpointError(
            f"{label} is not a whole ChatGLM3 (its {len(names)} tensors: {_some(names)}); pass "
            "the model's config.json to be told what is missing, or another checkpoint"
        )
    config = fit.config
    return InvalidCheckpointError(
        f"{label} has the shapes of no known model (num_layers={config.num_layers}, hidden_size="
        f"{config.hidden_size}, ffn_hidden_size={config.ffn_hidden_size}, padded_vocab_size="
        f"{config.padded_vocab_size}), and shapes do not tell the heads; pass its config.json, or "
        "put it beside"
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
