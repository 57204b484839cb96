"""A worker of single processes: when they are started again, what a signal does, and that none is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
import pytest
import redis
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from lab.environment import cores
from lab.model import BadInput
from lab.processes import MOST, REFUSED, Family, family
from tasks.app import VISIBILITY_TIMEOUT_S, make_app
from tasks.processes import LONGEST_LINE, Lines, Stop, command, names, urgency
from tasks.restarts import LONGEST_WAIT_S, SETTLED_S, TRIES, Deaths
from tasks.settings import Settings
from tasks.solo import TaskPool

PATIENCE_S = 30.0
KILLED = -int(signal.SIGKILL)


def waits(*lives: float) -> list[float]:
    """How long each next start waits, after processes that were up and lived so long."""
    deaths, found = Deaths(), []
    for lived_s in lives:
        deaths = deaths.after(lived_s, was_up=True, status=KILLED)
        found.append(deaths.wait_s)
    return found


def test_a_process_that_died_once_is_started_again_at_once_and_later_each_time():
    assert waits(1, 1, 1, 1, 1) == [0, 0.5, 1, 2, 4]


def test_a_process_that_ran_for_long_starts_with_a_clean_slate():
    assert waits(1, 1, 1, SETTLED_S, 1) == [0, 0.5, 1, 0, 0.5]


def test_jobs_that_kill_their_process_never_end_the_family():
    # Given deaths for ever, each after the process was up
    deaths = Deaths()
    for _ in range(1000):
        deaths = deaths.after(0.1, was_up=True, status=KILLED)
    # Then the next one waits as long as any, and comes
    assert deaths.wait_s == LONGEST_WAIT_S
    assert not deaths.is_hopeless


def test_a_process_that_never_gets_up_is_given_up():
    deaths, tries = Deaths(), 0
    while not deaths.is_hopeless:
        deaths, tries = deaths.after(0.1, was_up=False, status=1), tries + 1
    assert tries == TRIES
    # But one that was up in between is not
    deaths = Deaths()
    for number in range(TRIES * 3):
        deaths = deaths.after(0.1, was_up=number % TRIES == 0, status=1)
        assert not deaths.is_hopeless


def test_what_no_second_try_can_mend_gets_none():
    assert Deaths().after(0.1, was_up=False, status=2).is_hopeless
    assert not Deaths().after(0.1, was_up=True, status=2).is_hopeless


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans(), st.integers(-64, 255)), max_size=50))
def test_no_wait_is_longer_than_the_longest(lives):
    deaths = Deaths()
    for lived_s, was_up, status in lives:
        deaths = deaths.after(lived_s, was_up=was_up, status=status)
        assert 0 <= deaths.wait_s <= LONGEST_WAIT_S
        assert 0 <= deaths.at_start <= max(TRIES, deaths.in_row)


@pytest.mark.parametrize(
    ("signals", "then"),
    [
        ([signal.SIGTERM], Stop.WARM),
        ([signal.SIGHUP], Stop.WARM),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], Stop.WARM),
        ([signal.SIGQUIT], Stop.COLD),
        ([signal.SIGTERM, signal.SIGQUIT], Stop.COLD),
        ([signal.SIGQUIT, signal.SIGTERM], Stop.COLD),
        ([signal.SIGQUIT, signal.SIGQUIT], Stop.KILLED),
        ([signal.SIGINT], Stop.WARM),
        ([signal.SIGINT, signal.SIGINT], Stop.COLD),
        ([signal.SIGTERM, signal.SIGINT], Stop.COLD),
        ([signal.SIGINT] * 3, Stop.KILLED),
        ([signal.SIGINT] * 9, Stop.KILLED),
    ],
)
def test_signals_mean_what_they_mean_to_celery(signals, then):
    stop = Stop.NOT
    for signum in signals:
        stop = urgency(stop, signum)
    assert stop is then


def test_a_family_has_one_name_with_numbers_in_it():
    assert names("celery@%h", 2) == ["celery-1@%h", "celery-2@%h"]
    assert names("mail@host.example", 1) == ["mail-1@host.example"]
    assert names("host", 1) == ["celery-1@host"]  # to Celery a word without @ is the machine's


def test_each_process_is_a_single_one_whatever_the_options_say():
    words = command(
        "a-1@b", "app", ["-P", "processes", "-c", "9", "-n", "a@b", "-Q", "x", "--", "worker.pool_restarts=1"]
    )
    at = words.index("--")
    assert words[at - 6 : at] == ["-P", "custom", "-c", "1", "-n", "a-1@b"]
    assert words[at:] == ["--", "worker.pool_restarts=1"]


class Pipe:
    """A stream as a process writes it, and what comes out."""

    def __init__(self, target: int) -> None:
        source, self.writes = os.pipe()
        os.set_blocking(source, False)
        self._target = target
        self._read = 0
        self.lines = Lines(source, target, "a-1")

    def says(self, text: bytes) -> bytes:
        os.write(self.writes, text)
        self.lines.pass_on()
        return self.out()

    def out(self) -> bytes:
        found = os.pread(self._target, 1 << 20, self._read)
        self._read += len(found)
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with tempfile.TemporaryFile(buffering=0) as target:
        yield Pipe(target.fileno())


def test_half_a_line_waits_for_its_other_half(pipe: Pipe):
    assert pipe.says(b"one\ntwo\nthr") == b"a-1 | one\na-1 | two\n"
    assert pipe.says(b"e") == b""
    assert pipe.says(b"e\n\n") == b"a-1 | three\na-1 | \n"
    # And what was said last is not lost for want of an end
    pipe.says(b"end")
    os.close(pipe.writes)
    assert not pipe.lines.pass_on()
    assert pipe.out() == b"a-1 | end\n"


def test_a_line_without_an_end_is_kept_within_bounds(pipe: Pipe):
    said = b"".join(pipe.says(b"x" * 4096) for _ in range(2 * LONGEST_LINE // 4096))
    assert said.count(b"\n") == 1
    assert said.count(b"x") > LONGEST_LINE


def test_a_reader_that_is_gone_stops_nobody():
    reads, target = os.pipe()
    os.close(reads)
    source, writes = os.pipe()
    os.write(writes, b"line\n")
    assert Lines(source, target, "a-1").pass_on()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["-P", "processes", "-c", "3"], Family(3)),
        (["-Pprocesses", "-c3", "-linfo"], Family(3)),
        (["--pool=processes", "--concurrency=3", "-n", "w@%h"], Family(3, "w@%h")),
        (["--pool", "processes"], Family(cores())),
        (["--pool", "processes", "-c", "auto"], Family(cores())),
        (["-P", "processes", "-P", "solo"], None),
        (["-P", "solo", "-Q", "processes"], None),
        (["-Pprefork", "-c", "2"], None),
        (["-n", "processes@%h"], None),
        (["-P", "processes", "--no-such-option"], None),  # Celery says so better
        ([], None),
    ],
)
def test_celerys_own_parser_says_whether_a_family_is_wanted(options, found):
    assert family(options) == found


def test_each_option_that_it_cannot_keep_is_refused_with_a_reason():
    flags = {"beat", "purge", "detach"}
    for name, why in REFUSED.items():
        option = "--" + name.replace("_", "-")
        with pytest.raises(BadInput, match=option) as refused:
            family(["-P", "processes", option if name in flags else f"{option}=1"])
        assert why in str(refused.value)


@pytest.mark.parametrize("count", ["-1", "two", "1.5", str(MOST + 1), "٣"])
def test_a_number_of_processes_that_is_none_is_refused(count):
    with pytest.raises(BadInput, match="number of processes"):
        family(["-P", "processes", f"--concurrency={count}"])


def test_a_file_for_all_of_them_is_refused_and_one_for_each_is_not():
    for option in ("--statedb", "--logfile"):
        with pytest.raises(BadInput, match="%n"):
            family(["-P", "processes", option, "state"])
        assert family(["-P", "processes", option, "state-%n", "-c", "2"]) == Family(2)


def test_a_process_says_which_settings_of_its_app_are_for_nothing(caplog: pytest.LogCaptureFixture):
    # Given an app that sets a limit which only prefork keeps
    app = Celery("limited", set_as_current=False)
    app.conf.update(task_time_limit=5)
    pool = TaskPool(app=app)
    pool.start()
    assert "task_time_limit: nobody" in caplog.text
    # And one that sets none
    caplog.clear()
    TaskPool(app=Celery("plain", set_as_current=False)).start()
    assert caplog.text == ""


def test_with_the_transport_a_killed_process_is_not_waited_for_an_hour():
    options = {
        name: make_app(Settings(broker="redis://127.0.0.1/0", transport=name)).conf.broker_transport_options
        for name in ("stock", "sidestep")
    }
    assert options["sidestep"]["visibility_timeout"] == VISIBILITY_TIMEOUT_S
    # kombu's own renews nothing, so its jobs would be done twice
    assert "visibility_timeout" not in options["stock"]


# What follows starts processes, though no broker: each is a few lines of Python.

SUPERVISE = """
import sys
from tasks.processes import Supervisor
sys.exit(Supervisor("a@b", int(sys.argv[1]), lambda name, quiet: [sys.executable, "-c", sys.argv[2]]).run())
"""
STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("warm", flush=True))
signal.signal(signal.SIGQUIT, lambda *_: print("cold", flush=True))
print("up", os.getpid(), flush=True)
while True:
    signal.pause()
"""


