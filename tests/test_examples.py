"""The files in examples/ that nothing here can run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from glm3sdk.adapters.cluster.node_part import Host, LaunchRequest, find_part
from glm3sdk.cli.app import app
from glm3sdk.config.loader import load_config

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def replicas() -> dict[str, Any]:
    job = yaml.safe_load((EXAMPLES / "kubernetes" / "finetune.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("mindxdl.gitee.com/v1", "AscendJob")
    total = sum(replica["replicas"] for replica in job["spec"]["replicaSpecs"].values())
    assert job["spec"]["runPolicy"]["schedulingPolicy"]["minAvailable"] == total
    replicas: dict[str, Any] = job["spec"]["replicaSpecs"]
    return replicas


def container(replica: dict[str, Any]) -> dict[str, Any]:
    [found] = replica["template"]["spec"]["containers"]
    assert found["name"] == "ascend"  # the operator touches no other
    assert isinstance(found, dict)
    return found


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What our command line makes of arguments, without running anything."""
    assert arguments[0] == "glm3"
    command = app.commands[arguments[1]]
    return command.make_context(arguments[1], arguments[2:]).params


def test_every_pod_runs_a_command_that_ours_understands(replicas: dict[str, Any]) -> None:
    for replica in replicas.values():
        pod = container(replica)
        launch = parsed(pod["command"] + pod["args"])
        assert launch["max_restarts"] == 3
        assert launch["command"] == ("glm3", "finetune", "/config/run.yaml")
        finetune = parsed(list(launch["command"]))
        assert finetune["config"] == "/config/run.yaml"
        # Ranks must have had their time to save before the pod is killed.
        grace = replica["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace > launch["grace"] + 10
        mounts = {mount["name"] for mount in pod["volumeMounts"]}
        assert mounts == {volume["name"] for volume in replica["template"]["spec"]["volumes"]}


def test_the_pods_and_the_operators_variables_make_one_job(replicas: dict[str, Any]) -> None:
    pods = [container(replicas[kind]) for kind in ("Scheduler", "Worker")]
    ports = {port["name"]: port["containerPort"] for port in pods[0]["ports"]}
    cards = pods[0]["resources"]["limits"]["huawei.com/Ascend910"]
    environ = {
        "MS_SCHED_HOST": "10.96.3.4",
        "MS_SCHED_PORT": str(ports["ascendjob-port"]),
        "MS_LOCAL_WORKER": str(cards),
        "MS_WORKER_NUM": str(2 * cards),
        "NPU_POD": "true",
    }
    host = Host(
        name="pod",
        address="10.1.1.1",
        owns=lambda address: False,
        cards=cards,
        read_table=lambda path, wait: pytest.fail("no rank table"),
        resolve=lambda name: name,
        has_file=lambda path: False,
    )
    parts = [
        find_part(
            LaunchRequest(), environ=environ | {"MS_ROLE": role, "MS_NODE_RANK": rank}, host=host
        )
        for role, rank in (("MS_SCHED", "0"), ("MS_WORKER", "1"))
    ]
    assert [part.leads for part in parts] == [True, False]
    assert parts[0].members == (1,)
    assert [rank.rank_id for part in parts for rank in part.ranks] == list(range(2 * cards))
    # Launchers meet at the port behind the scheduler's.
    assert parts[0].master_port is not None
    assert ports["glm3-launch"] == parts[0].master_port + 1


def test_the_jobs_configuration_can_be_read() -> None:
    config = load_config(str(EXAMPLES / "kubernetes" / "run.yaml"))
    assert config.output.startswith("/output")


def test_the_container_installs_extras_that_exist() -> None:
    text = (EXAMPLES / "container" / "Dockerfile").read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
    assert {line.split()[0] for line in lines if line and not line.startswith("#")} == known
    [extras] = re.findall(r"\.whl\)\[([a-z,]+)\]", text)
    project = (EXAMPLES.parent / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras.split(","):
        assert f"\n{extra} = [" in project
