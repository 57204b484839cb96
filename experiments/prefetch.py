"""Prefetch hides work from idle workers.

`-O fair` is about the processes of one worker, so it has a pair of arms of its own.
"""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated, Sometimes

experiment = Experiment(
    name="prefetch",
    question="What does fetching ahead cost when some jobs are much longer than others?",
    # Of twelve seeds the first gives the middle effect in the simulator: neither lucky nor unlucky.
    base=Setup(
        job="spin",
        args={"loops": Sometimes(Calibrated(ms=4), Calibrated(ms=200), share=0.1)},
        pacer=Burst(80),
        pool="prefork",
        nodes=2,
    ),
    not_in_a_look="few repeats do not decide what is a few percent",
    arms=(
        Arms({"prefetch": (1, 4, 64)}),
        Arms({"prefetch": (1,), "acks_late": (True,)}),
        Arms({"prefetch": (1,), "disable_prefetch": (True,)}),
        Arms({"nodes": (1,), "concurrency": (2,), "knobs": ((), ("fair",))}),
    ),
    claims=(
        Claim(
            id="prefetch/makespan",
            says="Two workers that fetch one job ahead finish at least 1.1 times as fast as two that fetch 64 ahead.",
            measure=Ratio(
                "throughput_hz",
                of={"prefetch": 1, "acks_late": None, "disable_prefetch": False},
                to={"prefetch": 64},
            ),
            at_least=1.1,
            needs_cores=2,
            why="What one worker holds the other cannot take, even when it is idle.",
            advice="For jobs of uneven length set worker_prefetch_multiplier to 1.",
        ),
        Claim(
            id="prefetch/wait",
            says="Fetching 64 ahead makes the longest waits at least 1.1 times as long.",
            measure=Ratio(
                "wait_p99_s",
                of={"prefetch": 64},
                to={"prefetch": 1, "acks_late": None, "disable_prefetch": False},
            ),
            at_least=1.1,
            needs_cores=2,
            why="A short job waits behind a long one in a line that nobody else serves.",
            advice="Look at the time from received to started: it is the line inside the worker.",
        ),
        Claim(
            id="prefetch/late-acks",
            says="Acknowledging late, with a multiplier of 1, is no slower: at least 95 % of the throughput.",
            measure=Ratio(
                "throughput_hz",
                of={"acks_late": True},
                to={"prefetch": 1, "acks_late": None, "disable_prefetch": False},
            ),
            at_least=0.95,
            needs_cores=2,
            why="It is as many commands at another moment; but the one job that may be unacknowledged is then the "
            "running one, and none is ahead.",
            advice="Acknowledge late where jobs may run twice: safety is not what costs here.",
            otherwise="Acknowledge late where jobs may run twice and must not be lost: here it costs throughput.",
        ),
        Claim(
            id="prefetch/disabled",
            says="Without any prefetch the two workers are at least as fast as with one job ahead, within 5 %.",
            measure=Ratio(
                "throughput_hz",
                of={"disable_prefetch": True},
                to={"prefetch": 1, "acks_late": None, "disable_prefetch": False},
            ),
            at_least=0.95,
            needs_cores=2,
            why="A job then waits where every worker can reach it, for the price of two round trips between jobs, to"
            " fetch it and to note it down.",
            advice="For long jobs use --disable-prefetch; for jobs of a millisecond the round trips are the job.",
        ),
        Claim(
            id="prefetch/fair",
            says="With `-O fair` a worker of two processes is at most 1.05 times as fast as without.",
            measure=Ratio("throughput_hz", of={"knobs": ("fair",)}, to={"knobs": ()}),
            at_most=1.05,
            needs_cores=2,
            why="Since version 4.0 Celery gives a job only to a process that is free, unasked; the option names that.",
            advice="Leave it out: what is fetched ahead waits in the worker's main process, not at a busy child.",
        ),
    ),
    charts=(
        Curve(
            "Throughput against jobs fetched ahead",
            y="throughput_hz",
            x="prefetch",
            where={"acks_late": None, "disable_prefetch": False, "knobs": None},
        ),
    ),
)
