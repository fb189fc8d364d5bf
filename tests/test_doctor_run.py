"""The checks over a machine: this one, and ones that are broken in a known way."""

from __future__ import annotations

import json
import os
import time
import tomllib
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from glm3sdk.adapters.openvino import processor
from glm3sdk.bootstrap import doctor, doctor_processes
from glm3sdk.bootstrap.doctor import run_doctor
from glm3sdk.bootstrap.doctor_processes import check_decode, check_device, check_tokenizer
from glm3sdk.bootstrap.openvino import convert_to_openvino
from glm3sdk.errors import PluginError
from glm3sdk.services.doctor import Check, passed

TABLE = {
    "version": "1.0",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "10.0.0.1",
            "device": [
                {"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"},
                {"device_id": "1", "device_ip": "192.2.27.6", "rank_id": "1"},
            ],
            "host_nic_ip": "reserve",
        }
    ],
    "status": "completed",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks that start processes."""
    for name in ("check_device", "check_tokenizer", "check_decode"):
        monkeypatch.setattr(doctor, name, lambda *_, **__: passed("quick", ""))
    monkeypatch.setattr(doctor, "_check_interpreter", lambda: passed("code interpreter", ""))


def only(name: str, **options: object) -> Check:
    checks = run_doctor(**options).checks  # type: ignore[arg-type]  # a test's options
    (found,) = [check for check in checks if check.name == name]
    return found


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hccl_2p.json"
    path.write_text(json.dumps(TABLE), encoding="utf-8")
    monkeypatch.setenv("RANK_TABLE_FILE", str(path))
    return path


@pytest.mark.parametrize(
    ("environ", "status", "text"),
    [
        ({}, "ok", "2 ranks; rank 0 of 1"),
        ({"RANK_ID": "1", "RANK_SIZE": "2"}, "ok", "2 ranks; rank 1 of 2, card 1"),
        ({"RANK_ID": "1", "DEVICE_ID": "0"}, "fail", "gives rank 1 card 1 and the environment"),
        ({"RANK_ID": "1", "RANK_SIZE": "8"}, "fail", "RANK_SIZE is 8"),
        ({"RANK_ID": "7"}, "fail", "RANK_ID is 7"),
        ({"RANK_ID": "x"}, "fail", "RANK_ID is 'x'"),
    ],
)
def test_the_rank_table_is_compared_with_the_environment(
    quick: None,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    status: str,
    text: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    check = only("rank table")
    assert check.status == status
    assert text in check.detail
    assert check.remedy or status == "ok"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("{", "fail", "is not JSON"),
        (json.dumps(TABLE | {"status": "initializing"}), "warn", "'initializing'"),
        (json.dumps(TABLE | {"server_count": "2"}), "fail", "server_count"),
    ],
)
def test_a_rank_table_that_cannot_be_used_is_told_of_at_once(
    quick: None, table: Path, text: str, status: str, said: str
) -> None:
    table.write_text(text, encoding="utf-8")
    began = time.monotonic()
    check = only("rank table")
    assert time.monotonic() - began < 60  # a job would wait for the table for five minutes
    assert check.status == status
    assert said in check.detail


def test_lengths_that_do_not_add_up_fail(quick: None, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        "train_data:\n  path: x.json\n  format: adgen\n  max_source_length: 64\n"
        "  max_target_length: 127\ntraining:\n  seq_length: 128\n",
        encoding="utf-8",
    )
    check = only("seq_length", config=str(run))
    assert check.status == "fail"
    assert "64 + 127 + 1 = 192, not 128" in check.detail
    assert only("seq_length", config="finetune_adgen").detail == "finetune_adgen: 192 tokens"
    assert only("seq_length").status == "skipped"


def test_a_cache_that_cannot_be_written_fails(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "file"))
    check = only("cache")
    assert (check.status, "cannot be written" in check.detail) == ("fail", True)
    assert "GLM3SDK_CACHE_DIR" in check.remedy
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", "")
    assert only("cache").status == "warn"


def test_without_mindspore_the_rest_is_checked(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name == "mindspore" else version(name)
    )
    report = run_doctor()
    assert not report.healthy
    assert [check.name for check in report.checks if check.status == "fail"] == ["mindspore"]
    assert run_doctor(runtime="openvino").healthy


def test_a_converted_model_is_tried_on_what_it_was_converted_for(tmp_path: Path) -> None:
    convert_to_openvino("tiny", tmp_path / "int8", quantize="int8")
    check = only("decode", model=str(tmp_path / "int8"))
    assert (check.status, " on openvino in int8: 4 tokens" in check.detail) == ("ok", True)


def test_the_base_of_an_adapter_is_not_fetched_to_choose_a_runtime(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query_key_value"]}
    adapter = {**values, "base_model_name_or_path": "glm3-6b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    save_file({}, tmp_path / "adapter_model.safetensors")
    fetched: list[str] = []
    monkeypatch.setattr("glm3sdk.bootstrap.models.pull", lambda name, **_: fetched.append(name))
    assert only("processor", model=str(tmp_path)).status == "skipped"
    assert fetched == []


@pytest.mark.parametrize(
    ("flags", "status"),
    [("avx2 avx512_vnni", "ok"), ("avx2 avx_vnni", "ok"), ("avx2", "warn"), ("avx", "fail")],
)
def test_a_processor_is_judged_by_what_the_kernels_need(
    quick: None, monkeypatch: pytest.MonkeyPatch, flags: str, status: str
) -> None:
    monkeypatch.setattr(processor, "read_cpu_info", lambda: f"flags\t: fpu {flags}\n")
    assert only("processor", runtime="openvino").status == status
    assert only("processor").status == "skipped"


def test_every_extra_is_looked_for() -> None:
    project = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    assert set(project["optional-dependencies"]) - {"all", "dev"} <= set(doctor._EXTRAS)


def test_a_check_that_raises_does_not_stop_the_others(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clash() -> Check:
        raise PluginError("tool 'x' is registered twice, by a and by b; uninstall one of them")

    monkeypatch.setattr(doctor, "_check_plugins", clash)
    report = run_doctor()
    assert [check.name for check in report.checks if check.status == "fail"] == ["plugins"]
    assert report.checks[-1].status == "ok"


def a_mindspore(folder: Path, source: str, patch: pytest.MonkeyPatch) -> None:
    """Let processes find this in the place of MindSpore."""
    (folder / "mindspore.py").write_text(source, encoding="utf-8")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("raise ImportError('libascendcl.so: no such file')", "libascendcl.so: no such file"),
        ("def set_device(name): raise RuntimeError('no ' + name)", "RuntimeError: no Ascend"),
    ],
)
def test_a_framework_that_crashes_is_a_failure_of_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    a_mindspore(tmp_path, source, monkeypatch)
    check = check_device("mindspore-ascend", installed=True, timeout_s=60)
    assert check.status == "fail"
    assert text in check.detail
    assert "npu-smi" in check.remedy


def test_a_framework_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child holds the pipe: unless it is ended too, nobody would return.
    a_mindspore(
        tmp_path,
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "time.sleep(600)\n",
        monkeypatch,
    )
    began = time.monotonic()
    check = check_device("mindspore-cpu", installed=True, timeout_s=1)
    assert (check.status, check.detail) == (
        "fail",
        "mindspore.run_check() on CPU: no answer after 1 s",
    )
    assert time.monotonic() - began < 60


def test_a_runtime_of_a_plugin_has_no_device_of_mindspore() -> None:
    assert check_device("numpy", installed=True, timeout_s=1).status == "skipped"
    assert check_device("mindspore-cpu", installed=False, timeout_s=1).status == "skipped"


def test_a_model_is_not_fetched_for_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor_processes, "_run", None)  # no process is started
    for check in (
        check_tokenizer("glm3-6b", timeout_s=1),
        check_decode("glm3-6b", "mindspore-cpu", timeout_s=1),
    ):
        assert (check.status, check.remedy) == ("fail", "glm3 pull glm3-6b")


def test_a_model_that_is_not_there_is_told_of() -> None:
    check = check_tokenizer("/no/such/model", timeout_s=60)
    assert check.status == "fail"
    assert "no tokenizer at '/no/such/model'" in check.detail


CANN = "version=[8.0.RC2:8.0.RC2]\nruntime_running_version=[7.3.0.1.231:8.0.RC2]\n"


def test_cann_and_its_driver_are_told_by_their_versions(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path / "version.info")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "latest"))
    assert "is no directory" in only("CANN").detail
    (tmp_path / "latest").mkdir()
    assert only("CANN").status == "warn"
    (tmp_path / "latest" / "version.cfg").write_text(CANN, encoding="utf-8")
    assert only("CANN").detail == "toolkit 8.0.RC2:8.0.RC2 and no driver or card"
    (tmp_path / "version.info").write_text("Version=24.1.rc1\n", encoding="utf-8")
    assert only("CANN").detail == "toolkit 8.0.RC2:8.0.RC2, driver 24.1.rc1"
    tool = tmp_path / "npu-smi"
    tool.write_text("#!/bin/sh\necho 'DrvMngGetConsoleLogLevel failed' >&2\nexit 255\n", "utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert only("CANN").detail == "npu-smi info: DrvMngGetConsoleLogLevel failed"
    assert only("ascend environment").status == "fail"
