"""The `producer` command: load from the command line, for any worker of the app."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import click
import redis
from kombu.exceptions import EncodeError, KombuError, OperationalError

from producer.pacers import Burst, Constant, Pacer, PacerError, Poisson
from producer.payloads import Args, Calibrated, EachJob, Payload, fill, is_same_for_all
from producer.publish import NotTaken, Parcel, Sender, Sent, publish
from producer.template import ids
from tasks.calibrate import units_per_ms
from tasks.codecs import CODECS, COMPRESSIONS
from tasks.jobs import JOBS
from tasks.settings import Settings, SettingsError
from tasks.shapes import SHAPES

COULD_NOT, INTERRUPTED = 2, 130
_UNITS_S = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """`500ms`, `10s`, `2m` or a plain number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|)", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a duration; write 500ms, 10s or 2m", param, ctx)
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
    "--for", "duration_s", envvar="PRODUCER_FOR", type=Duration(), default="10s", show_default=True, help="How long."
)
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
@click.option("--broker", envvar="SIDESTEP_BROKER", default="redis://127.0.0.1:6379/0", help="URL of the broker.")
@click.option("--json", "want_json", envvar="PRODUCER_JSON", is_flag=True, help="One JSON object on stdout.")
def cli(
    job_name: str,
    rate: float,
    duration_s: float,
    shape: str,
    ms: float,
    extra: tuple[tuple[str, Any], ...],
    payload: Payload | None,
    codec: str,
    compression: str | None,
    seed: int,
    queue: str,
    broker: str,
    want_json: bool,
) -> None:
    """Send jobs on time, wait for none of them, and say how late each was sent."""
    if job_name not in JOBS:
        raise click.UsageError(_unknown(job_name, JOBS, "job"))
    _refuse_unknown(codec, compression)
    job = JOBS[job_name]
    if not (rate > 0 and math.isfinite(rate)):
        raise click.UsageError(f"--rate must be a number above 0, not {rate}")
    pacer = _pacer(shape, rate, duration_s, seed)
    args: Args = {**({job.scales_with: Calibrated(ms)} if job.scales_with else {}), **dict(extra)}
    if payload:
        args = {**args, "payload": payload}
    units = {Calibrated(ms): max(1, round(ms * units_per_ms(job_name)))} if job.scales_with else {}
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
    settings = Settings(broker=broker, queue=queue, codec=codec)
    try:
        sent, path = _send(settings, job.task_name, args, units, pacer, compression)
    except EncodeError as error:
        raise click.UsageError(
            f"codec {codec!r} cannot carry these arguments ({error}); `sidestep bench codecs` shows which can"
        ) from None
    if not sent:
        raise click.UsageError(f"this load makes no job in {duration_s:g} s; raise --rate or --for")
    lags_ms = sorted((s.sent_ns - s.due_ns) / 1e6 for s in sent)
    lag = {name: round(lags_ms[min(len(lags_ms) - 1, int(q * len(lags_ms)))], 3) for name, q in _QUANTILES.items()}
    if want_json:
        print(json.dumps({"schema": 1, "job": job_name, "sent": len(sent), "path": path, "lag_ms": lag}))
    else:
        print(f"sent {len(sent)} {job_name!r} jobs; lag p50 {lag['p50']} ms, p99 {lag['p99']} ms, max {lag['max']} ms")
        if path != "template":
            print(f"sent by kombu's {path}")


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

    sender = Sender(app, parcel, compression=compression)
    try:
        sender.prepare(settings.queue)
        return list(publish(pacer, sender)), sender.path
    finally:
        sender.close()
        app.close()


def main() -> NoReturn:
    """Run the command and exit; no traceback leaves it."""
    code = 0
    try:
        cli.main(standalone_mode=False, prog_name="producer", auto_envvar_prefix="PRODUCER")
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("producer: stopped", file=sys.stderr)
        code = INTERRUPTED
    except click.ClickException as error:
        print(f"producer: {' '.join(error.format_message().split())}", file=sys.stderr)
        code = COULD_NOT
    except (SettingsError, PacerError) as error:
        print(f"producer: {error}", file=sys.stderr)
        code = COULD_NOT
    except NotTaken as error:
        print(f"producer: {error}", file=sys.stderr)
        code = COULD_NOT
    except (OperationalError, KombuError, redis.RedisError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(
            f"producer: the broker does not answer ({reason}); is it up?  docker compose up -d redis", file=sys.stderr
        )
        code = COULD_NOT
    except Exception as error:
        if os.environ.get("SIDESTEP_DEBUG"):
            raise
        print(
            f"producer: a fault in itself ({type(error).__name__}: {error}); SIDESTEP_DEBUG=1 shows where",
            file=sys.stderr,
        )
        code = COULD_NOT
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
