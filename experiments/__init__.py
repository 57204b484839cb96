"""What we want to know: one question a file, declarations only."""

from experiments.gil_cpu import experiment as gil_cpu
from experiments.gil_release import experiment as gil_release
from experiments.io_fanout import experiment as io_fanout
from experiments.observer_cost import experiment as observer_cost
from lab.model import Experiment

EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (gil_cpu, gil_release, io_fanout, observer_cost)}

TOUR = ("gil-release", "gil-cpu", "io-fanout")
"""What `sidestep demo` shows; the quickest first, so that the first verdict comes soon."""
