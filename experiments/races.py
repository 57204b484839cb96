"""Threads step on each other: lost updates and changing order."""

from lab.model import Arms, Claim, Experiment, Level, Setup
from producer.pacers import Burst
from producer.payloads import Args, Calibrated

UNGUARDED: Args = {"rounds": 200_000, "guard": "none"}
LOCKED: Args = {"rounds": 200_000, "guard": "lock"}
BROKER: Args = {"rounds": 50, "guard": "broker"}

experiment = Experiment(
    name="races",
    question="Do threads lose updates of a shared counter, and is the order of results the same in every run?",
    base=Setup(job="tally", args=UNGUARDED, pacer=Burst(20)),
    arms=(
        Arms({"queued": (False,), "pool": ("threads",), "concurrency": (1, 2)}),
        Arms({"queued": (False,), "pool": ("threads",), "concurrency": (2,), "args": (LOCKED,)}),
        Arms({"pool": ("prefork",), "concurrency": (2,), "args": (BROKER,)}),
        Arms(
            {
                "job": ("spin",),
                "args": ({"loops": Calibrated(ms=5)},),
                "pacer": (Burst(60),),
                "pool": ("solo", "threads"),
                "concurrency": (4,),
            }
        ),
    ),
    claims=(
        Claim(
            id="races/lost",
            says="Two threads that add to one counter without a lock lose at least 1 % of the additions.",
            measure=Level("lost_updates", of={"args": UNGUARDED, "concurrency": 2}),
            at_least=0.01,
            why="Reading, adding by a call and writing are three steps; the GIL may change hands between them.",
            advice="The GIL protects the interpreter, not your data: guard every read-modify-write.",
        ),
        Claim(
            id="races/lock",
            says="With a threading.Lock not one addition is lost.",
            measure=Level("lost_updates", of={"args": LOCKED, "concurrency": 2}),
            at_most=0,
            why="Only one thread is between the read and the write.",
            advice="The locks experiment says what that costs.",
        ),
        Claim(
            id="races/broker",
            says="Two processes that count with Redis' INCR lose not one addition.",
            measure=Level("lost_updates", of={"args": BROKER, "pool": "prefork"}),
            at_most=0,
            why="INCR is one step inside Redis, which runs commands one at a time.",
            advice="Across processes, count where the one number lives: in the broker or the database.",
        ),
        Claim(
            id="races/order",
            says="Of a threads worker's jobs, at least 1 in 1000 pairs ends in another order than it was sent.",
            measure=Level("disorder", of={"job": "spin", "pool": "threads"}),
            at_least=0.001,
            why="Who gets the GIL next is not decided by who came first.",
            advice="Never let results depend on the order in which jobs end: carry a key, sort at the end.",
        ),
        Claim(
            id="races/solo-order",
            says="A solo worker's jobs end in the order in which they were sent.",
            measure=Level("disorder", of={"job": "spin", "pool": "solo"}),
            at_most=0,
            why="One slot takes one job after the other from one list.",
            advice="Where order is a must, one worker with one slot for that queue keeps it.",
        ),
    ),
)
