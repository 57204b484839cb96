"""What processes cost before they do anything: time to start and memory."""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst

experiment = Experiment(
    name="startup",
    question="What does a slot cost before its first job, in start-up time and in memory?",
    base=Setup(job="snooze", args={"ms": 1}, pacer=Burst(16)),
    arms=(
        Arms({"pool": ("prefork", "threads", "gevent"), "concurrency": (1, 8)}),
        # From Python 3.14; before that the report says it was left out. No claim rests on it.
        Arms({"queued": (False,), "pool": ("threads", "processes", "interpreters"), "concurrency": (8,)}),
    ),
    claims=(
        Claim(
            id="startup/memory",
            says="A slot of a prefork worker with eight takes at least twice the memory of a slot of a threads worker.",
            measure=Ratio(
                "pss_bytes_per_slot",
                of={"queued": True, "pool": "prefork", "concurrency": 8},
                to={"queued": True, "pool": "threads", "concurrency": 8},
            ),
            at_least=2,
            why="Forked pages are shared only until somebody writes them, and reference counts write everywhere.",
            advice="Plan memory by PSS per slot: threads for what waits, processes for what computes.",
        ),
        Claim(
            id="startup/boot",
            says="A prefork worker with eight processes needs at least 1.1 times as long to start as a threads worker.",
            measure=Ratio(
                "boot_s",
                of={"queued": True, "pool": "prefork", "concurrency": 8},
                to={"queued": True, "pool": "threads", "concurrency": 8},
            ),
            at_least=1.1,
            why="Eight forks come on top of importing Celery, which both must do and which takes longest.",
            advice="What is slow at start is your imports: forked processes share them, spawned ones repeat them.",
        ),
    ),
    charts=(Curve("Memory per slot against slots", y="pss_bytes_per_slot", x="slots", where={"queued": True}),),
)
