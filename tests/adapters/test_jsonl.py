from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.errors import InvalidDatasetError


@given(st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b""))), st.booleans())
def test_every_line_is_found_again_by_its_place(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ended: bool
):
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    source = JsonLinesFile(path)
    found = list(source.lines())
    assert b"".join(line.data or b"" for line in found) == path.read_bytes()
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    for line in found:
        assert source.read(line.offset, line.size) == line.data


def test_a_line_over_the_limit_is_told_without_its_bytes_and_the_next_is_read(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    long = b"x" * 3_000_000
    path.write_bytes(b"first\n" + long + b"\n" + b"12345678\n" + long)
    lines = list(JsonLinesFile(path, max_line_bytes=9).lines())
    assert [line.data for line in lines] == [b"first\n", None, b"12345678\n", None]
    assert [line.size for line in lines] == [6, 3_000_001, 9, 3_000_000]
    assert [line.offset for line in lines] == [0, 6, 3_000_007, 3_000_016]


def test_memory_stays_bounded_whatever_a_line_holds(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x" * 20_000_000)
    tracemalloc.start()
    try:
        (line,) = JsonLinesFile(path, max_line_bytes=1000).lines()
        assert line.size == 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_directory_a_missing_file_and_a_pipe_are_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path, "not a regular file"),
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("a\0b"), "null"),
    ]:
        with pytest.raises(InvalidDatasetError, match=reason):
            JsonLinesFile(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.touch(mode=0)
    with pytest.raises(InvalidDatasetError, match="Permission denied"):
        JsonLinesFile(path)


def test_a_file_that_changed_is_not_read_on(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"one\ntwo\n")
    source = JsonLinesFile(path)
    assert source.read(4, 4) == b"two\n"
    path.write_bytes(b"one\nother\n")
    with pytest.raises(InvalidDatasetError, match="has changed"):
        source.read(4, 4)
    with pytest.raises(InvalidDatasetError, match="has changed"):
        list(source.lines())
