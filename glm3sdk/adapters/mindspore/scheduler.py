"""The scheduler of MindSpore's dynamic cluster: `python -m glm3sdk.adapters.mindspore.scheduler`.

It brings the ranks together and trains nothing, so it takes no card. MS_ROLE=MS_SCHED and the
rest of its environment come from the launcher.
"""

from __future__ import annotations


def main() -> None:
    """Serve the job's ranks until they have left."""
    from mindspore import set_device
    from mindspore.communication import init

    set_device("CPU")
    init()


if __name__ == "__main__":
    main()
