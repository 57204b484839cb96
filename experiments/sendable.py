"""What can be handed over at all. Nothing here is a matter of chance: three repeats only show that it stays so."""

from lab.model import Arms, Claim, Experiment, Level, Setup
from producer.pacers import Burst
from producer.payloads import Args

THREAD: Args = {"through": "thread"}
PICKLE: Args = {"through": "pickle"}
PREFORK: Args = {"through": "prefork"}
JSON: Args = {"through": "json"}

experiment = Experiment(
    name="sendable",
    question="What can be handed to another thread, process or worker, and what is refused or changed?",
    base=Setup(job="deliver", args=THREAD, pacer=Burst(2), queued=False, pool="serial"),
    quick={"pacer": Burst(1)},
    repeats=3,
    # YAML and msgpack are not with every installation; ask for them by hand, as arguments of `deliver`.
    arms=(Arms({"args": (THREAD, PICKLE, PREFORK, JSON)}),),
    claims=(
        Claim(
            id="sendable/thread",
            says="Another thread gets all 16 things as they are.",
            measure=Level("not_intact", of={"args": THREAD}),
            at_most=0,
            why="A thread shares the memory: what it gets is a pointer to the same object.",
            advice="All jobs of a threads worker can use one client, file or lock; guard what they change.",
        ),
        Claim(
            id="sendable/pickle",
            says="multiprocessing's pickle refuses at least 4 of 16 things.",
            measure=Level("refused_things", of={"args": PICKLE}),
            at_least=4,
            why="Pickle writes functions as names and objects as their values; some have neither.",
            advice="Hand a ProcessPoolExecutor functions of modules; open files, locks and clients in the process.",
        ),
        Claim(
            id="sendable/prefork",
            says="The pipe to a prefork worker's child refuses at least 7 of 16 things.",
            measure=Level("refused_things", of={"args": PREFORK}),
            at_least=7,
            why="It is plain pickle, without multiprocessing's way to hand over a socket.",
            advice="Hand Exception.__init__ all arguments of your own errors: else Celery reports a stand-in for them.",
        ),
        Claim(
            id="sendable/json-refuses",
            says="Celery's JSON refuses at least 8 of 16 things.",
            measure=Level("refused_things", of={"args": JSON}),
            at_least=8,
            why="A JSON message holds values of a few types; kombu adds bytes, dates, decimals and UUIDs.",
            advice="A refusal is the good case: it raises where the job is sent. Send keys and plain values.",
        ),
        Claim(
            id="sendable/json-changes",
            says="Celery's JSON changes at least 2 of 16 things without a word.",
            measure=Level("changed_things", of={"args": JSON}),
            at_least=2,
            why="JSON has one kind of list, and its keys are strings: tuples and whole numbers as keys have no place.",
            advice="Test jobs with delay() and task_always_eager, which serializes; a direct call or apply() does not.",
        ),
    ),
)
