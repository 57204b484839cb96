"""Every experiment declares a question that can be measured and answered, and nothing else."""

import ast
import io
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from experiments import EXPERIMENTS, TOUR
from lab.model import Experiment, Selector, Setup, Verdict
from lab.plan import plan
from lab.stats import MEASURES
from lab.verdict import judge_all
from tasks.jobs import JOBS, Nature
from tasks.pools import POOLS
from tasks.settings import PRESETS
from tasks.standalone import EXECUTORS
from tests.simulator import run_experiment, simulate

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__main__.py")

every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
every_machine = pytest.mark.parametrize(("cores", "quick"), [(2, False), (2, True), (8, False), (8, True)])


def chosen(setups: Sequence[Setup], where: Selector) -> set[Setup]:
    return {setup for setup in setups if all(getattr(setup, name) == value for name, value in where.items())}


def test_every_file_is_an_experiment_that_is_listed_under_its_name():
    names = {path.stem.replace("_", "-") for path in FILES} - {"--init--"}
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
        for sentence in (claim.says, claim.why, claim.advice):
            assert sentence.endswith("."), claim.id
            assert "\n" not in sentence, claim.id


@every_experiment
@every_machine
def test_a_claim_compares_setups_that_are_measured(experiment: Experiment, cores: int, quick: bool):
    setups = experiment.setups(cores=cores, quick=quick)
    for claim in experiment.claims:
        assert claim.measure.measure in MEASURES
        of, to = chosen(setups, claim.measure.of), chosen(setups, claim.measure.to)
        # Given both sides; then each has setups, none is on both, and they differ in nothing but what they name
        assert of, claim.id
        assert to, claim.id
        assert not of & to, claim.id
        assert {(s.job, repr(s.args), s.pacer) for s in of} == {(s.job, repr(s.args), s.pacer) for s in to}, claim.id
        # And what is compared can be seen on both
        for setup in of | to:
            assert setup.watch_broker or claim.measure.measure != "drain_hz", claim.id
            assert setup.marks or claim.measure.measure == "drain_hz", claim.id


@every_experiment
@every_machine
def test_a_setup_is_declared_once_and_can_run(experiment: Experiment, cores: int, quick: bool):
    setups = experiment.setups(cores=cores, quick=quick)
    assert len(setups) == len(set(setups)) > 1
    for setup in setups:
        assert setup.job in JOBS
        assert setup.pool in (POOLS if setup.queued else {*EXECUTORS, "interpreters"})
        assert setup.preset in PRESETS
        assert setup.concurrency >= 1
        assert setup.pacer.count >= 1
        # What scales is what the job says scales
        calibrated = {name for name, value in setup.args.items() if type(value).__name__ == "Calibrated"}
        assert calibrated <= {JOBS[setup.job].scales_with}


@every_experiment
def test_quick_is_quicker(experiment: Experiment):
    def jobs(quick: bool) -> int:
        return sum(trial.setup.pacer.count for trial in plan(experiment, quick=quick))

    assert jobs(quick=True) < jobs(quick=False)
    assert experiment.quick_repeats >= 3, "two repeats make an interval that decides nothing"


@every_experiment
@every_machine
def test_every_experiment_plans_runs_on_the_simulator_and_is_judged(experiment: Experiment, cores: int, quick: bool):
    suite = run_experiment(experiment, cores=cores, quick=quick)
    # Every trial ran, nothing is doubtful, and every claim is decided as the simulator was built
    assert [run.trial for run in suite.runs] == plan(experiment, cores=cores, quick=quick)
    assert [fault for run in suite.runs for fault in run.faults] == []
    findings = judge_all(EXPERIMENTS.values(), suite)
    assert {finding.claim.id: finding.verdict for finding in findings} == {
        claim.id: Verdict.SUPPORTED for claim in experiment.claims
    }


@every_experiment
def test_every_experiment_renders(experiment: Experiment):
    text = pytest.importorskip("lab.report.text")
    suite = run_experiment(experiment, quick=True)
    console = Console(file=io.StringIO(), width=120)
    for part in text.render(suite, judge_all(EXPERIMENTS.values(), suite), EXPERIMENTS.values()):
        console.print(part)
    page = console.file.getvalue()
    for claim in experiment.claims:
        assert claim.id in page


@every_experiment
def test_the_simulator_is_the_queue_it_says_it_is(experiment: Experiment):
    for trial in plan(experiment, repeats=1, cores=4):
        run, setup = simulate(trial, cores=4), trial.setup
        # The same trial is the same run
        assert simulate(trial, cores=4).resources == run.resources
        # Every job is there, and never more of them under way than there are slots
        assert run.ledger.issued == run.ledger.done == setup.pacer.count
        edges = sorted([*((t, 1) for t in run.samples.started_ns), *((t, -1) for t in run.samples.ended_ns)])
        under_way = most = 0
        for _, step in edges:
            under_way += step
            most = max(most, under_way)
        assert most <= setup.slots
        # Computing goes on side by side only where nothing forbids it
        if len(run.samples):
            alone = setup.pool in {"solo", "serial", "eventlet", "gevent"} or (
                setup.pool == "threads" and JOBS[setup.job].nature is not Nature.RELEASES_GIL
            )
            busy_cores = float(run.samples.cpu_s.sum()) / run.resources.wall_s
            assert busy_cores <= (1 if alone else min(4, setup.slots)) * (1 + 1e-6)


LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.If, ast.Lambda, ast.Global)
ONLY = ("lab.model", "producer.pacers", "producer.payloads", "tasks.pools", "experiments")


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
