"""A table that several ranks train together, as threads of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from glm3sdk.domain.sharding import Layout, Region, Strategy, shape_of
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.cluster_topology import ClusterTopology
from glm3sdk.ports.training import StatePart, StepMetrics, TokenBatch
from glm3sdk.testing import ScriptedTraining


class Board:
    """Where ranks put what the others take."""

    def __init__(self, size: int) -> None:
        self._slots: list[Any] = [None] * size

    def share(self, topology: ClusterTopology, value: Any) -> list[Any]:
        """Everybody's values, in the order of the ranks."""
        self._slots[topology.placement.rank_id] = value
        topology.barrier()
        values = list(self._slots)
        topology.barrier()
        return values


def spread_over(ranks: int) -> Callable[[Iterable[str]], Strategy]:
    """Weights by rows; of the moments each rank holds a shard, and one matrix is on all."""

    def layout(name: str) -> Layout:
        if name.startswith("second_moment."):
            return Layout([ranks], [-1, -1])
        if name.startswith("first_moment."):
            return Layout([ranks], [-1, -1], (), (), 1, ranks)
        return Layout([ranks], [0, -1])

    return lambda names: Strategy(({name: layout(name) for name in names},))


class SharedTable(ScriptedTraining):
    """Takes the steps that one process takes with all ranks' micro-batches.

    Args:
        topology: this rank's.
        board: all ranks'.
    """

    def __init__(
        self, vocab_size: int, *, topology: ClusterTopology, board: Board, **settings: Any
    ) -> None:
        super().__init__(vocab_size, **settings)
        self._topology, self._board = topology, board

    def train_step(self, micro_batches: Sequence[TokenBatch], **settings: Any) -> StepMetrics:
        every = self._board.share(self._topology, micro_batches)
        # Number i of rank r is number i x ranks + r of all.
        together = [batch for row in zip(*every, strict=True) for batch in row]
        return super().train_step(together, **settings)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        parts = [super(SharedTable, self).eval_loss(each) for each in self._share(batch)]
        tokens = sum(part.tokens for part in parts)
        loss = sum(part.loss * part.tokens for part in parts) / max(tokens, 1)
        return StepMetrics(loss=loss, tokens=tokens)

    def specs(self, part: StatePart) -> Mapping[str, TensorSpec]:
        return {
            name: TensorSpec(shape_of(self._region(name, spec.shape)), spec.dtype)
            for name, spec in super().specs(part).items()
        }

    def state(self, part: StatePart) -> Iterator[tuple[str, HostArray]]:
        for name, value in super().state(part):
            # Ranks exchange rows: who does not come keeps the others waiting.
            self._share(None)
            yield name, value[self._region(name, value.shape)].copy()

    def _share(self, value: Any) -> list[Any]:
        return self._board.share(self._topology, value)

    def _region(self, name: str, shape: tuple[int, ...]) -> Region:
        placement = self._topology.placement
        strategy = spread_over(placement.rank_size)([name] if shape else ["-"])
        return (strategy.region(name, shape, placement.rank_id) or ()) if shape else ()
