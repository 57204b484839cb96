"""Threads slower than no threads: then and now."""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

experiment = Experiment(
    name="thread-overhead",
    question="Is pure-Python work slower in many threads than in one?",
    base=Setup(job="spin", args={"loops": Calibrated(ms=25)}, pacer=Burst(48), queued=False, pool="threads"),
    quick={"pacer": Burst(32)},
    arms=(
        Arms({"pool": ("serial",)}),
        Arms({"concurrency": (1, 2, 16)}),
        Arms({"concurrency": (4, 8)}, in_quick=False),
        Arms({"concurrency": (16,), "switch_interval_s": (0.0001,)}),
    ),
    claims=(
        Claim(
            id="thread-overhead/two",
            says="Two threads need at least a fifth more time than one for the same pure-Python work.",
            measure=Ratio("throughput_hz", of={"concurrency": 1, "pool": "threads"}, to={"concurrency": 2}),
            at_least=1.2,
            why="So it is still said, of Python 2, where two threads took 1.8 times as long (Beazley, 2009), since they"
            " fought for the GIL; that of Python 3.2 was made to end it.",
            advice="A second thread makes such work slower here: keep it to one thread, or use processes.",
            otherwise="Threads gain nothing for such work, but two of them cost less than a fifth.",
        ),
        Claim(
            id="thread-overhead/sixteen",
            says="Sixteen threads keep at least nine tenths of the throughput of one.",
            measure=Ratio(
                "throughput_hz",
                of={"concurrency": 16, "switch_interval_s": None},
                to={"concurrency": 1, "pool": "threads"},
            ),
            at_least=0.9,
            why="Since Python 3.2 a waiting thread asks for the GIL only every 5 ms: little is left to fight over.",
            advice="Too many threads for CPU work waste memory rather than time; the time goes to latency, see convoy.",
            otherwise="Too many threads for CPU work cost time too here: send it to one process a core.",
        ),
        Claim(
            id="thread-overhead/switch-interval",
            says="Sixteen threads lose less than a tenth when the switch interval is fifty times as short.",
            measure=Ratio(
                "throughput_hz",
                of={"concurrency": 16, "switch_interval_s": 0.0001},
                to={"concurrency": 16, "switch_interval_s": None},
            ),
            at_least=0.9,
            why="It is said that a switch costs some microseconds: a few per cent at 0.1 ms, under a per mille at 5 ms."
            " But every waiting thread wakes once an interval to ask for the GIL.",
            advice="sys.setswitchinterval buys latency for little throughput; measure both before you touch it.",
            otherwise="A short sys.setswitchinterval is dear here with many computing threads: leave it alone.",
        ),
    ),
    charts=(Curve("Throughput against threads", y="throughput_hz", x="slots", where={"pool": "threads"}),),
)
