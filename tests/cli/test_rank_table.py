from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glm3sdk.adapters.cluster.rank_table_files import wait_for_rank_table
from glm3sdk.cli.app import app
from glm3sdk.errors import InvalidRankTableError

REFUSED = {
    "13_mindformers_doc_two_servers_16p_masked.json": "server_list[0].server_id",
    "06b_v0.1_unordered_devices_MALFORMED.txt": "is not JSON",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["rank-table", *map(str, arguments)])


def converted(path: Path) -> Any:
    result = run("convert", path)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def tables(shared_data: Path) -> Path:
    return shared_data / "rank_tables"


def test_every_published_table_is_read_but_the_masked_and_the_malformed(tables: Path) -> None:
    files = [file for file in sorted(tables.iterdir()) if file.name[0] in "01"]
    assert len(files) == 8
    for file in files:
        if file.name == "sources.txt":
            continue
        result = run("validate", file)
        if words := REFUSED.get(file.name):
            assert result.exit_code == 2
            assert str(file) in result.stderr
            assert words in result.stderr
            assert len(result.stderr.splitlines()) == 1
        else:
            assert result.exit_code == 0, result.output
            again = converted(file)
            assert again["version"] == "1.0"


def test_the_published_v01_table_becomes_the_published_v10_table(tables: Path) -> None:
    expected = json.loads((tables / "08_modelarts_jobstart_hccl_v1.0.json").read_text())
    assert converted(tables / "07_modelarts_jobstart_hccl_v0.1.json") == expected


def test_the_published_configuration_gives_the_published_table(
    tables: Path, tmp_path: Path
) -> None:
    result = run(
        "generate",
        *("--device_num", "[0,4)", "--server_ip", "127.0.0.1"),
        *("--hccn_conf", tables / "hccn_conf_02_4p.txt", "--out", tmp_path),
    )
    assert result.exit_code == 0, result.output
    file = tmp_path / "hccl_4p_0123_127.0.0.1.json"
    assert result.stdout == f"{file}\n"
    published = json.loads((tables / "11_v1.0_single_4p_from_hccn_conf.json").read_text())
    assert json.loads(file.read_text()) == published
    assert file.read_text().startswith('{\n    "version"')


def test_hccn_tool_is_asked_for_the_number_on_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "hccn_tool"
    tool.write_text('#!/bin/sh\necho "hccn_tool $*"\necho "ipaddr:192.168.7.$2"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    options = ("--device_num", "[0,2)", "--visible_devices", "6,7", "--server_ip", "10.0.0.1")
    result = run("generate", *options, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "hccl_2p_01_10.0.0.1.json").read_text())
    devices = table["server_list"][0]["device"]
    assert [(d["device_id"], d["device_ip"], d["rank_id"]) for d in devices] == [
        ("6", "192.168.7.6", "0"),
        ("7", "192.168.7.7", "1"),
    ]


def test_tables_of_two_servers_are_merged_into_the_references_file(tmp_path: Path) -> None:
    for number in (1, 2):
        conf = tmp_path / f"{number}.conf"
        conf.write_text("".join(f"address_{d}=192.168.{number}.{d}\n" for d in range(4)))
        result = run(
            "generate",
            *("--device_num", "[0,4)", "--server_ip", f"10.0.0.{number}"),
            *("--hccn_conf", conf, "--out", tmp_path),
        )
        assert result.exit_code == 0, result.output
    files = [tmp_path / f"hccl_4p_0123_10.0.0.{number}.json" for number in (1, 2)]
    result = run("merge", *files, "--out", tmp_path)
    assert result.stdout == f"{tmp_path / 'hccl_2s_8p.json'}\n"
    assert run("validate", tmp_path / "hccl_2s_8p.json").exit_code == 0
    again = run("merge", files[0], tmp_path / "hccl_2s_8p.json", "--out", tmp_path)
    assert again.exit_code == 2
    assert "was merged already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate", "absent.json"], "absent.json: cannot be read"),
        (["generate", "--device_num", "0-7"], "write it as '[0,8)'"),
        (["generate", "--hccn_conf", "absent.conf"], "absent.conf cannot be read"),
        (["merge", "absent.json"], "absent.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class Clock:
    def __init__(self, file: Path, contents: list[str]) -> None:
        self.now, self._file, self._contents = 0.0, file, contents

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._contents:
            self._file.write_text(self._contents.pop(0))


def test_a_directory_is_looked_at_until_the_platform_has_written_the_table(
    tmp_path: Path,
) -> None:
    instance = {
        "devices": [{"device_id": "0", "device_ip": "10.0.0.9"}],
        "pod_name": "job-0",
        "server_id": "10.0.0.1",
    }
    complete = {"group_list": [{"instance_list": [instance]}], "status": "completed"}
    contents = ['{"status": "initializing", "group_list": []}', '{"sta', json.dumps(complete)]
    clock = Clock(tmp_path / "jobstart_hccl.json", contents)
    table = wait_for_rank_table(tmp_path, timeout_s=10, clock=clock, sleep=clock.sleep)
    assert table.rank_size == 1
    assert clock.now == 3


def test_the_wait_for_a_table_ends_with_what_is_wrong(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "jobstart_hccl.json", ['{"status": "initializing", "group_list": []}'])
    with pytest.raises(InvalidRankTableError, match=r"'initializing'; .* not complete after 5 s"):
        wait_for_rank_table(tmp_path, timeout_s=5, clock=clock, sleep=clock.sleep)
