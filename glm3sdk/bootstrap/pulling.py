"""A model from wherever it is into the cache, verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs

from glm3sdk.adapters.cache_folder import FOLDER_VARIABLE
from glm3sdk.adapters.offline import offline, require_online
from glm3sdk.adapters.openvino.directory import open_converted
from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.adapters.storage.cache_layout import CachedModel
from glm3sdk.adapters.storage.directory_files import member, read_json
from glm3sdk.adapters.storage.hugging_face import TOKENIZER_FILE, HuggingFaceDirectory
from glm3sdk.adapters.storage.manifest import FileEntry, parse_manifest, read_manifest
from glm3sdk.adapters.storage.model_cache import ModelCache, models_folder
from glm3sdk.adapters.storage.retries import retried
from glm3sdk.adapters.storage.safetensors_file import read_specs
from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.adapters.storage.validation import require_tensors
from glm3sdk.bootstrap.model_uris import ModelRequest, is_uri, request_for
from glm3sdk.bootstrap.storage import LOCAL_SCHEME, blob_store, scheme_of
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.published_models import (
    PUBLISHED_MODELS,
    PublishedFile,
    base_model,
)
from glm3sdk.errors import (
    BlobChangedError,
    BlobUnavailableError,
    CheckpointWriteError,
    Glm3Error,
    InvalidCheckpointError,
    InvalidTokenizerError,
    UnsafeCheckpointError,
    UserError,
)
from glm3sdk.ports.blob_store import BlobStore
from glm3sdk.services.model_source import Digests, SourceManifest, SourceModel, find_model

# A model that is replaced while it is fetched is begun again so often.
_TRIES = 3
_GB = 10**9
# An adapter on an adapter on ... in a circle must end.
MOST_ADAPTERS = 8
_WEIGHTS = (".safetensors", ".bin")


@attrs.frozen
class PullProgress:
    """How far a fetch is.

    Attributes:
        file: what is being fetched.
        done: bytes of the whole model that are there.
        total: bytes of the whole model.
    """

    file: str
    done: int
    total: int


@attrs.frozen(kw_only=True)
class PulledModel:
    """A model in the cache.

    Attributes:
        path: its directory, in Hugging Face layout.
        key: what it is called in the cache: its name, or its URI.
        source: where it was fetched from.
        files: their names, each with its size and sha256.
        digests: what the weights were compared with: "built-in" (the published ones), "source"
            (its manifest.json, or what the store says) or "none": then names, shapes and lengths
            were checked, and what was found is recorded.
        already_there: whether nothing had to be fetched.
    """

    path: Path
    key: str
    source: str
    files: Mapping[str, FileEntry]
    digests: Digests
    already_there: bool

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """The values as JSON has them."""
        return {
            "path": str(self.path),
            "key": self.key,
            "source": self.source,
            "files": {name: attrs.asdict(entry) for name, entry in self.files.items()},
            "digests": str(self.digests),
            "bytes": self.bytes,
            "already_there": self.already_there,
        }


def pull(
    model: str,
    *,
    source: str | None = None,
    progress: Callable[[PullProgress], None] | None = None,
) -> PulledModel:
    """Have a model in the cache: fetched, compared with the digests that are known, checked.

    A published name that is there is not asked for again; a URI is, and what changed is
    fetched. What an earlier try fetched is kept. Until all is right nothing is published.

    Args:
        model: a published name ("glm3-6b"), or a URI: obs://, s3://, hf://, https://, file://,
            or a plugin's. A repository's bare id and a path are taken too.
        source: where to fetch a published name from, by default `GLM3SDK_MODEL_SOURCE`/NAME or
            its repository on the Hugging Face hub.
        progress: is told of bytes that arrive.

    Returns:
        Where it is, its files, and what their digests were compared with.

    Raises:
        OfflineError: it is not in the cache, and the offline switch is on.
        InvalidCheckpointError, InvalidConfigError, InvalidTokenizerError: the source is no such
            model; nothing was published.
        TransferError: what arrived is not what it must be; nothing was published.
        BlobAccessError: the source refuses.
        BlobUnavailableError: the source did not answer; another try goes on.
        BlobChangedError: the source was replaced again and again while it was fetched.
        CheckpointWriteError: there is no room, or no permission.
        BackendUnavailableError: the source's extra is not installed.
        UnknownNameError: it is neither a name nor a URI.
    """
    pulled = below = _pull(request_for(model, source), progress or _ignore)
    for _ in range(MOST_ADAPTERS):
        base = _base(below.path)
        if base is None:
            break
        below = _pull(request_for(base), progress or _ignore)
    return pulled


def pull_without_weights(model: str) -> Path:
    """Have the small files of a published name or a URI in the cache: config and tokenizer.

    Returns:
        Their directory.

    Raises:
        Glm3Error: what `pull` raises.
    """
    request = request_for(model)
    with ModelCache(models_folder()) as cache:
        whole = cache.find(request.key)
    if whole is not None and _is_settled(request, whole):
        return whole.path
    alone = attrs.evolve(request, key=f"{request.key} (without weights)", weights=False)
    return _pull(alone, _ignore).path


def pull_tokenizer(model: str) -> Path:
    """Have the tokenizer of a published name or a URI in the cache, without its weights.

    Returns:
        The path of its tokenizer.model.

    Raises:
        InvalidTokenizerError: it has none.
        Glm3Error: what `pull` raises.
    """
    file = pull_without_weights(model) / TOKENIZER_FILE
    if not file.is_file():
        raise InvalidTokenizerError(f"{model} has no {TOKENIZER_FILE}; pass another tokenizer")
    return file


def _pull(request: ModelRequest, progress: Callable[[PullProgress], None]) -> PulledModel:
    with ModelCache(models_folder()) as cache:
        cached = cache.find(request.key)
        if cached is not None and _is_settled(request, cached):
            return _already_there(request.key, cached)
        if scheme_of(request.uri) != LOCAL_SCHEME:
            require_online(shown(request.key))
        for remaining in reversed(range(_TRIES)):
            try:
                return _Fetch(request, cache, cached, progress).run()
            except BlobChangedError as exc:
                if not remaining:
                    raise BlobChangedError(
                        f"{exc}, again and again; wait until it is written, then try again"
                    ) from exc
    raise AssertionError("the last try returns or raises")


def _is_settled(request: ModelRequest, cached: CachedModel) -> bool:
    """Whether what the cache has is taken without a look at the source."""
    if offline():
        return True
    if request.published is None:
        return False
    return not request.insists or _digests(request.key, cached) is Digests.BUILT_IN


@attrs.frozen
class _Fetch:
    """One try to fetch a model."""

    request: ModelRequest
    cache: ModelCache
    cached: CachedModel | None
    progress: Callable[[PullProgress], None]

    def run(self) -> PulledModel:
        store = blob_store(self.request.uri)
        found = self.look(store)
        entries = self.fetch(store, found, reports=self.require_space(found) > 0)
        known = found.digests is not Digests.NONE
        cached = self.cached
        same = cached is not None and read_manifest(cached.path).files == entries
        if cached is not None and same and cached.digests_known == known:
            path = cached.path
        else:
            path = self.cache.publish(
                self.request.key,
                entries,
                source=self.request.uri,
                digests_known=known,
                check=lambda directory: _check(directory, self.request),
            )
        return PulledModel(
            path=path,
            key=shown(self.request.key),
            source=shown(self.request.uri),
            files=entries,
            digests=found.digests,
            already_there=same,
        )

    def look(self, store: BlobStore) -> SourceModel:
        """Ask the source what it has."""
        request = self.request
        try:
            found = retried(
                lambda: find_model(
                    store, request.uri, read_manifest=_manifest, published=request.published
                )
            )
        except Glm3Error as exc:
            text = str(exc).replace(request.uri, shown(request.uri))  # without a password
            if self.cached is not None and isinstance(exc, BlobUnavailableError):
                text += "; the edition in the cache can be used with GLM3SDK_OFFLINE=1"
            if text == str(exc):
                raise
            raise type(exc)(text) from exc
        if scheme_of(request.uri) == LOCAL_SCHEME:
            for file in found.files:  # a link is followed where it stays within the source
                path = Path(unquote(urlsplit(file.blob.uri).path))
                member(path.parent, path.name, UnsafeCheckpointError)
        if request.weights:
            return found
        small = tuple(file for file in found.files if not file.name.endswith(_WEIGHTS))
        return attrs.evolve(found, files=small)

    def require_space(self, found: SourceModel) -> int:
        """Look for room for all of it before the first byte is fetched; the bytes that it takes."""
        missing = sum(self.cache.missing(file.blob, sha256=file.sha256) for file in found.files)
        folder = models_folder()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free, size = (disk := shutil.disk_usage(there)).free, disk.total
        if not size:  # /proc and its like
            raise CheckpointWriteError(
                f"{folder} can hold no files ({there} is no disk): set {FOLDER_VARIABLE} to a "
                "folder with room"
            )
        if missing > free:
            raise CheckpointWriteError(
                f"{folder} has {free / _GB:.2f} GB free and {self.request.key} takes "
                f"{missing / _GB:.2f} GB more: free some space (glm3 cache prune), or set "
                f"{FOLDER_VARIABLE} to a folder with room"
            )
        return missing

    def fetch(self, store: BlobStore, found: SourceModel, *, reports: bool) -> dict[str, FileEntry]:
        done = 0
        entries = {}

        def count(file: str, size: int) -> None:
            nonlocal done
            done += size
            if reports:
                self.progress(PullProgress(file, done, found.size))

        # Small ones first: what is wrong with them is known before the weights are fetched.
        for file in sorted(found.files, key=lambda file: file.blob.size):
            entries[file.name] = self.cache.fetch(
                store, file.blob, sha256=file.sha256, progress=partial(count, file.name)
            )
        return entries


def _base(directory: Path) -> str | None:
    """An adapter's base, where it is one to fetch."""
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    _, name = Lora.from_peft(read_json(directory / ADAPTER_CONFIG, InvalidCheckpointError))
    name = base_model(name)
    return name if name in PUBLISHED_MODELS or is_uri(name) else None


