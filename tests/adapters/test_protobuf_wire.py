from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.adapters.storage import protobuf_wire as wire

NUMBERS = st.integers(1, (1 << 29) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
MESSAGES = st.lists(st.tuples(NUMBERS, INT64 | st.binary(max_size=6000)), max_size=8)


def encoded(message: list[tuple[int, int | bytes]]) -> bytes:
    return b"".join(
        wire.integer_field(number, value)
        if isinstance(value, int)
        else wire.bytes_field(number, value)
        for number, value in message
    )


def decoded(source: wire.Source) -> list[tuple[int, int | bytes]]:
    return [
        (field.number, wire.read_integers(source, field, 10)[0])
        if field.type == wire.VARINT
        else (field.number, wire.read_bytes(source, field, 6000))
        for field in wire.fields(source)
    ]


@given(MESSAGES)
def test_what_was_written_is_read_in_memory_and_in_a_file(
    message: list[tuple[int, int | bytes]],
) -> None:
    data = encoded(message)
    assert decoded(wire.MemorySource(data)) == message
    assert decoded(wire.FileSource(BytesIO(data))) == message


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_that_cover_them_or_no_message(data: bytes) -> None:
    for source in (wire.MemorySource(data), wire.FileSource(BytesIO(data))):
        end = 0
        try:
            for field in wire.fields(source):
                assert end < field.start <= field.stop <= len(data)
                end = field.stop
        except wire.WireError:
            continue
        assert end == len(data)


@given(MESSAGES.filter(bool), st.data())
def test_a_message_cut_within_a_field_is_no_message(
    message: list[tuple[int, int | bytes]], data: st.DataObject
) -> None:
    whole = encoded(message)
    ends = {0, *(field.stop for field in wire.fields(wire.MemorySource(whole)))}
    cut = data.draw(st.integers(0, len(whole) - 1).filter(lambda cut: cut not in ends))
    with pytest.raises(wire.WireError, match="truncated"):
        list(wire.fields(wire.MemorySource(whole[:cut])))


def test_the_examples_of_the_format_s_documentation() -> None:
    # protobuf.dev/programming-guides/encoding: 150 in field 1, "testing" in field 2, packed
    # 3, 270 and 86942 in field 6, -2 as an int32.
    data = bytes.fromhex("089601120774657374696e673206038e029ea70508feffffffffffffffff01")
    source = wire.MemorySource(data)
    found = list(wire.fields(source))
    assert found[0].value == 150
    assert wire.read_text(source, found[1], 7) == "testing"
    assert wire.read_integers(source, found[2], 6) == (3, 270, 86942)
    assert wire.read_integers(source, found[3], 10) == (-2,)
    assert wire.integer_field(1, 150) + wire.bytes_field(2, b"testing") == data[:12]
    assert wire.integer_fields(1, [-2, 150]) == data[20:] + data[:3]


def test_fixed_numbers_are_stepped_over() -> None:
    source = wire.MemorySource(b"\x0d1234\x1112345678" + wire.integer_field(3, 7))
    found = [(field.number, field.type, field.value) for field in wire.fields(source)]
    assert found == [(1, wire.FIXED32, 0), (2, wire.FIXED64, 0), (3, wire.VARINT, 7)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than 64 bits"),
        (b"\x08\x80", "truncated"),
        (b"\x0a\x05abcd", "truncated"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "truncated"),
        (b"\x0d123", "truncated"),
        (b"\x00\x00", "number 0"),
        (b"\x80\x80\x80\x80\x10\x00", "number 536870912"),
        (b"\x0b\x0c", "type 3"),
        (b"\x0f", "type 7"),
    ],
)
def test_what_is_no_message_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        list(wire.fields(wire.MemorySource(data)))


def test_payloads_are_held_to_their_type_and_limit() -> None:
    source = wire.MemorySource(
        wire.bytes_field(1, b"\xff\xfe") + wire.integer_field(2, 1) + b"\x0d1234"
    )
    text, number, fixed = wire.fields(source)
    with pytest.raises(wire.WireError, match="longer than 1 bytes"):
        wire.read_bytes(source, text, 1)
    with pytest.raises(wire.WireError, match="not UTF-8"):
        wire.read_text(source, text, 2)
    with pytest.raises(wire.WireError, match="field 2 at byte 5 has type 0"):
        wire.read_text(source, number, 10)
    with pytest.raises(wire.WireError, match="has type 5"):
        wire.read_integers(source, fixed, 10)
    with pytest.raises(wire.WireError, match="truncated"):
        wire.read_integers(source, text, 10)


def test_a_file_is_walked_without_its_payloads() -> None:
    class Counted(BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    file = Counted(b"".join(wire.bytes_field(number, b"x" * 1_000_000) for number in range(1, 6)))
    found = list(wire.fields(wire.FileSource(file)))
    assert [field.stop - field.start for field in found] == [1_000_000] * 5
    assert file.count < 5 * 5000


def test_a_file_that_shrinks_while_it_is_read_is_truncated() -> None:
    file = BytesIO(wire.bytes_field(1, b"x" * 10_000))
    source = wire.FileSource(file)
    field = next(wire.fields(source))
    file.truncate(8000)
    with pytest.raises(wire.WireError, match="cut off"):
        wire.read_bytes(source, field, 10_000)
