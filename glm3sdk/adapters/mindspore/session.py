"""A decode session on MindSpore: index arithmetic around the two graphs."""

from __future__ import annotations

import functools
import weakref
import zlib
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn

from glm3sdk.adapters.mindspore.compile_cache import COMPILE_CACHE
from glm3sdk.adapters.mindspore.context import free_graphs, free_unused
from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.model.collectives import GatherRows, Group
from glm3sdk.adapters.mindspore.model.decoding import (
    CopyGraph,
    DecodeGraph,
    KvCache,
    PrefillGraph,
)
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.adapters.mindspore.ranks import Ranks
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import RuntimeFailureError
from glm3sdk.ports.arrays import FloatArray, IntArray
from glm3sdk.ports.slots import SlotTable

# Scores are [H, T, C]: a long prompt is read in pieces so that they stay small.
PREFILL_CHUNK = 512


class MindSporeDecodeSession:
    """A `DecodeSession`; see the port for what its methods promise.

    One of several ranks keeps its own groups' cache, and gives the logits of the whole vocabulary,
    the same as every other rank.
    """

    def __init__(
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        cells: Glm3Cells,
        *,
        slots: int,
        max_seq_length: int,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self._table = SlotTable(config, slots=slots, max_seq_length=max_seq_length)
        self._graphs = translated(
            lambda: SessionGraphs(
                ranks.local if ranks else config,
                profile,
                cells,
                slots=self._table.slots,
                length=self._table.max_seq_length,
                ranks=ranks.tensor if ranks else None,
            )
        )
        # MindSpore frees a graph on the thread that made it, never in a collection elsewhere.
        finalizer = weakref.finalize(self, EXECUTOR.post, self._graphs.release)
        finalizer.atexit = False

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._table.slots

    @property
    def max_seq_length(self) -> int:
        """Most tokens that a slot holds."""
        return self._table.max_seq_length

    @property
    def compiled_graphs(self) -> int:
        """Graphs compiled so far; a loop that adds to it compiles again at every step."""
        return self._graphs.compiled

    def prefill(
        self, slot: int, input_ids: Sequence[int] | IntArray, *, all_logits: bool = False
    ) -> FloatArray:
        """Append `input_ids` `[T]`; logits `[V]`, or `[T, V]` with all_logits."""
        slot, ids = self._table.check_prefill(slot, input_ids)
        start, graphs = self._table.length(slot), self._graphs
        pieces = []
        for begin in range(0, len(ids), PREFILL_CHUNK):
            run = functools.partial(
                graphs.prefill,
                slot,
                start + begin,
                ids[begin : begin + PREFILL_CHUNK],
                all_logits=all_logits,
            )
            # A job for each: what other sessions wait for comes in between.
            pieces.append(translated(run))
        logits: FloatArray = np.concatenate(pieces) if all_logits else pieces[-1][0]
        self._table.advance(slot, len(ids))
        return logits

    def decode(self, slots: Sequence[int], token_ids: Sequence[int] | IntArray) -> FloatArray:
        """Append one token to each of B slots; logits `[B, V]`."""
        chosen, ids = self._table.check_decode(slots, token_ids)
        positions = np.array([self._table.length(slot) for slot in chosen], np.int32)
        graphs = self._graphs
        logits = translated(lambda: graphs.decode(np.array(chosen, np.int32), positions, ids))
        for slot in chosen:
            self._table.advance(slot, 1)
        return logits

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._table.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._table.truncate(slot, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`."""
        source, target, length = self._table.check_copy(source, target, length)
        if source != target and length:
            graphs = self._graphs
            translated(lambda: graphs.copy(source, target, length))
        self._table.copy(source, target, length)

    def close(self) -> None:
        """Free the kv_cache."""
        self._table.close()
        EXECUTOR.clear_up(self._graphs.release)


class SessionGraphs:
    """Graphs and cache of one session; every method runs on the executor."""

    def __init__(
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        cells: Glm3Cells,
        *,
        slots: int,
        length: int,
        ranks: Group | None,
    ) -> None:
        self._groups = config.multi_query_group_num
        self._group_heads = config.num_attention_heads // self._groups
        self._slots = slots
        self._length = length
        self._cache = KvCache(config, slots=slots, length=length, dtype=cells.word_embeddings.dtype)
        self._prefill = PrefillGraph(config, profile, cells, self._cache)
        self._decode = DecodeGraph(config, profile, cells, self._cache)
        self._copy = CopyGraph(self._cache)
        self._ready: set[str] = set()
        # Kept graphs were tried on a CPU alone, and of one process: a rank's are its own.
        self._kept = profile.device_target == "CPU" and ranks is None
        self._gather = GatherRows(ranks) if ranks else None
        self._identity = f"{config}\n{profile}\n{cells.word_embeddings.dtype}\n{slots}\n{length}"

    @property
    def compiled(self) -> int:
        """Compiled graphs."""
        return sum(len(cell.compile_cache) for cell in self._cells)

    @property
    def _cells(self) -> tuple[nn.Cell, ...]:
        gather = (self._gather,) if self._gather else ()
        return (self._prefill, self._decode, self._copy, *gather)

    def prefill(self, slot: int, start: int, ids: IntArray, *, all_logits: bool) -> FloatArray:
        """Run the prefill graph on ids `[T]` that go to positions start..start+T-1."""
        count = len(ids)
        positions = np.arange(start, start + count, dtype=np.int32)
        context = np.arange(start + count, dtype=np.int32)
        rows = self._rows(np.array([slot]), positions[:, None])
        context_rows = self._rows(np.array([slot]), context[:, None]).T
        wanted = np.arange(count, dtype=np.int32) if all_logits else np.array([count - 1], np.int32)
        return self._call(
            "prefill",
            self._prefill,
            ids,
            positions,
            np.tile(positions, self._group_heads),
            rows.ravel(),
            context_rows.ravel(),
            context,
            wanted,
        )

    def decode(self, slots: IntArray, positions: IntArray, ids: IntArray) -> FloatArray:
        """Run the decode graph on B lanes, padded so that few batch sizes are compiled."""
        lanes = len(slots)
        padding = min(1 << (lanes - 1).bit_length(), max(self._slots, lanes)) - lanes
        if padding:
            slots = np.concatenate([slots, np.full(padding, self._slots, np.int32)])
            positions = np.concatenate([positions, np.zeros(padding, np.int32)])
            ids = np.concatenate([ids, np.zeros(padding, np.int32)])
        rows = self._rows(slots[:, None], positions[:, None, None])[:, 0]
        logits = self._call(f"decode {len(ids)}", self._decode, ids, positions, slots, rows.ravel())
        return logits[:lanes]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot's cache to another's."""
        positions = np.arange(length, dtype=np.int32)[:, None]
        self._call(
            "copy",
            self._copy,
            self._rows(np.array([source]), positions).ravel(),
            self._rows(np.array([target]), positions).ravel(),
        )

    def release(self) -> None:
        """Drop the graphs and the cache; a second time changes nothing."""
        if not self.__dict__:
            return
        free_graphs(self._cells)
        # No local name may stand for a cell now, or it would not be freed.
        self.__dict__.clear()
        free_unused()

    def _rows(self, slots: IntArray, positions: IntArray) -> IntArray:
        """Cache rows `[..., G]` of slots and positions (which broadcast)."""
        groups = np.arange(self._groups, dtype=np.int32)
        rows = (slots[..., None] * self._groups + groups) * self._length + positions
        return rows.astype(np.int32)

    def _call(self, name: str, cell: nn.Cell, *inputs: IntArray) -> FloatArray:
        """Run a graph; `name` tells it from the session's other graphs."""
        self._check_alike(name, inputs)
        tensors = [Tensor(value) for value in inputs]
        if name not in self._ready:
            if self._kept:
                COMPILE_CACHE.compile(cell, tensors, key=f"{name}\n{self._identity}")
            self._ready.add(name)
        logits: FloatArray = cell(*tensors).asnumpy()
        return logits

    def _check_alike(self, name: str, inputs: Sequence[IntArray]) -> None:
        """Check that every rank that shares the layers was asked the same.

        Raises:
            RuntimeFailureError: their sums would belong to no text at all.
        """
        if self._gather is None:
            return
        checksum = zlib.crc32(name.encode())
        for values in inputs:
            checksum = zlib.crc32(np.ascontiguousarray(values).tobytes(), checksum)
        # Halves: float32, which every device gathers, is exact to 24 bits.
        halves = np.array([divmod(checksum, 1 << 16)], np.float32)
        every = self._gather(Tensor(halves)).asnumpy()
        if (every != halves).any():
            raise RuntimeFailureError(
                "the ranks that share this model were asked for different tokens; give each the "
                "same messages and options in the same order, and a seed where replies are sampled"
            )
