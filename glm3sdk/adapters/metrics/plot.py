"""A picture of a run: its losses and its learning rate over the steps."""

from __future__ import annotations

import math
import os
from pathlib import Path

from glm3sdk.adapters.metrics.csv import STEP, read_rows
from glm3sdk.adapters.storage.whole_file import whole_file
from glm3sdk.errors import BackendUnavailableError, UserError

_PANELS = (("loss", ("loss", "eval_loss")), ("learning rate", ("learning_rate",)))
_LABELS = {"loss": "training", "eval_loss": "evaluation"}


def plot_metrics(csv_path: str | os.PathLike[str], png_path: str | os.PathLike[str]) -> None:
    """Draw `loss`, `eval_loss` and `learning_rate`, those that the file has.

    Args:
        csv_path: what a `CsvMetricSink` wrote.
        png_path: the picture, which appears whole.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        UserError: the file has none of these figures, or one of the paths is wrong.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise BackendUnavailableError(
            "a plot needs matplotlib; install it with: pip install 'glm3sdk[finetune]'"
        ) from exc

    rows = _rows(Path(csv_path))
    series = {name: _points(rows, name) for _, names in _PANELS for name in names}
    panels = [panel for panel in _PANELS if any(series[name] for name in panel[1])]
    if not panels:
        raise UserError(
            f"{csv_path} has no {', '.join(series)}; pass the figures of a run that took a step"
        )
    # Not pyplot: it keeps figures for the whole process and may look for a display.
    figure = Figure(figsize=(8, 1 + 3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            if series[name]:
                marker = "o" if name == "eval_loss" or len(series[name]) == 1 else ""
                axis.plot(*zip(*series[name], strict=True), marker=marker, label=_LABELS.get(name))
        axis.set_ylabel(title)
        axis.grid(visible=True, alpha=0.3)
        if len(names) > 1:
            axis.legend()
    axes[-1].set_xlabel(STEP)
    with whole_file(Path(png_path)) as file:
        figure.savefig(file, format="png")


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return read_rows(path)[1]
    except OSError as exc:
        raise UserError(
            f"{path} cannot be read: {exc.strerror or exc}; pass the CSV file of a run"
        ) from exc


def _points(rows: list[dict[str, str]], name: str) -> list[tuple[int, float]]:
    points = [(int(row[STEP]), float(row[name])) for row in rows if row.get(name)]
    # A loss that is not a number leaves a gap.
    return [(step, value if math.isfinite(value) else math.nan) for step, value in points]
