"""A checkpoint's files, written into a hidden directory before anybody sees them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glm3sdk.adapters.storage import whole_directory
from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry
from glm3sdk.adapters.storage.safetensors_file import write_safetensors
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import CheckpointWriteError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import check_file_name, check_specs


class StagedWriter:
    """A `CheckpointWriter`. Any error ends it and removes what was written.

    Args:
        path: a hidden directory is made beside it; what killed processes left there is removed.
        name: of the checkpoint, for messages.
        publish: makes a checkpoint of the directory and what was written into it.
        advice: for when there is no room, behind what the system said.

    Raises:
        CheckpointWriteError: nothing can be written there.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        publish: Callable[[Path, Mapping[str, FileEntry]], None],
        advice: str = "",
    ) -> None:
        self._name, self._publish, self._advice = name, publish, advice
        self._entries: dict[str, FileEntry] = {}
        self._placed: dict[str, str] = {}
        self._open = True
        with self._advising(), writing(path), ExitStack() as stack:
            self._directory = stack.enter_context(whole_directory.temporary(path))
            self._stack = stack.pop_all()

    def add_tensors(
        self,
        file: str,
        specs: Mapping[str, TensorSpec],
        values: Iterable[tuple[str, HostArray]],
    ) -> None:
        """Write a safetensors file, a tensor at a time.

        Raises:
            InvalidCheckpointError: values do not fit specs, or the name is not free.
            CheckpointWriteError: no room, no permission, or the writer has ended.
        """
        with self._ending_on_error(), self._advising():
            check_file_name(file, tensors=True, taken=(*self._entries, MANIFEST_FILE))
            check_specs(file, specs, self._placed)
            self._entries[file] = write_safetensors(self._directory / file, specs, values)
            self._placed.update(dict.fromkeys(specs, file))

    def add_file(self, file: str, data: bytes) -> None:
        """Write a small file.

        Raises:
            InvalidCheckpointError: the name is not a plain one, or not free.
            CheckpointWriteError: no room, no permission, or the writer has ended.
        """
        with self._ending_on_error(), self._advising():
            check_file_name(file, tensors=False, taken=(*self._entries, MANIFEST_FILE))
            write_through(self._directory / file, data)
            self._entries[file] = FileEntry(len(data), hashlib.sha256(data).hexdigest())

    def commit(self) -> None:
        """Publish what was written.

        Raises:
            InvalidCheckpointError: something that is not a checkpoint came there.
            CheckpointWriteError: it could not be published, or the writer has ended.
        """
        with self._ending_on_error():
            self._publish(self._directory, self._entries)
        self.abort()

    def abort(self) -> None:
        """Remove what was written. After `commit` this does nothing."""
        self._open = False
        self._stack.close()

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        if not self._open:
            raise CheckpointWriteError(
                f"the writer of {self._name} has ended; create another one for another try"
            )
        try:
            yield
        except BaseException:
            self.abort()
            raise

    @contextmanager
    def _advising(self) -> Iterator[None]:
        try:
            yield
        except CheckpointWriteError as exc:
            if not self._advice:
                raise
            raise CheckpointWriteError(f"{exc}; {self._advice}") from exc.__cause__


def write_through(path: Path, data: bytes) -> None:
    """Write a new file whose bytes are on the disk when this returns.

    Raises:
        CheckpointWriteError: no room or no permission.
    """
    with writing(path), path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
