"""What a worker or a producer must be told, read from the environment."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks import knobs as rows
from tasks.codecs import CODECS
from tasks.knobs import KNOBS, Knob, turned

ENV_PREFIX = "SIDESTEP_"

REDIS, AMQP = ("redis", "rediss"), ("amqp", "amqps")
"""Schemes of the URLs of brokers."""

TRANSPORTS: dict[str, str | None] = {"stock": None, "sidestep": "sidestep_transport:Transport"}
"""What takes messages from a Redis, as `broker_transport` names it; None leaves it to the preset, which is kombu's."""

PRESETS: dict[str, dict[str, Any]] = {name: rows.configuration(turned(name)) for name in rows.PRESETS}
"""What each preset of `tasks.knobs` sets in an app; what has no setting is in `tasks.knobs.options`."""


class SettingsError(ValueError):
    """A setting cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One worker's or producer's settings. Each field is also an environment variable, such as SIDESTEP_BROKER."""

    broker: str = field(default="redis://127.0.0.1:6379/0", repr=False)  # may hold a password
    """URL of the broker."""
    key_prefix: str = "sidestep:"
    """Put before every key in Redis, so that runs and strangers stay apart: a queue of somebody else is never eaten.
    A RabbitMQ has virtual hosts for that: name one of your own in the URL."""
    queue: str = "jobs"
    preset: str = "default"
    """A name in `tasks.knobs.PRESETS`, and in PRESETS."""
    knobs: str = ""
    """Names in `tasks.knobs.KNOBS` with commas between them, to be turned besides those of the preset."""
    transport: str = "stock"
    """A name in TRANSPORTS."""
    prefetch: int | None = None
    """Prefetch multiplier: jobs fetched ahead, per slot. None leaves it to the preset."""
    acks_late: bool | None = None
    switch_interval_s: float | None = None
    """`sys.setswitchinterval` of the worker. None leaves Python's own, 5 ms."""
    tape_dir: str | None = None
    """Where workers leave their marks; None means no marks are made."""
    codec: str = "json"
    """How arguments and results are written; workers accept it beside JSON. Pickles only if it is named here."""
    results: bool | None = None
    """Whether results are kept in the broker; None is an app without a result backend."""
    steps: bool = False
    """Mark every step of a job's way through the worker; needs `tape_dir`."""
    beats: bool = False
    """Mark when the worker sends its heartbeats; needs `tape_dir`."""
    dead_letters: bool = True
    """Keep messages that cannot be read, see `tasks.dead_letters`. Off, a worker is as Celery made it."""
    metrics: bool = False
    """Count jobs and their time in queue for `lab.exporter`, see `tasks.metrics`; off, a worker says nothing of it."""
    ready_fd: int | None = None
    """An inherited file descriptor to write one line to when the worker is ready."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SettingsError(f"preset {self.preset!r} is unknown; choose one of: {', '.join(PRESETS)}")
        if unknown := [name for name in _names(self.knobs) if name not in KNOBS]:
            raise SettingsError(f"knob {unknown[0]!r} is unknown; choose of: {', '.join(KNOBS)}")
        if self.codec not in CODECS:
            raise SettingsError(f"codec {self.codec!r} is unknown; choose one of: {', '.join(CODECS)}")
        if why := CODECS[self.codec].missing:
            raise SettingsError(f"codec {self.codec!r} cannot be used here: {why}")
        try:
            scheme = urlsplit(self.broker).scheme
            _ = urlsplit(self.broker).port
        except ValueError:
            scheme = ""
        if scheme not in {*REDIS, *AMQP}:
            # The URL itself stays out of the message: it may hold a password.
            raise SettingsError(
                "the broker URL must look like redis://[:password@]host:port/db (or rediss://), "
                "or amqp://[user:password@]host:port/vhost (or amqps://)"
            )
        if self.results is not None and scheme in AMQP:
            raise SettingsError("results are kept in a Redis, and the broker is none; leave SIDESTEP_RESULTS out")
        if scheme in AMQP and (of_redis := [knob.name for knob in self.turned if knob.redis_only]):
            raise SettingsError(f"knob {of_redis[0]!r} is for Redis, and the broker is none; choose another preset")
        if why := _cannot_use(self.transport, scheme):
            raise SettingsError(f"transport {self.transport!r} {why}")
        if not self.key_prefix:
            raise SettingsError("key_prefix must not be empty: it keeps our queues apart from everybody else's")
        if self.prefetch is not None and self.prefetch < 0:
            raise SettingsError(f"prefetch must be 0 (no limit) or more, not {self.prefetch}")
        if self.switch_interval_s is not None and not 0 < self.switch_interval_s <= 1:
            raise SettingsError(f"switch_interval_s must be above 0 and at most 1 second, not {self.switch_interval_s}")

    @property
    def turned(self) -> tuple[Knob, ...]:
        """Every knob that the preset turns, and those named beside it."""
        return turned(self.preset, _names(self.knobs))

    @property
    def worker_options(self) -> tuple[str, ...]:
        """What `celery worker` must be told on its command line for what is turned and has no setting."""
        return rows.options(self.turned)

    @property
    def on_redis(self) -> bool:
        """Whether the broker is a Redis: templates, dead letters, metrics and results are for it alone."""
        return urlsplit(self.broker).scheme in REDIS

    def to_env(self) -> dict[str, str]:
        """The environment variables from which `from_env` makes these settings again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {ENV_PREFIX + name.upper(): _spell(value) for name, value in values.items() if value is not None}


