"""A rank that gathers without end: `python gathering_rank.py SOCKET`; it tells the test once."""

from __future__ import annotations

import json
import os
import socket
import sys

from glm3sdk.adapters.cluster.environment import placement_from_environment
from glm3sdk.adapters.mindspore.cluster import MindSporeCluster
from glm3sdk.adapters.mindspore.profiles import CPU

if __name__ == "__main__":
    placement = placement_from_environment(os.environ)
    topology = MindSporeCluster(placement=placement, profile=CPU)
    topology.initialize()
    values = topology.all_gather(placement.rank_id + 0.5)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    hello = {"rank": placement.rank_id, "restart": 0, "pids": [os.getpid()], "keeper": os.getppid()}
    connection.sendall(f"{json.dumps(hello)}\n{json.dumps(values)}\n".encode())
    while True:
        topology.all_gather(1.0)
