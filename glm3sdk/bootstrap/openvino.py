"""A model converted for the runtime "openvino"."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from glm3sdk.adapters.openvino.directory import WEIGHTS_FILE, marked
from glm3sdk.adapters.openvino.quantized import (
    INT8,
    check_quantization,
    quantized_specs,
    quantized_values,
)
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE
from glm3sdk.adapters.storage.local import local_path
from glm3sdk.adapters.storage.tensor_file import forget_pages
from glm3sdk.bootstrap.conversion import entries_of, folder_of, require_nothing_at, require_space
from glm3sdk.bootstrap.conversion_source import open_source
from glm3sdk.bootstrap.storage import LOCAL_SCHEME, checkpoint_store, scheme_of
from glm3sdk.errors import CheckpointWriteError, Glm3Error, InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import CheckpointStore
from glm3sdk.services.conversion import ConversionReport, ConvertedFile, size_of

if TYPE_CHECKING:
    from glm3sdk.bootstrap.conversion import Progress

FORMAT = "openvino"


def convert_to_openvino(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    quantize: str = INT8,
    config: str | os.PathLike[str] | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write a model for the runtime "openvino". It appears when it is whole and was read back.

    Memory: the largest matrix with its quantised form.

    Args:
        source: what `convert` takes.
        destination: a directory or a URI of one, where nothing is yet.
        quantize: "int8" (a scale a row), "int4" (a scale and a zero point for each group of
            up to 128 columns; the embedding, and rows that no group fits, have 8 bits), or
            "none".
        config: a config.json, the directory of one, or a preset's name, for a source that has
            none beside it.
        verify: compare the source with the sha256 that are known, and what was written with
            what was to be.
        progress: is told of every tensor.

    Raises:
        UnknownNameError: no quantisation goes by that name.
        InvalidConfigError: a config.json that cannot be used.
        InvalidCheckpointError: a source that cannot be used, or something is there already.
        CheckpointWriteError: no room, no permission, or it did not read back; nothing is left.
    """
    began = time.monotonic()
    check_quantization(quantize)
    uri = os.fspath(destination)
    require_nothing_at(uri)
    opened = open_source(source, config)
    if verify:
        opened.check(partial(progress, "reading") if progress else lambda *_: None)
    weights, model = opened.weights, opened.weights.config
    specs = quantized_specs(weights.reader.tensors, model, quantize)
    total, written = sum(map(size_of, specs.values())), 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if progress is not None:
            progress("writing", written, total)

    store = checkpoint_store(uri)
    folder = folder_of(store, uri)
    if folder is not None:
        require_space(folder, total, uri)
    writer = store.create(uri)
    publishing = False
    try:
        values = json.dumps(marked(opened.config, quantize), indent=2, ensure_ascii=False)
        writer.add_file(CONFIG_FILE, values.encode() + b"\n")
        for name, data in opened.files.items():
            writer.add_file(name, data)
        made = quantized_values(weights.reader, model, quantize, on_bytes=count)
        writer.add_tensors(WEIGHTS_FILE, specs, made)
        publishing = True
        writer.commit()
        if verify:
            if scheme_of(uri) == LOCAL_SCHEME:
                forget_pages(local_path(uri) / WEIGHTS_FILE)
            _check(store, uri)
        files = entries_of(uri)
    except BaseException:
        writer.abort()
        if publishing:
            with suppress(Glm3Error):
                store.delete(uri)
        raise
    dtypes = [spec.dtype for spec in specs.values()]
    return ConversionReport(
        destination=uri,
        format=FORMAT,
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


def _check(store: CheckpointStore, uri: str) -> None:
    try:
        store.open(uri).verify()
    except InvalidCheckpointError as exc:
        raise CheckpointWriteError(
            f"{uri} is not what was written: {exc}; see whether the disk is sound and convert it "
            "again"
        ) from exc
