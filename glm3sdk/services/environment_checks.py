"""What versions and environment variables say about an installation: values in, a check out.

Checks with a "Q" are the questions of the reference's model card. Variables of CANN are those
that its set_env.sh sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from glm3sdk.services.doctor import Check, failed, passed, skipped, warned

INSTALL_MINDSPORE = "pip install 'glm3sdk[mindspore]'"
SET_ENV = "source set_env.sh of the CANN toolkit (such as /usr/local/Ascend/ascend-toolkit/)"

_NO_ASCEND = "no Ascend card or CANN here"
_SUPPORTED = ((3, 11), (3, 12))
_CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_AICPU_PATH")
_CANN_MODULES = ("te", "tbe")
_OVERFLOW = "MS_ASCEND_CHECK_OVERFLOW_MODE"
_OVERFLOW_MODES = ("INFNAN_MODE", "SATURATION_MODE")
_WARNING_LEVEL, _ERROR_LEVEL = 2, 3


@attrs.frozen(kw_only=True)
class Versions:
    """Installed versions; None for what is not installed."""

    glm3sdk: str
    mindspore: str | None
    numpy: str | None
    ml_dtypes: str | None


def check_python(version: tuple[int, int, int]) -> Check:
    """Python is one that MindSpore has wheels for."""
    text = ".".join(map(str, version))
    if version[:2] in _SUPPORTED:
        return passed("python", text)
    return failed("python", text, "use Python 3.11 or 3.12")


def check_mindspore(versions: Versions, *, needed: bool) -> Check:
    """MindSpore is installed in a version that this SDK was made for."""
    version = versions.mindspore
    if version is None:
        detail = "MindSpore is not installed"
        return (
            failed("mindspore", detail, INSTALL_MINDSPORE)
            if needed
            else skipped("mindspore", detail)
        )
    if not version.startswith("2.10."):
        remedy = f"the SDK is tested with 2.10: {INSTALL_MINDSPORE}"
        return warned("mindspore", version, remedy)
    return passed("mindspore", version)


def check_numpy(versions: Versions) -> Check:
    """Numpy and ml_dtypes are ones that MindSpore works with."""
    detail = f"numpy {versions.numpy}, ml_dtypes {versions.ml_dtypes}"
    if versions.numpy is None or versions.ml_dtypes is None:
        return failed("numpy", detail, "pip install --force-reinstall glm3sdk")
    if versions.mindspore is None:
        return passed("numpy", detail)
    if _numbers(versions.numpy) >= (2,):
        # PyNative breaks and bfloat16 cannot be saved, with messages that name no cause.
        return failed("numpy", f"{detail}; MindSpore needs numpy below 2", INSTALL_MINDSPORE)
    if _numbers(versions.ml_dtypes) >= (0, 6):
        return failed("numpy", f"{detail}; MindSpore needs ml_dtypes below 0.6", INSTALL_MINDSPORE)
    return passed("numpy", detail)


def check_ascend_environment(
    environ: Mapping[str, str], *, has_module: Callable[[str], bool], ascend: bool
) -> Check:
    """Q2, "only runs on CPU; te, tbe, tvm in the message": what set_env.sh sets is there."""
    name = "ascend environment"
    if not ascend:
        return skipped(name, _NO_ASCEND)
    unset = [variable for variable in _CANN_VARIABLES if not environ.get(variable)]
    if unset:
        return failed(name, f"not set: {', '.join(unset)}", SET_ENV)
    missing = [module for module in _CANN_MODULES if not has_module(module)]
    if missing:
        detail = f"Python finds no {', '.join(missing)}, the operator compiler of CANN"
        return failed(name, detail, f"{SET_ENV}; it puts them on PYTHONPATH")
    return passed(name, ", ".join(_CANN_VARIABLES))


def check_overflow_mode(environ: Mapping[str, str], *, ascend: bool) -> Check:
    """Q1, "the loss does not fall, overflow_cond=True": infinities are kept as such."""
    name, remedy = "overflow mode", f"before training: export {_OVERFLOW}=INFNAN_MODE"
    value = environ.get(_OVERFLOW)
    if value is not None and value not in _OVERFLOW_MODES:
        return failed(name, f"{_OVERFLOW}={value} is none of {', '.join(_OVERFLOW_MODES)}", remedy)
    if not ascend:
        return skipped(name, _NO_ASCEND)
    if value is None:
        return warned(name, f"{_OVERFLOW} is not set; training may overflow unnoticed", remedy)
    if value != "INFNAN_MODE":
        return warned(name, f"{_OVERFLOW}={value} hides overflows from the loss scale", remedy)
    return passed(name, f"{_OVERFLOW}={value}")


def check_logs(environ: Mapping[str, str]) -> Check:
    """Q3, "Sync stream Failed": the logs that help to find it, and slow down all else, are off."""
    name = "log variables"
    levels = {"GLOG_v": (0, 4), "ASCEND_GLOBAL_LOG_LEVEL": (0, 4)}
    for variable, (low, high) in levels.items():
        value = environ.get(variable)
        if value and value not in map(str, range(low, high + 1)):
            detail = f"{variable}={value}; it is a number from {low} to {high}"
            return failed(name, detail, f"unset {variable}")
    slow = [
        variable
        for variable, is_slow in (
            ("GLOG_v", lambda value: int(value) < _WARNING_LEVEL),
            ("ASCEND_GLOBAL_LOG_LEVEL", lambda value: int(value) < _ERROR_LEVEL),
            ("ASCEND_GLOBAL_EVENT_ENABLE", lambda value: value == "1"),
            ("ASCEND_SLOG_PRINT_TO_STDOUT", lambda value: value == "1"),
        )
        if environ.get(variable) and is_slow(environ[variable])
    ]
    if slow:
        told = ", ".join(f"{variable}={environ[variable]}" for variable in slow)
        remedy = f"once the problem is found: unset {' '.join(slow)}"
        return warned(name, f"{told} write much and slow everything down", remedy)
    return passed(name, "no log slows anything down")


def check_extras(extras: Mapping[str, bool]) -> Check:
    """Which extras are installed; none has to be."""
    there = [name for name, installed in extras.items() if installed]
    absent = [name for name, installed in extras.items() if not installed]
    detail = f"installed: {', '.join(there) or 'none'}"
    if absent:
        detail += f"; not installed: {', '.join(absent)} (pip install 'glm3sdk[NAME]')"
    return passed("extras", detail)


def _numbers(version: str) -> tuple[int, ...]:
    """The first numbers of a version: (1, 26, 4) of "1.26.4", (2, 0) of "2.0.0rc1"."""
    numbers = []
    for part in version.split(".")[:3]:
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
