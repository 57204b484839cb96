"""Every job is a fixed amount of work with a result that can be checked."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tasks.calibrate import units_per_ms
from tasks.cpu import CHUNK
from tasks.jobs import JOBS, Nature
from tasks.registry import checksum

# Small arguments for every job: a new job wants a row here.
ARGS = {
    "noop": {},
    "spin": {"loops": 1000},
    "primes": {"limit": 1000},
    "wordcount": {"words": 5, "seed": 3},  # few enough that several words are the commonest
    "digest": {"chunks": 1},
    "squeeze": {"chunks": 1},
    "blend": {"loops": 1001, "chunks": 3},
    "sine": {"rounds": 2},
    "nudge": {"rounds": 3},
    "naps": {"rounds": 2, "ms": 1},
    "hold": {"kind": "Lock", "rounds": 3},
    "tally": {"rounds": 3, "guard": "lock"},
    "deliver": {"through": "thread"},
    "weigh": {"load": "text"},
    "transcode": {"codec": "json", "compression": None, "shape": "tree", "size_bytes": 200, "step": "size"},
    "carry": {"payload": [1, 2, 3], "loops": 3},
    "snooze": {"ms": 1},
    "stall": {"ms": 1},
    "fetch": {"url": "http://127.0.0.1:1/", "key": 7},
    "ask": {"key": 7},
    "mixed": {"loops": 1001, "io_ms": 1},
    "echo": {"payload": {"text": "ä", "list": [1, 2.5, None]}},
    "flaky": {"failures": 2},
}
NETWORK = {"fetch", "ask"}
MEASURING = {"tally", "deliver", "transcode"}
"""What these return is found out by running them: no two times need be alike."""
LOCAL = sorted(ARGS.keys() - NETWORK - MEASURING)


def test_every_job_is_held_to_these_laws():
    assert set(ARGS) == set(JOBS)
    assert {name for name, job in JOBS.items() if job.measures} == MEASURING


@pytest.mark.parametrize("name", LOCAL)
def test_the_same_arguments_make_the_same_result(name: str):
    run = JOBS[name].run
    assert run(**ARGS[name]) == run(**ARGS[name])


@pytest.mark.parametrize("name", sorted(ARGS))
def test_arguments_survive_json_and_fit_the_job(name: str):
    again = json.loads(json.dumps(ARGS[name]))
    assert again == ARGS[name]
    inspect.signature(JOBS[name].run).bind(**again)


@pytest.mark.parametrize("name", LOCAL)
def test_a_job_returns_what_is_expected_of_it(name: str):
    job = JOBS[name]
    assert checksum(job.run(**ARGS[name])) == checksum(job.expect(**ARGS[name]))


@pytest.mark.parametrize("name", sorted(ARGS.keys() - MEASURING))
def test_what_to_expect_of_a_job_is_known_without_a_network(name: str):
    # Called as the lab calls it: with the job's own arguments, by name
    JOBS[name].expect(**ARGS[name])


def test_jobs_that_repeat_their_key_are_expected_to():
    assert JOBS["fetch"].expect(url="http://127.0.0.1:1/", key=7) == "7"
    assert JOBS["ask"].expect(key=7) == "7"


@pytest.mark.parametrize(
    ("name", "args", "result"),
    [
        ("noop", {}, 0),
        ("spin", {"loops": 0}, 0),
        ("spin", {"loops": 5}, 0 + 1 + 2 + 3 + 4),
        ("primes", {"limit": 0}, 0),
        ("primes", {"limit": 2}, 0),
        ("primes", {"limit": 3}, 1),
        ("primes", {"limit": 1000}, 168),
        ("digest", {"chunks": 2}, hashlib.sha256(CHUNK * 2).hexdigest()),
        ("squeeze", {"chunks": 3}, 3 * len(zlib.compress(CHUNK, 6))),
        ("mixed", {"loops": 5, "io_ms": 0}, 10),
        ("snooze", {"ms": 0}, 0),
        ("stall", {"ms": 0}, 0),
        ("echo", {"payload": [1, "a"]}, [1, "a"]),
        ("blend", {"loops": 0, "chunks": 0}, f"0 {hashlib.sha256().hexdigest()}"),
        # Neither 1001 nor 13 is a multiple of the slices in which the two kinds of work alternate
        ("blend", {"loops": 1001, "chunks": 13}, f"{1001 * 500} {hashlib.sha256(CHUNK * 13).hexdigest()}"),
        ("sine", {"rounds": 3}, 3),
        ("nudge", {"rounds": 0}, 0),
        ("nudge", {"rounds": 5}, 5),
        ("naps", {"rounds": 2, "ms": 0}, 2),
        *(("hold", {"kind": kind, "rounds": 4}, 4) for kind in ("nothing", "Lock", "RLock", "Queue")),
    ],
)
def test_a_job_does_the_work_it_is_named_for(name: str, args: dict[str, object], result: object):
    assert JOBS[name].run(**args) == result


def test_wordcount_finds_a_word_that_no_other_beats():
    from tasks.cpu import _text  # the text is the job's own secret; its commonest word is not

    word, count, _, of = str(JOBS["wordcount"].run(words=500, seed=3)).split()
    text = _text(500, 3).split()
    assert int(count) == text.count(word) == max(text.count(other) for other in text)
    assert int(of) == len(set(text))


def test_more_of_a_job_that_scales_is_more_work():
    # Given jobs with an argument that makes them longer; then the argument is theirs and takes a whole number
    scaling = {name: job.scales_with for name, job in JOBS.items() if job.scales_with}
    assert scaling == {"spin": "loops", "digest": "chunks", "squeeze": "chunks", "sine": "rounds", "mixed": "loops"}
    for name, argument in scaling.items():
        assert argument in inspect.signature(JOBS[name].run).parameters, name


def test_jobs_that_wait_say_so():
    assert {name for name, job in JOBS.items() if job.nature is Nature.WAITS} == {
        "snooze",
        "stall",
        "fetch",
        "ask",
        "naps",
        "flaky",
    }
    releasing = {"digest", "squeeze", "blend", "sine"}
    assert {name for name, job in JOBS.items() if job.nature is Nature.RELEASES_GIL} == releasing


def tally(rounds: int, guard: str) -> int:
    return JOBS["tally"].run(rounds=rounds, guard=guard)


@pytest.mark.parametrize("guard", ["none", "lock"])
def test_a_tally_returns_what_the_one_counter_holds_after_its_additions(guard: str):
    before = tally(0, guard)
    assert [tally(3, guard), tally(4, guard)] == [before + 3, before + 7]


def test_threads_that_lock_lose_not_one_addition():
    # Given four threads whose turns change as often as they can
    before, interval = tally(0, "lock"), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            totals = list(pool.map(lambda _: tally(2_000, "lock"), range(20)))
    finally:
        sys.setswitchinterval(interval)
    # Then the highest that any of them saw is all of it
    assert max(totals) == before + 20 * 2_000 == tally(0, "lock")


@pytest.mark.parametrize(("name", "args"), [("tally", {"guard": "both"}), ("hold", {"kind": "Semaphore"})])
def test_what_contends_for_something_unknown_says_what_there_is(name: str, args: dict[str, str]):
    with pytest.raises(ValueError, match=f"must be .*, not '{next(iter(args.values()))}'"):
        JOBS[name].run(rounds=1, **args)


def test_every_thread_that_nudges_has_a_pipe_of_its_own():
    # Given threads that write and read at the same time; then none waits for a byte that another has read
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: JOBS["nudge"].run(rounds=200), range(16))) == [200] * 16


def test_jobs_that_hold_a_lock_take_turns_and_all_get_through():
    for kind in ("Lock", "RLock", "Queue"):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _, kind=kind: JOBS["hold"].run(kind=kind, rounds=100), range(8))) == [100] * 8


def test_the_seal_of_a_job_that_measures_is_the_measurement_itself():
    for number in (0, 1, 4_200_000, 2**32 - 1):
        assert JOBS["tally"].seal(number) == number
    assert JOBS["tally"].seal(2**32 + 5) == 5, "a seal has 32 bits"


def test_the_seal_of_any_other_job_is_the_checksum_of_its_result():
    for name in LOCAL:
        result = JOBS[name].run(**ARGS[name])
        assert JOBS[name].seal(result) == checksum(result) == JOBS[name].seal(JOBS[name].expect(**ARGS[name])), name
    # And a job that measures but returned no number is sealed so too
    assert JOBS["tally"].seal("nothing") == checksum("nothing")


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    from lab.broker import own_server  # only where there is a server to start
    from lab.children import Children

    with Children() as children, own_server(children) as broker:
        yield broker.url


BROKER_JOBS = """
import json
from tasks.jobs import JOBS
tally, hold = JOBS["tally"].run, JOBS["hold"].run
print(json.dumps([tally(rounds=5, guard="broker"), tally(rounds=2, guard="broker"), hold(kind="Redis lock", rounds=3)]))
"""


@pytest.mark.real
def test_processes_count_and_lock_at_one_broker_under_their_own_prefix(redis_url: str):
    # Given two processes of one trial, one after the other, and one of another trial
    def done(prefix: str) -> list[int]:
        env = {**os.environ, "SIDESTEP_BROKER": redis_url, "SIDESTEP_KEY_PREFIX": prefix}
        return json.loads(python(BROKER_JOBS, env=env))

    # Then the second counts on where the first ended, and the other trial begins anew
    assert [done("sidestep:a:"), done("sidestep:a:"), done("sidestep:b:")] == [[5, 7, 3], [12, 14, 3], [5, 7, 3]]
    # And nothing but the two counters is left
    with redis.Redis.from_url(redis_url) as client:
        assert sorted(client.keys("*")) == [b"sidestep:a:tally", b"sidestep:b:tally"]


def python(script: str, *, given: str = "", env: dict[str, str] | None = None) -> str:
    """What the script prints, run in a process of its own."""
    command, root = [sys.executable, "-c", script], Path(__file__).parent.parent
    return subprocess.run(command, input=given, env=env, cwd=root, capture_output=True, text=True, check=True).stdout


SUMS = """
import json, sys
from tasks.jobs import JOBS
from tasks.registry import checksum
print(json.dumps({name: checksum(JOBS[name].run(**args)) for name, args in json.load(sys.stdin).items()}))
"""


def test_results_and_checksums_are_the_same_in_every_process():
    # Given processes whose hashes of text differ
    args = {name: ARGS[name] for name in LOCAL}
    sums = []
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        sums.append(json.loads(python(SUMS, given=json.dumps(args), env=env)))
    # Then all agree, and with this process too
    assert sums[0] == sums[1] == {name: checksum(JOBS[name].run(**args[name])) for name in args}


@given(st.text() | st.binary() | st.integers() | st.none() | st.floats() | st.lists(st.integers()))
def test_a_checksum_fits_its_32_bits(result: object):
    assert 0 <= checksum(result) < 2**32


def test_checksums_tell_results_apart():
    results = [None, 0, 1, "", "a", "b", b"a\0", 0.5, [], [0], {}, True, "\udc80"]
    assert len({checksum(result) for result in results}) == len(results)


def test_a_worker_does_not_carry_the_measuring_half():
    # Given a process that only imports the jobs
    ask = "import sys, tasks.jobs; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = python(ask)
    # Then neither the lab nor Celery came along
    for heavy in ("lab", "producer", "numpy", "matplotlib", "celery"):
        assert f"'{heavy}'" not in loaded


def test_calibration_takes_the_fastest_of_several_tries():
    # Given a clock by which a try takes 10 ms, but one of them 5 ms
    durations = iter([10, 10, 10, 5, 10, 10, 10, 10, 10, 10])
    now, begun = 0, False

    def clock() -> int:
        nonlocal now, begun
        now += next(durations) * 1_000_000 if begun else 0
        begun = not begun
        return now

    # Then one unit in 5 ms counts
    assert units_per_ms("spin", clock=clock) == 1 / 5


def test_calibration_refuses_a_job_that_does_not_scale():
    with pytest.raises(ValueError, match="noop"):
        units_per_ms("noop")
    with pytest.raises(KeyError, match="nonsense"):
        units_per_ms("nonsense")
