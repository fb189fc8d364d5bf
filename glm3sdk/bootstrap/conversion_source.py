"""What a conversion reads: a model's weights and the small files that belong to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.openvino.directory import open_converted
from glm3sdk.adapters.storage.directory_files import member, read_json
from glm3sdk.adapters.storage.file_check import check_digest
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, TOKENIZER_FILE
from glm3sdk.adapters.storage.known_digests import known_digest
from glm3sdk.adapters.storage.local_checkpoint import reading
from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, read_manifest
from glm3sdk.adapters.storage.mindspore_ckpt import CKPT_SUFFIX
from glm3sdk.adapters.storage.rank_files import find_rank_files
from glm3sdk.adapters.storage.stored_model import open_tensors
from glm3sdk.adapters.storage.validation import require_tensors
from glm3sdk.adapters.storage.weight_files import WeightFiles
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.bootstrap.resharding import open_sharded
from glm3sdk.domain.lora import ADAPTER_CONFIG
from glm3sdk.domain.model import PRESETS, Glm3Config
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.services.conversion import ModelWeights, find_weights
from glm3sdk.services.resharding import MergedShards

_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json")
# No adapter goes there, so it still has the base's dtype.
_NEVER_ADAPTED = "transformer.embedding.word_embeddings.weight"


@attrs.frozen(eq=False, kw_only=True)
class ConversionSource:
    """A model that is open for conversion.

    Attributes:
        weights: its weights, checked against its hyper-parameters.
        config: the values of its config.json.
        model: where the hyper-parameters came from.
        files: its tokenizer's files.
        read_from: the files that the weights are read from.
        dtype: what the weights are stored in where nothing else is asked for; None is their own.
        replicas: shards whose replicas are to be compared; None is none.
    """

    weights: ModelWeights
    config: Mapping[str, Any]
    model: str
    files: Mapping[str, bytes]
    read_from: tuple[Path, ...]
    dtype: str | None = None
    replicas: MergedShards | None = None

    def check(self, progress: Callable[[int, int], None]) -> None:
        """Compare the files of weights with their sha256, where it is known, and replicas.

        Else a damaged source would come out under new sums, and nobody could tell any more.

        Args:
            progress: told the bytes that are done, and all that there are.

        Raises:
            InvalidCheckpointError: one differs, or what tells the sums is damaged.
        """
        manifests = {
            place: read_manifest(place).files
            for place in {file.parent for file in self.read_from}
            if (place / MANIFEST_FILE).is_file()
        }
        digests = {
            file: known_digest(file, manifests.get(file.parent, {}).get(file.name))
            for file in self.read_from
        }
        total = sum(file.stat().st_size for file, digest in digests.items() if digest)
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for file, digest in digests.items():
            if digest is not None:
                with reading(file):
                    check_digest(file, digest, on_bytes)
        if self.replicas is not None:
            for name in self.replicas.tensors:
                self.replicas.check_replicas(name)


def open_source(
    source: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    *,
    strategy: str | os.PathLike[str] | None = None,
    check_replicas: bool = False,
) -> ConversionSource:
    """Open a model for conversion.

    Args:
        source: a model's directory in Hugging Face layout, a finetune run, a LoRA adapter (its
            base is merged with it), a file of tensors or the directory of one, a published
            name or a URI.
        config: a config.json, the directory of one, or a preset's name; None is the one that
            is beside the weights, and where there is none the shapes must tell.
        strategy: the strategy of the run that wrote a directory of rank_0, rank_1, ...
        check_replicas: have all replicas of such a source compared too.

    Raises:
        InvalidConfigError: a config.json that cannot be used.
        InvalidCheckpointError: no model, or one that is damaged or incomplete.
        UnsafeCheckpointError: a file asks for code to be run.
        Glm3Error: what `pull` raises.
    """
    path = Path(source)
    with reading(path):
        if strategy is None and not path.is_file():
            path = model_directory(source)
        if (path / ADAPTER_CONFIG).is_file():
            return _adapter(path, config)
        place = path.parent if path.is_file() else path
        reader: CheckpointReader
        merged = None if strategy is None else open_sharded(path, strategy)
        if merged is not None:
            reader, files = merged, tuple(find_rank_files(path))
        else:
            reader, files = _open_file(path) if path.is_file() else _open_directory(path)
        values, model = _config_values(place, config)
        known = None if values is None else _parsed(values, model)
        has_own = (path / CONFIG_FILE).is_file()  # as a directory for a runtime always has
        if known is not None and has_own and open_converted(path, known) is not None:
            raise InvalidCheckpointError(
                f"{path} was converted for the runtime 'openvino', and nothing else can be made of "
                "it; pass the model it was converted from"
            )
        weights = find_weights(reader, known, str(path))
        require_tensors(weights.reader, weights.config)
        return ConversionSource(
            weights=weights,
            config=weights.config.to_hugging_face() if values is None else values,
            model=model if values is not None else _recognised(*weights.presets),
            files=_tokenizer_files(place),
            read_from=files,
            replicas=merged if check_replicas else None,
        )


def _adapter(path: Path, config: str | os.PathLike[str] | None) -> ConversionSource:
    if config is not None:
        raise InvalidConfigError(
            f"{path} is an adapter, whose base model has a {CONFIG_FILE}; leave the config out"
        )
    opened = open_model(path)
    place = opened.tokenizer_path.parent if opened.tokenizer_path else path
    return ConversionSource(
        weights=find_weights(opened.checkpoint, opened.config, str(path)),
        config=opened.config.to_hugging_face(),
        model=f"the base model of {path}",
        files=_tokenizer_files(place),
        read_from=opened.files,
        dtype=opened.checkpoint.tensors[_NEVER_ADAPTED].dtype,
    )


def _open_file(path: Path) -> tuple[CheckpointReader, tuple[Path, ...]]:
    reader = open_tensors(path)
    if reader is None:
        raise InvalidCheckpointError(
            f"{path} is no file of weights; pass a .ckpt, .safetensors or .bin file, or a directory"
        )
    return reader, (path,)


def _open_directory(path: Path) -> tuple[CheckpointReader, tuple[Path, ...]]:
    """The weights in a directory, and the files that they are read from."""
    if (path / "rank_0").is_dir():
        raise InvalidCheckpointError(
            f"{path} is sharded over ranks; merge it first (glm3 checkpoint merge, with --to hf "
            "for a model's directory)"
        )
    names = sorted(os.listdir(path))
    ours = [name for name in names if name.endswith(CKPT_SUFFIX)]
    others = [
        name
        for name in names
        if name.endswith(".safetensors")
        or (name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json")))
    ]
    if len(ours) > 1 or (ours and others):
        found = ", ".join((*ours, *others)[:5])
        raise InvalidCheckpointError(f"{path} holds weights more than once ({found}); pass a file")
    if ours:
        return _open_file(member(path, ours[0], InvalidCheckpointError))
    if not others:
        raise InvalidCheckpointError(
            f"{path} has no *.safetensors, pytorch_model*.bin or *.ckpt (it holds "
            f"{', '.join(names[:5]) or 'nothing'}); pass the directory or the file of a model"
        )
    weights = WeightFiles(path)
    return weights, weights.files


def _config_values(
    place: Path, config: str | os.PathLike[str] | None
) -> tuple[dict[str, Any] | None, str]:
    """The values of a config.json, and what to call it."""
    if config is None:
        file = member(place, CONFIG_FILE, InvalidConfigError)
        return (read_json(file, InvalidConfigError), str(file)) if file.exists() else (None, "")
    path = Path(config)
    if not path.exists() and os.fspath(config) in PRESETS:
        name = os.fspath(config)
        return PRESETS[name].to_hugging_face(), f"the preset {name}"
    if not path.exists():
        raise InvalidConfigError(
            f"no config {os.fspath(config)!r}; pass a {CONFIG_FILE}, the directory of one, or a "
            f"preset ({', '.join(PRESETS)})"
        )
    file = path / CONFIG_FILE if path.is_dir() else path
    return read_json(file, InvalidConfigError), str(file)


def _parsed(values: dict[str, Any], label: str) -> Glm3Config:
    try:
        return Glm3Config.from_hugging_face(values)
    except InvalidConfigError as exc:
        raise InvalidConfigError(f"{label}: {exc}") from exc


def _recognised(preset: str, *others: str) -> str:
    same = f", which {' and '.join(others)} share: pass a config to choose one" if others else ""
    return f"the preset {preset}, by its shapes{same}"


def _tokenizer_files(place: Path) -> dict[str, bytes]:
    files = {name: member(place, name, InvalidCheckpointError) for name in _TOKENIZER_FILES}
    return {name: file.read_bytes() for name, file in files.items() if file.is_file()}
