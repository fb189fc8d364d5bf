from __future__ import annotations

import threading

import pytest

from glm3sdk.errors import BackendUnavailableError
from glm3sdk.services.doctor import Check, Status, failed, passed, run_checks, skipped
from glm3sdk.services.environment_checks import (
    Versions,
    check_ascend_environment,
    check_extras,
    check_logs,
    check_mindspore,
    check_numpy,
    check_overflow_mode,
    check_python,
)

USUAL = {"glm3sdk": "0.1.0", "mindspore": "2.10.0", "numpy": "1.26.4", "ml_dtypes": "0.5.4"}


def raising(error: BaseException):
    def probe() -> Check:
        raise error

    return probe


def test_each_check_runs_whatever_the_others_do() -> None:
    told: list[str] = []
    checks = run_checks(
        {
            "a": raising(KeyError("x")),
            "b": raising(BackendUnavailableError("no card; get one")),
            "c": raising(SystemExit(3)),
            "d": lambda: passed("d", "well"),
        },
        timeout_s=10,
        on_check=lambda check: told.append(check.name),
    )
    assert [(each.name, each.status) for each in checks] == [
        ("a", Status.FAIL),
        ("b", Status.FAIL),
        ("c", Status.FAIL),
        ("d", Status.OK),
    ]
    assert [each.detail for each in checks] == [
        "KeyError: 'x'",
        "no card; get one",
        "SystemExit: 3",
        "well",
    ]
    assert all(each.remedy for each in checks[:3])
    assert told == ["a", "b", "c", "d"]


def test_a_check_that_never_ends_is_left_behind() -> None:
    for_ever = threading.Event()

    def hang() -> Check:
        for_ever.wait()
        return passed("hangs", "at last")

    hangs, after = run_checks(
        {"hangs": hang, "after": lambda: skipped("after", "-")}, timeout_s=0.05
    )
    for_ever.set()
    assert (hangs.status, hangs.detail) == (Status.FAIL, "no answer after 0.05 s")
    assert after.status is Status.SKIPPED


@pytest.mark.parametrize("status", [Status.FAIL, Status.WARN])
def test_what_is_wrong_has_a_remedy(status: Status) -> None:
    with pytest.raises(ValueError, match="not what to do"):
        Check("x", status, "broken")
    assert failed("x", "broken", "mend it").remedy == "mend it"


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 12, 9), "ok"), ((3, 13, 0), "fail")],
)
def test_python_is_one_of_two(version: tuple[int, int, int], status: str) -> None:
    assert check_python(version).status == status


@pytest.mark.parametrize(
    ("changed", "status", "text"),
    [
        ({}, "ok", "numpy 1.26.4"),
        ({"numpy": "2.0.0rc1"}, "fail", "below 2"),
        ({"numpy": "2.3.1"}, "fail", "below 2"),
        ({"numpy": "2.3.1", "mindspore": None}, "ok", "numpy 2.3.1"),
        ({"ml_dtypes": "0.6.0"}, "fail", "below 0.6"),
        ({"ml_dtypes": "0.5.99"}, "ok", "ml_dtypes 0.5.99"),
        ({"numpy": None}, "fail", "numpy None"),
    ],
)
def test_numpy_fits_mindspore(changed: dict, status: str, text: str) -> None:
    check = check_numpy(Versions(**USUAL | changed))
    assert check.status == status
    assert text in check.detail


def test_mindspore_may_be_absent_where_something_else_runs_the_model() -> None:
    absent = Versions(**USUAL | {"mindspore": None})
    assert check_mindspore(absent, needed=True).status == "fail"
    assert "glm3sdk[mindspore]" in check_mindspore(absent, needed=True).remedy
    assert check_mindspore(absent, needed=False).status == "skipped"
    assert check_mindspore(Versions(**USUAL), needed=True).status == "ok"
    assert check_mindspore(Versions(**USUAL | {"mindspore": "2.3.0"}), needed=True).status == "warn"


@pytest.mark.parametrize(
    ("value", "ascend", "status"),
    [
        (None, True, "warn"),
        ("INFNAN_MODE", True, "ok"),
        ("SATURATION_MODE", True, "warn"),
        ("INFNAN", True, "fail"),
        ("INFNAN", False, "fail"),
        (None, False, "skipped"),
        ("INFNAN_MODE", False, "skipped"),
    ],
)
def test_the_overflow_mode_keeps_infinities(value: str | None, ascend: bool, status: str) -> None:
    environ = {} if value is None else {"MS_ASCEND_CHECK_OVERFLOW_MODE": value}
    check = check_overflow_mode(environ, ascend=ascend)
    assert check.status == status
    if status in ("warn", "fail"):
        # The model card's words.
        assert 'MS_ASCEND_CHECK_OVERFLOW_MODE="INFNAN_MODE"'.replace('"', "") in check.remedy


@pytest.mark.parametrize(
    ("environ", "status", "named"),
    [
        ({}, "ok", []),
        ({"GLOG_v": "3", "ASCEND_GLOBAL_LOG_LEVEL": "3"}, "ok", []),
        ({"GLOG_v": ""}, "ok", []),
        ({"GLOG_v": "1"}, "warn", ["GLOG_v"]),
        ({"GLOG_v": "warning"}, "fail", ["GLOG_v"]),
        ({"ASCEND_GLOBAL_LOG_LEVEL": "5"}, "fail", ["ASCEND_GLOBAL_LOG_LEVEL"]),
        # What the model card sets to find "Sync stream Failed", and unsets afterwards.
        (
            {
                "ASCEND_GLOBAL_EVENT_ENABLE": "0",
                "ASCEND_GLOBAL_LOG_LEVEL": "2",
                "ASCEND_SLOG_PRINT_TO_STDOUT": "1",
            },
            "warn",
            ["ASCEND_GLOBAL_LOG_LEVEL", "ASCEND_SLOG_PRINT_TO_STDOUT"],
        ),
        ({"ASCEND_GLOBAL_EVENT_ENABLE": "1"}, "warn", ["ASCEND_GLOBAL_EVENT_ENABLE"]),
    ],
)
def test_logs_that_slow_everything_down_are_named(
    environ: dict[str, str], status: str, named: list[str]
) -> None:
    check = check_logs(environ)
    assert check.status == status
    assert check.remedy.split("unset ")[-1].split() == named


CANN = dict.fromkeys(("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_AICPU_PATH"), "/x")


@pytest.mark.parametrize(
    ("environ", "modules", "ascend", "status", "text"),
    [
        ({}, {"te", "tbe"}, False, "skipped", "no Ascend"),
        ({}, {"te", "tbe"}, True, "fail", "ASCEND_HOME_PATH, ASCEND_OPP_PATH"),
        (CANN, {"te"}, True, "fail", "no tbe"),
        (CANN, {"te", "tbe"}, True, "ok", "ASCEND_OPP_PATH"),
    ],
)
def test_what_set_env_sets_is_there(
    environ: dict[str, str], modules: set[str], ascend: bool, status: str, text: str
) -> None:
    check = check_ascend_environment(environ, has_module=modules.__contains__, ascend=ascend)
    assert check.status == status
    assert text in check.detail
    assert status != "fail" or "set_env.sh" in check.remedy


def test_an_extra_that_is_not_installed_is_no_failure() -> None:
    check = check_extras({"hub": True, "obs": False})
    assert check.status == "ok"
    assert check.detail == ("installed: hub; not installed: obs (pip install 'glm3sdk[NAME]')")
