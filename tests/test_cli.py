"""The command line as its users meet it: a process, its output and its exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from click.testing import CliRunner

from experiments.catalogue import EXPERIMENTS
from lab.children import ROOT
from lab.cli import Catalogue, cli
from lab.report.figures import bound
from lab.runner import is_disturbed
from lab.store import load

COMMAND = (sys.executable, "-m", "experiments")
ESCAPE = "\x1b"


def sidestep(*args, cwd=None, **environ):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
    env |= {"PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, env=env, cwd=cwd or ROOT, timeout=300, check=False
    )


def one_line(done):
    """The complaint of a command that could not run: one line, nothing on stdout, exit code 2."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sidestep: ")
    return lines[0]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["runn"], "no command 'runn'; did you mean 'run'?"),
        (["run", "gil-cpuu"], "no experiment 'gil-cpuu'; did you mean 'gil-cpu'?"),
        (["run"], "name an experiment, or --all"),
        (["plan", "zzzz"], "no experiment 'zzzz'"),
        (["explain", "gil-cpu/thread"], "did you mean 'gil-cpu/threads'?"),
        (["run", "gil-cpu", "--repeats", "many"], "--repeats"),
        (["run", "gil-cpu", "--repeats", "1"], "--repeats"),
        (["run", "gil-cpu", "--no-such-option"], "--no-such-option"),
        (["run", "gil-cpu", "--arena", "moon"], "moon"),
        (["run", "gil-cpu", "--broker", "http://x"], "redis://"),
        (["run", "gil-cpu", "--broker", "redis://127.0.0.1:1/0"], "no broker answers"),
        (["run", "gil-cpu", "--python", "/no/such/python"], "/no/such/python is not a Python interpreter"),
        (["report", "/no/such/suite"], "there is no suite at /no/such/suite"),
        (["compare", "/no/such/a", "/no/such/b"], "there is no suite"),
        (["worker", "-P", "solo", "--broker", "redis://127.0.0.1:1/0"], "no broker answers"),
    ],
)
def test_nonsense_gets_one_line_that_says_what_to_do(args, complaint, tmp_path):
    assert complaint in one_line(sidestep(*args, SIDESTEP_RUNS=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_an_option_can_come_from_the_environment():
    assert "--repeats" in one_line(sidestep("run", "gil-cpu", SIDESTEP_RUN_REPEATS="none"))


def test_a_file_that_is_no_suite_is_named(tmp_path):
    for text, complaint in (("{", "not a suite that can be read"), ("[]", "not a suite"), ('{"schema": 99}', "newer")):
        (tmp_path / "suite.json").write_text(text)
        assert complaint in one_line(sidestep("report", str(tmp_path)))


def test_list_names_every_claim_as_json_and_as_text():
    listed = json.loads(sidestep("list", "--json", SIDESTEP_RUNS="/no/such").stdout)
    assert listed["schema"] == 1
    claims = {c["id"]: c for e in listed["experiments"] for c in e["claims"]}
    assert set(claims) == {c.id for e in EXPERIMENTS.values() for c in e.claims}
    assert {c["verdict"] for c in claims.values()} == {None}
    text = sidestep("list").stdout
    assert all(claim in text for claim in claims)
    assert ESCAPE not in text


def test_explain_says_everything_about_every_claim():
    for experiment in EXPERIMENTS.values():
        for claim in experiment.claims[:2]:
            done = CliRunner().invoke(cli, ["explain", claim.id, "--json"], obj=Catalogue(EXPERIMENTS, ()))
            words = json.loads(done.stdout)
            assert words["claim"] == claim.says
            assert bound(claim) in words["prediction"]
            assert words["what would refute it"]
            assert words["what to do about it"] == claim.advice


def test_explain_takes_an_experiment_or_a_group_for_all_their_claims():
    catalogue = Catalogue(EXPERIMENTS, (), {"both": ("startup", "locks")})

    def explained(*args):
        done = CliRunner().invoke(cli, ["explain", *args], obj=catalogue, catch_exceptions=False)
        return done.stdout

    one, both = (json.loads(explained(name, "--json"))["claims"] for name in ("startup", "both"))
    # Every claim's own words under its experiment
    assert [c["claim"] for c in one] == [c.says for c in EXPERIMENTS["startup"].claims]
    assert {c["experiment"] for c in both} == {"startup", "locks"}
    text = explained("both")
    assert all(EXPERIMENTS[name].question in text for name in ("startup", "locks"))
    assert all(claim.id in text for name in ("startup", "locks") for claim in EXPERIMENTS[name].claims)


def test_what_goes_into_a_pipe_is_not_wrapped_and_ends_no_line_in_blanks(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    claim = max((c for e in EXPERIMENTS.values() for c in e.claims), key=lambda c: len(c.why))
    assert len(claim.why) > 120
    text = CliRunner().invoke(cli, ["explain", claim.id], obj=Catalogue(EXPERIMENTS, ())).stdout
    assert f"  {claim.why}\n" in text
    # And where somebody asks for a width, that holds
    monkeypatch.setenv("COLUMNS", "60")
    narrow = CliRunner().invoke(cli, ["explain", claim.id], obj=Catalogue(EXPERIMENTS, ())).stdout
    assert max(map(len, narrow.splitlines())) <= 60


def test_plan_runs_nothing_and_tells_how_long():
    planned = json.loads(sidestep("plan", "gil-cpu", "--repeats", "3", "--json").stdout)
    setups = {(t["setup"], t["job"]) for t in planned["trials"]}
    assert len(planned["trials"]) == 3 * len(setups)
    assert planned["expected_s"] > 0


def test_a_quick_look_at_all_leaves_out_what_it_cannot_decide_unless_that_is_named():
    def planned(*args):
        done = sidestep("plan", "--all", "--repeats", "2", "--json", *args)
        return {trial["experiment"] for trial in json.loads(done.stdout)["trials"]}, done.stderr

    skipped = {name for name, experiment in EXPERIMENTS.items() if experiment.not_in_a_look}
    whole, said = planned()
    assert said == ""
    assert "observer-cost" in skipped & whole
    look, said = planned("--quick")
    assert look == whole - skipped
    assert {line.split(": ")[2] for line in said.splitlines()} == skipped
    assert "observer-cost" in planned("--quick", "observer-cost")[0]


def test_doctor_looks_at_everything():
    seen = json.loads(sidestep("doctor", "--json").stdout)["diagnoses"]
    looked_at = {d["what"] for d in seen}
    assert {"Python", "cores", "noise", "broker", "pool prefork", "pool eventlet", "memory per slot"} <= looked_at
    assert all(d["says"] for d in seen)
    assert ESCAPE not in sidestep("doctor").stdout


def test_doctor_says_so_when_the_broker_is_missing():
    done = sidestep("doctor", "--json", "--broker", "redis://127.0.0.1:1/0")
    assert done.returncode == 2
    assert {"broker"} == {d["what"] for d in json.loads(done.stdout)["diagnoses"] if d["needed"] and d["state"] != "ok"}


@pytest.mark.parametrize("program", ["experiments", "producer"])
def test_ctrl_c_while_it_is_still_loading_shows_no_traceback(tmp_path, program):
    # Given a module that is loaded early, and Ctrl-C at that very moment
    (tmp_path / "click.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", program, "--help"], capture_output=True, text=True, env=environ, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def leftovers():
    """Processes of any lab that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "SIDESTEP_SESSION" in process.environ():
                found.append(process.pid)
        except psutil.Error:
            continue
    return set(found)


def start_run(out, *, env=None):
    """A run in the background, and what to wait for: its first finished trial."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
    args = ["run", "gil-release", "--quick", "--repeats", "2", "--out", str(out)]
    run = subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | {"PYTHONPATH": str(ROOT)} | (env or {}),
        cwd=ROOT,
        # A shell's background commands ignore SIGINT and pass that on: undo it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no thread runs here
    )
    deadline = time.monotonic() + 60
    while not (out / "suite.json").exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.05)
    assert run.poll() is None, run.communicate()
    return run


@pytest.mark.real
def test_ctrl_c_keeps_finished_trials_and_the_same_command_goes_on(tmp_path):
    before = leftovers()
    out = tmp_path / "suite"
    run = start_run(out)
    # When Ctrl-C comes in the middle
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=30)
    # Then it says how to go on, keeps what it has, and leaves nothing running
    assert run.returncode == 130
    assert f"--out {out}" in stderr
    assert "Traceback" not in stderr + stdout
    kept = load(out)
    assert kept.runs
    assert leftovers() <= before
    # And the same command completes the suite without repeating a trial
    done = sidestep("run", "gil-release", "--quick", "--repeats", "2", "--out", str(out), "--json")
    assert done.returncode in (0, 3), done.stderr
    whole = load(out)
    trials = [run.trial for run in whole.runs]
    assert len(trials) == len(set(trials))
    walls = {run.trial: run.resources.wall_s for run in whole.runs}
    for before_it in kept.runs:
        # Only what others disturbed is taken again
        assert is_disturbed(before_it) or walls[before_it.trial] == before_it.resources.wall_s
    assert {run.trial for run in kept.runs} <= set(walls)
    found = json.loads(done.stdout)
    assert {f["claim"] for f in found["findings"]} == {c.id for c in EXPERIMENTS["gil-release"].claims}
    assert ESCAPE not in done.stdout + done.stderr
    # And the page and the verdicts come again from the file alone
    first = (out / "report.html").read_bytes()
    again = sidestep("report", str(out), "--html", str(tmp_path / "again.html"), "--json")
    assert json.loads(again.stdout)["findings"] == found["findings"]
    assert (tmp_path / "again.html").read_bytes() == first
    # And other settings do not get mixed in
    other = sidestep("run", "gil-release", "--quick", "--seed", "7", "--out", str(out))
    assert "choose another --out" in one_line(other)


