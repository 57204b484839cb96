"""The relay makes every byte later, and changes, reorders or loses none."""

import contextlib
import hashlib
import itertools
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from lab.relay import LIMIT_BYTES, DelayLine, End

ROOT = Path(__file__).parent.parent
LONGEST_S = 30  # for what hangs only if the relay is wrong
MS = 1_000_000


def taken(line: DelayLine, now_ns: int, most_bytes: int = 10**9) -> bytes:
    """What has come out of a line by now, taken from it."""
    out = b""
    while most_bytes > len(out) and isinstance(pieces := line.due(now_ns), list):
        some = b"".join(pieces)[: most_bytes - len(out)]
        line.take(len(some))
        out += some
    return out


def test_a_piece_comes_out_when_its_delay_is_over_and_not_a_nanosecond_sooner():
    line = DelayLine(5 * MS)
    line.put(b"hello", 7 * MS)
    assert line.due_ns == 12 * MS
    assert line.due(12 * MS - 1) is None
    assert taken(line, 12 * MS) == b"hello"
    assert (line.due_ns, line.held_bytes) == (None, 0)


def test_pieces_are_on_their_way_together():
    # Given a hundred pieces, one a microsecond, into a line of 5 ms
    line = DelayLine(5 * MS)
    for i in range(100):
        line.put(bytes([i]), i * 1000)
    # Then each is 5 ms late, not as many times 5 ms as there are pieces before it
    for i in range(100):
        assert line.due_ns == 5 * MS + i * 1000
        assert taken(line, 5 * MS + i * 1000) == bytes([i])


def test_without_a_delay_a_piece_is_there_at_once():
    line = DelayLine(0)
    line.put(b"now", 3)
    assert taken(line, 3) == b"now"


@given(
    delay_ns=st.integers(0, 100),
    pieces=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 200), st.binary(max_size=9)), max_size=30),
    looks=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=40),
)
def test_whatever_the_jitter_and_however_it_is_taken_bytes_come_late_enough_and_in_order(delay_ns, pieces, looks):
    # Given pieces that go in at their times, each with a delay of its own on top
    extras = iter([extra for _, extra, _ in pieces])
    line = DelayLine(delay_ns, extra_ns=lambda: next(extras))
    earliest: list[int] = []
    now_ns = 0
    for gap_ns, extra_ns, piece in pieces:
        now_ns += gap_ns
        line.put(piece, now_ns)
        earliest += [now_ns + delay_ns + extra_ns] * len(piece)
    # When they are taken a few bytes at a time
    out, now_ns = b"", 0
    for gap_ns, most_bytes in (*looks, (10**9, 10**9)):
        now_ns += gap_ns
        out += taken(line, now_ns, most_bytes)
        # Then no byte is out before its time
        assert all(due_ns <= now_ns for due_ns in earliest[: len(out)])
        assert line.held_bytes == len(earliest) - len(out)
    # And all come, in their order
    assert out == b"".join(piece for _, _, piece in pieces)


def test_a_byte_waits_for_those_before_it_and_for_nothing_else():
    extras = iter([10, 0, 0])
    line = DelayLine(5, extra_ns=lambda: next(extras))
    for now_ns in (0, 2, 20):
        line.put(b".", now_ns)
    dues = []
    while line.due_ns is not None:
        dues.append(line.due_ns)
        line.take(1)
    assert dues == [15, 15, 25]


def test_a_line_is_full_at_its_limit_and_takes_more_when_some_is_gone():
    line = DelayLine(0, limit_bytes=10)
    line.put(b"123456789", 0)
    assert not line.is_full
    line.put(b"0", 0)
    assert line.is_full
    line.take(1)
    assert not line.is_full


def test_the_end_comes_after_the_bytes_and_as_late_as_they():
    line = DelayLine(5)
    line.put(b"last words", 0)
    line.put(End.CLOSED, 1)
    line.put(End.BROKEN, 2)
    assert taken(line, 10) == b"last words"
    assert (line.due(5), line.due(6)) == (None, End.CLOSED)
    with pytest.raises(ValueError, match="before the end"):
        line.take(1)
    line = DelayLine(5)
    line.put(End.CLOSED, 1)
    line.put(End.BROKEN, 2)
    line.take_end()
    assert line.due(7) is End.BROKEN


def test_bytes_are_not_taken_for_an_end():
    line = DelayLine(0)
    line.put(b"bytes", 0)
    with pytest.raises(ValueError, match="before the end"):
        line.take_end()


