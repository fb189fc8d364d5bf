"""`glm3 serve` as a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from server.serving import CHAT, HI, Served

REPOSITORY = Path(__file__).resolve().parents[2]


def serve(*arguments: str, replies: list[str], **environment: str) -> subprocess.Popen[str]:
    program = str(REPOSITORY / "tests" / "cli" / "scripted_program.py")
    return subprocess.Popen(
        [sys.executable, "-W", "error", program, json.dumps(replies), "serve", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop_and_ends_what_it_began(signum):
    process = serve("--port", "0", "--model-name", "m", replies=["你好" * 60])
    line = process.stdout.readline()
    assert line.startswith("serving tiny at http://127.0.0.1:")
    server = Served(line.split()[-1], None)
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    body = json.dumps({"model": "m", "messages": HI, "stream": True})
    connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: {")
    process.send_signal(signum)
    rest = answer.read().decode()
    connection.close()
    assert rest.count("你") == 60
    assert rest.endswith("data: [DONE]\n\n")
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_a_port_in_use_is_one_line_and_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = serve("--port", port, replies=["x"])
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"glm3: error: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert err.count("\n") == 1


def test_other_machines_are_let_in_with_a_key_or_on_demand_alone():
    process = serve("--host", "0.0.0.0", replies=["x"], GLM3SDK_API_KEY="")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "GLM3SDK_API_KEY" in err
    assert "--no-auth" in err


def test_help_imports_neither_numpy_nor_a_server():
    program = (
        "import sys\nfrom glm3sdk.cli.app import app\n"
        "app.main(['serve', '--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'pydantic', 'starlette', 'uvicorn'} & set(sys.modules)\n"
        "raise SystemExit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "GLM3SDK_API_KEY" in done.stdout


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "pydantic", "prometheus_client"])
def test_a_missing_library_is_one_line_that_names_the_extra(missing: str):
    program = (
        f"import sys\nsys.modules[{missing!r}] = None\n"
        "from glm3sdk.cli import main\nmain(['serve', '--port', '0'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"glm3: error: the server needs {missing}, which is not installed: "
        "pip install 'glm3sdk[serve]'\n"
    )
