"""Sidestep's metrics for Prometheus: what workers and producers counted, what the broker holds, what claims came to.

Run as `python -m lab.exporter --broker URL --listen 127.0.0.1:9808`. It keeps nothing: each scrape reads the broker, so
its memory stays as it is and a restart loses nothing. It asks for no credentials: listen where only Prometheus is.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
import redis

# Nothing else of the lab's: the exporter also runs where numpy is not installed, as in the containers.
from tasks import dead_letters
from tasks.logs import line, wants_json
from tasks.metrics import BUCKETS_S, COHORT_S, COHORTS, COUNTS, KEPT_S, PULSE_S, SEEN, open_client
from tasks.settings import Settings, SettingsError, from_env

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError:  # pragma: no cover  the tests have it
    print("sidestep: the exporter needs prometheus-client; pip install 'sidestep[metrics]'", file=sys.stderr)
    raise SystemExit(2) from None

COULD_NOT = 2
LOST_AFTER_S = 300.0
SEPARATOR, STEPS = "\x06\x16", (3, 6, 9)
"""kombu keeps a queue's messages of these priorities in lists of their own."""
UNACKED = "unacked"
VERDICTS = ("supported", "refuted", "inconclusive", "invalid")
SUITES = ("suite.json", "suite.json.xz", "*/suite.json", "*/suite.json.xz")
FINDINGS = "findings.json"
"""What `sidestep report --json` wrote of a suite: taken as it is, where nothing that could judge is installed."""
ALIVE_S = 3 * PULSE_S
"""Three signs of life may fail to come before a worker no longer counts as one that serves its queues."""
JUDGING_S = 300.0
"""A suite of all experiments is judged in seconds; what takes longer than this is stuck."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker, and when it gave its last sign of life."""

    silent_s: float
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the broker said at one moment."""

    now_s: float
    """By the broker's clock."""
    counts: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)
    cohorts: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Jobs issued and ended, by when they were sent."""
    workers: Mapping[str, Seen] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)
    """Messages that wait, by queue."""
    unacked: int = 0
    """Messages that workers have fetched and not acknowledged."""
    letters: int = 0
    """Dead letters that are kept now."""
    all_letters: int = 0

    def overdue(self, after_s: float) -> int:
        """How many jobs that were sent longer ago have not ended. Of those sent in the last hour."""
        # Workers no longer say to which cohort a job belonged when it ends after that.
        earliest, latest = self.now_s - KEPT_S, self.now_s - after_s
        ripe = [n for slot, n in self.cohorts.items() if earliest < slot * COHORT_S and (slot + 1) * COHORT_S < latest]
        return max(0, sum(issued - ended for issued, ended in ripe))

    def lost(self, after_s: float) -> int:
        """How many of them the broker no longer has either: so many, at least, have gone."""
        held = sum(self.depths.values()) + self.unacked + self.letters
        return max(0, self.overdue(after_s) - held)


def read(client: redis.Redis, prefix: str, queues: Iterable[str] = ()) -> Snapshot:
    """Ask the broker, in two round trips; about these queues and all that workers and producers have named.

    Raises redis.RedisError.
    """
    ask: Any = client.pipeline(transaction=False)
    ask.time().hgetall(prefix + COUNTS).hgetall(prefix + COHORTS).hgetall(prefix + SEEN)
    ask.hlen(prefix + UNACKED).llen(prefix + dead_letters.LIST).hget(prefix + dead_letters.COUNTS, "all")
    (seconds, micros), raw_counts, raw_cohorts, raw_seen, unacked, letters, all_letters = ask.execute()
    now_s = seconds + micros / 1e6
    counts = {tuple(json.loads(name)): int(amount) for name, amount in raw_counts.items()}
    workers = dict(_seen(raw_seen, now_s))
    named = {str(key[1]) for key in counts if key[0] in {"issued", "ended", "wait", "lag"}}
    every = sorted({*queues, *named, *(queue for seen in workers.values() for queue in seen.queues)} - {""})
    for queue in every:
        for key in (queue, *(f"{queue}{SEPARATOR}{step}" for step in STEPS)):
            ask.llen(prefix + key)
    lengths: list[Any] = ask.execute(raise_on_error=False) if every else []
    return Snapshot(
        now_s,
        counts,
        _cohorts(raw_cohorts),
        workers,
        {queue: _depth(lengths[at * 4 : at * 4 + 4]) for at, queue in enumerate(every)},
        int(unacked),
        int(letters),
        int(all_letters or 0),
    )


def _depth(lengths: Sequence[Any]) -> int:
    # A queue's name may come from anywhere, and belong to a key that is no list.
    return sum(length for length in lengths if isinstance(length, int))


def _cohorts(raw: Mapping[str, str]) -> dict[int, tuple[int, int]]:
    issued: defaultdict[int, int] = defaultdict(int)
    ended: defaultdict[int, int] = defaultdict(int)
    for name, amount in raw.items():
        slot, kind = json.loads(name)
        (issued if kind == "issued" else ended)[slot] += int(amount)
    return {slot: (issued[slot], ended[slot]) for slot in {*issued, *ended}}


def _seen(raw: Mapping[str, str], now_s: float) -> Iterator[tuple[str, Seen]]:
    for who, text in raw.items():
        at, _, queues = text.partition(" ")
        if (silent_s := max(0.0, now_s - int(at))) < KEPT_S:
            yield who, Seen(silent_s, tuple(json.loads(queues)))


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdicts of one suite."""

    written_s: float
    """When it was last written, in seconds since 1970."""
    findings: tuple[Mapping[str, Any], ...] = ()
    """As `sidestep report --json` spells them."""