class Far:
    """A listening socket, and a relay before it."""

    def __init__(self, *options: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=300)
        self.listener.settimeout(LONGEST_S)
        self.port = self.listener.getsockname()[1]
        self.process = start("--to", f"127.0.0.1:{self.port}", *options)
        assert self.process.stdout
        self.relay_port = int(self.process.stdout.readline())
        self._open: list[socket.socket] = [self.listener]

    def connect(self, *, directly: bool = False) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection: the client's and the server's."""
        port = self.port if directly else self.relay_port
        client = socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S)
        server, _ = self.listener.accept()
        server.settimeout(LONGEST_S)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open += [client, server]
        return client, server

    def close(self) -> None:
        """End the relay and every connection."""
        for one in self._open:
            one.close()
        self.process.kill()
        self.process.communicate()


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "lab.relay", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def far(*options: str) -> Iterator[Far]:
    opened = Far(*options)
    try:
        yield opened
        assert opened.process.poll() is None, "the relay has died"
    finally:
        opened.close()


def all_of(end: socket.socket) -> bytes:
    """What the other end sends until it says that there is no more."""
    return b"".join(iter(lambda: end.recv(1 << 16), b""))


def exactly(end: socket.socket, size_bytes: int) -> bytes:
    got = b""
    while len(got) < size_bytes:
        piece = end.recv(size_bytes - len(got))
        assert piece, "the connection ended too early"
        got += piece
    return got


def reset(end: socket.socket) -> None:
    """Break the connection from this end."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def send_in_chunks(end: socket.socket, content: bytes, seed: int) -> None:
    """Send all of it, in chunks of 1 byte to 300 kB, and say that there is no more."""
    draw, at = random.Random(seed), 0
    while at < len(content):
        size = int(10 ** draw.uniform(0, 5.5))
        end.sendall(content[at : at + size])
        at += size
    end.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("options", [("--rtt-ms", "0"), ("--rtt-ms", "3"), ("--rtt-ms", "1", "--jitter-ms", "4")])
def test_bytes_arrive_unchanged_and_in_order_in_both_directions_at_once(options):
    there, back = (random.Random(seed).randbytes(4_000_000 + seed) for seed in (1, 2))
    with far(*options) as remote, ThreadPoolExecutor(4) as pool:
        client, server = remote.connect()
        sending = [pool.submit(send_in_chunks, end, out, 3) for end, out in ((client, there), (server, back))]
        heard = [pool.submit(all_of, end) for end in (server, client)]
        assert [future.result() for future in sending] == [None, None]
        digests = [hashlib.sha256(future.result()).hexdigest() for future in heard]
    assert digests == [hashlib.sha256(content).hexdigest() for content in (there, back)]


def test_many_connections_do_not_mix_and_do_not_wait_for_each_other():
    with far("--rtt-ms", "4") as remote:
        pairs = [remote.connect() for _ in range(100)]
        # Given a hundred connections, of which the first never reads what it is sent
        pairs[0][1].settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                pairs[0][1].send(bytes(1 << 20))
        # When each of the others sends its own number, in turns
        for turn, (number, (client, _)) in itertools.product(range(3), enumerate(pairs[1:])):
            client.sendall(b"%d of turn %d;" % (number, turn))
        # Then that alone comes out at its other end
        for number, (client, server) in enumerate(pairs[1:]):
            client.shutdown(socket.SHUT_WR)
            assert all_of(server) == b"".join(b"%d of turn %d;" % (number, turn) for turn in range(3))


def test_who_has_said_all_can_still_hear_the_answer():
    with far("--rtt-ms", "2") as remote:
        client, server = remote.connect()
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert all_of(server) == b"question"
        server.sendall(b"answer")
        server.close()
        assert all_of(client) == b"answer"


def test_a_server_that_closes_ends_the_connection_after_its_last_words():
    with far("--rtt-ms", "2") as remote:
        client, server = remote.connect()
        server.sendall(b"goodbye")
        server.close()
        assert all_of(client) == b"goodbye"


def test_a_client_that_goes_away_ends_the_connection_after_its_last_words():
    with far("--rtt-ms", "2") as remote:
        client, server = remote.connect()
        client.sendall(b"goodbye")
        client.close()
        assert all_of(server) == b"goodbye"


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_connection_that_breaks_at_one_end_breaks_at_the_other(who):
    with far("--rtt-ms", "2") as remote:
        client, server = remote.connect()
        breaks, hears = (client, server) if who == "client" else (server, client)
        # The relay carries one byte first, so that its own connection to the server stands
        client.sendall(b".")
        assert server.recv(1) == b"."
        reset(breaks)
        with pytest.raises(ConnectionResetError):
            hears.recv(1)


