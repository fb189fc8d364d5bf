"""The port of model runtimes: tokens in, logits out.

Sampling, stopping and batching are decided by services, once for every runtime; what
crosses is token ids and float32 logits (see docs/adr/0002-logits-cross-the-port.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray, IntArray
from glm3sdk.ports.training import TrainingPlan, TrainingSession


@attrs.frozen
class RuntimeCapabilities:
    """What a runtime can do.

    Attributes:
        name: the name it is chosen by, such as "mindspore-cpu".
        dtype: what its weights are held in ("float32", "float16", "bfloat16").
        training: whether it can start a training session.
        world_size: devices that share one model.
    """

    name: str
    dtype: str
    training: bool = False
    world_size: int = 1


class DecodeSession(Protocol):
    """Owns a kv_cache of several slots; a slot holds one sequence.

    Positions count from 0 in each slot. A call that raises leaves every slot as it was.
    Contract: `glm3sdk.testing.ModelRuntimeContract`.
    """

    @property
    def slots(self) -> int:
        """Number of slots."""

    @property
    def max_seq_length(self) -> int:
        """Most tokens that a slot holds."""

    def prefill(
        self, slot: int, input_ids: Sequence[int] | IntArray, *, all_logits: bool = False
    ) -> FloatArray:
        """Append `input_ids` `[T]` to a slot, T at least 1.

        Args:
            slot: from 0.
            input_ids: token ids below V.
            all_logits: give those of every position, to verify guessed tokens.

        Returns:
            Logits after the last token `[V]`, or after each `[T, V]` with `all_logits`.

        Raises:
            SlotError: slot or id out of range, nothing to append, or no room.
        """

    def decode(self, slots: Sequence[int], token_ids: Sequence[int] | IntArray) -> FloatArray:
        """Append one token to each of B different slots.

        Args:
            slots: `[B]`, none of them twice.
            token_ids: `[B]`, one for each.

        Returns:
            Logits `[B, V]`.

        Raises:
            SlotError: a slot or id out of range, a slot named twice, or no room.
        """

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot.

        Raises:
            SlotError: no such slot, or it holds fewer.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`, and nothing else.

        Raises:
            SlotError: no such slot, or `source` holds fewer.
        """

    def close(self) -> None:
        """Free the kv_cache; further calls raise ServiceClosedError."""


class ModelRuntime(Protocol):
    """A loaded model. Contract: `glm3sdk.testing.ModelRuntimeContract`."""

    @property
    def config(self) -> Glm3Config:
        """The model's hyper-parameters; V is its `padded_vocab_size`."""

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime can do."""

    def start_decode(self, *, slots: int, max_seq_length: int) -> DecodeSession:
        """Allocate a kv_cache of `slots` sequences of at most `max_seq_length` tokens.

        Raises:
            SlotError: less than one slot, or a length outside 1..config.seq_length.
        """

    def start_training(self, *, plan: TrainingPlan) -> TrainingSession:
        """Start training; decode sessions of this runtime see changed weights, not adapters.

        Raises:
            UnsupportedOptionError: this runtime does not train (see `capabilities`).
        """

    def close(self) -> None:
        """Free the weights."""
