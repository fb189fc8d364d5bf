from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner, Result

from glm3sdk.bootstrap import doctor
from glm3sdk.bootstrap.doctor import DoctorReport
from glm3sdk.cli.app import app
from glm3sdk.services.doctor import Check, failed, passed, skipped, warned

WELL = (passed("python", "3.11.7"), skipped("CANN", "no card"), warned("cache", "off", "set it"))
ILL = (*WELL, failed("numpy", "numpy 2.0", "pip install less"))


def glm3(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="glm3")


def finding(checks: tuple[Check, ...], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    asked: dict[str, object] = {}

    def run_doctor(**options: object) -> DoctorReport:
        asked.update(options)
        for check in checks:
            options["on_check"](check)  # type: ignore[operator]  # a function
        return DoctorReport(checks=checks)

    monkeypatch.setattr(doctor, "run_doctor", run_doctor)
    return asked


def test_checks_are_lines_and_a_remedy_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    finding(ILL, monkeypatch)
    result = glm3()
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ok       python: 3.11.7",
        "skipped  CANN: no card",
        "warn     cache: off",
        "         set it",
        "fail     numpy: numpy 2.0",
        "         pip install less",
    ]


def test_warnings_alone_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    finding(WELL, monkeypatch)
    assert glm3().exit_code == 0


def test_json_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = finding(ILL, monkeypatch)
    result = glm3("--json", "--model", "/m", "--runtime", "numpy", "--timeout", "5")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["healthy"] is False
    assert values["checks"][-1] == {
        "name": "numpy",
        "status": "fail",
        "detail": "numpy 2.0",
        "remedy": "pip install less",
    }
    assert (asked["model"], asked["runtime"], asked["timeout_s"]) == ("/m", "numpy", 5.0)


def test_a_core_that_cannot_be_imported_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "glm3sdk.bootstrap.doctor", None)
    result = glm3()
    assert result.exit_code == 1
    assert "fail     glm3sdk: ModuleNotFoundError" in result.stdout
    assert "pip install --force-reinstall glm3sdk" in result.stdout
