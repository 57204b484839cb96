"""What a value of the lab is called in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from lab.axes import shape, size_bytes
from lab.bill import PART_NAMES
from lab.model import BreakEven, Claim, Level, Load, Measure, Ratio, Run, ScalingLaw, Selector, Setup
from lab.report.groups import Group, other_args
from lab.report.loads import MESSAGES, VIA, beside, load, messages, size, work
from lab.report.units import MIB
from lab.stats import matches
from producer.pacers import Pacer

MEASURES = {
    "throughput_hz": "jobs per second",
    "drain_hz": "jobs per second, timed at the broker",
    "worker_cpu_s_per_job": "CPU time per job",
    "watcher_cpu_s_per_job": "CPU time of Flower per job",
    "pss_bytes": "memory of the whole worker",
    "pss_bytes_per_slot": "memory per slot",
    "latency_p50_s": "median latency",
    "latency_p99_s": "p99 latency",
    "cores_used": "cores kept busy by jobs",
    "beside_hz": "other jobs per second",
    "beside_p99_s": "p99 latency of other jobs",
    "wait_p99_s": "p99 time from sent to started",
    "fetch_p50_s": "median time from sent to received",
    "ack_gap_p50_s": "median time from a job's end to its acknowledgement",
    "heartbeat_late_s": "how late the latest heartbeat was",
    "held_p50_s": "median time from received to started",
    "service_p50_s": "median time from started to ended",
    "service_mean_s": "mean time from started to ended",
    "round_us": "microseconds a round",
    "gap_p50_s": "median idle time of a slot before a job that had been sent",
    "slots_busy": "share of slots busy",
    "boot_s": "time to start",
    "commands_per_job": "broker commands per job",
    "lost_updates": "share of additions lost",
    "disorder": "share of pairs that end out of order",
    "gil_on": "GIL on (1) or off (0)",
    "refused_things": "things refused",
    "changed_things": "things changed",
    "not_intact": "things refused or changed",
    "lag_part_s": "mean time from due to sent",
    "encode_part_s": "mean time to encode the message",
    "broker_part_s": "mean time from the producer through the broker to the worker",
    "fetch_part_s": "mean time to read it from the broker",
    "register_part_s": "mean time to unwrap the message and note it down",
    "peek_part_s": "mean time to decode it in the worker's main process",
    "hop_part_s": "mean time from there to its slot",
    "decode_part_s": "mean time to decode it in the slot",
    "call_part_s": "mean time from decoded to started",
    "run_part_s": "mean time from started to ended",
    "result_part_s": "mean time to finish and store the result",
    "way_s": "mean time from due to stored result",
    "overhead_s": "mean time of a job's way beside the job itself",
    "message_bytes": "size of a message",
    "body_bytes": "size of a message's body",
    "base64_bytes": "what base64 adds to a message",
    "argument_text_bytes": "arguments as text in a message",
    "header_bytes": "headers, properties and envelope of a message",
    "broker_bytes_per_job": "bytes through the broker per job",
    "broker_in_bytes_per_job": "bytes into the broker per job",
    "broker_out_bytes_per_job": "bytes out of the broker per job",
    "times_through_broker": "bytes through the broker per byte of a message",
    "collect_s_per_job": "time to read one result",
    "producer_cpu_s_per_job": "CPU time of the producer per job",
    "encode_us": "time to encode",
    "decode_us": "time to decode",
    "coding_us": "time to encode and decode",
    "coded_bytes": "size of the encoded payload",
}
"""`lab.stats.MEASURES` in words."""

PARTS: Mapping[str, str] = {
    "lag_part_s": "producer late",
    "encode_part_s": "encode",
    "broker_part_s": "through the broker",
    "fetch_part_s": "read from the broker",
    "register_part_s": "unwrap, register",
    "peek_part_s": "decode in main process",
    "hop_part_s": "to the slot",
    "decode_part_s": "decode in the slot",
    "call_part_s": "call the job",
    "run_part_s": "the job itself",
    "result_part_s": "finish, store the result",
    "worker_cpu_s_per_job": "of the worker",
    "producer_cpu_s_per_job": "of the producer",
    "body_bytes": "body",
    "base64_bytes": "base64",
    "argument_text_bytes": "argument text",
    "header_bytes": "headers, envelope",
    "broker_in_bytes_per_job": "into the broker",
    "broker_out_bytes_per_job": "out of the broker",
    "encode_us": "encode",
    "decode_us": "decode",
}
"""Those of MEASURES that add up with others, as a stack names them."""


def part(name: str) -> str:
    """A measure as one of a stack's parts."""
    return PARTS.get(name, MEASURES[name])


@dataclass(frozen=True, slots=True)
class Unit:
    """What stands behind a figure."""

    after: str
    """In a sentence, such as `at least 0.6 of the slots' time`."""
    times: float = 1.0
    """Shown figures are so many times those of the lab, which counts in seconds and bytes."""
    on_axis: str = ""
    """Behind the measure's name at a chart's axis, where the name does not say it already."""