def _cannot_use(transport: str, scheme: str) -> str | None:
    """What is wrong with this transport on such a broker."""
    if transport not in TRANSPORTS:
        return f"is unknown; choose one of: {', '.join(TRANSPORTS)}"
    if (module := TRANSPORTS[transport]) and scheme in AMQP:
        return "is for Redis, and the broker is none; leave it out"
    if module and not importlib.util.find_spec(module.partition(":")[0]):
        return "is not installed here; in a checkout: pip install ./transport"
    return None


def _names(knobs: str) -> list[str]:
    return [name for one in knobs.split(",") if (name := one.strip())]


def _spell(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return words[text.lower()]


_READERS: dict[str, tuple[Any, str]] = {
    "prefetch": (int, "a whole number"),
    "acks_late": (_flag, "1 or 0"),
    "switch_interval_s": (float, "a number of seconds"),
    "results": (_flag, "1 or 0"),
    "steps": (_flag, "1 or 0"),
    "beats": (_flag, "1 or 0"),
    "dead_letters": (_flag, "1 or 0"),
    "metrics": (_flag, "1 or 0"),
    "ready_fd": (int, "a file descriptor"),
}


BROKER_FILE = ENV_PREFIX + "BROKER_FILE"
"""Names a file that holds the broker's URL: a variable is seen by whoever may look at the process or its container."""


def broker_url(environ: Mapping[str, str] | None = None) -> str:
    """The broker of SIDESTEP_BROKER, else the one in the file that SIDESTEP_BROKER_FILE names, else the default.

    Raises SettingsError for a file that cannot be read or holds nothing.
    """
    environ = os.environ if environ is None else environ
    if url := environ.get(ENV_PREFIX + "BROKER", ""):
        return url
    if not (name := environ.get(BROKER_FILE, "")):
        return Settings().broker
    try:
        url = Path(name).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"{BROKER_FILE} names {name!r}, which cannot be read: {why}") from None
    if not url:
        raise SettingsError(f"{BROKER_FILE} names {name!r}, which is empty; write the broker's URL there")
    return url


def from_env(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from SIDESTEP_* variables; what is not set keeps its default.

    Raises SettingsError naming the variable that cannot be read.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {"broker": broker_url(environ)}
    for known in fields(Settings):
        name = ENV_PREFIX + known.name.upper()
        if not (text := environ.get(name, "")):
            continue
        read, meant = _READERS.get(known.name, (str, "text"))
        try:
            values[known.name] = read(text)
        except (ValueError, KeyError):
            raise SettingsError(f"environment variable {name} must be {meant}, not {text!r}") from None
    return Settings(**values)
