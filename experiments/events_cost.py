"""What it costs to watch through Celery's own events: off, on, and on with a Flower that listens."""

from lab.model import Arms, Claim, Experiment, Level, Ratio, Setup
from producer.pacers import Burst
from producer.payloads import Calibrated

NOOP, TEN_MS = Burst(1000), Burst(100)
WATCHED = ("off", "on", "flower")
PREFORK = {"pool": "prefork", "job": "noop"}
EVENTLET = {"pool": "eventlet", "job": "noop"}
THREADS = {"pool": "threads", "job": "digest"}


def _noop(pool: str, slots: int, *, in_quick: bool) -> Arms:
    return Arms({"pool": (pool,), "concurrency": (slots,), "events": WATCHED}, in_quick=in_quick)


def _ten_ms(pool: str, *, in_quick: bool) -> Arms:
    # One slot: a run that fills every core measures its neighbours, and Flower is one.
    return Arms(
        {
            # In C: the same Python loop differs by several percent from process to process, C code does not.
            "job": ("digest",),
            "args": ({"chunks": Calibrated(ms=10)},),
            "pacer": (TEN_MS,),
            "pool": (pool,),
            "concurrency": (1,),
            "events": WATCHED,
        },
        in_quick=in_quick,
    )


experiment = Experiment(
    name="events-cost",
    question="How much slower do jobs get because a worker sends events, and because Flower listens?",
    base=Setup(job="noop", args={}, pacer=NOOP, keep_awake=True),
    arms=(
        _noop("prefork", 2, in_quick=True),
        _noop("eventlet", 10, in_quick=True),
        _ten_ms("threads", in_quick=True),
        _noop("threads", 2, in_quick=False),
        _noop("solo", 1, in_quick=False),
        _ten_ms("prefork", in_quick=False),
    ),
    claims=(
        Claim(
            id="events-cost/prefork",
            says="Events leave a prefork worker at least 75 % of its throughput of jobs that do nothing.",
            measure=Ratio("throughput_hz", of={**PREFORK, "events": "on"}, to={**PREFORK, "events": "off"}),
            at_least=0.75,
            why="Three events a job are put into JSON by the parent, which is busy already, and sent some at a time.",
            advice="Leave -E off on workers of very short jobs unless somebody looks; a longer job hides the price.",
        ),
        Claim(
            id="events-cost/prefork-flower",
            says="With a Flower that listens on the same machine, a prefork worker keeps at least 60 % of it.",
            measure=Ratio("throughput_hz", of={**PREFORK, "events": "flower"}, to={**PREFORK, "events": "off"}),
            at_least=0.60,
            why="Flower reads every event and wants a core of its own for as long as jobs come that fast.",
            advice="Give Flower a machine or a core of its own where a worker does hundreds of short jobs a second.",
        ),
        Claim(
            id="events-cost/eventlet",
            says="Events cost an eventlet worker at least a fifth of its throughput of jobs that do nothing.",
            measure=Ratio("throughput_hz", of={**EVENTLET, "events": "on"}, to={**EVENTLET, "events": "off"}),
            at_most=0.80,
            why="Without an event loop of Celery's own each event is sent by itself: three more commands a job.",
            advice="Leave -E off on eventlet and gevent workers whose jobs are short.",
        ),
        Claim(
            id="events-cost/ten-ms",
            says="Events leave a threads worker at least 95 % of its throughput of 10 ms jobs.",
            measure=Ratio("throughput_hz", of={**THREADS, "events": "on"}, to={**THREADS, "events": "off"}),
            at_least=0.95,
            why="The price is per job, some tenths of a millisecond, and the job is long beside it.",
            advice="Leave -E on where somebody looks; the price is per job, so it matters where jobs are short.",
        ),
        Claim(
            id="events-cost/ten-ms-flower",
            says="With a Flower that listens, a threads worker keeps at least 93 % of it.",
            measure=Ratio("throughput_hz", of={**THREADS, "events": "flower"}, to={**THREADS, "events": "off"}),
            at_least=0.93,
            why="Flower has the other core to itself; what it adds is what the broker sends it.",
            advice="Let Flower have a core that is free; beside jobs that fill the cores it takes its share of them.",
        ),
        Claim(
            id="events-cost/flower-cpu",
            says="Flower spends at most 1 ms of CPU on a job.",
            measure=Level("watcher_cpu_s_per_job", of={**PREFORK, "events": "flower"}),
            at_most=0.001,
            why="Three events are read, kept, indexed and counted, by one Python process.",
            advice="Count a core of Flower up to a thousand jobs a second. It is one process: much beyond that it falls"
            " behind.",
        ),
    ),
    quick={"pacer": Burst(300)},
    repeats=10,
    not_in_a_look="few repeats do not decide what is a few percent",
    side_by_side="events",
)