MS, US, KB = Unit("ms", 1e3, "ms"), Unit("µs", on_axis="µs"), Unit("kB", 1e-3, "kB")

UNITS: Mapping[str, Unit] = {
    "throughput_hz": Unit("jobs/s"),
    "drain_hz": Unit("jobs/s"),
    "worker_cpu_s_per_job": MS,
    "watcher_cpu_s_per_job": MS,
    "pss_bytes": Unit("MiB", 1 / MIB, "MiB"),
    "pss_bytes_per_slot": Unit("MiB", 1 / MIB, "MiB"),
    "latency_p50_s": MS,
    "latency_p99_s": MS,
    "cores_used": Unit("cores"),
    "beside_hz": Unit("jobs/s"),
    "beside_p99_s": MS,
    "wait_p99_s": MS,
    "fetch_p50_s": MS,
    "ack_gap_p50_s": MS,
    "heartbeat_late_s": MS,
    "held_p50_s": MS,
    "service_p50_s": MS,
    "service_mean_s": MS,
    "round_us": Unit("µs"),
    "gap_p50_s": MS,
    "slots_busy": Unit("of the slots' time"),
    "boot_s": Unit("s", on_axis="s"),
    "commands_per_job": Unit("commands per job"),
    "lost_updates": Unit("of the additions"),
    "disorder": Unit("of all pairs"),
    "gil_on": Unit("(1 is on, 0 is off)"),
    "refused_things": Unit("things"),
    "changed_things": Unit("things"),
    "not_intact": Unit("things"),
    **{f"{name}_part_s": MS for name in PART_NAMES},
    "way_s": MS,
    "overhead_s": MS,
    "message_bytes": KB,
    "body_bytes": KB,
    "base64_bytes": KB,
    "argument_text_bytes": KB,
    "header_bytes": KB,
    "broker_bytes_per_job": KB,
    "broker_in_bytes_per_job": KB,
    "broker_out_bytes_per_job": KB,
    "times_through_broker": Unit("times"),
    "collect_s_per_job": MS,
    "producer_cpu_s_per_job": MS,
    "encode_us": US,
    "decode_us": US,
    "coding_us": US,
    "coded_bytes": KB,
}
"""What each of MEASURES is counted in, where people read it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands along the foot of a chart."""

    name: str
    """With its unit."""
    after: str
    """In a sentence, such as `at 0.3 ms`."""
    times: float = 1.0


AXES: Mapping[str, Axis] = {
    "slots": Axis("slots (concurrency)", "slots"),
    "machines": Axis("machines", "machines"),
    "work_ms": Axis("work of one job, ms of one core", "ms"),
    "outside_share": Axis("share p of the work outside the GIL", "outside"),
    "switch_interval_ms": Axis("switch interval, ms", "ms"),
    "hogs": Axis("jobs that compute beside it", "beside"),
    "computing": Axis("jobs that compute meanwhile", "computing"),
    "handovers": Axis("times a job gives up the GIL", "times"),
    "size_bytes": Axis("size of the payload, kB", "kB", 1e-3),
    "prefetch": Axis("jobs fetched ahead, per slot", "ahead"),
    "rtt_ms": Axis("distance to the broker, there and back, ms", "ms"),
}
"""`lab.axes.AXES` in words."""

NAMES: Mapping[str, str] = {
    "codec": "serializer",
    "compression": "compression",
    "shape": "shape",
    "pool": "pool",
    "size_name": "size",
}
"""`lab.axes.NAMES` in words."""

PREDICTIONS: Mapping[str, str] = {
    "convoy_s": "wait + interval a thread, typical with one",
    "amdahl": "Amdahl's law, 1 / ((1 \N{MINUS SIGN} p) + p / N)",
    "linear": "each machine adds as much as the first",
    "usl": "the Universal Scalability Law, fitted",
    "gil_bound": "the GIL's own bound, 1 / (1 \N{MINUS SIGN} p) up to N",
}
"""`lab.predictions.PREDICTIONS` and those of FITTED in words."""


def axis(name: str) -> str:
    """A measure as it stands at a chart's axis."""
    unit = UNITS[name]
    return f"{MEASURES[name]}, {unit.on_axis}" if unit.on_axis else MEASURES[name]


def unit(what: Measure) -> Unit | None:
    """What the measure is counted in; None for a ratio, which has no unit."""
    match what:
        case Level(name):
            return UNITS.get(name, Unit(""))
        case BreakEven(axis=along):
            return Unit(AXES[along].after, AXES[along].times)
        case ScalingLaw():
            return Unit("of the curve")
        case Ratio():
            return None


