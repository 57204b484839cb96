"""How long must a job be before a queue, or a second process, pays?"""

from lab.model import Arms, BreakEven, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

LENGTHS = tuple({"loops": Calibrated(ms=ms)} for ms in (0.3, 1, 10, 30))
MIDDLE = ({"loops": Calibrated(ms=3)},)
QUEUE = {"pool": ("prefork",), "concurrency": (2,)}
LOOP = {"queued": (False,), "pool": ("serial",)}
PROCESSES = {"queued": (False,), "pool": ("processes",), "concurrency": (2,)}
INTERPRETERS = {"queued": (False,), "pool": ("interpreters",), "concurrency": (2,)}

experiment = Experiment(
    name="break-even",
    question="From which job length on do two processes beat a plain loop, with a queue and without?",
    base=Setup(job="spin", args={"loops": Calibrated(ms=30)}, pacer=Burst(60)),
    quick={"pacer": Burst(40)},
    halvings=3,
    arms=(
        *(Arms({"args": LENGTHS, **way}) for way in (QUEUE, LOOP, PROCESSES)),
        *(Arms({"args": MIDDLE, **way}, in_quick=False) for way in (QUEUE, LOOP, PROCESSES)),
        Arms({"args": (*LENGTHS, *MIDDLE), **INTERPRETERS}, in_quick=False),
    ),
    claims=(
        Claim(
            id="break-even/queue",
            says="Two prefork processes behind a queue beat a plain loop from jobs of 10 ms on, or shorter ones.",
            measure=BreakEven(of={"queued": True, "pool": "prefork"}, to={"queued": False, "pool": "serial"}),
            at_most=10,
            needs_cores=2,
            why="The queue costs a millisecond or two a job, and a second core gives half a job's time back.",
            advice="Put shorter work together into one job until it is several times as long as the break-even.",
        ),
        Claim(
            id="break-even/processes",
            says="Two processes without a queue beat a plain loop from jobs of 1 ms on, or shorter ones.",
            measure=BreakEven(of={"queued": False, "pool": "processes"}, to={"queued": False, "pool": "serial"}),
            at_most=1,
            needs_cores=2,
            why="ProcessPoolExecutor pickles through a pipe, which costs some tenths of a millisecond.",
            advice="On one machine, with nothing that must survive a crash, an executor is cheaper than a queue.",
        ),
        Claim(
            id="break-even/queue-or-executor",
            says="For jobs of 30 ms the queue keeps at least 85 % of the throughput of a plain ProcessPoolExecutor.",
            measure=Ratio(
                "throughput_hz",
                of={"args": {"loops": Calibrated(ms=30)}, "queued": True},
                to={"args": {"loops": Calibrated(ms=30)}, "queued": False, "pool": "processes"},
            ),
            at_least=0.85,
            needs_cores=2,
            why="The queue's own millisecond or two is then a few per cent of the work.",
            advice="An executor spares the queue's work; what a queue buys is more machines, retries and a memory.",
        ),
    ),
    charts=(Curve("Throughput against job length", y="throughput_hz", x="work_ms"),),
)
