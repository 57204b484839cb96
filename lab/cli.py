"""The command line: verbs become calls. The only file of the lab that prints and exits."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import shutil
import signal
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import click
import redis
from kombu.exceptions import KombuError, OperationalError
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table

from lab import (
    bench_codecs,
    bench_drain,
    bench_peers,
    bench_profile,
    bench_publish,
    dead_letters,
    environment,
    load_cli,
    load_report_cli,
    presets_cli,
    worker_cli,
)
from lab import doctor as doctors
from lab.broker import users_broker
from lab.compare import compare
from lab.halving import expected_halving_s
from lab.interpreters import ask
from lab.load.after import Wanted
from lab.load.compare import WITHIN
from lab.measure import Order, Step, machine_difference, measure
from lab.model import ARENAS, BadInput, Claim, Estimate, Experiment, Finding, LabError, Suite, Verdict
from lab.plan import expected_s
from lab.progress import TrialProgress, spell
from lab.report.explain import explanation
from lab.report.text import render, verdicts
from lab.report.units import plural, sure
from lab.store import FILE, load, runs_home
from lab.verdict import judge_all
from producer.publish import NotTaken
from tasks.settings import Settings

SCHEMA = 1
"""Of every object that --json prints."""
DONE, BROKEN, COULD_NOT, INVALID, INTERRUPTED = 0, 1, 2, 3, 130
MAX_REPEATS = 1000


UNWRAPPED = 100_000
"""Columns where there is no terminal: a sentence that breaks at 80 cannot be found with grep."""


def printer(*, stderr: bool = False) -> Console:
    """What people read; wrapped to the terminal, or to COLUMNS where that is set, and not at all in a pipe."""
    console = Console(stderr=stderr, highlight=False, markup=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, markup=False, width=UNWRAPPED)


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """The experiments there are, the three of the tour, and names that stand for several of them."""

    experiments: Mapping[str, Experiment]
    tour: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def find(self, names: Sequence[str]) -> tuple[Experiment, ...]:
        """Experiments by name, or by a group's, each once. Raises BadInput with the nearest match for any other."""
        known = {**self.experiments, **self.groups}
        for name in names:
            if name not in known:
                raise BadInput(f"there is no experiment {name!r}{nearest(name, known)}; `sidestep list` names all")
        spread = (one for name in names for one in self.groups.get(name, (name,)))
        return tuple(self.experiments[name] for name in dict.fromkeys(spread))

    def claim(self, claim_id: str) -> tuple[Experiment, Claim]:
        """A claim by its id. Raises BadInput with the nearest match."""
        claims = {claim.id: (e, claim) for e in self.experiments.values() for claim in e.claims}
        if claim_id not in claims:
            known = {**claims, **self.experiments, **self.groups}
            raise BadInput(f"there is no claim {claim_id!r}{nearest(claim_id, known)}; `sidestep list` names all")
        return claims[claim_id]


def nearest(word: str, words: Mapping[str, object]) -> str:
    """`; did you mean 'x'?`, or nothing when nothing is near."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class Verbs(click.Group):
    """Commands that name their nearest match when a word is none of them."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a hint."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise BadInput(
                f"there is no command {args[0]!r}{nearest(args[0], self.commands)}; `sidestep --help` names all"
            )
        return super().resolve_command(ctx, args)


def as_json(function: Any) -> Any:
    """Add --json."""
    return click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")(
        function
    )


