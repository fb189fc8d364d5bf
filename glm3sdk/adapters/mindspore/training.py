"""A training session on MindSpore: every weight or an adapter, on one device or several."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn

from glm3sdk.adapters.mindspore.adapters import Adapter
from glm3sdk.adapters.mindspore.context import free_graphs, free_unused
from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.model.loss import CausalLoss
from glm3sdk.adapters.mindspore.model.optimizer import ApplyGraph, GradientGraph, OptimizerState
from glm3sdk.adapters.mindspore.model.reduction import ReduceGraph
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.adapters.mindspore.ranks import Ranks
from glm3sdk.adapters.mindspore.shared_training import SharedState
from glm3sdk.adapters.mindspore.weights import (
    host_dtype,
    read_share,
    set_parameter,
    tensor_to_host,
)
from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.tensor_shares import Share
from glm3sdk.errors import (
    InvalidCheckpointError,
    InvalidDatasetError,
    NonFiniteLossError,
    ServiceClosedError,
)
from glm3sdk.ports.arrays import HostArray, IntArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.training import StatePart, StepMetrics, TokenBatch, TrainingPlan


class MindSporeTrainingSession:
    """A `TrainingSession`; see the port. A graph is compiled once per batch shape.

    One of several ranks takes its own micro-batches (`Place.micro_batches`), as many as every
    other, and measures what all of them did. It yields the part of the state that it stores
    (`TensorShares.stored`), for which the ranks exchange rows: all of them go through it alike.
    It restores from whole tensors.
    """

    def __init__(
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        cells: Glm3Cells,
        *,
        plan: TrainingPlan,
        ranks: Ranks | None = None,
    ) -> None:
        self._closed = False
        self._graphs = translated(
            lambda: TrainingGraphs(config, profile, cells, plan=plan, ranks=ranks)
        )
        # MindSpore frees a graph on the thread that made it, never in a collection elsewhere.
        finalizer = weakref.finalize(self, EXECUTOR.post, self._graphs.release)
        finalizer.atexit = False

    @property
    def compiled_graphs(self) -> int:
        """Graphs compiled so far."""
        return sum(len(graph.compile_cache) for graph in self._open_graphs().compiled)

    def train_step(
        self,
        micro_batches: Sequence[TokenBatch],
        *,
        learning_rate: float,
        loss_scale: float = 1.0,
        dropout_seed: int = 0,
    ) -> StepMetrics:
        """Take one optimizer step; see the port.

        Raises:
            InvalidDatasetError: no label of the step counts.
            NonFiniteLossError: nothing was updated.
        """
        graphs = self._open_graphs()
        counted = sum(_counted(batch) for batch in micro_batches)
        tokens = translated(lambda: graphs.tokens_of_all(counted))
        if tokens == 0:
            raise InvalidDatasetError("every label of this step is masked: nothing to learn")
        loss, norm = translated(
            lambda: graphs.train(micro_batches, tokens, learning_rate, loss_scale, dropout_seed)
        )
        if not math.isfinite(loss + norm):
            raise NonFiniteLossError(
                f"the loss ({loss}) or its gradient (norm {norm}) is not finite; nothing was "
                "updated. Lower the learning rate, or look for a bad record in this batch"
            )
        return StepMetrics(loss=loss, tokens=tokens, grad_norm=norm)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        """Loss of a batch; see the port."""
        graphs, counted = self._open_graphs(), _counted(batch)
        loss, tokens = translated(lambda: graphs.evaluate(batch, counted))
        return StepMetrics(loss=loss, tokens=tokens)

    def specs(self, part: StatePart) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes of what `state` yields."""
        graphs = self._open_graphs()
        return {
            parameter.name: TensorSpec(graphs.stored_shape(parameter), host_dtype(parameter))
            for parameter in translated(lambda: graphs.held(part))
        }

    def state(self, part: StatePart) -> Iterator[tuple[str, HostArray]]:
        """A part of the state, one tensor in host memory at a time."""
        graphs = self._open_graphs()
        for parameter in translated(lambda: graphs.held(part)):
            self._open_graphs()
            yield parameter.name, translated(functools.partial(graphs.stored, parameter))

    def restore(self, checkpoint: CheckpointReader) -> None:
        """Take both parts from a checkpoint; see the port."""
        graphs = self._open_graphs()
        held = translated(
            lambda: [parameter for part in StatePart for parameter in graphs.held(part)]
        )
        for parameter in held:
            spec, shape = checkpoint.tensors.get(parameter.name), graphs.full_shape(parameter)
            if spec is None or spec.shape != shape:
                found = "is missing" if spec is None else f"has shape {list(spec.shape)}"
                raise InvalidCheckpointError(
                    f"the checkpoint does not fit this run: {parameter.name} {found}, "
                    f"expected {list(shape)}"
                )
        for parameter in held:
            value = read_share(checkpoint, parameter.name, graphs.share(parameter))
            translated(functools.partial(set_parameter, parameter, value))
        translated(graphs.renew)

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
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        cells: Glm3Cells,
        *,
        plan: TrainingPlan,
        ranks: Ranks | None = None,
    ) -> None:
        self._shared = SharedState(ranks, plan.lora) if ranks else None
        self._tensor = ranks.tensor if ranks else None
        self._fused_attention = profile.fused_attention and plan.flash_attention
        self._adapter = (
            Adapter(plan.lora, config, seed=plan.seed, ranks=ranks) if plan.lora else None
        )
        # From here on, the model is what this rank computes of it.
        config = ranks.local if ranks else config
        self._config = config
        if self._adapter:
            self._training = self._adapter.cells(config, profile, cells, dropout=True)
            self._evaluation = self._adapter.cells(config, profile, cells, dropout=False)
            self.parameters: list[Parameter] = self._adapter.parameters
        else:
            # Cells of its own: recompute would stay on cells that others use.
            weights = {parameter.name: parameter for parameter in cells.get_parameters()}
            self._training = self._evaluation = Glm3Cells(
                config, profile, weights.__getitem__, ranks=self._tensor
            )
            self.parameters = list(cells.get_parameters())
        self._recompute = plan.recompute
        self._losses: dict[tuple[int, bool], CausalLoss] = {}
        self._gradients: dict[tuple[int, bool], GradientGraph] = {}
        _require_gradients(self.parameters, required=True)
        self._optimizer = plan.optimizer

    # Made when first needed: evaluation alone takes no memory for gradients and moments.
    @functools.cached_property
    def _state(self) -> OptimizerState:
        if self._shared:
            return self._shared.optimizer_state(self.parameters)
        return OptimizerState(self.parameters)

    @functools.cached_property
    def apply_graph(self) -> ApplyGraph:
        """The graph that updates the parameters."""
        gathers = self._shared.gathers(self.parameters) if self._shared else None
        return ApplyGraph(self._state, self._optimizer, gathers)

    @functools.cached_property
    def reduce_graph(self) -> ReduceGraph | None:
        """The graph that sums gradients over ranks; None for this one alone."""
        return self._shared.reduce_graph(self._state) if self._shared else None

    @property
    def compiled(self) -> tuple[nn.Cell, ...]:
        """Every cell that is compiled as a graph."""
        made = (self.__dict__.get(name) for name in ("apply_graph", "reduce_graph"))
        update = [graph for graph in made if graph is not None]
        gather = (self._shared.gather_graph,) if self._shared else ()
        return (*self._losses.values(), *self._gradients.values(), *update, *gather)

    def held(self, part: StatePart) -> list[Parameter]:
        """The Parameters of a part of the state."""
        return self.parameters if part is StatePart.WEIGHTS else self._state.saved

    def full_shape(self, parameter: Parameter) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        if self._shared:
            return self._shared.shares.full_shape(parameter.name)
        return tuple(parameter.shape)

    def stored_shape(self, parameter: Parameter) -> tuple[int, ...]:
        """The shape of what `stored` gives."""
        return self._shared.stored_shape(parameter) if self._shared else tuple(parameter.shape)

    def stored(self, parameter: Parameter) -> HostArray:
        """What this rank stores of a tensor."""
        return self._shared.stored(parameter) if self._shared else tensor_to_host(parameter)

    def share(self, parameter: Parameter) -> Share | None:
        """What of a tensor a Parameter holds; None is all of it."""
        return self._shared.share(parameter.name) if self._shared else None

    def renew(self) -> None:
        """Bring up to date what follows from restored state."""
        self._state.renew_masters()

    def tokens_of_all(self, tokens: int) -> int:
        """Counted labels of all ranks."""
        return self._shared.total(tokens) if self._shared else tokens

    def train(
        self,
        micro_batches: Sequence[TokenBatch],
        tokens: int,
        learning_rate: float,
        loss_scale: float,
        dropout_seed: int,
    ) -> tuple[float, float]:
        """Return loss and gradient norm; weights change if both are finite."""
        loss = norm = 0.0
        weight = Tensor(np.float32(loss_scale / tokens))
        for index, batch in enumerate(micro_batches):
            if self._adapter:
                number = self._shared.micro_batch(index) if self._shared else index
                seed = (dropout_seed + number * 104_729) & 0x7FFFFFFF
                self._adapter.dropout_seed.set_data(Tensor(np.int32(seed)))
            graph = self.gradient_graph(batch.input_ids.shape[1], accumulate=index > 0)
            part, norm = graph(*_tensors(batch), weight).asnumpy().tolist()
            loss += part
        if self._shared and self.reduce_graph is not None:
            every = self.reduce_graph(Tensor(np.float32(loss))).asnumpy()
            loss, norm = self._shared.loss_and_norm(every)
        loss, norm = loss / loss_scale, norm / loss_scale
        if math.isfinite(loss + norm):
            scalars = norm, learning_rate, loss_scale
            self.apply_graph(*(Tensor(np.float32(scalar)) for scalar in scalars))
        return loss, norm

    def loss(self, seq_length: int, *, training: bool) -> CausalLoss:
        """The loss of sequences of one length, with dropout in training."""
        key = (seq_length, training)
        if key not in self._losses:
            cells = self._training if training else self._evaluation
            loss = CausalLoss(
                self._config,
                cells,
                fused_attention=self._fused_attention,
                seq_length=seq_length,
                ranks=self._tensor,
            )
            if training and self._recompute:
                loss.recompute_layers()
            self._losses[key] = loss
        return self._losses[key]

    def gradient_graph(self, seq_length: int, *, accumulate: bool) -> GradientGraph:
        """The graph of a micro-batch; it starts anew or accumulates."""
        key = (seq_length, accumulate)
        if key not in self._gradients:
            self._gradients[key] = GradientGraph(
                self.loss(seq_length, training=True),
                self._state,
                accumulate=accumulate,
                measure=self._shared is None,
            )
        return self._gradients[key]

    def evaluate(self, batch: TokenBatch, tokens: int) -> tuple[float, int]:
        """Mean loss of a batch, or of all ranks' batches, and their counted labels."""
        weight = Tensor(np.float32(1.0 / max(tokens, 1)))
        graph = self.loss(batch.input_ids.shape[1], training=False)
        loss = float(graph(*_tensors(batch), weight).asnumpy())
        return self._shared.mean(loss, tokens) if self._shared else (loss, tokens)

    def release(self) -> None:
        """Drop graphs and state; a second time changes nothing."""
        if not self.__dict__:
            return
        _require_gradients(self.parameters, required=False)
        free_graphs(self.compiled)
        # No local name may stand for a cell now, or it would not be freed.
        self.__dict__.clear()
        free_unused()


def _require_gradients(parameters: list[Parameter], *, required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = required


def _counted(batch: TokenBatch) -> int:
    return int(np.count_nonzero(batch.labels != IGNORED_LABEL))


def _tensors(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    def tensor(values: IntArray) -> Tensor:
        return Tensor(np.ascontiguousarray(values, dtype=np.int32))

    return tensor(batch.input_ids), tensor(batch.labels)
