"""The Celery app through which a load test sends: Sidestep's own, or one that knows nothing but the broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from tasks import app as own
from tasks.settings import Settings

BROKER_TIMEOUT_S = 10.0
"""How long a producer waits for one answer: a broker that hangs must not hang the run."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where jobs go."""

    url: str = field(repr=False)
    """May hold a password."""
    key_prefix: str = ""
    is_own: bool = True
    """Sidestep's workers serve it; else those of somebody else, whose app we do not know."""
    ignore_result: bool = True


def make_app(address: Address) -> Any:
    """The app."""
    if address.is_own:
        settings = Settings(broker=address.url, key_prefix=address.key_prefix)
        return own.make_app(settings, socket_timeout_s=BROKER_TIMEOUT_S)
    app = Celery("sidestep-load", broker=address.url, set_as_current=False)
    transport: dict[str, Any] = {"socket_timeout": BROKER_TIMEOUT_S, "socket_connect_timeout": BROKER_TIMEOUT_S}
    if address.key_prefix:
        transport["global_keyprefix"] = address.key_prefix
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=address.ignore_result,
        broker_transport_options=transport,
        broker_connection_retry_on_startup=True,
        # A queue of somebody else's is as Celery makes it unless told otherwise: direct, of the queue's name.
        task_create_missing_queues=True,
    )
    return app
