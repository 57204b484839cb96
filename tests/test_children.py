"""Nothing that the lab starts outlives it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lab.children import ROOT, Children, kill, tree

pytestmark = pytest.mark.real

# A lab that starts a child, which starts a grandchild in a session of its own, and then waits for ever.
LAB = """
import json, subprocess, sys, time
from lab.children import Children
from lab.broker import own_server
children = Children()
with own_server(children) as broker:
    inner = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
        "print(p.pid, flush=True); time.sleep(600)"
    )
    child = children.start([sys.executable, "-c", inner], stdout=subprocess.PIPE)
    grandchild = int(child.stdout.readline())
    print(json.dumps({"pids": [broker.pid, child.pid, grandchild], "directory": str(children.directory)}), flush=True)
    while True:
        time.sleep(0.05)  # not one long sleep: a signal that comes just before it would go unnoticed until its end
"""


def heed_ctrl_c():
    """Undo what a shell does to commands in the background: they ignore SIGINT, and pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def still_runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lab_that_is_killed_leaves_no_server_no_worker_and_no_folder(sent):
    # Given a lab with a server, a child and a grandchild
    lab = subprocess.Popen(
        [sys.executable, "-c", LAB],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  no thread runs here
    )
    started = json.loads(lab.stdout.readline())
    assert all(still_runs(pid) for pid in started["pids"])
    # When it is ended from outside
    lab.send_signal(sent)
    lab.wait(timeout=20)
    lab.stdout.close()
    # Then within ten seconds nothing is left
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (
        any(still_runs(pid) for pid in started["pids"]) or os.path.exists(started["directory"])
    ):
        time.sleep(0.05)
    assert not any(still_runs(pid) for pid in started["pids"])
    assert not os.path.exists(started["directory"])


def test_children_see_tasks_and_none_of_our_settings(monkeypatch):
    monkeypatch.setenv("SIDESTEP_BROKER", "redis://:secret@somewhere")
    with Children() as children:
        code = (
            "import os, json, tasks; "
            "print(json.dumps([tasks.__file__, sorted(k for k in os.environ if k.startswith('SIDESTEP_'))]))"
        )
        child = children.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
        where, settings = json.loads(child.communicate()[0])
    assert where.startswith(str(children.path))
    assert settings == ["SIDESTEP_SESSION"]


def test_what_a_killed_child_leaves_in_its_temporary_folder_goes_with_ours():
    with Children() as children:
        child = children.start(
            [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp(), flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        left = child.stdout.readline().decode().strip()
        kill(child)
        assert os.path.isdir(left)
    assert not os.path.exists(left)


def test_kill_ends_a_whole_tree():
    with Children() as children:
        inner = (
            "import multiprocessing as m, time; p = m.get_context('fork').Process(target=time.sleep, args=(600,)); "
            "p.start(); print(p.pid, flush=True); p.join()"
        )
        child = children.start([sys.executable, "-c", inner], stdout=subprocess.PIPE)
        grandchild = int(child.stdout.readline())
        assert grandchild in [process.pid for process in tree(child)]
        kill(child)
        assert not still_runs(grandchild)
        assert child.returncode == -signal.SIGKILL
