"""How long must a job be to be worth sending, when it has something to carry?"""

from lab.model import Arms, BreakEven, Claim, Curve, Experiment, Setup
from producer.pacers import Burst
from producer.payloads import Args, Calibrated, Payload

SMALL, LARGE = Payload("records", 1_000), Payload("records", 1_000_000)


LIGHT: tuple[Args, ...] = tuple({"payload": SMALL, "loops": Calibrated(ms=ms, like="spin")} for ms in (1, 3, 10))
LIGHT_LONGER: tuple[Args, ...] = ({"payload": SMALL, "loops": Calibrated(ms=30, like="spin")},)
HEAVY: tuple[Args, ...] = tuple({"payload": LARGE, "loops": Calibrated(ms=ms, like="spin")} for ms in (30, 100, 300))
LONG: Args = {"payload": LARGE, "loops": Calibrated(ms=1000, like="spin")}
"""So long that a megabyte pays, too: without it there may be no crossing to find."""
LOOP = {"pool": ("serial",), "concurrency": (1,)}
A_FEW = (Burst(6),)
FOR_A_LOOK = {"pacer": Burst(6)}

experiment = Experiment(
    name="payload-break-even",
    question="How long must a job be to be worth sending, by what it carries?",
    # Two processes, however many cores there are: all the claims are about two.
    base=Setup(job="carry", args=LIGHT[0], pacer=Burst(16), pool="prefork", concurrency=2),
    quick={"pacer": Burst(12)},
    halvings=3,
    arms=(
        Arms({"args": LIGHT}),
        Arms({"args": HEAVY}, quick=FOR_A_LOOK),
        Arms({"args": HEAVY, "codec": ("msgspec-msgpack",)}, quick=FOR_A_LOOK),
        Arms({"args": LIGHT, "queued": (False,), **LOOP}),
        Arms({"args": LIGHT_LONGER}, in_quick=False),
        Arms({"args": LIGHT_LONGER, "queued": (False,), **LOOP}, in_quick=False),
        Arms({"args": HEAVY, "queued": (False,), **LOOP}, quick=FOR_A_LOOK),
        Arms({"args": (LONG,), "pacer": A_FEW, "codec": ("json", "msgspec-msgpack")}, in_quick=False),
        Arms({"args": (LONG,), "pacer": A_FEW, "queued": (False,), **LOOP}, in_quick=False),
    ),
    claims=(
        Claim(
            id="payload-break-even/small",
            says="With 1 kB to carry, two prefork processes beat a plain loop from jobs of 10 ms on, or shorter ones.",
            measure=BreakEven(
                of={"queued": True, "payload_bytes": 1_000}, to={"queued": False, "payload_bytes": 1_000}
            ),
            at_most=10,
            needs_cores=2,
            why="A kilobyte is little beside the headers: the way costs what it costs without a payload.",
            advice="Small arguments are not what makes a queue dear; short jobs are.",
        ),
        Claim(
            id="payload-break-even/large",
            says="With 1 MB of JSON to carry, they beat the loop only from jobs of 20 ms on, or longer ones.",
            measure=BreakEven(
                of={"queued": True, "codec": "json", "payload_bytes": 1_000_000},
                to={"queued": False, "payload_bytes": 1_000_000},
            ),
            at_least=20,
            needs_cores=2,
            why="Producer, parent and child each spend tens of milliseconds on a megabyte, the loop none.",
            advice="Let a job be several times as long as the break-even of its payload, or send a key.",
        ),
        Claim(
            id="payload-break-even/fast-codec",
            says="With msgspec's MessagePack for the same 1 MB, they do so from jobs of 40 ms on, or shorter ones.",
            measure=BreakEven(
                of={"queued": True, "codec": "msgspec-msgpack", "payload_bytes": 1_000_000},
                to={"queued": False, "payload_bytes": 1_000_000},
            ),
            at_most=40,
            needs_cores=2,
            why="The codec's part shrinks; base64, the pipe and pickle stay.",
            advice="A faster codec moves the break-even, a reference takes the payload out of it.",
        ),
    ),
    charts=(Curve("Throughput against job length", y="throughput_hz", x="work_ms"),),
)
