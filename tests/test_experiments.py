"""Every experiment declares a question that can be measured and answered, and nothing else."""

import ast
import io
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.catalogue import EXPERIMENTS, TOUR
from lab import usl
from lab.axes import AXES, NAMES
from lab.bill import PART_NAMES
from lab.model import (
    EVENTS,
    BreakEven,
    Claim,
    Experiment,
    Finding,
    FrozenArgs,
    Heat,
    Level,
    Load,
    Ratio,
    Samples,
    ScalingLaw,
    Selector,
    Setup,
    Stack,
    Suite,
    Trial,
    Verdict,
)
from lab.plan import plan
from lab.predictions import FITTED, PREDICTIONS
from lab.report.page import page
from lab.stats import MEASURES, selects, sides
from lab.verdict import judge_all
from producer.pacers import Burst, Closed, Constant
from producer.payloads import Calibrated, Sometimes, calibrated
from tasks.jobs import JOBS, Nature
from tasks.knobs import KNOBS
from tasks.pools import POOLS
from tasks.settings import PRESETS
from tasks.standalone import EXECUTORS
from tests.fakes import SETUP
from tests.simulator import run_experiment, simulate

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__main__.py")

every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
every_machine = pytest.mark.parametrize(("cores", "quick"), [(2, False), (2, True), (8, False), (8, True)])


def chosen(setups: Sequence[Setup], where: Selector) -> set[Setup]:
    return {setup for setup in setups if selects(where, setup)}


def test_every_file_is_an_experiment_that_is_listed_under_its_name():
    names = {path.stem.replace("_", "-") for path in FILES} - {"--init--", "catalogue"}
    assert names == set(EXPERIMENTS)
    assert all(name == experiment.name for name, experiment in EXPERIMENTS.items())
    assert set(TOUR) <= set(EXPERIMENTS)


def test_no_two_claims_share_an_id():
    ids = [claim.id for experiment in EXPERIMENTS.values() for claim in experiment.claims]
    assert len(ids) == len(set(ids)) > 0


@every_experiment
def test_a_claim_belongs_to_its_experiment_and_can_be_wrong(experiment: Experiment):
    assert experiment.question.endswith("?")
    assert experiment.claims
    for claim in experiment.claims:
        assert claim.id.startswith(f"{experiment.name}/"), claim.id
        assert len(claim.id) > len(experiment.name) + 1
        assert math.isfinite(claim.at_least) != math.isfinite(claim.at_most), f"{claim.id}: exactly one bound"
        for sentence in (claim.says, claim.why, claim.advice, *filter(None, [claim.otherwise])):
            assert sentence.endswith("."), claim.id
            assert "\n" not in sentence, claim.id


@every_experiment
@every_machine
def test_a_claim_looks_at_setups_that_are_measured(experiment: Experiment, cores: int, quick: bool):
    setups = experiment.setups(cores=cores, quick=quick)
    for claim in experiment.claims:
        # Given what a claim selects; then each side has setups, and none is on both
        looked_at = [chosen(setups, where) for where in sides(claim.measure)]
        assert all(looked_at), claim.id
        assert not set.intersection(*looked_at) or len(looked_at) == 1, claim.id
        match claim.measure:
            case Ratio(measure, of, to):
                # And the sides of a ratio differ in nothing but what they name, and what need not be said
                unsaid = {"concurrency"} | ({"pacer"} if measure in WITHOUT_JOBS else set())
                for name in {field.name for field in fields(Setup)} - of.keys() - to.keys() - unsaid:
                    left, right = ({repr(getattr(setup, name)) for setup in side} for side in looked_at)
                    assert left == right, (claim.id, name)
                assert_seen(claim, measure, looked_at)
            case Level(measure):
                assert_seen(claim, measure, looked_at)
            case BreakEven(axis=axis):
                # And a break-even has the same lengths on both sides, each once
                left, right = (sorted(map(AXES[axis], side)) for side in looked_at)
                assert left == right, claim.id
                assert len(set(left)) == len(left) > 1, claim.id
            case ScalingLaw():
                # And a curve has as many loads as its parameters need
                assert len({setup.slots for setup in looked_at[0]}) == len(looked_at[0]) >= usl.LOADS, claim.id


