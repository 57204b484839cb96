"""What a lock costs."""

from lab.model import Arms, Claim, Curve, Experiment, Level, Ratio, Setup
from producer.pacers import Burst

NOTHING = {"kind": "nothing", "rounds": 200_000}
LOCK = {"kind": "Lock", "rounds": 200_000}
RLOCK = {"kind": "RLock", "rounds": 200_000}
QUEUE = {"kind": "Queue", "rounds": 5_000}
REDIS_LOCK = {"kind": "Redis lock", "rounds": 10}

experiment = Experiment(
    name="locks",
    question="What does taking a lock cost, against a job of 1 ms?",
    base=Setup(job="hold", args={}, pacer=Burst(20), queued=False, pool="threads"),
    arms=(
        Arms({"args": (NOTHING, LOCK, QUEUE, REDIS_LOCK), "concurrency": (1, 2)}),
        Arms({"args": (RLOCK,), "concurrency": (1, 2)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="locks/lock",
            says="An uncontended threading.Lock costs at most a thousandth of a 1 ms job.",
            measure=Level("round_us", of={"args": {"kind": "Lock", "rounds": 200_000}, "concurrency": 1}),
            at_most=1.0,
            why="Taking a free lock is one atomic instruction; most of the time is the interpreter's own.",
            advice="Do not avoid a lock for its price; avoid waiting for it.",
        ),
        Claim(
            id="locks/queue",
            says="One item through a queue.Queue costs at most a hundredth of a 1 ms job.",
            measure=Level("round_us", of={"args": {"kind": "Queue", "rounds": 5_000}, "concurrency": 1}),
            at_most=10.0,
            why="A Queue is three conditions around one lock, in pure Python.",
            advice="Hand over lists of items where each is small work.",
        ),
        Claim(
            id="locks/contended",
            says="Two threads that fight for one Lock get at least half as much done together as one alone.",
            measure=Ratio(
                "throughput_hz",
                of={"args": {"kind": "Lock", "rounds": 200_000}, "concurrency": 2},
                to={"args": {"kind": "Lock", "rounds": 200_000}, "concurrency": 1},
            ),
            at_least=0.5,
            why="Under the GIL only one runs anyway; the other is kept out only by one switched off with the lock.",
            advice="Without a GIL this turns: measure it with --python before you share a lock there.",
        ),
        Claim(
            id="locks/redis",
            says="A Redis lock costs at least a tenth of a 1 ms job.",
            measure=Level("round_us", of={"args": {"kind": "Redis lock", "rounds": 10}, "concurrency": 1}),
            at_least=100.0,
            why="It is two round trips to another process, the second of them for a script that gives it back.",
            advice="Use an atomic command (INCR, SET NX) where one will do; lock once for a batch, not for an item.",
        ),
    ),
    charts=(Curve("Price of one round against threads", y="round_us", x="slots"),),
)
