"""Mixed work: one pool for all, or a queue for each kind."""

from lab.model import Arms, Claim, Experiment, Load, Ratio, Setup
from producer.pacers import Poisson
from producer.payloads import Calibrated, EachJob, Upstream

# Poisson arrivals: evenly spaced slow jobs never meet, and two slots would always have one to spare.
SLOW = Load("spin", {"loops": Calibrated(ms=150)}, Poisson(5, 4, seed=2))
FOR_A_LOOK = {"pacer": Poisson(30, 2.5, seed=1), "beside": Load(SLOW.job, SLOW.args, Poisson(5, 2.5, seed=2))}

experiment = Experiment(
    name="separate-queues",
    question="Do quick and slow jobs get on better with a queue each, on the same cores?",
    base=Setup(
        job="fetch",
        args={"url": Upstream(mean_ms=20), "key": EachJob()},
        pacer=Poisson(30, 4, seed=1),
        beside=SLOW,
    ),
    quick=FOR_A_LOOK,
    arms=(
        Arms({"pool": ("prefork",), "concurrency": (2,)}),
        Arms({"pool": ("threads",), "concurrency": (20,)}),
        Arms({"pool": ("gevent",), "concurrency": (20,)}, in_quick=False),
        Arms({"pool": ("threads", "gevent"), "concurrency": (20,), "apart": ("prefork",), "apart_concurrency": (1,)}),
    ),
    claims=(
        Claim(
            id="separate-queues/quick",
            says="A gevent worker for what waits and a prefork one for what computes at least halve quick jobs' p99.",
            measure=Ratio("latency_p99_s", of={"pool": "gevent", "apart": "prefork"}, to={"pool": "prefork"}),
            at_most=0.5,
            needs_cores=2,
            why="A quick job no longer stands in line behind a slow one.",
            advice="Route by what a job does to the processor, not by what it is about.",
        ),
        Claim(
            id="separate-queues/slow",
            says="The slow jobs' p99 is at most twice as long with one process of their own as with two for all.",
            # Not their throughput: a load below what the slots can do is finished at its own rate in every arm.
            measure=Ratio("beside_p99_s", of={"pool": "gevent", "apart": "prefork"}, to={"pool": "prefork"}),
            at_most=2,
            needs_cores=2,
            why="They fill more than half of one process, so they wait for each other there; but no longer behind quick"
            " jobs, and the second process mostly waited for the network.",
            advice="Count the cores that computing really needs before you give it all of them.",
        ),
        Claim(
            id="separate-queues/threads",
            says="One threads worker for both kinds at least doubles the p99 of a threads worker beside a prefork one.",
            measure=Ratio(
                "latency_p99_s", of={"pool": "threads", "apart": None}, to={"pool": "threads", "apart": "prefork"}
            ),
            at_least=2,
            needs_cores=2,
            why="Free slots do not help a quick job that waits for the GIL.",
            advice="More threads are no answer to a computing neighbour.",
        ),
    ),
)