WITHOUT_JOBS = {"pss_bytes", "pss_bytes_per_slot", "boot_s"}
"""Measures that do not ask how many jobs there were."""


def assert_seen(claim: Claim, measure: str, looked_at: Sequence[set[Setup]]) -> None:
    """What is measured can be seen on every setup that is looked at."""
    assert measure in MEASURES, claim.id
    for setup in set.union(*looked_at):
        assert setup.watch_broker or measure != "drain_hz", claim.id
        assert setup.marks or measure == "drain_hz", claim.id
        assert setup.events == "flower" or measure != "watcher_cpu_s_per_job", claim.id
        assert setup.beside or measure not in {"beside_hz", "beside_p99_s"}, claim.id
        assert isinstance(setup.args.get("rounds"), int) or measure not in {"round_us", "lost_updates"}, claim.id
        assert JOBS[setup.job].measures or measure != "lost_updates", claim.id
        assert setup.acks_late or measure != "ack_gap_p50_s", claim.id
        assert setup.heartbeat_s or measure != "heartbeat_late_s", claim.id
        assert setup.queued or measure not in {"fetch_p50_s", "held_p50_s", "commands_per_job", *OF_A_MESSAGE}, claim.id
        assert setup.steps or measure not in OF_STEPS, claim.id
        assert setup.results in {"get", "bulk"} or measure != "collect_s_per_job", claim.id


@every_experiment
@every_machine
def test_a_chart_has_something_to_draw(experiment: Experiment, cores: int, quick: bool):
    setups = experiment.setups(cores=cores, quick=quick)
    for chart in experiment.charts:
        if isinstance(chart, Stack):
            assert set(chart.parts) <= set(MEASURES), chart.title
            assert len(chosen(setups, chart.where)) > 1, chart.title
            continue
        assert chart.y in MEASURES, chart.title
        if isinstance(chart, Heat):
            drawn = chosen(setups, chart.where)
            for axis in (chart.rows, chart.columns):
                assert quick or len({NAMES[axis](setup) for setup in drawn}) > 1, chart.title
            continue
        assert set(chart.predicted) <= set(PREDICTIONS) | set(FITTED), chart.title
        drawn = chosen(setups, chart.where)
        assert len({AXES[chart.x](setup) for setup in drawn}) > 1, chart.title
        # And where it is a ratio, each point has something to be divided by
        if chart.to is not None:
            below = {AXES[chart.x](setup) for setup in chosen(setups, chart.to)}
            if chart.to_one:
                assert len(chosen(setups, chart.to)) == 1, chart.title
            else:
                assert {AXES[chart.x](setup) for setup in drawn} <= below, chart.title


@every_experiment
@every_machine
def test_a_setup_is_declared_once_and_can_run(experiment: Experiment, cores: int, quick: bool):
    setups = experiment.setups(cores=cores, quick=quick)
    assert len(setups) == len(set(setups)) > 1
    for setup in setups:
        pools = POOLS if setup.queued else {*EXECUTORS, "interpreters"}
        assert setup.pool in pools
        assert setup.apart is None or (setup.apart in pools and setup.beside), "a worker apart needs jobs of its own"
        assert setup.preset in PRESETS
        assert setup.events in EVENTS
        assert set(setup.knobs or ()) <= set(KNOBS)
        assert min(setup.concurrency, setup.apart_concurrency, setup.nodes) >= 1
        for load in setup.loads:
            assert load.job in JOBS
            assert load.pacer.count >= 1
            # What scales is what the job says scales, or says itself which job's work it is
            for name, value in load.args.items():
                for amount in calibrated({name: value}):
                    assert (JOBS[amount.like].scales_with if amount.like else JOBS[load.job].scales_with) == name
        # A closed load cannot be planned beside another
        assert not (setup.beside and any(isinstance(load.pacer, Closed) for load in setup.loads))


