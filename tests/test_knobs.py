"""Knobs, presets, and what is said of their worth; workers under real ones."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments.catalogue import EXPERIMENTS
from lab import profiling, shares
from lab.arenas.flower import missing
from lab.bench import Bench
from lab.bench_profile import as_json as profile_json
from lab.checks import deaf_watcher
from lab.environment import cores
from lab.measure import cannot_run
from lab.model import Estimate, Fault, LabError, Setup, Suite, Trial
from lab.presets_cli import as_json, presets
from lab.profiling import KERNEL, NAMES, OTHER, OWNERS, Bill, Profile, profile
from lab.runner import Runner
from lab.session import open_session
from lab.shares import Share, share
from lab.store import SuiteFile
from producer.pacers import Burst
from tasks.app import make_app
from tasks.knobs import KNOBS, PRESETS, configuration, options, results, turned
from tasks.pools import POOLS
from tasks.settings import Settings, SettingsError, from_env
from tests.fakes import SETUP, make_run
from tests.simulator import run_experiment

# --- rows ------------------------------------------------------------------------------------------------------------


def test_every_knob_turns_something_and_says_what_it_gives_up():
    for name, knob in KNOBS.items():
        assert name == knob.name
        assert knob.conf or knob.options or knob.results is not None
        assert knob.says
        assert knob.risks


def test_every_preset_is_made_of_knobs_and_turns_none_twice():
    for name, preset in PRESETS.items():
        assert name == preset.name
        assert set(preset.knobs) <= set(KNOBS)
        assert len(set(preset.knobs)) == len(preset.knobs)
        assert preset.promises
    assert PRESETS["default"].knobs == ()


LOSES = {"no-acks"}
"""Knobs under which a killed worker loses what it has fetched."""


def test_only_a_preset_that_says_so_may_lose_what_was_fetched():
    for preset in PRESETS.values():
        assert bool(LOSES & set(preset.knobs)) == ("all that it had fetched is lost" in preset.promises), preset.name


def test_settings_of_the_transport_are_put_together_and_a_later_knob_wins():
    together = configuration([KNOBS["one-list"], KNOBS["no-acks"], KNOBS["prefetch-64"], KNOBS["prefetch-1"]])
    assert together == {
        "broker_transport_options": {"priority_steps": [0], "ack_emulation": False},
        "worker_prefetch_multiplier": 1,
    }
    # And the rows are left as they were
    assert KNOBS["one-list"].conf == {"broker_transport_options": {"priority_steps": [0]}}


def test_what_has_no_setting_is_told_on_the_command_line():
    assert options(turned("default", ["no-talk", "events"])) == (*KNOBS["no-talk"].options, "-E")
    assert Settings(knobs="events, log-jobs").worker_options == ("-E", "--loglevel", "INFO")
    assert results(turned("default", ["results", "results-ignored"])) is False
    assert results(turned("default")) is None


def test_an_app_has_what_its_preset_and_its_knobs_turn():
    app = make_app(Settings(preset="lossless", knobs="results,one-client"))
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.broker_transport == "tasks.one_client:Transport"
    assert app.conf.broker_transport_options == {
        "socket_timeout": 30,
        "socket_keepalive": True,
        "global_keyprefix": "sidestep:",
    }
    assert app.conf.result_backend == app.conf.broker_url
    assert not app.conf.task_ignore_result
    # And one without keeps Celery's own
    plain = make_app(Settings())
    assert plain.conf.worker_prefetch_multiplier == 4
    assert plain.conf.broker_transport is None
    assert plain.conf.result_backend is None


def test_a_setting_of_its_own_wins_over_the_preset():
    assert make_app(Settings(prefetch=7, preset="lossless")).conf.worker_prefetch_multiplier == 7


def test_knobs_survive_the_environment_and_an_unknown_one_is_told_in_one_line():
    told = Settings(preset="fast", knobs="events,no-talk")
    assert from_env(told.to_env()) == told
    with pytest.raises(SettingsError, match=r"knob 'turbo' is unknown; choose of: one-client, ") as refused:
        from_env({"SIDESTEP_KNOBS": "events,turbo"})
    assert "\n" not in str(refused.value)


def test_what_is_for_redis_is_refused_for_another_broker():
    with pytest.raises(SettingsError, match="'one-client' is for Redis"):
        Settings(broker="amqp://host", preset="fast")
    # But what any broker can do is not
    assert make_app(Settings(broker="amqp://host", preset="lossless")).conf.task_acks_late


# --- worth -----------------------------------------------------------------------------------------------------------


def timed(knobs: tuple[str, ...], repeat: int, wall_s: float):
    return make_run(setup=replace(SETUP, knobs=knobs), repeat=repeat, wall_s=wall_s)


@pytest.mark.parametrize(
    ("walls_s", "word"),
    [
        ([0.50, 0.52, 0.48], "faster"),
        ([2.00, 1.90, 2.10], "slower"),
        # On the whole faster, but not beyond doubt
        ([0.50, 1.20, 0.60], "no difference seen"),
        ([0.50], "one repeat: no interval"),
        ([], "not measured"),
    ],
)
def test_nothing_is_called_faster_unless_its_whole_interval_is(walls_s: list[float], word: str):
    runs = [timed((), repeat, 1.0) for repeat in range(len(walls_s))]
    runs += [timed(("fair",), repeat, wall_s) for repeat, wall_s in enumerate(walls_s)]
    one = share(runs, ("fair",))
    assert one.word == word
    assert (one.rate is None) == (not walls_s)


def test_a_doubtful_run_makes_the_share_invalid_and_no_other():
    runs = [timed(knobs, repeat, 1.0) for knobs in ((), ("fair",), ("events",)) for repeat in range(3)]
    runs[4] = replace(runs[4], faults=(Fault("noisy_machine", "somebody was loud"),))
    assert share(runs, ("fair",)).word == "invalid"
    assert share(runs, ("fair",)).doubtful == "somebody was loud"
    assert share(runs, ("events",)).word == "no difference seen"


def test_what_a_knob_adds_is_the_whole_preset_against_the_preset_without_it():
    # Given a preset whose first knob doubles the rate and whose second does nothing
    whole = PRESETS["at-most-once"].knobs
    walls_s = {whole: 0.5, whole[1:]: 1.0, whole[:1]: 0.5, (): 1.0}
    runs = [timed(knobs, repeat, wall_s) for knobs, wall_s in walls_s.items() for repeat in range(3)]
    first, second = shares.left_out(runs, "at-most-once").values()
    assert first.rate
    assert second.rate
    assert first.rate.value == pytest.approx(2)
    assert second.rate.value == pytest.approx(1)
    assert shares.of_presets(runs)["at-most-once"].rate == first.rate


def test_another_pool_and_another_package_are_set_against_the_worker_that_celery_starts():
    # Given threads that are twice as fast, and a package that makes prefork four times as fast
    setups = (replace(SETUP, knobs=()), replace(SETUP, knobs=(), pool="threads"))
    setups = (*setups, replace(SETUP, knobs=(), packages=("hiredis==3.5.0",)))
    runs = [
        make_run(setup=setup, repeat=repeat, wall_s=wall_s)
        for setup, wall_s in zip(setups, (1.0, 0.5, 0.25), strict=True)
        for repeat in range(3)
    ]
    found = {name: one.rate.value for name, one in shares.chosen_elsewhere(runs).items() if one.rate}
    assert found == pytest.approx({"threads 2": 2, "prefork 2, hiredis==3.5.0": 4})
    # And no knob's worth is mixed with the package's
    turned_runs = [timed(("fair",), repeat, 1.0) for repeat in range(3)]
    one = share([*runs, *turned_runs], ("fair",)).rate
    assert one
    assert one.value == pytest.approx(1)


def test_the_experiment_turns_each_knob_alone_and_leaves_each_out_of_its_preset():
    setups = EXPERIMENTS[shares.EXPERIMENT].setups(cores=2)
    measured = {setup.knobs for setup in setups if setup.pool == shares.BASE_POOL and not setup.packages}
    assert {(name,) for name in KNOBS} <= measured
    for preset in PRESETS.values():
        assert preset.knobs in measured
        for name in preset.knobs:
            assert tuple(one for one in preset.knobs if one != name) in measured


@pytest.fixture(scope="module")
def suite() -> Suite:
    whole = EXPERIMENTS[shares.EXPERIMENT]
    return run_experiment(replace(whole, base=replace(whole.base, pacer=Burst(20)), repeats=3), cores=2)


def test_every_knob_and_preset_is_listed_with_what_it_buys_and_risks(suite: Suite, tmp_path: Path):
    SuiteFile(tmp_path).save(suite)
    told = CliRunner().invoke(presets, ["--suite", str(tmp_path)])
    assert told.exit_code == 0, told.output
    for name in (*KNOBS, *PRESETS):
        assert re.search(rf"^{name} ", told.output, re.MULTILINE), name
    assert "no difference seen" in told.output
    assert "in brackets the 95 % interval" in " ".join(told.output.split())
    # And as JSON
    out = json.loads(CliRunner().invoke(presets, ["--suite", str(tmp_path), "--json"]).output)
    assert out == as_json(shares.measured(suite), str(tmp_path))
    assert out["schema"] == 1
    assert set(out["knobs"]) == set(KNOBS)
    assert out["presets"]["default"]["rate"] is None
    assert set(out["presets"]["fast"]["each_adds"]) == set(PRESETS["fast"].knobs)
    assert out["knobs"]["fair"]["rate"]["low"] <= out["knobs"]["fair"]["rate"]["value"]


def test_without_figures_it_says_how_to_get_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIDESTEP_RUNS", str(tmp_path))
    monkeypatch.setattr("lab.presets_cli.STORED", tmp_path / "nowhere.xz")
    told = CliRunner().invoke(presets)
    assert told.exit_code == 0
    assert "`sidestep run presets`" in told.output
    assert json.loads(CliRunner().invoke(presets, ["--json"]).output)["suite"] is None


def test_the_newest_suite_that_has_figures_is_taken(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIDESTEP_RUNS", str(tmp_path))
    other = run_experiment(EXPERIMENTS["gil-cpu"], quick=True)
    for age_s, (name, held) in enumerate({"other": other, "broken": None, "newer": suite, "older": suite}.items()):
        file = tmp_path / name / "suite.json"
        if held is None:
            file.parent.mkdir()
            file.write_text('{"experiment": "presets"')
        else:
            SuiteFile(file.parent).save(held)
        os.utime(file, (1e9 - age_s, 1e9 - age_s))
    assert json.loads(CliRunner().invoke(presets, ["--json"]).output)["suite"] == str(tmp_path / "newer" / "suite.json")


def test_a_named_suite_without_figures_is_refused(tmp_path: Path):
    SuiteFile(tmp_path).save(run_experiment(EXPERIMENTS["gil-cpu"], quick=True))
    refused = CliRunner().invoke(presets, ["--suite", str(tmp_path)])
    assert isinstance(refused.exception, LabError)
    assert "`sidestep run presets`" in str(refused.exception)


def test_a_share_knows_when_it_has_no_interval():
    lone = Estimate(2.0, 0.0, float("inf"), 1)
    assert Share(lone, lone).word == "one repeat: no interval"


# --- profile ---------------------------------------------------------------------------------------------------------

SITE = "/v/lib/python3.13/site-packages"
FRAMES = {
    f"send ({SITE}/redis/connection.py:9)": "redis-py",
    f"unpack ({SITE}/hiredis/__init__.py:9)": "redis-py",
    f"_brpop_read ({SITE}/kombu/transport/redis.py:1476)": "kombu's Redis transport",
    "conn_or_acquire (/x/tasks/one_client.py:24)": "kombu's Redis transport",
    f"poll ({SITE}/kombu/utils/eventio.py:83)": "the event loop",
    f"asynloop ({SITE}/celery/worker/loops.py:97)": "the event loop",
    f"loads ({SITE}/kombu/serialization.py:264)": "kombu, messages and the rest",
    f"trace_task ({SITE}/celery/app/trace.py:479)": "Celery's tracer",
    f"store_result ({SITE}/celery/backends/base.py:500)": "the result backend",
    f"publish ({SITE}/celery/events/dispatcher.py:120)": "events",
    f"on_apply ({SITE}/celery/concurrency/thread.py:54)": "the pool",
    "_worker (/usr/lib/python3.13/concurrent/futures/thread.py:81)": "the pool",
    f"task_message_handler ({SITE}/celery/worker/strategy.py:120)": "Celery's consumer",
    f"send ({SITE}/celery/utils/dispatch/signal.py:276)": "Celery, signals and the rest",
    "marked (/x/tasks/hooks.py:80)": "Sidestep's marks",
    "noop (/x/tasks/cpu.py:10)": "the task itself",
    "raw_decode (/usr/lib/python3.13/json/decoder.py:353)": None,
    "<module> (string)": None,
}


@pytest.mark.parametrize(("frame", "name"), FRAMES.items())
def test_a_frame_is_whoever_has_its_file(frame: str, name: str | None):
    assert profiling.owner(frame) == name


def test_every_owner_has_a_frame_here():
    assert {owner.name for owner in OWNERS} <= set(FRAMES.values())
    assert set(NAMES) == {KERNEL, OTHER, *(owner.name for owner in OWNERS)}


def test_what_the_standard_library_does_is_whoevers_who_called_it():
    names = {name: frame for frame, name in FRAMES.items()}
    loop, transport, client = (names[n] for n in ("the event loop", "kombu's Redis transport", "redis-py"))
    json_frame = "raw_decode (/usr/lib/python3.13/json/decoder.py:353)"
    found = profile(f"{loop};{transport} 3\n{loop};{transport};{client} 5\n{loop};{json_frame} 2\n{json_frame} 1\n")
    assert found == Profile(
        samples=11,
        own={"kombu's Redis transport": 3, "redis-py": 5, "the event loop": 2, OTHER: 1},
        inclusive={"the event loop": 10, "kombu's Redis transport": 8, "redis-py": 5, OTHER: 1},
    )


def test_shares_and_the_kernel_add_up_to_all_of_the_time():
    # Given two workers, half of whose user time was redis-py's
    seen = Profile(10, {"redis-py": 5, "the event loop": 5}, {"redis-py": 5, "the event loop": 10})
    bill = Bill("solo", [seen, seen], user_s=[0.001, 0.003], kernel_s=[0.001, 0.001])
    # Then its share is of all time, worker by worker
    redis_py = bill.share("redis-py")
    assert redis_py
    assert redis_py.value == pytest.approx((0.25 + 0.375) / 2)
    assert sum(one.value for name in NAMES if (one := bill.share(name))) == pytest.approx(1)
    assert sum(one.value for name in NAMES if (one := bill.seconds(name))) == pytest.approx(0.003)
    out = profile_json([bill], "default")
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert set(out["pools"]["solo"]["owners"]) == set(NAMES)


def test_without_py_spy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LabError, match=r"sidestep\[profile\]"):
        profiling.py_spy()


# --- real workers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session():
    with open_session() as opened:
        yield opened


@pytest.fixture(scope="module")
def runner(session) -> Runner:
    # What a busy machine does to a figure is not what is tested here.
    return Runner(session, cores(), retakes=0)


def noop(**how: object) -> Trial:
    return Trial("test", Setup(job="noop", args={}, pacer=Burst(40), **how), 0)  # type: ignore[arg-type]


TOGETHER = (
    ("one-client", "one-list", "prefetch-64", "no-talk", "fair", "late-acks", "requeue", "bounded-socket", "no-remote"),
    ("prefetch-1", "no-acks", "no-talk"),
    ("events", "results", "log-jobs", "no-talk"),
    ("results-ignored", "no-talk"),
)
"""Knobs that do not exclude each other, so that few workers try them all; mingle would wait a second in each."""


@pytest.mark.real
def test_every_knob_has_a_worker_that_does_every_job_and_does_what_it_says(runner: Runner):
    assert {name for knobs in TOGETHER for name in knobs} == set(KNOBS)
    # Given a worker for each group of knobs, and one as Celery starts it
    seen = {}
    for knobs in ((), *TOGETHER):
        run = runner.run(noop(pool="solo", knobs=knobs))
        assert (run.ledger.done, run.ledger.duplicated) == (40, 0), knobs
        seen.update(dict.fromkeys(knobs or ("stock",), run.resources.commands))
    # Then the broker saw what each is about
    stock = seen["stock"]
    assert stock["zadd"] >= 40
    assert seen["no-acks"].get("zadd", 0) < 10
    assert seen["events"]["publish"] > stock.get("publish", 0) + 40
    assert seen["results"]["setex"] == 40
    assert "setex" not in seen["results-ignored"]
    # And one client sends just what many did
    for name in ("brpop", "zadd", "hset", "zrem", "hdel"):
        assert abs(seen["one-client"][name] - stock[name]) < 10, name


@pytest.mark.real
@pytest.mark.parametrize("pool", [pool for pool in POOLS if pool != "solo"])
def test_every_pool_does_every_job_under_the_fast_preset(runner: Runner, pool: str):
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing)
    run = runner.run(noop(pool=pool, concurrency=3, knobs=(*PRESETS["fast"].knobs, "no-talk")))
    assert (run.ledger.done, run.ledger.duplicated) == (40, 0)


@pytest.mark.real
@pytest.mark.parametrize(("preset", "keeps"), [("lossless", True), ("at-most-once", False)])
def test_what_a_killed_worker_had_fetched_is_kept_or_lost_as_its_preset_says(session, tmp_path, preset, keeps):
    # Given a worker that is killed while its first jobs are under way
    setup = Setup(
        job="snooze",
        args={"ms": 200},
        pacer=Burst(30),
        pool="threads",
        concurrency=2,
        knobs=(*PRESETS[preset].knobs, "no-talk"),
    )
    with Bench(Trial("test", setup, 0), session, 7, tmp_path / "trial", limit_s=20) as bench:

        def kill_once_some_ended() -> None:
            if bench._progress.ended_ns():
                for process in bench.processes():
                    process.kill()

        bench.go(0, 1, others=[], idle=kill_once_some_ended)
        held, run = bench._queue.held(), bench.run()
    missing_jobs = run.ledger.issued - run.ledger.done - held
    assert run.ledger.done < 30
    if keeps:
        # All are queued or known as unacknowledged, but for one that may have been on its way (kombu)
        assert missing_jobs <= 1
    else:
        assert missing_jobs > 1


def needs_flower() -> None:
    if missing():
        if os.environ.get("CI"):
            pytest.fail("CI needs the extra `flower`")
        pytest.skip(missing())


@pytest.mark.real
def test_events_are_sent_and_flower_hears_of_every_job(runner: Runner):
    needs_flower()
    how = {"pool": "threads", "concurrency": 2}
    # Flower by itself: now and then it asks all workers to send events, and the broker counts that to whoever runs
    off, on = runner.together([noop(**how, events=events) for events in ("off", "on")])
    flower = runner.run(noop(**how, events="flower"))
    assert "publish" not in off.resources.commands
    assert on.resources.commands["publish"] > 0
    assert (on.resources.watcher_cpu_s, on.resources.watcher_ends) == (None, None)
    # And Flower's count is the ledger's, its time its own
    assert flower.resources.watcher_ends == flower.ledger.done == 40
    assert flower.resources.watcher_cpu_s is not None
    assert not list(deaf_watcher(flower))
    # Then nothing of it is left
    assert not [child for child in runner.session.helpers if child.is_running()]


def test_without_flower_only_what_needs_it_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    said = cannot_run(noop(pool="solo", events="flower").setup)
    assert said
    assert "sidestep[flower]" in said
    assert cannot_run(noop(pool="solo", events="on").setup) is None


@pytest.mark.real
def test_a_live_worker_is_profiled(session):
    if not (shutil.which("py-spy") or (Path(sys.executable).parent / "py-spy").exists()):
        if os.environ.get("CI"):
            pytest.fail("CI needs the extra `profile`")
        pytest.skip("py-spy is not installed")
    try:
        (bill,) = profiling.measure(session, ["solo"], jobs=500, repeats=2)
    except LabError as refused:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(refused))
    for found in bill.profiles:
        # Its loop holds all that a solo worker does
        assert found.inclusive["the event loop"] > found.samples / 2
        assert found.own["redis-py"] > 0
    assert bill.cpu
    assert bill.cpu.value > 0
