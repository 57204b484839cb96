"""Marks every step of a job's way through a worker: what it waits for between the broker and its first line.

Only in workers that were started for it: three of kombu's methods and the decoders are wrapped, which costs some
microseconds a job. Steps are a second record on the tape, beside the job's mark, and a third says when it was
acknowledged: that may be long after its end, and in another process.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import signals
from kombu import serialization
from kombu.transport import redis as transport
from kombu.transport.virtual import base as virtual

from tasks.timeline import ACKED, STEPS, Tape, now_ns

STEP = struct.Struct("<16sqq7IHH")
"""Job id, readable, fetched (ns of CLOCK_MONOTONIC); then ns after fetched: peeking, peeked, decoding, decoded,
finished, 0, 0; flags, 0."""

LONGEST_NS = 2**32 - 1
"""4.3 s; a longer step is cut off there, and the parts then do not add up to the whole, which a check finds."""

NO_MOMENTS = (0,) * 7
"""Of a record that says only when the job was acknowledged; that stands in the place of `fetched`."""

READABLE, FETCHED = "sidestep_readable_ns", "sidestep_fetched_ns"
PEEKING, PEEKED = "sidestep_peeking_ns", "sidestep_peeked_ns"


class Steps:
    """The steps of the jobs of this process and of the children it forks, written to its tape."""

    def __init__(self, tape: Tape, id_bytes: Callable[[str], bytes]) -> None:
        self._tape, self._id_bytes = tape, id_bytes
        # Of the message that is just now on its way from the socket to `task_received`: one at a time.
        self._readable_ns = self._fetched_ns = 0
        self._decodes = threading.local()  # green pools make it greenlet-local
        self._unacknowledged: dict[str, bytes] = {}
        """Delivery tag to job id."""

    def connect(self) -> None:
        """Wrap what a message passes through; once per process, before the worker's connection is made."""
        channel: Any = transport.Channel
        channel._brpop_read = self._before(channel._brpop_read, "_readable_ns")
        link: Any = virtual.Transport
        link._deliver = self._before(link._deliver, "_fetched_ns")
        qos: Any = transport.QoS
        qos.ack = self._acknowledging(qos.ack)
        registry: Any = serialization.registry
        for content_type, decode in tuple(registry._decoders.items()):
            registry._decoders[content_type] = self._decoding(decode)
        signals.task_received.connect(self._received, weak=False)
        signals.task_success.connect(self._finished, weak=False)

    def _before(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(method)
        def stamped(*args: Any, **kwargs: Any) -> Any:
            setattr(self, name, now_ns())
            return method(*args, **kwargs)

        return stamped

    def _decoding(self, decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        decodes = self._decodes

        @wraps(decode)
        def stamped(body: Any) -> Any:
            begun = now_ns()
            try:
                return decode(body)
            finally:
                decodes.last = (begun, now_ns())

        return stamped

    def _acknowledging(self, ack: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(ack)
        def stamped(qos: Any, delivery_tag: Any, *args: Any, **kwargs: Any) -> Any:
            result = ack(qos, delivery_tag, *args, **kwargs)
            # When it returns, the broker has answered.
            if job_id := self._unacknowledged.pop(delivery_tag, None):
                acked = now_ns()
                place = self._tape.begin(job_id, 0, acked)
                STEP.pack_into(*place, job_id, 0, acked, *NO_MOMENTS, STEPS | ACKED, 0)
            return result

        return stamped

    def _received(self, request: Any, **_: Any) -> None:
        self._unacknowledged[request.message.delivery_tag] = self._id_bytes(request.id)
        # The parent decodes the body once for itself, on the way to this signal; the slot does so again.
        peeking, peeked = getattr(self._decodes, "last", (0, 0))
        request.request_dict.update(
            {READABLE: self._readable_ns, FETCHED: self._fetched_ns, PEEKING: peeking, PEEKED: peeked}
        )

    def _finished(self, sender: Any, **_: Any) -> None:
        request = sender.request_stack.top
        readable, fetched = getattr(request, READABLE, 0) or 0, getattr(request, FETCHED, 0) or 0
        if not fetched:
            return  # came another way, such as a retry within the worker
        moments = (getattr(request, PEEKING), getattr(request, PEEKED), *self._decodes.last, now_ns())
        after = (min(max(moment - fetched, 0), LONGEST_NS) for moment in moments)
        job_id = self._id_bytes(request.id)
        place = self._tape.begin(job_id, readable, fetched)
        STEP.pack_into(*place, job_id, readable, fetched, *after, 0, 0, STEPS, 0)
