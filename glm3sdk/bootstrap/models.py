"""From the name or path of a model to its config, weights and tokenizer file."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import attrs

from glm3sdk.adapters.openvino.directory import WEIGHTS_FILE, open_converted
from glm3sdk.adapters.openvino.runtime import NAME as OPENVINO
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.adapters.storage.validation import require_tensors
from glm3sdk.bootstrap.model_uris import is_repository, is_uri
from glm3sdk.bootstrap.pulling import MOST_ADAPTERS, PullProgress, pull
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.published_models import PUBLISHED_MODELS, base_model
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.services.adapters import MergedCheckpoint
from glm3sdk.services.run_checkpoints import CHECKPOINTS, RESULT
from glm3sdk.services.run_shards import SHARDS, STRATEGY_FILE

BUNDLED = ("tiny",)

_TOKENIZER = "tokenizer.model"


@attrs.frozen(eq=False)
class OpenedModel:
    """A model that is open for reading.

    Attributes:
        config: its hyper-parameters.
        checkpoint: its weights, checked against the config; an adapter is merged in.
        tokenizer_path: its tokenizer.model, or None.
        path: its directory.
        files: the files that its weights are read from, an adapter's and its base's.
        runtime: the one runtime that its weights were converted for, or None.
    """

    config: Glm3Config
    checkpoint: CheckpointReader
    tokenizer_path: Path | None
    path: Path
    files: tuple[Path, ...]
    runtime: str | None = None


def is_fetched(model: str | os.PathLike[str]) -> bool:
    """Whether a model is one to fetch: a URI or a published name, and no path that is there."""
    name = os.fspath(model)
    if name in BUNDLED or Path(name).exists():
        return False
    return name in PUBLISHED_MODELS or is_uri(name)


def model_directory(
    model: str | os.PathLike[str], *, progress: Callable[[PullProgress], None] | None = None
) -> Path:
    """The directory of a bundled model, a path, a finetune run's result, or a fetched model.

    Args:
        model: "tiny", a path, the name of a published model ("glm3-6b"), or a URI.
        progress: is told of a fetch.

    Raises:
        InvalidCheckpointError: there is no such directory, or no model at the URI.
        Glm3Error: what `pull` raises.
    """
    name = os.fspath(model)
    if name in BUNDLED:
        return Path(str(resources.files("glm3sdk") / "assets" / name))
    path = Path(name)
    if name and path.exists():
        return _of_run(path)
    if is_fetched(name):
        return pull(name, progress=progress).path
    message = (
        f"no model directory {name!r} (bundled: {', '.join(BUNDLED)}; fetched by name: "
        f"{', '.join(PUBLISHED_MODELS)}; or a URI such as obs://BUCKET/PREFIX)"
    )
    if is_repository(name):
        message += f"; for the Hugging Face repository pass hf://{name}"
    close = difflib.get_close_matches(name, (*BUNDLED, *PUBLISHED_MODELS), n=1)
    raise InvalidCheckpointError(message + (f"; did you mean {close[0]!r}?" if close else ""))


def open_model(model: str | os.PathLike[str]) -> OpenedModel:
    """Open a model; an adapter's base model is opened too and the adapter merged in.

    Raises:
        InvalidConfigError: config.json is missing or of another architecture.
        InvalidCheckpointError: no such directory, or a tensor is missing or misshapen.
        Glm3Error: what `pull` raises, for a name or a URI.
    """
    return _open(model_directory(model), adapters_left=MOST_ADAPTERS)


def _open(path: Path, *, adapters_left: int) -> OpenedModel:
    _require_whole(path)
    if not (path / ADAPTER_CONFIG).is_file():
        directory = HuggingFaceDirectory(path)
        converted = open_converted(path, directory.config)
        if converted is not None:
            return OpenedModel(
                directory.config,
                converted,
                directory.tokenizer_path,
                path,
                (path / WEIGHTS_FILE,),
                runtime=OPENVINO,
            )
        require_tensors(directory, directory.config)
        return OpenedModel(
            directory.config, directory, directory.tokenizer_path, path, directory.files
        )
    if not adapters_left:
        raise InvalidCheckpointError(f"{path}: too many adapters on one another")
    try:
        values = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        lora, base_name = Lora.from_peft(values)
        adapter = TensorFiles(path)
        adapter.add(path / ADAPTER_TENSORS, read_specs(path / ADAPTER_TENSORS))
    except (OSError, ValueError) as exc:
        raise InvalidCheckpointError(f"{path} is not an adapter: {exc}") from exc
    base = _open(_base_of(path, base_name), adapters_left=adapters_left - 1)
    if base.runtime is not None:
        raise InvalidCheckpointError(
            f"{path}: its base model {base.path} was converted for the runtime {base.runtime!r}, "
            "and nothing can be merged into it; name the model it was converted from"
        )
    merged = MergedCheckpoint(base.checkpoint, adapter, lora=lora, config=base.config)
    own_tokenizer = path / _TOKENIZER
    tokenizer_path = own_tokenizer if own_tokenizer.is_file() else base.tokenizer_path
    files = (*base.files, path / ADAPTER_TENSORS)
    return OpenedModel(base.config, merged, tokenizer_path, path, files)


def _require_whole(path: Path) -> None:
    """Refuse a checkpoint of a run whose tensors lie beside it, in the parts of several ranks."""
    parts = path.parent.parent / SHARDS / path.name
    if path.parent.name == CHECKPOINTS and parts.is_dir():
        message = f"{path} was stored by several ranks, each a part, and is no model yet: resume "
        message += "the run to its end"
        if not (path / ADAPTER_CONFIG).is_file():
            message += (
                f", or put the parts together with `glm3 checkpoint merge {parts} merged "
                f"--strategy {parts / STRATEGY_FILE} --to hf --config {path}`, and copy its "
                "tokenizer.model there"
            )
        raise InvalidCheckpointError(message)


def _base_of(adapter: Path, name: str) -> Path:
    """An adapter's base; a relative path leads from the adapter, or from here."""
    if name not in BUNDLED and (adapter / name).is_dir():
        return _of_run(adapter / name)
    try:
        return model_directory(name if Path(name).exists() else base_model(name))
    except InvalidCheckpointError as exc:
        raise InvalidCheckpointError(
            f"{adapter / ADAPTER_CONFIG}: the base model is not here: {exc}. Write its "
            "directory into base_model_name_or_path"
        ) from exc


def _of_run(path: Path) -> Path:
    """A run's result, or its newest checkpoint while it has none; any other path as it is."""
    if (path / RESULT).is_dir():
        return path / RESULT
    if (path / CHECKPOINTS).is_dir():
        published = LocalCheckpointStore().list(str(path / CHECKPOINTS))
        if published:
            return Path(published[-1])
    return path
