"""The questions, their claims and what a reference machine says of them, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from lab.model import (
    FREE_THREADED,
    SAMPLE_COLUMNS,
    UP_TO_CORES,
    Claim,
    Experiment,
    Finding,
    LabError,
    Ledger,
    Resources,
    Run,
    Samples,
    Setup,
    Suite,
    Trial,
    Verdict,
)
from lab.report import figures, words
from lab.report.caveats import simulated
from lab.report.explain import explanation
from lab.report.groups import Group, groups
from lab.report.loads import beside, load, messages, work
from lab.report.machine import ENTRIES, fingerprint
from lab.report.units import has_interval, plain, plural, repeats
from lab.stats import selects, sides


def _worker(setup: Setup) -> str:
    """What of a worker is not as usual, beside what its label says."""
    said = (
        "late acknowledgements" if setup.acks_late else "",
        "every step of a job's way marked" if setup.steps else "",
        f"a heartbeat every {setup.heartbeat_s} s" if setup.heartbeat_s else "",
    )
    return " and ".join(filter(None, said))


CONDITIONS: Mapping[str, Callable[[Setup], str]] = {
    "Job": lambda setup: setup.job + (f" ({about})" if (about := work(setup.args)) else ""),
    "Load": lambda setup: load(setup.pacer),
    "Beside": lambda setup: beside(setup.beside),
    "Worker": _worker,
}
"""What a setup is asked to do, in words."""
BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"
"""Around the table in the README."""
FOLDER = "docs/experiments"
WRITTEN = "<!-- Written by scripts/catalogue from the declarations and the stored suite; do not edit. -->"
MOST_CONDITIONS = 16
"""More than this are said as what they are combined of."""
NOT_MEASURED = "not measured"
COULD_NOT = "could not be tested"
ORDER = (*(verdict.value for verdict in Verdict), COULD_NOT, NOT_MEASURED)
MACHINE = ("cpu", "cores", "virtual", "memory_bytes", "python", "broker", "packages", "sidestep", "revision")
"""What a reader must know of the reference machine, by its names in the environment."""


def table(experiments: Iterable[Experiment], suite: Suite, findings: Sequence[Finding]) -> str:
    """Every claim of the experiments in a row, under its question, with its verdict in the suite."""
    rows = ["| Question | Claim | On the reference machine |", "|---|---|---|"]
    for experiment in experiments:
        question = link(experiment.question, f"{FOLDER}/{experiment.name}.md")
        for claim in experiment.claims:
            verdict, figure = answer(experiment, claim, suite, findings)
            says = f"{prose(claim.says)}<br>{code(claim.id)}: {prose(figures.bound(claim))}"
            rows.append(f"| {question} | {says} | {in_cell(verdict, figure)} |")
            question = ""
    return "\n".join(rows) + "\n"


def spliced(readme: str, rows: str) -> str:
    """The README with these rows between its two marks. Raises LabError when it does not have both, in order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LabError(f"the README has no {BEGIN} followed by {END}; put both where the table belongs")
    return f"{before}{BEGIN}\n\n{rows}\n{END}{after}"


def pages(experiments: Sequence[Experiment], suite: Suite, findings: Sequence[Finding]) -> Mapping[str, str]:
    """The text of each file of the folder, by its name."""
    own = {f"{e.name}.md": experiment_page(e, suite, findings) for e in experiments}
    return {"README.md": index(experiments, suite, findings), **own}


