"""The package never runs text as code and never unpickles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "glm3sdk"
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def dangers(source: str) -> list[str]:
    """What in this source could run text as code, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Name) and node.id in RUNS_TEXT:
            names = [node.id]
        elif isinstance(node, ast.Attribute) and node.attr in RUNS_TEXT:
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in {"builtins", "__builtins__"}:
                names = [node.attr]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.split(".")[0] in UNPICKLES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            imported = {alias.name for alias in node.names}
            if module in UNPICKLES or (module == "builtins" and imported & RUNS_TEXT):
                names = [module]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            forbidden = isinstance(node.value, ast.Constant) and node.value.value is False
            names = [] if forbidden else ["allow_pickle"]
        found += [f"line {node.lineno}: {name}" for name in names]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "run = exec",
        "compile(text, '', 'eval')",
        "import builtins\nbuiltins.eval('1')",
        "from builtins import exec as run",
        "import pickle",
        "def load():\n    from pickle import loads",
        "import dill as p",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    ["cell.eval()", "re.compile('x')", "ast.literal_eval(text)", "np.load(p, allow_pickle=False)"],
)
def test_the_search_passes_names_that_only_look_alike(source: str):
    assert dangers(source) == []


# Running code is what the code interpreter is for: its program runs in a process of its own, is
# started by its path, and no module imports it.
CODE_CELL = PACKAGE / "adapters" / "interpreter" / "cell.py"


@pytest.mark.parametrize(
    "path",
    sorted(set(PACKAGE.rglob("*.py")) - {CODE_CELL}),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_module_runs_text_or_unpickles(path: Path):
    assert dangers(path.read_text(encoding="utf-8")) == []


def test_nothing_imports_the_program_that_runs_code_cells():
    assert CODE_CELL.is_file()
    for path in PACKAGE.rglob("*.py"):
        assert "interpreter.cell" not in path.read_text(encoding="utf-8"), path
        assert "interpreter import cell" not in path.read_text(encoding="utf-8"), path
