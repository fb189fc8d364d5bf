"""Export a profile's graphs to MINDIR on any machine, to see what a device would be given.

Exporting runs MindSpore's front end alone: it parses the cells and infers shapes and types,
and asks for no kernel. So the Ascend profile's graphs can be made and inspected on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glm3sdk.adapters.mindspore.context import set_up
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.profiles import CPU, DeviceProfile
from glm3sdk.adapters.mindspore.runtime import ALONE
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import Place
from glm3sdk.ports.training import TrainingPlan

if TYPE_CHECKING:
    from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
    from glm3sdk.adapters.mindspore.ranks import Ranks


def export_decoding(
    config: Glm3Config,
    profile: DeviceProfile,
    directory: Path,
    *,
    slots: int,
    max_seq_length: int,
    dtype: str | None = None,
    batch_size: int = 1,
) -> tuple[Path, Path]:
    """Write `prefill.mindir`, for any prompt length, and `decode.mindir`, with zero weights.

    Args:
        config: the model's hyper-parameters.
        profile: whose kernels to use.
        directory: where to write; it must exist.
        slots: sequences that the kv_cache holds.
        max_seq_length: tokens that a slot holds.
        dtype: of weights and cache; None is the profile's default.
        batch_size: sequences of a decode step.

    Returns:
        The paths of the prefill and the decode graph.

    Raises:
        BackendUnavailableError: MindSpore is not installed.
        UnsupportedOptionError: the profile does not compute in that dtype.
        RuntimeFailureError: MindSpore's front end refuses a graph.
    """
    chosen = profile.choose_dtype(dtype)

    def work() -> tuple[Path, Path]:
        set_up(CPU)
        import mindspore as ms
        from mindspore import Tensor, ops

        from glm3sdk.adapters.mindspore.model.decoding import DecodeGraph, KvCache, PrefillGraph

        cells = _zero_cells(config, profile, chosen)
        cache = KvCache(
            config, slots=slots, length=max_seq_length, dtype=cells.word_embeddings.dtype
        )
        any_length = Tensor(shape=[None], dtype=ms.int32)
        lanes = ops.zeros((batch_size,), ms.int32)
        rows = ops.zeros((batch_size * config.multi_query_group_num,), ms.int32)
        prefill = PrefillGraph(config, profile, cells, cache)
        decode = DecodeGraph(config, profile, cells, cache)
        return (
            _write(prefill, (any_length,) * 7, directory / "prefill.mindir"),
            _write(decode, (lanes, lanes, lanes, rows), directory / "decode.mindir"),
        )

    return translated(work)


def export_training(
    config: Glm3Config,
    profile: DeviceProfile,
    directory: Path,
    *,
    seq_length: int,
    dtype: str = "float32",
    batch_size: int = 1,
    plan: TrainingPlan | None = None,
    place: Place = ALONE,
) -> tuple[Path, ...]:
    """Write a step's graphs, with zero weights: two of a rank alone, four of one among others.

    Args:
        config: the model's hyper-parameters.
        profile: whose kernels to use.
        directory: where to write; it must exist.
        seq_length: tokens of a sequence.
        dtype: of the weights; gradients and the optimizer's state are float32.
        batch_size: sequences of a micro-batch.
        plan: what is trained, and how; None is every weight.
        place: the rank whose graphs to write; no job is needed for it.

    Returns:
        The paths of `gradient.mindir`: loss, gradients and, of a rank alone, their norm; and of
        `update.mindir`: clipping and AdamW. Of one among others also of `accumulate.mindir`: the
        gradients of a further micro-batch; and of `reduce.mindir`: their sum over ranks.

    Raises:
        BackendUnavailableError: MindSpore is not installed.
        UnsupportedOptionError: the profile does not compute in that dtype.
        RuntimeFailureError: MindSpore's front end refuses a graph.
    """
    chosen = profile.choose_dtype(dtype)
    place.plan.check(config)

    def work() -> tuple[Path, ...]:
        set_up(CPU)
        import mindspore as ms
        from mindspore import Tensor, ops

        from glm3sdk.adapters.mindspore.ranks import Ranks, plain_group
        from glm3sdk.adapters.mindspore.training import TrainingGraphs

        ranks = None if place.alone else Ranks(config, place, profile, plain_group)
        cells = _zero_cells(ranks.local if ranks else config, profile, chosen, ranks)
        graphs = TrainingGraphs(config, profile, cells, plan=plan or TrainingPlan(), ranks=ranks)
        gradient = graphs.gradient_graph(seq_length, accumulate=False)
        # Export looks for Parameters in the tree of cells; the gradient function hides the loss.
        gradient.loss = graphs.loss(seq_length, training=True)
        tokens = ops.zeros((batch_size, seq_length), ms.int32)
        one = Tensor(1.0, ms.float32)
        written = [
            _write(gradient, (tokens, tokens, one), directory / "gradient.mindir"),
            _write(graphs.apply_graph, (one, one, one), directory / "update.mindir"),
        ]
        if graphs.reduce_graph is not None:
            further = graphs.gradient_graph(seq_length, accumulate=True)
            further.loss = graphs.loss(seq_length, training=True)
            written += [
                _write(further, (tokens, tokens, one), directory / "accumulate.mindir"),
                _write(graphs.reduce_graph, (one,), directory / "reduce.mindir"),
            ]
        return tuple(written)

    return translated(work)


def _zero_cells(
    config: Glm3Config, profile: DeviceProfile, dtype: str, ranks: Ranks | None = None
) -> Glm3Cells:
    import numpy as np
    from mindspore import Parameter

    from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
    from glm3sdk.adapters.mindspore.weights import host_to_tensor

    shapes = config.tensor_shapes()

    def zeros(name: str) -> Parameter:
        value = host_to_tensor(np.zeros(shapes[name], np.float32), dtype)
        return Parameter(value, name=name, requires_grad=False)

    return Glm3Cells(config, profile, zeros, ranks=ranks.tensor if ranks else None)


def _write(cell: object, inputs: tuple[object, ...], path: Path) -> Path:
    import mindspore as ms

    ms.export(cell, *inputs, file_name=str(path), file_format="MINDIR")
    return path
