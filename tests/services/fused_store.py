"""A checkpoint store whose process ends at any place that a test chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs

from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointStore, CheckpointWriter, TensorSpec


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Ends the process at the n-th of the places that a run passes."""

    def __init__(self, burns_at: int | None = None) -> None:
        self.places: list[str] = []
        self._burns_at = burns_at

    def pass_by(self, place: str) -> None:
        self.places.append(place)
        if len(self.places) - 1 == self._burns_at:
            raise Killed(place)


@attrs.frozen
class FusedWriter:
    writer: CheckpointWriter
    fuse: Fuse

    def add_tensors(
        self, file: str, specs: Mapping[str, TensorSpec], values: Iterable[tuple[str, HostArray]]
    ) -> None:
        def passing() -> Iterator[tuple[str, HostArray]]:
            for name, value in values:
                self.fuse.pass_by(f"before tensor {name}")
                yield name, value

        self.writer.add_tensors(file, specs, passing())

    def add_file(self, file: str, data: bytes) -> None:
        self.fuse.pass_by(f"before file {file}")
        self.writer.add_file(file, data)

    def commit(self) -> None:
        self.fuse.pass_by("before commit")
        self.writer.commit()
        self.fuse.pass_by("after commit")

    def abort(self) -> None:
        self.writer.abort()


@attrs.frozen
class FusedStore:
    store: CheckpointStore
    fuse: Fuse

    def open(self, uri: str) -> object:
        return self.store.open(uri)

    def create(self, uri: str) -> FusedWriter:
        self.fuse.pass_by("before create")
        return FusedWriter(self.store.create(uri), self.fuse)

    def list(self, uri: str) -> tuple[str, ...]:
        return self.store.list(uri)

    def delete(self, uri: str) -> None:
        self.fuse.pass_by("before delete")
        self.store.delete(uri)
        self.fuse.pass_by("after delete")
