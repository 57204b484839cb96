"""What it costs to keep a job's result, and to read it."""

from lab.model import Arms, Claim, Experiment, Ratio, Setup, Stack
from producer.pacers import Burst
from producer.payloads import Args, Payload

SMALL: Args = {"payload": Payload("records", 100)}
MANY = (Burst(1500),)

experiment = Experiment(
    name="results",
    question="What does it cost to keep a job's result, and to read it?",
    base=Setup(job="echo", args=SMALL, pacer=Burst(300), pool="threads", concurrency=1),
    quick={"pacer": Burst(150)},
    arms=(
        # Larger bursts for what is a few per cent: a tenth of a job's CPU time is one of the clock's ticks in 100 jobs.
        Arms({"results": (None, "ignored", "stored"), "pacer": MANY}, quick={"pacer": Burst(400)}),
        Arms({"results": ("get", "bulk")}),
        Arms({"pool": ("prefork",), "results": (None, "stored"), "pacer": MANY}, in_quick=False),
    ),
    claims=(
        Claim(
            id="results/stored",
            says="Keeping a result of 100 bytes costs a threads worker at least 1.25 times the CPU time of a job.",
            measure=Ratio(
                "worker_cpu_s_per_job",
                of={"pool": "threads", "results": "stored"},
                to={"pool": "threads", "results": None},
            ),
            at_least=1.25,
            why="Two more conversations with the broker: is there a result already, then store and announce it.",
            advice="Set ignore_result=True for every task whose result nobody reads.",
        ),
        Claim(
            id="results/ignored",
            says="A result backend that jobs ignore costs at most 1.1 times the CPU time of none.",
            measure=Ratio(
                "worker_cpu_s_per_job",
                of={"pool": "threads", "results": "ignored"},
                to={"pool": "threads", "results": None},
            ),
            at_most=1.1,
            why="Nothing is sent; Celery only looks at a flag of the message.",
            advice="Keep one backend for the few tasks that need it, and ignore results by default.",
        ),
        Claim(
            id="results/bulk",
            says="Reading 300 results one by one takes at least five times as long as reading them at once.",
            measure=Ratio(
                "collect_s_per_job",
                of={"pool": "threads", "results": "get"},
                to={"pool": "threads", "results": "bulk"},
            ),
            at_least=5,
            why="get() subscribes, asks, and unsubscribes for each result; in bulk one MGET asks for all.",
            advice="Gather with backend.get_many(), or let the last job write one result for all.",
        ),
    ),
    charts=(
        Stack(
            "CPU time of a worker and of the producer for each job",
            parts=("worker_cpu_s_per_job", "producer_cpu_s_per_job"),
        ),
    ),
    side_by_side="results",
)
