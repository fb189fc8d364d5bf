"""A finetune run in numbers before it starts: memory of a card, steps, tokens."""

from __future__ import annotations

import math
from typing import Any

import attrs

from glm3sdk.config.contradictions import sequence_length
from glm3sdk.config.schema import RunConfig, RunMode
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.memory import (
    GIB,
    CardLoad,
    MemoryUse,
    tensor_faults,
    trained_parameters,
    training_memory,
)
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidRunConfigError, Problem, UserError
from glm3sdk.services.data_order import DataOrder

CARDS_GB = (32, 64)
"""Memory of the cards that a plan is held against."""


@attrs.frozen(kw_only=True)
class RunPlan:
    """What a run would take.

    Attributes:
        parameters: of the model.
        trained: parameters that are trained.
        load: what a card is given.
        memory: of one card, in bytes.
        recompute: whether the run recomputes activations.
        max_device_memory: the run's own bound, as it is written, or None.
        tokens_per_step: padding included, over all cards.
        epochs: passes over the data; fewer than asked for where `max_steps` ends the run.
        records: sequences of the training data, or None where they are not known.
        steps: optimizer steps, or None where they are not known.
        notes: what the figures rest on.
    """

    parameters: int
    trained: int
    load: CardLoad
    memory: MemoryUse
    recompute: bool
    max_device_memory: str | None
    tokens_per_step: int
    epochs: float
    records: int | None
    steps: int | None
    notes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Cards of the run."""
        return self.load.data * self.load.tensor

    @property
    def total(self) -> int:
        """Bytes of one card."""
        return self.memory.total(recompute=self.recompute)

    def warnings(self) -> tuple[str, ...]:
        """What it does not fit into, and what would make it smaller."""
        limits = [(f"a card of {size} GB", size * GIB) for size in CARDS_GB]
        if self.max_device_memory is not None:
            bound = float(self.max_device_memory.removesuffix("GB")) * GIB
            limits.append((f"max_device_memory {self.max_device_memory}", int(bound)))
        found = [
            f"does not fit {name}: it takes {self.total / GIB:.1f} GiB"
            for name, limit in limits
            if self.total > limit
        ]
        if found and (remedies := self._remedies()):
            found.append(f"to take less: {', '.join(remedies)}")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        load = attrs.asdict(self.load)
        lora = load.pop("lora")
        return {
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "devices": self.devices,
            "card": load,
            "lora": lora,
            "recompute": self.recompute,
            "memory_bytes": {
                **attrs.asdict(self.memory),
                "total": self.memory.total(recompute=False),
                "total_recomputed": self.memory.total(recompute=True),
            },
            "fits": {f"{size}GB": self.total <= size * GIB for size in CARDS_GB},
            "max_device_memory": self.max_device_memory,
            "tokens_per_step": self.tokens_per_step,
            "epochs": self.epochs,
            "records": self.records,
            "steps": self.steps,
            "notes": list(self.notes),
            "warnings": list(self.warnings()),
        }

    def _remedies(self) -> list[str]:
        load, memory = self.load, self.memory
        remedies = []
        if not self.recompute and memory.recomputed_activations < memory.activations:
            remedies.append("model.recompute=true")
        if load.lora is None:
            if load.data > 1 and not load.optimizer_shard:
                remedies.append("parallel.optimizer_shard=true")
            remedies.append("a lora section")
        if load.batch_size > 1:
            remedies.append("a smaller training.batch_size (training.accumulate makes up for it)")
        remedies.append("more cards in parallel.tensor")
        return remedies


def plan_run(
    config: RunConfig,
    model: Glm3Config,
    *,
    dtype: str,
    fused: bool,
    records: int | None = None,
    devices: int | None = None,
    notes: tuple[str, ...] = (),
) -> RunPlan:
    """Work out what a finetune run would take.

    Args:
        config: the run.
        model: the hyper-parameters of the model.
        dtype: what the runtime holds weights in.
        fused: whether the runtime has kernels for SwiGLU and RMSNorm.
        records: sequences of the training data, where they are known.
        devices: cards that there are; None is what the configuration asks for.
        notes: what the figures rest on.

    Raises:
        InvalidRunConfigError: the cards do not divide as `parallel` says.
        UserError: the configuration is not one of mode finetune.
    """
    if config.mode is not RunMode.FINETUNE or config.train_data is None:
        raise UserError(f"a plan is made of a run of mode finetune, not {config.mode}")
    _require_division(config, model, devices)
    seq_length = config.training.seq_length or sequence_length(config.train_data)
    if seq_length is None:
        raise UserError("training.seq_length is missing; set it")
    lora = Lora(**attrs.asdict(config.lora)) if config.lora else None
    training, parallel = config.training, config.parallel
    load = CardLoad(
        batch_size=training.batch_size,
        seq_length=seq_length,
        dtype=dtype,
        lora=lora,
        # A CPU has no such kernel, whatever the configuration says.
        flash_attention=config.model.flash_attention and fused,
        fused=fused,
        **attrs.asdict(parallel),
    )
    steps, epochs = _steps(config, records)
    return RunPlan(
        parameters=model.parameter_count,
        trained=trained_parameters(model, lora),
        load=load,
        memory=training_memory(model, load),
        recompute=config.model.recompute,
        max_device_memory=config.runtime.max_device_memory,
        tokens_per_step=load.tokens * training.accumulate * parallel.data,
        epochs=epochs,
        records=records,
        steps=steps,
        notes=notes,
    )


def _require_division(config: RunConfig, model: Glm3Config, devices: int | None) -> None:
    data, tensor = config.parallel.data, config.parallel.tensor
    problems = []
    if devices is not None and data * tensor != devices:
        message = f"data x tensor is {data} x {tensor} = {data * tensor}, not {devices} devices"
        problems.append(Problem("", 0, 0, "parallel", message))
    if faults := tensor_faults(model, tensor):
        sizes = (
            model.num_attention_heads,
            model.multi_query_group_num,
            model.ffn_hidden_size,
            model.padded_vocab_size,
        )
        most = math.gcd(*sizes)
        usable = ", ".join(str(size) for size in range(1, most + 1) if most % size == 0)
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
