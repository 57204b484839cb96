"""Send the payload, or say where it lies?"""

from lab.model import Arms, BreakEven, Claim, Curve, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Args, Referred

SIZES = (1_000, 10_000, 100_000, 1_000_000)
INLINE: tuple[Args, ...] = tuple({"load": Referred("inline", size)} for size in SIZES)
REDIS: tuple[Args, ...] = tuple({"load": Referred("redis", size)} for size in SIZES)
FILE: tuple[Args, ...] = tuple({"load": Referred("file", size)} for size in SIZES)
ONE_A_JOB: Args = {"load": Referred("redis", SIZES[-1], each=True)}
SHM: tuple[Args, ...] = tuple({"load": Referred("shm", size)} for size in SIZES)

# But for ONE_A_JOB all jobs of a trial read one object, put before the clock starts: one put, many reads.
experiment = Experiment(
    name="by-reference",
    question="From which size on is it better to send a key than the payload?",
    base=Setup(job="weigh", args=INLINE[0], pacer=Burst(60), pool="prefork"),
    quick={"pacer": Burst(30)},
    arms=(
        Arms({"args": (ONE_A_JOB, *(args for way in (INLINE, REDIS, SHM, FILE) for args in (way[0], *way[2:])))}),
        Arms({"args": tuple(way[1] for way in (INLINE, REDIS, SHM, FILE))}, in_quick=False),
    ),
    claims=(
        Claim(
            id="by-reference/redis",
            says="A payload put once in Redis for all jobs beats one in each message from 100 kB on, or smaller ones.",
            measure=BreakEven(of={"via": "redis"}, to={"via": "inline"}, axis="size_bytes"),
            at_most=100_000,
            why="The message crosses the broker, JSON, base64 and a pipe; a key costs one GET of raw bytes.",
            advice="Put large arguments into Redis or an object store, with an expiry, and send the key.",
        ),
        Claim(
            id="by-reference/one-a-job",
            says="With 1 MB put in Redis for each job, and dropped by it, jobs run at least 1.5 times as fast as with"
            " it in the message.",
            measure=Ratio("throughput_hz", of={"args": ONE_A_JOB}, to={"args": INLINE[-1]}),
            at_least=1.5,
            why="One SET, one GET and one DEL of raw bytes are cheaper than JSON and base64 on both sides and a pipe.",
            advice="Give every key an expiry all the same: a job that never runs drops nothing.",
        ),
        Claim(
            id="by-reference/file",
            says="A payload put once in a file beats one in each message from 100 kB on, or smaller ones.",
            measure=BreakEven(of={"via": "file"}, to={"via": "inline"}, axis="size_bytes"),
            at_most=100_000,
            why="A file that was just written lies in the kernel's memory, and is read without any broker.",
            advice="On one machine, or a shared disk, a path is the simplest reference.",
        ),
        Claim(
            id="by-reference/memory",
            says="A payload put once in shared memory beats one in each message from 30 kB on, or smaller ones.",
            measure=BreakEven(of={"via": "shm"}, to={"via": "inline"}, axis="size_bytes"),
            at_most=30_000,
            why="On one machine nobody has to copy it but the job itself.",
            advice="It is for one machine, and somebody must take it away: use it inside a service, not between them.",
        ),
        Claim(
            id="by-reference/large",
            says="With 1 MB, jobs that all read one shared memory run at least five times as fast as jobs that carry"
            " it.",
            measure=Ratio("throughput_hz", of={"args": SHM[-1]}, to={"args": INLINE[-1]}),
            at_least=5,
            why="What is left of such a job is the way of a small one.",
            advice="For a payload that many jobs share, put it once and keep it in the process that read it.",
        ),
    ),
    charts=(Curve("Jobs a second against the payload's size, by where it lies", y="throughput_hz", x="size_bytes"),),
)