class Newest:
    """The verdicts of the newest suite or findings in a folder; a suite is judged by another process when it is new.

    Its memory goes with it, and a scrape never waits for it: until it has ended, the verdicts are those of before.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._judged: Judged | None = None
        self._known: tuple[Path, float] | None = None
        self._thread: threading.Thread | None = None

    def __call__(self) -> Judged | None:
        """What is known now; looks for a newer suite."""
        if (self._thread is None or not self._thread.is_alive()) and (found := newest(self._runs)) != self._known:
            self._known = found
            self._thread = threading.Thread(target=self._judge, args=(found,), daemon=True)
            self._thread.start()
        return self._judged

    def wait(self) -> None:
        """Until what is under way is judged."""
        if self._thread:
            self._thread.join()

    def _judge(self, found: tuple[Path, float] | None) -> None:
        if found is None:
            self._judged = None
            return
        suite, written_s = found
        if suite.name == FINDINGS:
            try:
                self._judged = Judged(written_s, _findings(suite.read_bytes()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                _say(f"no verdicts: {suite} holds nothing that `sidestep report --json` wrote ({type(error).__name__})")
            return
        # The console script, since it alone knows every experiment and its claims.
        command = [sys.executable, "-m", "experiments", "report", str(suite), "--json"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=JUDGING_S, check=False)
            self._judged = Judged(written_s, _findings(done.stdout))
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
            _say(f"no verdicts: {suite} cannot be judged ({type(error).__name__}); see `sidestep report {suite}`")


def _findings(written: bytes) -> tuple[Mapping[str, Any], ...]:
    """Those that `sidestep report --json` wrote. Raises ValueError, KeyError or TypeError where there are none."""
    found = json.loads(written)["findings"]
    for each in found:
        if each["verdict"] not in VERDICTS or not isinstance(each["claim"], str):
            raise ValueError(f"no finding: {each}")
        for bound in ("value", "low", "high") if each["estimate"] else ():
            float(each["estimate"].get(bound) or 0)
    return tuple(found)


def newest(runs: Path) -> tuple[Path, float] | None:
    """The suite that was written last, in this folder or in those inside it, or newer findings; and when."""
    found = []
    for pattern in (*SUITES, FINDINGS, f"*/{FINDINGS}"):
        for path in runs.glob(pattern):
            try:
                found.append((path.stat().st_mtime, path))
            except OSError:
                continue  # removed meanwhile
    if not found:
        return None
    written_s, path = max(found)
    return path, written_s


# --- as Prometheus wants it ------------------------------------------------------------------------------------------

BOUNDS = (*map(repr, BUCKETS_S), "+Inf")


def families(snapshot: Snapshot, *, lost_after_s: float = LOST_AFTER_S) -> Iterator[Metric]:
    """Every metric of the broker's. Pure: the same snapshot, the same text."""
    counts = snapshot.counts
    yield _histogram(
        "sidestep_time_in_queue_seconds",
        "From when a job was sent to when it starts: waiting inside a worker counts, the time up to its ETA does not.",
        ("queue", "task"),
        counts,
        "wait",
    )
    yield _counter("sidestep_jobs_issued", "Jobs sent to the broker.", ("queue", "task"), counts, "issued")
    yield _counter(
        "sidestep_jobs_ended",
        "Jobs that ended, by outcome: done, failed or revoked.",
        ("queue", "task", "outcome"),
        counts,
        "ended",
    )
    yield _counter(
        "sidestep_jobs_unstamped",
        "Jobs that started without a word of when they were sent: none of the other metrics of their wait has them.",
        ("queue", "task"),
        counts,
        "unstamped",
    )
    yield _counter(
        "sidestep_jobs_early",
        "Jobs that started before they were sent: the clocks differ by more than they waited. Counted as no wait.",
        ("queue", "task"),
        counts,
        "early",
    )
    yield _histogram(
        "sidestep_producer_lag_seconds",
        "How long after it was due a producer sent a job.",
        ("queue",),
        counts,
        "lag",
    )
    yield _gauge(
        "sidestep_jobs_overdue",
        f"Jobs sent in the last hour and more than {lost_after_s:g} s ago that have not ended.",
        (),
        {(): snapshot.overdue(lost_after_s)},
    )
    yield _gauge(
        "sidestep_jobs_lost",
        "Overdue jobs that the broker does not hold either, neither waiting, nor unacknowledged, nor as dead letters.",
        (),
        {(): snapshot.lost(lost_after_s)},
    )
    depths: dict[tuple[str, ...], float] = {(queue,): depth for queue, depth in snapshot.depths.items()}
    yield _gauge("sidestep_queue_depth_jobs", "Jobs that wait in the broker.", ("queue",), depths)
    yield _gauge(
        "sidestep_unacked_jobs",
        "Jobs that workers have fetched and not acknowledged, of all queues together.",
        (),
        {(): snapshot.unacked},
    )
    served: dict[tuple[str, ...], float] = {(queue,): 0 for queue in snapshot.depths}
    for seen in snapshot.workers.values():
        if seen.silent_s <= ALIVE_S:
            for queue in seen.queues:
                served[(queue,)] = served.get((queue,), 0) + 1
    yield _gauge(
        "sidestep_queue_workers",
        f"Workers that serve the queue and gave a sign of life in the last {ALIVE_S:g} s.",
        ("queue",),
        served,
    )
    yield _gauge(
        "sidestep_worker_silent_seconds",
        "Since the worker's last sign of life. One that ended as it should is not listed.",
        ("worker",),
        {(who,): seen.silent_s for who, seen in snapshot.workers.items()},
    )
    letters = CounterMetricFamily("sidestep_dead_letters", "Messages that no worker could read.")
    letters.add_metric((), snapshot.all_letters)
    yield letters


