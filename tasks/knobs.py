"""What may be turned at a worker: single settings as rows, and presets made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that a worker can do in another way than Celery does unasked."""

    name: str
    says: str
    """What is turned, as Celery spells it."""
    risks: str
    """What is given up for it."""
    conf: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the app; those of the transport are put together with what else is set there."""
    options: tuple[str, ...] = ()
    """What `celery worker` is told on its command line: these have no setting."""
    results: bool | None = None
    """True keeps results in the broker, False has a backend that jobs ignore, None leaves it as it is."""
    redis_only: bool = False
    """It is about kombu's Redis transport, or keeps results there."""


KNOBS: dict[str, Knob] = {
    knob.name: knob
    for knob in (
        Knob(
            "one-client",
            "one Redis client a channel, where kombu makes one a command",
            "it leans on a method of kombu 5.7 that is not promised; guarantees stay as they are",
            {"broker_transport": "tasks.one_client:Transport"},
            redis_only=True,
        ),
        Knob(
            "prefetch-64",
            "worker_prefetch_multiplier = 64",
            "a worker holds 64 jobs a slot: others stand idle beside it, and a killed one's come back after the "
            "visibility timeout only",
            {"worker_prefetch_multiplier": 64},
        ),
        Knob(
            "prefetch-1",
            "worker_prefetch_multiplier = 1",
            "no job is ready in the worker when a slot gets free",
            {"worker_prefetch_multiplier": 1},
        ),
        Knob(
            "one-list",
            "priority_steps = [0]",
            "priorities; and a message that a producer with Celery's own steps sent with one is never fetched",
            {"broker_transport_options": {"priority_steps": [0]}},
            redis_only=True,
        ),
        Knob(
            "no-acks",
            "ack_emulation = False",
            "at most once: whatever a worker has fetched is lost when it is killed",
            {"broker_transport_options": {"ack_emulation": False}},
            redis_only=True,
        ),
        Knob(
            "no-talk",
            "--without-gossip --without-mingle --without-heartbeat",
            "Flower cannot tell a live worker from a dead one; a new worker does not hear what was revoked",
            options=("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        Knob(
            "no-remote",
            "worker_enable_remote_control = False",
            "ping, inspect, revoke and Flower's buttons",
            {"worker_enable_remote_control": False},
        ),
        Knob(
            "fair",
            "-O fair",
            "nothing: it is what Celery does unasked since version 4, under a name",
            options=("-O", "fair"),
        ),
        Knob(
            "late-acks",
            "task_acks_late = True",
            "a job that was under way in a killed worker, or takes longer than the visibility timeout, runs twice: it "
            "must bear that",
            {"task_acks_late": True},
        ),
        Knob(
            "requeue",
            "task_reject_on_worker_lost = True",
            "a job that kills its process comes back for ever",
            {"task_reject_on_worker_lost": True},
        ),
        Knob(
            "bounded-socket",
            "socket_timeout = 30, socket_keepalive = True",
            "nothing but an error where a command would else have waited for ever",
            {"broker_transport_options": {"socket_timeout": 30, "socket_keepalive": True}},
        ),
        Knob(
            "events",
            "-E",
            "time: each job tells when it was received, has started and has ended",
            options=("-E",),
        ),
        Knob(
            "results",
            "result_backend = the broker",
            "time and memory of the broker, for a day",
            results=True,
            redis_only=True,
        ),
        Knob(
            "results-ignored",
            "result_backend = the broker, task_ignore_result = True",
            "the results",
            results=False,
            redis_only=True,
        ),
        Knob(
            "log-jobs",
            "--loglevel INFO",
            "time: two lines for each job",
            options=("--loglevel", "INFO"),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Preset:
    """Knobs that are turned together, under a name."""

    name: str
    knobs: tuple[str, ...]
    """Names in KNOBS."""
    promises: str
    """What becomes of a job when its worker is killed."""


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # What a new project gets, but for results: Sidestep's marks replace them.
        Preset(
            "default",
            (),
            "a job that was under way is lost, what was only fetched comes back after the visibility timeout (an "
            "hour); the message that is just being fetched may be lost",
        ),
        # Nothing here may promise less than Celery's own defaults do. Each knob is here because it should be faster;
        # whether it was measured to be, `sidestep presets` says. A large prefetch was not.
        Preset("fast", ("one-client",), "the same as under default"),
        # A job is acknowledged when it has ended, and a dead child's job goes back to the queue.
        Preset(
            "lossless",
            ("late-acks", "requeue", "prefetch-1", "bounded-socket"),
            "it runs again, a dead child's at once and a dead worker's after the visibility timeout; only the message "
            "that is just being fetched may be lost, which no setting of kombu's can help",
        ),
        Preset(
            "at-most-once",
            ("one-client", "no-acks"),
            "all that it had fetched is lost, up to 4 jobs a slot and those under way",
        ),
    )
}


def turned(preset: str, knobs: Iterable[str] = ()) -> tuple[Knob, ...]:
    """The knobs of a preset and those named beside it, each once, in that order. Raises KeyError for another name."""
    return tuple(KNOBS[name] for name in dict.fromkeys((*PRESETS[preset].knobs, *knobs)))


def configuration(knobs: Sequence[Knob]) -> dict[str, Any]:
    """The settings of these knobs together; a later one wins where two set the same."""
    together: dict[str, Any] = {}
    for knob in knobs:
        for name, value in knob.conf.items():
            both = {**together[name], **value} if isinstance(value, Mapping) and name in together else value
            together[name] = dict(both) if isinstance(both, Mapping) else both
    return together


def options(knobs: Sequence[Knob]) -> tuple[str, ...]:
    """What `celery worker` is told for these knobs."""
    return tuple(option for knob in knobs for option in knob.options)


def results(knobs: Sequence[Knob]) -> bool | None:
    """What the last knob that says anything of results says of them."""
    return next((knob.results for knob in reversed(knobs) if knob.results is not None), None)
