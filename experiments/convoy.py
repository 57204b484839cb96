"""The convoy effect: a thread that only wants the GIL for a moment waits behind one that computes."""

from lab.model import Arms, Claim, Curve, Experiment, Load, Ratio, Setup
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated

ONE = Load("spin", {"loops": Calibrated(ms=1600)}, Burst(1))
TWO = Load("spin", {"loops": Calibrated(ms=800)}, Burst(2))
FOUR = Load("spin", {"loops": Calibrated(ms=400)}, Burst(4))

experiment = Experiment(
    name="convoy",
    question="How long does a quick job wait for the GIL beside jobs that compute?",
    base=Setup(
        job="nudge",
        args={"rounds": 2},
        pacer=Constant(8, 1.5),
        queued=False,
        pool="threads",
        concurrency=8,
        beside=ONE,
        switch_interval_s=0.005,
    ),
    arms=(
        Arms({"beside": (None, ONE, TWO, FOUR)}),
        Arms({"switch_interval_s": (0.0001, 0.001, 0.02)}),
        Arms({"args": ({"rounds": 1}, {"rounds": 6})}),
        Arms({"apart": ("processes",)}),
    ),
    claims=(
        Claim(
            id="convoy/delay",
            says="One thread that computes makes a job of four short system calls at least a hundred times as long.",
            measure=Ratio(
                "service_p50_s",
                of={"args": {"rounds": 2}, "beside": ONE, "apart": None, "switch_interval_s": 0.005},
                to={"beside": None},
            ),
            at_least=100,
            why="Each call lets go of the GIL, and each return waits up to 5 ms until the other thread lets go of it.",
            advice="Never mix computing jobs into a threads worker that answers quick ones: give them their own queue.",
        ),
        Claim(
            id="convoy/switch-interval",
            says="The delay follows the switch interval: four times the interval, at least three times the delay.",
            measure=Ratio(
                "service_p50_s",
                of={"switch_interval_s": 0.02},
                to={"args": {"rounds": 2}, "beside": ONE, "apart": None, "switch_interval_s": 0.005},
            ),
            at_least=3,
            why="The waiting thread may ask for the GIL only once per interval.",
            advice="A shorter sys.setswitchinterval shortens the delay in proportion; thread-overhead says the price.",
        ),
        Claim(
            id="convoy/hand-overs",
            says="The delay follows the hand-overs: six times as many, at least four times the delay.",
            measure=Ratio("service_p50_s", of={"args": {"rounds": 6}}, to={"args": {"rounds": 1}}),
            at_least=4,
            why="Every return from a system call is a new wait for the GIL.",
            advice="Beside computing threads, fewer and larger reads and writes are quicker than many small ones.",
        ),
        Claim(
            id="convoy/processes",
            says="Beside the same work in another process the job takes at most three times as long as alone.",
            measure=Ratio("service_p50_s", of={"apart": "processes"}, to={"beside": None}),
            at_most=3,
            needs_cores=2,
            why="The other process has a GIL of its own; only the core's caches and clock are shared.",
            advice="A process of its own is the cure, not a shorter interval.",
        ),
    ),
    charts=(
        Curve(
            "Time of four system calls beside one computing thread, against the switch interval",
            y="service_p50_s",
            x="switch_interval_ms",
            where={"args": {"rounds": 2}, "beside": ONE, "apart": None},
            predicted=("convoy_s",),
        ),
        Curve(
            "Time against hand-overs of the GIL, beside one computing thread",
            y="service_p50_s",
            x="handovers",
            where={"beside": ONE, "apart": None, "switch_interval_s": 0.005},
            predicted=("convoy_s",),
        ),
        Curve(
            "Time against the number of computing threads",
            y="service_p50_s",
            x="hogs",
            where={"args": {"rounds": 2}, "apart": None, "switch_interval_s": 0.005},
            predicted=("convoy_s",),
            log=False,
        ),
    ),
)
