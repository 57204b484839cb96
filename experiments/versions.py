"""The version can matter more than the pool: the same worker under older Celery and kombu."""

from lab.model import Arms, Claim, Experiment, Ratio, Setup
from producer.pacers import Burst

OLDER = ("celery==5.6.3", "kombu==5.6.2")


def _acknowledged(pool: str, why: str) -> Claim:
    return Claim(
        id=f"versions/{pool}-acks",
        says=f"In {pool} the gap from a job's end to its acknowledgement is at most 0.9 times as long under 5.7.",
        measure=Ratio("ack_gap_p50_s", of={"pool": pool, "packages": ()}, to={"pool": pool, "packages": OLDER}),
        at_most=0.9,
        why=why,
        advice="With late acknowledgements the gap is what a killed worker may do twice; until it ends, the job's place"
        " in the prefetch is taken.",
    )


experiment = Experiment(
    name="versions",
    question="Is the same worker faster under Celery and kombu 5.7 than under 5.6?",
    # Steps are marked on both sides, for the acknowledgements: some microseconds a job under either version.
    base=Setup(job="noop", args={}, pacer=Burst(600), concurrency=2, acks_late=True, steps=True),
    quick={"pacer": Burst(400)},
    arms=(Arms({"pool": ("threads", "gevent", "eventlet"), "packages": ((), OLDER)}),),
    claims=(
        Claim(
            id="versions/threads",
            says="A threads worker does empty jobs at least 1.2 times as fast under 5.7 as under 5.6.",
            measure=Ratio(
                "throughput_hz", of={"pool": "threads", "packages": ()}, to={"pool": "threads", "packages": OLDER}
            ),
            at_least=1.2,
            why="It is said that an acknowledgement made in a pool thread used to wait for the event loop's next tick.",
            advice="Measure an upgrade like a pool: the same load, both versions, one run.",
        ),
        Claim(
            id="versions/gevent",
            says="A gevent worker does empty jobs at least 1.2 times as fast under 5.7 as under 5.6.",
            measure=Ratio(
                "throughput_hz", of={"pool": "gevent", "packages": ()}, to={"pool": "gevent", "packages": OLDER}
            ),
            at_least=1.2,
            why="Celery 5.7 lets green workers acknowledge at once instead of in the next round of their loop.",
            advice="Measure an upgrade like a pool: the same load, both versions, one run.",
        ),
        Claim(
            id="versions/eventlet",
            says="An eventlet worker does empty jobs at least 1.2 times as fast under 5.7 as under 5.6.",
            measure=Ratio(
                "throughput_hz", of={"pool": "eventlet", "packages": ()}, to={"pool": "eventlet", "packages": OLDER}
            ),
            at_least=1.2,
            why="Celery 5.7 lets green workers acknowledge at once instead of in the next round of their loop.",
            advice="Measure an upgrade like a pool: the same load, both versions, one run.",
        ),
        _acknowledged("threads", "Both hand it over to the event loop; it is said that 5.6 waited for the next tick."),
        _acknowledged("gevent", "Until 5.7 it waited for the next round of the loop, which comes with a message."),
        _acknowledged("eventlet", "Until 5.7 it waited for the next round of the loop, which comes with a message."),
        Claim(
            id="versions/idle",
            says="Between two empty jobs a slot of a threads worker idles at most 0.9 times as long under 5.7.",
            measure=Ratio(
                "gap_p50_s", of={"pool": "threads", "packages": ()}, to={"pool": "threads", "packages": OLDER}
            ),
            at_most=0.9,
            why="The one thread that fetches the next job also sends the acknowledgements.",
            advice="Idle time between jobs is the queue's price: short jobs pay it most, so put them together.",
        ),
        Claim(
            id="versions/commands",
            says="A job costs the broker at most a tenth more commands under 5.7 than under 5.6.",
            measure=Ratio(
                "commands_per_job", of={"pool": "threads", "packages": ()}, to={"pool": "threads", "packages": OLDER}
            ),
            at_most=1.1,
            why="The protocol of kombu's Redis transport is the same in both.",
            advice="Read commands per job before you blame the broker.",
        ),
    ),
)
