from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest

from glm3sdk.adapters.mindspore import context
from glm3sdk.adapters.mindspore.executor import EXECUTOR, Executor
from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import (
    BackendUnavailableError,
    RuntimeFailureError,
    ServiceClosedError,
    UnsupportedOptionError,
)
from glm3sdk.ports.training import StatePart, TrainingPlan
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

CONFIG = Glm3Config(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=40,
    seq_length=2048,
)


def load(folder: Path, config: Glm3Config = CONFIG, **options: str) -> MindSporeRuntime:
    checkpoint = HuggingFaceDirectory(folder)
    return MindSporeRuntime(config=config, checkpoint=checkpoint, profile=CPU, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Iterator[MindSporeRuntime]:
    runtime = load(folder)
    yield runtime
    runtime.close()


def test_nothing_is_compiled_again_for_other_lengths_and_later_steps(
    runtime: MindSporeRuntime,
) -> None:
    session = runtime.start_decode(slots=5, max_seq_length=64)
    session.prefill(0, [1, 2, 3])
    assert session.compiled_graphs == 1
    for length in (1, 2, 7, 30):
        session.prefill(1, [4] * length)
        session.prefill(2, [5] * length, all_logits=True)
    assert session.compiled_graphs == 1
    # One graph for each power of two up to the number of slots, and for all slots.
    for lanes, graphs in ((1, 2), (2, 3), (3, 4), (4, 4), (5, 5), (2, 5), (1, 5), (3, 5)):
        for _ in range(2):
            session.decode(range(lanes), [6] * lanes)
        assert session.compiled_graphs == graphs
    for length in (1, 3, 11):
        session.copy(0, 4, length)
    assert session.compiled_graphs == 6
    session.close()


def test_two_models_serve_several_threads_at_once(
    runtime: MindSporeRuntime, tmp_path: Path
) -> None:
    other_config = attrs.evolve(CONFIG, hidden_size=24, padded_vocab_size=50)
    write_random_checkpoint(tmp_path, other_config, seed=1)
    other = load(tmp_path, other_config)
    sessions = [r.start_decode(slots=2, max_seq_length=32) for r in (runtime, other)]

    def serve(session: object, slot: int) -> list[np.ndarray]:
        session.truncate(slot, 0)
        rows = [session.prefill(slot, [slot, 7, 9])]
        return rows + [session.decode([slot], [3 + step])[0] for step in range(12)]

    lanes = [(session, slot) for session in sessions for slot in range(2)]
    alone = [serve(*lane) for lane in lanes]
    together: list[list[np.ndarray]] = [[] for _ in lanes]
    barrier = threading.Barrier(len(lanes))

    def run(number: int) -> None:
        barrier.wait()
        together[number] = serve(*lanes[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, all_at_once in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.stack(all_at_once), np.stack(one))
    for session in sessions:
        session.close()
    other.close()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_checkpoints_of_any_float_are_held_in_float32_with_their_values(
    tmp_path: Path, dtype: str
) -> None:
    weights = write_random_checkpoint(tmp_path, CONFIG, dtype=dtype, shards=2)
    runtime = load(tmp_path)
    assert runtime.capabilities.dtype == "float32"
    training = runtime.start_training(plan=TrainingPlan())
    held = dict(training.state(StatePart.WEIGHTS))
    training.close()
    runtime.close()
    assert held.keys() == weights.keys()
    for name, array in weights.items():
        assert held[name].dtype == np.float32
        np.testing.assert_array_equal(held[name], array.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_dtype_that_the_cpu_does_not_compute_in_is_refused(folder: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=f"'{dtype}'.*float32"):
        load(folder, dtype=dtype)


def test_the_memory_limit_of_a_card_means_nothing_on_a_cpu(folder: Path) -> None:
    load(folder, max_device_memory="1GB").close()


def test_a_missing_mindspore_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'glm3sdk\[mindspore\]'"):
        load(folder)


def test_a_numpy_that_mindspore_cannot_use_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context.np, "__version__", "2.1.0")
    with pytest.raises(BackendUnavailableError, match=r"numpy 2\.1\.0; it needs numpy below 2"):
        load(folder)


def test_a_cache_beyond_memory_is_an_error_and_the_runtime_goes_on(
    runtime: MindSporeRuntime,
) -> None:
    with pytest.raises(RuntimeFailureError, match="memory"):
        runtime.start_decode(slots=10**8, max_seq_length=2048)
    session = runtime.start_decode(slots=2, max_seq_length=32)
    assert np.isfinite(session.prefill(0, [1])).all()
    session.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_closed_sessions_give_their_memory_back(runtime: MindSporeRuntime) -> None:
    slots, length = 400, 2048
    cache_bytes = 2 * (slots + 1) * length * CONFIG.kv_channels * 4
    assert cache_bytes > 50e6
    resident = []
    for _ in range(6):
        session = runtime.start_decode(slots=slots, max_seq_length=length)
        session.prefill(0, [1, 2])
        held = [weakref.ref(parameter) for parameter in session._graphs._cache.keys]
        session.close()
        assert [reference() is None for reference in held] == [True]
        resident.append(resident_bytes())
    # MindSpore keeps freed blocks for the next session: the first two set the level.
    assert resident[-1] - resident[1] < 2 * cache_bytes


def test_a_session_that_is_dropped_unclosed_frees_its_cache(runtime: MindSporeRuntime) -> None:
    session = runtime.start_decode(slots=2, max_seq_length=32)
    held = weakref.ref(session._graphs._cache.keys[0])
    del session
    gc.collect()
    EXECUTOR.run(lambda: None)  # what was posted before has run then
    assert held() is None


def test_a_closed_runtime_frees_its_weights(folder: Path) -> None:
    runtime = load(folder)
    held = [weakref.ref(parameter) for parameter in runtime._cells.get_parameters()]
    runtime.close()
    runtime.close()
    assert all(reference() is None for reference in held)
    with pytest.raises(ServiceClosedError, match="closed"):
        runtime.start_decode(slots=1, max_seq_length=8)
    with pytest.raises(ServiceClosedError, match="closed"):
        runtime.start_training(plan=TrainingPlan())


def test_an_open_session_outlives_its_runtime(folder: Path) -> None:
    runtime = load(folder)
    session = runtime.start_decode(slots=2, max_seq_length=32)
    held = weakref.ref(runtime._cells)
    expected = session.prefill(0, [1, 2, 3])
    runtime.close()
    np.testing.assert_array_equal(session.prefill(1, [1, 2, 3]), expected)
    session.close()
    assert held() is None


def test_a_failing_job_is_the_callers_and_the_executor_goes_on() -> None:
    executor = Executor()
    for error in (ValueError("no"), SystemExit(3), KeyboardInterrupt()):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            executor.run(fail)
        executor.post(fail)
    assert executor.run(lambda: 5) == 5


def test_a_job_may_ask_for_another_one() -> None:
    executor = Executor()
    assert executor.run(lambda: executor.run(threading.current_thread).name) == "glm3sdk-mindspore"


def test_an_interrupted_caller_drops_the_result_and_the_executor_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor, ended = Executor(), threading.Event()

    class Interrupted:
        def set_result(self, result: object) -> None:
            ended.set()

        def result(self) -> object:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glm3sdk.adapters.mindspore.executor.Future", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.run(lambda: 1)
    assert ended.wait(10)
    assert executor.run(lambda: 2) == 2


SCRIPT = """
import sys, threading
from pathlib import Path
from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory

checkpoint = HuggingFaceDirectory(sys.argv[1])
runtime = MindSporeRuntime(config=checkpoint.config, checkpoint=checkpoint, profile=CPU)
session = runtime.start_decode(slots=2, max_seq_length=2048)
session.prefill(0, [1, 2])
session.decode([0], [3])
"""

BUSY = """
busy = threading.Event()

def serve():
    while True:
        session.truncate(0, 1)
        session.decode([0], [1])
        busy.set()

threading.Thread(target=serve, daemon=True).start()
assert busy.wait(60)
"""


def run_script(script: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "GLOG_v"}
    environment |= {
        "GLM3SDK_CACHE_DIR": str(cache),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("ending", ["", BUSY], ids=["idle", "with a job under way"])
def test_a_process_prints_nothing_leaves_nothing_behind_and_exits(
    folder: Path, tmp_path: Path, ending: str
) -> None:
    before = sorted(folder.iterdir())
    done = run_script(SCRIPT + ending, folder, tmp_path / "cache")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(folder.iterdir()) == before
    kept = [file.suffix for file in (tmp_path / "cache" / "graphs").iterdir()]
    assert kept == [".graph", ".graph"]
