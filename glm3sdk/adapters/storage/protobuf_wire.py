"""The wire format of protocol buffers: fields found by their offsets, and written.

A message is a sequence of fields; each begins with a varint of `number << 3 | type`
(https://protobuf.dev/programming-guides/encoding). Nothing here knows a message's schema:
who reads one picks the fields by number and skips the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol

import attrs

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_HEAD_BYTES = 2 * _MAX_VARINT_BYTES
_WINDOW_BYTES = 4096
_MAX_NUMBER = (1 << 29) - 1


class WireError(Exception):
    """Bytes that are no message. Who reads a file turns it into an error that names the file."""


class Source(Protocol):
    """Bytes that can be read anywhere."""

    @property
    def size(self) -> int:
        """Their number."""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, or as many of them as there are."""


@attrs.frozen
class MemorySource:
    """A message in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.data)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, or as many of them as there are."""
        return self.data[start:stop]


class FileSource:
    """A message in an open file. Small reads that follow each other read the file once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._window, self._begin = b"", 0
        self.size = file.seek(0, 2)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, or as many of them as there are."""
        if not self._begin <= start <= stop <= self._begin + len(self._window):
            self._file.seek(start)
            self._window, self._begin = self._file.read(max(stop - start, _WINDOW_BYTES)), start
        return self._window[start - self._begin : stop - self._begin]


@attrs.frozen
class Field:
    """A field of a message.

    Attributes:
        number: which field of the schema it is.
        type: VARINT, FIXED64, BYTES or FIXED32.
        value: a varint's number, unsigned; 0 for other types.
        start: where in the source its payload begins.
        stop: where its payload ends; the next field begins there.
    """

    number: int
    type: int
    value: int
    start: int
    stop: int


def fields(source: Source, start: int = 0, stop: int | None = None) -> Iterator[Field]:
    """Walk a message's fields; payloads are not read.

    Args:
        source: where the message is.
        start: where it begins.
        stop: where it ends; the end of the source by default.

    Raises:
        WireError: the message is truncated, or is none.
    """
    end = source.size if stop is None else stop
    while start < end:
        head = source.read(start, min(start + _HEAD_BYTES, end))
        key, used = _varint(head, 0, start)
        number, kind, value = key >> 3, key & 7, 0
        if not 0 < number <= _MAX_NUMBER:
            raise WireError(f"a field of number {number} at byte {start}")
        begin = start + used
        if kind == VARINT:
            value, used = _varint(head, used, start)
            finish = start + used
        elif kind == BYTES:
            length, used = _varint(head, used, start)
            begin = start + used
            finish = begin + length
        elif kind in (FIXED32, FIXED64):
            finish = begin + (4 if kind == FIXED32 else 8)
        else:  # groups, which the language gave up; 6 and 7 were never used
            raise WireError(f"a field of type {kind} at byte {start}")
        if finish > end:
            raise WireError(f"it is truncated: the field at byte {start} ends at byte {finish}")
        yield Field(number, kind, value, begin, finish)
        start = finish


def read_bytes(source: Source, field: Field, limit: int) -> bytes:
    """A BYTES field's payload.

    Raises:
        WireError: a field of another type, or longer than the limit.
    """
    _require(field, BYTES)
    if field.stop - field.start > limit:
        raise WireError(f"field {field.number} at byte {field.start} is longer than {limit} bytes")
    data = source.read(field.start, field.stop)
    if len(data) != field.stop - field.start:
        raise WireError(f"it is truncated: field {field.number} at byte {field.start} is cut off")
    return data


def read_text(source: Source, field: Field, limit: int) -> str:
    """A string field.

    Raises:
        WireError: a field of another type, longer than the limit, or not UTF-8.
    """
    data = read_bytes(source, field, limit)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise WireError(f"field {field.number} at byte {field.start} is not UTF-8 text") from exc


def read_integers(source: Source, field: Field, limit: int) -> tuple[int, ...]:
    """One field's part of a repeated integer: a single varint, or several packed into one.

    The numbers are signed, as an int32 or int64 is; for a uint32 that makes no difference.

    Raises:
        WireError: a field of another type, or more than `limit` bytes of them.
    """
    if field.type == VARINT:
        return (_signed(field.value),)
    data, position, numbers = read_bytes(source, field, limit), 0, []
    while position < len(data):
        value, position = _varint(data, position, field.start)
        numbers.append(_signed(value))
    return tuple(numbers)


def integer_field(number: int, value: int) -> bytes:
    """A field of an int32, int64, uint32 or bool."""
    return _encoded(number << 3 | VARINT) + _encoded(value % (1 << 64))


def integer_fields(number: int, values: Iterable[int]) -> bytes:
    """A repeated integer, not packed: how version 2 of the language writes it."""
    return b"".join(integer_field(number, value) for value in values)


def bytes_field(number: int, payload: bytes) -> bytes:
    """A field of bytes, of text in UTF-8, or of an encoded message."""
    return bytes_head(number, len(payload)) + payload


def bytes_head(number: int, length: int) -> bytes:
    """What comes before the payload of a `bytes_field`; the payload is written after it."""
    return _encoded(number << 3 | BYTES) + _encoded(length)


def _encoded(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _varint(data: bytes, position: int, place: int) -> tuple[int, int]:
    """A varint's value, and the position after it."""
    value = 0
    for count, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + count + 1
    if len(data) - position < _MAX_VARINT_BYTES:
        raise WireError(f"it is truncated: a number is cut off after byte {place}")
    raise WireError(f"a number of more than 64 bits after byte {place}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _require(field: Field, kind: int) -> None:
    if field.type != kind:
        raise WireError(f"field {field.number} at byte {field.start} has type {field.type}")
