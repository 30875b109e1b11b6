"""What monitoring reads: counters, waits and engines of this server process, in Prometheus' text format.

Labels are methods, route templates, statuses, base models and job states, never a name that a user gave or an id: what
is monitored may be read by more people than what is served.
"""

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from smedje.serving.engine import EngineStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds. A tiny model answers in milliseconds; a cold start of a large one takes a minute.
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Meters:
    """The meters of one server process, in a registry of their own."""

    def __init__(self) -> None:
        made = CollectorRegistry()
        self._registry = made
        self._requests = Counter(
            "smedje_http_requests", "Requests answered.", ("method", "route", "status"), registry=made
        )
        self._seconds = Histogram(
            "smedje_http_request_seconds",
            "Time to the whole answer.",
            ("method", "route"),
            buckets=WAITS,
            registry=made,
        )
        self._first = Histogram(
            "smedje_first_token_seconds",
            "Time from a request to its first token, waking and queueing included.",
            ("base_model",),
            buckets=WAITS,
            registry=made,
        )
        self._between = Histogram(
            "smedje_token_seconds", "Time between tokens of an answer.", ("base_model",), buckets=STEPS, registry=made
        )
        self._tokens = Counter(
            "smedje_tokens", "Tokens: prompt, of it cached, and completion.", ("base_model", "kind"), registry=made
        )
        self._engines = Gauge("smedje_engine", "An engine at this moment.", ("base_model", "what"), registry=made)
        self._jobs = Gauge("smedje_jobs", "Fine-tuning jobs by state.", ("status",), registry=made)

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered. route: its template, not its path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def first_token(self, base_model: str, seconds: float) -> None:
        """An answer has begun, so long after its request."""
        self._first.labels(base_model).observe(seconds)

    def more_tokens(self, base_model: str, count: int, seconds: float) -> None:
        """So many tokens came together, so long after those before."""
        for _ in range(count):
            self._between.labels(base_model).observe(seconds / count)

    def request_counted(self, base_model: str, *, prompt: int, cached: int, completion: int) -> None:
        """The tokens of one ended request."""
        for kind, count in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            self._tokens.labels(base_model, kind).inc(count)

    def page(self, engines: Mapping[str, EngineStats], jobs: Mapping[str, int]) -> bytes:
        """Everything as text. engines: those that run, by base model. jobs: how many in each state."""
        self._engines.clear()
        for base_model, stats in engines.items():
            for what, value in (
                ("running", stats.running),
                ("waiting", stats.waiting),
                ("adapters", stats.adapters),
                ("cached_tokens", stats.cached_tokens),
                ("resting_tokens", stats.resting_tokens),
                ("token_capacity", stats.token_capacity),
                ("reused_tokens", stats.reused_tokens),
                ("generated_tokens", stats.generated_tokens),
                ("preemptions", stats.preemptions),
                ("merged_steps", stats.merged_steps),
                ("int8_weights", int(stats.numbers == "int8")),
                ("bf16_weights", int(stats.numbers == "bf16")),
            ):
                self._engines.labels(base_model, what).set(value)
        self._jobs.clear()
        for status, count in jobs.items():
            self._jobs.labels(status).set(count)
        return generate_latest(self._registry)