def measuring(function: Any) -> Any:
    """Add the options of everything that measures."""
    for option in reversed(
        (
            click.option("--quick", is_flag=True, help="Few repeats of short runs: wide intervals."),
            click.option(
                "--repeats",
                type=click.IntRange(2, MAX_REPEATS),
                help="Repeats of every setup [default: each experiment's own].",
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="Of the order of trials."),
            click.option(
                "--out", type=click.Path(path_type=Path), help="Folder of the suite; continues the one in it."
            ),
            click.option(
                "--broker",
                envvar="SIDESTEP_BROKER",
                help="URL of a Redis or Valkey [default: a private embedded server].",
            ),
            click.option("--force", is_flag=True, help="Use the broker's database although it holds keys of others."),
            click.option("--persist", is_flag=True, help="Let the embedded server keep an append-only file."),
            click.option("--python", type=click.Path(), help="Run the workers on this interpreter."),
            click.option(
                "--arena",
                type=click.Choice(ARENAS),
                help="Where the workers run: on this machine, on simulated ones, or on those that listen on the broker "
                "[default: where each experiment wants them].",
            ),
            click.option("--strict", is_flag=True, help="Exit 1 when a claim is refuted."),
        )
    ):
        function = option(function)
    return as_json(function)


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(environment.own_version(), prog_name="sidestep")
@click.pass_context
def cli(context: click.Context) -> None:
    """Measure what the GIL, the pool and the queue cost in real Celery work.

    Every option can be set in the environment, such as SIDESTEP_RUN_REPEATS=10. Exit code: 0 done, 1 a threshold was
    broken or, with --strict, a claim refuted, 2 could not run, 3 a result is INVALID, 130 stopped by Ctrl-C.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@cli.command()
@measuring
@click.option("--open", "open_it", is_flag=True, help="Show the report in a browser.")
@click.pass_obj
def demo(catalogue: Catalogue, /, open_it: bool, **options: Any) -> None:
    """The tour: three experiments on real workers, then the report."""
    _measure(catalogue, catalogue.find(catalogue.tour), "demo", open_it=open_it, **options)


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--all", "run_all", is_flag=True, help="Every experiment.")
@measuring
@click.pass_obj
def run(catalogue: Catalogue, /, names: tuple[str, ...], run_all: bool, **options: Any) -> None:
    """Measure the experiments NAMES and judge their claims."""
    experiments = _chosen(catalogue, names, run_all, quick=options["quick"])
    _measure(
        catalogue, experiments, "+".join(e.name for e in experiments) if len(experiments) < 4 else "all", **options
    )


def _chosen(catalogue: Catalogue, names: tuple[str, ...], every: bool, *, quick: bool) -> tuple[Experiment, ...]:
    if every:
        skipped = [e for e in catalogue.experiments.values() if quick and e.not_in_a_look and e.name not in names]
        for experiment in skipped:
            why = f"{experiment.not_in_a_look}; name it beside --all to run it as well"
            print(f"sidestep: left out of a quick look: {experiment.name}: {why}", file=sys.stderr)
        return tuple(e for e in catalogue.experiments.values() if e not in skipped)
    if not names:
        raise BadInput(f"name an experiment, or --all; there are: {', '.join(catalogue.experiments)}")
    return catalogue.find(names)


def _measure(
    catalogue: Catalogue,
    experiments: tuple[Experiment, ...],
    name: str,
    *,
    want_json: bool,
    strict: bool,
    out: Path | None,
    broker: str | None,
    open_it: bool = False,
    **options: Any,
) -> None:
    directory = out or runs_home() / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    order = Order(experiments=experiments, directory=directory, broker_url=broker, **options)
    human = printer(stderr=want_json)
    # On a terminal one console draws both, or the bar and the verdicts write over each other.
    notes = human if human.is_terminal else printer(stderr=True)
    if order.python:
        # A name is looked up on PATH; one that is no Python is refused before anything starts.
        interpreter = ask(str(Path(shutil.which(order.python) or order.python).absolute()))
        order = dataclasses.replace(order, python=interpreter.path)
    suite: Suite | None = None
    try:
        with TrialProgress(notes) as progress:
            for step in measure(order, say=lambda words: notes.print(words, style="dim"), idle=progress.idle):
                suite = step.suite
                _follow(step, progress, human, len(experiments))
    except KeyboardInterrupt:
        _interrupted(suite, order, notes)
        raise
    assert suite is not None  # noqa: S101  measure() always yields a first step
    findings = judge_all(catalogue.experiments.values(), suite)
    target = directory / "report.html"
    _write_page(target, suite, findings, list(catalogue.experiments.values()))
    for part in render(suite, findings, list(catalogue.experiments.values())):
        human.print(part)
    human.print(f"suite:  {directory / FILE}\nreport: {target}", soft_wrap=True)
    if want_json:
        _print_json({"suite": str(directory / FILE), "findings": [finding_json(f) for f in findings]})
    if open_it:
        webbrowser.open(target.absolute().as_uri())
    sys.exit(exit_code(findings, strict=strict))


def _follow(step: Step, progress: TrialProgress, human: Console, count: int) -> None:
    if step.experiment is None:
        progress.plan(step.expected_s)
        human.print(f"{count} experiment{'s' if count > 1 else ''}, about {spell(step.expected_s)}")
    elif step.trial:
        setup = step.trial.setup
        progress.start(f"{step.experiment.name}: {setup.label}, repeat {step.trial.repeat + 1}", step.expected_s)
    elif step.complete:
        own = step.suite.only(step.experiment.name)
        for part in verdicts(own, judge_all([step.experiment], own), [step.experiment]):
            human.print(part)
    else:
        progress.end()


def _interrupted(suite: Suite | None, order: Order, notes: Console) -> None:
    kept = len(suite.runs) if suite else 0
    if kept:
        notes.print(
            f"stopped; {kept} trials are kept: the same command with --out {order.directory} goes on", soft_wrap=True
        )
    else:
        notes.print("stopped before the first trial ended; nothing was kept")


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--all", "run_all", is_flag=True, help="Every experiment.")
@click.option("--quick", is_flag=True)
@click.option("--repeats", type=click.IntRange(2, MAX_REPEATS))
@click.option("--seed", type=int, default=0, show_default=True)
@as_json
@click.pass_obj
def plan(
    catalogue: Catalogue,
    names: tuple[str, ...],
    run_all: bool,
    quick: bool,
    repeats: int | None,
    seed: int,
    want_json: bool,
) -> None:
    """The trials of the experiments NAMES in their order, and how long they take; runs nothing."""
    experiments, here = _chosen(catalogue, names, run_all, quick=quick), environment.cores()
    order = Order(experiments, Path(), quick=quick, repeats=repeats, seed=seed)
    planned = [(e, *order.trials(e, cores=here)) for e in experiments]
    rows = [
        {"experiment": e.name, "repeat": t.repeat, "setup": t.setup.label, "job": t.setup.job, "marks": t.setup.marks}
        for e, trials, _ in planned
        for t in trials
    ]
    more_s = sum(order.halvings_of(e) * expected_halving_s(e, trials, cores=here) for e, trials, _ in planned)
    total_s = more_s + sum(expected_s(t, cores=here) for _, trials, _ in planned for t in trials)
    left_out = {label: why for _, _, some in planned for label, why in some.items()}
    if want_json:
        _print_json({"trials": rows, "expected_s": round(total_s, 1), "left_out": left_out})
        return
    table = Table("experiment", "repeat", "setup", "job", box=None, pad_edge=False)
    for row in rows:
        marks = "" if row["marks"] else ", marks off"
        table.add_row(
            str(row["experiment"]), str(int(str(row["repeat"])) + 1), str(row["setup"]), f"{row['job']}{marks}"
        )
    out = printer()
    out.print(table)
    for label, why in left_out.items():
        out.print(f"left out: {label}: {why}")
    for experiment, _, _ in planned:
        if steps := order.halvings_of(experiment):
            out.print(
                f"then, {experiment.name}: up to {plural(steps, 'job length')} more for each break-even, by bisection"
            )
    out.print(f"{len(rows)} trials on {here} cores, about {spell(total_s)}")


@cli.command("list")
@as_json
@click.pass_obj
def list_(catalogue: Catalogue, want_json: bool) -> None:
    """Every experiment and claim, with the last verdict found under the runs folder."""
    last = last_verdicts(catalogue)
    if want_json:
        listed = [
            {
                "name": e.name,
                "question": e.question,
                "claims": [{"id": c.id, "says": c.says, "verdict": last.get(c.id)} for c in e.claims],
            }
            for e in catalogue.experiments.values()
        ]
        _print_json({"experiments": listed})
        return
    out = printer()
    for e in catalogue.experiments.values():
        out.print(f"{e.name}  {e.question}", style="bold")
        for c in e.claims:
            out.print(f"  {last.get(c.id) or 'not measured':13} {c.id}")
            out.print(Padding(c.says, (0, 0, 0, 16), expand=False))
    for name, parts in catalogue.groups.items():
        out.print(f"{name}  stands for {', '.join(parts)}", style="bold")


def last_verdicts(catalogue: Catalogue) -> dict[str, str]:
    """The verdict of each claim in the newest readable suite that holds it."""
    found: dict[str, str] = {}
    for path in sorted(runs_home().glob(f"*/{FILE}"), key=lambda p: p.stat().st_mtime):
        try:
            findings = judge_all(catalogue.experiments.values(), load(path))
        except LabError:
            continue  # a damaged or newer file says nothing of a claim; `report` names what is wrong with it
        found.update({f.claim.id: str(f.verdict) for f in findings if f.estimate})
    return found


@cli.command("report")
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Write the page here.")
@click.option("--open", "open_it", is_flag=True, help="Show the page in a browser.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a trace of one repeat here, for Perfetto.")
@click.option("--repeat", type=click.IntRange(1, MAX_REPEATS), help="The repeat to trace [default: the first].")
@click.option("--strict", is_flag=True, help="Exit 1 when a claim is refuted.")
@as_json
@click.pass_obj
def report_(
    catalogue: Catalogue,
    suite: Path,
    html: Path | None,
    open_it: bool,
    trace: Path | None,
    repeat: int | None,
    strict: bool,
    want_json: bool,
) -> None:
    """Judge the runs in SUITE again and show the result; never measures. Takes load tests too."""
    if repeat and not trace:
        raise BadInput("--repeat says which repeat to trace; add --trace FILE")
    if load_report_cli.is_load(suite):
        if trace or strict:
            raise BadInput(f"{suite} is a load test: --trace and --strict are for suites of experiments")
        page = html or ((suite if suite.is_dir() else suite.parent) / "report.html" if open_it else None)
        sys.exit(load_report_cli.show(suite, Wanted(page, open_it=open_it), want_json=want_json))
    held = load(suite)
    if trace:
        _write_trace(trace, held, repeat)
    experiments = list(catalogue.experiments.values())
    findings = judge_all(experiments, held)
    human = printer(stderr=want_json)
    for part in render(held, findings, experiments):
        human.print(part)
    target = html or ((suite if suite.is_dir() else suite.parent) / "report.html" if open_it else None)
    if target:
        _write_page(target, held, findings, experiments)
        human.print(f"report: {target}", soft_wrap=True)
    if trace:
        human.print(f"trace:  {trace}; open it at https://ui.perfetto.dev", soft_wrap=True)
    if open_it and target:
        webbrowser.open(target.absolute().as_uri())
    if want_json:
        _print_json({"suite": str(suite), "findings": [finding_json(f) for f in findings]})
    sys.exit(exit_code(findings, strict=strict))


def _write_page(target: Path, suite: Suite, findings: Sequence[Finding], experiments: Sequence[Experiment]) -> None:
    from lab.report.page import page  # noqa: PLC0415  brings a plotting library that most verbs do without

    _write(target, page(suite, findings, experiments))


def _write_trace(target: Path, suite: Suite, repeat: int | None) -> None:
    from lab.report.trace import trace  # noqa: PLC0415  brings a plotting library that most verbs do without

    _write(target, json.dumps(trace(suite, repeat=repeat), ensure_ascii=False, allow_nan=False) + "\n")


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {target}: {error.strerror}; choose another place") from None


@cli.command("compare", cls=load_report_cli.Sided)
@click.argument("files", nargs=-1, metavar="BEFORE [BEFORE... --] AFTER [AFTER...]")
@click.option("--any-machine", is_flag=True, help="Compare although the machines differ.")
@click.option("--any-load", is_flag=True, help="Compare load tests although their loads differ.")
@click.option(
    "--within",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=WITHIN,
    show_default=True,
    help="Figures of load tests that differ by a smaller share are the same.",
)
@click.option("--figure", "figures", multiple=True, help="Only this figure of load tests; may be given several times.")
@click.option("--strict", is_flag=True, help="Exit 1 when a figure of a load test is worse.")
@as_json
@click.pass_obj
def compare_(
    catalogue: Catalogue,
    files: tuple[str, ...],
    any_machine: bool,
    any_load: bool,
    within: float,
    figures: tuple[str, ...],
    strict: bool,
    want_json: bool,
) -> None:
    """Two suites or load tests side by side, and by how much their figures differ.

    Of load tests every figure is better, worse, the same, or cannot be said. Several a side: A1 A2 A3 -- B1 B2 B3.
    """
    befores, afters = load_report_cli.sides(files)
    if all(map(load_report_cli.is_load, (*befores, *afters))):
        options = {"any_machine": any_machine, "any_load": any_load, "strict": strict, "want_json": want_json}
        sys.exit(load_report_cli.compare_loads(befores, afters, within=within, figures=figures, **options))
    if len(befores) != 1 or len(afters) != 1:
        raise BadInput("several a side can only be compared of load tests; name two suites")
    before, after = befores[0], afters[0]
    suites = load(before), load(after)
    difference = machine_difference(suites[0].environment, suites[1].environment)
    if difference and not any_machine:
        raise BadInput(f"the machines differ ({difference}); add --any-machine to compare all the same")
    changes = compare(catalogue.experiments.values(), *suites)
    if not changes:
        raise BadInput("the two suites share no claim; compare runs of the same experiment")
    if want_json:
        rows = [
            {
                "claim": c.before.claim.id,
                "before": finding_json(c.before),
                "after": finding_json(c.after),
                "ratio": estimate_json(c.ratio),
            }
            for c in changes
        ]
        _print_json({"machine_difference": difference or None, "changes": rows})
        return
    table = Table(Column("claim", no_wrap=True), "before", "after", "after / before, 95 %", box=None, pad_edge=False)
    for c in changes:
        cells = (f"{side.verdict} {sure(side.estimate)}" for side in (c.before, c.after))
        table.add_row(c.before.claim.id, *cells, sure(c.ratio))
    out = printer()
    out.print(table)
    if difference:
        out.print(f"the machines differ: {difference}")


@cli.command()
@click.argument("name", metavar="CLAIM")
@as_json
@click.pass_obj
def explain(catalogue: Catalogue, name: str, want_json: bool) -> None:
    """What CLAIM says, why it might be so, how it is tested, and what to do about it.

    An experiment's name, or a group's, stands for all its claims.
    """
    if name in catalogue.experiments or name in catalogue.groups:
        chosen = [(e, claim) for e in catalogue.find([name]) for claim in e.claims]
    else:
        chosen = [catalogue.claim(name)]
    told = [(e, claim, explanation(e, claim)) for e, claim in chosen]
    if want_json:
        bodies = [{"claim": claim.id, "experiment": e.name, **words} for e, claim, words in told]
        _print_json(bodies[0] if name == chosen[0][1].id else {"name": name, "claims": bodies})
        return
    out = printer()
    for i, (e, claim, words) in enumerate(told):
        if len(told) > 1 and (i == 0 or told[i - 1][0] is not e):
            out.print(f"{e.name}: {e.question}\n", style="bold underline")
        out.print(claim.id, style="bold")
        for heading, text in words.items():
            out.print(heading, style="bold")
            out.print(Padding(text, (0, 0, 0, 2), expand=False))
        if i < len(told) - 1:
            out.print()


@cli.command()
@click.option("--broker", envvar="SIDESTEP_BROKER", help="Look at this broker instead of the embedded one.")
@click.option("--pools", is_flag=True, help="Also try on live workers what each pool lacks; takes some 20 s.")
@as_json
@click.pass_obj
def doctor(catalogue: Catalogue, broker: str | None, pools: bool, want_json: bool) -> None:
    """Is this machine fit to measure, what is missing, and which claims cannot be tested here?"""
    looked_at = list(doctors.examine(catalogue.experiments.values(), broker_url=broker))
    if pools and not any(d.needed and d.state is doctors.State.MISSING for d in looked_at):
        looked_at += doctors.try_pools(broker)
    if want_json:
        _print_json({"diagnoses": [dataclasses.asdict(d) for d in looked_at]})
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for d in looked_at:
            table.add_row(str(d.state), d.what, d.says)
        printer().print(table)
    if any(d.needed and d.state is doctors.State.MISSING for d in looked_at):
        sys.exit(COULD_NOT)


cli.add_command(worker_cli.worker)
cli.add_command(load_cli.load)
cli.add_command(load_report_cli.load_report)
cli.add_command(presets_cli.presets)


@cli.group(cls=Verbs)
def bench() -> None:
    """Side-by-side tables of ratios, each from one interleaved run."""


bench.add_command(bench_publish.publish)
bench.add_command(bench_codecs.codecs)
bench.add_command(bench_profile.profile)
bench.add_command(bench_peers.peers)
bench.add_command(bench_drain.drain)


@cli.command("letters")
@click.option("--broker", envvar="SIDESTEP_BROKER", required=True)
@click.option("--prefix", default=Settings().key_prefix, show_default=True, help="Key prefix of the app whose letters.")
@click.option("--resend", "send_again", is_flag=True, help="Put every letter back on its queue.")
@as_json
def letters_(broker: str, prefix: str, send_again: bool, want_json: bool) -> None:
    """Messages that workers could not read: when, from which queue, and why."""
    with users_broker(broker, force=True).client() as client:
        try:
            found, seen = dead_letters.dead_letters(client, prefix), dead_letters.counts(client, prefix)
        except ValueError as error:
            raise BadInput(f"{error}; name the prefix of an app of Sidestep") from None
        sent = sum(dead_letters.resend(client, prefix, letter) for letter in found) if send_again else 0
    if want_json:
        rows = [{"at_s": x.at_s, "queue": x.queue, "reason": x.reason, "worker": x.worker} for x in found]
        _print_json({"all": seen.all, "dropped": seen.dropped, "resent": sent, "letters": rows})
        return
    out = printer()
    if found:
        table = Table("when", "queue", "bytes", "reason", "worker", box=None, pad_edge=False)
        for x in found:
            when = datetime.fromtimestamp(x.at_s).astimezone()
            table.add_row(f"{when:%Y-%m-%d %H:%M:%S}", x.queue, str(len(x.message)), x.reason, x.worker)
        out.print(table)
    out.print(f"{len(found)} kept, {seen.all} ever, {seen.dropped} dropped, {sent} sent again")


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """3 when a result is INVALID, 1 when one is refuted and that matters, else 0."""
    if any(f.verdict is Verdict.INVALID for f in findings):
        return INVALID
    return BROKEN if strict and any(f.verdict is Verdict.REFUTED for f in findings) else DONE


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding as the command line's contract spells it."""
    return {
        "claim": finding.claim.id,
        "verdict": str(finding.verdict),
        "estimate": estimate_json(finding.estimate),
        "because": finding.because,
    }


def estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate; an endless bound is null, since JSON has no infinity."""
    if estimate is None:
        return None
    return {name: None if math.isinf(value) else value for name, value in dataclasses.asdict(estimate).items()}


def _print_json(body: Mapping[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, **body}, ensure_ascii=False, allow_nan=False))


def _complain(words: str) -> None:
    print(f"sidestep: {' '.join(words.split())}", file=sys.stderr)


def name_variables(group: click.Group, prefix: str = "SIDESTEP") -> None:
    """Give every option an environment variable named after its long form, such as SIDESTEP_RUN_JSON."""
    for verb, command in group.commands.items():
        if isinstance(command, click.Group):
            name_variables(command, f"{prefix}_{verb}".upper())
        for option in command.params:
            if isinstance(option, click.Option) and option.envvar is None:
                long = max(option.opts, key=len).lstrip("-").replace("-", "_")
                option.envvar = f"{prefix}_{verb}_{long}".upper()
            if isinstance(option, click.Option):
                option.show_envvar = True


name_variables(cli)


def main(
    experiments: Mapping[str, Experiment], *, tour: Sequence[str], groups: Mapping[str, tuple[str, ...]]
) -> NoReturn:
    """Run the command line and exit. No traceback leaves it; SIDESTEP_DEBUG=1 lets one through."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # as clean as Ctrl-C
    signal.signal(signal.SIGHUP, stop)
    try:
        cli.main(
            standalone_mode=False,
            prog_name="sidestep",
            obj=Catalogue(experiments, tuple(tour), groups),
        )
        code = DONE
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else DONE
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        code = COULD_NOT
    except LabError as error:
        _complain(str(error))
        code = COULD_NOT
    except NotTaken as error:
        _complain(f"{error}; finished trials are kept: run again with the same --out")
        code = COULD_NOT
    except (redis.RedisError, OperationalError, KombuError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _complain(f"the broker failed ({reason}); finished trials are kept: run again with the same --out")
        code = COULD_NOT
    except BrokenPipeError:
        code = DONE  # the reader of our output has gone
    except Exception as error:
        if os.environ.get("SIDESTEP_DEBUG"):
            raise
        _complain(f"a fault in Sidestep itself ({type(error).__name__}: {error}); SIDESTEP_DEBUG=1 shows where")
        code = COULD_NOT
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Say nothing to a reader that has gone, not even while the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
