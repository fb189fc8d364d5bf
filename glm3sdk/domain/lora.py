"""Low-rank adapters: which layers, under which names, in which shapes.

A linear layer's weight W `[out, in]` acts as W + (alpha / r) B A, with A `[r, in]` and
B `[out, r]` (Hu et al. 2021). Names and the config file are those of the PEFT library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError, unknown_name

LINEAR_LAYERS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_TENSORS = "adapter_model.safetensors"

_PEFT_PREFIX = "base_model.model."


@attrs.frozen
class LoraPair:
    """The two matrices beside one weight.

    Attributes:
        weight: the base weight's Hugging Face name.
        name_a: A's name.
        name_b: B's name.
        shape_a: `[r, in]`.
        shape_b: `[out, r]`.
    """

    weight: str
    name_a: str
    name_b: str
    shape_a: tuple[int, int]
    shape_b: tuple[int, int]


@attrs.frozen(kw_only=True)
class Lora:
    """An adapter's shape and strength.

    Attributes:
        rank: r.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: share of the adapter's inputs dropped in training.
        targets: names of linear layers.

    Raises:
        InvalidConfigError: a value out of range.
        UnknownNameError: a target that is no linear layer of the model.
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = attrs.field(default=("query_key_value",), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidConfigError(f"lora rank must be a positive integer, not {self.rank!r}")
        if not 0 <= self.dropout < 1:
            raise InvalidConfigError(f"lora dropout must be in [0, 1), not {self.dropout!r}")
        if not self.targets:
            raise InvalidConfigError(f"lora needs targets: some of {', '.join(LINEAR_LAYERS)}")
        for target in self.targets:
            if target not in LINEAR_LAYERS:
                raise unknown_name("linear layer", target, LINEAR_LAYERS)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def pairs(self, config: Glm3Config) -> tuple[LoraPair, ...]:
        """The adapter's matrices for a model, in the order of its weights."""
        found = []
        for name, shape in config.tensor_shapes().items():
            module = name.removesuffix(".weight")
            if name != module and module.rsplit(".", 1)[-1] in self.targets:
                rows, columns = shape
                prefix = f"{_PEFT_PREFIX}{module}"
                found.append(
                    LoraPair(
                        name,
                        f"{prefix}.lora_A.weight",
                        f"{prefix}.lora_B.weight",
                        (self.rank, columns),
                        (rows, self.rank),
                    )
                )
        return tuple(found)

    def to_peft(self, *, base: str) -> dict[str, Any]:
        """The values of an adapter_config.json; base is the path of the model it belongs to."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(self.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any]) -> tuple[Lora, str]:
        """Read an adapter_config.json: the adapter, and the path of its base model.

        Raises:
            InvalidCheckpointError: not a LoRA adapter, or a variant that is not built here.
        """
        if not isinstance(values, Mapping) or values.get("peft_type") != "LORA":
            raise InvalidCheckpointError(
                f"{ADAPTER_CONFIG}: peft_type must be 'LORA', not {values!r:.80}"
            )
        for key, expected in (
            ("bias", "none"),
            ("fan_in_fan_out", False),
            ("use_dora", False),
            ("use_rslora", False),
        ):
            if values.get(key, expected) != expected:
                raise InvalidCheckpointError(
                    f"{ADAPTER_CONFIG}: {key}={values[key]!r} is not supported"
                )
        try:
            lora = cls(
                rank=values["r"],
                alpha=values["lora_alpha"],
                dropout=values.get("lora_dropout", 0.0),
                targets=values["target_modules"],
            )
            return lora, str(values["base_model_name_or_path"])
        except (KeyError, TypeError) as exc:
            raise InvalidCheckpointError(f"{ADAPTER_CONFIG} lacks or misuses {exc}") from exc
