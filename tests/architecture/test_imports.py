"""What importing the package costs, and which module may import what."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "glm3sdk"
FRAMEWORKS = {
    "click",
    "llguidance",
    "mindspore",
    "ml_dtypes",
    "numpy",
    "openvino",
    "pluggy",
    "prometheus_client",
    "pydantic",
    "rich",
    "safetensors",
    "sentencepiece",
    "starlette",
    "torch",
    "uvicorn",
}


def modules_loaded_by(statements: str) -> set[str]:
    """Run statements in a fresh interpreter; returns the names in its sys.modules."""
    report = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute_imports(path: Path) -> set[str]:
    """Every module that a file imports by its full name, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE_MINDSPORE = [
    name
    for name in map(module_name, SOURCES)
    if not name.startswith("glm3sdk.adapters.mindspore") and not name.endswith("__main__")
]


def test_importing_the_package_imports_no_framework():
    assert modules_loaded_by("import glm3sdk") & FRAMEWORKS == set()


def test_listing_the_public_names_imports_no_framework():
    assert modules_loaded_by("import glm3sdk; dir(glm3sdk)") & FRAMEWORKS == set()


def test_no_module_outside_its_adapter_imports_mindspore():
    assert len(OUTSIDE_MINDSPORE) > 10
    imports = "\n".join(f"import {name}" for name in OUTSIDE_MINDSPORE)
    loaded = modules_loaded_by(imports)
    assert loaded.issuperset(OUTSIDE_MINDSPORE)
    assert "mindspore" not in loaded


def test_the_domain_loads_no_numpy():
    names = [name for name in OUTSIDE_MINDSPORE if name.startswith("glm3sdk.domain.")]
    assert names
    loaded = modules_loaded_by("\n".join(f"import {name}" for name in names))
    assert loaded & FRAMEWORKS == set()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_module_imports_from_the_root_package(path: Path):
    # The root re-exports every floor, so import-linter would not see what comes through it.
    assert "glm3sdk" not in absolute_imports(path)