def measure(what: Measure, groups: Sequence[Group]) -> str:
    """What is measured: of what, or what divided by what."""
    match what:
        case Ratio(name, of, to):
            return f"{MEASURES.get(name, name)}: {side(of, groups)} ÷ {side(to, groups)}"
        case Level(name, of):
            return f"{MEASURES.get(name, name)}: {side(of, groups, mean='mean')}"
        case BreakEven(of, to, along):
            what_grows = "job length" if along == "work_ms" else AXES[along].name.partition(",")[0]
            return f"{what_grows} from which on {selected(of)} finishes more jobs a second than {selected(to)}"
        case ScalingLaw(of):
            return f"largest distance from the Universal Scalability Law's best curve: {selected(of)}"


def selected(where: Selector) -> str:
    """What is selected in words, such as `bare threads 2` or `prefork 2, marks off`."""
    rest = dict(where)
    first = [] if rest.pop("queued", True) else ["bare"]
    first += [str(rest.pop(name)) for name in ("pool", "concurrency") if name in rest]
    return ", ".join([*([" ".join(first)] if first else []), *(_field(n, v) for n, v in rest.items())]) or "every setup"


def side(where: Selector, groups: Sequence[Group], *, mean: str = "geometric mean") -> str:
    """The setup that is selected, by its label; several by what they share, and how they are taken together."""
    chosen = [group.label for group in groups if any(matches(run, where) for run in group.runs)]
    if len(chosen) == 1:
        return chosen[0]
    spelled = selected(where)
    return f"{spelled} ({mean} of {len(chosen)} setups)" if chosen else spelled


def _field(name: str, value: object) -> str:  # noqa: PLR0911  one a kind of value
    if name in MESSAGES:
        return MESSAGES[name](value)
    if name == "via":
        return f"payload {VIA.get(str(value), str(value))}"
    if name == "payload_bytes" and isinstance(value, int):
        return f"payload of {size(value)}"
    if name == "pacer":
        return load(cast("Pacer", value))
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    match value:
        case () if name == "knobs":
            return "nothing turned"
        case () if name == "packages":
            return "the usual packages"
        case tuple():
            return ", ".join(map(str, value))
        case Load():
            return beside(value)
        case None:
            return "nothing beside" if name == "beside" else f"{name} as usual"
        case Mapping():
            return work(value)
    return f"{name} {value}"


def conditions(groups: Sequence[Group]) -> list[str]:
    """Each different work and load of these setups, in words; where there are many, what they are made of."""
    setups = [group.setup for group in groups]
    each = list(dict.fromkeys(map(_condition, setups)))
    if len(each) <= MOST_CONDITIONS:
        return each
    jobs = list(dict.fromkeys(map(_job, setups)))
    parts = {
        "Jobs": jobs if len(jobs) <= MOST_JOBS else combined(setups),
        "Load": [load(setup.pacer) for setup in setups],
        "Beside them": [beside(setup.beside).removeprefix("beside ") for setup in setups if setup.beside],
        "Messages": [said] if (said := messages(setups)) else [],
    }
    return [f"{name}: {'; '.join(dict.fromkeys(said))}." for name, said in parts.items() if said]


MOST_CONDITIONS = 3
"""More sentences than this hide what differs between them."""
MOST_JOBS = 12
"""More jobs than this are said as what they are combined of."""


def combined(setups: Sequence[Setup]) -> list[str]:
    """Many jobs in few words: their names, and each of their traits with all its values."""
    by_size = sorted(setups, key=size_bytes)
    said = [", ".join(dict.fromkeys(setup.job for setup in setups))]
    for name, trait in COMBINED.items():
        if values := [value for setup in by_size if (value := trait(setup))]:
            said.append(f"{name} {', '.join(dict.fromkeys(values))}")
    return said


COMBINED: Mapping[str, Callable[[Setup], str]] = {
    "serializers": lambda setup: str(setup.args.get("codec", "")),
    "compressions": lambda setup: str(setup.args["compression"] or "none") if "compression" in setup.args else "",
    "shapes": shape,
    "sizes": lambda setup: size(size_bytes(setup)) if size_bytes(setup) else "",
    "arguments": lambda setup: work(other_args(setup)),
}
"""What many jobs may be combined of; a trait that no job has is not said."""


def jobs(setups: Sequence[Setup]) -> str:
    """The different jobs of these setups in one line; where there are many, what they are combined of."""
    each = list(dict.fromkeys(map(_job, setups)))
    return " and ".join(each) if len(each) <= MOST_CONDITIONS else "; ".join(combined(setups))


def _condition(setup: Setup) -> str:
    more = f"; {beside(setup.beside)}" if setup.beside else ""
    more += f"; messages: {said}" if (said := messages([setup])) else ""
    return f"Job {_job(setup)}; load: {load(setup.pacer)}{more}."


def _job(setup: Setup) -> str:
    args = work(setup.args)
    return f"{setup.job} ({args})" if args else setup.job


def short_id(claim: Claim) -> str:
    """The claim's id without its experiment."""
    return claim.id.rpartition("/")[2]


def of_runs(runs: Sequence[Run]) -> str:
    """Which repeats these are, counted from 1 as people do."""
    return ", ".join(str(n + 1) for n in sorted({run.trial.repeat for run in runs}))
