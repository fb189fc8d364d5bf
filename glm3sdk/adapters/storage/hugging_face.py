"""Directories in Hugging Face layout: config.json, tokenizer.model and files of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from glm3sdk.adapters.storage.directory_files import member, read_json
from glm3sdk.adapters.storage.weight_files import WeightFiles
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"


class HuggingFaceDirectory:
    """A model directory as Hugging Face lays it out; a `CheckpointReader`.

    The weights are `model.safetensors`, or else the shards that
    `model.safetensors.index.json` names, or else every `*.safetensors` there is; where there
    is none, the files that torch saved, `pytorch_model*.bin`, in the same three ways. Opening
    reads the headers alone. No file handle stays open between reads.

    Attributes:
        path: the directory.
        config: the model's hyper-parameters.
        tokenizer_path: its tokenizer.model, or None where there is none.

    Raises:
        InvalidConfigError: config.json is missing, unreadable or of another architecture.
        InvalidCheckpointError: no such directory, no weights, or a file that is not sound.
        UnsafeCheckpointError: a file asks for code to be run; it was not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._check_directory()
            self.config: Glm3Config = self._read_config()
            tokenizer = member(self.path, TOKENIZER_FILE, InvalidCheckpointError)
            self.tokenizer_path: Path | None = tokenizer if tokenizer.is_file() else None
            self._weights = WeightFiles(self.path)
        except OSError as exc:
            reason = exc.strerror or exc
            raise InvalidCheckpointError(f"{self.path} cannot be opened: {reason}") from exc

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return self._weights.tensors

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that tensors are read from, each once."""
        return self._weights.files

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
        file = member(self.path, CONFIG_FILE, InvalidConfigError)
        if not file.exists():
            found = ", ".join(sorted(os.listdir(self.path))[:5]) or "nothing"
            raise InvalidConfigError(
                f"{self.path} has no {CONFIG_FILE} (it holds {found}); "
                "pass a model directory in Hugging Face layout"
            )
        try:
            return Glm3Config.from_hugging_face(read_json(file, InvalidConfigError))
        except InvalidConfigError as exc:
            message = str(exc)
            raise InvalidConfigError(
                message if str(file) in message else f"{file}: {message}"
            ) from exc
