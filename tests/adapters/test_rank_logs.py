from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glm3sdk.adapters.cluster.rank_logs import LONGEST_LINE, LiveOutput, RankLog
from glm3sdk.errors import LaunchError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


OpenLog = Callable[..., RankLog]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[OpenLog]:
    opened: list[RankLog] = []

    def open_log(stream: io.StringIO, rank: int = 3, **options: Any) -> RankLog:
        path = tmp_path / "logs" / f"rank_{rank}.log"
        live = LiveOutput(stream)
        opened.append(RankLog(path, prefix=f"[rank {rank}]", live=live, colour=rank, **options))
        return opened[-1]

    yield open_log
    for one in opened:
        one.close()


def test_lines_are_prefixed_and_the_file_has_the_bytes(log: OpenLog, stream: io.StringIO) -> None:
    one = log(stream)
    data = "loss 2.5\n\n损失 2.4\nno end".encode()
    for start in range(len(data)):  # cut within characters too
        one.write(data[start : start + 1])
    assert stream.getvalue() == "[rank 3] loss 2.5\n[rank 3] \n[rank 3] 损失 2.4\n"
    one.close()
    assert stream.getvalue().endswith("[rank 3] no end\n")
    assert one.path.read_bytes() == data
    assert list(one.last_lines) == ["loss 2.5", "", "损失 2.4", "no end"]


def test_lines_of_two_ranks_are_never_torn(log: OpenLog, stream: io.StringIO) -> None:
    one, other = log(stream, 0), log(stream, 1)
    one.write(b"first ")
    other.write(b"second\nthird")
    one.write(b"line\n")
    other.close()
    assert stream.getvalue() == "[rank 1] second\n[rank 0] first line\n[rank 1] third\n"


def test_a_bar_shows_its_last_state_and_now_and_then_one_before(
    log: OpenLog, stream: io.StringIO
) -> None:
    clock = Clock()
    one = log(stream, clock=clock)
    for step in range(100):
        clock.now = step / 4
        one.write(f"\rstep {step}".encode())
    assert stream.getvalue().splitlines() == ["[rank 3] step 39", "[rank 3] step 79"]
    one.write(b"\r\ndone\r\n")
    assert stream.getvalue().splitlines()[2:] == ["[rank 3] step 99", "[rank 3] done"]
    assert one.path.read_bytes().count(b"\r") == 102


def test_a_very_long_line_is_cut_where_it_is_shown(log: OpenLog, stream: io.StringIO) -> None:
    one = log(stream)
    for _ in range(1000):
        one.write(b"x" * 1000)
    one.write(b"\nnext\n")
    shown = stream.getvalue().splitlines()
    assert shown[0].startswith("[rank 3] " + "x" * LONGEST_LINE + " ...")
    assert f"({1_000_000 - LONGEST_LINE} bytes more in {one.path})" in shown[0]
    assert shown[1] == "[rank 3] next"
    one.close()
    assert one.path.stat().st_size == 1_000_006


def test_colours_and_pictures_of_control_characters_are_for_terminals_alone(
    log: OpenLog, stream: io.StringIO
) -> None:
    terminal = Terminal()
    log(terminal).write(b"\x1b[2Jcleared\tscreen\x9b\n")
    assert terminal.getvalue() == "\x1b[35m[rank 3]\x1b[0m ␛[2Jcleared\tscreen�\n"
    log(stream).write(b"\x1b[2Jcleared\n")
    assert stream.getvalue() == "[rank 3] \x1b[2Jcleared\n"


def test_output_that_nobody_reads_does_not_end_the_log(log: OpenLog) -> None:
    stream = io.StringIO()
    one = log(stream)
    stream.close()
    one.write(b"kept\n")
    one.close()
    assert one.path.read_bytes() == b"kept\n"


def test_a_restart_adds_to_the_file(log: OpenLog, stream: io.StringIO) -> None:
    for append in (False, True):
        one = log(stream, append=append)
        one.write(b"again\n")
        one.close()
    assert one.path.read_bytes() == b"again\nagain\n"


def test_a_log_directory_that_cannot_be_made_is_a_users_mistake(
    log: OpenLog, tmp_path: Path
) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(LaunchError, match="--log-dir"):
        log(io.StringIO())
