"""The convoy effect: a thread that waited for a moment waits longer for the GIL, behind one that computes."""

from lab.model import Arms, Claim, Curve, Experiment, Load, Ratio, Setup
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated

# In one process they take turns and end together: 2.5 s of work outlast the quick jobs' 1.4 s on a faster machine too.
ONE = Load("spin", {"loops": Calibrated(ms=2500)}, Burst(1))
TWO = Load("spin", {"loops": Calibrated(ms=1250)}, Burst(2))
FOUR = Load("spin", {"loops": Calibrated(ms=625)}, Burst(4))
# In processes of their own they do not wait for each other, so each must last as long.
TWO_APART = Load("spin", {"loops": Calibrated(ms=2500)}, Burst(2))
FOUR_APART = Load("spin", {"loops": Calibrated(ms=2500)}, Burst(4))

experiment = Experiment(
    name="convoy",
    question="How long does a job that waits a little wait for the GIL, beside jobs that compute?",
    # Four waits of 1 ms, as of four answers from a near server.
    base=Setup(
        job="naps",
        args={"rounds": 4, "ms": 1},
        pacer=Constant(8, 1.5),
        queued=False,
        pool="threads",
        concurrency=8,
        beside=ONE,
        switch_interval_s=0.005,
    ),
    arms=(
        Arms({"beside": (None, ONE)}),
        Arms({"beside": (TWO, FOUR)}, in_quick=False),
        Arms({"switch_interval_s": (0.02,)}),
        Arms({"switch_interval_s": (0.0001, 0.001)}, in_quick=False),
        Arms({"args": ({"rounds": 2, "ms": 1}, {"rounds": 12, "ms": 1})}),
        Arms({"apart": ("processes",)}),
        Arms({"apart": ("processes",), "apart_concurrency": (2,), "beside": (TWO_APART,)}, in_quick=False),
        Arms({"apart": ("processes",), "apart_concurrency": (4,), "beside": (FOUR_APART,)}, in_quick=False),
        Arms({"job": ("nudge",), "args": ({"rounds": 4},), "beside": (ONE,)}),
        Arms({"job": ("nudge",), "args": ({"rounds": 4},), "beside": (None,)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="convoy/delay",
            says="One thread that computes makes a job of four waits of 1 ms at least three times as long.",
            measure=Ratio(
                "service_p50_s",
                of={"args": {"rounds": 4, "ms": 1}, "beside": ONE, "apart": None, "switch_interval_s": 0.005},
                to={"job": "naps", "beside": None},
            ),
            at_least=3,
            why="After each wait the job needs the GIL back, and the other thread gives it up only after 5 ms.",
            advice="Never mix computing jobs into a threads worker that answers quick ones: give them their own queue.",
        ),
        Claim(
            id="convoy/switch-interval",
            says="The delay follows the switch interval: four times the interval, at least 2.5 times the time.",
            measure=Ratio(
                "service_p50_s",
                of={"switch_interval_s": 0.02},
                to={"args": {"rounds": 4, "ms": 1}, "beside": ONE, "apart": None, "switch_interval_s": 0.005},
            ),
            at_least=2.5,
            why="The waiting thread may ask for the GIL only once per interval.",
            advice="A shorter sys.setswitchinterval shortens the delay in proportion; thread-overhead says the price.",
        ),
        Claim(
            id="convoy/hand-overs",
            says="The delay follows the hand-overs: six times as many waits, at least four times the time.",
            measure=Ratio("service_p50_s", of={"args": {"rounds": 12, "ms": 1}}, to={"args": {"rounds": 2, "ms": 1}}),
            at_least=4,
            why="Every return from a wait is a new wait for the GIL.",
            advice="Beside computing threads, few large reads are quicker than many small ones.",
        ),
        Claim(
            id="convoy/short-calls",
            says="Four short system calls that need not wait take on average at most half as long as four waits.",
            # The mean: where about half of the jobs lose the GIL once, the median jumps between two values.
            measure=Ratio(
                "service_mean_s",
                of={"job": "nudge", "beside": ONE},
                to={
                    "job": "naps",
                    "args": {"rounds": 4, "ms": 1},
                    "beside": ONE,
                    "apart": None,
                    "switch_interval_s": 0.005,
                },
            ),
            at_most=0.5,
            why="Each lets go of the GIL and gambles for it: often it is back at once, at times only after a switch "
            "interval or more (bpo-7946).",
            advice="No call that lets go of the GIL is safe: some jobs lose it for an interval or more.",
            otherwise="Even calls that need not wait lose the GIL here: make few, or give them a process of their own.",
        ),
        Claim(
            id="convoy/processes",
            says="Beside the same work in another process the job takes at most 1.5 times as long as alone.",
            measure=Ratio(
                "service_p50_s", of={"beside": ONE, "apart": "processes"}, to={"job": "naps", "beside": None}
            ),
            at_most=1.5,
            needs_cores=2,
            why="The other process has a GIL of its own; only the core's caches and clock are shared.",
            advice="A process of its own is the cure, not a shorter interval.",
        ),
    ),
    charts=(
        Curve(
            "Four waits of 1 ms beside one computing thread, against the switch interval",
            y="service_p50_s",
            x="switch_interval_ms",
            where={"args": {"rounds": 4, "ms": 1}, "beside": ONE, "apart": None},
            predicted=("convoy_s",),
        ),
        Curve(
            "Time against the number of waits, beside one computing thread",
            y="service_p50_s",
            x="handovers",
            where={"job": "naps", "beside": ONE, "apart": None, "switch_interval_s": 0.005},
            predicted=("convoy_s",),
        ),
        Curve(
            "Four waits of 1 ms against the number of computing jobs, in the same process and in others",
            y="service_p50_s",
            x="computing",
            where={"args": {"rounds": 4, "ms": 1}, "switch_interval_s": 0.005},
            predicted=("convoy_s",),
            log=False,
        ),
    ),
)
