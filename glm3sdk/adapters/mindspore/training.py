"""A training session on MindSpore: every weight, on one device."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn

from glm3sdk.adapters.mindspore.context import free_graphs, free_unused
from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.model.loss import CausalLoss
from glm3sdk.adapters.mindspore.model.optimizer import ApplyGraph, GradientGraph, OptimizerState
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.adapters.mindspore.weights import tensor_to_host
from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidDatasetError, NonFiniteLossError, ServiceClosedError
from glm3sdk.ports.arrays import HostArray, IntArray
from glm3sdk.ports.training import AdamW, StepMetrics, TokenBatch


class MindSporeTrainingSession:
    """A `TrainingSession`; see the port. A graph is compiled once per batch shape."""

    def __init__(
        self, config: Glm3Config, profile: DeviceProfile, cells: Glm3Cells, *, optimizer: AdamW
    ) -> None:
        self._closed = False
        self._graphs = translated(
            lambda: TrainingGraphs(config, profile, cells, optimizer=optimizer)
        )
        # MindSpore frees a graph on the thread that made it, never in a collection elsewhere.
        finalizer = weakref.finalize(self, EXECUTOR.post, self._graphs.release)
        finalizer.atexit = False

    @property
    def compiled_graphs(self) -> int:
        """Graphs compiled so far."""
        return sum(len(graph.compile_cache) for graph in self._open_graphs().compiled)

    def train_step(
        self, micro_batches: Sequence[TokenBatch], *, learning_rate: float
    ) -> StepMetrics:
        """Take one optimizer step; see the port.

        Raises:
            InvalidDatasetError: no label of the step counts.
            NonFiniteLossError: nothing was updated.
        """
        graphs = self._open_graphs()
        tokens = sum(_counted(batch) for batch in micro_batches)
        if tokens == 0:
            raise InvalidDatasetError("every label of this step is masked: nothing to learn")
        loss, norm = translated(lambda: graphs.train(micro_batches, tokens, learning_rate))
        if not math.isfinite(loss + norm):
            raise NonFiniteLossError(
                f"the loss ({loss}) or its gradient (norm {norm}) is not finite; nothing was "
                "updated. Lower the learning rate, or look for a bad record in this batch"
            )
        return StepMetrics(loss=loss, tokens=tokens, grad_norm=norm)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        """Loss of a batch; see the port."""
        graphs, tokens = self._open_graphs(), _counted(batch)
        return StepMetrics(loss=translated(lambda: graphs.evaluate(batch, tokens)), tokens=tokens)

    def weights(self) -> Iterator[tuple[str, HostArray]]:
        """Every weight under its Hugging Face name."""
        for parameter in self._open_graphs().parameters:
            self._open_graphs()
            yield parameter.name, translated(functools.partial(tensor_to_host, parameter))

    def close(self) -> None:
        """Free graphs and optimizer state; the weights stay as they were trained."""
        self._closed = True
        EXECUTOR.clear_up(self._graphs.release)

    def _open_graphs(self) -> TrainingGraphs:
        if self._closed:
            raise ServiceClosedError("this training session was closed; start another one")
        return self._graphs


class TrainingGraphs:
    """Graphs and optimizer state of one session; every method runs on the executor."""

    def __init__(
        self, config: Glm3Config, profile: DeviceProfile, cells: Glm3Cells, *, optimizer: AdamW
    ) -> None:
        self._config = config
        self._profile = profile
        self._cells = cells
        self._losses: dict[int, CausalLoss] = {}
        self._gradients: dict[tuple[int, bool], GradientGraph] = {}
        self.parameters: list[Parameter] = list(cells.get_parameters())
        _require_gradients(self.parameters, required=True)
        self._state = OptimizerState(self.parameters)
        self._apply = ApplyGraph(self._state, optimizer)

    @property
    def compiled(self) -> tuple[nn.Cell, ...]:
        """Every cell that is compiled as a graph."""
        return (*self._losses.values(), *self._gradients.values(), self._apply)

    def train(
        self, micro_batches: Sequence[TokenBatch], tokens: int, learning_rate: float
    ) -> tuple[float, float]:
        """Return loss and gradient norm; weights change if both are finite."""
        loss = norm = 0.0
        weight = Tensor(np.float32(1.0 / tokens))
        for index, batch in enumerate(micro_batches):
            graph = self._gradient_graph(batch.input_ids.shape[1], accumulate=index > 0)
            part, norm = graph(*_tensors(batch), weight).asnumpy().tolist()
            loss += part
        if math.isfinite(loss + norm):
            self._apply(Tensor(np.float32(norm)), Tensor(np.float32(learning_rate)))
        return loss, norm

    def evaluate(self, batch: TokenBatch, tokens: int) -> float:
        """Mean loss of a batch."""
        weight = Tensor(np.float32(1.0 / max(tokens, 1)))
        return float(self._loss(batch.input_ids.shape[1])(*_tensors(batch), weight).asnumpy())

    def release(self) -> None:
        """Drop graphs and state; a second time changes nothing."""
        if not self.__dict__:
            return
        _require_gradients(self.parameters, required=False)
        free_graphs(self.compiled)
        # No local name may stand for a cell now, or it would not be freed.
        self.__dict__.clear()
        free_unused()

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


def _require_gradients(parameters: list[Parameter], *, required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = required


def _counted(batch: TokenBatch) -> int:
    return int(np.count_nonzero(batch.labels != IGNORED_LABEL))


def _tensors(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    def tensor(values: IntArray) -> Tensor:
        return Tensor(np.ascontiguousarray(values, dtype=np.int32))

    return tensor(batch.input_ids), tensor(batch.labels)
