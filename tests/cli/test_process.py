"""`glm3` as a process: its streams, its start, its exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glm3sdk._version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTED = [str(Path(__file__).with_name("scripted_program.py")), json.dumps(["你好👋"])]


def python(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def test_the_version_is_printed():
    assert python("-m", "glm3sdk", "--version").stdout.decode().strip().endswith(__version__)


def test_help_imports_neither_numpy_nor_a_framework():
    done = python("-X", "importtime", "-m", "glm3sdk", "chat", "--help")
    assert done.returncode == 0
    modules = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"glm3sdk.cli.chat" in modules
    assert modules.isdisjoint({b"numpy", b"mindspore", b"rich", b"sentencepiece"})


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_output_is_utf8_whatever_the_locale(locale: str):
    environment = {"LC_ALL": locale, "PYTHONIOENCODING": "ascii"}
    done = python(*SCRIPTED, "chat", "你好", **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "你好👋\n".encode(), b"")


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_an_argument_that_is_not_utf8_is_one_line_and_exit_code_2(command: str):
    done = python(*SCRIPTED, command, b"\xff\xfe")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"glm3: error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_file_name_that_is_not_utf8_can_be_reported():
    done = python(*SCRIPTED, "chat", "x", "--tools", b"no\xff.json")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"No such file" in done.stderr


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, *SCRIPTED, "chat", "x"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_closed_standard_input_is_an_empty_message():
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, *SCRIPTED, "chat"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"message is empty" in done.stderr


def test_ctrl_c_becomes_a_keyboard_interrupt_while_the_main_thread_waits():
    program = """
import os, queue, signal, threading
from glm3sdk.cli.interrupts import take_interrupts
take_interrupts()
try:
    threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
    queue.SimpleQueue().get()
except KeyboardInterrupt:
    print("interrupted")
"""
    assert python("-c", program).stdout == b"interrupted\n"


def test_an_ignored_ctrl_c_stays_ignored():
    program = """
import os, signal
from glm3sdk.cli.interrupts import take_interrupts
take_interrupts()
os.kill(os.getpid(), signal.SIGINT)
print("still here")
"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = python("-c", program)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout) == (0, b"still here\n")
