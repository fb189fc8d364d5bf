"""Chooses how this process meets the other ranks of its job."""

from __future__ import annotations

import os
from collections.abc import Mapping

from glm3sdk.adapters.cluster.environment import placement_from_environment
from glm3sdk.adapters.cluster.single import SingleProcess
from glm3sdk.errors import unknown_name
from glm3sdk.ports.cluster_topology import ClusterTopology

_DEVICES = ("ascend", "cpu")


def load_topology(device: str, *, environ: Mapping[str, str] | None = None) -> ClusterTopology:
    """The topology that the environment speaks of; nothing is entered yet.

    Args:
        device: "ascend" or "cpu".
        environ: this process's environment; None takes it as it is.

    Returns:
        One over MindSpore where a launcher started several ranks, else one of a single process.

    Raises:
        InvalidPlacementError: the environment does not say which rank this is.
        InvalidRankTableError: the rank table that it names cannot be used.
        UnknownNameError: no such device.
    """
    if device not in _DEVICES:
        raise unknown_name("device", device, _DEVICES)
    environ = os.environ if environ is None else environ
    placement = placement_from_environment(environ)
    if placement.rank_size == 1 and environ.get("MS_ROLE") is None:
        return SingleProcess(device_id=placement.device_id)
    from glm3sdk.adapters.mindspore import profiles
    from glm3sdk.adapters.mindspore.cluster import MindSporeCluster

    profile = profiles.ASCEND if device == "ascend" else profiles.CPU
    return MindSporeCluster(placement=placement, profile=profile)
