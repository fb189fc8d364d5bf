"""The example of a storage plugin: installed as a user would, found, used, held to its contract."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from plugin_site import EXAMPLES, add_distribution, install, run

EXAMPLE = EXAMPLES / "storage_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install("storage_plugin", tmp_path_factory.mktemp("plugin"))


_USE = """
import json, sys
import numpy as np
from importlib import resources
from glm3sdk import load_tokenizer
from glm3sdk.bootstrap.storage import blob_store, checkpoint_store
from glm3sdk.ports.checkpoint_store import TensorSpec

root = sys.argv[1]
store = checkpoint_store(root)
writer = store.create(f"{root}/a")
values = np.arange(6, dtype=np.float16).reshape(2, 3)
writer.add_tensors("model.safetensors", {"t": TensorSpec((2, 3), "float16")}, [("t", values)])
writer.commit()
opened = checkpoint_store(f"{root}/a").open(f"{root}/a")
opened.verify()
assert opened.read("t", (slice(1, 2),)).tolist() == [[3, 4, 5]]
blobs = blob_store(root)
for file in (resources.files("glm3sdk") / "assets" / "tiny").iterdir():
    blobs.write(f"{root}/tiny/{file.name}", file)
same = load_tokenizer(f"{root}/tiny").fingerprint == load_tokenizer("tiny").fingerprint
print(json.dumps({
    "store": type(blobs).__module__, "listed": store.list(root), "same_tokenizer": same,
}))
"""


def test_checkpoints_and_models_live_behind_its_scheme(installed: Path, tmp_path: Path) -> None:
    root = f"sqlite://{tmp_path}/models.db/all"
    done = run("-c", _USE, root, path=installed, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "store": "glm3sdk_sqlite",
        "listed": [f"{root}/a"],
        "same_tokenizer": True,
    }
    pulled = run(
        *("-m", "glm3sdk", "pull", f"{root}/tiny", "--json"),
        path=installed,
        cache=tmp_path / "cache",
    )
    assert pulled.returncode == 0, pulled.stderr
    assert (Path(json.loads(pulled.stdout)["path"]) / "config.json").is_file()


def test_it_passes_the_contracts(installed: Path, tmp_path: Path) -> None:
    done = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", EXAMPLE / "pyproject.toml"),
        *("--basetemp", tmp_path / "run", EXAMPLE / "tests"),
        path=installed,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_two_plugins_of_one_scheme_are_both_named(installed: Path, tmp_path: Path) -> None:
    """Another distribution claims the scheme, as one that was installed would."""
    add_distribution(
        tmp_path,
        "another-sqlite",
        "from glm3sdk.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def glm3_register_blob_stores(register):\n"
        "    register('sqlite', lambda: None)\n",
    )
    path = Path(os.pathsep.join([str(tmp_path), str(installed)]))
    done = run(
        *("-m", "glm3sdk", "pull", f"sqlite://{tmp_path}/models.db/x"),
        path=path,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "blob store 'sqlite' is registered twice" in line
    assert "another-sqlite" in line
    assert "glm3sdk-sqlite" in line
