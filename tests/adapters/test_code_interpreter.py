"""What a code cell may and may not do."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from glm3sdk.adapters.interpreter.process import CodeInterpreter, interpreter_tool, isolation
from glm3sdk.domain.chat import Message, Role
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import BackendUnavailableError, UnsupportedOptionError
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

USUAL = CodeInterpreter(timeout_s=20)
SHORT = CodeInterpreter(timeout_s=0.5)
OPEN = CodeInterpreter(timeout_s=20, isolate=False)

needs_namespaces = pytest.mark.skipif(
    not isolation().network, reason=f"no namespaces here: {isolation().reason}"
)


def run(code: str, interpreter: CodeInterpreter = USUAL) -> str:
    return interpreter.run(code)


@pytest.fixture(params=[USUAL, OPEN], ids=["isolated", "not isolated"])
def interpreter(request: pytest.FixtureRequest) -> CodeInterpreter:
    return request.param


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('你好')\n1 + 1", "你好\n2\n"),
        ("x = 3", "(no output)"),
        ("", "(no output)"),
        ("print(1); None", "1\n"),
        ("'text'", "'text'\n"),
        ("import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')", "a\nb\nc\n"),
        ("def f(n):\n    return n * 2\nf(21)", "42\n"),
        ("import sys; sys.exit()", "(no output)"),
        ("input()", None),
    ],
)
def test_what_is_printed_and_the_last_value_come_back(
    code: str, told: str | None, interpreter: CodeInterpreter
) -> None:
    found = run(code, interpreter)
    assert "EOFError" in found if told is None else found == told


def test_an_exception_comes_back_as_its_traceback_without_our_own_frames() -> None:
    assert run("print('before')\ndef f():\n    return 1 / 0\nf()").splitlines() == [
        "before",
        "Traceback (most recent call last):",
        '  File "<cell>", line 4, in <module>',
        "    f()",
        '  File "<cell>", line 3, in f',
        "    return 1 / 0",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]
    assert run("def f(:").splitlines()[0] == '  File "<cell>", line 1'
    assert run("def f(:").splitlines()[-1] == "SyntaxError: invalid syntax"


def test_what_a_cell_defines_is_gone_in_the_next() -> None:
    assert run("name = 1") == "(no output)"
    assert "NameError" in run("name")


def test_it_is_stopped_in_time_and_keeps_what_it_said(interpreter: CodeInterpreter) -> None:
    short = attrs.evolve(interpreter, timeout_s=0.5)
    began = time.monotonic()
    assert run("print('x')\nwhile True: pass", short) == "x\n[stopped after 0.5 s]"
    assert time.monotonic() - began < 10


def test_memory_has_a_limit(interpreter: CodeInterpreter) -> None:
    small = attrs.evolve(interpreter, memory_bytes=200 * 2**20)
    assert "MemoryError" in run("bytearray(300 * 2**20)", small)
    assert run("len(bytearray(20 * 2**20))", small) == "20971520\n"
    filled = run("rows = []\nwhile True: rows.append(bytearray(2**20))", small)
    assert filled.splitlines()[-1] == "MemoryError"


FORKS = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        count += 1
except OSError as exc:
    print(count, exc.strerror)
"""


@needs_namespaces
def test_processes_are_limited_and_none_is_left(tmp_path: Path) -> None:
    before = running_cells()
    count, error = run(FORKS).split(" ", 1)
    # Root is not counted by the limit, but by the namespace's (since Linux 6.14, 301).
    assert 0 < int(count) <= 301
    assert error == "Resource temporarily unavailable\n"
    assert running_cells() <= before


def running_cells() -> set[str]:
    found = set()
    for name in os.listdir("/proc"):
        try:
            command = Path("/proc", name, "cmdline").read_bytes() if name.isdigit() else b""
        except OSError:
            continue
        if b"interpreter/cell.py" in command:
            found.add(name)
    return found


