"""Checks that run a model or MindSpore: each in a process of its own, which may crash or hang."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import attrs

from glm3sdk.services.doctor import Check, failed, passed, skipped
from glm3sdk.services.environment_checks import INSTALL_MINDSPORE, SET_ENV

_RUN_CHECK = """
import json, sys
import mindspore
mindspore.set_device(sys.argv[1])
mindspore.run_check()
print(json.dumps({"version": mindspore.__version__}))
"""
_TOKENIZER = """
import json, sys
from glm3sdk import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
text = "你好, ChatGLM3!\\n  👋"
ids = tokenizer.encode(text)
back = tokenizer.decode(ids)
print(json.dumps({"same": back == text, "back": back, "vocabulary": tokenizer.vocab_size}))
"""
_DECODE = """
import json, sys, time
from glm3sdk import GenerationConfig, Message, load_service
start = time.monotonic()
with load_service(sys.argv[1], runtime=sys.argv[2], slots=1) as service:
    config = GenerationConfig(max_new_tokens=4, do_sample=False)
    reply = service.chat([Message.user("你好")], config)
    dtype = service.runtime.capabilities.dtype
seconds = time.monotonic() - start
print(json.dumps({"tokens": reply.usage.completion_tokens, "dtype": dtype, "seconds": seconds}))
"""
_LONGEST = 500
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")


@attrs.frozen
class _Ended:
    """How a process ended.

    Attributes:
        values: the JSON object of its last line; None where it failed.
        reason: why it failed.
    """

    values: dict[str, Any] | None
    reason: str = ""


def check_device(runtime: str, *, installed: bool, timeout_s: float) -> Check:
    """Q2: MindSpore's own `run_check` on the device of a runtime."""
    target = {"mindspore-cpu": "CPU", "mindspore-ascend": "Ascend"}.get(runtime)
    if target is None:
        return skipped("device", f"runtime {runtime!r} is not MindSpore's")
    if not installed:
        return skipped("device", "MindSpore is not installed")
    ended = _run(_RUN_CHECK, target, timeout_s=timeout_s)
    if ended.values is not None:
        return passed("device", f"MindSpore {ended.values['version']} computes on {target}")
    remedy = f"reinstall MindSpore: {INSTALL_MINDSPORE}"
    if target == "Ascend":
        remedy = f"{SET_ENV}, and see that `npu-smi info` shows the card"
    return failed("device", f"mindspore.run_check() on {target}: {ended.reason}", remedy)


def check_tokenizer(model: str, *, timeout_s: float) -> Check:
    """A text comes back from the model's tokenizer as it was."""
    if (absent := _not_here("tokenizer", model)) is not None:
        return absent
    ended = _run(_TOKENIZER, model, timeout_s=timeout_s)
    remedy = "pass the tokenizer.model that belongs to the model"
    if ended.values is None:
        return failed("tokenizer", ended.reason, remedy)
    if not ended.values["same"]:
        return failed("tokenizer", f"another text came back: {ended.values['back']!r}", remedy)
    return passed("tokenizer", f"{model}: {ended.values['vocabulary']} ids, a text came back")


def check_decode(model: str, runtime: str, *, timeout_s: float) -> Check:
    """The model answers."""
    if (absent := _not_here("decode", model)) is not None:
        return absent
    ended = _run(_DECODE, model, runtime, timeout_s=timeout_s)
    if ended.values is None:
        remedy = "see the checks above, or try --model tiny or another --runtime"
        return failed("decode", f"{model} on {runtime}: {ended.reason}", remedy)
    values = ended.values
    return passed(
        "decode",
        f"{model} on {runtime} in {values['dtype']}: {values['tokens']} tokens, with loading "
        f"{values['seconds']:.1f} s",
    )


def _not_here(name: str, model: str) -> Check | None:
    """A check of a model that would have to be fetched first."""
    from glm3sdk.bootstrap.cached import cached_models
    from glm3sdk.bootstrap.model_uris import request_for
    from glm3sdk.bootstrap.models import is_fetched

    if not is_fetched(model):
        return None
    key = request_for(model).key
    if any(cached.key == key for cached in cached_models()):
        return None
    return failed(name, f"{model} is not in the cache", f"glm3 pull {model}")


def _run(program: str, *arguments: str, timeout_s: float) -> _Ended:
    # -P: nothing of the current directory is imported by accident. Nothing is fetched here.
    environment = {"GLOG_v": "3", **os.environ, "GLM3SDK_OFFLINE": "1"}
    with subprocess.Popen(  # noqa: S603  # our own programs
        [sys.executable, "-P", "-X", "utf8", "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return _Ended(None, f"no answer after {timeout_s:g} s")
        finally:
            # Compilers of the framework are children of it.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in output.splitlines() if line.strip()]
    if process.returncode == 0 and lines:
        return _Ended(json.loads(lines[-1]))
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return _Ended(None, f"the process was ended by {name}")
    told = [line.strip() for line in errors.splitlines() if line.strip()]
    # MindSpore writes places in its C++ code behind the error.
    raised = [line for line in told if _ERROR.match(line)] or told
    return _Ended(None, (raised[-1] if raised else f"exit code {process.returncode}")[:_LONGEST])
