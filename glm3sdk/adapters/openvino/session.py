"""A decode session on OpenVINO: slots are lists of blocks of one paged kv_cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glm3sdk.adapters.openvino.attention import BLOCK_TOKENS
from glm3sdk.adapters.openvino.blocks import BlockTables
from glm3sdk.adapters.openvino.compiled import Appended, CompiledGlm3, PagedRequest
from glm3sdk.adapters.openvino.failures import translated
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray, IntArray
from glm3sdk.ports.slots import SlotTable

# Activations of a piece are 110 kB a token for GLM3-6B: a long prompt is read in pieces.
PREFILL_CHUNK = 512


class OpenVinoDecodeSession:
    """A `DecodeSession`; see the port for what its methods promise."""

    def __init__(
        self, config: Glm3Config, compiled: CompiledGlm3, *, slots: int, max_seq_length: int
    ) -> None:
        self._table = SlotTable(config, slots=slots, max_seq_length=max_seq_length)
        self._blocks = BlockTables(
            slots=self._table.slots,
            max_seq_length=self._table.max_seq_length,
            block_tokens=BLOCK_TOKENS,
        )
        with translated():
            self._request: PagedRequest | None = PagedRequest(compiled, blocks=self._blocks.total)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._table.slots

    @property
    def max_seq_length(self) -> int:
        """Most tokens that a slot holds."""
        return self._table.max_seq_length

    def prefill(
        self, slot: int, input_ids: Sequence[int] | IntArray, *, all_logits: bool = False
    ) -> FloatArray:
        """Append `input_ids` `[T]`; logits `[V]`, or `[T, V]` with all_logits."""
        slot, ids = self._table.check_prefill(slot, input_ids)
        past = self._table.length(slot)
        pieces = []
        for begin in range(0, len(ids), PREFILL_CHUNK):
            piece = ids[begin : begin + PREFILL_CHUNK]
            pieces.append(self._run([(slot, past + begin, piece)], all_logits=all_logits))
        self._table.advance(slot, len(ids))
        return np.concatenate(pieces) if all_logits else pieces[-1][0]

    def decode(self, slots: Sequence[int], token_ids: Sequence[int] | IntArray) -> FloatArray:
        """Append one token to each of B slots; logits `[B, V]`."""
        chosen, ids = self._table.check_decode(slots, token_ids)
        lengths = [self._table.length(slot) for slot in chosen]
        logits = self._run(
            [
                (slot, past, ids[at : at + 1])
                for at, (slot, past) in enumerate(zip(chosen, lengths, strict=True))
            ]
        )
        for slot in chosen:
            self._table.advance(slot, 1)
        return logits

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._table.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._table.truncate(slot, length)
        self._blocks.truncate(slot, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`; nothing moves yet."""
        source, target, length = self._table.check_copy(source, target, length)
        self._blocks.share(source, target, length)
        self._table.copy(source, target, length)

    def close(self) -> None:
        """Free the kv_cache."""
        self._table.close()
        self._request = None

    def _run(
        self, appended: Sequence[tuple[int, int, IntArray]], *, all_logits: bool = False
    ) -> FloatArray:
        """Append to slots that hold so many tokens; what a slot held is untouched by a failure."""
        request = self._request
        assert request is not None, "the table refuses what comes after close"  # noqa: S101
        with translated():
            sequences = []
            for slot, past, ids in appended:
                for source, target in self._blocks.reserve(slot, past, len(ids)):
                    request.copy(source, target)
                blocks = self._blocks.of(slot, past + len(ids))
                sequences.append(Appended(ids, past, blocks, all_logits))
            return request.run(sequences)
