"""How fast a runtime is on this machine: prefill, decode, a batch, against its memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing
from typing import Any

import attrs
import numpy as np

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import UnsupportedOptionError
from glm3sdk.ports.model_runtime import DecodeSession, ModelRuntime

# As many guesses as prompt lookup begins with, and the token before them.
_VERIFIED = 4

# Bytes of a weight; int4 with a 16-bit scale and a zero point for 128 of them.
_WEIGHT_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.52}


@attrs.frozen(kw_only=True)
class BenchmarkPlan:
    """What is measured.

    Attributes:
        prompt: tokens of a prompt.
        new_tokens: tokens that are decoded after it.
        batch: sequences that are decoded together.
        repeats: how often, in turns; the medians count.
    """

    prompt: int = 128
    new_tokens: int = 16
    batch: int = 8
    repeats: int = 5

    def check(self, config: Glm3Config) -> None:
        """Check that a model can do it.

        Raises:
            UnsupportedOptionError: a count below 1, or more tokens than the model takes.
        """
        for name, value in attrs.asdict(self).items():
            if value < 1:
                raise UnsupportedOptionError(f"{name} must be at least 1, not {value}")
        if self.prompt + self.new_tokens > config.seq_length:
            raise UnsupportedOptionError(
                f"a prompt of {self.prompt} and {self.new_tokens} new tokens are more than the "
                f"{config.seq_length} that the model takes; ask for fewer"
            )


@attrs.frozen(kw_only=True)
class BenchmarkReport:
    """Medians. A machine's speed swings from hour to hour: compare within one run alone.

    Attributes:
        runtime: its name.
        dtype: what the weights are held in.
        plan: what was measured.
        prefill_tokens_per_s: of a prompt.
        first_token_s: seconds from a prompt to its logits.
        decode_tokens_per_s: of one sequence.
        batch_tokens_per_s: of all sequences of the batch together.
        verify_steps: what it takes to read 4 tokens at once, as verifying 3 guesses does, in
            steps of decoding one; prompt lookup pays where this is little more than 1.
        peak_rss: most bytes of memory that the process had, mapped files included.
        anonymous: bytes that it has now without mapped files.
        token_bytes: bytes of weights that one token reads, about.
        memory_bytes_per_s: what this machine reads from memory.
    """

    runtime: str
    dtype: str
    plan: BenchmarkPlan
    prefill_tokens_per_s: float
    first_token_s: float
    decode_tokens_per_s: float
    batch_tokens_per_s: float
    verify_steps: float
    peak_rss: int
    anonymous: int
    token_bytes: int
    memory_bytes_per_s: float

    @property
    def bandwidth_share(self) -> float:
        """The part of the memory's bandwidth that decoding one sequence takes for weights."""
        return self.token_bytes * self.decode_tokens_per_s / self.memory_bytes_per_s

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**attrs.asdict(self), "bandwidth_share": self.bandwidth_share}


def benchmark(
    runtime: ModelRuntime,
    plan: BenchmarkPlan,
    *,
    clock: Callable[[], float],
    memory_bytes_per_s: Callable[[], float],
    memory_use: Callable[[], tuple[int, int]],
) -> BenchmarkReport:
    """Measure a loaded model.

    Args:
        runtime: the model.
        plan: what to measure.
        clock: seconds.
        memory_bytes_per_s: measures the machine's memory, once.
        memory_use: bytes of the process: the most it had, and what is anonymous now.

    Raises:
        UnsupportedOptionError: the model takes fewer tokens.
    """
    plan.check(runtime.config)
    with closing(
        runtime.start_decode(slots=plan.batch, max_seq_length=plan.prompt + plan.new_tokens)
    ) as session:
        run = _Runs(session, plan, runtime.config.padded_vocab_size, clock)
        run.warm_up()
        peak, anonymous = memory_use()  # before the memory's own measurement takes some
        rounds = [  # in turns, so that a swing of the machine meets all of them
            (
                run.prefill(),
                run.decode(1),
                run.decode(plan.batch),
                run.verify(),
                memory_bytes_per_s(),
            )
            for _ in range(plan.repeats)
        ]
    prefill, decode, batch, verify, bandwidth = map(statistics.median, zip(*rounds, strict=True))
    capabilities = runtime.capabilities
    return BenchmarkReport(
        runtime=capabilities.name,
        dtype=capabilities.dtype,
        plan=plan,
        prefill_tokens_per_s=plan.prompt / prefill,
        first_token_s=prefill,
        decode_tokens_per_s=plan.new_tokens / decode,
        batch_tokens_per_s=plan.batch * plan.new_tokens / batch,
        verify_steps=verify / (decode / plan.new_tokens),
        peak_rss=peak,
        anonymous=anonymous,
        token_bytes=token_bytes(runtime.config, capabilities.dtype),
        memory_bytes_per_s=bandwidth,
    )


def token_bytes(config: Glm3Config, dtype: str) -> int:
    """Bytes of weights that one token reads: all but the embedding, of which it reads a row."""
    read = config.parameter_count - config.padded_vocab_size * config.hidden_size
    return int(read * _WEIGHT_BYTES.get(dtype, 4.0))


class _Runs:
    def __init__(
        self,
        session: DecodeSession,
        plan: BenchmarkPlan,
        vocab_size: int,
        clock: Callable[[], float],
    ) -> None:
        self._session, self._plan, self._clock = session, plan, clock
        rng = np.random.default_rng(0)
        self._prompt = rng.integers(0, vocab_size, plan.prompt, dtype=np.int32)
        self._next = rng.integers(0, vocab_size, plan.new_tokens, dtype=np.int32)

    def warm_up(self) -> None:
        """Have every graph compiled and every slot filled."""
        self.prefill()
        for size in {1, self._plan.batch}:
            self.decode(size)
        self.verify()

    def prefill(self) -> float:
        """Seconds from a prompt to its logits."""
        self._session.truncate(0, 0)
        began = self._clock()
        self._session.prefill(0, self._prompt)
        return self._clock() - began

    def decode(self, size: int) -> float:
        """Seconds of the new tokens of so many sequences, each behind the prompt."""
        slots = list(range(size))
        self._session.truncate(0, self._plan.prompt)
        for slot in slots[1:]:
            self._session.copy(0, slot, self._plan.prompt)
        began = self._clock()
        for token_id in self._next:
            self._session.decode(slots, [int(token_id)] * size)
        return self._clock() - began

    def verify(self) -> float:
        """Seconds of a few tokens at once, with the logits of each; they end the prompt."""
        tokens = self._prompt[-_VERIFIED:]
        self._session.truncate(0, self._plan.prompt - len(tokens))
        began = self._clock()
        self._session.prefill(0, tokens, all_logits=True)
        return self._clock() - began
