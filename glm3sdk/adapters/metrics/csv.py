"""Figures as a CSV file: a row a step, a column a figure."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

from glm3sdk.adapters.storage.whole_file import whole_file
from glm3sdk.errors import Glm3Error, ServiceClosedError, UserError

STEP = "step"


class CsvMetricSink:
    """A `MetricSink` that spreadsheets and pandas read: `step,loss,learning_rate`.

    Each record is in the file before `record` returns. A new figure is a new column, for
    which the file is written again, whole or not at all. What is recorded again for the
    last step is added to its row.

    Args:
        path: the file; its directory is made where there is none.
        first_step: the step that comes first. Rows of earlier steps are kept, for a run
            that goes on; 0 begins an empty file.

    Raises:
        UserError: the file cannot be written, or is not one of figures.
    """

    def __init__(self, path: str | os.PathLike[str], *, first_step: int = 0) -> None:
        self._path = Path(path)
        self._columns: list[str] = []
        self._row_start, self._row_step, self._row = 0, -1, dict[str, str]()
        rows: list[dict[str, str]] = []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if first_step > 0 and self._path.exists():
                self._columns, found = read_rows(self._path)
                rows = [row for row in found if int(row[STEP]) < first_step]
        except OSError as exc:
            raise UserError(
                f"cannot write {self._path}: {exc.strerror or exc}; pass another path"
            ) from exc
        self._rewrite(rows)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures of a step.

        Raises:
            Glm3Error: the disk is full, or the file was taken away.
            ServiceClosedError: the sink was closed.
        """
        if self._file.closed:
            raise ServiceClosedError(f"{self._path} was closed; open another sink")
        if STEP in values:
            raise UserError(f"no figure can be called {STEP!r}; rename it")
        if not values:
            return
        try:
            if not self._columns.__contains__ or not values.keys() <= set(self._columns):
                self._add_columns(values)
            if step != self._row_step:
                self._row_start, self._row_step = self._file.tell(), step
                self._row = {STEP: str(step)}
            self._row |= {name: _number(value) for name, value in values.items()}
            self._file.seek(self._row_start)
            self._file.write(_line(self._columns, self._row))
            self._file.truncate()
        except OSError as exc:
            raise Glm3Error(
                f"cannot write {self._path}: {exc.strerror or exc}; free some space there"
            ) from exc

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add_columns(self, values: Mapping[str, float]) -> None:
        self._columns += [name for name in values if name not in self._columns]
        self._file.close()
        rows = read_rows(self._path)[1] if self._path.exists() else []
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        lines = [_line(self._columns, dict(zip(self._columns, self._columns, strict=True)))]
        lines += [_line(self._columns, row) for row in rows]
        with whole_file(self._path) as file:
            file.writelines(lines if self._columns else [])
        self._file = self._path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)
        if rows:
            self._row, self._row_step = rows[-1], int(rows[-1][STEP])
            self._row_start = self._file.tell() - len(lines[-1])
