"""From due to done, part by part."""

from lab.model import Arms, Claim, Curve, Experiment, Level, Ratio, Setup, Stack
from producer.pacers import Constant
from producer.payloads import Args, Payload

SMALL: Args = {"payload": Payload("records", 100), "loops": 1}
MIDDLE: Args = {"payload": Payload("records", 10_000), "loops": 1}
LARGE: Args = {"payload": Payload("records", 1_000_000), "loops": 1}
SLOWLY = (Constant(5, 4),)
"""A megabyte takes producer and worker some 100 ms; no job shall wait for the one before it."""
NEAR = {"codec": "json", "rtt_ms": None, "results": None}
PARTS = (
    "lag_part_s",
    "encode_part_s",
    "broker_part_s",
    "fetch_part_s",
    "register_part_s",
    "peek_part_s",
    "hop_part_s",
    "decode_part_s",
    "call_part_s",
    "run_part_s",
    "result_part_s",
)

experiment = Experiment(
    name="hops",
    question="Where does the time of a job go between due and done?",
    # So few jobs that each finds an idle worker: what is seen is the way itself, not a line of jobs before it.
    base=Setup(job="carry", args=SMALL, pacer=Constant(20, 2.5), pool="prefork", steps=True),
    quick={"pacer": Constant(20, 1.5)},
    arms=(
        Arms({"pool": ("threads", "prefork"), "args": (SMALL,)}),
        Arms(
            {"pool": ("prefork",), "args": (LARGE,), "pacer": SLOWLY, "codec": ("json", "orjson")},
            quick={"pacer": Constant(5, 2)},
        ),
        Arms({"pool": ("threads",), "args": (LARGE,), "pacer": SLOWLY}, in_quick=False),
        Arms({"pool": ("threads",), "rtt_ms": (0.0, 5.0)}),
        Arms({"pool": ("threads",), "rtt_ms": (0.5, 2.0)}, in_quick=False),
        Arms({"pool": ("prefork",), "rtt_ms": (0.0, 0.5, 2.0, 5.0)}, in_quick=False),
        Arms({"pool": ("threads", "prefork"), "results": ("stored",)}, in_quick=False),
        Arms({"pool": ("threads", "prefork"), "args": (MIDDLE,)}, in_quick=False),
        Arms({"pool": ("solo",)}, in_quick=False),
        Arms({"pool": ("solo",), "args": (LARGE,), "pacer": SLOWLY}, in_quick=False),
        Arms({"pool": ("eventlet", "gevent"), "concurrency": (10,)}, in_quick=False),
        Arms({"pool": ("gevent",), "concurrency": (10,), "args": (LARGE,), "pacer": SLOWLY}, in_quick=False),
        Arms(
            {"pool": ("prefork",), "args": (LARGE,), "pacer": SLOWLY, "codec": ("msgpack", "pickle5")}, in_quick=False
        ),
    ),
    claims=(
        Claim(
            id="hops/overhead",
            says="A small job spends at most 6 ms on its way through an idle prefork worker, beside its own work.",
            measure=Level("overhead_s", of={**NEAR, "pool": "prefork", "args": SMALL}),
            at_most=0.006,
            why="Publishing, one answer of the broker, one to register the message, a pipe, two decodings: each takes"
            " some tenths of a millisecond.",
            advice="A job of a millisecond is mostly way. See break-even for the length from which on it pays.",
        ),
        Claim(
            id="hops/hop",
            says="The hop into a prefork child takes at least 1.5 times as long as the one into a thread.",
            measure=Ratio(
                "hop_part_s",
                of={**NEAR, "pool": "prefork", "args": SMALL},
                to={**NEAR, "pool": "threads", "args": SMALL},
            ),
            at_least=1.5,
            why="The parent pickles the message into a pipe and the child has to be woken; a thread gets a pointer.",
            advice="For small jobs that let go of the GIL, threads save the pipe.",
        ),
        Claim(
            id="hops/size",
            says="A job with a 1 MB argument spends at least 40 ms on its way through a prefork worker.",
            measure=Level("overhead_s", of={**NEAR, "pool": "prefork", "args": LARGE}),
            at_least=0.04,
            why="It is encoded once, decoded twice, put into base64 and out again, and goes through the pipe twice: as "
            "raw body, and as decoded arguments, pickled beside it.",
            advice="Send a key instead: see by-reference for the size from which on that pays.",
        ),
        Claim(
            id="hops/codec",
            says="With orjson the way of a 1 MB argument through a prefork worker is at most 0.9 times as long.",
            measure=Ratio(
                "overhead_s",
                of={**NEAR, "codec": "orjson", "pool": "prefork", "args": LARGE},
                to={**NEAR, "pool": "prefork", "args": LARGE},
            ),
            at_most=0.9,
            why="A faster codec shortens one encoding and two decodings; base64 stays, and so does the hop: the pipe "
            "carries decoded arguments, pickled, beside the raw body.",
            advice="Change the serializer only where the codec's parts are a large share of the bar.",
        ),
        Claim(
            id="hops/distance",
            says="A round trip of 5 ms to the broker makes a small job's way to a thread at least four times as long.",
            measure=Ratio(
                "overhead_s",
                of={**NEAR, "rtt_ms": 5.0, "pool": "threads", "args": SMALL},
                to={**NEAR, "rtt_ms": 0.0, "pool": "threads", "args": SMALL},
            ),
            at_least=4,
            why="To the broker, to the worker, and there and back once more to register the message before it starts.",
            advice="Put workers next to their broker; where that cannot be, send fewer and larger jobs.",
        ),
    ),
    charts=(
        Stack("Time of a small job by part", parts=PARTS, where={"args": SMALL, "rtt_ms": None}),
        Stack("Time of a job with a 1 MB argument by part", parts=PARTS, where={"args": LARGE}),
        Curve(
            "Way of a small job against the distance to the broker",
            y="overhead_s",
            x="rtt_ms",
            where={"args": SMALL, "results": None},
            log=False,
        ),
    ),
)
