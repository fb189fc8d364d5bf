"""Where a finetune run's checkpoints and figures go: a directory, or a place behind a URI.

Behind a URI, checkpoints are the store's. Figures are written into a local folder of the
run's and sent whenever a checkpoint is about to be published: so what a resumed run finds
there always reaches as far as the newest checkpoint, on whatever machine it goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import attrs

from glm3sdk.adapters.cache_folder import scratch_folder
from glm3sdk.adapters.metrics.plot import plot_metrics
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.file_lock import lock_directory
from glm3sdk.adapters.storage.local import local_path
from glm3sdk.adapters.storage.retried_blobs import RetriedBlobs
from glm3sdk.adapters.storage.transfer import download
from glm3sdk.adapters.storage.whole_directory import tidy
from glm3sdk.adapters.storage.whole_file import tidy_parts, whole_file
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.bootstrap.storage import (
    LOCAL_SCHEME,
    blob_store,
    checkpoint_store,
    has_blob_store,
    scheme_of,
)
from glm3sdk.errors import (
    BlobAccessError,
    BlobUnavailableError,
    CheckpointWriteError,
    Glm3Error,
    TransferError,
    UserError,
)
from glm3sdk.ports.blob_store import Blob, BlobStore
from glm3sdk.ports.checkpoint_store import CheckpointStore
from glm3sdk.ports.tensor_values import is_plain_name
from glm3sdk.services.run_checkpoints import CHECKPOINTS, RESULT

CONFIG_COPY = "config.yaml"
METRICS_FILE = "metrics.csv"
PLOT_FILE = "loss.png"
TENSORBOARD_DIRECTORY = "tensorboard"


_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True, eq=False)
class RunOutput:
    """One run's place; `run_output` makes it.

    Attributes:
        uri: of the run: the checkpoints go below it.
        folder: the local directory of its figures.
        store: of its checkpoints.
        blobs: where figures are sent; None where `folder` is the run's place itself, or the
            scheme has a checkpoint store alone.
    """

    uri: str
    folder: Path
    store: CheckpointStore
    blobs: BlobStore | None = None
    _sent: dict[str, tuple[int, int]] = attrs.field(factory=dict, init=False)

    @property
    def is_local(self) -> bool:
        """Whether `folder` is the run's place."""
        return scheme_of(self.uri) == LOCAL_SCHEME

    def checkpoints(self) -> tuple[str, ...]:
        """URIs of the checkpoints to resume from, the newest last."""
        return self.store.list(f"{self.uri}/{CHECKPOINTS}")

    def staging(self) -> Path | None:
        """The local folder that has to hold a checkpoint; None where that is not known."""
        if self.is_local:
            return self.folder
        return self.store.staging if isinstance(self.store, BlobCheckpointStore) else None

    @contextmanager
    def working(self, *, resume: bool) -> Iterator[None]:
        """Hold the folder, with the figures that an earlier process of the run sent.

        Raises:
            UserError: a finished run is there; or an unfinished one, and `resume` is false; or
                another process on this machine works at the same run.
            CheckpointWriteError: the folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with writing(self.folder):
            lock = lock_directory(self.folder)
        if lock is None:
            raise UserError(f"another process of this machine trains {self.uri}; let it end first")
        try:
            with writing(self.folder):
                self._tidy()
            self._require_free(resume=resume)
            self._fetch()
            yield
        finally:
            os.close(lock)

    def write_config(self, text: str) -> None:
        """Keep the configuration that is run."""
        with whole_file(self.folder / CONFIG_COPY) as file:
            file.write(text.encode())

    def send(self) -> None:
        """Send the files that changed since they were sent.

        Raises:
            CheckpointWriteError: they could not be sent.
        """
        if self.blobs is None:
            return
        for name, path in self._files().items():
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._sent.get(name) == state:
                continue
            try:
                self.blobs.write(f"{self.uri}/{name}", path)
            except (BlobAccessError, BlobUnavailableError, TransferError) as exc:
                raise CheckpointWriteError(
                    f"the figures of {self.uri} could not be sent: {exc}"
                ) from exc
            self._sent[name] = state

    def end(self, *, finished: bool) -> None:
        """Draw the figures and send what is left; a run that ended well does not fail for that."""
        try:
            if (self.folder / METRICS_FILE).exists():  # its sink may not have been wanted
                plot_metrics(self.folder / METRICS_FILE, self.folder / PLOT_FILE)
        except Glm3Error as exc:
            _log.warning("no %s was drawn: %s", PLOT_FILE, exc)
        try:
            self.send()
        except Glm3Error as exc:
            _log.warning("%s; they are in %s", exc, self.folder)
        else:
            if finished and self.blobs is not None:
                shutil.rmtree(self.folder, ignore_errors=True)

    def figure(self, name: str) -> str | None:
        """The path or URI of one of the run's files, such as `PLOT_FILE`; None without it."""
        path = self.folder / name
        if self.blobs is None:
            return str(path) if path.exists() else None
        uri = f"{self.uri}/{name}"
        return uri if self.blobs.stat(uri) else None

    def _tidy(self) -> None:
        """Remove what a killed process left; also of a finished run, which nothing writes again."""
        tidy_parts(self.folder, (CONFIG_COPY, METRICS_FILE, PLOT_FILE))
        # A run that was killed while it removed a checkpoint may write no other one.
        with suppress(FileNotFoundError):
            tidy(self.folder / CHECKPOINTS)

    def _require_free(self, *, resume: bool) -> None:
        """Refuse to write over another run."""
        if self.has_result():
            raise UserError(f"{self.uri} holds a finished run; choose another output, or delete it")
        if not resume and self.checkpoints():
            raise UserError(
                f"{self.uri} holds a run that did not finish; resume it, or choose another output"
            )

    def has_result(self) -> bool:
        """Whether the run's result was published."""
        if self.is_local:
            return (self.folder / RESULT).exists()
        # A damaged one is one as well.
        return f"{self.uri}/{RESULT}" in self.store.list(self.uri)

    def _files(self) -> Mapping[str, Path]:
        names = [CONFIG_COPY, METRICS_FILE, PLOT_FILE]
        with suppress(FileNotFoundError):
            events = sorted(os.listdir(self.folder / TENSORBOARD_DIRECTORY))
            names += [f"{TENSORBOARD_DIRECTORY}/{name}" for name in events if is_plain_name(name)]
        paths = {name: self.folder / name for name in names}
        return MappingProxyType({name: path for name, path in paths.items() if path.is_file()})

    def _fetch(self) -> None:
        if self.blobs is None:
            return
        for blob in self.blobs.list(self.uri):
            if name := self._name_of(blob):
                download(self.blobs, blob, self.folder / name)

    def _name_of(self, blob: Blob) -> str | None:
        """The name of a run's file below its folder; None for all else that is there."""
        name = blob.uri.removeprefix(f"{self.uri}/")
        if name in (CONFIG_COPY, METRICS_FILE):
            return name
        directory, _, event = name.partition("/")
        return name if directory == TENSORBOARD_DIRECTORY and is_plain_name(event) else None


def run_output(output: str) -> RunOutput:
    """The place that a run's configuration names as its output.

    Args:
        output: a path, or a URI such as "obs://bucket/run-42".

    Raises:
        UnknownNameError: nothing is registered for the scheme.
        PluginError: an installed plugin cannot be used.
        BackendUnavailableError: the scheme needs an extra that is not installed.
    """
    uri, store = output.rstrip("/"), checkpoint_store(output)
    if scheme_of(output) == LOCAL_SCHEME:
        folder = local_path(output) if "://" in output else Path(output)
        return RunOutput(uri=str(folder), folder=folder, store=store)
    blobs = RetriedBlobs(blob_store(uri)) if has_blob_store(uri) else None
    folder = scratch_folder() / "runs" / hashlib.sha256(uri.encode()).hexdigest()
    return RunOutput(uri=uri, folder=folder, store=store, blobs=blobs)
