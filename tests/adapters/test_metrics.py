from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reference.tensorboard_events import read_events, read_scalars

from glm3sdk.adapters.metrics.csv import CsvMetricSink, read_rows
from glm3sdk.adapters.metrics.plot import plot_metrics
from glm3sdk.adapters.metrics.tensorboard import TensorBoardMetricSink
from glm3sdk.errors import BackendUnavailableError, Glm3Error, UserError


def test_the_csv_file_is_plain(tmp_path: Path) -> None:
    sink = CsvMetricSink(tmp_path / "m.csv")
    sink.record(1, {"loss": 2.1, "learning_rate": 1e-5, "tokens": 1024})
    sink.record(2, {"loss": 2.0, "learning_rate": 2e-5, "tokens": 1000})
    sink.record(2, {"eval_loss": 1.875})
    sink.record(3, {"loss": 1.0, "learning_rate": 0.0, "tokens": 7})
    assert (tmp_path / "m.csv").read_text() == (
        "step,loss,learning_rate,tokens,eval_loss\n"
        "1,2.1,1e-05,1024,\n"
        "2,2,2e-05,1000,1.875\n"
        "3,1,0,7,\n"
    )
    sink.close()


def test_a_resumed_csv_file_goes_on_from_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    before = CsvMetricSink(path)
    for step in range(1, 6):
        before.record(step, {"loss": step})
    before.close()
    after = CsvMetricSink(path, first_step=4)
    assert path.read_text() == "step,loss\n1,1\n2,2\n3,3\n"
    after.record(4, {"loss": 40, "eval_loss": 4})
    after.close()
    assert path.read_text() == "step,loss,eval_loss\n1,1,\n2,2,\n3,3,\n4,40,4\n"


def test_a_new_run_begins_an_empty_csv_file(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,loss\n1,1\n")
    CsvMetricSink(tmp_path / "m.csv").close()
    assert (tmp_path / "m.csv").read_text() == "step\n"


@pytest.mark.parametrize("torn", ["3", "3,", "3,0.1", "3,0.1,2\n", "3,0.\x00\n"])
def test_a_last_row_that_was_cut_off_is_dropped_on_resume(tmp_path: Path, torn: str) -> None:
    (tmp_path / "m.csv").write_text("step,loss\n1,1\n2,2\n" + torn)
    sink = CsvMetricSink(tmp_path / "m.csv", first_step=3)
    sink.record(3, {"loss": 0.5})
    sink.close()
    assert (tmp_path / "m.csv").read_text() == "step,loss\n1,1\n2,2\n3,0.5\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name,loss\n1,2\n", "no column 'step'"),
        (b"step,loss,loss\n1,2,3\n", "no column 'step'"),
        (b"step,loss\none,2\n2,2\n", "line 2"),
        (b"step,loss\n1,2,3\n2,2\n", "line 2"),
        (b"step,loss\n1,much\n2,2\n", "line 2"),
        (b"step,\xff\n", "not a CSV file"),
    ],
)
def test_a_file_that_holds_no_figures_is_refused_on_resume_and_stays(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        CsvMetricSink(tmp_path / "m.csv", first_step=3)
    assert (tmp_path / "m.csv").read_bytes() == content


def test_a_figure_called_step_is_refused(tmp_path: Path) -> None:
    sink = CsvMetricSink(tmp_path / "m.csv")
    with pytest.raises(UserError, match="'step'"):
        sink.record(1, {"step": 1.0})
    sink.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for open_sink in (
        lambda: CsvMetricSink(tmp_path / "file" / "m.csv"),
        lambda: CsvMetricSink(tmp_path),
        lambda: TensorBoardMetricSink(tmp_path / "file"),
    ):
        with pytest.raises(UserError, match="cannot write"):
            open_sink()


def test_a_full_disk_is_a_typed_error_and_leaves_whole_rows(tmp_path: Path) -> None:
    # The limit belongs to a process, so this runs in its own.
    script = """
import resource, signal, sys
from glm3sdk.adapters.metrics.csv import CsvMetricSink
from glm3sdk.adapters.metrics.tensorboard import TensorBoardMetricSink
from glm3sdk.errors import Glm3Error

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for sink in (CsvMetricSink(sys.argv[1] + "/m.csv"), TensorBoardMetricSink(sys.argv[1] + "/tb")):
    for step in range(1000):
        try:
            sink.record(step, {"loss": step / 3})
        except Glm3Error as exc:
            print(type(exc).__name__, exc)
            break
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("Glm3Error cannot write") for line in lines)
    assert all("File too large" in line for line in lines)
    assert issubclass(UserError, Glm3Error)
    _, rows = read_rows(tmp_path / "m.csv")
    assert [int(row["step"]) for row in rows] == list(range(len(rows)))
    assert len(rows) > 30


def test_a_resumed_run_hides_what_tensorboard_has_of_later_steps(tmp_path: Path) -> None:
    before = TensorBoardMetricSink(tmp_path)
    for step in range(1, 6):
        before.record(step, {"loss": step})
    before.close()
    after = TensorBoardMetricSink(tmp_path, first_step=4)
    after.record(4, {"loss": 40})
    after.close()
    losses = {step: row["loss"] for step, row in read_scalars(tmp_path).items()}
    assert losses == {1: 1, 2: 2, 3: 3, 4: 40}


def test_event_times_are_of_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.25)
    sink = TensorBoardMetricSink(tmp_path)
    sink.record(1, {"loss": 1})
    sink.close()
    (file,) = tmp_path.iterdir()
    assert ".tfevents.1700000000." in file.name
    assert [event.wall_time for event in read_events(file)] == [1_700_000_000.25] * 2


def write_run(path: Path, **figures: float) -> Path:
    sink = CsvMetricSink(path)
    for step in range(1, 101):
        sink.record(step, {name: value / step for name, value in figures.items()})
        if step % 20 == 0 and "loss" in figures:
            sink.record(step, {"eval_loss": 1.2 * figures["loss"] / step})
    sink.close()
    return path


@pytest.mark.parametrize(
    ("figures", "height"),
    [({"loss": 3.0, "learning_rate": 1e-4}, 700), ({"learning_rate": 1e-4}, 400)],
)
def test_a_plot_has_a_panel_for_losses_and_one_for_the_learning_rate(
    tmp_path: Path, figures: dict[str, float], height: int
) -> None:
    plot_metrics(write_run(tmp_path / "m.csv", **figures), tmp_path / "m.png")
    data = (tmp_path / "m.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == 800
    assert int.from_bytes(data[20:24], "big") == height


def test_a_plot_passes_over_values_that_are_not_finite(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,loss,eval_loss\n1,2,\n2,nan,\n3,inf,1\n4,1,\n")
    plot_metrics(tmp_path / "m.csv", tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    CsvMetricSink(tmp_path / "m.csv").close()
    with pytest.raises(UserError, match="has no loss, eval_loss, learning_rate"):
        plot_metrics(tmp_path / "m.csv", tmp_path / "m.png")
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file"):
        plot_metrics(tmp_path / "none.csv", tmp_path / "m.png")
    assert not (tmp_path / "m.png").exists()


def test_a_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=r"glm3sdk\[finetune\]"):
        plot_metrics(tmp_path / "m.csv", tmp_path / "m.png")
