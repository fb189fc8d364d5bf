"""From the names of metric sinks to the open sinks of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glm3sdk.adapters.metrics.csv import CsvMetricSink
from glm3sdk.adapters.metrics.tensorboard import TensorBoardMetricSink
from glm3sdk.bootstrap.run_output import METRICS_FILE, TENSORBOARD_DIRECTORY
from glm3sdk.errors import Glm3Error, PluginError
from glm3sdk.hookspecs import MetricSinkFactory, RegisterMetricSink, hookimpl
from glm3sdk.plugins import Registration, missing, plugin_manager, registrations
from glm3sdk.ports.metric_sink import MetricSink

_log = logging.getLogger(__name__)


@hookimpl
def glm3_register_metric_sinks(register: RegisterMetricSink) -> None:
    """Register the sinks that ship with the SDK, as any plugin would."""
    register("csv", _csv)
    register("tensorboard", _tensorboard)


def find_sinks(names: Iterable[str]) -> tuple[Registration, ...]:
    """What plugins registered under these names.

    Raises:
        UnknownNameError: no metric sink goes by a name.
        PluginError: two plugins register one name, or one that may have it cannot be used.
    """
    manager = plugin_manager([sys.modules[__name__]])
    found = registrations(manager, "glm3_register_metric_sinks", "metric sink")
    for name in names:
        if name not in found:
            raise missing(manager, "metric sink", name, found)
    return tuple(found[name] for name in names)


@contextmanager
def open_sinks(
    sinks: Iterable[Registration], *, folder: Path, uri: str, first_step: int
) -> Iterator[tuple[MetricSink, ...]]:
    """Open sinks for a run that records from `first_step` on, and close them.

    Raises:
        PluginError: a plugin's sink cannot be opened.
    """
    with ExitStack() as stack:
        opened = []
        for each in sinks:
            factory: MetricSinkFactory = each.factory
            try:
                sink = factory(folder=folder, uri=uri, first_step=first_step)
            except Glm3Error:
                raise
            except Exception as exc:  # a plugin may fail with anything
                raise PluginError(
                    f"metric sink {each.name!r} of {each.owner} cannot be opened: {exc!r}; fix it, "
                    "or take it out of metrics.sinks"
                ) from exc
            opened.append(_Guarded(sink, f"metric sink {each.name!r} of {each.owner}"))
            stack.callback(opened[-1].close)
        yield tuple(opened)


class _Guarded:
    """A sink whose unexpected failures do not end a run of days: it is given up instead."""

    def __init__(self, sink: MetricSink, name: str) -> None:
        self._sink: MetricSink | None = sink
        self._name = name

    def record(self, step: int, values: Mapping[str, float]) -> None:
        if self._sink is None:
            return
        try:
            self._sink.record(step, values)
        except Glm3Error:
            raise
        except Exception:  # a plugin may fail with anything
            _log.warning(
                "%s failed at step %d; no further figures go there", self._name, step, exc_info=True
            )
            self.close()
            self._sink = None

    def close(self) -> None:
        if self._sink is None:
            return
        try:
            self._sink.close()
        except Glm3Error:
            raise
        except Exception:  # a plugin may fail with anything
            _log.warning("%s could not be closed", self._name, exc_info=True)


def _csv(*, folder: Path, uri: str, first_step: int) -> MetricSink:
    del uri
    return CsvMetricSink(folder / METRICS_FILE, first_step=first_step)


def _tensorboard(*, folder: Path, uri: str, first_step: int) -> MetricSink:
    del uri
    return TensorBoardMetricSink(folder / TENSORBOARD_DIRECTORY, first_step=first_step)