def index(experiments: Iterable[Experiment], suite: Suite, findings: Sequence[Finding]) -> str:
    """The list of all experiments, and what the reference machine is."""
    lines = [
        WRITTEN,
        "",
        "# Experiments",
        "",
        "One page a question: what is run, what is claimed and why, what would refute it, what came out on the",
        "reference machine, and what to do about it. `sidestep run NAME` finds the verdicts of your machine.",
        "",
        "| Experiment | Question | Verdicts |",
        "|---|---|---|",
    ]
    for e in experiments:
        verdicts = [answer(e, claim, suite, findings)[0] for claim in e.claims]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ORDER if verdict in verdicts)
        lines.append(f"| {link(e.name, f'{e.name}.md')} | {prose(e.question)} | {counts} |")
    lines += ["", "## The reference machine", ""]
    known = fingerprint(suite.environment)
    here = [ENTRIES[name][0] for name in MACHINE if suite.environment.get(name) is not None]
    lines += [f"- {title}: {prose(known[title])}" for title in here] or ["Nothing has been measured yet."]
    if suite.runs:
        quick = " with `--quick`" if suite.quick else ""
        lines.append(f"- Measured: {plural(len(suite.runs), 'run')}{quick}, seed {suite.seed}")
    return "\n".join(lines) + "\n"


def experiment_page(experiment: Experiment, suite: Suite, findings: Sequence[Finding]) -> str:
    """What is run for a question, and its claims with their reasons and verdicts."""
    arms = as_if_run(experiment, experiment.setups(cores=_cores(suite)))
    verdicts = {finding.claim.id: finding.verdict for finding in findings}
    told = {
        claim.id: {**explanation(experiment, claim, verdicts.get(claim.id)), **_predicted(claim, arms)}
        for claim in experiment.claims
    }
    lines = [
        WRITTEN,
        "",
        f"# {prose(experiment.name)}",
        "",
        f"**{prose(experiment.question)}**",
        "",
        "Measure it on your machine:",
        "",
        f"    sidestep run {experiment.name}",
        "",
        "## What is run",
        "",
        *_what_is_run(experiment, suite),
        "",
        *_methods(told),
        "## Claims",
        "",
    ]
    for claim in experiment.claims:
        lines += _claim(experiment, claim, suite, findings, told[claim.id])
    lines.append("[All experiments, and the reference machine](README.md)")
    return "\n".join(lines) + "\n"


def _claim(
    experiment: Experiment, claim: Claim, suite: Suite, findings: Sequence[Finding], about: Mapping[str, str]
) -> Iterator[str]:
    yield f"### {prose(claim.says)}"
    yield ""
    yield _spoken(experiment, claim, suite, findings)
    yield ""
    yield f"- **Claim:** {code(claim.id)}"
    for heading, text in about.items():
        if heading not in {"claim", "method"}:
            yield f"- **{heading[:1].upper()}{heading[1:]}:** {prose(text)}"
    yield ""


def _predicted(claim: Claim, arms: Sequence[Group]) -> dict[str, str]:
    """The prediction with the setups' labels, as the list above it has them."""
    return {"prediction": f"{figures.bound(claim)} for {words.measure(claim.measure, arms)}"}


def _cores(suite: Suite) -> int:
    return int(suite.environment.get("cores", 2))


