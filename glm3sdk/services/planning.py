"""A finetune run in numbers before it starts: shards, memory, communication, steps, tokens."""

from __future__ import annotations

import attrs

from glm3sdk.config.contradictions import sequence_length
from glm3sdk.config.schema import RunConfig, RunMode
from glm3sdk.domain.card_parts import card_parts
from glm3sdk.domain.communication import Collectives, StepLoad, step_collectives
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.memory import CardLoad, trained_parameters, training_memory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, tensor_choices
from glm3sdk.domain.tensor_shares import TensorShares
from glm3sdk.errors import InvalidRunConfigError, Problem, UserError
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.run_plan import RunPlan

NPROC = 8
"""Cards of a server where nobody says: an Atlas 800 has so many."""


def plan_run(
    config: RunConfig,
    model: Glm3Config,
    *,
    dtype: str,
    fused: bool,
    collectives: Collectives = Collectives(),  # noqa: B008  # a constant
    records: int | None = None,
    devices: int | None = None,
    nproc: int = NPROC,
    notes: tuple[str, ...] = (),
) -> RunPlan:
    """Work out what a finetune run would take.

    Args:
        config: the run.
        model: the hyper-parameters of the model.
        dtype: what the runtime holds weights in.
        fused: whether the runtime has kernels for SwiGLU and RMSNorm.
        collectives: what the device's can do.
        records: sequences of the training data, where they are known.
        devices: cards that there are; None is what the configuration asks for.
        nproc: cards of a server.
        notes: what the figures rest on.

    Raises:
        InvalidRunConfigError: the cards do not divide as `parallel` says.
        UserError: the configuration is not one of mode finetune.
    """
    if config.mode is not RunMode.FINETUNE or config.train_data is None:
        raise UserError(f"a plan is made of a run of mode finetune, not {config.mode}")
    plan = ParallelPlan(**attrs.asdict(config.parallel))
    _require_division(plan, model, devices)
    seq_length = config.training.seq_length or sequence_length(config.train_data)
    if seq_length is None:
        raise UserError("training.seq_length is missing; set it")
    lora = Lora(**attrs.asdict(config.lora)) if config.lora else None
    training = config.training
    load = CardLoad(
        batch_size=training.batch_size,
        seq_length=seq_length,
        dtype=dtype,
        lora=lora,
        # A CPU has no such kernel, whatever the configuration says.
        flash_attention=config.model.flash_attention and fused,
        fused=fused,
        reduce_scatter=collectives.reduce_scatter,
        **attrs.asdict(plan),
    )
    step = StepLoad(
        batch_size=training.batch_size,
        seq_length=seq_length,
        micro_batches=training.accumulate,
        item_bytes=load.item_bytes,
        recompute=config.model.recompute,
        collectives=collectives,
    )
    shares = TensorShares(config=model, plan=plan, lora=lora)
    steps, epochs = _steps(config, records)
    return RunPlan(
        parameters=model.parameter_count,
        trained=trained_parameters(model, lora),
        load=load,
        memory=training_memory(model, load),
        recompute=config.model.recompute,
        max_device_memory=config.runtime.max_device_memory,
        parts=card_parts(shares),
        copies=len(plan.place(0).group_ranks(model)),
        collectives=step_collectives(shares, step),
        nproc=min(nproc, plan.ranks),
        tokens_per_step=load.tokens * training.accumulate * plan.data,
        epochs=epochs,
        records=records,
        steps=steps,
        notes=notes,
    )


def _require_division(plan: ParallelPlan, model: Glm3Config, devices: int | None) -> None:
    data, tensor = plan.data, plan.tensor
    problems = []
    if devices is not None and plan.ranks != devices:
        message = f"data x tensor is {data} x {tensor} = {plan.ranks}, not {devices} devices"
        if devices % tensor == 0:
            message += f"; with parallel.tensor={tensor} set parallel.data={devices // tensor}"
        problems.append(Problem("", 0, 0, "parallel", message))
    if faults := plan.tensor_faults(model):
        usable = ", ".join(map(str, tensor_choices(model)))
        message = f"{tensor} does not divide {', '.join(faults)}; use one of {usable}"
        problems.append(Problem("", 0, 0, "parallel.tensor", message))
    if problems:
        raise InvalidRunConfigError(problems)


def _steps(config: RunConfig, records: int | None) -> tuple[int | None, float]:
    """Optimizer steps, and the epochs that they make."""
    training = config.training
    if not records:
        return training.max_steps, float(training.epochs)
    order = DataOrder(
        records=records,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        world=config.parallel.data,
    )
    whole = order.steps(training.epochs)
    steps = min(whole, training.max_steps or whole)
    epochs = float(training.epochs) if steps == whole else round(order.epoch(steps), 2)
    return steps, epochs
