"""Where a process stands in a job of several."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Placement:
    """One process of a job.

    Attributes:
        rank_id: its number, from 0.
        rank_size: number of processes.
        device_id: its card on its server.
    """

    rank_id: int = 0
    rank_size: int = 1
    device_id: int = 0
