"""Work that is partly outside the GIL: how far do threads carry it?"""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated


def _blend(share: float) -> dict[str, Calibrated]:
    return {
        "loops": Calibrated(ms=20 * (1 - share), like="spin"),
        "chunks": Calibrated(ms=20 * share, like="digest"),
    }


experiment = Experiment(
    name="gil-share",
    question="How much do two threads speed up work of which a share lets go of the GIL?",
    base=Setup(job="blend", args=_blend(0.5), pacer=Burst(40), queued=False, pool="threads"),
    quick={"pacer": Burst(24)},
    arms=(
        Arms({"args": (_blend(0), _blend(0.5), _blend(1)), "concurrency": (1, 2)}),
        Arms({"args": (_blend(0.25), _blend(0.75)), "concurrency": (1, 2)}, in_quick=False),
        Arms({"job": ("squeeze",), "args": ({"chunks": Calibrated(ms=20)},), "concurrency": (1, 2)}),
        Arms({"job": ("sine",), "args": ({"rounds": Calibrated(ms=20)},), "concurrency": (1, 2)}),
    ),
    claims=(
        Claim(
            id="gil-share/half",
            says="Two threads do work that is half outside the GIL at least 1.3 times as fast as one.",
            measure=Ratio(
                "throughput_hz",
                of={"args": _blend(0.5), "concurrency": 2},
                to={"args": _blend(0.5), "concurrency": 1},
            ),
            at_least=1.3,
            needs_cores=2,
            why="While one thread holds the GIL the other hashes: Amdahl's 1.33 for one job, up to 2 for many.",
            advice="Profile for the share of time outside Python before you choose between threads and processes.",
        ),
        Claim(
            id="gil-share/zlib",
            says="Two threads compress with zlib at least 1.6 times as fast as one.",
            measure=Ratio(
                "throughput_hz", of={"job": "squeeze", "concurrency": 2}, to={"job": "squeeze", "concurrency": 1}
            ),
            at_least=1.6,
            needs_cores=2,
            why="zlib lets go of the GIL while it compresses.",
            advice="Compression in a threads worker scales with cores.",
        ),
        Claim(
            id="gil-share/numpy",
            says="Two threads of NumPy arithmetic are at least 1.6 times as fast as one.",
            measure=Ratio("throughput_hz", of={"job": "sine", "concurrency": 2}, to={"job": "sine", "concurrency": 1}),
            at_least=1.6,
            needs_cores=2,
            why="NumPy's inner loops over numbers run without the GIL.",
            advice="Vectorise first; threads then do what processes would, without copying the arrays.",
        ),
    ),
    charts=(
        Curve(
            "Speed-up of two threads against the share of work outside the GIL",
            y="throughput_hz",
            x="outside_share",
            where={"job": "blend", "concurrency": 2},
            to={"job": "blend", "concurrency": 1},
            predicted=("amdahl", "gil_bound"),
            log=False,
        ),
    ),
)
