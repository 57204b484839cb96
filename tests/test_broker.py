"""The broker: private, guarded, and gone afterwards."""

import socket
import stat

import psutil
import pytest
import redis

from lab.broker import PREFIX, find_server, own_server, remove_keys, shown, users_broker
from lab.children import Children
from lab.model import BadInput, LabError

pytestmark = pytest.mark.real


@pytest.fixture
def children():
    with Children() as kept:
        yield kept


def test_our_own_server_wants_its_password_and_listens_on_loopback_only(children):
    with own_server(children) as broker:
        # Given the same address without the password
        bare = redis.Redis.from_url(f"redis://{shown(broker.url).removeprefix('redis://')}")
        with pytest.raises(redis.AuthenticationError):
            bare.ping()
        with broker.client() as client:
            assert client.ping()
        listening = [c.laddr.ip for c in psutil.Process(broker.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert listening
        assert set(listening) == {"127.0.0.1"}


def test_the_server_that_is_named_is_taken_and_what_cannot_be_run_is_refused(monkeypatch, tmp_path):
    # Given a server under another name
    usual = find_server()
    assert usual
    other = tmp_path / "my-redis-server"
    other.symlink_to(usual)
    monkeypatch.setenv("SIDESTEP_SERVER", str(other))
    assert find_server() == str(other)
    # When the name leads nowhere, or to a file that is no program
    (tmp_path / "notes").write_text("")
    for wrong in (tmp_path / "gone", tmp_path / "notes"):
        monkeypatch.setenv("SIDESTEP_SERVER", str(wrong))
        # Then it is said which, and nothing else is taken
        with pytest.raises(BadInput, match=f"SIDESTEP_SERVER names '{wrong}'"):
            find_server()


def test_the_password_is_in_no_argument_and_its_file_is_for_us_alone(children):
    with own_server(children) as broker:
        password = broker.url.split(":")[2].split("@")[0]
        command = psutil.Process(broker.pid).cmdline()
        assert password not in " ".join(command)
        config = next(children.directory.glob("broker-*/server.conf"))
        assert password in config.read_text()
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert password not in broker.shown


def test_the_server_and_its_files_are_gone_afterwards(children):
    with own_server(children, persist=True) as broker:
        pid, port = broker.pid, int(broker.shown.split(":")[2].split("/")[0])
        home = next(children.directory.glob("broker-*"))
        with broker.client() as client:
            client.set("sidestep:x", "1")
        assert list(home.rglob("*.aof"))
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    directory = children.directory
    children.close()
    assert not directory.exists()


def test_a_database_with_foreign_keys_is_refused_unless_told(children):
    with own_server(children) as broker, broker.client() as client:
        client.set("sidestep:ours", "1")
        assert users_broker(broker.url)
        client.set("celery", "somebody's queue")
        with pytest.raises(BadInput, match=r"not Sidestep's.*'celery'.*--force"):
            users_broker(broker.url)
        assert users_broker(broker.url, force=True).pid is None


def test_only_our_own_keys_are_removed(children):
    with own_server(children) as broker, broker.client() as client:
        client.mset({"celery": "1", f"{PREFIX}a:x": "1", f"{PREFIX}a:y": "1", f"{PREFIX}b:x": "1"})
        remove_keys(client, f"{PREFIX}a:")
        assert sorted(client.keys()) == ["celery", f"{PREFIX}b:x"]
        with pytest.raises(LabError, match="not ours"):
            remove_keys(client, "cel")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://:hunter2@127.0.0.1:1/0", "no broker answers at redis://127.0.0.1:1/0"),
        ("http://:hunter2@127.0.0.1/", "must look like redis://"),
        ("amqp://me:hunter2@127.0.0.1/v", "measuring needs a Redis or Valkey"),
        ("redis://:hunter2@127.0.0.1:port/", "must look like redis://"),
    ],
)
def test_a_bad_url_gets_one_line_without_the_password(url, complaint):
    with pytest.raises(BadInput, match=complaint) as refused:
        users_broker(url)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_password_is_named_as_such(children):
    with own_server(children) as broker, pytest.raises(BadInput, match="refuses the user or password"):
        users_broker(f"redis://:wrong@{shown(broker.url).removeprefix('redis://')}")
