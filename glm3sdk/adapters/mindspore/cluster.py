"""Ranks that meet through MindSpore's collectives: HCCL on Ascend, mccl on a CPU."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from glm3sdk.adapters.mindspore.context import set_up
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.errors import RuntimeFailureError, ServiceClosedError
from glm3sdk.ports.cluster_topology import Placement


class MindSporeCluster:
    """A `ClusterTopology` over MindSpore; a process has one job, once.

    MindSpore reads the rest (MS_ROLE, MS_SCHED_HOST, RANK_TABLE_FILE ...) from the environment.

    Attributes:
        placement: this process's.
    """

    def __init__(self, *, placement: Placement, profile: DeviceProfile) -> None:
        self.placement = placement
        self._profile = profile
        self._gather: Any = None
        self._left = False

    def initialize(self) -> None:
        """Meet the other ranks, before any tensor of the process is made.

        Raises:
            BackendUnavailableError: MindSpore or the device is not there.
            RuntimeFailureError: the others did not come, or MindSpore counts ranks differently.
        """
        self._check_not_left()
        if self._gather is None:
            self._gather = translated(self._enter)

    def barrier(self) -> None:
        """Return once every rank has called this; MindSpore's own has no CPU kernel."""
        self.all_gather(0.0)

    def all_gather(self, value: float) -> tuple[float, ...]:
        """Every rank's value, exactly, in the order of the ranks."""
        self._check_not_left()
        if self._gather is None:
            raise ServiceClosedError("the job is not entered yet; call initialize() first")
        gathered = translated(lambda: self._gather_bytes(struct.pack("<d", value)))
        return struct.unpack(f"<{self.placement.rank_size}d", gathered)

    def finalize(self) -> None:
        """Leave the others."""
        if self._gather is None:
            return
        self._gather = None
        self._left = True
        translated(_leave)

    def _enter(self) -> Any:
        set_up(self._profile, device_id=self.placement.device_id)
        from mindspore import nn, ops
        from mindspore.communication import GlobalComm, get_group_size, get_rank, init

        # Another topology of this process may have entered the job: there is only one.
        if not GlobalComm.INITED:
            init()
        found = (get_rank(), get_group_size())
        if found != (self.placement.rank_id, self.placement.rank_size):
            raise RuntimeFailureError(
                f"MindSpore counts this process as rank {found[0]} of {found[1]} and its "
                f"environment as rank {self.placement.rank_id} of {self.placement.rank_size}; "
                "start the job with `glm3 launch`"
            )

        class Gather(nn.Cell):
            def __init__(self) -> None:
                super().__init__(auto_prefix=False)
                self.gather = ops.AllGather()

            def construct(self, values: Any) -> Any:
                return self.gather(values)

        return Gather()

    def _gather_bytes(self, data: bytes) -> bytes:
        from mindspore import Tensor

        # A byte is exact in float32, which every device gathers; a float64 would not be.
        values = np.frombuffer(data, np.uint8).astype(np.float32)
        gathered = self._gather(Tensor(values)).asnumpy()
        return bytes(gathered.astype(np.uint8).tobytes())

    def _check_not_left(self) -> None:
        if self._left:
            raise ServiceClosedError("this process has left its job; it cannot come back")


def _leave() -> None:
    from mindspore.communication import release

    release()
