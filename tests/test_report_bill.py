"""What it costs to move a job, as it is shown: stacks, heat maps, and words for how a message travels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from lab import axes
from lab.bill import PART_NAMES
from lab.model import Arms, Chart, Curve, Experiment, FrozenArgs, Heat, Ledger, Level, Run, Setup, Stack, Suite
from lab.report import curves, heats, stacks, words
from lab.report.catalogue import experiment_page
from lab.report.groups import groups
from lab.report.html import table as html_table
from lab.report.page import page
from lab.report.tables import coding, collected, messages
from producer.pacers import Burst
from producer.payloads import Calibrated, Cycle, Payload, Referred
from tasks.transcode import CHANGED, REFUSED
from tests.fakes import make_resources, make_run, make_samples
from tests.plausible import plausible_suite
from tests.test_report import Outline, printed

TO, DOT, TIMES = "\N{EN DASH}", "\N{MIDDLE DOT}", "\N{MULTIPLICATION SIGN}"
ECHO = Setup(job="echo", args=FrozenArgs(payload=Payload("records", 10_000)), pacer=Burst(4))
STEP = Cycle(("encode", "decode", "size"))
BYTES = ("body_bytes", "base64_bytes", "argument_text_bytes", "header_bytes")


def sized(setup: Setup, *, repeat: int = 0, **sizes: int) -> Run:
    """A run whose message has these parts, the others empty."""
    names = ("body", "base64", "argument text", "headers", "properties", "envelope")
    found = {name: sizes.get(name.replace(" ", "_"), 0) for name in names}
    return make_run(setup=setup, repeat=repeat, resources=replace(make_resources(), message_bytes=found))


def transcoding(codec: str, shape: str = "records", size_bytes: int = 10_000, compression: str | None = None) -> Setup:
    args = FrozenArgs(codec=codec, compression=compression, shape=shape, size_bytes=size_bytes, step=STEP)
    return Setup("transcode", args, Burst(3), queued=False, pool="serial")


def coded(setup: Setup, ns: int, *, repeat: int = 0) -> Run:
    """A run in which encoding and decoding took so many nanoseconds each."""
    values = [ns, ns, ns if ns in {REFUSED, CHANGED} else 1000]
    return make_run(
        setup=setup,
        repeat=repeat,
        samples=make_samples(value=values),
        ledger=Ledger(issued=3, done=3, failed=0, lost=0),
    )


def suite_of(experiment: Experiment, runs: Sequence[Run]) -> Suite:
    own = tuple(replace(run, trial=replace(run.trial, experiment=experiment.name)) for run in runs)
    repeats = 1 + max(run.trial.repeat for run in runs)
    return Suite({"cores": 2}, (experiment.name,), own, 0, {experiment.name: repeats})


def asking(*charts: Chart, base: Setup = ECHO) -> Experiment:
    return Experiment("made-up", "What does it cost?", base, (Arms({}),), (), charts=charts)


SPEEDS = {"json": 3000, "orjson": 300, "yaml": 300_000}
HEAT = Heat("Time <by> shape", "coding_us", "codec", "shape")


def grid_of(ns: Mapping[tuple[str, str], int], *, repeats: int = 2) -> heats.Grid:
    runs = [coded(transcoding(c, s), v, repeat=r) for (c, s), v in ns.items() for r in range(repeats)]
    found = heats.grid(HEAT, runs)
    assert found
    return found


def test_the_parts_of_a_bar_add_up_to_its_total_and_the_interval_is_that_of_the_sum() -> None:
    # Given a body that grows by as much as base64 shrinks
    runs = [sized(ECHO, repeat=r, body=1000 + 100 * r, base64=500 - 100 * r, headers=300) for r in range(3)]
    (bar,) = stacks.bars(Stack("s", BYTES), runs)
    assert bar.means == pytest.approx((1.1, 0.4, 0.0, 0.3))
    assert sum(bar.means) == pytest.approx(bar.total.value)
    # Then the sum has no doubt, whatever its parts have
    assert [bar.total.low, bar.total.high] == pytest.approx([1.8, 1.8])
    assert bar.total.n == 3


def test_a_setup_that_lacks_a_part_has_no_bar() -> None:
    stack = Stack("s", tuple(f"{name}_part_s" for name in PART_NAMES))
    assert stacks.bars(stack, [sized(ECHO, body=1000)]) == []
    assert stacks.draw("k", stack, [sized(ECHO, body=1000)]) is None
    assert stacks.table(stack, [sized(ECHO, body=1000)]) is None


@pytest.mark.parametrize(("far", "filled"), [(2, False), (1000, True)])
def test_bars_of_very_different_lengths_each_fill_the_chart_and_say_so(far: int, filled: bool) -> None:
    setups = [ECHO, replace(ECHO, codec="yaml")]
    runs = [sized(s, repeat=r, body=1000 * m, headers=r) for s, m in zip(setups, (1, far), strict=True) for r in (0, 1)]
    drawn = stacks.draw("k", Stack("s", BYTES), runs)
    assert drawn
    assert ("100 % of its own total" in drawn.caption) == filled
    assert ("share of each bar's own total" in drawn.drawing) == filled


@pytest.mark.parametrize("count", [2, 7])
def test_a_stacks_table_says_each_part_and_the_sum_of_every_setup(count: int) -> None:
    setups = [replace(ECHO, concurrency=c) for c in range(1, count + 1)]
    table = stacks.table(
        Stack("s", BYTES), [sized(s, repeat=r, body=1000, headers=234) for s in setups for r in (0, 1)]
    )
    assert table
    assert {len(row) for row in table.rows} == {len(table.columns)}
    shown = html_table(table)
    for text in ("body", "headers, envelope", "1.00", "0.234", f"1.23 [1.23{TO}1.23]"):
        assert text in shown
    for setup in setups:
        assert setup.label in shown


def test_ratios_of_a_heat_map_are_taken_inside_each_repeat() -> None:
    # Given a machine half as fast in the second repeat
    runs = [
        coded(transcoding(codec), ns * pace, repeat=repeat)
        for codec, ns in SPEEDS.items()
        for repeat, pace in enumerate((1, 2))
    ]
    found = heats.grid(HEAT, runs)
    assert found
    # Then the ratio is as certain as if it had kept its pace, and rows go from the lowest up
    assert found.rows == ("orjson", "json", "yaml")
    ratios = [found.cells[row, "records"].ratio for row in found.rows]
    assert [x for r in ratios if r for x in (r.value, r.low, r.high)] == pytest.approx([1] * 3 + [10] * 3 + [1000] * 3)
    assert found.lowest == {"records": "orjson"}


def test_what_was_refused_or_changed_has_a_word_and_no_figure() -> None:
    found = grid_of(
        {("json", "bytes"): 3000, ("orjson", "bytes"): REFUSED, ("yaml", "bytes"): CHANGED}
        | {(codec, "records"): ns for codec, ns in SPEEDS.items()}
    )
    assert {row: found.cells[row, "bytes"].word for row in found.rows if not found.cells[row, "bytes"].ratio} == {
        "orjson": "refused",
        "yaml": "changed",
    }
    # And the lowest of a column is the lowest of those that carry it
    assert found.lowest == {"bytes": "json", "records": "orjson"}


def test_what_was_refused_once_is_refused() -> None:
    runs = [coded(transcoding(codec), ns, repeat=r) for codec, ns in SPEEDS.items() for r in range(3)]
    runs[0] = coded(transcoding("json"), REFUSED, repeat=0)
    found = heats.grid(HEAT, runs)
    assert found
    assert found.cells["json", "records"].word == "refused"
    assert found.cells["json", "records"].ratio is None


def test_a_heat_map_compares_only_setups_that_differ_in_nothing_else() -> None:
    # Given YAML measured with small payloads alone, and others with large ones too
    setups = [transcoding(c, s) for c in SPEEDS for s in ("records", "text")]
    others = [transcoding(c, "records", 1_000_000) for c in ("json", "orjson")]
    runs = [coded(s, SPEEDS[str(s.args["codec"])], repeat=r) for s in setups for r in (0, 1)]
    runs += [coded(s, 10**9, repeat=r) for s in others for r in (0, 1)]
    found = heats.grid(HEAT, runs)
    assert found
    # Then the large ones are in no cell, and the caption says what is
    values = [cell.value for cell in found.cells.values() if cell.value]
    assert max(value.value for value in values) < 1e5
    drawn = heats.draw(HEAT, runs)
    assert drawn
    assert "The same for all: 10 kB." in drawn.caption


def test_two_figures_are_the_least_that_can_be_compared() -> None:
    assert heats.grid(HEAT, []) is None
    assert heats.grid(HEAT, [coded(transcoding("json"), 3000)]) is None
    assert heats.grid(HEAT, [coded(transcoding(c), REFUSED) for c in SPEEDS]) is None


def test_a_heat_map_can_be_read_without_its_colours() -> None:
    runs = [
        coded(transcoding(c, s), ns * (2 + r), repeat=r)
        for c, ns in SPEEDS.items()
        for s in ("text", "tree")
        for r in (0, 1)
    ]
    drawn = heats.draw(HEAT, runs)
    assert drawn
    outline = Outline(drawn.drawing)
    assert outline.open == []
    for text in (*SPEEDS, "text", "tree", f"{TIMES}1 is, µs"):
        assert text in outline.reads
    assert outline.reads.count(f"{TIMES}1000") == outline.reads.count(f"{TIMES}10.0") == 2
    # And none of its colours is its own
    assert "style=" not in drawn.drawing


def every_chart() -> tuple[Experiment, Suite]:
    """Heat, Stack and Curve, in an order of no meaning, on one page."""
    charts = (
        HEAT,
        Stack("Bytes & parts", BYTES),
        Curve("Time <against> size", "coding_us", "size_bytes"),
        Heat("Message by pool", "message_bytes", "pool", "size_name"),
    )
    runs = [
        coded(transcoding(c, s), ns, repeat=r) for c, ns in SPEEDS.items() for s in ("text", "bytes") for r in (0, 1)
    ]
    runs += [coded(transcoding(c, "text", 100), ns, repeat=r) for c, ns in SPEEDS.items() for r in (0, 1)]
    runs += [coded(transcoding("pickle", "bytes"), word, repeat=r) for word in (REFUSED,) for r in (0, 1)]
    runs += [
        sized(
            replace(ECHO, pool=pool, args=FrozenArgs(payload=Payload("records", n))), repeat=r, body=n, headers=900 + r
        )
        for pool in ("threads", "prefork")
        for n in (100, 1_000_000)
        for r in (0, 1)
    ]
    experiment = asking(*charts)
    return experiment, suite_of(experiment, runs)


def test_every_kind_of_chart_stands_on_the_page_in_any_order() -> None:
    experiment, suite = every_chart()
    charts = experiment.charts
    pages = [page(suite, [], [replace(experiment, charts=order)]) for order in (charts, charts[::-1])]
    for html in pages:
        outline = Outline(html)
        assert outline.open == []
        assert len(outline.ids) == len(set(outline.ids))
        assert not re.search(r"\b(inf|nan)\b", outline.reads)
        for chart in experiment.charts:
            assert chart.title in outline.reads
    assert page(suite, [], [experiment]) == pages[0]


def test_the_terminal_says_what_heat_maps_and_stacks_show_within_80_columns() -> None:
    experiment, suite = every_chart()
    prints = printed(suite, experiment, [])
    assert max(map(len, prints.splitlines())) <= 80
    said = " ".join(prints.split())
    for text in ("Time <by> shape", f"yaml {TIMES}1000", "pickle refused", "Refused: it raised.", "Bytes & parts"):
        assert text in said
    assert f"threads 1 {DOT} 1 MB: 1000" in said
    assert "body 1000" in said
    assert not re.search(r"\b(inf|nan)\b", said)


def test_a_label_says_how_messages_differ_and_not_what_celery_does_unasked() -> None:
    million = FrozenArgs(payload=Payload("records", 1_000_000))
    setups = [
        ECHO,
        replace(ECHO, codec="msgpack", args=million),
        replace(ECHO, rtt_ms=2.0),
        replace(ECHO, results="stored"),
        replace(ECHO, compression="zlib", base64=False, argsrepr=False),
    ]
    assert {group.label for group in groups(make_run(setup=setup) for setup in setups)} == {
        f"prefork 1 {DOT} {rest}".replace(" - ", f" {DOT} ")
        for rest in (
            "json - 10 kB",
            "msgpack - 1 MB",
            "json - 10 kB - rtt 2 ms",
            "json - 10 kB - results stored",
            "json - zlib - 10 kB - no argument text - no base64",
        )
    }


def test_a_label_says_where_a_payload_lies() -> None:
    setups = [
        replace(ECHO, job="weigh", args=FrozenArgs(load=Referred(via, n)))
        for via in ("shm", "redis")
        for n in (1000, 10)
    ]
    assert {group.label for group in groups(make_run(setup=setup) for setup in setups)} == {
        f"prefork 1 {DOT} {size} {DOT} {where}"
        for size in ("10 bytes", "1 kB")
        for where in ("in Redis", "in shared memory")
    }
    assert words.conditions(groups([make_run(setup=setups[0])])) == [
        "Job weigh (1 kB in shared memory); load: 4 jobs, all due at once."
    ]


def test_a_setup_without_a_queue_has_no_serializer_in_its_name() -> None:
    setups = [replace(ECHO, codec="msgpack"), ECHO, replace(ECHO, queued=False, pool="serial")]
    assert [group.label for group in groups(make_run(setup=setup) for setup in setups)] == [
        f"prefork 1 {DOT} json",
        f"prefork 1 {DOT} msgpack",
        "bare serial",
    ]


def test_the_conditions_say_how_messages_travel_where_it_is_not_the_usual_way() -> None:
    far = replace(ECHO, codec="msgpack", rtt_ms=5.0)
    assert words.conditions(groups([make_run(setup=ECHO)])) == [
        "Job echo (records of 10 kB); load: 4 jobs, all due at once."
    ]
    assert words.conditions(groups([make_run(setup=far)])) == [
        "Job echo (records of 10 kB); load: 4 jobs, all due at once; messages: msgpack; rtt 5 ms."
    ]


def test_many_payloads_are_summed_up_by_what_they_are_combined_of() -> None:
    setups = [transcoding(c, s, n) for c in SPEEDS for s in ("text", "tree") for n in (1_000_000, 100, 1000)]
    said = words.conditions(groups([make_run(setup=setup) for setup in setups]))
    assert said[0] == (
        "Jobs: transcode; serializers json, orjson, yaml; compressions none; shapes text, tree; "
        "sizes 100 bytes, 1 kB, 1 MB; arguments encode, decode, size in turn."
    )
    experiment = replace(asking(base=setups[0]), arms=(Arms({"args": tuple(s.args for s in setups)}),))
    written = experiment_page(experiment, Suite({}, (), (), 0, {}), [])
    assert "one of 18 combinations of" in written
    assert "  - sizes 100 bytes, 1 kB, 1 MB" in written


def test_a_claim_names_what_travels_in_words() -> None:
    where = {"codec": "msgpack", "compression": None, "rtt_ms": 0.5, "results": "get", "payload_bytes": 1_000_000}
    assert words.selected(where) == "msgpack, uncompressed, rtt 0.5 ms, results read one by one, payload of 1 MB"
    assert words.measure(Level("message_bytes", where), ()).startswith("size of a message: msgpack")


def test_a_serializers_table_has_words_where_there_is_no_figure() -> None:
    cases = {"json": 3000, "orjson": REFUSED, "yaml": CHANGED}
    table = coding(groups([coded(transcoding(c), ns, repeat=r) for c, ns in cases.items() for r in (0, 1)]))
    assert table
    assert {row[0].partition(" ")[0]: row[1:4] for row in table.rows} == {
        "json": (f"3.00 [3.00{TO}3.00]", f"3.00 [3.00{TO}3.00]", "1000"),
        "orjson": ("refused",) * 3,
        "yaml": ("changed",) * 3,
    }
    assert coding(groups([make_run()])) is None


def test_the_parts_of_a_message_are_shown_where_payloads_are_sent() -> None:
    table = messages(groups([sized(ECHO, body=100, base64=34, argument_text=50, headers=1, properties=2, envelope=3)]))
    assert table
    assert table.rows == (("prefork 1", "190", "100", "34", "50", "6", "1"),)
    # And not where nothing but Celery's own headers is
    assert messages(groups([sized(replace(ECHO, args=FrozenArgs()), headers=600)])) is None


def test_the_time_to_read_results_is_shown_where_they_are_read() -> None:
    read = [
        make_run(setup=replace(ECHO, results="get"), repeat=r, resources=replace(make_resources(), collect_s=0.008))
        for r in (0, 1)
    ]
    table = collected(groups([make_run(setup=ECHO), *read]))
    assert table
    assert [row[1] for row in table.rows] == [f"2.00 [2.00{TO}2.00]"]


def test_without_a_relay_there_is_no_distance() -> None:
    curve = Curve("c", "throughput_hz", "rtt_ms", log=False)
    runs = [make_run(setup=replace(ECHO, rtt_ms=rtt), repeat=r) for rtt in (None, 0.0, 5.0) for r in (0, 1)]
    (line,) = curves.lines(curve, runs)
    assert [(point.x, point.y.n) for point in line.points] == [(0.0, 2), (5.0, 2)]


def test_payloads_of_one_kind_are_one_line_and_many_lone_points_are_none() -> None:
    curve = Curve("c", "coding_us", "size_bytes")
    setups = [transcoding(c, "records", n) for c in SPEEDS for n in (100, 1000)]
    lone = [transcoding(c, s) for c in SPEEDS for s in ("text", "tree", "noise")]
    runs = [coded(setup, 3000) for setup in (*setups, *lone)]
    found = curves.lines(curve, runs)
    assert [line.name for line in found] == list(SPEEDS)
    assert {tuple(point.x for point in line.points) for line in found} == {(0.1, 1.0)}
    # And a few lone points stay
    assert len(curves.lines(curve, runs[: len(setups) + 1])) == len(SPEEDS) + 1


def test_ticks_over_many_decades_are_powers_of_ten_and_have_room() -> None:
    from lab.report.charts import LEAST_GAP_PX, steps

    ticks = steps(0.05, 2e6, room_px=210)
    assert len(ticks) >= 2
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in ticks)
    gaps = [math.log(b / a) / math.log(2e6 / 0.05) * 210 for a, b in itertools.pairwise(ticks)]
    assert min(gaps) >= LEAST_GAP_PX


def test_jobs_that_measure_are_in_no_table_of_what_jobs_took() -> None:
    experiment = asking(base=transcoding("json"))
    reads = Outline(page(suite_of(experiment, [coded(transcoding("json"), 3000)]), [], [experiment])).reads
    assert "What a serializer costs" in reads
    for title in ("Throughput", "Latency, from due to ended", "What it cost", "Latency by setup"):
        assert title not in reads


def test_every_name_of_a_heat_map_and_every_part_of_a_way_has_words() -> None:
    assert set(words.NAMES) == set(axes.NAMES) == set(heats.FIELDS)
    assert {f"{name}_part_s" for name in PART_NAMES} <= set(words.PARTS) <= set(words.MEASURES)
    # And parts of one stack share a unit
    assert len({words.UNITS[f"{name}_part_s"] for name in PART_NAMES}) == 1
    assert len({words.UNITS[name] for name in BYTES}) == 1


def test_a_plausible_suite_of_steps_and_messages_can_be_shown() -> None:
    parts = tuple(f"{name}_part_s" for name in PART_NAMES)
    work = FrozenArgs(payload=Payload("records", 1000), loops=Calibrated(1, like="spin"))
    base = Setup("carry", work, Burst(6), steps=True)
    experiment = replace(asking(Stack("Way", parts), base=base), arms=(Arms({"codec": ("json", "orjson")}),))
    suite = plausible_suite(experiment)
    for run in suite.runs:
        assert run.steps
    reads = Outline(page(suite, [], [experiment])).reads
    for text in ("decode in main process", "What a message is made of", f"prefork 1 {DOT} orjson"):
        assert text in reads
