"""Which part of a tensor each rank holds: MindSpore's layouts as plain values.

A stage's ranks are numbered row by row over a matrix of devices, the last axis fastest. A
layout splits a tensor's dimensions over axes of that matrix; ranks that differ only in other
axes are replicas of each other, and the optimizer shards split a piece further among them.
The terms are those of MindSpore's node_strategy.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import attrs

from glm3sdk.errors import InvalidCheckpointError

Region = tuple[slice, ...]
"""A part of a full tensor: a slice with a start and a stop for every dimension."""

ALL_REPLICAS = -1
"""The `opt_weight_shard_size` that stands for the number of replicas."""

_MOST_RANKS = 100_000


def _integers(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _axes(tensor_map: Iterable[int | Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    parts = ((part,) if isinstance(part, int) else tuple(part) for part in tensor_map)
    return tuple(tuple(axis for axis in part if axis != -1) for part in parts)


@attrs.frozen
class Layout:
    """How a tensor is spread over the devices of a stage.

    Attributes:
        dev_matrix: sizes of the axes of the matrix of devices.
        tensor_map: for each dimension the axis that splits it, counted from the right (0 is the
            last one); -1 or () is not split, and several axes split it one in the other.
        param_split_shape: lengths of the pieces along the first dimension, one for every piece
            of the tensor, where they are not equal; else empty.
        indices_offset: kept for MindSpore; says nothing about the pieces.
        opt_weight_shard_step: from one rank to the next that has another optimizer shard.
        opt_weight_shard_size: number of optimizer shards that a piece is split into along the
            first dimension; 0 for none, `ALL_REPLICAS` for as many as there are replicas.

    Raises:
        InvalidCheckpointError: values that contradict each other.
    """

    dev_matrix: tuple[int, ...] = attrs.field(converter=_integers)
    tensor_map: tuple[tuple[int, ...], ...] = attrs.field(converter=_axes)
    param_split_shape: tuple[int, ...] = attrs.field(converter=_integers, default=())
    indices_offset: tuple[int, ...] = attrs.field(converter=_integers, default=())
    opt_weight_shard_step: int = 0
    opt_weight_shard_size: int = 0

    def __attrs_post_init__(self) -> None:
        used = [axis for axes in self.tensor_map for axis in axes]
        if any(size < 1 for size in self.dev_matrix):
            raise self._invalid("sizes of dev_matrix begin at 1")
        if any(not 0 <= axis < len(self.dev_matrix) for axis in used):
            raise self._invalid(f"dev_matrix has {len(self.dev_matrix)} axes")
        if len(set(used)) < len(used):
            raise self._invalid("an axis splits two dimensions")
        self._check_optimizer_shards()
        if self.param_split_shape:
            self._check_unequal()

    @property
    def devices(self) -> int:
        """Number of devices of the stage."""
        return math.prod(self.dev_matrix)

    @property
    def replicas(self) -> int:
        """How many devices hold the same piece, before optimizer shards split it."""
        return self.devices // math.prod(self.pieces)

    @property
    def pieces(self) -> tuple[int, ...]:
        """Into how many pieces each dimension is split, without optimizer shards."""
        return tuple(math.prod(map(self._size, axes)) for axes in self.tensor_map)

    @property
    def optimizer_shards(self) -> int:
        """Into how many shards a piece is split further, along the first dimension."""
        if self.opt_weight_shard_size == ALL_REPLICAS:
            return self.replicas
        return self.opt_weight_shard_size or 1

    def full_shape(self, shard: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole tensor, from that of the shard of the stage's first rank.

        Raises:
            InvalidCheckpointError: another number of dimensions.
        """
        self._check_dimensions(shard)
        full = [size * count for size, count in zip(shard, self.pieces, strict=True)]
        if self.param_split_shape:
            full[0] = sum(self._lengths())
        elif full:
            full[0] *= self.optimizer_shards
        return tuple(full)

    def region(self, shape: Sequence[int], rank: int) -> Region:
        """The part of a tensor that a rank holds.

        Args:
            shape: of the whole tensor.
            rank: counted within the stage.

        Raises:
            InvalidCheckpointError: a shape that cannot be split like that.
        """
        self._check_dimensions(shape)
        if not 0 <= rank < self.devices:
            raise self._invalid(f"it has no rank {rank}, only {self.devices} ranks")
        place = self._coordinates(rank)
        parts = []
        for dimension, (size, axes, count) in enumerate(
            zip(shape, self.tensor_map, self.pieces, strict=True)
        ):
            index = 0
            for axis in axes:
                index = index * self._size(axis) + place[axis]
            start, stop = self._piece(shape, dimension, size, index, count)
            parts.append(slice(start, stop))
        if parts and self.optimizer_shards > 1:
            parts[0] = self._optimizer_shard(shape, parts[0], place)
        return tuple(parts)

    def _piece(
        self, shape: Sequence[int], dimension: int, size: int, index: int, count: int
    ) -> tuple[int, int]:
        if dimension == 0 and self.param_split_shape:
            bounds = (0, *accumulate(self._lengths()))
            if bounds[-1] != size:
                raise self._invalid(f"the pieces do not make up the shape {list(shape)}")
            return bounds[index], bounds[index + 1]
        if size % count:
            raise self._invalid(f"{list(shape)} is not divisible by {list(self.pieces)}")
        return index * size // count, (index + 1) * size // count

    def _optimizer_shard(self, shape: Sequence[int], piece: slice, place: tuple[int, ...]) -> slice:
        length, shards = piece.stop - piece.start, self.optimizer_shards
        if length % shards:
            raise self._invalid(
                f"of the shape {list(shape)} a piece has {length} rows, which {shards} optimizer "
                "shards do not divide"
            )
        index = 0
        for axis in self._unused():
            index = index * self._size(axis) + place[axis]
        # With fewer shards than replicas, neighbours among the replicas share a piece out.
        start = piece.start + index % shards * (length // shards)
        return slice(start, start + length // shards)

    def _coordinates(self, rank: int) -> tuple[int, ...]:
        """A rank's place in the matrix of devices, the last axis first."""
        place = []
        for size in reversed(self.dev_matrix):
            rank, coordinate = divmod(rank, size)
            place.append(coordinate)
        return tuple(place)

    def _size(self, axis: int) -> int:
        return self.dev_matrix[-1 - axis]

    def _unused(self) -> list[int]:
        """Axes over which the tensor is replicated, from left to right."""
        used = {axis for axes in self.tensor_map for axis in axes}
        return [axis for axis in reversed(range(len(self.dev_matrix))) if axis not in used]

    def _lengths(self) -> tuple[int, ...]:
        """Lengths of the unequal pieces of the first dimension."""
        return self.param_split_shape[:: math.prod(self.pieces[1:])]

    def _check_dimensions(self, shape: Sequence[int]) -> None:
        if len(shape) != len(self.tensor_map):
            raise self._invalid(f"the shape {list(shape)} has another number of dimensions")

    def _check_unequal(self) -> None:
        lengths, others = self.param_split_shape, math.prod(self.pieces[1:])
        if not self.tensor_map or len(lengths) != math.prod(self.pieces):
            raise self._invalid(f"param_split_shape has {len(lengths)} lengths, not one a piece")
        rows = (lengths[start : start + others] for start in range(0, len(lengths), others))
        if min(lengths) < 0 or any(len(set(row)) > 1 for row in rows):
            raise self._invalid(f"param_split_shape {list(lengths)} makes no whole tensor")

    def _check_optimizer_shards(self) -> None:
        size, step = self.opt_weight_shard_size, self.opt_weight_shard_step
        if size < ALL_REPLICAS or self.replicas % self.optimizer_shards:
            raise self._invalid(
                f"{size} optimizer shards do not divide the {self.replicas} replicas"
            )
        if self.optimizer_shards == 1:
            return
        if not self.tensor_map:
            raise self._invalid("a tensor of no dimensions has no optimizer shards")
        axes = [axis for axis in self._unused() if self._size(axis) > 1]
        expected = math.prod(map(self._size, range(axes[-1])))
        # Over several axes MindSpore takes its own step, whatever the file says.
        if step < 1 or (len(axes) == 1 and step != expected):
            raise self._invalid(
                f"opt_weight_shard_step is {step}, and neighbouring replicas are {expected} apart"
            )

    def _invalid(self, what: str) -> InvalidCheckpointError:
        shown = [list(axes) if len(axes) > 1 else (*axes, -1)[0] for axes in self.tensor_map]
        return InvalidCheckpointError(
            f"the layout of dev_matrix {list(self.dev_matrix)} and tensor_map {shown} "
            f"cannot be used: {what}"
        )


@attrs.frozen
class Strategy:
    """The layouts of all tensors of a model, by stage of the pipeline.

    A stage's ranks follow those of the stage before it. A tensor that no stage lists is held
    whole by every rank.

    Attributes:
        stages: for each stage the layouts of its tensors, by name.

    Raises:
        InvalidCheckpointError: no layouts, or layouts of different numbers of devices.
    """

    stages: tuple[Mapping[str, Layout], ...]

    def __attrs_post_init__(self) -> None:
        first: dict[int, str] = {}
        for layouts in self.stages:
            for name, layout in layouts.items():
                first.setdefault(layout.devices, name)
        if not first:
            raise InvalidCheckpointError("the strategy lists no tensor; pass another one")
        if len(first) > 1:
            (some, a), (other, b), *_ = first.items()
            raise InvalidCheckpointError(
                f"the strategy spreads tensor {a} over {some} devices and {b} over {other}; "
                "all its stages have the same number of devices"
            )
        if self.world_size > _MOST_RANKS:
            raise InvalidCheckpointError(
                f"the strategy is for {self.world_size} ranks, and at most {_MOST_RANKS} are "
                "read; is it damaged?"
            )

    @property
    def devices(self) -> int:
        """Number of ranks of each stage."""
        return next(layout.devices for stage in self.stages for layout in stage.values())

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.devices * len(self.stages)

    def layouts(self, name: str) -> dict[int, Layout]:
        """A tensor's layout in each stage that lists it, by stage."""
        return {stage: part[name] for stage, part in enumerate(self.stages) if name in part}

    def holders(self, name: str) -> Iterator[int]:
        """The ranks that hold a part of a tensor, in order; all for one that is not listed."""
        stages = self.layouts(name) or range(len(self.stages))
        for stage in stages:
            yield from range(stage * self.devices, (stage + 1) * self.devices)

    def region(self, name: str, shape: Sequence[int], rank: int) -> Region | None:
        """The part of a tensor that a rank holds, or None where it is another stage's.

        Args:
            name: the tensor's.
            shape: of the whole tensor.
            rank: counted over all stages.

        Raises:
            InvalidCheckpointError: a shape that cannot be split like that, or no such rank.
        """
        stage, place = divmod(rank, self.devices)
        if not 0 <= stage < len(self.stages):
            raise InvalidCheckpointError(
                f"the strategy has ranks 0 to {self.world_size - 1}, and no rank {rank}"
            )
        layouts = self.layouts(name)
        if not layouts:
            return whole(shape)
        return layouts[stage].region(shape, place) if stage in layouts else None


def whole(shape: Sequence[int]) -> Region:
    """The region of all of a tensor."""
    return tuple(slice(0, size) for size in shape)


def shape_of(region: Region) -> tuple[int, ...]:
    """The shape of a region's values."""
    return tuple(part.stop - part.start for part in region)


def overlap(region: Region, other: Region) -> Region | None:
    """What two regions of a tensor have in common, or None."""
    common = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(region, other, strict=True)
    )
    return common if all(part.start < part.stop for part in common) else None


def within(region: Region, outer: Region) -> Region:
    """A part of an outer region, counted from the outer region's beginning."""
    return tuple(
        slice(part.start - base.start, part.stop - base.start)
        for part, base in zip(region, outer, strict=True)
    )
