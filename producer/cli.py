"""The `producer` command: load from the command line, for any worker of the app."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import os
import re
import signal
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import redis
from kombu import exceptions as kombu
from kombu.exceptions import EncodeError, KombuError

from producer.mix import Arrival, Feed, MixedLoad, constant, loads_in, poisson
from producer.pacers import Burst, Constant, Pacer, PacerError, Poisson
from producer.payloads import Args, Calibrated, EachJob, Payload, fill, is_same_for_all
from producer.publish import NotTaken, Parcel, Sender, Sent, publish
from producer.template import ids
from tasks.calibrate import units_per_ms
from tasks.codecs import CODECS, COMPRESSIONS
from tasks.jobs import JOBS
from tasks.logs import line, wants_json
from tasks.metrics import Meter, publisher
from tasks.settings import Settings, SettingsError, broker_url, from_env
from tasks.shapes import SHAPES

COULD_NOT, INTERRUPTED = 2, 130
_UNITS_S = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """`500ms`, `10s`, `2m`, a plain number of seconds, or `forever`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        if value == "forever":
            return math.inf
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|)", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a duration; write 500ms, 10s, 2m or forever", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


class Argument(click.ParamType["tuple[str, Any]"]):
    """`name=value`, the value as JSON or else as text; `{seq}` stands for the job's number."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """A name and a value."""
        name, equals, text = str(value).partition("=")
        if not equals or not name.isidentifier():
            self.fail(f"{value!r} is not an argument; write name=value", param, ctx)
        if text == "{seq}":
            return name, EachJob()
        try:
            return name, json.loads(text)
        except json.JSONDecodeError:
            return name, text


class PayloadOf(click.ParamType[Payload]):
    """`records:10kB`: a shape and a size, in B, kB or MB."""

    name = "shape:size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Payload:
        """Made when the jobs are."""
        shape, _, size = str(value).partition(":")
        if shape not in SHAPES:
            self.fail(f"{_unknown(shape, SHAPES, 'shape')}; write a shape and a size, such as records:10kB", param, ctx)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|)", size.strip())
        if not match or not 1 <= (size_bytes := round(float(match[1]) * _UNITS_BYTES[match[2]])) <= MOST_BYTES:
            self.fail(f"{size!r} is not a size from 1 B to {MOST_BYTES / 1e6:g} MB; write 500, 10kB or 1MB", param, ctx)
        return Payload(shape, size_bytes)


MOST_BYTES = 100_000_000
_UNITS_BYTES = {"B": 1.0, "": 1.0, "kB": 1e3, "MB": 1e6}


def _unknown(word: str, words: Iterable[str], what: str) -> str:
    words = list(words)
    close = difflib.get_close_matches(word, words, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no {what} {word!r}{hint} There are: {', '.join(words)}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--job", "job_name", envvar="PRODUCER_JOB", default="spin", show_default=True, help=f"One of: {', '.join(JOBS)}."
)
@click.option("--rate", type=float, default=10.0, show_default=True, help="Jobs a second.")
@click.option(
    "--for",
    "duration_s",
    envvar="PRODUCER_FOR",
    type=Duration(),
    default="10s",
    show_default=True,
    help="How long, such as 10s, 2m or forever.",
)
@click.option(
    "--mix",
    "mix_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Send the loads of this TOML file side by side, each with its own job, queue and rate.",
)
@click.option("--beat", type=click.Path(dir_okay=False, path_type=Path), help="Touch this file while jobs are sent.")
@click.option("--shape", type=click.Choice(["constant", "poisson", "burst"]), default="constant", show_default=True)
@click.option(
    "--ms",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="CPU time of a job that scales.",
)
@click.option(
    "--arg",
    "extra",
    envvar="PRODUCER_ARG",
    type=Argument(),
    multiple=True,
    help="An argument of the job, such as io_ms=50.",
)
@click.option("--payload", type=PayloadOf(), help="What the job's argument `payload` is, such as records:10kB.")
@click.option("--codec", default="json", show_default=True, help=f"One of: {', '.join(CODECS)}.")
@click.option("--compression", help=f"One of: {', '.join(COMPRESSIONS)}.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--queue", default="jobs", show_default=True)
@click.option(
    "--broker",
    envvar="SIDESTEP_BROKER",
    help="URL of the broker [default: the one in the file that SIDESTEP_BROKER_FILE names, or redis://127.0.0.1:6379/0].",
)
@click.option("--json", "want_json", envvar="PRODUCER_JSON", is_flag=True, help="One JSON object on stdout.")
def cli(
    job_name: str,
    rate: float,
    duration_s: float,
    mix_file: Path | None,
    beat: Path | None,
    shape: str,
    ms: float,
    extra: tuple[tuple[str, Any], ...],
    payload: Payload | None,
    codec: str,
    compression: str | None,
    seed: int,
    queue: str,
    broker: str | None,
    want_json: bool,
) -> None:
    """Send jobs on time, wait for none of them, and say how late each was sent."""
    if job_name not in JOBS:
        raise click.UsageError(_unknown(job_name, JOBS, "job"))
    _refuse_unknown(codec, compression)
    broker = broker_url() if broker is None else broker
    if mix_file:
        own = Settings(broker=broker, codec=codec)
        mixed = _read(mix_file)
        arrivals = poisson([load.rate_hz for load in mixed], duration_s, seed)
        _send_on(own, mixed, arrivals, compression=compression, beat=beat, want_json=want_json)
        return
    job = JOBS[job_name]
    if not (rate > 0 and math.isfinite(rate)):
        raise click.UsageError(f"--rate must be a number above 0, not {rate}")
    endless = math.isinf(duration_s)
    if endless and shape == "burst":
        raise click.UsageError("a burst is over at once; choose --shape constant or poisson with --for forever")
    args: Args = {**({job.scales_with: Calibrated(ms)} if job.scales_with else {}), **dict(extra)}
    if payload:
        args = {**args, "payload": payload}
    if endless:
        alone = [MixedLoad(job_name, queue, rate, ms, args)]
        arrivals = constant(rate) if shape == "constant" else poisson([rate], duration_s, seed)
        own = Settings(broker=broker, codec=codec)
        _send_on(own, alone, arrivals, compression=compression, beat=beat, want_json=want_json)
        return
    pacer = _pacer(shape, rate, duration_s, seed)
    units = {Calibrated(ms): max(1, round(ms * units_per_ms(job_name)))} if job.scales_with else {}
    _refuse_wrong(job_name, args, units)
    settings = Settings(broker=broker, queue=queue, codec=codec)
    try:
        sent, path = _send(settings, job.task_name, args, units, pacer, compression)
    except EncodeError as error:
        raise click.UsageError(
            f"codec {codec!r} cannot carry these arguments ({error}); `sidestep bench codecs` shows which can"
        ) from None
    if not sent:
        raise click.UsageError(f"this load makes no job in {duration_s:g} s; raise --rate or --for")
    lag = _lag_ms([(s.sent_ns - s.due_ns) / 1e6 for s in sent])
    if want_json:
        print(json.dumps({"schema": 1, "job": job_name, "sent": len(sent), "path": path, "lag_ms": lag}))
    else:
        print(f"sent {len(sent)} {job_name!r} jobs; lag p50 {lag['p50']} ms, p99 {lag['p99']} ms, max {lag['max']} ms")
        if path != "template":
            print(f"sent by kombu's {path}")


def _refuse_wrong(job_name: str, args: Args, units: dict[Calibrated, int]) -> None:
    job = JOBS[job_name]
    try:
        job_args = fill(args, seq=0, units=units, url="")
        if job.measures:
            inspect.signature(job.run).bind(**job_args)  # nobody can say what it will measure
        else:
            job.expect(**job_args)
    except (TypeError, ValueError, KeyError) as error:
        raise click.UsageError(
            f"job {job_name!r} does not take these arguments ({error}); set them with --arg name=value"
        ) from None


def _refuse_unknown(codec: str, compression: str | None) -> None:
    if codec not in CODECS:
        raise click.UsageError(_unknown(codec, CODECS, "codec"))
    if compression is not None and compression not in COMPRESSIONS:
        raise click.UsageError(_unknown(compression, COMPRESSIONS, "compression"))
    if why := CODECS[codec].missing or (compression and COMPRESSIONS[compression].missing):
        raise click.UsageError(why)


def _pacer(shape: str, rate: float, duration_s: float, seed: int) -> Pacer:
    if shape == "burst":
        return Burst(max(1, round(rate * duration_s)))
    return Poisson(rate, duration_s, seed) if shape == "poisson" else Constant(rate, duration_s)


_QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _lag_ms(lags_ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(lags_ms)
    return {name: round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 3) for name, q in _QUANTILES.items()}


def _read(mix_file: Path) -> list[MixedLoad]:
    try:
        mixed = loads_in(tomllib.loads(mix_file.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{mix_file} is no TOML ({error})") from None
    for load in mixed:
        if load.job not in JOBS:
            raise click.UsageError(_unknown(load.job, JOBS, "job"))
    return mixed


TELL_S = 60.0
"""How often a load without end says how it goes."""
PREVIEW = 100
"""Longest text of a job's arguments in the messages of such a load: it is for people who look at Flower."""


