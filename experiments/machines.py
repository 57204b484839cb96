"""Scaling over machines: simulated ones, or those that listen on the broker."""

from lab.model import Arms, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

WAITING = {"job": ("snooze",), "args": ({"ms": 50},), "pool": ("threads",), "concurrency": (2,)}

experiment = Experiment(
    name="machines",
    question="Is a queue served by eight machines eight times as fast as by one?",
    # As many jobs a machine in every setup: then all run equally long, and the end, when some wait for the last, weighs
    # the same. One job ahead, so that none holds a line of jobs while others have nothing left.
    base=Setup(
        job="spin",
        args={"loops": Calibrated(ms=50)},
        pacer=Burst(24),
        pool="prefork",
        prefetch=1,
        arena="compose",
        cpus=0.2,
    ),
    arms=(
        Arms({"nodes": (1,)}),
        Arms({"nodes": (2,), "pacer": (Burst(48),)}),
        Arms({"nodes": (3,), "pacer": (Burst(72),)}, in_quick=False),
        Arms({"nodes": (4,), "pacer": (Burst(96),)}, in_quick=False),
        Arms({"nodes": (6,), "pacer": (Burst(144),)}, in_quick=False),
        Arms({"nodes": (8,), "pacer": (Burst(192),)}),
        Arms({**WAITING, "nodes": (1,), "pacer": (Burst(120),)}),
        Arms({**WAITING, "nodes": (2,), "pacer": (Burst(240),)}, in_quick=False),
        Arms({**WAITING, "nodes": (3,), "pacer": (Burst(360),)}, in_quick=False),
        Arms({**WAITING, "nodes": (4,), "pacer": (Burst(480),)}, in_quick=False),
        Arms({**WAITING, "nodes": (6,), "pacer": (Burst(720),)}, in_quick=False),
        Arms({**WAITING, "nodes": (8,), "pacer": (Burst(960),)}),
    ),
    not_in_a_look="its machines take minutes to start",
    claims=(
        Claim(
            id="machines/computing",
            says="Eight machines do at least nine tenths of eight times as many computing jobs of 50 ms as one.",
            measure=Ratio(
                "throughput_hz",
                of={"job": "spin", "nodes": 8, "pacer": Burst(192)},
                to={"job": "spin", "nodes": 1, "pacer": Burst(24)},
            ),
            at_least=7.2,
            needs_cores=2,
            why="Machines share nothing but the broker, which does a job's commands in well under a millisecond.",
            advice="Where this is supported add machines as the queue grows; where not, look at the broker first.",
        ),
        Claim(
            id="machines/two",
            says="Two machines do at least nine tenths of twice as many computing jobs of 50 ms as one.",
            measure=Ratio(
                "throughput_hz",
                of={"job": "spin", "nodes": 2, "pacer": Burst(48)},
                to={"job": "spin", "nodes": 1, "pacer": Burst(24)},
            ),
            at_least=1.8,
            needs_cores=2,
            why="The same; this is what a second machine is bought for.",
            advice="Measure it on your own two machines: run with --arena attached.",
        ),
        Claim(
            id="machines/waiting",
            says="Eight machines do at least nine tenths of eight times as many jobs that wait for 50 ms as one.",
            measure=Ratio(
                "throughput_hz",
                of={"job": "snooze", "nodes": 8, "pacer": Burst(960)},
                to={"job": "snooze", "nodes": 1, "pacer": Burst(120)},
            ),
            at_least=7.2,
            needs_cores=2,
            why="Waiting costs no core anywhere; what is left is the queue's own work, most of it in the workers.",
            advice="Before a second machine for jobs that wait, give the first more slots: they cost less.",
        ),
    ),
    charts=(
        Curve(
            "Computing: speed-up over one machine",
            y="throughput_hz",
            x="machines",
            where={"job": "spin"},
            to={"job": "spin", "nodes": 1},
            to_one=True,
            predicted=("linear",),
            log=False,
        ),
        Curve(
            "Waiting: speed-up over one machine",
            y="throughput_hz",
            x="machines",
            where={"job": "snooze"},
            to={"job": "snooze", "nodes": 1},
            to_one=True,
            predicted=("linear",),
            log=False,
        ),
    ),
    laws=({"job": "spin"}, {"job": "snooze"}),
)
