"""Log lines for machines: one JSON object an event, where SIDESTEP_LOG=json asks for it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tasks.settings import ENV_PREFIX, SettingsError

VARIABLE = ENV_PREFIX + "LOG"
KINDS = ("text", "json")


def wants_json(environ: Mapping[str, str] | None = None) -> bool:
    """Whether SIDESTEP_LOG asks for JSON. Raises SettingsError when it asks for something else than KINDS."""
    kind = (os.environ if environ is None else environ).get(VARIABLE, "") or "text"
    if kind not in KINDS:
        raise SettingsError(f"{VARIABLE} must be text or json, not {kind!r}")
    return kind == "json"


def line(message: str, *, level: str = "info", at_s: float | None = None, **more: object) -> str:
    """One event as one line: `time` (UTC), `level`, `message`, then what else is known of it."""
    at = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    event = {"time": at.isoformat(timespec="milliseconds"), "level": level, "message": message, **more}
    # ASCII: no line separator of any alphabet can cut an event in two.
    return json.dumps(event, default=repr)


class JsonLines(logging.Formatter):
    """A record as `line`, with its logger; of Celery's own, also the job; of an exception, also its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        more: dict[str, object] = {"logger": record.name}
        about = getattr(record, "data", None)  # Celery hands it over beside its messages on jobs
        if isinstance(about, Mapping):
            told = {"task": about.get("name"), "job": about.get("id"), "runtime_s": about.get("runtime")}
            more.update({name: value for name, value in told.items() if value is not None})
        if record.exc_info:
            more["traceback"] = self.formatException(record.exc_info)
        return line(record.getMessage(), level=record.levelname.lower(), at_s=record.created, **more)


def to_json(level: int | str = logging.INFO) -> None:
    """Let everything that is logged in this process be told as JSON on stderr, warnings too, and in no other way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(True)


def connect() -> None:
    """Let this process's worker log as SIDESTEP_LOG says; as text it logs as Celery would. Raises SettingsError."""
    if not wants_json():
        return
    from celery import signals  # noqa: PLC0415  whoever only wants a line need not load it

    def setup(loglevel: int | str | None = None, **_: Any) -> None:
        to_json(loglevel or logging.INFO)

    # With a receiver of this signal Celery sets up no logging of its own.
    signals.setup_logging.connect(setup, weak=False)
