"""Checkpoints of many ranks as one, and one as many, read piece by piece when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import attrs
import numpy as np

from glm3sdk.domain.sharding import Region, Strategy, overlap, shape_of, within
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import DTYPES, index_ranges

_NAMED = 3


@attrs.frozen
class Shard:
    """What one rank wrote.

    Attributes:
        reader: its tensors.
        label: what to call it in a message, such as its file's path.
    """

    reader: CheckpointReader
    label: str


class MergedShards:
    """A `CheckpointReader` of the whole tensors of a sharded checkpoint.

    Nothing is read before it is asked for, and then only from the ranks that have it; of
    replicas the lowest rank is read, and the others need not be there. Tensors that the strategy
    does not list are whole on every rank that has them. Strategies list tensors that a checkpoint
    need not have, such as the optimizer's.

    Args:
        shards: what each rank wrote, in the order of the ranks.
        strategy: how they were laid out.

    Attributes:
        left_out: names of the entries that are no tensors of numbers, such as texts.

    Raises:
        InvalidCheckpointError: another number of ranks than the strategy has, a part of a tensor
            that no rank has, or a shape or a dtype that contradicts the strategy or other ranks.
    """

    def __init__(self, shards: Sequence[Shard], strategy: Strategy) -> None:
        if len(shards) != strategy.world_size:
            raise InvalidCheckpointError(
                f"the strategy is for {strategy.world_size} ranks ({len(strategy.stages)} stages "
                f"of {strategy.devices}), and the checkpoint has {len(shards)}; pass the strategy "
                "of the run that wrote it, with the files of all its stages"
            )
        self._shards, self._strategy = tuple(shards), strategy
        self._listed = [shard.reader.tensors for shard in shards]
        first: dict[str, TensorSpec] = {}
        for listed in self._listed:
            for name, spec in listed.items():
                first.setdefault(name, spec)
        self.left_out = tuple(name for name, spec in first.items() if spec.dtype not in DTYPES)
        self._tensors: dict[str, TensorSpec] = {}
        for name, spec in first.items():
            if spec.dtype in DTYPES:
                try:
                    self._tensors[name] = self._full_spec(name, spec)
                except InvalidCheckpointError as exc:
                    raise InvalidCheckpointError(f"tensor {name}: {exc}") from exc
        _require_any(self._tensors, strategy)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with the shape of the whole of it, and its dtype."""
        return MappingProxyType(self._tensors)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it; only what is needed of the ranks' shards is read.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, or a shard
                that cannot be read.
        """
        spec = _spec(self._tensors, name)
        wanted = tuple(slice(*bounds) for bounds in index_ranges(name, spec.shape, index))
        values = np.empty(shape_of(wanted), numpy_dtype(spec.dtype))
        missing = values.size
        seen: set[tuple[tuple[int, int], ...]] = set()
        for rank, region in self._held(name, spec.shape):
            common = overlap(region, wanted)
            if common is None or _bounds(region) in seen:
                continue
            seen.add(_bounds(region))
            piece = self._shards[rank].reader.read(name, within(common, region))
            missing -= piece.size
            if piece.shape == values.shape:
                return piece
            values[within(common, wanted)] = piece
            if not missing:
                break
            del piece  # or it stays in memory beside the next one
        return values

    def check_replicas(self, name: str) -> None:
        """Read every rank's share of a tensor and compare it with what `read` gives.

        Raises:
            InvalidCheckpointError: replicas that differ; the message names two ranks.
        """
        spec = _spec(self._tensors, name)
        earlier: dict[int, Region] = {}
        for rank, region in self._held(name, spec.shape):
            # Stages that share a tensor may split it differently, so regions need not be equal.
            others = (other for other, part in earlier.items() if overlap(region, part) is not None)
            other = next(others, None)
            if other is None:
                earlier[rank] = region
                continue
            found = self._shards[rank].reader.read(name)
            if found.tobytes() != self.read(name, region).tobytes():
                raise InvalidCheckpointError(
                    f"tensor {name} of rank {rank} ({self._shards[rank].label}) differs from its "
                    f"replica of rank {other} ({self._shards[other].label}); are all files of "
                    "the same step, and the strategy of the same run?"
                )

    def _held(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[int, Region]]:
        """The ranks that have a part of a tensor, and which."""
        for rank in self._strategy.holders(name):
            if name in self._listed[rank]:
                region = self._strategy.region(name, shape, rank)
                if region is not None:
                    yield rank, region

    def _full_spec(self, name: str, first: TensorSpec) -> TensorSpec:
        """The spec of a whole tensor, after a look at every rank's share of it."""
        layouts = self._strategy.layouts(name)
        there = [rank for rank, listed in enumerate(self._listed) if name in listed]
        if not layouts:
            for rank in there:
                if self._listed[rank][name] != first:
                    raise InvalidCheckpointError(
                        f"{self._found(name, rank)}, and {self._found(name, there[0])}; a tensor "
                        "that the strategy does not list is the same on every rank. Is it the "
                        "strategy of the same run?"
                    )
            return first
        full = next(iter(layouts.values())).full_shape(first.shape)
        regions = {
            rank: self._strategy.region(name, full, rank) or ()
            for rank in self._strategy.holders(name)
        }
        self._check_present(there, regions)
        for rank in there:
            expected = TensorSpec(shape_of(regions[rank]), first.dtype)
            if self._listed[rank][name] != expected:
                raise InvalidCheckpointError(
                    f"{self._found(name, rank)}, and by the strategy and "
                    f"{self._found(name, there[0])} it is {expected.dtype} of shape "
                    f"{list(expected.shape)}; use the strategy and the files of one run"
                )
        return TensorSpec(full, first.dtype)

    def _check_present(self, there: Sequence[int], regions: Mapping[int, Region]) -> None:
        if extra := sorted(set(there) - set(regions)):
            raise InvalidCheckpointError(
                f"it is in {self._named(extra)}, and the strategy lists it for other stages "
                "only; pass the strategy of the run that wrote it"
            )
        # One rank may write what several hold.
        written = {_bounds(regions[rank]) for rank in there}
        if lacking := [rank for rank in regions if _bounds(regions[rank]) not in written]:
            raise InvalidCheckpointError(
                f"it is missing from {self._named(lacking)} and there on {self._named(there)}; "
                "are all files of the same step, and the strategy of the same run?"
            )

    def _named(self, ranks: Sequence[int]) -> str:
        return _few([f"rank {rank} ({self._shards[rank].label})" for rank in ranks])

    def _found(self, name: str, rank: int) -> str:
        spec = self._listed[rank][name]
        return f"{self._named([rank])} has {spec.dtype} of shape {list(spec.shape)}"


