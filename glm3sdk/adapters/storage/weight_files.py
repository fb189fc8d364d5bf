"""The files of weights in a directory of Hugging Face layout, together as one checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from glm3sdk.adapters.storage.directory_files import member, read_json
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.adapters.storage.torch_bin import TorchBinFile
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import FLOATS

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_WEIGHTS_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"

# In the order in which they are looked for: one file, or else an index of shards, or else
# every file that a pattern fits.
_LAYOUTS = (
    (WEIGHTS_FILE, INDEX_FILE, "*.safetensors"),
    (TORCH_WEIGHTS_FILE, TORCH_INDEX_FILE, "pytorch_model*.bin"),
)


class WeightFiles:
    """The weights of a directory; a `CheckpointReader`.

    Safetensors are read where there are any, files that torch saved where there are none.
    Opening reads headers alone. No file handle stays open between reads.

    Raises:
        InvalidCheckpointError: no weights, a file that is missing or damaged, or one that
            lies elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[Path, CheckpointReader]] = {}
        self._tensors: dict[str, TensorSpec] = {}
        if not any(self._open(*layout) for layout in _LAYOUTS):
            raise InvalidCheckpointError(
                f"{path} has no *.safetensors and no {TORCH_WEIGHTS_FILE}; put the model's weights "
                "there"
            )

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return MappingProxyType(self._tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that tensors are read from, each once."""
        return tuple(dict.fromkeys(file for file, _ in self._places.values()))

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it (steps of 1), in its stored dtype.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, a dtype
                that is not read, or a file that was damaged since it was opened.
        """
        if name not in self._places:
            raise InvalidCheckpointError(f"{self._path}: no tensor {name!r} in this checkpoint")
        return self._places[name][1].read(name, index)

    def _open(self, single: str, index: str, pattern: str) -> bool:
        if member(self._path, single, InvalidCheckpointError).is_file():
            self._add(single)
            return True
        index_file = member(self._path, index, InvalidCheckpointError)
        if index_file.exists():
            self._open_shards(index_file)
            return True
        names = sorted(file.name for file in self._path.glob(pattern))
        for name in names:
            self._add(name)
        return bool(names)

    def _open_shards(self, file: Path) -> None:
        values = read_json(file, InvalidCheckpointError)
        placed = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
            raise InvalidCheckpointError(
                f"{file} has no weight_map from tensor names to file names; download it again"
            )
        for shard in sorted(set(placed.values())):
            wanted = sorted(name for name, place in placed.items() if place == shard)
            self._add(shard, wanted, index=file.name)

    def _add(self, file_name: str, wanted: Collection[str] | None = None, index: str = "") -> None:
        """List a file's tensors: all of them, or those that an index places there."""
        file = member(self._path, file_name, InvalidCheckpointError)
        if not file.is_file():
            raise InvalidCheckpointError(f"{file} is missing or not a file; download it again")
        reader = _reader(file)
        names = reader.tensors if wanted is None else wanted
        missing = [name for name in names if name not in reader.tensors]
        if missing:
            raise InvalidCheckpointError(
                f"{file} lacks {_some(missing)}, which {index} places there; download both again"
            )
        for name in names:
            if name in self._places:
                raise InvalidCheckpointError(
                    f"tensor {name} is both in {self._places[name][0]} and in {file}; "
                    "remove the file that is not the model's"
                )
            self._places[name] = file, reader
            self._tensors[name] = reader.tensors[name]


def _reader(file: Path) -> CheckpointReader:
    if file.suffix == ".bin":
        return TorchBinFile(file)
    reader = TensorFiles(file.parent, readable=FLOATS)
    reader.add(file, read_specs(file, dtypes=FLOATS))
    return reader


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