def _send_on(
    settings: Settings,
    mixed: Sequence[MixedLoad],
    arrivals: Iterator[Arrival],
    *,
    compression: str | None,
    beat: Path | None,
    want_json: bool,
) -> None:
    """Send all arrivals, say once a minute how it goes, and at the end what is left to say."""
    from tasks.app import make_app  # noqa: PLC0415  a quarter of a second that --help need not wait for

    all_args: list[Args] = []
    units: dict[Calibrated, int] = {}
    for load in mixed:
        scales = JOBS[load.job].scales_with
        work = Calibrated(load.ms, load.job)
        if scales and work not in units:
            units[work] = max(1, round(load.ms * units_per_ms(load.job)))
        args: Args = {**({scales: work} if scales else {}), **load.args}
        _refuse_wrong(load.job, args, units)
        all_args.append(args)
    fresh = ids()

    def made(which: int, number: int) -> Parcel:
        load = mixed[which]
        filled = fill(all_args[which], seq=number, units=units, url="")
        return Parcel(next(fresh), JOBS[load.job].task_name, load.queue, filled)

    app = make_app(settings)
    app.amqp.argsrepr_maxsize = app.amqp.kwargsrepr_maxsize = PREVIEW
    # A container's main process ignores SIGTERM unless it asks for it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app.connection_for_write().ensure_connection(max_retries=1, timeout=3).release()
    feed, meter = Feed(arrivals, made), _meter(settings)
    queues: dict[int, str] = {}

    def parcel(seq: int) -> Parcel:
        made_now: Parcel = feed.parcel(seq)
        queues[seq] = made_now.queue
        return made_now

    sender = Sender(app, parcel, compression=compression, meter=meter)
    lags_ms: list[float] = []
    told_s = time.monotonic()
    try:
        sender.prepare(*dict.fromkeys(load.queue for load in mixed))
        for sent in publish(feed, sender):
            lags_ms.append((sent.sent_ns - sent.due_ns) / 1e6)
            queue = queues.pop(sent.seq)
            if meter:
                meter.late(queue, lags_ms[-1] / 1e3)
            if beat:
                beat.touch()
            if time.monotonic() - told_s >= TELL_S:
                _tell(lags_ms, sender.path, want_json)
                lags_ms.clear()
                told_s = time.monotonic()
    finally:
        if lags_ms:
            _tell(lags_ms, sender.path, want_json)
        sender.close()
        if meter:
            meter.close()
        app.close()


