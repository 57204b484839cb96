"""Scaling over processes: the Universal Scalability Law."""

from lab.model import Arms, Claim, Curve, Experiment, ScalingLaw, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

experiment = Experiment(
    name="scaling-law",
    question="Does throughput over processes follow the Universal Scalability Law, and where does it end?",
    base=Setup(job="spin", args={"loops": Calibrated(ms=10)}, pacer=Burst(120), pool="prefork"),
    quick={"pacer": Burst(60)},
    not_in_a_look="few repeats do not fit a curve",
    arms=(Arms({"concurrency": (1, 2, 3, 4, 6, 8)}),),
    claims=(
        Claim(
            id="scaling-law/fit",
            says="The law's best curve through six loads misses none of them by more than a tenth.",
            measure=ScalingLaw(of={"pool": "prefork"}),
            at_most=0.1,
            needs_cores=8,
            why="Parent and broker serve one message at a time (contention); processes disturb each other (coherency).",
            advice="Read the two coefficients, not the curve: contention says buy a faster queue, coherency says stop.",
        ),
    ),
    charts=(Curve("Throughput against processes", y="throughput_hz", x="slots", predicted=("usl",), log=False),),
)
