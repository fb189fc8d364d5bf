"""The checks of `glm3 doctor`, over this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import attrs

from glm3sdk._version import __version__
from glm3sdk.bootstrap.doctor_processes import check_decode, check_device, check_tokenizer
from glm3sdk.errors import Glm3Error, InvalidPlacementError, InvalidRankTableError
from glm3sdk.services.doctor import (
    Check,
    Probe,
    Status,
    failed,
    passed,
    run_checks,
    skipped,
    warned,
)
from glm3sdk.services.environment_checks import (
    SET_ENV,
    Versions,
    check_ascend_environment,
    check_extras,
    check_logs,
    check_mindspore,
    check_numpy,
    check_overflow_mode,
    check_python,
)

_GB = 10**9
_MODEL_GB = 12.5  # ChatGLM3-6B in half precision
_TOOL_TIMEOUT_S = 10
_MODELARTS_TABLE = Path("/user/config/jobstart_hccl.json")
_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_VERSION_FILES = ("version.cfg", "compiler/version.info", "*-linux/ascend_toolkit_install.info")
_VERSION = re.compile(r"^\w*version\s*=\s*\[?([^\]\s]+)", re.IGNORECASE | re.MULTILINE)

# A module of each extra that tells whether it is installed.
_EXTRAS = {
    "evaluate": "jieba",
    "finetune": "matplotlib",
    "hub": "huggingface_hub",
    "mindspore": "mindspore",
    "obs": "boto3",
    "openvino": "openvino",
    "serve": "uvicorn",
    "structured": "llguidance",
}


@attrs.frozen(kw_only=True)
class DoctorReport:
    """What every check found.

    Attributes:
        checks: in the order in which they ran.
    """

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.status is not Status.FAIL for check in self.checks)


def run_doctor(
    *,
    model: str = "tiny",
    runtime: str | None = None,
    config: str | None = None,
    timeout_s: float = 180.0,
    on_check: Callable[[Check], None] = lambda _: None,
) -> DoctorReport:
    """Look over this installation. Nothing is fetched and nothing of MindSpore is run in here.

    Args:
        model: whose tokenizer and decoding are tried; one that would be fetched has to be in the
            cache.
        runtime: what decodes it; None is what a model of this machine was converted for, else
            "mindspore-cpu".
        config: a run configuration whose lengths are checked; None checks none.
        timeout_s: seconds for each check.
        on_check: is told of each check as it ends.
    """
    environ = dict(os.environ)
    runtime = runtime or _runtime_of(model)
    ascend = runtime == "mindspore-ascend" or _has_ascend(environ)
    versions = _versions()
    # Of a check that waits for a process it is the process that is to be ended.
    patience = timeout_s - 1 if timeout_s > 2 else timeout_s / 2
    probes: dict[str, Probe] = {
        "glm3sdk": partial(passed, "glm3sdk", f"{__version__} on {platform.platform()}"),
        "python": partial(check_python, sys.version_info[:3]),
        "mindspore": partial(check_mindspore, versions, needed=runtime.startswith("mindspore")),
        "numpy": partial(check_numpy, versions),
        "extras": partial(check_extras, {name: _has(each) for name, each in _EXTRAS.items()}),
        "processor": partial(_check_processor, runtime),
        "CANN": partial(_check_cann, environ, ascend=ascend),
        "ascend environment": partial(
            check_ascend_environment, environ, has_module=_has, ascend=ascend
        ),
        "overflow mode": partial(check_overflow_mode, environ, ascend=ascend),
        "log variables": partial(check_logs, environ),
        "rank table": partial(_check_rank_table, environ),
        "seq_length": partial(_check_seq_length, config),
        "cache": _check_cache,
        "plugins": _check_plugins,
        "code interpreter": _check_interpreter,
        "device": partial(
            check_device, runtime, installed=versions.mindspore is not None, timeout_s=patience
        ),
        "tokenizer": partial(check_tokenizer, model, timeout_s=patience),
        "decode": partial(check_decode, model, runtime, timeout_s=patience),
    }
    return DoctorReport(checks=run_checks(probes, timeout_s=timeout_s, on_check=on_check))


def _runtime_of(model: str) -> str:
    from glm3sdk.adapters.openvino.directory import is_converted
    from glm3sdk.adapters.openvino.runtime import NAME
    from glm3sdk.bootstrap.models import is_fetched, model_directory
    from glm3sdk.bootstrap.runtimes import DEFAULT_RUNTIME

    # The model is not opened: an adapter's base may be one to fetch.
    with suppress(Glm3Error):  # the checks will tell
        if not is_fetched(model) and is_converted(model_directory(model)):
            return NAME
    return DEFAULT_RUNTIME


def _versions() -> Versions:
    return Versions(
        glm3sdk=__version__,
        mindspore=_version("mindspore"),
        numpy=_version("numpy"),
        ml_dtypes=_version("ml_dtypes"),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # half of a package
        return False


def _check_processor(runtime: str) -> Check:
    """What decides how fast a CPU computes with few bits."""
    from glm3sdk.adapters.openvino.processor import multiplies_bytes, read_cpu_info, require_avx2
    from glm3sdk.adapters.openvino.runtime import NAME

    name = "processor"
    if runtime != NAME:
        return skipped(name, f"it matters to the runtime {NAME!r} alone")
    found = read_cpu_info()
    require_avx2(found)
    if multiplies_bytes(found):
        return passed(name, "AVX2 and VNNI" if found else "the system does not tell")
    remedy = "take int8 where memory allows it: int4 is little faster without VNNI"
    return warned(name, "AVX2 without VNNI: weights are unpacked in every step", remedy)


def _has_ascend(environ: Mapping[str, str]) -> bool:
    return bool(
        environ.get("ASCEND_HOME_PATH")
        or Path("/dev/davinci0").exists()
        or _DRIVER.exists()
        or shutil.which("npu-smi")
    )


def _check_cann(environ: Mapping[str, str], *, ascend: bool) -> Check:
    """Versions of the toolkit and the driver."""
    if not ascend:
        return skipped("CANN", "no Ascend card or CANN here")
    home = environ.get("ASCEND_HOME_PATH") or environ.get("ASCEND_TOOLKIT_HOME")
    if not home:
        return failed("CANN", "ASCEND_HOME_PATH is not set", SET_ENV)
    if not Path(home).is_dir():
        return failed("CANN", f"ASCEND_HOME_PATH={home} is no directory", SET_ENV)
    found = [file for pattern in _VERSION_FILES for file in sorted(Path(home).glob(pattern))]
    toolkit = next(filter(None, map(_version_in, found)), None)
    if toolkit is None:
        return warned("CANN", f"{home} has no file with a version", "reinstall the CANN toolkit")
    if not (Path("/dev/davinci0").exists() or _DRIVER.exists()):
        remedy = "install the driver of the card, or give the container its /dev/davinci* devices"
        return failed("CANN", f"toolkit {toolkit} and no driver or card", remedy)
    if (problem := _npu_smi()) is not None:
        return failed("CANN", problem, "see that no other process has the card; reset or change it")
    driver = _version_in(_DRIVER) if _DRIVER.exists() else "unknown"
    return passed("CANN", f"toolkit {toolkit}, driver {driver}")


def _npu_smi() -> str | None:
    """What the driver's own tool complains of; None where it is content, or not there."""
    tool = shutil.which("npu-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603  # the driver's tool, without anything of a user's
            [tool, "info"], capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"npu-smi info: no answer after {_TOOL_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"npu-smi info: {lines[-1] if lines else f'exit code {done.returncode}'}"


def _version_in(path: Path) -> str | None:
    found = _VERSION.search(path.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def _check_rank_table(environ: Mapping[str, str]) -> Check:
    """The environment says which rank this is, and the rank table agrees."""
    from glm3sdk.adapters.cluster.environment import placement_from_environment
    from glm3sdk.adapters.cluster.rank_table_files import read_rank_table
    from glm3sdk.domain.rank_table import COMPLETED

    name, path = "rank table", environ.get("RANK_TABLE_FILE")
    if not path and _MODELARTS_TABLE.exists():
        remedy = f"export RANK_TABLE_FILE={_MODELARTS_TABLE}, or start with `glm3 launch`"
        return warned(name, f"{_MODELARTS_TABLE} is there and RANK_TABLE_FILE is not set", remedy)
    try:
        table = read_rank_table(Path(path)) if path else None
        placement = placement_from_environment(environ, read_table=read_rank_table)
    except InvalidRankTableError as exc:
        remedy = "make it anew with `glm3 rank-table generate`, or unset RANK_TABLE_FILE"
        return failed(name, str(exc), remedy)
    except InvalidPlacementError as exc:
        return failed(name, str(exc), "start with `glm3 launch`, which sets all of them")
    where = f"rank {placement.rank_id} of {placement.rank_size}, card {placement.device_id}"
    if table is None:
        return passed(name, f"none; {where}")
    if table.status != COMPLETED:
        remedy = "wait until the platform has given the job its devices"
        return warned(name, f"{path}: status is {table.status!r}", remedy)
    if environ.get("RANK_ID"):
        _, device = table.find(placement.rank_id)
        if device.device_id != placement.device_id:
            detail = (
                f"{path} gives rank {placement.rank_id} card {device.device_id} and the "
                f"environment card {placement.device_id}"
            )
            return failed(name, detail, f"set DEVICE_ID={device.device_id}, or unset it")
    return passed(name, f"{path}: {table.rank_size} ranks; {where}")


def _check_seq_length(config: str | None) -> Check:
    """Q4, "shape cannot be divisible by value": source + target + 1 is the sequence length."""
    from glm3sdk.config.contradictions import sequence_length
    from glm3sdk.config.loader import load_config
    from glm3sdk.errors import InvalidRunConfigError

    name = "seq_length"
    if config is None:
        rule = "max_source_length + max_target_length + 1"
        return skipped(name, f"pass --config FILE to check {rule}")
    try:
        loaded = load_config(config)
    except InvalidRunConfigError as exc:
        return failed(name, "; ".join(map(str, exc.problems)), f"correct {config}")
    length = loaded.training.seq_length or (
        sequence_length(loaded.train_data) if loaded.train_data else None
    )
    return passed(name, f"{config}: {'no training data' if length is None else f'{length} tokens'}")


def _check_cache() -> Check:
    """Where models and compiled graphs are kept can be written and has room."""
    from glm3sdk.adapters.cache_folder import FOLDER_VARIABLE, cache_folder

    name, folder = "cache", cache_folder()
    remedy = f"set {FOLDER_VARIABLE} to a directory that can be written"
    if folder is None:
        return warned(name, "switched off: nothing fetched or compiled is kept", remedy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as exc:
        return failed(name, f"{folder} cannot be written: {exc.strerror}", remedy)
    free = shutil.disk_usage(folder).free / _GB
    if free < _MODEL_GB:
        detail = f"{folder} has {free:.1f} GB free; ChatGLM3-6B takes {_MODEL_GB} GB"
        return warned(name, detail, f"free some space, `glm3 cache prune`, or {remedy}")
    return passed(name, f"{folder}, {free:.1f} GB free")


def _check_plugins() -> Check:
    """Every installed plugin can be used, and no two of them bring the same name."""
    from glm3sdk.bootstrap.plugin_list import list_plugins

    found = list_plugins()
    problems = [*found.problems, *map(str, found.broken)]
    if problems:
        return failed("plugins", "; ".join(problems), "fix or uninstall the plugins that are named")
    others = [
        f"{owner} ({', '.join(part.name for part in found.parts if part.owner == owner)})"
        for owner in found.owners
        if owner.distribution != "glm3sdk"
    ]
    return passed("plugins", ", ".join(others) or "none but the built-in ones")


def _check_interpreter() -> Check:
    """What the code interpreter, where it is used, can keep code away from."""
    from glm3sdk.adapters.interpreter.process import isolation

    found = isolation()
    detail = ", ".join(
        f"{name} {'kept away' if there else 'within reach'}"
        for name, there in (
            ("network", found.network),
            ("other processes", found.processes),
            ("writing elsewhere", found.files),
        )
    )
    if found.network and found.processes and found.files:
        return passed("code interpreter", detail)
    reason = f" ({found.reason})" if found.reason else ""
    remedy = "allow user namespaces, or do not use `--tool interpreter`: docs/code-interpreter.md"
    return warned("code interpreter", detail + reason, remedy)
