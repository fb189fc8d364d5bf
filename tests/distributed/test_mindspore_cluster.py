"""Ranks that meet through MindSpore, started by the launcher."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed.launched import Launched

from glm3sdk.ports.cluster_topology import ClusterTopology
from glm3sdk.testing import ClusterTopologyContract
from glm3sdk.testing.topology_contract import RunRanks

pytest.importorskip("mindspore")

PROGRAM = Path(__file__).with_name("topology_program.py")


class TestMindSporeCluster(ClusterTopologyContract):
    @pytest.fixture
    def run_ranks(self, tmp_path: Path) -> RunRanks:
        def run(work: Callable[[ClusterTopology], Any]) -> list[Any]:
            command = [sys.executable, PROGRAM, tmp_path, work.__name__]
            job = Launched("--nproc", 2, "--", *command, directory=tmp_path)
            try:
                code, out, err = job.finish()
            finally:
                job.end()
            assert code == 0, out + err
            files = [tmp_path / f"{work.__name__}_{rank_id}" for rank_id in range(2)]
            return [pickle.loads(file.read_bytes()) for file in files]

        return run
