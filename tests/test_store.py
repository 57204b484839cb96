"""A suite on disk is the suite, or it says why not."""

import dataclasses
import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.catalogue import EXPERIMENTS
from lab.checks import faults
from lab.model import SAMPLE_COLUMNS, STEP_COLUMNS, BadInput, Change, FrozenArgs, LabError, Ledger, Load, Run, Suite
from lab.model import Steps as JobSteps
from lab.store import FILE, PACKED, SCHEMA, SINCE_2, SuiteFile, decode, encode, load
from lab.verdict import judge_all
from producer.pacers import Burst, Closed, Constant, Poisson, Ramp, Replay, Steps
from producer.payloads import Calibrated, Cycle, EachJob, Payload, Referred, Sometimes, Text, Upstream
from tests.fakes import SETUP, make_run, make_samples
from tests.simulator import run_experiment

LOW, HIGH = -(2**63), 2**63 - 1


@given(st.lists(st.integers(LOW, HIGH) | st.sampled_from([LOW, -1, 0, 1, HIGH])))
def test_a_column_survives_to_the_last_bit(values: list[int]):
    column = np.array(values, dtype=np.int64)
    again = decode(encode(column))
    assert again.dtype == np.int64
    assert again.tolist() == values


def test_columns_of_times_are_small():
    # Given ten thousand jobs a millisecond apart
    column = np.arange(10_000, dtype=np.int64) * 1_000_000
    # Then they take a small part of their 80 000 bytes
    assert len(encode(column)) < 1_000


def as_plain(run: Run) -> dict[str, object]:
    """The run as values that compare: arrays do not."""
    samples = {name: getattr(run.samples, name).tolist() for name in SAMPLE_COLUMNS}
    return {
        "trial": run.trial,
        "ledger": run.ledger,
        "resources": run.resources,
        "faults": run.faults,
        "processes": run.processes,
        "retakes": run.retakes,
        "last_words": run.last_words,
        "samples": samples,
        "steps": {name: getattr(run.steps, name).tolist() for name in STEP_COLUMNS} if run.steps else None,
    }


def assert_same(again: Suite, suite: Suite) -> None:
    for field in dataclasses.fields(Suite):
        if field.name != "runs":
            assert getattr(again, field.name) == getattr(suite, field.name), field.name
    assert [as_plain(run) for run in again.runs] == [as_plain(run) for run in suite.runs]
    # A resumed session looks trials up in a set
    assert {run.trial.setup for run in again.runs} == {run.trial.setup for run in suite.runs}


