"""The convoy effect inside a Celery worker: quick jobs beside computing ones, in one threads worker or apart."""

from lab.model import Arms, Claim, Curve, Experiment, Level, Load, Ratio, Setup
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated

# In one process they take turns: 3 s of work outlast the quick jobs' 2 s on a faster machine too.
COMPUTING = Load("spin", {"loops": Calibrated(ms=1500)}, Burst(2))
ALONE = {"beside": None, "acks_late": None, "heartbeat_s": None}
TOGETHER = {"beside": COMPUTING, "apart": None, "acks_late": None, "heartbeat_s": None}

# A heartbeat a second is the fastest that Celery sends: some come within 6 s of work.
LONG = Load("spin", {"loops": Calibrated(ms=3000)}, Burst(2))
ONE_LONG = Load("spin", {"loops": Calibrated(ms=3000)}, Burst(1))

experiment = Experiment(
    name="convoy-worker",
    question="What do computing jobs do to quick jobs in the same threads worker?",
    base=Setup(job="snooze", args={"ms": 1}, pacer=Constant(20, 2), pool="threads", concurrency=8),
    quick={"pacer": Constant(20, 1.5)},
    arms=(
        Arms({"beside": (None, COMPUTING)}),
        Arms({"beside": (COMPUTING,), "apart": ("prefork",)}),
        # Only a late acknowledgement comes after the job.
        Arms({"beside": (None, COMPUTING), "acks_late": (True,), "steps": (True,)}),
        Arms({"beside": (LONG,), "heartbeat_s": (1,)}, quick={"beside": COMPUTING}),
        Arms(
            {"beside": (LONG,), "heartbeat_s": (1,), "pool": ("solo",), "concurrency": (1,)},
            quick={"beside": ONE_LONG},
        ),
    ),
    claims=(
        Claim(
            id="convoy-worker/latency",
            says="Two computing jobs in the same threads worker make quick jobs at least five times as slow as none.",
            measure=Ratio("latency_p50_s", of=TOGETHER, to=ALONE),
            at_least=5,
            why="Reading from Redis, acknowledging and the job itself all need the same GIL.",
            advice="Keep computing jobs out of threads workers, by routing them to a queue of their own.",
        ),
        Claim(
            id="convoy-worker/fetched",
            says="Quick jobs are then received at least five times as late, although slots are free.",
            measure=Ratio("fetch_p50_s", of=TOGETHER, to=ALONE),
            at_least=5,
            why="One thread fetches and acknowledges all jobs, and waits for the GIL after each of its round trips, 5"
            " to 10 ms each time: together longer than the 50 ms between two jobs, so that jobs pile up in the broker.",
            advice="Jobs that lie in the broker although slots are free are the sign of it: look for what computes.",
        ),
        Claim(
            id="convoy-worker/held",
            says="Received jobs then start at least five times as late, although slots are free.",
            measure=Ratio("held_p50_s", of=TOGETHER, to=ALONE),
            at_least=5,
            why="Handing the job to a free thread takes hand-overs of the GIL, each after a switch interval or more:"
            " with two computing threads the other one may be next.",
            advice="A long time from received to started, with free slots, is the sign of it in a trace.",
            otherwise="From received to started is no sign of it here: look in a trace at the jobs' own time as well.",
        ),
        Claim(
            id="convoy-worker/acknowledged",
            says="Acknowledged late, a quick job that has ended waits at least five times as long for that.",
            measure=Ratio(
                "ack_gap_p50_s",
                of={"beside": COMPUTING, "acks_late": True},
                to={"beside": None, "acks_late": True},
            ),
            at_least=5,
            why="The acknowledgement passes to the consuming thread and waits for the broker's answer: at least two"
            " waits for the GIL, against about a millisecond alone.",
            advice="Until then the job counts as unacknowledged, and its place in the prefetch is taken.",
        ),
        Claim(
            id="convoy-worker/heartbeat",
            says="Beside two computing jobs no heartbeat of a threads worker comes more than half a second late.",
            measure=Level("heartbeat_late_s", of={"pool": "threads", "heartbeat_s": 1}),
            at_most=0.5,
            why="The consuming thread sends it, between its messages, and waits for the GIL a few times, each for a"
            " switch interval or two: far less than a second together. Who listens"
            " takes a worker for offline only where it is late by a whole interval, two seconds unasked.",
            advice="A threads worker that computes stays alive for its neighbours and for Flower. Prefork's too: its"
            " heartbeats come from a process that runs no job.",
            otherwise="Heartbeats of a threads worker that computes come late here: do not let anything restart a"
            " worker that has been silent for a few seconds.",
        ),
        Claim(
            id="convoy-worker/heartbeat-solo",
            says="A solo worker that does one such job of 3 s sends its heartbeat at least 1 s late.",
            measure=Level("heartbeat_late_s", of={"pool": "solo", "heartbeat_s": 1}),
            at_least=1,
            why="Its one thread does the job and sends the heartbeats: while it does one thing the other waits.",
            advice="Do not take a solo worker's silence for its death: Flower shows one with a long job as offline."
            " The same goes for eventlet and gevent with a job that does not wait.",
        ),
        Claim(
            id="convoy-worker/apart",
            says="With the computing jobs in a prefork worker of their own, quick jobs are at least twice as fast.",
            measure=Ratio("latency_p50_s", of=TOGETHER, to={"beside": COMPUTING, "apart": "prefork"}),
            at_least=2,
            needs_cores=2,
            why="Another process has another GIL; what is left to share is the cores.",
            advice="Start two workers, -P threads for what waits and -P prefork for what computes.",
        ),
    ),
    charts=(
        Curve(
            "Median latency of quick jobs against the number of computing jobs",
            y="latency_p50_s",
            x="computing",
            where={"acks_late": None, "heartbeat_s": None, "pool": "threads"},
        ),
    ),
)
