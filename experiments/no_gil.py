"""No GIL, no claim: the same work on a free-threaded interpreter, and how the GIL comes back unasked."""

from lab.model import FREE_THREADED, Arms, Claim, Experiment, Level, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Args

UNGUARDED: Args = {"rounds": 200_000, "guard": "none"}

experiment = Experiment(
    name="no-gil",
    question="Which of these claims does an interpreter without a GIL turn over, and what does it cost?",
    # A fixed number of loops, not of milliseconds: two interpreters must do the same work to be compared.
    base=Setup(job="spin", args={"loops": 400_000}, pacer=Burst(40), pool="threads"),
    quick={"pacer": Burst(24)},
    arms=(
        Arms({"python": (None, FREE_THREADED), "concurrency": (1, 2)}),
        Arms({"python": (FREE_THREADED,), "packages": (("hiredis==3.5.0",),), "concurrency": (1, 2)}),
        Arms(
            {
                "python": (None, FREE_THREADED),
                "queued": (False,),
                "concurrency": (2,),
                "job": ("tally",),
                "args": (UNGUARDED,),
            }
        ),
    ),
    claims=(
        Claim(
            id="no-gil/threads",
            says="Without a GIL two threads of a Celery worker do pure-Python work at least 1.5 times as fast as one.",
            measure=Ratio(
                "throughput_hz",
                of={"python": FREE_THREADED, "packages": (), "queued": True, "concurrency": 2},
                to={"python": FREE_THREADED, "packages": (), "queued": True, "concurrency": 1},
            ),
            at_least=1.5,
            needs_cores=2,
            why="Nothing stands between two threads and two cores but the objects they share.",
            advice="Run gil-cpu with --python too: its claim about threads is refuted there.",
        ),
        Claim(
            id="no-gil/single-thread",
            says="One thread keeps at least 60 % of its speed on the free-threaded interpreter.",
            measure=Ratio(
                "throughput_hz",
                of={"python": FREE_THREADED, "packages": (), "queued": True, "concurrency": 1},
                to={"python": None, "queued": True, "concurrency": 1},
            ),
            at_least=0.6,
            why="Python 3.13's documentation speaks of 40 % more time on pyperformance, which is 71 % of the speed;"
            " 3.14's of 1 to 8 % more.",
            advice="Compare builds of one version if you can: part of the difference is the version, not the GIL.",
        ),
        Claim(
            id="no-gil/hiredis",
            says="With hiredis installed the GIL of the free-threaded worker is back on.",
            measure=Level("gil_on", of={"python": FREE_THREADED, "packages": ("hiredis==3.5.0",)}),
            at_least=1,
            why="redis-py imports hiredis where it finds it; an extension not declared safe brings the GIL back.",
            advice="Look at the GIL inside the worker, after its imports: the interpreter's name says nothing.",
        ),
        Claim(
            id="no-gil/lost",
            says="Without a GIL two unguarded threads lose at least 1.2 times as many of their additions as with it.",
            measure=Ratio(
                "lost_updates", of={"python": FREE_THREADED, "job": "tally"}, to={"python": None, "job": "tally"}
            ),
            at_least=1.2,
            why="Both really run at once, so many a read sees a number that the other is about to overwrite.",
            advice="What you got away with under the GIL fails here: look for unguarded read-modify-write first.",
        ),
    ),
)
