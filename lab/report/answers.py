"""What to do, by kind of work: sentences that follow from verdicts, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lab.model import Finding, Verdict

NOTE = "Each sentence follows from the verdicts beside it, and holds for this machine and these versions."
QUICK = "This was a quick run: good for a look, not for a decision."
LETTERS = {Verdict.SUPPORTED: "s", Verdict.REFUTED: "r"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do when these claims were decided."""

    rests_on: tuple[str, ...]
    """Ids of claims."""
    says: Mapping[str, str]
    """A letter for each claim, s for supported and r for refuted -> the advice: every combination has one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work."""

    work: str
    rules: tuple[Rule, ...]

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The claims of all its rules."""
        return tuple(claim for rule in self.rules for claim in rule.rests_on)


@dataclass(frozen=True, slots=True)
class Part:
    """A sentence, and the findings that it rests on."""

    says: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one kind of work."""

    work: str
    parts: tuple[Part, ...]


ROWS = (
    Row(
        "CPU-bound work",
        (
            Rule(
                ("gil-cpu/threads", "gil-cpu/prefork"),
                {
                    "ss": "In pure Python use prefork with one process a core; a second thread adds next to nothing.",
                    "sr": "In pure Python neither a second thread nor a second process gained what was predicted: look "
                    "for what else holds this machine's cores before you add slots.",
                    "rs": "In pure Python processes scale, and threads gained too: is the GIL off in these workers?",
                    "rr": "In pure Python threads gained and processes fell short: is the GIL off in these workers, "
                    "and are its cores free?",
                },
            ),
            Rule(
                ("gil-release/threads",),
                {
                    "s": "In C code that lets go of the GIL use threads: they scale, and need one process's memory.",
                    "r": "Even in C code that lets go of the GIL a second thread fell short here: use prefork.",
                },
            ),
        ),
    ),
    Row(
        "I/O-bound work",
        (
            Rule(
                ("io-fanout/threads", "io-fanout/gevent"),
                {
                    "ss": "Use threads or gevent, with more slots than rate times duration.",
                    "sr": "Use threads, with more slots than rate times duration; gevent fell short here.",
                    "rs": "Use gevent, with more slots than rate times duration; threads fell short here.",
                    "rr": "Neither threads nor gevent did twice as much as two processes: slots were not the limit.",
                },
            ),
            Rule(
                ("io-fanout/eventlet",),
                {
                    "s": "Eventlet carries it too, but is retired.",
                    "r": "Eventlet fell short here, and is retired.",
                },
            ),
            Rule(
                ("io-fanout/memory", "io-slots/memory"),
                {
                    "ss": "Slots that are threads weigh far less than processes.",
                    "sr": "A threads worker weighs less than two processes, but its slot not as little as predicted.",
                    "rs": "A thread's slot weighs far less than a process's, but the whole worker not here.",
                    "rr": "Threads did not save the memory that was predicted: measure your own worker.",
                },
            ),
            Rule(
                ("io-slots/threads-100", "io-slots/gevent-100"),
                {
                    "ss": "One worker keeps 100 waits in flight, with threads as with gevent.",
                    "sr": "One worker keeps 100 waits in flight with threads; gevent did not.",
                    "rs": "One worker keeps 100 waits in flight with gevent; threads did not.",
                    "rr": "One worker could not keep 100 waits in flight: start several with fewer slots.",
                },
            ),
            Rule(
                ("io-slots/gevent-1000", "io-slots/eventlet-1000"),
                {
                    "ss": "Even 1,000 waits fit into one green worker.",
                    "sr": "Even 1,000 waits fit into one gevent worker; into an eventlet one they do not.",
                    "rs": "Even 1,000 waits fit into one eventlet worker; into a gevent one they do not.",
                    "rr": "1,000 slots of one green worker stay mostly idle: start several workers with fewer slots.",
                },
            ),
        ),
    ),
    Row(
        "Mixed work",
        (
            Rule(
                ("separate-queues/quick", "separate-queues/slow"),
                {
                    "ss": "Give quick and computing jobs a queue and a worker each: the quick ones gain, and the "
                    "others wait at most twice as long.",
                    "sr": "A queue each helps the quick jobs at the price of the computing ones: give those more "
                    "processes.",
                    "rs": "A queue each does not halve the quick jobs' latency here, though the others bear it.",
                    "rr": "A queue each helps neither kind here: the cores are the limit.",
                },
            ),
            Rule(
                ("separate-queues/threads",),
                {
                    "s": "One threads worker for both is no way out.",
                    "r": "One threads worker for both is not much worse than two workers here.",
                },
            ),
            Rule(
                ("convoy-worker/latency", "convoy-worker/apart"),
                {
                    "ss": "Keep computing jobs out of threads workers: a prefork worker of their own mends it.",
                    "sr": "Keep computing jobs out of threads workers; a worker of their own is not enough here: the "
                    "cores are shared.",
                    "rs": "Computing jobs slow a threads worker less than predicted; a worker of their own still "
                    "halves the latency.",
                    "rr": "Computing jobs in a threads worker hardly disturb the quick ones here.",
                },
            ),
            Rule(
                ("convoy-worker/fetched", "convoy-worker/held"),
                {
                    "ss": "The sign of it: jobs are received late, and start late, although slots are free.",
                    "sr": "The sign of it: jobs are received late although slots are free; once received they start.",
                    "rs": "The sign of it: received jobs start late although slots are free.",
                    "rr": "Neither the time until a job is received nor the one until it starts is a sign of it here.",
                },
            ),
            Rule(
                ("green-trust/gevent", "green-trust/eventlet", "green-trust/separate-queue"),
                {
                    "sss": "One computing job stops a green worker: route it to a queue of its own.",
                    "ssr": "One computing job stops a green worker, and a queue of its own does not take it all away.",
                    "srs": "One computing job stops a gevent worker, an eventlet one less: route it to its own queue.",
                    "srr": "One computing job stops a gevent worker, and a queue of its own is not enough.",
                    "rss": "One computing job stops an eventlet worker, a gevent one less: route it to its own queue.",
                    "rsr": "One computing job stops an eventlet worker, and a queue of its own is not enough.",
                    "rrs": "A computing job disturbs green workers less than predicted; a queue of its own helps.",
                    "rrr": "A computing job disturbs green workers less than predicted here.",
                },
            ),
            Rule(
                ("green-trust/threads",),
                {
                    "s": "Where a job may compute unasked, threads forgive more than greenlets.",
                    "r": "Threads forgive a computing job no more than greenlets here.",
                },
            ),
        ),
    ),
    Row(
        "Short jobs",
        (
            Rule(
                ("break-even/queue",),
                {
                    "s": "A queue with two processes beats a plain loop from the length beside on: put shorter work "
                    "together into one job.",
                    "r": "A queue beats a plain loop only for jobs longer than predicted, if at all: put work together "
                    "into much longer jobs.",
                },
            ),
            Rule(
                ("break-even/processes",),
                {
                    "s": "Without a queue two processes pay for shorter jobs.",
                    "r": "Without a queue two processes need longer jobs than predicted, too.",
                },
            ),
            Rule(
                ("break-even/queue-or-executor",),
                {
                    "s": "For jobs of 30 ms the queue costs little more than an executor.",
                    "r": "Even for jobs of 30 ms the queue costs more than an executor: pay for it where you need it.",
                },
            ),
        ),
    ),
)
"""In the order in which they are shown."""


