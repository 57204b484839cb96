"""The project says of itself what is true."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
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
        "scripts/up",
        ".ci/run",
    ):
        assert os.access(ROOT / script, os.X_OK), script


def test_nothing_committed_names_a_package_index():
    texts = [p for p in ROOT.rglob("*") if p.suffix in {".py", ".toml", ".md", ".txt", ".yaml"} and p.is_file()]
    own = [p for p in texts if not {".venv", "build", "runs", ".git"} & set(p.relative_to(ROOT).parts)]
    assert len(own) > 50
    word = "index" + "-url"
    assert [p for p in own if word in p.read_text("utf-8") or ("find" + "-links") in p.read_text("utf-8")] == []


# --- what CI runs ----------------------------------------------------------------------------------------------------


def fake(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def ci(tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """`.ci/run` with tools that do nothing but what each test wants: its exit code, its words, and what it called."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    calls = tmp_path / "calls"
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "lib.sh").write_text("environment() { :; }\n")
    shutil.copy(ROOT / "scripts" / "test", tmp_path / "scripts" / "test")
    for tool in ("ip", "chromium", "prometheus", "promtool", "docker"):
        fake(tmp_path / "bin" / tool, "exit 0")

    def run(**scripts: str) -> tuple[int, str, list[str]]:
        for tool in ("ruff", "mypy", "python"):
            fake(tmp_path / ".venv" / "bin" / tool, f'echo "{tool} $*" >>{calls}; {scripts.get(tool, "exit 0")}')
        if "docker" in scripts:
            fake(tmp_path / "bin" / "docker", scripts["docker"])
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SIDESTEP_DOCKER_UP": "/nowhere"}
        env |= {"SIDESTEP_ARTIFACTS": str(tmp_path / "artifacts"), "SIDESTEP_FREE_THREADED_BUILD": "/nowhere"}
        command = [str(tmp_path / ".ci" / "run")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return run


def test_ci_runs_each_stage_once_and_says_how_long_it_took(ci):
    code, said, calls = ci()
    assert code == 0, said
    assert [call.split()[0] for call in calls] == ["ruff", "ruff", "mypy", "python", "python"]
    assert len(re.findall(r"done in \d+ s", said)) == 5
    assert [call.partition(" -m ")[2].partition(" -m ")[2].partition(" --")[0] for call in calls[3:]] == [
        "not docker and not stack",
        "docker or stack",
    ]


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_ci_fails_for_style_and_types_whatever_the_tests_say_and_runs_them_all_the_same(ci, tool):
    code, said, calls = ci(**{tool: "exit 1"})
    assert code == 1
    assert "FAILED: " in said
    assert sum(call.startswith("python ") for call in calls) == 2


# Fails when all tests run, and not when those that failed are run again
ONCE = 'case "$*" in *--last-failed*) exit 0;; esac; exit 1'


def test_ci_tries_again_what_failed_and_nothing_else(ci):
    code, said, calls = ci(python=ONCE)
    assert code == 0, said
    assert ["--last-failed" in call for call in calls if call.startswith("python")] == [False, True, False, True]
    assert said.count("FAILED") == 2


@pytest.mark.parametrize("number", [2, 3, 4, 5, 124])
def test_ci_does_not_try_again_what_did_not_run_to_its_end(ci, number):
    # For what was not reached would not be tried
    code, _, calls = ci(python=ONCE.replace("exit 1", f"exit {number}"))
    assert code == 1
    assert not any("--last-failed" in call for call in calls)


def test_ci_knows_nothing_of_what_failed_some_other_time(ci, tmp_path):
    (tmp_path / ".pytest_cache").mkdir()
    ci(python="[ ! -e .pytest_cache ]")
    assert not (tmp_path / ".pytest_cache").exists()


def test_ci_without_an_engine_runs_the_tests_of_containers_so_that_they_fail(ci):
    _, said, calls = ci(docker="exit 1")
    assert "NO DOCKER ENGINE" in said
    assert any("docker or stack" in call for call in calls)


@pytest.mark.parametrize(
    ("version", "fits"), [("2.20.1", False), ("1.29.2", False), ("2.20.2", True), ("v2.26.1-4", True), ("5.0.0", True)]
)
def test_up_builds_what_has_changed_and_tells_who_has_too_old_a_compose(tmp_path, version, fits):
    calls = tmp_path / "calls"
    fake(tmp_path / "docker", f'echo "$*" >>{calls}; case "$*" in *--short) echo {version};; esac')
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([str(ROOT / "scripts" / "up")], env=env, capture_output=True, text=True, check=False)
    assert ("compose up --build --detach --wait" in calls.read_text()) == fits
    assert done.returncode == (0 if fits else 2)
    assert len(done.stderr.splitlines()) == (0 if fits else 1)