def verdicts(judged: Judged | None) -> Iterator[Metric]:
    """The metrics of the newest suite; without one they are there and empty."""
    written = GaugeMetricFamily("sidestep_suite_written_timestamp_seconds", "When the newest suite was last written.")
    states = GaugeMetricFamily(
        "sidestep_claim_verdict",
        "1 for the verdict on each claim of the newest suite, 0 for the other verdicts.",
        labels=("claim", "verdict"),
    )
    estimates = GaugeMetricFamily(
        "sidestep_claim_estimate",
        "The estimate behind each verdict and the bounds of its interval, in the claim's own unit.",
        labels=("claim", "bound"),
    )
    if judged:
        written.add_metric((), judged.written_s)
        for finding in judged.findings:
            for verdict in VERDICTS:
                states.add_metric((finding["claim"], verdict), finding["verdict"] == verdict)
            for bound in ("value", "low", "high"):
                if (value := (finding["estimate"] or {}).get(bound)) is not None:
                    estimates.add_metric((finding["claim"], bound), value)
    yield from (written, states, estimates)


Counts = Mapping[tuple[str | int, ...], int]


def _series(counts: Counts, kind: str) -> Iterator[tuple[tuple[str, ...], int]]:
    return ((tuple(map(str, key[1:])), n) for key, n in sorted(counts.items(), key=repr) if key[0] == kind)


def _counter(name: str, says: str, labels: Sequence[str], counts: Counts, kind: str) -> Metric:
    made = CounterMetricFamily(name, says, labels=labels)
    for values, amount in _series(counts, kind):
        made.add_metric(values, amount)
    return made


def _gauge(name: str, says: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    made = GaugeMetricFamily(name, says, labels=labels)
    for labelled, value in sorted(values.items()):
        made.add_metric(labelled, value)
    return made


def _histogram(name: str, says: str, labels: Sequence[str], counts: Counts, kind: str) -> Metric:
    made = HistogramMetricFamily(name, says, labels=labels)
    sums = dict(_series(counts, f"{kind}_us"))
    found: defaultdict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(BOUNDS))
    for labelled, amount in _series(counts, kind):
        found[labelled[:-1]][min(int(labelled[-1]), len(BOUNDS) - 1)] += amount
    for values, amounts in sorted(found.items()):
        up_to, so_far = [], 0
        for bound, amount in zip(BOUNDS, amounts, strict=True):
            so_far += amount
            up_to.append((bound, float(so_far)))
        made.add_metric(values, up_to, sums.get(values, 0) / 1e6)
    return made