def _methods(told: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """How claims are tested, each method once."""
    by_method: dict[str, list[str]] = {}
    for claim_id, about in told.items():
        by_method.setdefault(about["method"], []).append(claim_id)
    for method, ids in by_method.items():
        which = f"{', '.join(map(code, ids))}: " if len(by_method) > 1 else ""
        yield f"{which}{prose(method)}"
        yield ""


def _what_is_run(experiment: Experiment, suite: Suite) -> Iterator[str]:
    cores = _cores(suite)
    setups = experiment.setups(cores=cores)
    told = {name: list(dict.fromkeys(map(say, setups))) for name, say in CONDITIONS.items()}
    for name, different in told.items():
        # What all setups share is said once.
        if len(different) == 1 and different[0] and different[0] != beside(None):
            yield f"- {name}: {prose(different[0].removeprefix('beside '))}"
    if how := messages(setups):
        yield f"- Messages: {prose(how)}"
    yield from _setups(experiment, setups, [say for name, say in CONDITIONS.items() if len(told[name]) > 1])
    for remarks in (_notes(experiment, setups, cores), _how_often(experiment, suite, setups, cores)):
        if said := " ".join(remarks):
            yield ""
            yield said
    if left_out := _left_out(experiment, suite):
        yield ""
        yield (
            "Left out on the reference machine: "
            + "; ".join(f"{prose(', '.join(dict.fromkeys(labels)))} ({prose(why)})" for why, labels in left_out.items())
            + "."
        )


def _setups(experiment: Experiment, setups: Sequence[Setup], varied: Sequence[Callable[[Setup], str]]) -> Iterator[str]:
    """The setups' labels, with the conditions that vary: those that share their labels at once."""
    by_condition: dict[str, list[Setup]] = {}
    for setup in setups:
        condition = ", ".join(filter(None, (say(setup) for say in varied))) or "as usual"
        by_condition.setdefault(condition, []).append(setup)
    by_labels: dict[tuple[str, ...], dict[str, list[Setup]]] = {}
    for condition, same in by_condition.items():
        labels = tuple(group.label for group in as_if_run(experiment, same))
        by_labels.setdefault(labels, {})[condition] = same
    for labels, conditions in by_labels.items():
        listed = f"{'Setup' if len(labels) == 1 else 'Setups'}: {prose('; '.join(labels))}"
        every = "with" if len(labels) == 1 else "each with"
        if not varied:
            yield f"- {listed}"
        elif len(conditions) == 1:
            yield f"- {listed}, {every} {prose(next(iter(conditions)))}"
        elif len(conditions) > MOST_CONDITIONS:
            yield f"- {listed}, {every} one of {len(conditions)} combinations of"
            yield from (
                f"  - {prose(part)}" for part in words.combined([s for same in conditions.values() for s in same])
            )
        else:
            yield f"- {listed}, {every}"
            yield from (f"  - {prose(condition)}" for condition in conditions)


def _notes(experiment: Experiment, setups: Sequence[Setup], cores: int) -> Iterator[str]:
    bare = [not setup.queued for setup in setups]
    if all(bare):
        yield "*Bare* means without a queue: the jobs go straight into an executor of one program."
    elif any(bare):
        yield "Setups called *bare* have no queue: the jobs go straight into an executor of one program."
    if any(setup.rtt_ms is not None for setup in setups):
        yield (
            "*rtt* is what a relay before the broker adds to the way there and back; *rtt 0 ms* is the relay alone, "
            "*no relay* a direct connection."
        )
    for said in dict.fromkeys(simulated(setup) for setup in setups if setup.arena == "compose"):
        yield f"{said[:1].upper()}{said[1:]}"
    if any(setup.apart for setup in setups):
        yield "A `+` stands before a second worker or executor, which takes the jobs that run beside."
    if any(value is UP_TO_CORES for arms in experiment.arms for values in arms.vary.values() for value in values):
        yield f"The list is that of a machine with {plural(cores, 'core')}; more cores add to it."


def _how_often(experiment: Experiment, suite: Suite, setups: Sequence[Setup], cores: int) -> Iterator[str]:
    quick = experiment.setups(cores=cores, quick=True)
    what = [f"runs {len(quick)} of the {len(setups)} setups"] if len(quick) < len(setups) else []
    what += [f"has a shorter load ({load(experiment.quick['pacer'])})"] if "pacer" in experiment.quick else []
    if what:
        yield f"`--quick` {prose(' and '.join(what))}."
    taken = suite.repeats.get(experiment.name, experiment.repeats)
    if suite.quick and experiment.name in suite.repeats:
        yield f"The reference machine ran it with `--quick`, and {repeats(taken)}."
    elif taken != experiment.repeats:
        yield f"The reference machine ran {repeats(taken)} instead of {experiment.repeats}."


def as_if_run(experiment: Experiment, setups: Iterable[Setup]) -> tuple[Group, ...]:
    """The setups under the names that reports of their runs give them, before there is any run."""
    nothing = Samples(*(np.zeros(0, np.int64) for _ in SAMPLE_COLUMNS))
    nobody = Ledger(issued=0, done=0, failed=0, lost=0)

    def run(setup: Setup) -> Run:
        python = "without a GIL" if setup.python == FREE_THREADED else "of its own"
        free = Resources(0.0, 0.0, 0.0, None, None, python=python)
        return Run(Trial(experiment.name, setup, 0), nothing, nobody, free)

    return groups(map(run, setups))


def answer(experiment: Experiment, claim: Claim, suite: Suite, findings: Sequence[Finding]) -> tuple[str, str]:
    """The verdict in words, and what belongs to it: the figure, or why there is none worth showing."""
    finding = next((one for one in findings if one.claim.id == claim.id), None)
    if finding is None:
        return NOT_MEASURED, ""
    if finding.verdict is Verdict.INVALID and _cores(suite) < claim.needs_cores:
        return COULD_NOT, finding.because
    if finding.estimate is None:
        reasons = _reasons(experiment, claim, suite)
        return (COULD_NOT, "; ".join(reasons)) if reasons else (NOT_MEASURED, "")
    if finding.verdict is Verdict.INVALID:
        return finding.verdict.value, finding.because
    return finding.verdict.value, _figure(finding)


def _figure(finding: Finding) -> str:
    found, estimate = figures.figure(finding), finding.estimate
    if found is None or estimate is None:
        return ""
    value = f"{figures.factor(finding)}{found.value}"
    if has_interval(estimate):
        return f"{value} {found.interval}, {found.n}"
    return f"{value}, {found.interval}" + (f", {found.n}" if estimate.n > 1 else "")


def in_cell(verdict: str, figure: str) -> str:
    """Verdict and figure for a table."""
    strong = verdict if verdict == NOT_MEASURED else f"**{verdict}**"
    return f"{strong}: {prose(figure)}" if figure else strong


def _spoken(experiment: Experiment, claim: Claim, suite: Suite, findings: Sequence[Finding]) -> str:
    """Verdict, figure and reason in one sentence."""
    verdict, figure = answer(experiment, claim, suite, findings)
    if verdict == NOT_MEASURED:
        return "Not measured on the reference machine."
    sentence = f"**{verdict.capitalize()}** on the reference machine: {prose(figure)}"
    if verdict not in {COULD_NOT, Verdict.INVALID.value}:
        finding = next(one for one in findings if one.claim.id == claim.id)
        sentence += f"; {prose(figures.because(finding))}"
    return f"{sentence.rstrip('.')}."


def _reasons(experiment: Experiment, claim: Claim, suite: Suite) -> list[str]:
    """Why setups that the claim needs could not run."""
    setups = experiment.setups(cores=_cores(suite), quick=suite.quick)
    needed = {s.label for s in setups if any(selects(side, s) for side in sides(claim.measure))}
    return [why for why, labels in _left_out(experiment, suite).items() if needed & set(labels)]


def _left_out(experiment: Experiment, suite: Suite) -> dict[str, list[str]]:
    """Why setups of the experiment were left out, and their labels."""
    prefix = f"{experiment.name} · "
    found: dict[str, list[str]] = {}
    for setup, why in suite.left_out.items():
        if setup.startswith(prefix):
            found.setdefault(why, []).append(setup.removeprefix(prefix))
    return found


SPANS = re.compile(r"(`[^`|\n]+`)")
"""Spans of code, which stay as they are: but for a bar, nothing in them means anything to a table."""
SPECIAL = re.compile(r"[\\`*<>|~&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])")
"""What Markdown would read: an underscore inside a word is none of it, nor is a bracket that makes no link."""
IN_LINK = re.compile(rf"{SPECIAL.pattern}|[\[\]]")
"""The text of a link may hold no bracket either."""


def prose(text: str, special: re.Pattern[str] = SPECIAL) -> str:
    """The text in one line, where nothing but spans of code is Markdown."""
    parts = SPANS.split(" ".join(plain(text).split()))
    return "".join(part if SPANS.fullmatch(part) else special.sub(r"\\\g<0>", part) for part in parts)


def link(text: str, target: str) -> str:
    """The text as a link."""
    return f"[{prose(text, IN_LINK)}]({target})"


def code(name: str) -> str:
    """The name as a span of code; one that would end the span, or a table's cell, as text."""
    return prose(f"`{plain(name)}`")
