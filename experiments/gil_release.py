"""C code that lets go of the GIL scales in threads: the control of gil-cpu."""

from lab.model import UP_TO_CORES, Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

experiment = Experiment(
    name="gil-release",
    question="Does a second thread speed up work in C that lets go of the GIL?",
    # 40 ms a job: the queue's own millisecond or two must not hide what the second core does.
    base=Setup(job="digest", args={"chunks": Calibrated(ms=40)}, pacer=Burst(40)),
    quick={"pacer": Burst(16)},
    quick_repeats=4,
    arms=(
        Arms({"pool": ("threads",), "concurrency": (UP_TO_CORES,)}),
        Arms({"pool": ("prefork",), "concurrency": (UP_TO_CORES,)}, in_quick=False),
        Arms({"queued": (False,), "pool": ("serial",)}),
        Arms({"queued": (False,), "pool": ("threads",), "concurrency": (2,)}),
        Arms({"queued": (False,), "pool": ("threads",), "concurrency": (UP_TO_CORES,)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="gil-release/threads",
            says="Two threads of a Celery worker hash nearly twice as fast as one.",
            measure=Ratio(
                "throughput_hz",
                of={"queued": True, "pool": "threads", "concurrency": 2},
                to={"queued": True, "pool": "threads", "concurrency": 1},
            ),
            at_least=1.7,
            needs_cores=2,
            why="hashlib lets go of the GIL while OpenSSL works on a buffer of 2 KiB or more.",
            advice="Where the time goes into such C code, the threads pool scales and needs the memory of one process.",
        ),
        Claim(
            id="gil-release/bare-threads",
            says="Without a queue, two threads hash nearly twice as fast as a plain loop.",
            measure=Ratio(
                "throughput_hz",
                of={"queued": False, "pool": "threads", "concurrency": 2},
                to={"queued": False, "pool": "serial"},
            ),
            at_least=1.7,
            needs_cores=2,
            why="It is the C code that makes the difference, not Celery.",
            advice="Look for the same in zlib, NumPy, Pillow and database drivers before paying for processes.",
        ),
    ),
    charts=(Curve("Throughput against slots", y="throughput_hz", x="slots", where={"queued": True}),),
)
