"""A training session on MindSpore: every weight, on one device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Parameter, Tensor

from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.model.loss import CausalLoss
from glm3sdk.adapters.mindspore.model.optimizer import ApplyGraph, GradientGraph, OptimizerState
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.adapters.mindspore.weights import tensor_to_host
from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidDatasetError, NonFiniteLossError
from glm3sdk.ports.arrays import HostArray, IntArray
from glm3sdk.ports.training import AdamW, StepMetrics, TokenBatch


class MindSporeTrainingSession:
    """A `TrainingSession`; see the port. A graph is compiled once per sequence length."""

    def __init__(
        self, config: Glm3Config, profile: DeviceProfile, cells: Glm3Cells, *, optimizer: AdamW
    ) -> None:
        self._config = config
        self._profile = profile
        self._cells = cells
        self._losses: dict[int, CausalLoss] = {}
        self._gradients: dict[tuple[int, bool], GradientGraph] = {}

        def start() -> tuple[OptimizerState, ApplyGraph]:
            trained: list[Parameter] = list(cells.get_parameters())
            for parameter in trained:
                parameter.requires_grad = True
            state = OptimizerState(trained)
            return state, ApplyGraph(state, optimizer)

        self._state, self._apply = EXECUTOR.run(start)

    @property
    def compiled_graphs(self) -> int:
        """Graphs compiled so far."""
        graphs = (*self._losses.values(), *self._gradients.values(), self._apply)
        return sum(len(graph.compile_cache) for graph in graphs)

    def train_step(
        self, micro_batches: Sequence[TokenBatch], *, learning_rate: float
    ) -> StepMetrics:
        """Take one optimizer step; see the port."""
        tokens = sum(_counted(batch) for batch in micro_batches)
        if tokens == 0:
            raise InvalidDatasetError("every label of this step is masked: nothing to learn")
        metrics = translated(lambda: self._train(micro_batches, tokens, learning_rate))
        if metrics is None:
            raise NonFiniteLossError(
                "the loss or its gradient is not finite; nothing was updated. "
                "Lower the learning rate, or look for a bad record in this batch"
            )
        return metrics

    def _train(
        self, micro_batches: Sequence[TokenBatch], tokens: int, learning_rate: float
    ) -> StepMetrics | None:
        loss = norm = 0.0
        weight = Tensor(np.float32(1.0 / tokens))
        for index, batch in enumerate(micro_batches):
            graph = self._gradient_graph(batch.input_ids.shape[1], accumulate=index > 0)
            part, norm = graph(*_tensors(batch), weight).asnumpy().tolist()
            loss += part
        if not math.isfinite(loss + norm):
            return None
        self._apply(Tensor(np.float32(norm)), Tensor(np.float32(learning_rate)))
        return StepMetrics(loss=loss, tokens=tokens, grad_norm=norm)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        """Loss of a batch; see the port."""
        tokens = _counted(batch)
        weight = np.float32(1.0 / max(tokens, 1))

        def work() -> float:
            loss = self._loss(batch.input_ids.shape[1])
            return float(loss(*_tensors(batch), Tensor(weight)).asnumpy())

        return StepMetrics(loss=translated(work), tokens=tokens)

    def weights(self) -> Iterator[tuple[str, HostArray]]:
        """Every weight under its Hugging Face name."""
        for parameter in self._state.parameters:
            yield parameter.name, EXECUTOR.run(lambda p=parameter: tensor_to_host(p))

    def close(self) -> None:
        """Free graphs and optimizer state."""
        EXECUTOR.run(self.__dict__.clear)

    def _loss(self, seq_length: int) -> CausalLoss:
        if seq_length not in self._losses:
            self._losses[seq_length] = CausalLoss(
                self._config, self._profile, self._cells, seq_length=seq_length
            )
        return self._losses[seq_length]

    def _gradient_graph(self, seq_length: int, *, accumulate: bool) -> GradientGraph:
        key = (seq_length, accumulate)
        if key not in self._gradients:
            self._gradients[key] = GradientGraph(
                self._loss(seq_length), self._state, accumulate=accumulate
            )
        return self._gradients[key]


def _counted(batch: TokenBatch) -> int:
    return int(np.count_nonzero(batch.labels != IGNORED_LABEL))


def _tensors(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    def tensor(values: IntArray) -> Tensor:
        return Tensor(np.ascontiguousarray(values, dtype=np.int32))

    return tensor(batch.input_ids), tensor(batch.labels)