def answers(findings: Sequence[Finding]) -> list[Answer]:
    """What follows for each kind of work; nothing at all where no row has a claim among the findings."""
    known = {finding.claim.id: finding for finding in findings}
    if not any(claim in known for row in ROWS for claim in row.rests_on):
        return []
    return [Answer(row.work, tuple(_parts(row, known))) for row in ROWS]


def _parts(row: Row, known: Mapping[str, Finding]) -> Iterator[Part]:
    measured = {claim: f for claim in row.rests_on if (f := known.get(claim)) and f.estimate}
    for rule in row.rules:
        found = [measured[claim] for claim in rule.rests_on if claim in measured]
        if why := _undecided(rule, measured):
            if found:
                yield Part(f"No advice: {why}.", tuple(found))
        else:
            yield Part(rule.says["".join(LETTERS[finding.verdict] for finding in found)], tuple(found))
    untouched = [claim for rule in row.rules if not measured.keys() & set(rule.rests_on) for claim in rule.rests_on]
    if untouched:
        yield Part(f"Not measured: {', '.join(_named(untouched, row))}.", ())


def _undecided(rule: Rule, measured: Mapping[str, Finding]) -> str:
    """Which of the rule's claims decide nothing, and why; empty where all are decided."""
    reasons: dict[str, list[str]] = {}
    for claim in rule.rests_on:
        if claim not in measured:
            reasons.setdefault("not measured", []).append(claim)
        elif measured[claim].verdict not in LETTERS:
            reasons.setdefault(measured[claim].verdict.value, []).append(claim)
    said = [f"{', '.join(claims)} {'is' if len(claims) == 1 else 'are'} {why}" for why, claims in reasons.items()]
    return "; ".join(said)


def _named(claims: Sequence[str], row: Row) -> list[str]:
    """The claims, or one name for an experiment of which the row has nothing else."""
    of = {claim: claim.partition("/")[0] for claim in row.rests_on}
    whole = set(of.values()) - {of[claim] for claim in row.rests_on if claim not in claims}
    return list(dict.fromkeys(of[claim] if of[claim] in whole else claim for claim in claims))


def grouped(findings: Sequence[Finding]) -> list[tuple[Finding, str]]:
    """Each finding with what it is called: its experiment's name is said once."""
    names, last = [], ""
    for finding in findings:
        experiment, _, short = finding.claim.id.rpartition("/")
        names.append((finding, short if experiment == last else finding.claim.id))
        last = experiment
    return names
