"""A load test while it runs, for Prometheus: `sidestep load FILE --metrics 127.0.0.1:9809`."""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from lab.load.hdr import Histogram
from lab.load.model import Tick
from lab.model import BadInput

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Upper ends of the buckets that Prometheus sees; a bucket of ours counts where its upper end lies."""
LOOPBACK = "127.0.0.1"
WHOLE = ("due", "sent")
HELD = (
    ("worker_pss_bytes", "worker_memory_bytes", "Memory of our own workers, what they share counted once."),
    ("broker_used_bytes", "broker_memory_bytes", "Memory that the broker has handed out."),
    ("broker_clients", "broker_clients", "Connections to the broker, with ours."),
)
"""Fields of `Holds`, and what they are called here."""
BY_KIND = ("done", "failed")


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `:PORT` or `PORT`; without a host it is the loopback. Raises BadInput."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise BadInput(f"--metrics takes HOST:PORT, such as {LOOPBACK}:9809, not {text!r}")
    return host.strip("[]") or LOOPBACK, int(port)


class _Buckets:
    """A histogram as Prometheus wants it: counts below each bound, and the sum."""

    def __init__(self) -> None:
        self.counts, self.sum_s = [0] * (len(BOUNDS_S) + 1), 0.0

    def add(self, histogram: Histogram) -> None:
        """Count all that it holds."""
        if len(histogram):
            highs = histogram.layout.highs_ns(histogram.buckets) / 1e9
            for high_s, count in zip(highs.tolist(), histogram.counts.tolist(), strict=True):
                self.counts[bisect_left(BOUNDS_S, high_s)] += count
            self.sum_s += histogram.sum_ns / 1e9

    def cumulated(self) -> list[tuple[str, float]]:
        """Upper end, as text, and how many lie below it."""
        names, total, rows = [*map(str, BOUNDS_S), "+Inf"], 0, []
        for name, count in zip(names, self.counts, strict=True):
            total += count
            rows.append((name, float(total)))
        return rows


@contextlib.contextmanager
def watching(
    listen: str | None, *, scenario: str, say: Callable[[str], None]
) -> Generator[Callable[[Tick], None], None, None]:
    """What to hand each tick to: a server at `listen`, or nobody. Raises BadInput where it cannot listen."""
    if listen is None:
        yield lambda _: None
        return
    with MetricsServer(listen, scenario=scenario) as server:
        say(f"metrics: {server.url}")
        yield server.tick


class MetricsServer:
    """Serves what the ticks so far add up to, until it is left. Raises BadInput where it cannot listen."""

    def __init__(self, listen: str, *, scenario: str) -> None:
        self._host, self._port = address(listen)
        self._scenario = scenario
        self._lock = threading.Lock()
        self._whole: Counter[str] = Counter()
        self._by_kind: Counter[tuple[str, str]] = Counter()
        self._by_worker: Counter[str] = Counter()
        self._latency, self._lag = _Buckets(), _Buckets()
        self._last: Tick | None = None
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is served."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/metrics"

    def __enter__(self) -> MetricsServer:
        try:
            from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415  an extra
        except ImportError:
            raise BadInput("--metrics needs prometheus-client: pip install 'sidestep[metrics]'") from None
        registry: Any = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(self._port, addr=self._host, registry=registry)
        except OSError as error:
            raise BadInput(
                f"cannot serve metrics at {self._host}:{self._port}: {error.strerror or error}; choose another address"
            ) from None
        self._port = self._server.server_port
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._server and self._thread:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def tick(self, tick: Tick) -> None:
        """A tick has ended."""
        with self._lock:
            self._whole.update({name: getattr(tick.whole, name) for name in WHOLE})
            for kind, tally in tick.kinds.items():
                self._by_kind.update({(name, kind): getattr(tally, name) for name in BY_KIND})
            self._by_worker.update(tick.workers)
            self._latency.add(tick.latency)
            self._lag.add(tick.lag)
            self._last = tick

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them at each scrape."""
        from prometheus_client.metrics_core import (  # noqa: PLC0415  an extra
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        with self._lock:
            says = {"due": "Jobs that were due.", "sent": "Jobs handed to the broker."}
            for name in WHOLE:
                counter = CounterMetricFamily(f"sidestep_load_{name}", says[name], labels=("scenario",))
                counter.add_metric((self._scenario,), self._whole[name])
                yield counter
            says = {"done": "Jobs that ended well.", "failed": "Attempts that failed."}
            for name in BY_KIND:
                counter = CounterMetricFamily(f"sidestep_load_{name}", says[name], labels=("scenario", "kind"))
                for (which, kind), count in sorted(self._by_kind.items()):
                    if which == name:
                        counter.add_metric((self._scenario, kind), count)
                yield counter
            ended = CounterMetricFamily("sidestep_load_ended", "Attempts that ended.", labels=("scenario", "worker"))
            for worker, count in sorted(self._by_worker.items()):
                ended.add_metric((self._scenario, worker), count)
            yield ended
            for name, words, buckets in (
                ("latency", "From due to ended.", self._latency),
                ("lag", "From due to sent: how late the generator was.", self._lag),
            ):
                family = HistogramMetricFamily(f"sidestep_load_{name}_seconds", words, labels=("scenario",))
                family.add_metric((self._scenario,), buckets.cumulated(), buckets.sum_s)
                yield family
            if self._last is not None:
                flying = GaugeMetricFamily("sidestep_load_in_flight", "Jobs sent and not ended.", labels=("scenario",))
                flying.add_metric((self._scenario,), self._last.in_flight)
                yield flying
                depth = GaugeMetricFamily(
                    "sidestep_load_waiting", "Messages that wait in a queue.", labels=("scenario", "queue")
                )
                for queue, waiting in sorted(self._last.depth.items()):
                    depth.add_metric((self._scenario, queue), waiting)
                yield depth
                for field, name, words in HELD:
                    if (held := getattr(self._last.holds, field)) is not None:
                        gauge = GaugeMetricFamily(f"sidestep_load_{name}", words, labels=("scenario",))
                        gauge.add_metric((self._scenario,), held)
                        yield gauge
