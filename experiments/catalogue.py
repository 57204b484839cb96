"""Every experiment, by name."""

from experiments.break_even import experiment as break_even
from experiments.by_reference import experiment as by_reference
from experiments.codecs import experiment as codecs
from experiments.convoy import experiment as convoy
from experiments.convoy_worker import experiment as convoy_worker
from experiments.events_cost import experiment as events_cost
from experiments.gil_cpu import experiment as gil_cpu
from experiments.gil_release import experiment as gil_release
from experiments.gil_share import experiment as gil_share
from experiments.green_trust import experiment as green_trust
from experiments.hops import experiment as hops
from experiments.io_fanout import experiment as io_fanout
from experiments.io_slots import experiment as io_slots
from experiments.locks import experiment as locks
from experiments.machines import experiment as machines
from experiments.no_gil import experiment as no_gil
from experiments.observer_cost import experiment as observer_cost
from experiments.payload_break_even import experiment as payload_break_even
from experiments.prefetch import experiment as prefetch
from experiments.presets import experiment as presets
from experiments.races import experiment as races
from experiments.results import experiment as results
from experiments.scaling_law import experiment as scaling_law
from experiments.sendable import experiment as sendable
from experiments.separate_queues import experiment as separate_queues
from experiments.sharing import experiment as sharing
from experiments.startup import experiment as startup
from experiments.thread_overhead import experiment as thread_overhead
from experiments.versions import experiment as versions
from experiments.wire import experiment as wire
from lab.model import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    e.name: e
    for e in (
        gil_cpu,
        gil_release,
        gil_share,
        thread_overhead,
        convoy,
        convoy_worker,
        locks,
        races,
        sharing,
        sendable,
        startup,
        break_even,
        io_fanout,
        io_slots,
        green_trust,
        separate_queues,
        prefetch,
        presets,
        scaling_law,
        machines,
        no_gil,
        versions,
        codecs,
        wire,
        hops,
        payload_break_even,
        by_reference,
        results,
        observer_cost,
        events_cost,
    )
}
"""In the order in which a reader meets the questions; Sidestep's own cost comes last."""

GROUPS: dict[str, tuple[str, ...]] = {
    "serialization": ("codecs", "wire", "hops", "payload-break-even", "by-reference", "results"),
}
"""One name for several experiments, wherever names are asked for."""

TOUR = ("gil-release", "gil-cpu", "io-fanout")
"""What `sidestep demo` shows; the quickest first, so that the first verdict comes soon."""