class Everything(Collector):
    """What one scrape gets. While the broker is away that is `sidestep_up 0` and the verdicts."""

    def __init__(
        self, client: redis.Redis, settings: Settings, queues: Sequence[str], lost_after_s: float, runs: Path | None
    ) -> None:
        self._client, self._settings, self._queues, self._lost_after_s = client, settings, queues, lost_after_s
        self._newest = Newest(runs) if runs else None
        self._turn = threading.Lock()
        self._trouble = ""

    def collect(self) -> Iterator[Metric]:
        """Ask the broker; one scrape at a time."""
        with self._turn:
            snapshot = self._read()
            judged = self._newest() if self._newest else None
        yield _gauge("sidestep_up", "Whether the broker answered.", (), {(): snapshot is not None})
        if snapshot is not None:
            yield from families(snapshot, lost_after_s=self._lost_after_s)
        yield from verdicts(judged)

    def _read(self) -> Snapshot | None:
        try:
            snapshot = read(self._client, self._settings.key_prefix, self._queues)
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            # Without the credentials.
            where = urlsplit(self._settings.broker).netloc.rpartition("@")[2]
            self._tell(f"the broker at {where} cannot be read ({reason}); is it up?")
            return None
        self._tell("")
        return snapshot

    def _tell(self, trouble: str) -> None:
        if trouble and not self._trouble:
            _say(trouble)
        if self._trouble and not trouble:
            _say("the broker answers again")
        self._trouble = trouble


def _say(words: str) -> None:
    print(line(words, level="warning") if _as_json() else f"sidestep: {words}", file=sys.stderr, flush=True)


def _as_json() -> bool:
    try:
        return wants_json()
    except SettingsError:  # main() tells it
        return False


# --- the command -----------------------------------------------------------------------------------------------------


class Address(click.ParamType["tuple[str, int]"]):
    """`127.0.0.1:9808`; port 0 takes a free one."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """A host and a port."""
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is no address; write host:port, such as 127.0.0.1:9808", param, ctx)
        return host.strip("[]"), int(port)


class Bound(click.ParamType[float]):
    """`300s` or `5m`, below the hour for which jobs are followed."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|)", str(value))
        seconds = float(match[1]) * (60 if match[2] == "m" else 1) if match else 0.0
        if not 0 < seconds < KEPT_S:
            self.fail(f"{value!r} is no time between 0 and 60m; write 30s or 5m", param, ctx)
        return seconds


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--broker", help="URL of the broker; better in SIDESTEP_BROKER, for arguments are seen by everybody.")
@click.option("--listen", type=Address(), default="127.0.0.1:9808", show_default=True, help="Where Prometheus asks.")
@click.option("--prefix", help="Of the app's keys.")
@click.option("--queue", "queues", multiple=True, help="Show this queue even while nobody has named it.")
@click.option(
    "--lost-after",
    "lost_after_s",
    type=Bound(),
    default="5m",
    show_default=True,
    help="When a job that has not ended is overdue: longer than your longest job and wait.",
)
@click.option(
    "--runs", type=click.Path(path_type=Path), help="Folder of suites, or findings; shows the newest verdicts."
)
def cli(
    broker: str | None,
    listen: tuple[str, int],
    prefix: str | None,
    queues: tuple[str, ...],
    lost_after_s: float,
    runs: Path | None,
) -> None:
    """Show Prometheus what workers and producers counted, what the broker holds, and the newest verdicts."""
    settings = from_env()
    wants_json()  # said now if it is misspelt
    settings = replace(settings, broker=broker or settings.broker, key_prefix=prefix or settings.key_prefix)
    if not settings.on_redis:
        raise click.UsageError("the counts are kept by a Redis; name its URL with --broker")
    if runs is not None and not runs.is_dir():
        raise click.UsageError(f"there is no folder {runs}; name the one that holds your runs")
    client = open_client(settings, decode_responses=True, encoding_errors="replace")
    registry = CollectorRegistry()
    everything = Everything(client, settings, queues, lost_after_s, runs)
    registry.register(everything)
    list(everything.collect())  # what is wrong is said now, not when somebody looks
    host, port = listen
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise click.UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --listen"
        ) from None
    # Not in this thread, which is the one that waits for the server to end.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    url = f"http://{host}:{server.server_port}/metrics"
    print(line(url) if wants_json() else url, flush=True)
    thread.join()
    server.server_close()


def main() -> NoReturn:
    """Run the command and exit; no traceback leaves it."""
    code = 0
    try:
        cli.main(standalone_mode=False, prog_name="exporter", auto_envvar_prefix="SIDESTEP_EXPORTER")
    except (click.exceptions.Abort, KeyboardInterrupt):
        pass  # Ctrl-C is how it ends
    except click.ClickException as error:
        _say(" ".join(error.format_message().split()))
        code = COULD_NOT
    except SettingsError as error:
        _say(str(error))
        code = COULD_NOT
    sys.exit(code)


if __name__ == "__main__":
    main()
