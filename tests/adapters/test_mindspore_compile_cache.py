from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
from reference.glm3_numpy import forward

from glm3sdk.domain.model import Glm3Config
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

CONFIG = Glm3Config(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=40,
    seq_length=16,
)
# Graphs of the same inputs and Parameters, with other constants inside.
CONFIGS = {
    "plain": CONFIG,
    "stretched": attrs.evolve(CONFIG, rope_ratio=50.0),
    "epsilon": attrs.evolve(CONFIG, layernorm_epsilon=0.1),
}
IDS = [1, 5, 9, 2]

SCRIPT = """
import json, sys
from pathlib import Path
from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory

found = {}
for folder in sys.argv[1:]:
    checkpoint = HuggingFaceDirectory(folder)
    runtime = MindSporeRuntime(config=checkpoint.config, checkpoint=checkpoint, profile=CPU)
    session = runtime.start_decode(slots=2, max_seq_length=16)
    ids = [1, 5, 9, 2]
    if len(found) % 2:
        rows = list(session.decode([0], ids[:1]))
        rows += list(session.prefill(0, ids[1:], all_logits=True))
    else:
        rows = list(session.prefill(0, ids[:3], all_logits=True))
        rows += list(session.decode([0], ids[3:]))
    found[Path(folder).name] = [row.tolist() for row in rows]
    session.close()
    runtime.close()
from glm3sdk.adapters.mindspore.compile_cache import COMPILE_CACHE as cache
print(json.dumps({"logits": found, "all_found": cache._finds and cache._number > 0}))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Folders and what the oracle says of their models."""
    root = tmp_path_factory.mktemp("models")
    expected = {}
    for name, config in CONFIGS.items():
        weights = write_random_checkpoint(root / name, config)
        expected[str(root / name)] = forward(config, weights, IDS)
    return expected


def start(folders: Sequence[str], cache: Path | str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "GLM3SDK_CACHE_DIR": str(cache),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *folders],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(process: subprocess.Popen[str], models: dict[str, np.ndarray]) -> bool:
    """Check what a process computed; returns whether it found every graph on disk."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    result = json.loads(out)
    for folder, expected in models.items():
        if Path(folder).name in result["logits"]:
            actual = result["logits"][Path(folder).name]
            np.testing.assert_allclose(actual, expected, atol=1e-4)
    return result["all_found"]


def test_graphs_of_an_earlier_process_serve_later_ones_in_any_order(
    models: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folders, cache = list(models), tmp_path / "cache"
    # Two processes at once write the same files.
    cold = [start(folders, cache), start(folders, cache)]
    assert [check(process, models) for process in cold] == [False, False]
    kept = sorted(file.name for file in (cache / "graphs").iterdir())
    assert len(kept) == 2 * len(folders)
    assert all(name.endswith(".graph") for name in kept)
    assert check(start(folders[::-1], cache), models)

    damaged, cut = (cache / "graphs" / name for name in kept[:2])
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    cut.write_bytes(cut.read_bytes()[:100])
    assert not check(start(folders, cache), models)
    assert check(start(folders, cache), models)
    assert sorted(file.name for file in (cache / "graphs").iterdir()) == kept


def test_where_nothing_can_be_kept_graphs_are_compiled(
    models: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    folder = next(iter(models))
    for cache in (file / "cache", ""):
        assert not check(start([folder], cache), models)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GLM3SDK_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/graphs"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/glm3sdk/graphs"),
        ({"HOME": "/c"}, "/c/.cache/glm3sdk/graphs"),
    ],
)
def test_the_folder_is_the_users_choice(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    from glm3sdk.adapters.mindspore.compile_cache import graph_folder

    for name in ("GLM3SDK_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert graph_folder() == Path(expected)
