"""For waiting, one process is enough: how many waits can one worker keep in flight?"""

from lab.model import Arms, Claim, Curve, Experiment, Level, Ratio, Setup
from producer.pacers import Burst

experiment = Experiment(
    name="io-slots",
    question="How many waits of half a second can one worker keep in flight, and at what memory?",
    base=Setup(job="snooze", args={"ms": 500}, pacer=Burst(20)),
    arms=(
        Arms({"pool": ("prefork",), "concurrency": (10,)}),
        Arms({"pool": ("threads", "eventlet", "gevent"), "concurrency": (10,)}, in_quick=False),
        Arms({"pool": ("threads", "gevent"), "concurrency": (100,), "pacer": (Burst(200),)}),
        Arms({"pool": ("prefork", "eventlet"), "concurrency": (100,), "pacer": (Burst(200),)}, in_quick=False),
        Arms({"pool": ("eventlet", "gevent"), "concurrency": (1000,), "pacer": (Burst(2000),)}),
        # A thousand processes are left out, with the reason, where they do not fit into memory. No claim rests on them.
        Arms({"pool": ("threads", "prefork"), "concurrency": (1000,), "pacer": (Burst(2000),)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="io-slots/threads-100",
            says="A threads worker keeps at least 60 % of 100 slots busy with waits of half a second.",
            measure=Level("slots_busy", of={"pool": "threads", "concurrency": 100}),
            at_least=0.6,
            why="A thread that waits needs no GIL; what limits is how fast the worker fetches.",
            advice="For a hundred waits at once one threads worker will do.",
        ),
        Claim(
            id="io-slots/gevent-100",
            says="A gevent worker keeps at least 60 % of 100 slots busy with waits of half a second.",
            measure=Level("slots_busy", of={"pool": "gevent", "concurrency": 100}),
            at_least=0.6,
            why="A greenlet that waits costs a few kilobytes and no thread.",
            advice="For a hundred waits at once threads do as well, and need no patched standard library.",
        ),
        Claim(
            id="io-slots/eventlet-1000",
            says="An eventlet worker keeps at least 60 % of 1,000 slots busy with waits of half a second.",
            measure=Level("slots_busy", of={"pool": "eventlet", "concurrency": 1000}),
            at_least=0.6,
            why="Greenlets are cheap, so it is said that thousands of waits fit into one process.",
            advice="Where this is refuted the worker cannot fetch so fast: start several workers with fewer slots.",
        ),
        Claim(
            id="io-slots/gevent-1000",
            says="A gevent worker keeps at least 60 % of 1,000 slots busy with waits of half a second.",
            measure=Level("slots_busy", of={"pool": "gevent", "concurrency": 1000}),
            at_least=0.6,
            why="Greenlets are cheap, so it is said that thousands of waits fit into one process.",
            advice="Where this is refuted the worker cannot fetch so fast: start several workers with fewer slots.",
        ),
        Claim(
            id="io-slots/memory",
            says="With 100 slots a threads worker needs at most a fifth of the memory per slot of prefork with 10.",
            measure=Ratio(
                "pss_bytes_per_slot",
                of={"pool": "threads", "concurrency": 100},
                to={"pool": "prefork", "concurrency": 10},
            ),
            at_most=0.2,
            why="A thread adds a stack that is mostly untouched, a process its own written pages.",
            advice="Buy slots for waiting with threads or greenlets, never with processes.",
        ),
    ),
    charts=(
        Curve("Share of slots busy against slots", y="slots_busy", x="slots"),
        Curve("Memory per slot against slots", y="pss_bytes_per_slot", x="slots"),
    ),
)
