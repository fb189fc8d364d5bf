"""Figures as a CSV file: a row a step, a column a figure."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from glm3sdk.adapters.storage.whole_file import whole_file
from glm3sdk.errors import Glm3Error, ServiceClosedError, UserError

STEP = "step"


class CsvMetricSink:
    """A `MetricSink` for spreadsheets and pandas: `step,loss,learning_rate`.

    Each record is in the file before `record` returns. A new figure is a new column, for
    which the file is written again, whole or not at all. What is recorded again for the
    last step joins its row.

    Args:
        path: the file; its directory is made where there is none.
        first_step: the step that comes first. Rows of earlier steps are kept, for a run
            that goes on; 0 begins an empty file.

    Raises:
        UserError: the file cannot be written, or is not one of figures.
    """

    def __init__(self, path: str | os.PathLike[str], *, first_step: int = 0) -> None:
        self._path = Path(path)
        columns: list[str] = []
        rows: list[dict[str, str]] = []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if first_step > 0 and self._path.exists():
                columns, rows = read_rows(self._path)
        except OSError as exc:
            raise UserError(
                f"cannot write {self._path}: {exc.strerror or exc}; pass another path"
            ) from exc
        self._start(columns, [row for row in rows if int(row[STEP]) < first_step])

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures of a step.

        Raises:
            UserError: a figure is called "step".
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
            added = [name for name in values if name not in self._columns]
            if added:
                rows = read_rows(self._path)[1]
                self._file.close()
                self._start(self._columns + added, rows)
            self._write(step, {name: _number(value) for name, value in values.items()})
        except OSError as exc:
            raise Glm3Error(
                f"cannot write {self._path}: {exc.strerror or exc}; free some space there"
            ) from exc

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _start(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Write the file anew and go on behind its last row."""
        lines = [_line([STEP, *columns])]
        lines += [_line([row[STEP], *(row.get(name, "") for name in columns)]) for row in rows]
        with whole_file(self._path) as file:
            file.writelines(lines)
        self._file = self._path.open("r+b", buffering=0)
        self._columns = columns
        self._row = dict(rows[-1]) if rows else {STEP: ""}
        self._end = sum(map(len, lines))
        self._row_start = self._end - (len(lines[-1]) if rows else 0)

    def _write(self, step: int, values: dict[str, str]) -> None:
        same = self._row[STEP] == str(step)
        start = self._row_start if same else self._end
        row = {**(self._row if same else {}), STEP: str(step), **values}
        line = _line([str(step), *(row.get(name, "") for name in self._columns)])
        self._file.seek(start)
        rest = memoryview(line)
        while rest:  # a disk that fills up takes a part first
            rest = rest[self._file.write(rest) :]
        self._file.truncate()
        self._row, self._row_start, self._end = row, start, start + len(line)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a file that `CsvMetricSink` wrote; a last line that was cut off is left out.

    Returns:
        The columns but for the step, and the rows; a figure that is not there is "".

    Raises:
        UserError: it is another kind of file.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    except (UnicodeDecodeError, csv.Error) as exc:
        raise UserError(f"{path} is not a CSV file ({exc}); pass another path") from exc
    header = lines[0] if lines else [STEP]
    if header[:1] != [STEP] or len(set(header)) < len(header):
        raise UserError(f"{path} has no column {STEP!r} in front; pass a file of figures")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) == len(header) and all(map(_is_number, line)) and line[0].isdecimal():
            rows.append(dict(zip(header, line, strict=True)))
        elif number < len(lines):
            raise UserError(f"{path}, line {number}: not figures of a step; remove the line")
    return header[1:], rows


def _line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
