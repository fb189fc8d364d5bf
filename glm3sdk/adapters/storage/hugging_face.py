"""Directories in Hugging Face layout: config.json, tokenizer.model and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import Glm3Error, InvalidCheckpointError, InvalidConfigError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import FLOATS

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class HuggingFaceDirectory:
    """A model directory as Hugging Face lays it out; a `CheckpointReader`.

    The weights are `model.safetensors`, or else the shards that
    `model.safetensors.index.json` names, or else every `*.safetensors` there is. Opening
    reads the headers alone. No file handle stays open between reads.

    Attributes:
        path: the directory.
        config: the model's hyper-parameters.
        tokenizer_path: its tokenizer.model, or None where there is none.

    Raises:
        InvalidConfigError: config.json is missing, unreadable or of another architecture.
        InvalidCheckpointError: no such directory, no weights, or a file that is not sound.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._weights = TensorFiles(self.path, readable=FLOATS)
        try:
            self._check_directory()
            self.config: Glm3Config = self._read_config()
            tokenizer = self._member(TOKENIZER_FILE, InvalidCheckpointError)
            self.tokenizer_path: Path | None = tokenizer if tokenizer.is_file() else None
            self._open_weights()
        except OSError as exc:
            reason = exc.strerror or exc
            raise InvalidCheckpointError(f"{self.path} cannot be opened: {reason}") from exc

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return self._weights.tensors

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it (steps of 1), in its stored dtype.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, a dtype
                that is not read, or a file that was damaged since it was opened.
        """
        return self._weights.read(name, index)

    def _check_directory(self) -> None:
        if not self.path.exists():
            raise InvalidCheckpointError(
                f"no directory {str(self.path)!r}; pass the directory that holds {CONFIG_FILE}"
            )
        if not self.path.is_dir():
            raise InvalidCheckpointError(
                f"{str(self.path)!r} is a file; pass the directory that it lies in"
            )

    def _read_config(self) -> Glm3Config:
        file = self._member(CONFIG_FILE, InvalidConfigError)
        if not file.exists():
            found = ", ".join(sorted(os.listdir(self.path))[:5]) or "nothing"
            raise InvalidConfigError(
                f"{self.path} has no {CONFIG_FILE} (it holds {found}); "
                "pass a model directory in Hugging Face layout"
            )
        try:
            return Glm3Config.from_hugging_face(_read_json(file, InvalidConfigError))
        except InvalidConfigError as exc:
            message = str(exc)
            raise InvalidConfigError(
                message if str(file) in message else f"{file}: {message}"
            ) from exc

    def _member(self, name: str, error: type[Glm3Error]) -> Path:
        """The path of a file of this directory; a name or a link that leads out is refused."""
        if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
            raise error(f"{self.path}: {name!r} is not a plain file name; nothing else is opened")
        file = self.path / name
        try:
            target, home = file.resolve(), self.path.resolve()
        except (OSError, RuntimeError) as exc:  # RuntimeError: a loop of links
            raise error(f"{file} cannot be followed: {exc}") from exc
        # The Hugging Face cache keeps the bytes in models--NAME/blobs and links to them
        # from models--NAME/snapshots/REVISION.
        cache = next((p for p in home.parents if p.name.startswith("models--")), home)
        if not target.is_relative_to(cache):
            raise error(f"{file} is a link out of its directory, to {target}; put a copy there")
        return file

    def _open_weights(self) -> None:
        if self._member(WEIGHTS_FILE, InvalidCheckpointError).is_file():
            self._add(WEIGHTS_FILE)
        elif self._member(INDEX_FILE, InvalidCheckpointError).exists():
            self._open_shards()
        else:
            names = sorted(file.name for file in self.path.glob("*.safetensors"))
            if not names:
                raise InvalidCheckpointError(f"{self.path} has no *.safetensors; {self._advice()}")
            for name in names:
                self._add(name)

    def _advice(self) -> str:
        if any(self.path.glob("pytorch_model*.bin")):
            return "its pytorch_model*.bin is not read yet: convert it to safetensors"
        return "put the model's weights there"

    def _open_shards(self) -> None:
        file = self.path / INDEX_FILE
        values = _read_json(file, InvalidCheckpointError)
        placed = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
            raise InvalidCheckpointError(
                f"{file} has no weight_map from tensor names to file names; download it again"
            )
        for shard in sorted(set(placed.values())):
            self._add(shard, {name for name, place in placed.items() if place == shard})

    def _add(self, file_name: str, wanted: set[str] | None = None) -> None:
        """List a file's tensors: all of them, or those that an index places there."""
        file = self._member(file_name, InvalidCheckpointError)
        if not file.is_file():
            raise InvalidCheckpointError(f"{file} is missing or not a file; download it again")
        found = read_specs(file, dtypes=FLOATS)
        missing = sorted((wanted or set()) - found.keys())
        if missing:
            raise InvalidCheckpointError(
                f"{file} lacks {_some(missing)}, which {INDEX_FILE} places there; download both "
                "again"
            )
        self._weights.add(file, found if wanted is None else {n: found[n] for n in sorted(wanted)})


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_json(file: Path, error: type[Glm3Error]) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise error(f"{file} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise error(f"{file} is not UTF-8 text ({exc.reason} at byte {exc.start})") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{file} is not JSON: {exc}; download it again") from exc
