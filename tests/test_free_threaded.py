"""The negative control: on an interpreter without a GIL, what the GIL was said to do is refuted."""

import json
import os

import pytest

from lab.interpreters import ask, free_threaded
from tests.test_cli import sidestep

pytestmark = [pytest.mark.real, pytest.mark.stack]


@pytest.fixture(scope="module")
def interpreter() -> str:
    """A free-threaded Python; a laptop may lack one, CI may not."""
    path = free_threaded()
    if path is None:
        missing = "no free-threaded Python is on PATH, and SIDESTEP_FREE_THREADED names none"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    assert ask(path).version.endswith("t")
    return path


def test_without_a_gil_two_threads_are_faster_than_one_and_the_claims_that_deny_it_are_refuted(tmp_path, interpreter):
    options = ("--quick", "--repeats", "4", "--python", interpreter, "--out", str(tmp_path))
    done = sidestep("run", "gil-cpu", *options, "--json")
    # A run that others disturbed is INVALID, and the same command takes it again
    if done.returncode == 3:
        done = sidestep("run", "gil-cpu", *options, "--json")
    found = {f["claim"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["gil-cpu/threads"]["verdict"] == "refuted", found
    assert found["gil-cpu/bare-threads"]["verdict"] == "refuted", found
    # While processes, which never shared a GIL, are as fast as they were
    assert found["gil-cpu/prefork"]["verdict"] != "refuted", found
