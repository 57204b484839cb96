"""What the trials of one sitting share, and the next sitting is told."""

import sys
from pathlib import Path
from typing import Any, cast

from lab import interpreters
from lab.model import FrozenArgs, Load
from lab.session import Session, _calibrated
from producer.pacers import Burst
from producer.payloads import Calibrated
from tests.fakes import SETUP

NOBODY = cast(Any, None)


def test_a_suite_that_goes_on_keeps_calibrations_that_this_sitting_did_not_need():
    # Given a suite in which two jobs had been calibrated, and a sitting that needs one of them
    session = Session(NOBODY, NOBODY, known_units={"spin": 7.0, "digest": 5.0})
    units = session.units(SETUP, Load("spin", FrozenArgs({"loops": Calibrated(10.0)}), Burst(1)))
    # Then its jobs are those of before, and both are there for the third sitting
    assert list(units.values()) == [70]
    assert session.calibration == {"spin": 7.0, "digest": 5.0}


def test_a_calibration_belongs_to_the_interpreter_that_it_was_made_on(tmp_path: Path):
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\necho \'{"version": "3.13.5", "free_threaded": true, "ok": true}\'\n')
    other.chmod(0o755)
    assert interpreters.ask(str(other)).version == "3.13.5t"
    assert _calibrated(sys.executable, "spin") == "spin"
    assert _calibrated(str(other), "spin") == "spin on 3.13.5t"