@every_experiment
def test_quick_is_quicker(experiment: Experiment):
    def jobs(quick: bool) -> int:
        return sum(trial.setup.pacer.count for trial in plan(experiment, quick=quick))

    assert jobs(quick=True) < jobs(quick=False)
    assert experiment.quick_repeats >= 3, "two repeats make an interval that decides nothing"


OF_STEPS = {"ack_gap_p50_s", *(f"{name}_part_s" for name in PART_NAMES), "way_s", "overhead_s"}
OF_A_MESSAGE = {"message_bytes", "body_bytes", "base64_bytes", "argument_text_bytes", "header_bytes"}

CONTRARY = {
    "thread-overhead/two": "handing the GIL over is free in the simulator, so two threads are as fast as one",
    "races/lost": "the simulator's counter is exact: no addition is ever lost",
    "races/order": "the simulator serves first come, first served: with a GIL, jobs end in the order of their start",
}
"""Claims whose opposite is built into the simulator, and why."""

UNKNOWN = {
    "convoy": "the simulator gives nobody's GIL away, so neither the switch interval nor a wait's end has an effect",
    "convoy-worker": "the same; and a job that is received starts at once where a slot is free",
    "locks": "the simulator has no locks",
    "sharing": "an argument's size costs nothing in the simulator",
    "sendable": "the simulator carries no objects",
    "green-trust/unpatched": "every wait gives way in the simulator",
    "green-trust/threads": "the simulator takes the GIL from no job, of a thread as little as of a greenlet",
    "separate-queues/quick": "how often a quick job meets two slow ones hangs on the jitter of real arrivals",
    "prefetch/makespan": "which worker gets the long jobs is the broker's turn by turn; simulated turns are even",
    "prefetch/wait": "the same",
    "prefetch/disabled": "the same",
    "no-gil/single-thread": "the simulated interpreter without a GIL is as fast as the one with it",
    "no-gil/lost": "the simulator's counter is exact, with a GIL and without",
    "versions": "every version of Celery is alike in the simulator",
    "wire": "the simulator writes no messages",
    "results": "the simulator keeps no results",
    "presets": "no knob is worth anything in the simulator",
    "codecs": "the simulator writes nothing, so no codec is faster than another",
    "by-reference": "a payload is a number of bytes in the simulator, wherever it lies",
    "payload-break-even/fast-codec": "the simulator knows what a codec costs only where every step is marked",
}
"""Claims whose truth the simulator cannot know, by experiment or one by one, and why."""


def is_unknown(claim: Claim) -> bool:
    return claim.id in UNKNOWN or claim.id.partition("/")[0] in UNKNOWN


