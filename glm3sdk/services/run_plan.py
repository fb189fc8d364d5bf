"""What a finetune run would take, as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from glm3sdk.domain.card_parts import CardPart
from glm3sdk.domain.communication import Collective
from glm3sdk.domain.memory import GIB, CardLoad, MemoryUse

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
        parts: what a card holds of each tensor.
        copies: cards of a replica that hold the same key/value group.
        collectives: what a card does with others in a step, and how often.
        nproc: cards of a server.
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
    parts: tuple[CardPart, ...]
    copies: int
    collectives: Mapping[Collective, int]
    nproc: int
    tokens_per_step: int
    epochs: float
    records: int | None
    steps: int | None
    notes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Cards of the run."""
        return self.load.plan.ranks

    @property
    def total(self) -> int:
        """Bytes of one card."""
        return self.memory.total(recompute=self.recompute)

    @property
    def sent(self) -> int:
        """Bytes that a card sends in a step, and as many that it receives."""
        return sum(each.sent * times for each, times in self.collectives.items())

    @property
    def sent_between_servers(self) -> int:
        """Bytes of `sent` that leave the server."""
        return sum(
            each.between_servers(self.nproc) * times for each, times in self.collectives.items()
        )

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
        tensor = self.load.tensor
        if tensor > 1 and self.nproc % tensor:
            found.append(
                f"parallel.tensor={tensor} does not divide the {self.nproc} cards of a server: "
                "cards that share a layer exchange activations between servers"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        load = attrs.asdict(self.load)
        lora = load.pop("lora")
        return {
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "devices": self.devices,
            "devices_per_server": self.nproc,
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
            "groups": {
                "tensor": {"groups": self.load.data, "ranks": self.load.tensor, "distance": 1},
                "data": {
                    "groups": self.load.tensor,
                    "ranks": self.load.data,
                    "distance": self.load.tensor,
                },
                "key_value_copies": self.copies,
            },
            "parts": [attrs.asdict(part) for part in self.parts],
            "communication_bytes": {
                "sent": self.sent,
                "sent_between_servers": self.sent_between_servers,
                "collectives": [
                    {
                        **attrs.asdict(each),
                        "times": times,
                        "sent": each.sent,
                        "sent_between_servers": each.between_servers(self.nproc),
                    }
                    for each, times in self.collectives.items()
                ],
            },
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
