"""What writing a job's arguments costs, and reading them again, in time and in bytes."""

from lab.model import Arms, Claim, Curve, Experiment, Heat, Level, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Args, Cycle

STEPS = Cycle(("encode", "decode", "size"))
CODECS = ("json", "msgpack", "pickle", "pickle5", "yaml", "orjson", "msgspec-json", "msgspec-msgpack")
QUICK_CODECS = ("json", "msgpack", "pickle", "yaml", "orjson")
# YAML takes so long that larger payloads are measured without it.
LARGE_CODECS = ("json", "msgpack", "pickle", "pickle5", "orjson", "msgspec-json", "msgspec-msgpack")
# And the largest is to show where a curve goes, and no more.
LARGEST_CODECS = ("json", "msgpack", "orjson")
SHAPES = ("records", "text", "numbers", "floats", "bytes", "noise", "tree")
COMPRESSIONS = (None, "zlib", "bz2", "lzma", "zstd", "brotli", "lz4")


def carrying(codec: str, shape: str, size_bytes: int, compression: str | None = None) -> Args:
    """The arguments of jobs that write and read such a payload."""
    return {"codec": codec, "compression": compression, "shape": shape, "size_bytes": size_bytes, "step": STEPS}


experiment = Experiment(
    name="codecs",
    question="What does a serializer cost, by what it carries?",
    base=Setup(job="transcode", args=carrying("json", "records", 10_000), pacer=Burst(3), queued=False, pool="serial"),
    arms=(
        Arms({"args": tuple(carrying(codec, "records", 10_000) for codec in QUICK_CODECS)}),
        Arms({"args": tuple(carrying(codec, "text", 10_000) for codec in ("json", "orjson"))}),
        Arms({"args": tuple(carrying(codec, "bytes", 10_000) for codec in ("json", "msgpack"))}),
        Arms({"args": (carrying("json", "records", 100),)}),
        Arms({"args": tuple(carrying("json", "records", 100_000, name) for name in ("zstd", "brotli"))}),
        Arms(
            {"args": tuple(carrying(codec, shape, 10_000) for codec in CODECS for shape in SHAPES)},
            in_quick=False,
        ),
        Arms(
            {"args": tuple(carrying(codec, "records", size) for codec in CODECS for size in (100, 1_000))},
            in_quick=False,
        ),
        Arms(
            {
                "args": tuple(
                    carrying(codec, "records", size) for codec in LARGE_CODECS for size in (100_000, 1_000_000)
                )
            },
            in_quick=False,
        ),
        Arms(
            {"args": tuple(carrying(codec, "records", 10_000_000) for codec in LARGEST_CODECS)},
            in_quick=False,
        ),
        Arms(
            {
                "args": tuple(
                    carrying("json", shape, 100_000, name)
                    for name in COMPRESSIONS
                    for shape in ("records", "text", "bytes", "noise")
                )
            },
            in_quick=False,
        ),
        Arms(
            {
                "args": tuple(
                    carrying(codec, "records", 100_000, name)
                    for codec in ("msgpack", "orjson", "msgspec-msgpack")
                    for name in ("zlib", "zstd", "lz4")
                )
            },
            in_quick=False,
        ),
    ),
    claims=(
        Claim(
            id="codecs/json",
            says="Celery's JSON takes at least 4 times as long as orjson to write and read 10 kB of records.",
            measure=Ratio(
                "coding_us",
                of={"args": carrying("json", "records", 10_000)},
                to={"args": carrying("orjson", "records", 10_000)},
            ),
            at_least=4,
            why="kombu's JSON calls a Python function for every dict that it reads, to see whether it is a date.",
            advice="Measure your own arguments with `sidestep bench codecs --payload FILE`, then register what wins.",
        ),
        Claim(
            id="codecs/msgpack",
            says="The msgpack that Celery knows already takes at most half the time of its JSON for such records.",
            measure=Ratio(
                "coding_us",
                of={"args": carrying("msgpack", "records", 10_000)},
                to={"args": carrying("json", "records", 10_000)},
            ),
            at_most=0.5,
            why="A length stands before each text and number, so nothing is escaped, and nothing must be searched.",
            advice="Let workers accept both first (accept_content json and msgpack), then set task_serializer to"
            " msgpack where jobs are sent: a worker of msgpack alone throws JSON jobs away. Dates it refuses.",
        ),
        Claim(
            id="codecs/small",
            says="Celery's JSON writes and reads 100 bytes within 50 µs.",
            measure=Level("coding_us", of={"args": carrying("json", "records", 100)}),
            at_most=50,
            why="It is C but for a few calls; a job's way through the queue takes milliseconds.",
            advice="Leave the serializer of small jobs alone; see `hops` for where their time goes.",
        ),
        Claim(
            id="codecs/text",
            says="Celery's JSON needs at least twice the bytes of UTF-8 for text in seven kinds of writing.",
            measure=Ratio(
                "coded_bytes",
                of={"args": carrying("json", "text", 10_000)},
                to={"args": carrying("orjson", "text", 10_000)},
            ),
            at_least=2,
            why="It writes all that is not ASCII as escapes of six characters, and of twelve for most emoji.",
            advice="Choose a codec that writes UTF-8 for texts that are not English, or compress them.",
        ),
        Claim(
            id="codecs/bytes",
            says="Celery's JSON takes at least 10 times as long as msgpack for 10 kB of bytes that are no text.",
            measure=Ratio(
                "coding_us",
                of={"args": carrying("json", "bytes", 10_000)},
                to={"args": carrying("msgpack", "bytes", 10_000)},
            ),
            at_least=10,
            why="kombu tries whether they are UTF-8, writes them in base64, and both ends look at each character.",
            advice="Send files and pictures by msgpack, or put them into a store and send their key.",
        ),
        Claim(
            id="codecs/pickle",
            says="orjson takes at most nine tenths of pickle's time for 10 kB of records.",
            measure=Ratio(
                "coding_us",
                of={"args": carrying("orjson", "records", 10_000)},
                to={"args": carrying("pickle", "records", 10_000)},
            ),
            at_most=0.9,
            why="Pickle remembers every object that it writes, in case it comes again; JSON has no such thing.",
            advice="Speed is no reason for pickle, which runs whatever a message tells it to.",
        ),
        Claim(
            id="codecs/yaml",
            says="YAML takes at least 50 times as long as JSON to write and read 10 kB of records.",
            measure=Ratio(
                "coding_us",
                of={"args": carrying("yaml", "records", 10_000)},
                to={"args": carrying("json", "records", 10_000)},
            ),
            at_least=50,
            why="kombu uses the part of PyYAML that is written in Python, even where its C library is there.",
            advice="Keep YAML for files that people write: Celery's JSON takes dates by itself, and sets as lists.",
        ),
        Claim(
            id="codecs/brotli",
            says="With brotli, 100 kB of records as JSON take at least 30 times as long as with zstd.",
            measure=Ratio(
                "coding_us",
                of={"args": carrying("json", "records", 100_000, "brotli")},
                to={"args": carrying("json", "records", 100_000, "zstd")},
            ),
            at_least=30,
            why="kombu calls each at its default, and brotli's is the slowest of its twelve qualities.",
            advice="Set task_compression to zstd, and install backports.zstd below Python 3.14: celery[zstd] does not.",
        ),
    ),
    charts=(
        Heat("Time to encode and decode, by serializer and shape", y="coding_us", rows="codec", columns="shape"),
        Heat("Encoded size, by serializer and shape", y="coded_bytes", rows="codec", columns="shape"),
        Heat("Size of 100 kB of JSON, compressed", y="coded_bytes", rows="compression", columns="shape"),
        Heat("Time to compress and decompress, beside JSON", y="coding_us", rows="compression", columns="shape"),
        Heat("Time for 100 kB of records, by serializer and compression", "coding_us", "codec", "compression"),
        Heat("Size of 100 kB of records, by serializer and compression", "coded_bytes", "codec", "compression"),
        Heat("Time to encode and decode records, by serializer and size", "coding_us", "codec", "size_name"),
        Curve("Time to encode and decode against the payload's size", y="coding_us", x="size_bytes"),
    ),
)
