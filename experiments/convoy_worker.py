"""The convoy effect inside a Celery worker: quick jobs beside computing ones, in one threads worker or apart."""

from lab.model import Arms, Claim, Experiment, Load, Ratio, Setup
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated

COMPUTING = Load("spin", {"loops": Calibrated(ms=1000)}, Burst(2))

experiment = Experiment(
    name="convoy-worker",
    question="What do computing jobs do to quick jobs in the same threads worker?",
    base=Setup(job="snooze", args={"ms": 1}, pacer=Constant(20, 2), pool="threads", concurrency=8),
    quick={"pacer": Constant(20, 1.5)},
    arms=(
        Arms({"beside": (None, COMPUTING)}),
        Arms({"beside": (COMPUTING,), "apart": ("prefork",)}),
    ),
    claims=(
        Claim(
            id="convoy-worker/latency",
            says="Two computing jobs in the same threads worker make quick jobs at least five times as slow as none.",
            measure=Ratio("latency_p50_s", of={"beside": COMPUTING, "apart": None}, to={"beside": None}),
            at_least=5,
            why="The thread that reads from Redis, the one that acknowledges and the job all wait for the same GIL.",
            advice="Keep computing jobs out of threads workers, by routing them to a queue of their own.",
        ),
        Claim(
            id="convoy-worker/held",
            says="Received jobs then start at least five times as late, although slots are free.",
            measure=Ratio("held_p50_s", of={"beside": COMPUTING, "apart": None}, to={"beside": None}),
            at_least=5,
            why="Handing the job to a free thread takes several hand-overs of the GIL, each up to a switch interval.",
            advice="A long time from received to started, with free slots, is the sign of it in a trace.",
        ),
        Claim(
            id="convoy-worker/apart",
            says="With the computing jobs in a prefork worker of their own, quick jobs are at least twice as fast.",
            measure=Ratio(
                "latency_p50_s", of={"beside": COMPUTING, "apart": None}, to={"beside": COMPUTING, "apart": "prefork"}
            ),
            at_least=2,
            needs_cores=2,
            why="Another process has another GIL; what is left to share is the cores.",
            advice="Start two workers, -P threads for what waits and -P prefork for what computes.",
        ),
    ),
)
