"""Waiting needs slots, not cores; what a slot costs is memory."""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Constant
from producer.payloads import EachJob, Upstream

experiment = Experiment(
    name="io-fanout",
    question="Which pool carries many jobs that wait for a slow service, and what does a slot of it weigh?",
    base=Setup(
        job="fetch", args={"url": Upstream(mean_ms=50), "key": EachJob()}, pacer=Constant(rate_hz=100, duration_s=2.5)
    ),
    quick={"pacer": Constant(rate_hz=100, duration_s=1.0)},
    arms=(
        Arms({"pool": ("prefork",), "concurrency": (2,)}),
        Arms({"pool": ("threads", "eventlet", "gevent"), "concurrency": (50,)}),
    ),
    claims=(
        Claim(
            id="io-fanout/threads",
            says="At 100 jobs/s of 50 ms each, 50 threads finish at least twice as many jobs a second as 2 processes.",
            measure=Ratio("throughput_hz", of={"pool": "threads", "concurrency": 50}, to={"pool": "prefork"}),
            at_least=2.0,
            why="The load keeps 5 slots busy (100/s times 50 ms, Little's law); 2 can carry 40 jobs a second at most.",
            advice="Count slots as rate times duration, with room to spare; a thread that waits holds no GIL.",
        ),
        Claim(
            id="io-fanout/eventlet",
            says="At the same load, eventlet with 50 slots finishes at least twice as many jobs a second.",
            measure=Ratio("throughput_hz", of={"pool": "eventlet", "concurrency": 50}, to={"pool": "prefork"}),
            at_least=2.0,
            why="A greenlet that waits for a socket lets the others run.",
            advice="It works, but eventlet is retired: start new work on gevent or threads.",
        ),
        Claim(
            id="io-fanout/gevent",
            says="At the same load, gevent with 50 slots finishes at least twice as many jobs a second.",
            measure=Ratio("throughput_hz", of={"pool": "gevent", "concurrency": 50}, to={"pool": "prefork"}),
            at_least=2.0,
            why="A greenlet that waits for a socket lets the others run.",
            advice="Use gevent for many jobs that wait and compute little; one that computes stops all the others.",
        ),
        Claim(
            id="io-fanout/memory",
            says="A whole worker with 50 threads weighs less than one with 2 prefork processes.",
            measure=Ratio("pss_bytes", of={"pool": "threads", "concurrency": 50}, to={"pool": "prefork"}),
            at_most=0.8,
            why="A thread adds a stack; a process adds an interpreter, though pages that nobody writes are shared.",
            advice="For work that waits, threads buy slots with far less memory than prefork processes do.",
        ),
    ),
    charts=(Curve("Jobs a second against slots, at 100 jobs/s of 50 ms", y="throughput_hz", x="slots"),),
)