def test_sending_to_someone_who_has_gone_ends_too():
    with far("--rtt-ms", "2") as remote:
        client, server = remote.connect()
        client.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            server.sendall(bytes(4 * LIMIT_BYTES))


def test_without_a_server_a_connection_breaks_and_the_relay_goes_on():
    with far("--rtt-ms", "1") as remote:
        remote.listener.close()
        for _ in range(2):
            client = socket.create_connection(("127.0.0.1", remote.relay_port), timeout=LONGEST_S)
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)


def test_ended_connections_leave_no_descriptor_behind():
    with far("--rtt-ms", "0") as remote:
        relay = psutil.Process(remote.process.pid)
        idle = relay.num_fds()
        for how in ("client closes", "server closes", "client breaks") * 5:
            client, server = remote.connect()
            first, second = (server, client) if how == "server closes" else (client, server)
            client.sendall(b".")
            server.recv(1)
            reset(first) if how == "client breaks" else first.close()
            with contextlib.suppress(ConnectionResetError):
                assert second.recv(1) == b""
            second.close()
        assert eventually(lambda: relay.num_fds() == idle)


def busy_share(remote: Far) -> float:
    """CPU time of the relay, in parts of half a second in which nothing happens."""
    relay = psutil.Process(remote.process.pid)
    before, begun = sum(relay.cpu_times()[:2]), time.monotonic()
    time.sleep(0.5)
    return (sum(relay.cpu_times()[:2]) - before) / (time.monotonic() - begun)


def eventually(holds) -> bool:
    deadline = time.monotonic() + LONGEST_S
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def test_a_reader_that_does_not_read_stops_the_sender_and_gets_everything_later():
    with far("--rtt-ms", "1") as remote:
        client, server = remote.connect()
        # When a client sends as much as it can, and nobody reads
        client.setblocking(False)
        chunk, sent = random.Random(0).randbytes(1 << 20), hashlib.sha256()
        sent_bytes = 0
        while sent_bytes < 4 * LIMIT_BYTES and select.select([], [client], [], 1.0)[1]:
            count = client.send(chunk)
            sent.update(chunk[:count])
            sent_bytes += count
        # Then that is bounded: by the line, and by what the kernel holds on both sides of it
        assert sent_bytes < 2 * LIMIT_BYTES
        # And nothing is done about it meanwhile
        assert busy_share(remote) < 0.5
        # And once somebody reads, all of it is there
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        heard = hashlib.sha256()
        while piece := server.recv(1 << 20):
            heard.update(piece)
        assert heard.hexdigest() == sent.hexdigest()


