"""A run's state in parts: each rank stores its own, and any number of ranks reads the whole.

    RUN/shards/NAME/strategy.ckpt                        how tensors are spread, for MindSpore too
    RUN/shards/NAME/rank_0/checkpoint_0.safetensors      what rank 0 stores
    RUN/shards/NAME/rank_1/checkpoint_1.safetensors

NAME is a checkpoint's. Each of these directories is published as a checkpoint of the store, and
counts for nothing until RUN/checkpoints/NAME is published, which comes last: so a run that is
killed while its ranks write goes on from the checkpoint before. What several ranks hold alike,
the first of them stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import chain

import attrs

from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointStore, TensorSpec
from glm3sdk.ports.training import StatePart, TrainingSession
from glm3sdk.services.resharding import MergedShards, Shard
from glm3sdk.services.run_ranks import ALONE, RunRanks

SHARDS = "shards"
STRATEGY_FILE = "strategy.ckpt"


@attrs.frozen
class StrategyFormat:
    """How a strategy is written into a file and read again.

    Attributes:
        encode: gives the file's bytes.
        decode: reads bytes; told what to call them in a message.
    """

    encode: Callable[[Strategy], bytes]
    decode: Callable[[bytes, str], Strategy]


@attrs.frozen(kw_only=True)
class RunShards:
    """The parts of one run's checkpoints.

    Attributes:
        store: where they go.
        uri: the run's directory.
        format: of the strategy file; None can only list and remove.
        ranks: this process among those that write; it reads what any number wrote.
    """

    store: CheckpointStore
    uri: str
    format: StrategyFormat | None = None
    ranks: RunRanks = ALONE

    def write(self, name: str, session: TrainingSession, *parts: StatePart) -> None:
        """Store this rank's part of a session's state; every rank calls this alike.

        Raises:
            CheckpointWriteError: it could not be written, or the first rank does not see it.
            RuntimeFailureError: another rank could not.
        """
        specs = {name: spec for part in parts for name, spec in session.specs(part).items()}
        strategy = spread(self.ranks, specs)
        self.ranks.lead(lambda: self._begin(name, strategy))
        values = chain.from_iterable(map(session.state, parts))

        def store_part() -> None:
            try:
                self._write_part(name, strategy, specs, values)
            except Exception:
                # The others go on exchanging rows with this rank.
                for _ in values:
                    pass
                raise

        self.ranks.together(store_part)
        self.ranks.lead(lambda: self._require_visible(name))

    def open(self, name: str, *, verified_by: RunRanks | None = None) -> MergedShards:
        """What all ranks stored, as whole tensors.

        Args:
            name: the checkpoint's.
            verified_by: the ranks that read every part whole first, each some of them, and
                compare it with its sha256; None does not.

        Raises:
            InvalidCheckpointError: a part is missing or damaged, or they do not belong together.
        """
        place = self._place(name)
        base = self.store.open(place)
        strategy = self._format.decode(base.read_file(STRATEGY_FILE), f"{place}/{STRATEGY_FILE}")
        shards = []
        for rank in range(strategy.world_size):
            uri = f"{place}/rank_{rank}"
            part = self.store.open(uri)
            if verified_by and rank % verified_by.size == verified_by.rank_id:
                part.verify()
            shards.append(Shard(part, uri))
        return MergedShards(shards, strategy)

    def names(self) -> tuple[str, ...]:
        """Names of the checkpoints of which there are parts, or what killed ranks left."""
        return tuple(uri.rsplit("/", 1)[1] for uri in self.store.list(f"{self.uri}/{SHARDS}"))

    def delete(self, name: str) -> None:
        """Remove the parts of a checkpoint."""
        place = self._place(name)
        for uri in (*self.store.list(place), place):
            self.store.delete(uri)

    @property
    def _format(self) -> StrategyFormat:
        assert self.format is not None  # noqa: S101  # whoever has several ranks gives one
        return self.format

    def _place(self, name: str) -> str:
        return f"{self.uri}/{SHARDS}/{name}"

    def _begin(self, name: str, strategy: Strategy) -> None:
        """Make place for the ranks' parts, of which none may be left of an earlier try."""
        if name in self.names():
            self.delete(name)
        writer = self.store.create(self._place(name))
        try:
            writer.add_file(STRATEGY_FILE, self._format.encode(strategy))
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _write_part(
        self,
        name: str,
        strategy: Strategy,
        specs: Mapping[str, TensorSpec],
        values: Iterable[tuple[str, HostArray]],
    ) -> None:
        rank = self.ranks.rank_id
        mine = {name: spec for name, spec in specs.items() if _stores(strategy, rank, name, spec)}
        writer = self.store.create(f"{self._place(name)}/rank_{rank}")
        try:
            # All values are asked for: the ranks exchange rows of each.
            kept = ((tensor, value) for tensor, value in values if tensor in mine)
            writer.add_tensors(f"checkpoint_{rank}.safetensors", mine, kept)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _require_visible(self, name: str) -> None:
        try:
            self.open(name)
        except InvalidCheckpointError as exc:
            raise CheckpointWriteError(
                f"not every rank's part of {name} arrived where rank 0 reads it: {exc}. The output "
                "must be a directory that all nodes share, or a URI such as obs://BUCKET/RUN"
            ) from exc


def spread(ranks: RunRanks, names: Mapping[str, TensorSpec]) -> Strategy:
    """How ranks store these tensors.

    Tensors of no dimensions are left out, which means that they are whole: MindSpore reads no
    layout of one.
    """
    assert ranks.spread is not None  # noqa: S101  # several ranks have one
    return ranks.spread([name for name, spec in names.items() if spec.shape])


def whole_specs(specs: Mapping[str, TensorSpec], strategy: Strategy) -> dict[str, TensorSpec]:
    """The specs of whole tensors, from those of what one rank stores."""
    return {
        name: attrs.evolve(spec, shape=_full_shape(strategy, name, spec))
        for name, spec in specs.items()
    }


def _full_shape(strategy: Strategy, name: str, spec: TensorSpec) -> tuple[int, ...]:
    layouts = strategy.layouts(name)
    return layouts[0].full_shape(spec.shape) if layouts else spec.shape


def _stores(strategy: Strategy, rank: int, name: str, spec: TensorSpec) -> bool:
    """Whether a rank is the first of those that hold the same part of a tensor."""
    layouts = strategy.layouts(name)
    if not layouts:
        return rank == 0
    return _holds_first(layouts[0], layouts[0].full_shape(spec.shape), rank)


@cache  # a model has many tensors and few layouts of them
def _holds_first(layout: Layout, shape: tuple[int, ...], rank: int) -> bool:
    mine = layout.region(shape, rank)
    return all(layout.region(shape, other) != mine for other in range(rank))
