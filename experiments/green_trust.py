"""Green threads trust you: one job that computes stops all others."""

from lab.model import Arms, Claim, Curve, Experiment, Load, Ratio, Setup
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated

COMPUTING = Load("spin", {"loops": Calibrated(ms=600)}, Burst(2))
UNPATCHED = Load("stall", {"ms": 600}, Burst(2))


def _delay(pool: str) -> Claim:
    return Claim(
        id=f"green-trust/{pool}",
        says=f"Under {pool}, two computing jobs of 600 ms make the slowest quick jobs at least 20 times as slow.",
        measure=Ratio(
            "latency_p99_s", of={"pool": pool, "beside": COMPUTING, "apart": None}, to={"pool": pool, "beside": None}
        ),
        at_least=20,
        why="A greenlet gives way only where it waits; one that computes keeps the thread until it is done.",
        advice="Route what computes for more than a few milliseconds away from green workers.",
    )


experiment = Experiment(
    name="green-trust",
    question="What does one computing job do to the quick jobs of a green worker?",
    base=Setup(job="snooze", args={"ms": 20}, pacer=Constant(50, 3), concurrency=50),
    arms=(
        Arms({"pool": ("eventlet", "gevent"), "beside": (None, COMPUTING)}),
        Arms({"pool": ("threads",), "beside": (COMPUTING,)}),
        Arms({"pool": ("threads",), "beside": (None,)}, in_quick=False),
        Arms({"pool": ("gevent",), "beside": (UNPATCHED,)}),
        Arms({"pool": ("gevent",), "beside": (COMPUTING,), "apart": ("prefork",)}),
        Arms({"pool": ("eventlet",), "beside": (COMPUTING,), "apart": ("prefork",)}, in_quick=False),
    ),
    claims=(
        _delay("eventlet"),
        _delay("gevent"),
        Claim(
            id="green-trust/unpatched",
            says="Under gevent, two jobs that wait 600 ms by a sleep it has not replaced make the slowest quick jobs"
            " at least 20 times as slow, too.",
            measure=Ratio(
                "latency_p99_s",
                of={"pool": "gevent", "beside": UNPATCHED},
                to={"pool": "gevent", "beside": None},
            ),
            at_least=20,
            why="A greenlet gives way only in calls that gevent knows; drivers in C wait without telling it.",
            advice="Before a library goes to a green worker, ask whether its waits are patched; try it under load.",
        ),
        Claim(
            id="green-trust/separate-queue",
            says="A queue of its own for the computing jobs takes at least nine tenths of that delay away.",
            measure=Ratio(
                "latency_p99_s",
                of={"pool": "gevent", "apart": "prefork"},
                to={"pool": "gevent", "beside": COMPUTING, "apart": None},
            ),
            at_most=0.1,
            needs_cores=2,
            why="The prefork worker has its own process, so the green one never stops.",
            advice="task_routes with two queues, and a worker for each, is the whole remedy.",
        ),
        Claim(
            id="green-trust/threads",
            says="In a threads worker the slowest quick jobs wait at most half as long as in a gevent worker.",
            measure=Ratio(
                "latency_p99_s",
                of={"pool": "threads", "beside": COMPUTING},
                to={"pool": "gevent", "beside": COMPUTING, "apart": None},
            ),
            at_most=0.5,
            why="The interpreter takes the GIL from a computing thread every 5 ms; nobody takes a greenlet's turn.",
            advice="Where you cannot be sure that no job computes, threads forgive more than greenlets.",
            otherwise="Threads forgive too little here as well: route what computes away from them too.",
        ),
    ),
    quick={"pacer": Constant(50, 2)},
    charts=(
        Curve("Slowest quick jobs against the number of jobs that do not give way", y="latency_p99_s", x="computing"),
    ),
)
