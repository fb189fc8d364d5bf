"""Sharded checkpoints: merged into one, or laid out over other ranks."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from glm3sdk.adapters.storage.file_check import check_file
from glm3sdk.adapters.storage.known_digests import known_digest
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.rank_files import (
    find_rank_files,
    new_directory,
    new_file,
    require_absent,
)
from glm3sdk.adapters.storage.stored_model import SHARDED, files_of, open_stored
from glm3sdk.adapters.storage.strategy_file import read_strategy
from glm3sdk.adapters.storage.tensor_file import (
    open_tensor_file,
    require_suffix,
    write_tensor_file,
)
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import numpy_dtype
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import DTYPES, is_plain_name
from glm3sdk.services.resharding import MergedShards, Shard, split_tensors

PREFIX = "checkpoint_"
FORMATS = ("ckpt", "safetensors")
_GB = 10**9


@attrs.frozen
class TensorFile:
    """A file that was written.

    Attributes:
        path: where it is; its sha256 is beside it, in PATH.sha256.
        tensors: how many it has.
        size: in bytes.
        sha256: in hexadecimal.
    """

    path: Path
    tensors: int
    size: int
    sha256: str


@attrs.frozen
class ReshardedCheckpoint:
    """What `merge_checkpoint` or `split_checkpoint` wrote.

    Attributes:
        path: the file, or the directory of ranks.
        source_ranks: number of files that were read.
        files: what was written, in the order of the ranks.
        left_out: entries of the source that are no tensors of numbers, such as texts.
    """

    path: Path
    source_ranks: int
    files: tuple[TensorFile, ...]
    left_out: tuple[str, ...]


Progress = Callable[[int, int], None]
"""Is told how many bytes were checked and written so far, and how many will be in all."""


def merge_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    strategy: str | os.PathLike[str],
    check_replicas: bool = False,
    progress: Progress | None = None,
) -> ReshardedCheckpoint:
    """Write a sharded checkpoint as one file of whole tensors.

    It appears when it is whole and was read back. Files that have their sha256 beside them are
    compared with it first. Of replicas the lowest rank's is taken. Memory: two tensors and a
    shard.

    Args:
        source: a directory of rank_0, rank_1, ..., with one .ckpt or .safetensors file each.
        out: a file that is not there yet; .ckpt or .safetensors, as its name ends.
        strategy: the strategy file of the run that wrote it, or the directory of its stages'.
            Nothing is written there.
        check_replicas: compare all replicas, which reads every rank's file.
        progress: is told how far it is.

    Returns:
        The file that was written, its sha256, and what was left out.

    Raises:
        InvalidCheckpointError: files or a strategy that cannot be used, or `out` is there.
        UnsafeCheckpointError: a link leads out of `source`.
        CheckpointWriteError: no room or no permission; nothing is left.
    """
    target = _target(out)
    require_suffix(target)
    _require_apart(target, strategy)
    require_absent(target)
    opened = _open_sharded(Path(source), strategy)
    meter = _Meter(opened.files, [opened.reader], progress)
    meter.require_space(target)
    opened.check(meter, replicas=check_replicas)
    with new_file(target) as path:
        written = _write(path, opened.reader, meter)
    return opened.result(target, [attrs.evolve(written, path=target)])


def split_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    strategy: str | os.PathLike[str] | None,
    source_strategy: str | os.PathLike[str] | None = None,
    prefix: str = PREFIX,
    format: str = FORMATS[0],
    check_replicas: bool = False,
    progress: Progress | None = None,
) -> ReshardedCheckpoint:
    """Write a checkpoint as OUT/rank_N/PREFIXN.ckpt, laid out as a strategy says.

    The directory appears when it is whole and every file was read back. A sharded source is not
    merged on the way: each rank's share is read from the ranks that have a part of it.

    Args:
        source: a file of tensors, a model's directory, or a directory of rank_0, rank_1, ...
        out: a directory that is not there yet, or is empty.
        strategy: the strategy to lay it out by; None is one rank that has everything.
        source_strategy: of the run that wrote `source`; None is one file of whole tensors.
        prefix: what file names begin with.
        format: "ckpt" or "safetensors".
        check_replicas: compare all replicas of a sharded source.
        progress: is told how far it is.

    Returns:
        The files that were written, a rank's each, their sha256, and what was left out.

    Raises:
        InvalidCheckpointError: files or a strategy that cannot be used, or `out` is there.
        UnsafeCheckpointError: a link leads out of `source`.
        CheckpointWriteError: no room or no permission; nothing is left.
    """
    target = _target(out)
    names = f"{prefix}{{}}.{format}"
    if not is_plain_name(names) or format not in FORMATS:
        raise InvalidCheckpointError(
            f"files cannot be called {names.format('N')!r}; pass a prefix without a directory, "
            f"not hidden by a leading dot, and one of the formats {', '.join(FORMATS)}"
        )
    for given in (strategy, source_strategy):
        _require_apart(target, given)
    if strategy is None and source_strategy is None:
        raise InvalidCheckpointError(
            "there is nothing to do without a strategy; pass that of the source, of the "
            "destination, or both"
        )
    require_absent(target)
    if source_strategy is None:
        opened = _open_whole(Path(source))
    else:
        opened = _open_sharded(Path(source), source_strategy)
    ranks: Sequence[CheckpointReader] = [opened.reader]
    if strategy is not None:
        ranks = split_tensors(opened.reader, read_strategy(strategy))
    meter = _Meter(opened.files, ranks, progress)
    meter.require_space(target)
    opened.check(meter, replicas=check_replicas)
    written = []
    with new_directory(target) as directory:
        for rank, reader in enumerate(ranks):
            place = Path(f"rank_{rank}", names.format(rank))
            with writing(target):
                (directory / place.parent).mkdir()
            written.append(
                attrs.evolve(_write(directory / place, reader, meter), path=target / place)
            )
    return opened.result(target, written)


def open_sharded(source: str | os.PathLike[str], strategy: str | os.PathLike[str]) -> MergedShards:
    """Open a sharded checkpoint: the whole tensors, put together when they are read.

    Args:
        source: a directory of rank_0, rank_1, ...
        strategy: the strategy of the run that wrote it.

    Raises:
        InvalidCheckpointError: files or a strategy that cannot be used.
        UnsafeCheckpointError: a link leads out of `source`.
    """
    files = find_rank_files(Path(source))
    shards = [Shard(open_tensor_file(file), str(file)) for file in files]
    return MergedShards(shards, read_strategy(strategy))


@attrs.frozen
class _Opened:
    """A source: its tensors, its files with what a manifest says of them, its ranks."""

    reader: CheckpointReader
    files: Mapping[Path, FileEntry | None]
    ranks: int
    left_out: tuple[str, ...]

    def check(self, meter: _Meter, *, replicas: bool) -> None:
        """Compare files with their sha256, where it is known, and replicas with each other."""
        for file, entry in self.files.items():
            check_file(file, known_digest(file, entry), meter.add)
        if replicas and isinstance(self.reader, MergedShards):
            for name in self.reader.tensors:
                self.reader.check_replicas(name)

    def result(self, path: Path, files: Iterable[TensorFile]) -> ReshardedCheckpoint:
        return ReshardedCheckpoint(path, self.ranks, tuple(files), self.left_out)


class _Meter:
    """Counts the bytes of files that are checked, and of tensors that are written."""

    def __init__(
        self,
        files: Iterable[Path],
        readers: Iterable[CheckpointReader],
        progress: Progress | None,
    ) -> None:
        self._written = sum(_bytes_of(reader.tensors) for reader in readers)
        checked = sum(file.stat().st_size for file in files if file.is_file())
        self._total = checked + self._written
        self._done, self._progress = 0, progress

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)

    def require_space(self, target: Path) -> None:
        """Check that there is room for all, before anything is written."""
        place = target.parent
        while not place.is_dir() and place != place.parent:
            place = place.parent
        with writing(place):
            free = shutil.disk_usage(place).free
        if free < self._written:
            raise CheckpointWriteError(
                f"{place} has {free / _GB:.2f} GB free and {target} takes "
                f"{self._written / _GB:.2f} GB; free some space there or write elsewhere"
            )


def _open_sharded(source: Path, strategy: str | os.PathLike[str]) -> _Opened:
    files, merged = find_rank_files(source), open_sharded(source, strategy)
    return _Opened(merged, dict.fromkeys(files), len(files), merged.left_out)


def _open_whole(source: Path) -> _Opened:
    stored, files = open_stored(source), files_of(source)
    reader = stored.reader
    if stored.kind == SHARDED:
        first, *others = files
        if others:
            raise InvalidCheckpointError(
                f"{source} has the files of {len(files)} ranks; pass the strategy of the run "
                f"that wrote them, or one rank's file ({first}) if each has everything"
            )
        reader = open_tensor_file(first)
    left_out = tuple(name for name, spec in reader.tensors.items() if spec.dtype not in DTYPES)
    return _Opened(reader, files, 1, left_out)


def _write(path: Path, reader: CheckpointReader, meter: _Meter) -> TensorFile:
    entry = write_tensor_file(path, reader, on_bytes=meter.add)
    return TensorFile(path, len(reader.tensors), entry.size, entry.sha256)


def _target(out: str | os.PathLike[str]) -> Path:
    path = Path(os.path.abspath(out))
    if not path.name or path.name.startswith("."):
        raise InvalidCheckpointError(
            f"nothing can be written to {os.fspath(out)!r}; pass a path whose last name does not "
            "begin with a dot"
        )
    return path


def _require_apart(target: Path, strategy: str | os.PathLike[str] | None) -> None:
    """What is written must not be taken for a strategy the next time."""
    if strategy is not None and target.parent.resolve() == Path(strategy).resolve():
        raise InvalidCheckpointError(
            f"{target} would lie between the strategy files; pass another path"
        )


def _bytes_of(tensors: Mapping[str, TensorSpec]) -> int:
    return sum(
        math.prod(spec.shape) * numpy_dtype(spec.dtype).itemsize for spec in tensors.values()
    )
