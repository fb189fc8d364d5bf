"""A LoRA adapter and its base as one model directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs

from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, TOKENIZER_FILE
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.weight_files import WEIGHTS_FILE
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.domain.lora import ADAPTER_CONFIG
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import TensorSpec

# No adapter goes there, so it still has the base's dtype.
_NEVER_ADAPTED = "transformer.embedding.word_embeddings.weight"


@attrs.frozen
class MergedModel:
    """What `merge_lora` wrote.

    Attributes:
        path: the directory.
        dtype: of every tensor.
        tensors: how many.
    """

    path: Path
    dtype: str
    tensors: int


def merge_lora(
    adapter: str | os.PathLike[str], out: str | os.PathLike[str], *, dtype: str | None = None
) -> MergedModel:
    """Write an adapter merged into its base as a directory in Hugging Face layout.

    One tensor is in memory at a time. The directory appears when it is whole.

    Args:
        adapter: an adapter's directory, or that of a LoRA run.
        out: the directory to write; must not hold anything yet.
        dtype: of the tensors; None is the base's.

    Raises:
        InvalidCheckpointError: no adapter there, it does not fit its base, `out` holds
            something, or a value is too large for the dtype.
        CheckpointWriteError: the disk is full or `out` is not writable.
    """
    path, out = model_directory(adapter), Path(out)
    if not (path / ADAPTER_CONFIG).is_file():
        raise InvalidCheckpointError(
            f"{path} is no LoRA adapter (no {ADAPTER_CONFIG}), so there is nothing to merge; "
            "pass the directory of a LoRA run or of an adapter"
        )
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidCheckpointError(f"{out} is there already; pass a new directory")
    opened = open_model(path)
    dtype = dtype or opened.checkpoint.tensors[_NEVER_ADAPTED].dtype
    specs = {
        name: TensorSpec(spec.shape, dtype) for name, spec in opened.checkpoint.tensors.items()
    }
    writer = LocalCheckpointStore().create(str(out))
    try:
        config = json.dumps(opened.config.to_hugging_face(), indent=2) + "\n"
        writer.add_file(CONFIG_FILE, config.encode())
        if opened.tokenizer_path:
            writer.add_file(TOKENIZER_FILE, opened.tokenizer_path.read_bytes())
        values = ((name, opened.checkpoint.read(name)) for name in specs)
        writer.add_tensors(WEIGHTS_FILE, specs, values)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return MergedModel(out, dtype, len(specs))
