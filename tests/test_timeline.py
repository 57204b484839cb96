"""Marks outlive whoever wrote them."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from lab.model import LabError
from lab.observe import Progress, Tapes, job_id
from tasks.timeline import (
    CAPACITY,
    DONE,
    FAILED,
    GIL,
    HEADER_BYTES,
    SCHEMA,
    Tape,
    boot_id,
    end,
    gil_enabled,
    python_version,
)

ROOT = Path(__file__).parent.parent
NONCE = 0x1234_5678_9ABC_DEF0


def id_of(seq: int, nonce: int = NONCE) -> bytes:
    return (nonce << 64 | seq).to_bytes(16, "big")


def mark(tape: Tape, seq: int, *, nonce: int = NONCE, failed: bool = False) -> None:
    """Begin and end job `seq`, with times made of its number."""
    received, started = 1000 + seq, 2000 + seq
    place = tape.begin(id_of(seq, nonce), received, started)
    times = {"received_ns": received, "started_ns": started, "ended_ns": 3000 + seq, "cpu_ns": 10 + seq}
    end(place, id_of(seq, nonce), **times, checksum=seq % 2**32, failed=failed)


def test_a_mark_is_read_back_as_it_was_written(tmp_path: Path):
    # Given a job that returned, one that raised and one that is still under way
    tape = Tape(str(tmp_path), {})
    mark(tape, 0)
    mark(tape, 1, failed=True)
    tape.begin(id_of(2), 1002, 2002)
    # When the lab reads the tape
    marks = Tapes(tmp_path).marks(NONCE)
    # Then each is there with all it had
    assert marks["seq"].tolist() == [0, 1, 2]
    assert marks["received_ns"].tolist() == [1000, 1001, 1002]
    assert marks["started_ns"].tolist() == [2000, 2001, 2002]
    assert marks["ended_ns"].tolist() == [3000, 3001, 0]
    assert marks["cpu_ns"].tolist() == [10, 11, 0]
    assert marks["checksum"].tolist() == [0, 1, 0]
    assert marks["thread"].tolist() == [threading.get_ident()] * 3
    gil = GIL if gil_enabled() else 0
    assert marks["flags"].tolist() == [DONE | gil, FAILED | gil, 0]


def test_an_id_of_the_lab_is_the_nonce_and_the_number():
    assert job_id(NONCE, 7).replace("-", "") == id_of(7).hex()


def test_marks_of_other_trials_are_left_out(tmp_path: Path):
    tape = Tape(str(tmp_path), {})
    for seq in range(6):
        mark(tape, seq, nonce=NONCE + seq % 2)
    assert Tapes(tmp_path).marks(NONCE)["seq"].tolist() == [0, 2, 4]


def test_no_job_is_no_mark(tmp_path: Path):
    assert len(Tapes(tmp_path).marks(NONCE)) == 0
    Tape(str(tmp_path), {})
    assert list(tmp_path.iterdir()) == []


def test_a_tape_says_whose_it_is(tmp_path: Path):
    mark(Tape(str(tmp_path), {"pool": "threads"}), 0)
    (header,) = Tapes(tmp_path).headers()
    assert header == {**header, "schema": SCHEMA, "pid": os.getpid(), "boot_id": boot_id(), "pool": "threads"}
    assert header["gil_enabled"] is gil_enabled()


def test_a_free_threaded_interpreter_is_known_by_its_name():
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert python_version() == ".".join(str(part) for part in sys.version_info[:3]) + ("t" if free else "")


def test_threads_share_a_tape_and_lose_nothing(tmp_path: Path):
    # Given eight threads that begin at once, and a switch of threads every few microseconds
    tape, ready = Tape(str(tmp_path), {}), threading.Barrier(8)

    def work(thread: int) -> None:
        ready.wait()
        for i in range(500):
            mark(tape, thread * 500 + i)

    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    # Then every mark is on the one tape, whole and once
    marks = Tapes(tmp_path).marks(NONCE)
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(marks["seq"].tolist()) == list(range(4000))
    assert (marks["ended_ns"] == marks["seq"].astype(int) + 3000).all()
    assert len(set(marks["thread"].tolist())) == 8


def run(script: str, directory: Path) -> int:
    """Run the script in a process of its own, with `mark`, `id_of` and a tape called `tape`; return how it ended."""
    prelude = (
        "import os, signal\nfrom tasks.timeline import Tape\nfrom tests.test_timeline import id_of, mark\n"
        f"tape = Tape({str(directory)!r}, {{}})\n"
    )
    return subprocess.run([sys.executable, "-c", prelude + script], cwd=ROOT, check=False).returncode


def test_a_forked_child_writes_a_tape_of_its_own(tmp_path: Path):
    # Given a process that marks, forks a child that marks too, and marks on
    script = """
mark(tape, 0)
if not (child := os.fork()):
    mark(tape, 1); mark(tape, 2); os._exit(0)