@contextlib.contextmanager
def supervised(code, count=2):
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(count), code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(process, word, count):
    """Read lines until so many hold the word; returns these."""
    found = []
    while len(found) < count:
        line = process.stdout.readline()
        assert line, f"it ended before it said {word!r}"
        if word in line:
            found.append(line.split())
    return found


def test_an_option_that_is_none_ends_it_with_one_line_and_exit_2():
    with supervised("import sys; print('what?', file=sys.stderr); sys.exit(2)") as process:
        said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 2
    # Of either: whichever ends first takes the other with it, which may not have come to say so
    assert "a-1 | what?" in said or "a-2 | what?" in said
    assert said.count("giving up") == 1


def test_processes_that_end_as_told_are_not_started_again():
    with supervised("print('bye')") as process:
        said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0
    assert said.count("bye") == 2


def test_each_ctrl_c_is_more_urgent_than_the_last():
    with supervised(STUBBORN) as process:
        until(process, "up", 2)
        process.send_signal(signal.SIGINT)
        assert {line[0] for line in until(process, "| warm", 2)} == {"a-1", "a-2"}
        process.send_signal(signal.SIGINT)
        until(process, "| cold", 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 1


def test_another_process_takes_the_place_of_one_that_was_killed():
    with supervised(STUBBORN) as process:
        pids = {line[0]: int(line[-1]) for line in until(process, "up", 2)}
        os.kill(pids["a-2"], signal.SIGKILL)
        again = until(process, "| up", 1)[0]
        assert again[0] == "a-2"
        assert int(again[-1]) != pids["a-2"]
        assert psutil.pid_exists(pids["a-1"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked for it")
def test_a_killed_supervisor_leaves_no_process():
    with supervised(STUBBORN) as process:
        family = [psutil.Process(int(line[-1])) for line in until(process, "up", 2)]
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not alive


@pytest.fixture(scope="module")
def broker():
    from lab.broker import own_server
    from lab.children import Children

    with Children() as children, own_server(children) as server:
        yield server


@pytest.mark.real
@pytest.mark.parametrize(
    ("signum", "status", "done", "left", "unacked"),
    [(signal.SIGTERM, 0, 2, 4, 0), (signal.SIGQUIT, 1, 0, 6, 0), (signal.SIGKILL, KILLED, 0, 4, 2)],
)
def test_a_job_under_way_is_finished_or_given_back(broker, tmp_path, signum, status, done, left, unacked):
    # Given two processes with a job each, and four more jobs
    client = redis.Redis.from_url(broker.url)
    client.flushall()
    ready, told = os.pipe()
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
    env |= {"SIDESTEP_BROKER": broker.url, "SIDESTEP_ACKS_LATE": "1", "SIDESTEP_READY_FD": str(told)}
    options = ("--pool", "processes", "-c", "2", "-l", "INFO", "-n", "w@%h", "--transport", "sidestep")
    worker = subprocess.Popen(
        [sys.executable, "-m", "experiments", "worker", *options, "--marks", str(tmp_path)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=(told,),
    )
    try:
        os.close(told)
        about = json.loads(os.read(ready, 4096))
        assert (about["pool"], about["slots"], about["pid"]) == ("processes", 2, worker.pid)
        assert about["name"].startswith("w@")
        family = psutil.Process(worker.pid).children()
        app = make_app(Settings(broker=broker.url))
        for _ in range(6):
            app.send_task("sidestep.snooze", kwargs={"ms": 1500})
        app.close()
        assert {line[0] for line in until(worker, "received", 2)} == {"w-1", "w-2"}
        # When it is told to end
        worker.send_signal(signum)
        said = worker.communicate(timeout=PATIENCE_S)[0]
    finally:
        worker.kill()
        os.close(ready)
    # Then the jobs under way are finished, or are back in the queue, or wait there for the dead worker's lease to end
    assert worker.returncode == status
    assert said.count("succeeded") == done
    assert not psutil.wait_procs(family, timeout=PATIENCE_S)[1]
    waits, held = client.llen("sidestep:jobs"), client.hlen("sidestep:unacked")
    assert waits + held == left + unacked
    # A process that was killed may have fetched its next job already.
    assert held >= unacked if signum == signal.SIGKILL else held == unacked


@pytest.mark.real
def test_a_process_that_is_killed_comes_back_and_all_jobs_are_done(broker, tmp_path):
    # Given two processes under a lease of two seconds
    redis.Redis.from_url(broker.url).flushall()
    log = tmp_path / "done"
    conf = {
        "broker_transport": "sidestep_transport:Transport",
        "broker_transport_options": {"visibility_timeout": 2},
        "task_acks_late": True,
    }
    env = {**os.environ, "TRANSPORT_TEST": json.dumps({"broker": broker.url, "log": str(log), "conf": conf})}
    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tasks.processes",
            "2",
            "w@%h",
            "tests.transport_app",
            "-l",
            "ERROR",
            "--without-mingle",
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        app = make_app(Settings(broker=broker.url, key_prefix="x")).__class__("sends", broker=broker.url)
        for number in range(60):
            app.send_task("tests.transport_app.done", (number, 0.02))
        app.close()
        # When each of them is killed in turn while there is work
        killed = set()
        deadline = time.monotonic() + PATIENCE_S
        # A killed process leaves jobs done that it could not tell of: they are done twice, and count once here.
        while len(dict(numbers(log))) < 60 and time.monotonic() < deadline:
            if fresh := {pid for _, pid in numbers(log)} - killed if len(killed) < 2 else set():
                victim = fresh.pop()
                killed.add(victim)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            time.sleep(0.01)
        # Then other processes are there, and every job was done
        assert len(killed) == 2
        assert {number for number, _ in numbers(log)} == set(range(60))
        assert {pid for _, pid in numbers(log)} - killed
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()


def numbers(log):
    """The jobs that were done, and by which process."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []
