"""A suite as one HTML file: the answers, then the evidence, then the machine and the method."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lab.model import Claim, Experiment, Finding, Suite, Verdict
from lab.report import answers as advice
from lab.report import caveats as doubts
from lab.report import charts, figures, gallery, words
from lab.report.charts import Chart
from lab.report.groups import Group, groups
from lab.report.html import escape, paragraph, table
from lab.report.machine import fingerprint
from lab.report.method import LIMITS, METHOD, by_chance
from lab.report.scaling import laws
from lab.report.style import CSS
from lab.report.swimlane import swimlane
from lab.report.tables import TABLES, counts_itself
from lab.report.units import has_interval

SYMBOLS = {Verdict.SUPPORTED: "✓", Verdict.REFUTED: "✗", Verdict.INCONCLUSIVE: "?", Verdict.INVALID: "∅"}
"""Beside the word, never instead of it."""

Section = Callable[[Suite, Sequence[Finding], Sequence[Experiment]], Iterator[str]]


def page(suite: Suite, findings: Sequence[Finding], experiments: Iterable[Experiment]) -> str:
    """The whole page; the same suite and findings give the same bytes. Loads nothing, runs nothing."""
    known = tuple(experiments)
    body = "\n".join(line for section in SECTIONS for line in section(suite, findings, known))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(_title(suite))}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _title(suite: Suite) -> str:
    names = ", ".join(suite.experiments)
    return f"Sidestep report: {names}" if names else "Sidestep report"


def answers(suite: Suite, findings: Sequence[Finding], experiments: Sequence[Experiment]) -> Iterator[str]:
    """What was asked, and what the data say."""
    yield f'<header>\n<h1>Sidestep report</h1>\n<p class="summary">{escape(doubts.summary(findings))}</p>'
    yield from in_short(suite, findings)
    for doubt in doubts.caveats(suite, experiments):
        yield paragraph(doubt, "doubt")
    environment = suite.environment
    cores, python = environment.get("cores", "?"), environment.get("python", "?")
    yield paragraph(
        f"{environment.get('cpu', 'Unknown CPU')}, {cores} {'core' if cores == 1 else 'cores'}, Python {python}, "
        f"{environment.get('broker', 'broker unknown')}; {len(suite.runs)} runs, seed {suite.seed}."
    )
    names = [name for name, _ in doubts.shown(suite, experiments)]
    links = [("answers", "Answers"), *((f"experiment-{i}", name) for i, name in enumerate(names))]
    links += [("machine", "Machine"), ("method", "Method")]
    items = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links)
    yield f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n</header>\n<main>'
    yield '<section id="answers" aria-labelledby="answers-heading">\n<h2 id="answers-heading">Answers</h2>'
    if not findings:
        yield paragraph("No claim was tested.")
    yield '<div class="cards">'
    for name, experiment in doubts.shown(suite, experiments):
        arms = groups(doubts.runs_of(suite, name))
        for finding in doubts.findings_of(findings, experiment):
            yield card(finding, arms)
    yield "</div>\n</section>"


def in_short(suite: Suite, findings: Sequence[Finding]) -> Iterator[str]:
    """What to do, by kind of work; nothing where the suite has no claim that bears on it."""
    said = advice.answers(findings)
    if not said:
        return
    yield '<section id="in-short" aria-labelledby="in-short-heading">\n<h2 id="in-short-heading">In short</h2>\n<dl>'
    for answer in said:
        parts = "".join(f"<p>{_part(part)}</p>" for part in answer.parts)
        yield f"<dt>{escape(answer.work)} <span>\N{RIGHTWARDS ARROW}</span></dt><dd>{parts}</dd>"
    yield "</dl>"
    yield paragraph(f"{advice.NOTE} {advice.QUICK}" if suite.quick else advice.NOTE, "note")
    yield "</section>"


def _part(part: advice.Part) -> str:
    rests = "; ".join(
        f'<a href="#{_target(f.claim)}">{escape(name)}</a> {escape(figures.brief(f))}'
        for f, name in advice.grouped(part.findings)
    )
    return f"{escape(part.says)}{f' <small>({rests})</small>' if rests else ''}"


def _target(claim: Claim) -> str:
    return escape("claim-" + re.sub(r"[^\w.-]+", "-", claim.id))


def card(finding: Finding, arms: Sequence[Group]) -> str:
    """One claim and its verdict."""
    claim, verdict = finding.claim, finding.verdict
    rows = (
        ("Measured", words.measure(claim.measure, arms)),
        ("Predicted", figures.bound(claim)),
        ("Because", figures.because(finding)),
        ("Why it might be so", claim.why),
        ("Advice", finding.advice),
    )
    listed = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in rows)
    return (
        f'<article class="card {verdict.value}" id="{_target(claim)}">\n'
        f'<p class="verdict"><span class="id">{escape(claim.id)}</span>'
        f'<span aria-hidden="true">{SYMBOLS[verdict]}</span> {verdict.value}</p>\n'
        f'<h3>{escape(claim.says)}</h3>\n<p class="figure">{_figure(finding)}</p>\n<dl>{listed}</dl>\n</article>'
    )


def _figure(finding: Finding) -> str:
    found, estimate = figures.figure(finding), finding.estimate
    if found is None or estimate is None:
        return "no estimate"
    value = f"<strong>{escape(figures.factor(finding) + found.value)}</strong> {escape(found.interval)}"
    if estimate.n == 1:
        return value
    share = "95 %, " if has_interval(estimate) else ""
    return f"{value} <small>{share}n = {escape(found.n)}</small>"


def evidence(suite: Suite, findings: Sequence[Finding], experiments: Sequence[Experiment]) -> Iterator[str]:
    """Charts and tables, experiment by experiment."""
    for i, (name, experiment) in enumerate(doubts.shown(suite, experiments)):
        own, runs = doubts.findings_of(findings, experiment), doubts.runs_of(suite, name)
        arms, asked = groups(runs), experiment.charts if experiment else ()
        timed = [arm for arm in arms if not counts_itself(arm)]
        yield f'<section id="experiment-{i}" aria-labelledby="experiment-{i}-heading">'
        yield f'<h2 id="experiment-{i}-heading">{escape(name)}</h2>'
        if experiment:
            yield f"<p><strong>{escape(experiment.question)}</strong></p>"
        for condition in words.conditions(arms):
            yield paragraph(condition)
        if not arms:
            yield paragraph("Nothing was measured.")
        else:
            cores = int(suite.environment.get("cores", 1))
            drawn = (
                charts.forest(f"c{i}-claims", own, runs),
                *(
                    gallery.draw(f"c{i}-own-{k}", wanted, runs, findings=own, cores=cores)
                    for k, wanted in enumerate(asked)
                ),
                charts.throughput(f"c{i}-throughput", timed),
                charts.latency(f"c{i}-latency", timed),
                charts.memory(f"c{i}-memory", timed),
                swimlane(f"c{i}-lanes", timed, own),
            )
            yield '<div class="charts">'
            yield from (figure(chart) for chart in drawn if chart)
            yield "</div>"
            yield from map(table, gallery.tables(asked, runs))
            yield from (table(made) for make in TABLES if (made := make(arms)))
            claims, others = (experiment.claims, experiment.laws) if experiment else ((), ())
            for law in laws(claims, runs, cores=cores, others=others):
                yield paragraph(law) if isinstance(law, str) else table(law)
        yield "</section>"


def figure(chart: Chart) -> str:
    """A chart in its own box."""
    # A chart too wide for a phone scrolls in its box, and so must be reachable by keyboard.
    label = f' tabindex="0" role="region" aria-label="{escape(chart.title)}"' if chart.wide else ""
    css = "chart wide" if chart.wide else "chart"
    caption = f"<figcaption><strong>{escape(chart.title)}.</strong> {escape(chart.caption)}</figcaption>"
    return f'<figure class="{css}"><div class="scroll"{label}>\n{chart.drawing}</div>\n{caption}</figure>'


def machine(suite: Suite, _: Sequence[Finding], __: Sequence[Experiment]) -> Iterator[str]:
    """What machine and what software the results belong to."""
    yield '<section id="machine" aria-labelledby="machine-heading">\n<h2 id="machine-heading">Machine</h2>'
    yield _listed(fingerprint(suite.environment))
    yield "</section>"


def method(suite: Suite, findings: Sequence[Finding], _: Sequence[Experiment]) -> Iterator[str]:
    """How it was measured, what that cannot say, what is missing and what went wrong."""
    yield '<section id="method" aria-labelledby="method-heading">\n<h2 id="method-heading">Method</h2>'
    for heading, text in METHOD:
        yield f"<h3>{escape(heading)}</h3>\n{paragraph(text)}"
    yield "<h3>Limits</h3>"
    yield _bullets((*LIMITS, by_chance(findings)))
    yield "<h3>Left out</h3>"
    if suite.left_out:
        yield _listed(suite.left_out)
    else:
        yield paragraph("Nothing: every setup could run here.")
    yield "<h3>Faults</h3>"
    faults = doubts.faults(suite)
    if faults:
        yield _bullets(
            f"{runs[0].trial.experiment}, repeat {words.of_runs(runs)}: {says}" for says, runs in faults.items()
        )
    else:
        yield paragraph(
            "None: no check found a reason to distrust a run." if suite.runs else "There are no runs to check."
        )
    yield "</section>\n</main>"


def _listed(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in pairs.items())}</dl>"


def _bullets(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


SECTIONS: tuple[Section, ...] = (answers, evidence, machine, method)
