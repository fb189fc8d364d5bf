"""What a fuzzed parser is, and where its inputs become files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import attrs
import numpy as np

from glm3sdk.testing.fake_tokenizer import CharacterTokenizer

Call = Callable[[bytes], None]

TOKENIZER = CharacterTokenizer()
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.w": np.ones(4, np.float16)}


@attrs.frozen
class Target:
    """A parser.

    Attributes:
        call: gives it bytes.
        seeds: sound inputs, by any name.
        words: that mean something in its format.
    """

    call: Call
    seeds: Callable[[], Mapping[str, bytes]]
    words: tuple[str, ...] = ()


@cache
def folder() -> Path:
    """Where an input becomes a file; whoever starts the process chooses and removes it."""
    return Path(tempfile.mkdtemp())


def file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path
