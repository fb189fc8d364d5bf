"""What the server counts, in Prometheus's text format."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from glm3sdk.domain.chat import Usage
from glm3sdk.services.chat import Glm3Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one application; two applications in a process count apart."""

    def __init__(self, service: Glm3Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Load(service))
        self._requests = Counter(
            "glm3_requests",
            "Requests that ended; status 499 means that the client left.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "glm3_tokens",
            "Tokens of finished replies; cached ones are counted under prompt too.",
            ["kind"],
            registry=self._registry,
        )
        self._lasted = Histogram(
            "glm3_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "glm3_first_token_seconds",
            "From admission to the first text or tool call.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def ended(self, endpoint: str, *, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._lasted.labels(endpoint).observe(seconds)

    def used(self, usage: Usage) -> None:
        """Count the tokens of a reply."""
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)

    def stopwatch(self, endpoint: str) -> FirstToken:
        """Start to wait for a request's first token."""
        return FirstToken(self._first.labels(endpoint))

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)


class FirstToken:
    """Measures how long a request waits for its first token."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram: Histogram | None = histogram
        self._started = time.monotonic()

    def came(self) -> None:
        """A token came; only the first time counts."""
        if self._histogram is not None:
            self._histogram.observe(time.monotonic() - self._started)
            self._histogram = None


class _Load(Collector):
    """Asks the service at each scrape, so that nothing has to keep these up to date."""

    def __init__(self, service: Glm3Service) -> None:
        self._service = service

    def collect(self) -> Iterable[GaugeMetricFamily]:
        load = self._service.load
        yield GaugeMetricFamily("glm3_slots", "Sequences decoded side by side.", load.slots)
        yield GaugeMetricFamily("glm3_slots_busy", "Slots in which a reply runs.", load.busy)
        yield GaugeMetricFamily("glm3_queue", "Replies that wait for a slot.", load.waiting)
