"""What it costs to watch: marks on against marks off."""

from lab.model import Arms, Claim, Experiment, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated
from tasks.pools import POOLS

NOOP, TEN_MS = Burst(1500), Burst(100)
BOTH = (True, False)
SLOTS = {"solo": 1, "prefork": 2, "threads": 2, "eventlet": 10, "gevent": 10}


def _slots(pool: str, job: str) -> int:
    # One slot where slots compute side by side: a run that fills every core measures its neighbours.
    return 1 if job == "digest" and pool in {"prefork", "threads"} else SLOTS[pool]


def _claim(pool: str, job: str, at_least: float) -> Claim:
    where, slots = {"pool": pool, "job": job}, _slots(pool, job)
    of = f"{slots} slots" if slots > 1 else "one slot"
    jobs = "digest jobs of 10 ms" if job == "digest" else f"{job} jobs"
    return Claim(
        id=f"observer-cost/{pool}-{job}",
        says=f"Marks leave {pool} with {of} at least {at_least:.0%} of its throughput of {jobs}.",
        measure=Ratio("drain_hz", of={**where, "marks": True}, to={**where, "marks": False}),
        at_least=at_least,
        why="A mark is two writes into mapped memory, a function around the job and one of Celery's signals.",
        advice="Leave marks on in a load test; this says nothing of what else `sidestep worker` does.",
        otherwise="Marks are part of what such jobs cost here: compare only figures that were taken with them.",
    )


experiment = Experiment(
    name="observer-cost",
    question="How much slower do jobs get because Sidestep watches them?",
    base=Setup(job="noop", args={}, pacer=NOOP, acks_late=True, watch_broker=True, keep_awake=True),
    arms=tuple(
        arms
        for pool in POOLS
        for arms in (
            Arms({"pool": (pool,), "concurrency": (SLOTS[pool],), "marks": BOTH}),
            Arms(
                {
                    # In C: the same Python loop differs by several percent from process to process, C code does not.
                    "job": ("digest",),
                    "args": ({"chunks": Calibrated(ms=10)},),
                    "pacer": (TEN_MS,),
                    "pool": (pool,),
                    "concurrency": (_slots(pool, "digest"),),
                    "marks": BOTH,
                },
            ),
        )
    ),
    claims=tuple(_claim(pool, job, least) for pool in POOLS for job, least in (("noop", 0.90), ("digest", 0.98))),
    quick={"pacer": Burst(500)},
    # With 20 one claim in ten stayed undecided on a second machine, though none was refuted: one per cent takes more.
    repeats=40,
    not_in_a_look="few repeats do not decide what is a few percent",
    side_by_side="marks",
)