def make_suite(*runs: Run) -> Suite:
    return Suite(
        environment={"cores": 2, "cpu": "Zuse Z3 ½", "governor": None, "gil_enabled": True, "noise": 0.1},
        experiments=("gil-cpu", "io-fanout"),
        runs=runs or (make_run(),),
        seed=2**40,
        repeats={"gil-cpu": 5, "io-fanout": 3},
        quick=True,
        left_out={"io-fanout · gevent 50": "pool 'gevent' needs gevent"},
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_survives_the_disk_and_is_judged_alike(name: str, tmp_path: Path):
    suite = run_experiment(EXPERIMENTS[name], quick=True)
    SuiteFile(tmp_path).save(suite)
    again = load(tmp_path)
    assert_same(again, suite)
    assert judge_all(EXPERIMENTS.values(), again) == judge_all(EXPERIMENTS.values(), suite)


@pytest.mark.parametrize(
    "pacer",
    [
        Constant(0.1, 2),
        Poisson(3, 1, seed=2**60),
        Burst(5),
        Ramp(0, 1e-9, 3.5),
        Steps((1, 0, 2.5), 1),
        Replay((0.1, 0.30000000000000004), 2),
        Closed(2, 9, 0.5),
    ],
)
def test_every_load_survives_the_disk(pacer, tmp_path: Path):
    suite = make_suite(make_run(setup=replace(SETUP, pacer=pacer)))
    SuiteFile(tmp_path).save(suite)
    assert_same(load(tmp_path), suite)


def test_every_part_of_a_suite_survives_the_disk(tmp_path: Path):
    # Given a suite where nothing has its default
    setup = replace(
        SETUP,
        args=type(SETUP.args)(
            a=EachJob(),
            b=Calibrated(2.5, like="spin"),
            c=Upstream(50),
            d=Text(3, 4),
            e="ä",
            f=None,
            g=True,
            h=-1.5,
            i=Sometimes(Calibrated(4), Calibrated(200), share=0.1, seed=7),
            j=Payload("tree", 300, seed=2),
            k=Cycle(("one", 2)),
            m=Referred("shm", 5000, seed=3),
        ),
        queued=False,
        nodes=3,
        prefetch=0,
        acks_late=False,
        preset="lossless",
        switch_interval_s=0.001,
        marks=False,
        watch_broker=True,
        keep_awake=True,
        python="/opt/python",
        packages=("celery==5.6.3", "kombu==5.6.2"),
        beside=Load("spin", FrozenArgs(loops=Sometimes(Calibrated(1), Calibrated(2), 0.5)), Constant(5, 3)),
        apart="processes",
        apart_concurrency=2,
        disable_prefetch=True,
        codec="orjson",
        compression="zstd",
        argsrepr=False,
        base64=False,
        results="bulk",
        rtt_ms=0.5,
        steps=True,
        heartbeat_s=1,
        events="flower",
        knobs=("one-client", "events"),
        arena="attached",
        cpus=0.5,
    )
    defaults = {f.name: f.default for f in dataclasses.fields(setup) if f.default is not dataclasses.MISSING}
    assert [name for name, default in defaults.items() if getattr(setup, name) == default] == ["pool"]
    resources = replace(
        make_run().resources,
        commands={"brpop": 3},
        bytes_in=2**40,
        broker_cpu_s=0.1,
        context_switches=None,
        fed_s=0.5,
        message_bytes={"body": 3, "envelope": 4},
        collect_s=0.25,
        sent_by="batch: it was asked for",
    )
    # When it is saved and loaded, from the folder and from the file
    samples = make_samples(ended_ns=[5, 6], beside=[0, 1], value=[2**32 - 1, 0])
    run = replace(
        make_run(setup=setup, resources=resources, samples=samples),
        processes=({"pid": 7},),
        retakes=2,
        last_words="it fell · ½",
        steps=JobSteps(*(np.array([at, 2**40 + at]) for at in range(len(STEP_COLUMNS)))),
        changes=(Change(0.5, "celery@there", joined=True, worked=False),),
        beats_ns=(-1_000_000_000, 5, 1_000_000_007),
    )
    run = replace(run, faults=faults(run))  # such steps do not add up, and whoever reads them finds that again
    suite = make_suite(run, make_run(repeat=7))
    SuiteFile(tmp_path).save(suite)
    # Then it is what it was
    assert_same(load(tmp_path), suite)
    assert_same(load(tmp_path / FILE), suite)


IN_SETUPS_SINCE_2 = {"packages", "beside", "apart", "apart_concurrency", "disable_prefetch"}


def test_a_suite_of_schema_1_is_read_with_nothing_beside_and_nothing_measured(tmp_path: Path):
    # Given a suite as Sidestep 0.1 saved it: without what schema 2 added
    suite = make_suite(make_run(samples=make_samples(ended_ns=[5, 6, 9])), make_run(repeat=1))
    SuiteFile(tmp_path).save(suite)
    document = json.loads((tmp_path / FILE).read_text())
    document["schema"] = 1
    for run in document["runs"]:
        for name in IN_SETUPS_SINCE_2:
            del run["trial"]["setup"][name]
        for name in SINCE_2:
            del run["samples"][name]
    (tmp_path / FILE).write_text(json.dumps(document))
    # Then it is that suite, with zeros where there was nothing
    again = load(tmp_path)
    assert_same(again, suite)
    assert again.runs[0].samples.beside.tolist() == again.runs[0].samples.value.tolist() == [0, 0, 0]
    # And a suite that says schema 2 must have them
    (tmp_path / FILE).write_text(json.dumps({**document, "schema": 2}))
    refusal(tmp_path)


IN_SETUPS_SINCE_3 = {"codec", "compression", "argsrepr", "base64", "results", "rtt_ms", "steps"}


def test_a_suite_of_schema_2_is_read_as_json_over_the_nearest_way(tmp_path: Path):
    suite = make_suite(make_run(samples=make_samples(ended_ns=[5, 6, 9])), make_run(repeat=1))
    SuiteFile(tmp_path).save(suite)
    document = json.loads((tmp_path / FILE).read_text())
    document["schema"] = 2
    for run in document["runs"]:
        for name in IN_SETUPS_SINCE_3:
            del run["trial"]["setup"][name]
        for name in ("message_bytes", "collect_s", "sent_by"):
            del run["resources"][name]
        assert "steps" not in run
    (tmp_path / FILE).write_text(json.dumps(document))
    assert_same(load(tmp_path), suite)


def test_steps_of_another_length_than_the_samples_are_damage(tmp_path: Path):
    samples = make_samples(ended_ns=[5, 6])
    steps = JobSteps(*(np.array([1, 2]) for _ in STEP_COLUMNS))
    SuiteFile(tmp_path).save(make_suite(replace(make_run(samples=samples), steps=steps)))
    document = json.loads((tmp_path / FILE).read_text())
    document["runs"][0]["steps"]["encoded_ns"] = encode(np.array([1, 2, 3]))
    (tmp_path / FILE).write_text(json.dumps(document))
    assert "unequal length" in refusal(tmp_path)


def test_steps_from_before_acknowledgements_were_seen_are_read_without_them(tmp_path: Path):
    # Given a suite whose steps lack the column
    samples = make_samples(ended_ns=[5, 6])
    steps = JobSteps(*(np.array([1, 2]) for _ in STEP_COLUMNS))
    SuiteFile(tmp_path).save(make_suite(replace(make_run(samples=samples), steps=steps)))
    document = json.loads((tmp_path / FILE).read_text())
    del document["runs"][0]["steps"]["acked_ns"]
    (tmp_path / FILE).write_text(json.dumps(document))
    # Then none was seen, and the rest is what it was
    again = load(tmp_path).runs[0].steps
    assert again
    assert again.acked_ns.tolist() == [0, 0]
    assert again.finished_ns.tolist() == [1, 2]


def test_a_file_can_be_written_again_and_again_as_runs_come(tmp_path: Path):
    file, runs = SuiteFile(tmp_path / "new" / "folder"), [make_run(repeat=n, wall_s=n + 1) for n in range(3)]
    for n in range(1, 4):
        file.save(make_suite(*runs[:n]))
        assert_same(load(file.path), make_suite(*runs[:n]))
    # And nothing else lies about
    assert [path.name for path in file.path.parent.iterdir()] == [FILE]


def test_the_same_suite_is_the_same_file(tmp_path: Path):
    suite = run_experiment(EXPERIMENTS["gil-cpu"], quick=True)
    for folder in ("a", "b"):
        SuiteFile(tmp_path / folder).save(suite)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_no_suite_is_told_how_to_make_one(tmp_path: Path):
    assert "sidestep run" in refusal(tmp_path / "nowhere")
    assert "sidestep run" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\0", b"not json\nat all", b"[]", b"null", b'"schema"', b"{}", b'{"schema": "1"}', b"[" * 100_000],
    ids=["empty", "binary", "text", "list", "null", "string", "object", "schema as text", "deep"],
)
def test_a_file_that_is_no_suite_is_refused_in_one_line(content: bytes, tmp_path: Path):
    (tmp_path / FILE).write_bytes(content)
    refusal(tmp_path)


def saved(directory: Path) -> Path:
    SuiteFile(directory).save(make_suite(make_run()))
    return directory / FILE


def test_a_newer_file_is_refused_with_the_way_out(tmp_path: Path):
    path = saved(tmp_path)
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}', 1))
    said = refusal(tmp_path)
    assert "newer Sidestep" in said
    assert str(SCHEMA + 1) in said


