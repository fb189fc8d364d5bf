"""What a training session does with other ranks: on the executor, by every rank alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor

from glm3sdk.adapters.mindspore.model.collectives import GatherRows, Group
from glm3sdk.adapters.mindspore.model.optimizer import OptimizerState
from glm3sdk.adapters.mindspore.model.reduction import ReduceGraph, Reduction
from glm3sdk.adapters.mindspore.ranks import Ranks
from glm3sdk.adapters.mindspore.weights import tensor_to_host
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.sharding import shape_of
from glm3sdk.domain.tensor_shares import FIRST_MOMENT, Rows, Share
from glm3sdk.ports.arrays import FloatArray, HostArray


class SharedState:
    """The shares of a session's tensors, and what ranks tell each other.

    Args:
        ranks: this rank and the others.
        lora: the adapter that is trained, if one is.

    Attributes:
        shares: which part of each tensor each rank has.
        gather_graph: brings numbers of all ranks together.
    """

    def __init__(self, ranks: Ranks, lora: Lora | None) -> None:
        self.shares = ranks.shares(lora)
        self.gather_graph = GatherRows(ranks.every)
        self._ranks = ranks
        self._place = ranks.place

    def micro_batch(self, index: int) -> int:
        """The number, among all ranks' micro-batches, of this rank's own."""
        return self._place.micro_batch(index)

    def total(self, count: int) -> int:
        """The sum of a count over data ranks."""
        return int(self._gather([count])[:, 0].sum()) // self._place.plan.tensor

    def mean(self, loss: float, tokens: int) -> tuple[float, int]:
        """The mean loss over the labels of all data ranks, and their number."""
        every = self._gather([loss, tokens])
        total = every[:, 1].sum()
        mean = float((every[:, 0] * every[:, 1]).sum() / max(total, 1.0))
        return mean, int(total) // self._place.plan.tensor

    def loss_and_norm(self, every: FloatArray) -> tuple[float, float]:
        """The loss and the gradient's norm, of what `ReduceGraph` gives."""
        # In float64 and in one order: every rank finds the same to the last bit.
        loss, squares = every.astype(np.float64).sum(axis=0).tolist()
        return loss / self._place.plan.tensor, math.sqrt(squares)

    def share(self, name: str) -> Share:
        """What this rank computes with of a tensor."""
        return self.shares.share(name, self._place)

    def stored_shape(self, parameter: Parameter) -> tuple[int, ...]:
        """The shape of what this rank stores of a tensor."""
        return shape_of(self.shares.stored(parameter.name, self._place))

    def stored(self, parameter: Parameter) -> HostArray:
        """What this rank stores of a tensor; rows that others hold come from them."""
        held = tensor_to_host(parameter)
        if not self.shares.exchanged(parameter.name):
            return held
        whole = self._ranks.exchanged(self.shares, parameter.name, held)
        return np.ascontiguousarray(whole[self.shares.stored(parameter.name, self._place)])

    def optimizer_state(self, parameters: list[Parameter]) -> OptimizerState:
        """Gradients, and this rank's shards of moments and float32 copies."""
        shards = [self._shard(parameter) for parameter in parameters]
        scatters = [self._scatters(parameter) for parameter in parameters]
        return OptimizerState(parameters, shards, scatters)

    def gathers(self, parameters: Sequence[Parameter]) -> list[Group | None]:
        """For each Parameter, the ranks that update the other shards of it."""
        return [
            self._ranks.group(self._place.shard_ranks(self._shards(parameter)))
            for parameter in parameters
        ]

    def reduce_graph(self, state: OptimizerState) -> ReduceGraph:
        """The graph that sums what the ranks accumulated."""
        reductions = tuple(self._reduction(parameter) for parameter in state.parameters)
        return ReduceGraph(state, reductions, self._ranks.every)

    def _reduction(self, parameter: Parameter) -> Reduction:
        name, length = parameter.name, parameter.shape[0]
        sums = self.shares.sums(name, self._place)
        scatters = self._scatters(parameter)
        kept = self._shard(parameter) if scatters else None
        first, last = kept or (0, length)
        alike = self._place.plan.tensor if self.shares.is_replicated(name) else 1
        # A range ends where other ranks begin to have the same rows.
        bound = sums.rows[0] if sums and alike == 1 else length
        copies = len(sums.ranks) if sums and alike == 1 else 1
        over_data = 1 if scatters else self._place.plan.data
        ranges = (
            ((first, min(last, bound)), 1.0 / (alike * over_data)),
            ((max(first, bound), last), 1.0 / (copies * over_data)),
        )
        return Reduction(
            rows=sums.rows if sums else (0, length),
            partial=self._ranks.group(sums.ranks) if sums else None,
            data=self._ranks.data,
            scatters=scatters,
            weights=tuple(
                (start - first, stop - first, weight)
                for (start, stop), weight in ranges
                if start < stop
            ),
        )

    def _shards(self, parameter: Parameter) -> int:
        return self.shares.shards(FIRST_MOMENT + parameter.name)

    def _shard(self, parameter: Parameter) -> Rows | None:
        """The rows of a Parameter that this rank updates; None for all."""
        shards = self._shards(parameter)
        if shards == 1:
            return None
        length = parameter.shape[0] // shards
        index = self._place.data_rank % shards
        return index * length, (index + 1) * length

    def _scatters(self, parameter: Parameter) -> bool:
        return self._ranks.scatters and 1 < self._shards(parameter) == self._place.plan.data

    def _gather(self, values: Sequence[float]) -> FloatArray:
        """Numbers of every rank, `[ranks, N]`; integers are exact below 2^24."""
        gathered = self.gather_graph(Tensor(np.array([values], np.float32))).asnumpy()
        return np.asarray(gathered, np.float64)
