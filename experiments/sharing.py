"""Processes share nothing: what it costs to hand them something."""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Text

ENDS = ({"payload": Text(1_000)}, {"payload": Text(1_000_000)})
MIDDLE = ({"payload": Text(100_000)},)
BARE = {"queued": (False,), "pool": ("threads", "processes")}

experiment = Experiment(
    name="sharing",
    question="What does it cost to hand a job its argument, by size and by pool?",
    base=Setup(job="echo", args={"payload": Text(1_000)}, pacer=Burst(20)),
    arms=(
        Arms({"args": ENDS, "pool": ("threads", "prefork")}),
        Arms({"args": MIDDLE, "pool": ("threads", "prefork")}, in_quick=False),
        Arms({"args": ENDS, **BARE}),
        Arms({"args": MIDDLE, **BARE}, in_quick=False),
    ),
    claims=(
        Claim(
            id="sharing/hop",
            says="A 1 MB argument costs a prefork worker at least 1.3 times the CPU time of a threads worker.",
            measure=Ratio(
                "worker_cpu_s_per_job",
                of={"args": {"payload": Text(1_000_000)}, "queued": True, "pool": "prefork"},
                to={"args": {"payload": Text(1_000_000)}, "queued": True, "pool": "threads"},
            ),
            at_least=1.3,
            why="The parent decodes the message and pickles it through a pipe to the child, which decodes it again.",
            advice="Send a key and let the job fetch the payload, or keep large arguments out of prefork.",
        ),
        Claim(
            id="sharing/bare",
            says="Threads hand over a 1 MB argument at least ten times as fast as processes, without a queue.",
            measure=Ratio(
                "throughput_hz",
                of={"args": {"payload": Text(1_000_000)}, "queued": False, "pool": "threads"},
                to={"args": {"payload": Text(1_000_000)}, "queued": False, "pool": "processes"},
            ),
            at_least=10,
            why="A thread gets a pointer; a process gets a pickled copy through a pipe.",
            advice="ProcessPoolExecutor pays for small arguments and long work, not for the opposite.",
        ),
        Claim(
            id="sharing/size",
            says="A job with a 1 MB argument costs a prefork worker at least five times the CPU time of one with 1 kB.",
            measure=Ratio(
                "worker_cpu_s_per_job",
                of={"args": {"payload": Text(1_000_000)}, "queued": True, "pool": "prefork"},
                to={"args": {"payload": Text(1_000)}, "queued": True, "pool": "prefork"},
            ),
            at_least=5,
            why="Base64, JSON twice and pickle each touch every byte.",
            advice="Below some kilobytes the size hardly matters: the fixed cost of a job is larger.",
        ),
    ),
    charts=(
        Curve("CPU time of the worker per job against the argument's size", y="worker_cpu_s_per_job", x="size_bytes"),
    ),
)