def test_every_claim_that_the_simulator_cannot_know_is_declared_somewhere():
    ids = {claim.id for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    assert {*CONTRARY, *UNKNOWN} <= ids | set(EXPERIMENTS)
    assert not [claim for claim in CONTRARY if claim in UNKNOWN or claim.partition("/")[0] in UNKNOWN]


@every_experiment
@every_machine
def test_every_experiment_plans_runs_on_the_simulator_and_is_judged(experiment: Experiment, cores: int, quick: bool):
    suite = run_experiment(experiment, cores=cores, quick=quick)
    # Every trial ran, and nothing is doubtful
    assert [run.trial for run in suite.runs] == plan(experiment, cores=cores, quick=quick)
    assert [fault for run in suite.runs for fault in run.faults] == []
    findings = judge_all(EXPERIMENTS.values(), suite)
    assert [finding.claim for finding in findings] == list(experiment.claims)
    # And every claim whose truth is known is decided as the simulator was built
    known = [finding for finding in findings if not is_unknown(finding.claim)]
    if quick and experiment.not_in_a_look:
        # Too few repeats for what it asks; they may say so
        known = [finding for finding in known if finding.verdict is not Verdict.INCONCLUSIVE]
    assert {finding.claim.id: finding.verdict for finding in known} == {
        finding.claim.id: truth(finding.claim, cores) for finding in known
    }
    # And every other is measured, or says why it is not
    for finding in findings:
        if finding.verdict is Verdict.INVALID:
            assert finding.because
        else:
            assert finding.estimate
            assert finding.estimate.low <= finding.estimate.value <= finding.estimate.high


def truth(claim: Claim, cores: int) -> Verdict:
    """What the simulator was built to say."""
    if cores < claim.needs_cores:
        return Verdict.INVALID
    return Verdict.REFUTED if claim.id in CONTRARY else Verdict.SUPPORTED


def as_text(suite: Suite, findings: Sequence[Finding]) -> str:
    text = pytest.importorskip("lab.report.text")
    console = Console(file=io.StringIO(), width=120)
    for part in text.render(suite, findings, EXPERIMENTS.values()):
        console.print(part)
    return console.file.getvalue()


def as_page(suite: Suite, findings: Sequence[Finding]) -> str:
    return page(suite, findings, EXPERIMENTS.values())


@every_experiment
@pytest.mark.parametrize("render", [as_text, as_page])
def test_every_experiment_renders(experiment: Experiment, render):
    suite = run_experiment(experiment, quick=True)
    shown = render(suite, judge_all(EXPERIMENTS.values(), suite))
    for claim in experiment.claims:
        assert claim.id in shown or claim.id.rpartition("/")[2] in shown


@every_experiment
def test_the_simulator_is_the_queue_it_says_it_is(experiment: Experiment):
    for trial in plan(experiment, repeats=1, cores=4):
        run, setup = simulate(trial, cores=4), trial.setup
        # The same trial is the same run
        assert simulate(trial, cores=4).resources == run.resources
        # Every job is there, of each load
        assert run.ledger.issued == run.ledger.done == sum(load.pacer.count for load in setup.loads)
        if setup.marks:
            assert len(run.samples.own) == setup.pacer.count
            assert len(run.samples.others) == (setup.beside.pacer.count if setup.beside else 0)
        # And in one worker never more of them under way than there are slots
        together = run.samples.own if setup.apart else run.samples
        edges = sorted([*((t, 1) for t in together.started_ns), *((t, -1) for t in together.ended_ns)])
        under_way = most = 0
        for _, step in edges:
            under_way += step
            most = max(most, under_way)
        assert most <= setup.slots
        # Computing goes on side by side only where nothing forbids it
        if len(together):
            alone = setup.pool in {"solo", "serial", "eventlet", "gevent"} or (
                setup.pool == "threads" and JOBS[setup.job].nature is not Nature.RELEASES_GIL and run.samples.gil.all()
            )
            busy_cores = float(together.cpu_s.sum()) / run.resources.wall_s
            assert busy_cores <= (1 if alone else min(4, setup.slots)) * (1 + 1e-5)  # times are rounded to ns


def simulated(**how: object) -> Samples:
    """The jobs of one run without any noise."""
    setup = replace(SETUP, **{"pacer": Burst(4), "concurrency": 1, **how})
    return simulate(Trial("x", setup, 0), cores=2, job_noise=0, run_noise=0, block_noise=0).samples


def test_a_simulated_worker_keeps_what_it_fetched_even_when_another_is_idle():
    # Given two workers and 20 jobs, of which the two long ones go to the same one when jobs are dealt out in turn
    uneven = Sometimes(Calibrated(1), Calibrated(100), share=0.2, seed=4)
    assert [seq for seq in range(20) if uneven.of(seq).ms == 100] == [0, 2]
    how = {"args": {"loops": uneven}, "pacer": Burst(20), "nodes": 2}
    # When they fetch much, little or nothing ahead
    ends = []
    for fetched in ({"prefetch": 64}, {"prefetch": 1}, {"prefetch": 1, "disable_prefetch": True}):
        samples = simulated(**how, **fetched)
        ends.append(sorted(float(samples.ended_ns[samples.worker == w].max()) / 1e9 for w in (0, 1)))
    greedy, modest, none = ends
    # Then what one of them holds the other does not get, though it has long been idle; and nothing held is best
    assert greedy == pytest.approx([0.015, 0.213], abs=0.002)
    assert none == pytest.approx([0.115, 0.115], abs=0.002)
    assert none[1] < modest[1] < greedy[1]


def test_simulated_work_outside_the_gil_runs_beside_work_under_it():
    # Given jobs of 20 ms, half of it outside the GIL
    half = {"loops": Calibrated(10, like="spin"), "chunks": Calibrated(10, like="digest")}
    how = {"job": "blend", "args": half, "queued": False, "pool": "threads", "pacer": Burst(20)}
    one, two = (float(simulated(**how, concurrency=n).ended_ns.max()) for n in (1, 2))
    assert one / two == pytest.approx(2, rel=0.1)


def test_simulated_jobs_beside_a_load_share_its_gil_unless_they_are_apart():
    # Given one job of 100 ms that is due together with four of 1 ms
    hog = Load("spin", FrozenArgs(loops=Calibrated(100)), Burst(1))
    how = {"args": {"loops": Calibrated(1)}, "pacer": Constant(100, 0.04), "pool": "threads", "concurrency": 8}
    beside, apart = simulated(**how, beside=hog), simulated(**how, beside=hog, apart="prefork")
    # Then the later of the four wait for it in one worker
    assert len(beside.others) == len(apart.others) == 1
    assert beside.own.latency_s[1:].min() > 0.07
    assert apart.own.latency_s.max() < 0.003


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ["convoy", "convoy-worker"])
def test_what_computes_beside_the_convoys_jobs_outlasts_them_on_a_faster_machine_too(name: str, quick: bool):
    # Given a machine on which work takes seven tenths of the time that it was calibrated for
    pace = 0.7
    for setup in EXPERIMENTS[name].setups(cores=2, quick=quick):
        if hog := setup.beside:
            # When jobs of one process take turns, and those in processes of their own do not
            computes_s = pace * AXES["work_ms"](replace(setup, args=hog.args)) / 1e3
            together_s = computes_s * hog.pacer.count / (setup.apart_concurrency if setup.apart else 1)
            # Then the last quick job still has something beside it
            assert together_s > max(setup.pacer.due_s()), setup.label


def test_as_many_jobs_compute_in_the_convoys_process_as_in_others():
    setups = [s for s in EXPERIMENTS["convoy"].setups(cores=2) if s.args == {"rounds": 4, "ms": 1}]
    counts = [{AXES["computing"](s) for s in setups if bool(s.apart) is apart} for apart in (False, True)]
    assert counts == [{0, 1, 2, 4}, {1, 2, 4}]
    # And each of those in others has a process of its own
    assert all(s.apart_concurrency == s.beside.pacer.count for s in setups if s.apart and s.beside)


LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.If, ast.Lambda, ast.Global)
ONLY = ("lab.model", "producer.pacers", "producer.payloads", "tasks.knobs", "tasks.pools", "experiments")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_only_declares(path: Path):
    # Given its source; then there is no loop but a comprehension, nothing that acts, and only words of the lab
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(node, LOOPS), f"line {node.lineno}: if it needs code, the code wants a name in lab"
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).startswith(ONLY), f"line {node.lineno} imports {node.module}"
        assert not isinstance(node, ast.Import), f"line {node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called.partition(".")[0] not in {"open", "print", "input", "exec", "eval", "range"}, called
    assert ast.get_docstring(tree)
