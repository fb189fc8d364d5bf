"""Which files a model at a URI has, and what is known of them before they are fetched.

Nothing here trusts the source: names are taken through an allow-list, small files are
bounded, and what cannot be a model is refused before a large file is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from itertools import islice
from typing import Any

import attrs

from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.model import IGNORED_TENSORS, Glm3Config
from glm3sdk.domain.published_models import PublishedFile, PublishedModel
from glm3sdk.errors import (
    BlobAccessError,
    Glm3Error,
    InvalidCheckpointError,
    InvalidConfigError,
    UnsafeCheckpointError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_store import Blob, BlobStore
from glm3sdk.services.run_checkpoints import CHECKPOINTS, RESULT

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
MANIFEST_FILE = "manifest.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.(safetensors|bin)")
_MOST_SHARDS = 1000
_MAX_JSON = 16 * 2**20


@attrs.frozen
class SourceManifest:
    """What a manifest.json says of a checkpoint.

    Attributes:
        files: by their names.
        directory: the one beside the manifest that they lie in; "" where they lie beside it.
    """

    files: Mapping[str, PublishedFile]
    directory: str = ""


ReadManifest = Callable[[bytes, str], SourceManifest]


class Digests(StrEnum):
    """Where the sha256 come from that a model's weights are compared with.

    The SDK itself; the source (its manifest.json, or what the hub or an object store says); or
    nowhere, and then names, shapes and lengths are all that can be checked.
    """

    BUILT_IN = "built-in"
    SOURCE = "source"
    NONE = "none"


@attrs.frozen
class SourceFile:
    """One file of a model.

    Attributes:
        name: a plain file name.
        blob: where it is.
        sha256: what its bytes must have; None where that is not known.
    """

    name: str
    blob: Blob
    sha256: str | None


@attrs.frozen(kw_only=True)
class SourceModel:
    """A model that can be fetched.

    Attributes:
        uri: where its files are.
        files: all that are needed to load it.
        digests: what its weights are compared with.
    """

    uri: str
    files: tuple[SourceFile, ...]
    digests: Digests

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.blob.size for file in self.files)


def find_model(
    store: BlobStore,
    uri: str,
    *,
    read_manifest: ReadManifest,
    published: PublishedModel | None = None,
) -> SourceModel:
    """Find the files of a model, or of an adapter, at a URI.

    Args:
        store: what reads the URI.
        uri: a directory in Hugging Face layout, a published checkpoint, or that of a
            finetune run: then its result, or its newest checkpoint.
        read_manifest: reads the bytes of a manifest.json, given its URI for messages.
        published: the model that it must be.

    Raises:
        InvalidCheckpointError: a file is missing, of another length than it must have, or
            cannot be read as what it is.
        UnsafeCheckpointError: an index names a file that is not one of weights beside it.
        InvalidConfigError: config.json is of another architecture or another model.
        BlobAccessError, BlobUnavailableError: the store does not let it be known.
    """
    uri = uri.rstrip("/")
    base, refusal = _place(store, uri)
    if base is not None:
        return _Search(store, base, read_manifest, published).model()
    if refusal is not None:
        raise refusal
    raise InvalidCheckpointError(
        f"no model at {uri}: it has no {CONFIG_FILE}, no {ADAPTER_CONFIG}, and is no finetune run "
        f"with a result; {_held(store, uri)}"
    )


def _place(store: BlobStore, uri: str) -> tuple[str | None, BlobAccessError | None]:
    """Where a model is: at the URI itself, in a run's result, or its newest checkpoint.

    Also what the store refused on the way: a public bucket that may not be listed answers
    "forbidden" for what is not there.
    """
    refusal = None
    for base in (uri, f"{uri}/{RESULT}"):
        for name in (MANIFEST_FILE, CONFIG_FILE, ADAPTER_CONFIG):
            try:
                if store.stat(f"{base}/{name}"):
                    return base, None
            except BlobAccessError as exc:
                refusal = refusal or exc
    with suppress(UnsupportedOptionError, BlobAccessError):
        checkpoints = [
            blob.uri.removesuffix(f"/{MANIFEST_FILE}")
            for blob in store.list(f"{uri}/{CHECKPOINTS}")
            if blob.uri.endswith(f"/{MANIFEST_FILE}")
        ]
        if checkpoints:
            return checkpoints[-1], None
    return None, refusal


def _held(store: BlobStore, uri: str) -> str:
    """A few words about what is there instead."""
    try:
        found = [blob.uri.removeprefix(f"{uri}/") for blob in islice(store.list(uri), 4)]
    except Glm3Error:
        return "pass the URI of the directory that holds it"
    return f"there is {', '.join(found)}" if found else "there is nothing"


@attrs.define
class _Search:
    """Collects the files of one model; `found` has those that are to be fetched."""

    store: BlobStore
    base: str
    read_manifest: ReadManifest
    published: PublishedModel | None
    manifest: SourceManifest | None = None
    place: str = attrs.field(default=attrs.Factory(lambda self: self.base, takes_self=True))
    found: dict[str, SourceFile] = attrs.field(factory=dict)

    def model(self) -> SourceModel:
        if blob := self.stat(MANIFEST_FILE):
            self.manifest = self.read_manifest(self.content(blob), blob.uri)
            if self.manifest.directory:
                self.place = f"{self.base}/{self.manifest.directory}"
        if self.published is None and self.take(ADAPTER_CONFIG):
            self.take_adapter()
        else:
            self.take_whole_model()
        self.take(_TOKENIZER_CONFIG)
        files = tuple(self.found[name] for name in sorted(self.found))
        return SourceModel(uri=self.base, files=files, digests=self.digests())

    def take_adapter(self) -> None:
        try:
            Lora.from_peft(self.json(ADAPTER_CONFIG))
        except Glm3Error as exc:
            raise InvalidCheckpointError(f"{self.place}/{ADAPTER_CONFIG}: {exc}") from exc
        self.require(ADAPTER_TENSORS)
        self.take(TOKENIZER_FILE)
        self.take(CONFIG_FILE)

    def take_whole_model(self) -> None:
        self.require(CONFIG_FILE)
        try:
            config = Glm3Config.from_hugging_face(self.json(CONFIG_FILE))
        except InvalidConfigError as exc:
            raise InvalidConfigError(f"{self.place}/{CONFIG_FILE}: {exc}") from exc
        if self.published is not None and config != self.published.config:
            raise InvalidConfigError(
                f"{self.place}/{CONFIG_FILE} is not that of {self.published.name}: "
                f"{_differences(config, self.published.config)}; pull it by its URI, without the "
                "name, if it is meant to be another model"
            )
        self.require(TOKENIZER_FILE)
        self.take_weights(config)

    def take_weights(self, config: Glm3Config) -> None:
        # Digests are known of the official .bin files, not of what was made of them.
        known = self.published.files if self.published else {}
        kinds = (_BIN, _SAFETENSORS) if known else (_SAFETENSORS, _BIN)
        for single, index in kinds:
            if self.take(single):
                return
            if self.take(index):
                for name in sorted(self.shards(index, config)):
                    self.require(name)
                return
        names = " or ".join(name for kind in kinds for name in kind)
        raise InvalidCheckpointError(f"{self.base} has no weights: there is no {names}")

    def shards(self, index: str, config: Glm3Config) -> set[str]:
        """The files that an index names, and that hold what the model needs."""
        uri, values = f"{self.place}/{index}", self.json(index)
        placed = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
            raise InvalidCheckpointError(
                f"{uri} has no weight_map from tensor names to file names; use another source"
            )
        names = set(placed.values())
        suffix = ".bin" if index.endswith(_BIN[1]) else ".safetensors"
        for name in sorted(names):
            if not _SHARD.fullmatch(name) or not name.endswith(suffix):
                raise UnsafeCheckpointError(
                    f"{uri} names {name!r:.200}, which is not a file *{suffix} beside it; nothing "
                    "was fetched"
                )
        if len(names) > _MOST_SHARDS:
            raise InvalidCheckpointError(f"{uri} names {len(names)} files; use another source")
        expected = config.tensor_shapes().keys()
        missing = sorted(expected - placed.keys())
        if missing:
            raise InvalidCheckpointError(f"{uri} lacks {_some(missing)}; use another source")
        self.check_published(uri, placed, names)
        return names

    def check_published(self, uri: str, placed: Mapping[str, str], names: set[str]) -> None:
        """A published index names the model's tensors, the published shards, and no others."""
        model = self.published
        official = {name for name in model.files if _SHARD.fullmatch(name)} if model else set()
        if model is None or not official & names:
            return
        others = {
            name
            for name in placed.keys() - model.config.tensor_shapes().keys()
            if not name.endswith(IGNORED_TENSORS)
        }
        if wrong := sorted(official ^ names) or sorted(others):
            raise InvalidCheckpointError(
                f"{uri} is not that of {model.name}: it differs in {_some(wrong)}; use another "
                "source"
            )

    def require(self, name: str) -> None:
        """Add a file that must be there."""
        if self.take(name, required=True):
            return
        raise InvalidCheckpointError(
            f"{self.base} has no {name}, which belongs to the model; complete it there or use "
            "another source"
        )

    def take(self, name: str, *, required: bool = False) -> bool:
        """Add a file where it is there, and tell whether it is."""
        if self.manifest is not None and name not in self.manifest.files:
            return False
        blob = self.stat(name, required=required)
        if blob is None:
            return False
        sha256 = blob.sha256
        listed = self.manifest.files if self.manifest else {}
        for what, files in (("manifest", listed), ("published file", self.known)):
            if name in files:
                _compare(blob, sha256, files[name], what)
                sha256 = files[name].sha256
        self.found[name] = SourceFile(name, blob, sha256)
        return True

    @property
    def known(self) -> Mapping[str, PublishedFile]:
        return self.published.files if self.published else {}

    def digests(self) -> Digests:
        """What the weights and the tokenizer are compared with; small files are read anyway."""
        large = {name: file for name, file in self.found.items() if not name.endswith(".json")}
        if large.keys() <= self.known.keys():
            return Digests.BUILT_IN
        known = all(file.sha256 for file in large.values())
        return Digests.SOURCE if known else Digests.NONE

    def stat(self, name: str, *, required: bool = False) -> Blob | None:
        try:
            return self.store.stat(f"{self.place}/{name}")
        except BlobAccessError:
            if required:
                raise
            return None  # as in `_place`

    def json(self, name: str) -> Any:
        """A small file's content."""
        blob = self.found[name].blob
        data = self.content(blob)
        try:
            return json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as exc:
            raise InvalidCheckpointError(
                f"{blob.uri} is not JSON: {exc}; use another source"
            ) from exc

    def content(self, blob: Blob) -> bytes:
        if blob.size > _MAX_JSON:
            raise InvalidCheckpointError(
                f"{blob.uri} has {blob.size} bytes, and at most {_MAX_JSON} are read of such a "
                "file; use another source"
            )
        return self.store.read(blob, 0, blob.size)


def _compare(blob: Blob, sha256: str | None, expected: PublishedFile, what: str) -> None:
    """Refuse before it is fetched what cannot be right."""
    if blob.size != expected.size:
        raise InvalidCheckpointError(
            f"{blob.uri} has {blob.size} bytes and the {what} says {expected.size}: it is "
            "truncated or another file; use another source"
        )
    if sha256 not in (None, expected.sha256):
        raise InvalidCheckpointError(
            f"{blob.uri} has the sha256 {sha256} and the {what} says {expected.sha256}; use "
            "another source"
        )


def _differences(found: Glm3Config, expected: Glm3Config) -> str:
    values, wanted = attrs.asdict(found), attrs.asdict(expected)
    return ", ".join(
        f"{key} is {values[key]} and not {wanted[key]}"
        for key in wanted
        if values[key] != wanted[key]
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
