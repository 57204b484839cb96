"""Several loads side by side: each keeps its rate, and each job is sent as what it is."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import redis

from lab.broker import own_server
from lab.children import Children
from producer.mix import ROUND_S, Feed, MixError, constant, loads_in, poisson
from producer.payloads import EachJob
from tasks.metrics import COUNTS

ROW = {"job": "spin", "queue": "cpu", "rate": 2}


def test_arrivals_are_in_order_and_each_load_counts_its_own():
    arrivals = list(poisson([5.0, 1.0], 3 * ROUND_S, seed=1))
    assert [a.due_s for a in arrivals] == sorted(a.due_s for a in arrivals)
    for load in (0, 1):
        assert [a.number for a in arrivals if a.load == load] == list(range(sum(a.load == load for a in arrivals)))


def test_each_load_keeps_its_rate_round_after_round():
    arrivals = list(poisson([20.0, 5.0], 10 * ROUND_S))
    for load, rate_hz in enumerate((20.0, 5.0)):
        count = sum(a.load == load for a in arrivals)
        mean = rate_hz * 10 * ROUND_S
        assert abs(count - mean) < 5 * mean**0.5
    # And no round repeats another
    rounds = [
        [round(a.due_s % ROUND_S, 6) for a in group]
        for _, group in itertools.groupby(arrivals, lambda a: int(a.due_s // ROUND_S))
    ]
    assert len({tuple(one) for one in rounds}) == 10


def test_the_same_seed_makes_the_same_arrivals_and_a_load_without_end_goes_on():
    first, again, other = (list(itertools.islice(poisson([3.0], float("inf"), seed), 1000)) for seed in (1, 1, 2))
    assert first == again != other
    assert first[-1].due_s > ROUND_S
    assert [a.due_s for a in itertools.islice(constant(4.0), 4)] == [0, 0.25, 0.5, 0.75]


def test_a_feed_knows_what_each_job_is_when_its_turn_has_come():
    feed = Feed(poisson([5.0, 5.0], 10), lambda load, number: (load, number))
    assert feed.parcel(0) == (0, 0)  # a sample, before the first is due
    assert list(feed.due_s()) == [a.due_s for a in poisson([5.0, 5.0], 10)]
    sent = [feed.parcel(seq) for seq, _ in enumerate(poisson([5.0, 5.0], 10))]
    assert sent == [(a.load, a.number) for a in poisson([5.0, 5.0], 10)]


def test_a_mix_is_read_with_its_defaults():
    (load,) = loads_in({"load": [{**ROW, "args": {"key": "{seq}", "url": "http://x"}}]})
    assert (load.job, load.queue, load.rate_hz, load.ms) == ("spin", "cpu", 2.0, 10.0)
    assert load.args == {"key": EachJob(), "url": "http://x"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, r"\[\[load\]\]"),
        ({"load": []}, r"\[\[load\]\]"),
        ({"load": [ROW], "rate": 1}, r"nothing beside"),
        ({"load": [{"job": "spin"}]}, "load 1 of the mix has no queue, rate"),
        ({"load": [ROW, {**ROW, "pace": 1}]}, "load 2 of the mix has pace"),
        ({"load": [{**ROW, "rate": 0}]}, "rate must be a number above 0"),
        ({"load": [{**ROW, "rate": "two"}]}, "rate cannot be 'two'"),
        ({"load": [{**ROW, "rate": True}]}, "rate cannot be True"),
        ({"load": [{**ROW, "ms": float("nan")}]}, "ms must be a number above 0"),
        ({"load": [3]}, "is no table"),
    ],
)
def test_a_bad_mix_is_told_what_is_wrong(table, said):
    with pytest.raises(MixError, match=said):
        loads_in(table)


def producer(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "producer.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("load = 3", r"[[load]]"),
        ("load = ", "is no TOML"),
        ('[[load]]\njob = "spni"\nqueue = "q"\nrate = 1', "did you mean 'spin'?"),
        ('[[load]]\njob = "fetch"\nqueue = "q"\nrate = 1', "does not take these arguments"),
    ],
)
def test_a_mix_that_cannot_be_sent_is_one_line_and_exit_2(tmp_path, text, said):
    file = tmp_path / "mix.toml"
    file.write_text(text)
    done = producer("--mix", str(file))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_burst_for_ever_is_refused():
    done = producer("--shape", "burst", "--for", "forever")
    assert done.returncode == 2
    assert "over at once" in done.stderr


@pytest.mark.real
def test_a_mix_is_sent_to_its_queues_with_its_jobs_and_the_broker_may_lie_in_a_file(tmp_path):
    mix, beat, url = tmp_path / "mix.toml", tmp_path / "beat", tmp_path / "broker"
    mix.write_text(
        '[[load]]\njob = "spin"\nqueue = "a"\nrate = 200\nms = 1\n'
        '[[load]]\njob = "echo"\nqueue = "b"\nrate = 100\nargs = { payload = "{seq}" }\n'
    )
    with Children() as children, own_server(children) as broker, broker.client() as client:
        url.write_text(broker.url)
        done = producer(
            *("--mix", str(mix), "--for", "500ms", "--beat", str(beat), "--json"),
            SIDESTEP_BROKER_FILE=str(url),
            SIDESTEP_METRICS="1",
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        lengths = {queue: client.llen(f"sidestep:{queue}") for queue in ("a", "b")}
        assert told["sent"] == sum(lengths.values())
        assert told["path"] == "template"
        assert min(lengths.values()) > 0
        assert names(client, "a") == {"sidestep.spin"}
        assert names(client, "b") == {"sidestep.echo"}
        assert beat.exists()
        # And how late each was is counted by queue
        counts = {tuple(json.loads(name)): int(n) for name, n in client.hgetall(f"sidestep:{COUNTS}").items()}
        late = {queue: sum(n for key, n in counts.items() if key[:2] == ("lag", queue)) for queue in lengths}
        assert late == lengths


@pytest.mark.real
def test_previews_of_a_mix_are_short(tmp_path):
    mix = tmp_path / "mix.toml"
    mix.write_text(f'[[load]]\njob = "echo"\nqueue = "a"\nrate = 100\nargs = {{ payload = "{"x" * 5000}" }}\n')
    with Children() as children, own_server(children) as broker, broker.client() as client:
        assert producer("--mix", str(mix), "--for", "1s", "--broker", broker.url).returncode == 0
        previews = [json.loads(m)["headers"]["kwargsrepr"] for m in client.lrange("sidestep:a", 0, -1)]
        assert previews
        assert max(map(len, previews)) < 200


def names(client: redis.Redis, queue: str) -> set[str]:
    return {json.loads(message)["headers"]["task"] for message in client.lrange(f"sidestep:{queue}", 0, -1)}