class RankView:
    """A `CheckpointReader` of what one rank holds of a checkpoint.

    A tensor that the strategy lists only for other stages is not there; one that it does not
    list at all is there whole. Entries that are no tensors of numbers are left out.

    Args:
        full: whole tensors.
        strategy: how to lay them out.
        rank: whose share it is.

    Raises:
        InvalidCheckpointError: a tensor whose shape the layout does not divide, or no such rank.
    """

    def __init__(self, full: CheckpointReader, strategy: Strategy, rank: int) -> None:
        self._full = full
        self._regions: dict[str, Region] = {}
        self._tensors: dict[str, TensorSpec] = {}
        for name, spec in full.tensors.items():
            if spec.dtype not in DTYPES:
                continue
            try:
                region = strategy.region(name, spec.shape, rank)
            except InvalidCheckpointError as exc:
                raise InvalidCheckpointError(f"tensor {name}: {exc}") from exc
            if region is not None:
                self._regions[name] = region
                self._tensors[name] = attrs.evolve(spec, shape=shape_of(region))

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The rank's tensors, with the shapes of its shares."""
        return MappingProxyType(self._tensors)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read the rank's share of a tensor, or a slice of the share.

        Raises:
            InvalidCheckpointError: no such tensor, or an index that does not fit the share.
        """
        spec = _spec(self._tensors, name)
        ranges = index_ranges(name, spec.shape, index)
        starts = (part.start for part in self._regions[name])
        return self._full.read(
            name,
            tuple(
                slice(base + start, base + stop)
                for base, (start, stop) in zip(starts, ranges, strict=True)
            ),
        )


def split_tensors(full: CheckpointReader, strategy: Strategy) -> tuple[RankView, ...]:
    """What each rank holds of a checkpoint, in the order of the ranks.

    `full` may be a `MergedShards`: then a sharded checkpoint is laid out anew, and each share is
    read from the ranks that have a part of it.

    Raises:
        InvalidCheckpointError: the strategy lists none of the tensors, or does not divide one.
    """
    _require_any(full.tensors, strategy)
    return tuple(RankView(full, strategy, rank) for rank in range(strategy.world_size))


def _spec(tensors: Mapping[str, TensorSpec], name: str) -> TensorSpec:
    if name not in tensors:
        raise InvalidCheckpointError(f"no tensor {name!r} in this checkpoint")
    return tensors[name]


def _bounds(region: Region) -> tuple[tuple[int, int], ...]:
    """A region as a value that can be in a set."""
    return tuple((part.start, part.stop) for part in region)


def _require_any(tensors: Mapping[str, TensorSpec], strategy: Strategy) -> None:
    if not any(strategy.layouts(name) for name in tensors):
        raise InvalidCheckpointError(
            f"the strategy lists none of the checkpoint's tensors ({_few(list(tensors))}); "
            "pass a strategy of the same model, with the same names"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
