"""The one Celery app."""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery

from tasks import hooks, knobs
from tasks.codecs import accepted, register
from tasks.jobs import JOBS
from tasks.settings import TRANSPORTS, Settings, SettingsError, from_env

VISIBILITY_TIMEOUT_S = 30
"""With the transport of our own. kombu's default, an hour, is made for one that renews nothing."""


def make_app(settings: Settings, *, socket_timeout_s: float | None = None, mark: hooks.Mark | None = None) -> Celery:
    """An app with every job registered, that accepts JSON and the settings' codec.

    It has a result backend only if the settings ask for one: marks carry what results would.

    `socket_timeout_s` bounds the wait for one answer of a Redis; Celery's own default waits for ever. `mark` comes
    from `hooks.connect`, in a worker.
    """
    register(settings.codec)
    results = knobs.results(settings.turned) if settings.results is None else settings.results
    app = Celery("sidestep", broker=settings.broker, set_as_current=False)
    options: dict[str, Any] = {
        "task_default_queue": settings.queue,
        "task_serializer": settings.codec,
        "result_serializer": settings.codec,
        "accept_content": accepted(settings.codec),
        "task_ignore_result": not results,
        "broker_connection_retry_on_startup": True,
        "worker_hijack_root_logger": True,
        **knobs.configuration(settings.turned),
    }
    transport: dict[str, Any] = {}
    if settings.on_redis:  # of these options a RabbitMQ knows none
        transport = {**options.get("broker_transport_options", {}), "global_keyprefix": settings.key_prefix}
        if socket_timeout_s is not None:
            transport["socket_timeout"] = socket_timeout_s
    options["broker_transport_options"] = transport
    if ours := TRANSPORTS[settings.transport]:
        options["broker_transport"] = ours
        # It renews what its workers hold, so this bounds only how long a killed one's messages are away.
        transport.setdefault("visibility_timeout", VISIBILITY_TIMEOUT_S)
    if settings.prefetch is not None:
        options["worker_prefetch_multiplier"] = settings.prefetch
    if settings.acks_late is not None:
        options["task_acks_late"] = settings.acks_late
    if results is not None:
        options["result_backend"] = settings.broker
        options["result_backend_transport_options"] = {"global_keyprefix": settings.key_prefix}
        # Else each greenlet opens a connection of its own and leaves it open (celery/celery#7960).
        options["result_backend_thread_safe"] = True
    app.conf.update(options)
    for job in JOBS.values():
        app.task(name=job.task_name, bind=mark is not None)(mark(job) if mark else job.run)
    return app


def app_from_env() -> Celery:
    """The app of a worker process: settings from the environment, hooks connected."""
    try:
        settings = from_env()
    except SettingsError as error:
        # A worker started by hand must say one clear line, not a traceback from inside an import.
        print(f"sidestep: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    mark = hooks.connect(settings)
    if settings.metrics:
        from tasks import metrics  # noqa: PLC0415  for those who ask for them

        mark = metrics.connect(settings, mark)
    app = make_app(settings, mark=mark)
    if settings.dead_letters:
        from tasks import dead_letters  # noqa: PLC0415  it brings the worker's half of Celery

        dead_letters.connect(app)
    return app