def test_a_file_that_breaks_off_anywhere_is_refused(tmp_path: Path):
    # Given a suite cut short at each of its bytes
    whole = saved(tmp_path).read_bytes().rstrip()
    cut = tmp_path / "cut.json"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        refusal(cut)


def paths_in(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where each value of a JSON document is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, one in inner for path in paths_in(one, (*at, key)))]


def without(document: object, path: tuple[object, ...]) -> str:
    """The document as text, without what is at the path."""
    document = json.loads(json.dumps(document))
    place = document
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return json.dumps(document)


OPTIONAL = {"written_by"}
FREE = {"environment", "experiments", "repeats", "left_out", "processes", "commands", "args"}


def test_a_file_with_a_part_missing_is_refused(tmp_path: Path):
    # Given a suite of one run, without any one part that it must have
    document = json.loads(saved(tmp_path).read_text())
    paths = [path for path in paths_in(document) if path and path[0] not in OPTIONAL and not FREE & set(path[:-1])]
    assert len(paths) > 40
    read = [path[-1] for path in paths if is_read(tmp_path / "part.json", without(document, path))]
    # Then it is refused, but for what has a default, and for the run itself
    defaults = {f.name for kind in KINDS for f in dataclasses.fields(kind) if has_default(f)}
    assert {name for name in read if isinstance(name, str)} <= defaults