@pytest.mark.real
def test_kill_9_leaves_no_worker_and_no_server(tmp_path):
    before = leftovers()
    run = start_run(tmp_path / "suite")
    servers = [p.pid for p in psutil.Process(run.pid).children(recursive=True)]
    assert len(servers) >= 2  # the guard and the server at least
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (leftovers() - before or any(runs(pid) for pid in servers)):
        time.sleep(0.05)
    assert not leftovers() - before
    assert not any(runs(pid) for pid in servers)


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.real
def test_a_worker_started_by_hand_works_with_the_producer(tmp_path):
    from lab.broker import own_server
    from lab.children import Children
    from lab.observe import Tapes

    with Children() as children, own_server(children) as broker:
        env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
        env |= {"SIDESTEP_BROKER": broker.url, "PYTHONPATH": str(ROOT)}
        worker = subprocess.Popen(
            [*COMMAND, "worker", "-P", "eventlet", "-c", "2", "--marks", str(tmp_path)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        try:
            # Given five jobs sent from the command line
            sent = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "producer.cli",
                    "--job",
                    "snooze",
                    "--arg",
                    "ms=1",
                    "--rate",
                    "50",
                    "--for",
                    "100ms",
                ],
                env=env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert "sent 5 'snooze' jobs" in sent.stdout, sent
            # Then the worker marks all five
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and sum(ended(p) for p in tmp_path.glob("*.tape")) != 5:
                time.sleep(0.05)
            assert sum(ended(p) for p in tmp_path.glob("*.tape")) == 5
            assert Tapes(tmp_path).headers()
        finally:
            worker.terminate()
            words = worker.communicate(timeout=30)[0]
        # And the screen explains eventlet in our words, without its raw warning and without the password
        assert "eventlet is a legacy pool" in words
        assert "DeprecationWarning" not in words
        assert broker.url.split(":")[2].split("@")[0] not in words


def ended(path):
    import numpy as np

    from lab.observe import MARKS
    from tasks.timeline import HEADER_BYTES

    return int(np.sum(np.fromfile(path, dtype=MARKS, offset=HEADER_BYTES)["flags"] != 0))


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--job", "spinn"], "did you mean 'spin'?"),
        (["--for", "soon"], "'soon' is not a duration"),
        (["--rate", "-1"], "--rate must be a number above 0"),
        (["--arg", "=3"], "is not an argument"),
        (["--job", "snooze"], "set them with --arg"),
        (["--broker", "http://x"], "redis://"),
        (["--broker", "amqp://127.0.0.1:1/v", "--for", "1s"], "the broker does not answer"),
        (["--codec", "jsn"], "did you mean 'json'?"),
        (["--compression", "zst"], "did you mean 'zstd'?"),
        (["--job", "echo", "--payload", "recods:1kB"], "did you mean 'records'?"),
        (["--job", "echo", "--payload", "records:1GB"], "not a size"),
        (["--broker", "redis://127.0.0.1:1/0", "--for", "1s"], "the broker does not answer"),
    ],
)
def test_the_producer_complains_in_one_line(args, complaint):
    done = subprocess.run(
        [sys.executable, "-m", "producer.cli", *args], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_every_verb_has_help_without_jargon_left_over():
    for verb in ("demo", "doctor", "list", "plan", "run", "report", "compare", "explain"):
        done = sidestep(verb, "--help")
        assert done.returncode == 0
        assert re.search(r"^\s+\S.*\.$", done.stdout, re.MULTILINE), done.stdout


def test_every_option_has_the_environment_variable_that_its_help_names():
    named = {option.envvar for verb in cli.commands.values() for option in verb.params if hasattr(option, "is_flag")}
    assert {
        "SIDESTEP_RUN_JSON",
        "SIDESTEP_RUN_ALL",
        "SIDESTEP_DEMO_OPEN",
        "SIDESTEP_BROKER",
        "SIDESTEP_RUN_QUICK",
    } <= named
    assert None not in named
    assert json.loads(sidestep("list", SIDESTEP_LIST_JSON="1").stdout)["schema"] == 1
    assert "SIDESTEP_RUN_JSON" in sidestep("run", "--help").stdout


def test_remedies_keep_their_brackets(monkeypatch):
    from lab import broker

    monkeypatch.setattr(broker, "find_server", lambda: None)
    done = CliRunner().invoke(cli, ["doctor"], obj=Catalogue(EXPERIMENTS, ()))
    assert done.exit_code == 2
    assert "sidestep[embedded]" in "".join(line.strip() for line in done.output.splitlines())


@pytest.mark.real
def test_a_broker_that_dies_in_the_middle_ends_the_run_in_one_line_and_keeps_the_trials(tmp_path):
    run = start_run(tmp_path / "suite")
    (server,) = [p for p in psutil.Process(run.pid).children() if "valkey" in p.name() or "redis" in p.name()]
    server.kill()
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 2, (stdout, stderr)
    assert "Traceback" not in stderr + stdout
    assert stderr.strip().splitlines()[-1].startswith("sidestep: ")
    assert load(tmp_path / "suite").runs


@pytest.mark.real
def test_two_runs_cannot_write_one_suite(tmp_path):
    run = start_run(tmp_path / "suite")
    other = sidestep("run", "gil-release", "--quick", "--out", str(tmp_path / "suite"))
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert "another run is writing" in one_line(other)


@pytest.mark.real
def test_on_a_users_broker_only_our_keys_come_and_they_go_again():
    from lab.broker import PREFIX, own_server, users_broker
    from lab.children import Children
    from lab.session import open_session

    with Children() as children, own_server(children) as broker, broker.client() as client:
        # Given keys of a killed session, of a worker started by hand, and of one that still runs
        client.set(f"{PREFIX}{'a' * 16}:x:unacked", "1")
        client.set(f"{PREFIX}jobs", "1")
        client.set(f"{PREFIX}{'b' * 16}:x:unacked", "1")
        client.set(f"{PREFIX}{'b' * 16}:alive", "1")
        with open_session(broker.url) as session:
            session.say_alive()
            left = set(client.keys())
            assert f"{session.prefix}alive" in left
        # Then the first are gone, the others stay, and ours go with us
        assert left - {f"{session.prefix}alive"} == set(client.keys())
        assert set(client.keys()) == {f"{PREFIX}jobs", f"{PREFIX}{'b' * 16}:x:unacked", f"{PREFIX}{'b' * 16}:alive"}
        client.set(b"\xff\xfe", "binary")
        with pytest.raises(Exception, match="not Sidestep's"):
            users_broker(broker.url)
