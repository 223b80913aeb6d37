"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from flamboyance.serving.batching import Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
GAUGES = {
    "waiting": ("waiting_requests", "Requests that wait to be computed"),
    "rows": ("running_rows", "Texts that are being generated"),
    "kept_bytes": ("image_cache_bytes", "Bytes of encoded images that are kept"),
}
COUNTERS = {
    "steps": ("decode_steps", "Steps of generation"),
    "stepped_rows": ("decode_rows", "Rows of all steps; by decode_steps, the mean batch"),
    "prompts": ("prompts", "Prompts that were computed"),
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts, those of tasks included"),
    "prefix_tokens": ("prefix_tokens", "Tokens of prompts that a task had computed before"),
    "tokens": ("generated_tokens", "Tokens that were generated"),
    "images_encoded": ("images_encoded", "Images that went through the vision tower"),
    "images_kept": ("image_cache_hits", "Images that were encoded before"),
    "failures": ("failures", "Computations that failed"),
}


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self, counts: Callable[[], Counts], in_flight: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(counts, in_flight))
        self.requests = Counter(
            "flamboyance_requests", "Requests by route and status", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "flamboyance_request_seconds", "Time of a request", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "flamboyance_first_token_seconds",
            "Time of a chat request to its first text",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Engine(Collector):
    def __init__(self, counts: Callable[[], Counts], in_flight: Callable[[], int]):
        self._counts, self._in_flight = counts, in_flight

    def collect(self):
        counts = self._counts()
        yield GaugeMetricFamily("flamboyance_requests_in_flight", "Requests that were taken on", self._in_flight())
        for field, (name, text) in GAUGES.items():
            yield GaugeMetricFamily(f"flamboyance_{name}", text, getattr(counts, field))
        for field, (name, text) in COUNTERS.items():
            yield CounterMetricFamily(f"flamboyance_{name}", text, getattr(counts, field))