BACKGROUND = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()  # out of the cell's own session
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
"""


def test_children_in_the_background_end_with_the_cell(interpreter: CodeInterpreter) -> None:
    before = running_cells()
    began = time.monotonic()
    assert run(BACKGROUND, interpreter) == "(no output)"
    assert time.monotonic() - began < 20
    assert running_cells() <= before


CALL = """
import sys
from glm3sdk.adapters.interpreter.process import CodeInterpreter
CodeInterpreter(timeout_s=60, isolate={isolate}).run(sys.argv[1])
"""
HOLDS = "import os, time\nheld = open({path!r}, 'wb')\nos.fork()\ntime.sleep(60)"


@pytest.mark.parametrize("isolate", [True, False])
def test_a_cell_ends_with_a_caller_that_was_killed(isolate: bool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o666)
    tmp_path.chmod(0o755)
    caller = subprocess.Popen(
        [sys.executable, "-c", CALL.format(isolate=isolate), HOLDS.format(path=str(pipe))],
        env={**os.environ, "TMPDIR": str(tmp_path)},  # where the killed one leaves its folder
    )
    with caller, pipe.open("rb") as held:  # opens once the cell does
        caller.kill()
        assert held.read() == b""  # ends once nobody holds it


def test_a_flood_of_output_is_cut_in_the_middle() -> None:
    said = run("print('first')\nprint('x' * 30_000_000)\nprint('last')")
    assert len(said) < 8100
    assert said.startswith("first\nxxx")
    assert said.endswith("xxx\nlast\n")
    assert said.count("\n... (output left out) ...\n") == 1


def test_a_flood_without_end_is_stopped() -> None:
    said = run("while True: print('y' * 1000)", SHORT)
    assert len(said) < 8100
    assert said.endswith("[stopped after 0.5 s]")


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert run("import os\nos.write(1, b'a\\xffb')").startswith("a\N{REPLACEMENT CHARACTER}b")


def test_secrets_of_the_environment_are_not_there(
    monkeypatch: pytest.MonkeyPatch, interpreter: CodeInterpreter
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sesame-4711")
    names = run("import os\nprint(sorted(os.environ))", interpreter)
    assert "MY_API_KEY" not in names
    assert "sesame" not in run("import os\nprint(os.environ)", interpreter)


OTHERS = """
import os
for name in os.listdir("/proc"):
    try:
        print(open(f"/proc/{name}/environ", "rb").read())
    except OSError:
        pass
"""


@needs_namespaces
def test_the_environment_of_other_processes_cannot_be_read() -> None:
    # This test's own process was started with it: /proc shows what a program began with.
    assert b"PATH=" in Path("/proc/self/environ").read_bytes()
    path = os.environ["PATH"]
    assert path not in run(OTHERS, attrs.evolve(USUAL, output_chars=1_000_000))


@pytest.fixture
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on loopback, and who came."""
    came: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    connection, address = server.accept()
                    came.append(str(address))
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


CONNECT = """
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), 5).close()
except OSError as exc:
    print(exc.strerror)
else:
    print("connected")
"""


@needs_namespaces
def test_the_network_is_out_of_reach(listener: tuple[int, list[str]]) -> None:
    port, came = listener
    assert run(CONNECT.format(port=port)) == "Network is unreachable\n"
    assert came == []


def test_without_isolation_it_is_in_reach_and_a_warning_says_so(
    listener: tuple[int, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    from glm3sdk.adapters.interpreter import process

    process._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert run(CONNECT.format(port=listener[0]), OPEN) == "connected\n"
        run("", OPEN)
    (warning,) = caplog.messages
    assert "cannot keep the network" in warning
    assert "docs/code-interpreter.md" in warning


def test_isolation_can_be_insisted_on() -> None:
    strict = CodeInterpreter(isolate=False, require_isolation=True)
    with pytest.raises(BackendUnavailableError, match="switched off"):
        run("print(1)", strict)


def test_it_runs_in_an_empty_directory_that_is_gone_afterwards(
    interpreter: CodeInterpreter,
) -> None:
    code = "import os\nopen('x', 'w').write('y')\nprint(os.getcwd(), os.listdir('.'))"
    folder, listed = run(code, interpreter).split("\n")[0].split(" ", 1)
    assert listed == "['x']"
    assert folder != os.getcwd()
    assert not Path(folder).exists()


@pytest.mark.skipif(not isolation().files, reason="files cannot be locked here")
def test_nothing_else_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("before", encoding="utf-8")
    assert "Read-only file system" in run(f"open({str(target)!r}, 'w')")
    assert target.read_text(encoding="utf-8") == "before"


def test_files_have_a_limit(interpreter: CodeInterpreter) -> None:
    small = attrs.evolve(interpreter, file_bytes=1000)
    assert "File too large" in run("with open('x', 'wb') as f: f.write(b'0' * 2000)", small)


@pytest.mark.skipif(not isolation().files, reason="files cannot be locked here")
def test_all_files_together_have_a_limit() -> None:
    small = attrs.evolve(USUAL, folder_bytes=2**20)
    code = "for n in range(9):\n    with open(str(n), 'wb') as f: f.write(bytes(2**18))"
    assert "No space left on device" in run(code, small)


def test_a_crash_is_told_of() -> None:
    assert run("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", OPEN) == (
        "[ended by SIGSEGV]"
    )


@pytest.mark.parametrize("field", ["timeout_s", "memory_bytes", "processes", "output_chars"])
def test_limits_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=field):
        CodeInterpreter(**{field: 0})


def test_a_model_s_code_cell_reaches_it_and_the_output_goes_back() -> None:
    cell = Message.assistant("```python\nprint(6 * 7)\n```", metadata="interpreter")
    runtime = ScriptedRuntime([cell, SpecialToken.OBSERVATION], "42!")
    with Glm3Service(runtime=runtime, tokenizer=CharacterTokenizer()) as service:
        reply = service.run_tools([Message.user("6*7?")], [interpreter_tool(USUAL)])
    assert reply.content == "42!"
    told = [each.content for each in reply.history if each.role is Role.OBSERVATION]
    assert told == ["42\n"]
    assert json.dumps(interpreter_tool().spec.to_json())
