"""Plugins that are installed as a user would, for a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"


def install(example: str, folder: Path) -> Path:
    """A folder that an example plugin was installed into; the network is not asked."""
    # A copy: building leaves files in the source.
    shutil.copytree(EXAMPLES / example, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, *offline, "--target", folder / "site", folder / "source"], check=True, timeout=120
    )
    return folder / "site"


def add_distribution(folder: Path, name: str, module: str, *, entry_point: str = "mine") -> None:
    """Lay out an installed distribution, of one module, that is a plugin."""
    module_name = name.replace("-", "_")
    folder.mkdir(exist_ok=True)
    (folder / f"{module_name}.py").write_text(module, encoding="utf-8")
    about = folder / f"{module_name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
    )
    (about / "entry_points.txt").write_text(
        f"[glm3sdk]\n{entry_point} = {module_name}\n", encoding="utf-8"
    )


def run(*command: str | Path, path: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where what lies in `path` (several, as in PYTHONPATH) is installed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(path), str(REPOSITORY)]),
        "GLM3SDK_CACHE_DIR": str(cache),
    }
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
