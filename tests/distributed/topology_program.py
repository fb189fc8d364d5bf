"""One rank: runs a function of the topology contract and writes its result as a pickle."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from glm3sdk.adapters.cluster.environment import placement_from_environment
from glm3sdk.adapters.mindspore.cluster import MindSporeCluster
from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.testing import topology_contract

if __name__ == "__main__":
    out, name = Path(sys.argv[1]), sys.argv[2]
    placement = placement_from_environment(os.environ)
    topology = MindSporeCluster(placement=placement, profile=CPU)
    result = getattr(topology_contract, name)(topology)
    (out / f"{name}_{placement.rank_id}").write_bytes(pickle.dumps(result))