def _check(directory: Path, request: ModelRequest) -> None:
    """See whether files that arrived are a model that can be loaded."""
    try:
        if (directory / ADAPTER_CONFIG).is_file():
            Lora.from_peft(read_json(directory / ADAPTER_CONFIG, InvalidCheckpointError))
            if request.weights:
                read_specs(directory / ADAPTER_TENSORS)
        elif request.weights:
            model = HuggingFaceDirectory(directory)
            if open_converted(directory, model.config) is None:
                require_tensors(model, model.config)
        if (directory / TOKENIZER_FILE).is_file():
            SentencePieceTokenizer(directory / TOKENIZER_FILE)
    except UserError as exc:
        text = str(exc).replace(f"{directory}/", "").replace(str(directory), shown(request.uri))
        raise type(exc)(
            f"what {shown(request.uri)} gave is no sound model: {text}. Nothing was published; use "
            "another source, or drop what was fetched with `glm3 cache prune` and try again"
        ) from exc


def _already_there(key: str, cached: CachedModel) -> PulledModel:
    return PulledModel(
        path=cached.path,
        key=cached.key,
        source=cached.source,
        files=read_manifest(cached.path).files,
        digests=_digests(key, cached),
        already_there=True,
    )


def _digests(key: str, cached: CachedModel) -> Digests:
    """What a model of the cache was compared with."""
    published = PUBLISHED_MODELS.get(key)
    if published and published.files:
        files = read_manifest(cached.path).files
        large = {
            name: PublishedFile(entry.size, entry.sha256)
            for name, entry in files.items()
            if not name.endswith(".json")
        }
        if large == dict(published.files):
            return Digests.BUILT_IN
    return Digests.SOURCE if cached.digests_known else Digests.NONE


def _manifest(data: bytes, uri: str) -> SourceManifest:
    manifest = parse_manifest(data, uri)
    files = {n: PublishedFile(entry.size, entry.sha256) for n, entry in manifest.files.items()}
    return SourceManifest(files, manifest.directory)


def _ignore(progress: PullProgress) -> None:
    pass
