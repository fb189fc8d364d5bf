"""A data file in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from glm3sdk.ports.line_source import Line


class MemoryLines:
    name = "data.jsonl"

    def __init__(self, lines: Iterable[object]) -> None:
        self.data = b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
        self.reads = 0

    def lines(self) -> Iterator[Line]:
        offset = 0
        for number, data in enumerate(self.data.splitlines(keepends=True), 1):
            yield Line(number, offset, len(data), data)
            offset += len(data)

    def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        return self.data[offset : offset + size]