def is_read(path: Path, text: str) -> bool:
    """Whether a file with this text is taken for a suite, or else refused as it should be."""
    path.write_text(text)
    try:
        load(path)
    except BadInput:
        refusal(path)
        return False
    return True


KINDS = (type(SETUP), type(make_run().resources), type(make_run().ledger))


def has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


BROKEN = [
    (("runs", 0, "samples", "due_ns"), "!!!"),
    (("runs", 0, "samples", "due_ns"), "eJwDAA=="),
    (("runs", 0, "samples", "due_ns"), encode(np.array([1], dtype=np.int64))),
    (("runs", 0, "samples", "n"), 5),
    (("runs", 0, "ledger", "lost"), 1),
    (("runs", 0, "ledger", "strange"), 1),
    (("runs", 0, "trial", "setup", "pacer", "size"), -1),
    (("runs", 0, "trial", "setup", "pacer", "is"), "Nonsense"),
    (("runs", 0, "trial", "setup", "pacer", "is"), ["Burst"]),
    (("runs", 0, "trial"), None),
    (("runs",), None),
    (("runs",), "text"),
    (("runs", 0), []),
    (("experiments",), 5),
    (("environment",), []),
    (("repeats",), None),
    (("runs", 0, "resources", "wall_s"), "soon"),
    (("runs", 0, "trial", "setup", "concurrency"), None),
    (("runs", 0, "trial", "setup", "beside"), {"is": "Burst", "size": 3}),
    (("runs", 0, "trial", "setup", "beside"), {"is": "Load", "job": "spin", "args": {}, "pacer": None}),
    (("runs", 0, "trial", "setup", "beside"), {"is": "Load", "job": "spin", "args": {}}),
    (("runs", 0, "trial", "setup", "packages"), "kombu"),
    (("runs", 0, "trial", "setup", "args"), {"loops": {"is": "Sometimes", "usually": 1, "rarely": 2, "share": 0.5}}),
]


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[f"{path[-1]}={value}"[:40] for path, value in BROKEN])
def test_a_file_with_nonsense_in_it_is_refused(path, value, tmp_path: Path):
    document = json.loads(saved(tmp_path).read_text())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / FILE).write_text(json.dumps(document))
    refusal(tmp_path)


