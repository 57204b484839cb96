"""What a worker's knobs are worth: each alone, each preset, and each preset without one of its knobs."""

from lab.model import Arms, Claim, Experiment, Ratio, Setup
from producer.pacers import Burst
from tasks.knobs import KNOBS, PRESETS

STOCK: tuple[str, ...] = ()
PREFORK = {"pool": "prefork", "packages": ()}
FAST, LOSSLESS = PRESETS["fast"].knobs, PRESETS["lossless"].knobs
ALONE = tuple((name,) for name in KNOBS)
WITHOUT_ONE = tuple(
    tuple(kept for kept in preset.knobs if kept != name) for preset in PRESETS.values() for name in preset.knobs
)

experiment = Experiment(
    name="presets",
    question="What is each knob of a worker worth, and what do the presets buy?",
    # Workers as Celery starts them unasked; the jobs do nothing, so that all of their time is the worker's own.
    base=Setup(job="noop", args={}, pacer=Burst(1000), pool="prefork", concurrency=2, keep_awake=True, knobs=STOCK),
    arms=(
        Arms({"knobs": (STOCK, FAST, LOSSLESS)}),
        Arms({"pool": ("threads",), "knobs": (STOCK, FAST)}),
        Arms({"knobs": tuple(preset.knobs for preset in PRESETS.values())}, in_quick=False),
        Arms({"knobs": ALONE}, in_quick=False),
        Arms({"knobs": WITHOUT_ONE}, in_quick=False),
        Arms({"pool": ("solo",), "concurrency": (1,), "knobs": (STOCK, FAST)}, in_quick=False),
        Arms({"pool": ("eventlet", "gevent"), "concurrency": (10,), "knobs": (STOCK, FAST)}, in_quick=False),
        Arms({"packages": (("hiredis==3.5.0",),), "knobs": (STOCK, FAST)}, in_quick=False),
    ),
    claims=(
        Claim(
            id="presets/fast",
            says="The preset fast lets a prefork worker do at least 1.15 times as many jobs that do nothing.",
            measure=Ratio("throughput_hz", of={**PREFORK, "knobs": FAST}, to={**PREFORK, "knobs": STOCK}),
            at_least=1.15,
            why="Kombu makes a client of redis-py for each of three commands a job; one that is kept costs nothing.",
            advice="Start workers of short jobs with `--preset fast`; it promises what Celery's defaults promise.",
        ),
        Claim(
            id="presets/fast-threads",
            says="The preset fast lets a threads worker do at least 1.2 times as many jobs that do nothing.",
            measure=Ratio(
                "throughput_hz", of={"pool": "threads", "knobs": FAST}, to={"pool": "threads", "knobs": STOCK}
            ),
            at_least=1.2,
            why="There all of it happens in one process, whose time the clients take.",
            advice="The same; so far a threads worker gains as much as a prefork one.",
        ),
        Claim(
            id="presets/lossless",
            says="The preset lossless leaves a prefork worker at least 60 % of its throughput of such jobs.",
            measure=Ratio("throughput_hz", of={**PREFORK, "knobs": LOSSLESS}, to={**PREFORK, "knobs": STOCK}),
            at_least=0.6,
            why="Each slot waits for its next job to be fetched, which takes three turns to the broker and back.",
            advice="Take lossless for jobs that must not be lost; from some milliseconds a job on its price is small.",
        ),
    ),
    quick={"pacer": Burst(300)},
    repeats=6,
    not_in_a_look="few repeats do not decide what is a few percent",
    side_by_side="knobs",
)
