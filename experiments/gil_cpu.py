"""Threads share one GIL; processes have one each."""

from lab.model import UP_TO_CORES, Arms, Claim, Curve, Experiment, Level, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

experiment = Experiment(
    name="gil-cpu",
    question="Does a second thread, or a second process, speed up pure-Python work?",
    # 25 ms a job: the queue's own millisecond or two must not hide what the GIL does.
    base=Setup(job="spin", args={"loops": Calibrated(ms=25)}, pacer=Burst(60)),
    quick={"pacer": Burst(22)},
    quick_repeats=4,
    arms=(
        Arms({"pool": ("threads", "prefork"), "concurrency": (UP_TO_CORES,)}),
        Arms({"queued": (False,), "pool": ("serial",)}),
        Arms({"queued": (False,), "pool": ("threads",), "concurrency": (1, 2)}),
        Arms({"queued": (False,), "pool": ("processes",), "concurrency": (2,)}),
        Arms({"queued": (False,), "pool": ("threads", "processes"), "concurrency": (UP_TO_CORES,)}, in_quick=False),
        # From Python 3.14; before that the report says it was left out. No claim rests on it.
        Arms({"queued": (False,), "pool": ("interpreters",), "concurrency": (2,)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="gil-cpu/threads",
            says="Two threads of a Celery worker do pure-Python work no faster than one.",
            measure=Ratio(
                "throughput_hz",
                of={"queued": True, "pool": "threads", "concurrency": 2},
                to={"queued": True, "pool": "threads", "concurrency": 1},
            ),
            at_most=1.1,
            needs_cores=2,
            why="One thread at a time executes bytecode, and can be switched out in mid-statement; only C code that "
            "lets go of the GIL computes beside it.",
            advice="Do not raise -c of a threads worker for work in pure Python; use prefork, or move the work into C.",
        ),
        Claim(
            id="gil-cpu/one-core",
            says="Two threads that compute keep no more than 1.1 cores busy.",
            measure=Level("cores_used", of={"queued": True, "pool": "threads", "concurrency": 2}),
            at_most=1.1,
            needs_cores=2,
            why="A thread that waits for the GIL wakes once a switch interval, asks for it and sleeps on; only in C "
            "code that lets go of it would a second one use a core.",
            advice="A threads worker that computes shows up in top as one busy core, however many you give it.",
        ),
        Claim(
            id="gil-cpu/prefork",
            says="Two processes of a Celery worker do pure-Python work nearly twice as fast as one.",
            measure=Ratio(
                "throughput_hz",
                of={"queued": True, "pool": "prefork", "concurrency": 2},
                to={"queued": True, "pool": "prefork", "concurrency": 1},
            ),
            at_least=1.6,
            needs_cores=2,
            why="Each process has an interpreter, and so a GIL, of its own.",
            advice="For CPU-bound Python use prefork with one process a core, and leave room for parent and broker.",
        ),
        Claim(
            id="gil-cpu/bare-threads",
            says="Without a queue, two threads of one program do pure-Python work no faster than one.",
            measure=Ratio(
                "throughput_hz",
                # Not against the plain loop: on a main thread the same Python runs some percent slower than on another.
                of={"queued": False, "pool": "threads", "concurrency": 2},
                to={"queued": False, "pool": "threads", "concurrency": 1},
            ),
            at_most=1.1,
            needs_cores=2,
            why="It is the interpreter that serialises threads, not Celery.",
            advice="concurrent.futures will not help either: ProcessPoolExecutor does, ThreadPoolExecutor does not.",
        ),
        Claim(
            id="gil-cpu/bare-processes",
            says="Without a queue, two processes do pure-Python work nearly twice as fast as a plain loop.",
            measure=Ratio(
                "throughput_hz",
                of={"queued": False, "pool": "processes", "concurrency": 2},
                to={"queued": False, "pool": "serial"},
            ),
            at_least=1.6,
            needs_cores=2,
            why="Two processes are two interpreters. What they miss of 2.0 goes to pickling, pipes and shared caches.",
            advice="Compare prefork with this figure, not with 2.0: a machine's own ceiling is rarely its cores.",
        ),
    ),
    charts=(Curve("Throughput against slots", y="throughput_hz", x="slots", where={"queued": True}),),
)