def _meter(settings: Settings) -> Meter | None:
    """What counts for `lab.exporter`, if SIDESTEP_METRICS asks for it."""
    return publisher(settings) if from_env().metrics else None


def _tell(lags_ms: Sequence[float], path: str, want_json: bool) -> None:
    lag = _lag_ms(lags_ms)
    if want_json:
        print(json.dumps({"schema": 1, "sent": len(lags_ms), "path": path, "lag_ms": lag}), flush=True)
        return
    text = f"sent {len(lags_ms)} jobs; lag p50 {lag['p50']} ms, p99 {lag['p99']} ms, max {lag['max']} ms"
    print(line(text, sent=len(lags_ms), path=path, lag_ms=lag) if wants_json() else text, flush=True)


def _send(
    settings: Settings,
    task_name: str,
    args: Args,
    units: dict[Calibrated, int],
    pacer: Pacer,
    compression: str | None,
) -> tuple[list[Sent], str]:
    from tasks.app import make_app  # noqa: PLC0415  a quarter of a second that --help need not wait for

    app = make_app(settings)
    # Fail at once where there is no broker, instead of trying for ever.
    app.connection_for_write().ensure_connection(max_retries=1, timeout=3).release()

    fresh, same = ids(), is_same_for_all(args)
    job_args = fill(args, seq=0, units=units, url="")

    def parcel(seq: int) -> Parcel:
        return Parcel(
            next(fresh), task_name, settings.queue, job_args if same else fill(args, seq=seq, units=units, url="")
        )

    meter = _meter(settings)
    sender = Sender(app, parcel, compression=compression, meter=meter)
    try:
        sender.prepare(settings.queue)
        all_sent = []
        for sent in publish(pacer, sender):
            all_sent.append(sent)
            if meter:
                meter.late(settings.queue, (sent.sent_ns - sent.due_ns) / 1e9)
        return all_sent, sender.path
    finally:
        sender.close()
        if meter:
            meter.close()
        app.close()


def _complain(text: str) -> None:
    try:
        as_json = wants_json()
    except SettingsError:
        as_json = False
    print(line(text, level="error") if as_json else f"producer: {text}", file=sys.stderr)


def main() -> NoReturn:
    """Run the command and exit; no traceback leaves it."""
    code = 0
    try:
        cli.main(standalone_mode=False, prog_name="producer", auto_envvar_prefix="PRODUCER")
    except (click.exceptions.Abort, KeyboardInterrupt):
        _complain("stopped")
        code = INTERRUPTED
    except click.ClickException as error:
        _complain(" ".join(error.format_message().split()))
        code = COULD_NOT
    except (SettingsError, PacerError) as error:
        _complain(str(error))
        code = COULD_NOT
    except NotTaken as error:
        _complain(str(error))
        code = COULD_NOT
    except kombu.ChannelError as error:
        _complain(f"the broker refuses it ({error}); does this user have the rights there?")
        code = COULD_NOT
    except (KombuError, redis.RedisError, OSError, kombu.ConnectionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _complain(f"the broker does not answer ({reason}); is it up?  docker compose up -d redis")
        code = COULD_NOT
    except Exception as error:
        if os.environ.get("SIDESTEP_DEBUG"):
            raise
        _complain(f"a fault in itself ({type(error).__name__}: {error}); SIDESTEP_DEBUG=1 shows where")
        code = COULD_NOT
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
