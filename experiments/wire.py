"""What is in a message besides the payload, and what can be left out."""

from lab.model import Arms, Claim, Experiment, Heat, Level, Ratio, Setup, Stack
from producer.pacers import Burst
from producer.payloads import Args, Payload

SMALL: Args = {"payload": Payload("records", 100)}
MIDDLE: Args = {"payload": Payload("records", 10_000)}
PLAIN = {"codec": "json", "compression": None, "argsrepr": True, "base64": True, "results": None}

experiment = Experiment(
    name="wire",
    question="What does a message carry besides its payload, and what do the remedies save?",
    base=Setup(job="echo", args=SMALL, pacer=Burst(100), pool="threads", concurrency=1),
    quick={"pacer": Burst(50)},
    arms=(
        Arms({"args": (SMALL, MIDDLE)}),
        Arms({"args": (MIDDLE,), "argsrepr": (False,)}),
        Arms({"args": (MIDDLE,), "base64": (False,)}),
        Arms({"args": (MIDDLE,), "compression": ("zlib",)}),
        Arms({"args": (SMALL,), "results": ("ignored", "stored")}),
        Arms({"args": (SMALL,), "argsrepr": (False,)}, in_quick=False),
        Arms({"args": (SMALL,), "compression": ("zlib",)}, in_quick=False),
        Arms({"args": (MIDDLE,), "compression": ("zstd", "lz4")}, in_quick=False),
        Arms(
            {
                "args": (SMALL, MIDDLE),
                "codec": ("msgpack", "pickle", "yaml", "orjson", "msgspec-json", "msgspec-msgpack", "pickle5"),
            },
            in_quick=False,
        ),
        Arms({"args": (MIDDLE,), "codec": ("msgpack", "orjson"), "argsrepr": (False,)}, in_quick=False),
        Arms({"args": (MIDDLE,), "codec": ("msgpack", "orjson"), "compression": ("zlib",)}, in_quick=False),
        Arms({"args": (MIDDLE,), "codec": ("orjson",), "base64": (False,)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="wire/overhead",
            says="A message whose payload is 100 bytes has at least 600 bytes besides.",
            measure=Level("header_bytes", of={**PLAIN, "args": SMALL}),
            at_least=600,
            why="Celery's headers, kombu's properties and two ids are the same for a small job as for a large one.",
            advice="Do not trim arguments of some bytes: put several small jobs into one message instead.",
        ),
        Claim(
            id="wire/three-times",
            says="A job with 10 kB of payload moves at least three times its message's size through the broker.",
            measure=Level("times_through_broker", of={**PLAIN, "args": MIDDLE}),
            at_least=3,
            why="LPUSH brings it, BRPOP fetches it, and HSET sends all of it back, as not acknowledged yet.",
            advice="Count a byte saved in a message three times on the broker's network: leave out base64 and texts.",
        ),
        Claim(
            id="wire/argument-text",
            says="Without its arguments as text, a message with 10 kB of payload is at most 0.95 times as large.",
            measure=Ratio(
                "message_bytes", of={**PLAIN, "args": MIDDLE, "argsrepr": False}, to={**PLAIN, "args": MIDDLE}
            ),
            at_most=0.95,
            why="Celery writes up to a kilobyte of the arguments a second time, for people who watch the queue.",
            advice="Send argsrepr='' and kwargsrepr='' where nobody reads them; it also keeps secrets out of logs.",
        ),
        Claim(
            id="wire/base64",
            says="Without base64, a message with 10 kB of JSON is at most 0.9 times as large.",
            measure=Ratio("message_bytes", of={**PLAIN, "args": MIDDLE, "base64": False}, to={**PLAIN, "args": MIDDLE}),
            at_most=0.9,
            why="Base64 adds a third to every body; a JSON body inside JSON needs only its quotes escaped.",
            advice="broker_transport_options={'body_encoding': None} does it for text bodies; any worker reads both.",
        ),
        Claim(
            id="wire/zlib",
            says="With zlib, a message with 10 kB of records is at most half as large.",
            measure=Ratio(
                "message_bytes", of={**PLAIN, "args": MIDDLE, "compression": "zlib"}, to={**PLAIN, "args": MIDDLE}
            ),
            at_most=0.5,
            why="Records repeat their keys, and compression takes repetition away before base64 adds its third.",
            advice="Set task_compression when the network is the limit; see what it costs in CPU time first.",
        ),
        # Of a template's message. Each delay() of such a job also subscribes to the channel of its result, and so has
        # the broker do one command more: 16, not 15, where 10 are done without a backend.
        Claim(
            id="wire/results",
            says="A job whose result is kept costs the broker at least 1.4 times the commands.",
            measure=Ratio(
                "commands_per_job", of={**PLAIN, "args": SMALL, "results": "stored"}, to={**PLAIN, "args": SMALL}
            ),
            at_least=1.4,
            why="The worker asks what is stored already, stores, sets an expiry and tells whoever listens.",
            advice="Set ignore_result=True on every task whose result nobody reads.",
        ),
    ),
    charts=(
        Stack(
            "Bytes of a message by part",
            parts=("body_bytes", "base64_bytes", "argument_text_bytes", "header_bytes"),
            where={"codec": "json", "results": None},
        ),
        Stack(
            "Bytes through the broker for each job",
            parts=("broker_in_bytes_per_job", "broker_out_bytes_per_job"),
            where={"codec": "json", "results": None},
        ),
        Heat(
            "Size of a message by serializer",
            y="message_bytes",
            rows="codec",
            columns="size_name",
            where={"compression": None, "argsrepr": True, "base64": True, "results": None},
        ),
    ),
)
