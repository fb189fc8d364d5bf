"""`python -m glm3sdk` is `glm3`."""

from __future__ import annotations

from glm3sdk.cli import main

if __name__ == "__main__":
    main()