os.waitpid(child, 0)
mark(tape, 3)
"""
    assert run(script, tmp_path) == 0
    # Then there are two tapes, and neither wrote over the other
    marks = Tapes(tmp_path).marks(NONCE)
    worker_of = dict(zip(marks["seq"].tolist(), marks["worker"].tolist(), strict=True))
    assert sorted(worker_of) == [0, 1, 2, 3]
    assert worker_of[0] == worker_of[3] != worker_of[1] == worker_of[2]
    assert len({header["pid"] for header in Tapes(tmp_path).headers()}) == 2


def test_marks_survive_the_sudden_death_of_their_process(tmp_path: Path):
    # Given a process that is killed in the middle of its third job
    script = "mark(tape, 0); mark(tape, 1); tape.begin(id_of(2), 1, 2); os.kill(os.getpid(), signal.SIGKILL)"
    assert run(script, tmp_path) == -signal.SIGKILL
    # Then two jobs are known to have ended and one to have begun
    marks = Tapes(tmp_path).marks(NONCE)
    assert marks["seq"].tolist() == [0, 1, 2]
    assert [flags != 0 for flags in marks["flags"].tolist()] == [True, True, False]


def test_a_full_tape_is_followed_by_the_next(tmp_path: Path):
    # Given one job more than a tape holds
    tape = Tape(str(tmp_path), {})
    for seq in range(CAPACITY + 1):
        place = tape.begin(id_of(seq), 0, 1)
    end(place, id_of(CAPACITY), received_ns=0, started_ns=1, ended_ns=2, cpu_ns=0, checksum=0, failed=False)
    # Then there is a second tape, and no mark is missing
    tapes = Tapes(tmp_path)
    assert len(tapes.headers()) == 2
    marks = tapes.marks(NONCE)
    assert sorted(marks["seq"].tolist()) == list(range(CAPACITY + 1))
    assert sorted(set(marks["worker"].tolist())) == [0, 1]


def test_a_tape_is_thin_until_it_is_written(tmp_path: Path):
    mark(Tape(str(tmp_path), {}), 0)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size > CAPACITY * 64
    assert path.stat().st_blocks * 512 < 100_000


def test_progress_tells_each_end_once_in_every_tape_as_it_comes(tmp_path: Path):
    # Given a lab that looks before, between and after
    progress = Progress(Tapes(tmp_path), NONCE)
    assert progress.ended_ns() == []
    first, second = Tape(str(tmp_path), {}), Tape(str(tmp_path), {})
    mark(first, 0)
    mark(second, 1)
    assert sorted(progress.ended_ns()) == [3000, 3001]
    # When another trial's job ends, and one of ours is under way
    mark(first, 9, nonce=NONCE + 1)
    place = first.begin(id_of(2), 1002, 2002)
    assert sorted(progress.ended_ns()) == [3000, 3001]
    # Then only the end of ours is news
    times = {"received_ns": 1002, "started_ns": 2002, "ended_ns": 3002, "cpu_ns": 0}
    end(place, id_of(2), **times, checksum=0, failed=False)
    assert progress.ended_ns()[2:] == [3002]


def test_progress_reaches_the_end_of_a_long_tape(tmp_path: Path):
    tape, progress = Tape(str(tmp_path), {}), Progress(Tapes(tmp_path), NONCE)
    for seq in range(10_000):
        mark(tape, seq)
    looks = [len(progress.ended_ns()) for _ in range(4)]
    assert looks[0] > 0
    assert looks[-1] == 10_000


def test_a_process_killed_before_its_first_mark_spoils_nothing(tmp_path: Path):
    # Given a tape that was created and not yet laid out, beside a good one
    mark(Tape(str(tmp_path), {}), 0)
    (tmp_path / "1-killed.tape").touch()
    # Then the good one is read all the same
    tapes = Tapes(tmp_path)
    assert Progress(tapes, NONCE).ended_ns() == [3000]
    assert tapes.marks(NONCE)["seq"].tolist() == [0]
    assert [header["pid"] for header in tapes.headers() if header] == [os.getpid()]


def test_a_process_killed_before_it_wrote_its_name_spoils_nothing(tmp_path: Path):
    # Given a tape that was laid out and not yet headed, beside a good one
    mark(Tape(str(tmp_path), {}), 0)
    with (tmp_path / "1-killed.tape").open("wb") as file:
        file.truncate(HEADER_BYTES + CAPACITY * 64)
    tapes = Tapes(tmp_path)
    assert tapes.marks(NONCE)["seq"].tolist() == [0]
    assert [header["pid"] for header in tapes.headers() if header] == [os.getpid()]


@pytest.mark.parametrize(
    ("changed", "says"), [({"schema": SCHEMA + 1}, "format 2, expected 1"), ({"boot_id": "another"}, "another boot")]
)
def test_marks_of_another_format_or_boot_are_refused(tmp_path: Path, changed: dict[str, object], says: str):
    mark(Tape(str(tmp_path), changed), 0)
    with pytest.raises(LabError, match=says):
        Tapes(tmp_path).headers()


def test_a_header_is_json_that_any_tool_can_read(tmp_path: Path):
    mark(Tape(str(tmp_path), {}), 0)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_bytes()[:HEADER_BYTES].rstrip(b"\0"))["schema"] == SCHEMA
