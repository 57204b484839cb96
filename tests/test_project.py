"""The project says of itself what is true."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from experiments.catalogue import EXPERIMENTS, TOUR
from lab.cli import cli
from lab.report.figures import bound
from tasks.pools import POOLS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_constraints_name_versions_and_nothing_else():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 40
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_every_direct_dependency_is_pinned():
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    wanted = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[A-Za-z0-9._-]+", wish)[0].lower() for wish in wanted} - {"sidestep"}
    assert names <= pinned, names - pinned


def test_the_readme_names_every_verb_and_no_other():
    verbs = set(re.findall(r"^    sidestep ([a-z-]+)", README, re.MULTILINE))
    assert verbs == set(cli.commands) - {"demo"}
    assert "./scripts/demo" in README


def test_the_readme_states_every_bound_as_declared():
    rows = [line for line in README.splitlines() if line.startswith("|")]
    for experiment in EXPERIMENTS.values():
        for claim in experiment.claims:
            (row,) = (row for row in rows if f"`{claim.id}`" in row)
            assert f"`{claim.id}`: {bound(claim)} |" in row


def test_every_version_of_python_is_declared_alike():
    classified = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    assert classified == {"3.11", "3.12", "3.13", "3.14"}
    assert PROJECT["requires-python"] == ">=3.11,<3.15"


def test_the_tour_has_three_experiments():
    assert len(set(TOUR)) == 3
    assert set(TOUR) <= set(EXPERIMENTS)


@pytest.mark.skipif(not os.environ.get("CI"), reason="a laptop may lack a pool; CI may not")
def test_ci_has_every_pool():
    assert {pool.name: pool.missing for pool in POOLS.values() if pool.missing} == {}


def test_scripts_can_be_run():
    for script in (
        "scripts/demo",
        "scripts/test",
        "scripts/catalogue",
        "scripts/scale-demo",
        "scripts/load-steady",
        ".ci/run",
    ):
        assert os.access(ROOT / script, os.X_OK), script


def test_nothing_committed_names_a_package_index():
    texts = [p for p in ROOT.rglob("*") if p.suffix in {".py", ".toml", ".md", ".txt", ".yaml"} and p.is_file()]
    own = [p for p in texts if not {".venv", "build", "runs", ".git"} & set(p.relative_to(ROOT).parts)]
    assert len(own) > 50
    word = "index" + "-url"
    assert [p for p in own if word in p.read_text("utf-8") or ("find" + "-links") in p.read_text("utf-8")] == []