def test_a_flipped_byte_in_the_samples_is_noticed(tmp_path: Path):
    # Given a column with one letter changed: its checksum no longer fits
    path = saved(tmp_path)
    document = json.loads(path.read_text())
    text = encode(np.arange(100, dtype=np.int64) ** 2)
    document["runs"][0]["samples"] = {"n": 100, **dict.fromkeys(SAMPLE_COLUMNS, text)}
    path.write_text(json.dumps(document))
    assert len(load(path).runs[0].samples) == 100
    middle = len(text) // 2
    document["runs"][0]["samples"]["due_ns"] = (
        text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]
    )
    path.write_text(json.dumps(document))
    refusal(path)


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path):
    # Given a suite on disk, and a later one that cannot be spelled to its end
    path = saved(tmp_path)
    before = path.read_bytes()
    broken = replace(make_suite(), left_out={"why": object()})
    # When it is saved
    with pytest.raises(TypeError):
        SuiteFile(tmp_path).save(broken)
    # Then the old one is still there, whole
    assert path.read_bytes() == before
    # And the next good one replaces it
    suite = make_suite(make_run(repeat=9))
    SuiteFile(tmp_path).save(suite)
    assert_same(load(path), suite)


def test_whoever_reads_while_a_suite_is_written_reads_the_old_one_to_its_end(tmp_path: Path):
    # Given somebody in the middle of the file
    path = saved(tmp_path)
    before = path.read_text("utf-8")
    with path.open(encoding="utf-8") as reader:
        first = reader.read(10)
        # When a longer suite takes its place; then they still read the old one
        SuiteFile(tmp_path).save(make_suite(*(make_run(repeat=n) for n in range(50))))
        assert first + reader.read() == before
    assert path.read_text("utf-8") != before


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path):
    # Given a file where the folder should be
    (tmp_path / "taken").write_text("")
    with pytest.raises(LabError, match="--out") as refused:
        SuiteFile(tmp_path / "taken").save(make_suite())
    assert "\n" not in str(refused.value)
    # And a file that exists is not lost when its successor cannot be written beside it
    path = saved(tmp_path)
    before = path.read_bytes()
    (tmp_path / "suite.json.new").mkdir()
    with pytest.raises(LabError, match="--out"):
        SuiteFile(tmp_path).save(make_suite(make_run(repeat=9)))
    assert path.read_bytes() == before


def packed(directory: Path) -> Path:
    """A saved suite, compressed, alone in its folder."""
    path = saved(directory)
    (directory / PACKED).write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()
    return directory / PACKED


def test_a_compressed_suite_is_read_from_its_file_and_from_its_folder(tmp_path: Path):
    path = packed(tmp_path)
    assert_same(load(path), make_suite(make_run()))
    assert_same(load(tmp_path), make_suite(make_run()))


def test_beside_a_plain_suite_a_compressed_one_is_not_looked_at(tmp_path: Path):
    # Given an old compressed suite, and a newer one that is not
    old = packed(tmp_path)
    suite = make_suite(make_run(repeat=7))
    SuiteFile(tmp_path).save(suite)
    # Then the folder is the newer one, and saving has left the other alone
    assert_same(load(tmp_path), suite)
    assert_same(load(old), make_suite(make_run()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:40] + bytes([whole[40] ^ 255]) + whole[41:],
        lzma.decompress,
        lambda _: lzma.compress(b"not json"),
        lambda _: lzma.compress(b"\xff\xfe\0"),
        lambda _: lzma.compress(b"{}"),
    ],
    ids=["empty", "cut", "without its last byte", "flipped", "not compressed", "text", "binary", "object"],
)
def test_a_damaged_compressed_suite_is_refused_in_one_line(damage, tmp_path: Path):
    path = packed(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    refusal(path)
    refusal(tmp_path)
    # And one that is not there is told how to make one
    assert "sidestep run" in refusal(tmp_path / "other" / PACKED)


def test_faults_are_found_again_when_a_suite_is_read(tmp_path: Path):
    # Given a run that lost a job, saved by a Sidestep that saw nothing wrong in it
    lossy = make_run(ledger=Ledger(issued=4, done=3, failed=0, lost=1))
    assert lossy.faults == ()
    SuiteFile(tmp_path).save(make_suite(lossy))
    # Then whoever reads it is told
    assert [fault.check for fault in load(tmp_path).runs[0].faults] == ["incomplete_ledger"]