def echo(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := server.recv(1 << 16):
            server.sendall(piece)


def round_trip_s(client: socket.socket, *, in_flight: int = 1) -> float:
    begun = time.perf_counter()
    for _ in range(in_flight):
        client.sendall(b".")
    exactly(client, in_flight)
    return time.perf_counter() - begun


def test_a_round_trip_takes_as_much_longer_as_was_asked_for_and_those_in_flight_share_it():
    with far("--rtt-ms", "5") as remote:
        pairs = {"directly": remote.connect(directly=True), "far": remote.connect()}
        for _, server in pairs.values():
            threading.Thread(target=echo, args=(server,), daemon=True).start()
        trips: dict[str, list[float]] = {"directly": [], "far": []}
        for _, name in itertools.product(range(40), pairs):
            trips[name].append(round_trip_s(pairs[name][0]))
        together_s = min(round_trip_s(pairs["far"][0], in_flight=50) for _ in range(5))
    # Then even the fastest is later than the fastest without a relay, by that much
    assert min(trips["far"]) >= min(trips["directly"]) + 0.005
    # And fifty at once are far from taking fifty times as long
    assert together_s < 50 * min(trips["far"]) / 2


def trips_s(count: int, *options: str) -> list[float]:
    with far(*options) as remote:
        client, server = remote.connect()
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        return [round_trip_s(client) for _ in range(count)]


def test_jitter_is_added_and_never_taken_away_and_its_seed_tells_how_much():
    seeds = ("4", "4", "5")
    first, again, other = (trips_s(20, "--rtt-ms", "2", "--jitter-ms", "20", "--seed", seed) for seed in seeds)
    assert min(first) >= 0.002
    # Of twenty draws up to 20 ms, some are far more than 5 ms apart
    assert max(first) - min(first) > 0.005

    def apart(one: list[float], two: list[float]) -> float:
        return sum(abs(a - b) for a, b in zip(one, two, strict=True))

    assert apart(first, again) < apart(first, other)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "required: --to, --rtt-ms"),
        (("--to", "127.0.0.1:6379"), "required: --rtt-ms"),
        (("--to", "127.0.0.1", "--rtt-ms", "1"), "must be HOST:PORT, such as 127.0.0.1:6379, not '127.0.0.1'"),
        (("--to", "127.0.0.1:http", "--rtt-ms", "1"), "must be HOST:PORT"),
        (("--to", "127.0.0.1:70000", "--rtt-ms", "1"), "must be HOST:PORT"),
        (("--to", "host.invalid:1", "--rtt-ms", "1"), "'host.invalid' is no host that can be found"),
        (("--to", "127.0.0.1:1", "--rtt-ms", "-1"), "must be from 0 to 10000 milliseconds, not '-1'"),
        (("--to", "127.0.0.1:1", "--rtt-ms", "nan"), "must be from 0 to 10000 milliseconds, not 'nan'"),
        (("--to", "127.0.0.1:1", "--rtt-ms", "1", "--jitter-ms", "much"), "--jitter-ms: must be from 0"),
        (("--to", "127.0.0.1:1", "--rtt-ms", "1", "--seed", "x"), "--seed: invalid int value: 'x'"),
    ],
)
def test_options_that_cannot_be_used_get_one_line(arguments, complaint):
    relay = start(*arguments)
    out, err = relay.communicate(timeout=LONGEST_S)
    assert (relay.returncode, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


LAB = """
import subprocess, sys, time
from lab.children import ROOT, Children
children = Children()
command = [sys.executable, "-m", "lab.relay", "--to", "127.0.0.1:1", "--rtt-ms", "1"]
relay = children.start(command, stdout=subprocess.PIPE, python_path=ROOT)
relay.stdout.readline()
print(relay.pid, flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.real
def test_a_relay_ends_with_the_lab_that_started_it():
    lab = subprocess.Popen([sys.executable, "-c", LAB], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert lab.stdout
    relay = psutil.Process(int(lab.stdout.readline()))
    lab.send_signal(signal.SIGKILL)
    lab.communicate()
    assert eventually(lambda: not relay.is_running() or relay.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.real
def test_redis_answers_through_it():
    from lab.broker import own_server
    from lab.children import Children

    with Children() as children, own_server(children) as broker:
        relay = start("--to", broker.url.rpartition("@")[2].partition("/")[0], "--rtt-ms", "1")
        try:
            assert relay.stdout
            url = f"{broker.url.rpartition(':')[0]}:{int(relay.stdout.readline())}/0"
            with redis.Redis.from_url(url) as client:
                # Given values of many sizes, and commands that wait
                values = {
                    f"sidestep:{size}": random.Random(size).randbytes(size) for size in (0, 1, 100_000, 5_000_000)
                }
                client.mset(values)
                assert dict(zip(values, client.mget(values), strict=True)) == values
                client.lpush("sidestep:queue", "job")
                assert client.brpop(["sidestep:queue"], timeout=5) == (b"sidestep:queue", b"job")
                assert client.brpop(["sidestep:queue"], timeout=0.1) is None
                with client.pipeline(transaction=False) as pipeline:
                    for number in range(5000):
                        pipeline.echo(str(number))
                    assert pipeline.execute() == [str(number).encode() for number in range(5000)]
        finally:
            relay.kill()
            relay.communicate()


@pytest.mark.real
def test_a_broker_farther_away_delays_every_job():
    from lab.environment import cores
    from lab.model import Setup, Trial
    from lab.runner import Runner
    from lab.session import open_session
    from producer.pacers import Burst

    setup = Setup(job="snooze", args={"ms": 1}, pacer=Burst(10), pool="threads", rtt_ms=8.0)
    with open_session() as session:
        run = Runner(session, cores(), retakes=0).run(Trial("test", setup, 0))
    assert run.ledger.done == 10
    # Half of the distance from the producer to the broker, and half from there to the worker
    assert (run.samples.started_ns - run.samples.sent_ns).min() >= 8e6
