"""README and docs/experiments say what the stored suite and the declarations say."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from experiments.catalogue import EXPERIMENTS
from lab.model import Arms, BreakEven, Claim, Estimate, Experiment, Fault, Finding, LabError, Ratio, Suite, Verdict
from lab.report.benches import PAGE
from lab.report.catalogue import BEGIN, END, FOLDER, experiment_page, index, pages, spliced, table
from lab.report.control import control_page
from lab.report.explain import explanation
from lab.report.units import TIMES, TO
from lab.store import FILE, SuiteFile, load
from lab.verdict import judge_all
from tests.fakes import SETUP, make_run
from tests.plausible import plausible_suite
from tests.test_report_benches import drain as printed_drain

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "catalogue.py"))
STORED, CONTROL = ROOT / SCRIPT["STORED"], ROOT / SCRIPT["CONTROL"]
ALL = list(EXPERIMENTS.values())
MARKDOWN = MarkdownIt("commonmark").enable("table")

CLAIM = Claim(
    id="made-up/threads",
    says="Two are faster than one.",
    measure=Ratio("throughput_hz", of={"concurrency": 2}, to={"concurrency": 1}),
    why="There are two.",
    advice="Take two.",
    at_least=1.5,
)
EXPERIMENT = Experiment("made-up", "Are two faster?", SETUP, (Arms({"concurrency": (1, 2)}),), (CLAIM,))
NOTHING = Suite(environment={}, experiments=(), runs=(), seed=0, repeats={})


@cache
def suite_of_all() -> Suite:
    return plausible_suite(*ALL)


def cells(markdown: str) -> Iterator[list[str]]:
    """The rows of a table's body as a reader of Markdown takes them: the text of each cell, code in its backticks."""
    tokens = MARKDOWN.parse(markdown)
    start = next(i for i, token in enumerate(tokens) if token.type == "tbody_open")
    row: list[str] = []
    for token in tokens[start:]:
        if token.type == "inline":
            row.append(read(token))
        elif token.type == "tr_close":
            yield row
            row = []


def read(token: Token) -> str:
    """What is read, with code in its backticks; of HTML only the break of a line, which is ours."""
    shown = {"text": "{}", "text_special": "{}", "code_inline": "`{}`"}
    parts = (
        t.content if t.content == "<br>" else shown.get(t.type, "").format(t.content) for t in token.children or ()
    )
    return "".join(parts)


def links(markdown: str) -> list[str]:
    inlines = (child for token in MARKDOWN.parse(markdown) for child in token.children or ())
    return [str(child.attrs["href"]) for child in inlines if child.type == "link_open"]


@pytest.mark.skipif(not STORED.exists(), reason="no suite of the reference machine is stored yet")
def test_readme_and_pages_are_what_the_stored_suite_and_the_declarations_give():
    texts = SCRIPT["written"](ROOT)
    benches = [ROOT / at for at in SCRIPT["BENCHES"].values()]
    assert len(texts) == len(EXPERIMENTS) + 2 + CONTROL.exists() + any(at.exists() for at in benches)
    stale = [name for name, text in texts.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
    assert stale == [], "run scripts/catalogue"
    assert {f"{FOLDER}/{path.name}" for path in (ROOT / FOLDER).iterdir()} == texts.keys() - {"README.md", PAGE}


def test_every_claim_is_in_the_table_once_under_its_question():
    suite = suite_of_all()
    written = table(ALL, suite, judge_all(ALL, suite))
    rows = list(cells(written))
    assert [row[1].partition("<br>")[2].partition("`: ")[0] for row in rows] == [
        f"`{c.id}" for e in ALL for c in e.claims
    ]
    # A question stands before the first of its claims alone, and leads to its page
    assert [row[0] for row in rows] == [e.question * (c is e.claims[0]) for e in ALL for c in e.claims]
    assert links(written) == [f"docs/experiments/{e.name}.md" for e in ALL]
    # And each row has a verdict
    words = [*Verdict, "could not be tested", "not measured"]
    assert [row[2] for row in rows if not row[2].startswith(tuple(words))] == []


def answer(finding: Finding | None, suite: Suite = NOTHING, experiment: Experiment = EXPERIMENT) -> str:
    """What the table says of the one claim."""
    ((_, _, verdict),) = cells(table([experiment], suite, [finding] if finding else []))
    return verdict


def test_a_verdict_has_its_figure_and_a_claim_without_one_says_why():
    found = Finding(CLAIM, Estimate(1.9, 1.87, 1.93, 5), Verdict.SUPPORTED, "the whole interval is at least 1.5")
    assert answer(found) == f"supported: {TIMES} 1.90 [1.87{TO}1.93], 5 repeats"
    assert answer(None) == "not measured"
    assert answer(Finding(CLAIM, None, Verdict.INVALID, "not measured: no repeat has all that it compares")) == (
        "not measured"
    )
    # Given a fault; then there is no figure to be believed
    invalid = replace(found, verdict=Verdict.INVALID, because="others used 2 cores (at most 0.25 is allowed)")
    assert answer(invalid) == "invalid: others used 2 cores (at most 0.25 is allowed)"


def test_a_claim_that_this_machine_cannot_test_says_what_it_lacks():
    claim = replace(CLAIM, needs_cores=8)
    experiment = replace(EXPERIMENT, claims=(claim,))
    suite = replace(NOTHING, environment={"cores": 2}, experiments=("made-up",))
    (finding,) = judge_all([experiment], suite)
    assert answer(finding, suite, experiment).startswith("could not be tested: it needs 8 free cores")


def test_a_claim_whose_setups_were_left_out_says_why():
    # Given two setups that could not run, of which the claim looks at one
    suite = replace(
        NOTHING,
        environment={"cores": 2},
        experiments=("made-up",),
        left_out={"made-up · prefork 2": "there are too few", "made-up · gevent 9": "gevent is missing"},
    )
    (finding,) = judge_all([EXPERIMENT], suite)
    assert answer(finding, suite) == "could not be tested: there are too few"
    # And its page lists both
    page = experiment_page(EXPERIMENT, suite, [finding])
    assert "Left out on the reference machine: prefork 2 (there are too few); gevent 9 (gevent is missing)." in page


@pytest.mark.parametrize("low", [3.0, float("inf")])
def test_what_never_pays_is_said_in_words(low: float):
    claim = replace(
        CLAIM, measure=BreakEven(of={"concurrency": 2}, to={"concurrency": 1}), at_least=float("-inf"), at_most=9
    )
    finding = Finding(claim, Estimate(float("inf"), low, float("inf"), 5), Verdict.INCONCLUSIVE, "it holds the bound")
    experiment = replace(EXPERIMENT, claims=(claim,))
    assert "never" in answer(finding, NOTHING, experiment)
    assert not re.search(r"\binf\b|\bnan\b", answer(finding, NOTHING, experiment))


TRICKY = st.text(st.sampled_from("|*_<>`[]()\\&#~!:;-+.\n\t \x1b\u202eab1"), min_size=1).filter(str.strip)


def as_read(text: str) -> str:
    """The text without what no reader sees: spaces, and characters that cannot be printed."""
    return "".join(c for c in text if c.isprintable() and c not in " \N{REPLACEMENT CHARACTER}")


MARKED = "<b>bold</b> | <!-- a --> &amp; [a](b) ](c) __init__ *b* `a|b` <http://b> ![a](b) # 1"


@given(TRICKY, TRICKY, TRICKY, TRICKY)
@example(MARKED, MARKED, MARKED, MARKED)
def test_no_text_can_break_the_table_or_be_taken_for_markdown(question: str, says: str, name: str, why: str):
    claim = replace(CLAIM, id=name, says=says)
    experiment = replace(EXPERIMENT, question=question, claims=(claim,))
    finding = Finding(claim, Estimate(1, 1, 1, 2), Verdict.INVALID, why)
    rows = list(cells(table([experiment], NOTHING, [finding])))
    assert len(rows) == 1
    told = [as_read(cell) for cell in rows[0]]
    assert told[0] == as_read(question)
    assert told[1].startswith(f"{as_read(says)}<br>")
    assert as_read(name) in told[1]
    assert told[2] == f"invalid:{as_read(why)}"


@given(TRICKY, TRICKY, TRICKY, TRICKY)
@example(MARKED, MARKED, MARKED, MARKED)
def test_no_text_can_break_a_page(question: str, says: str, why: str, advice: str):
    claim = replace(CLAIM, says=says, why=why, advice=advice)
    page = experiment_page(replace(EXPERIMENT, question=question, claims=(claim,)), NOTHING, [])
    tokens = MARKDOWN.parse(page)
    # Then there are as many headings and points as there are with harmless texts
    harmless = MARKDOWN.parse(experiment_page(EXPERIMENT, NOTHING, []))
    assert [t.type for t in tokens] == [t.type for t in harmless]
    assert links(page) == ["README.md"]
    told = [as_read(read(t)) for t in tokens if t.type == "inline"]
    assert as_read(question) in told
    assert as_read(says) in told
    assert f"Whyitmightbeso:{as_read(why)}" in told
    assert f"Whattodoaboutit:{as_read(advice)}" in told


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_says_all_there_is_to_say_of_each_claim(name: str):
    experiment, suite = EXPERIMENTS[name], suite_of_all()
    findings = judge_all(ALL, suite)
    page = experiment_page(experiment, suite, findings)
    told = [read(token) for token in MARKDOWN.parse(page) if token.type == "inline"]
    assert experiment.question in told
    assert f"    sidestep run {name}\n" in page
    for claim in experiment.claims:
        about = explanation(experiment, claim, next((f.verdict for f in findings if f.claim.id == claim.id), None))
        assert claim.says in told
        assert f"Claim: `{claim.id}`" in told
        for heading in ("why it might be so", "what would refute it", "needs", "what to do about it"):
            assert f"{heading[0].upper()}{heading[1:]}: {about[heading]}" in told
        # The method may be that of several claims, and then is said once
        assert sum(about["method"] in text for text in told) == 1
    verdicts = [text for text in told if "on the reference machine" in text.lower()]
    assert len(verdicts) >= len(experiment.claims)
    # And what is run is there with every job and every load
    for setup in experiment.setups(cores=2):
        assert all(job.job in page for job in setup.loads)
    assert not re.search(r"\b(inf|nan)\b", page)


def test_a_page_is_the_same_each_time_and_a_suite_of_nothing_has_pages_too():
    suite = suite_of_all()
    findings = judge_all(ALL, suite)
    assert pages(ALL, suite, findings) == pages(ALL, suite, findings)
    empty = pages(ALL, NOTHING, [])
    assert empty.keys() == {"README.md", *(f"{name}.md" for name in EXPERIMENTS)}
    assert all("Not measured" in empty[f"{name}.md"] for name in EXPERIMENTS)
    assert "Nothing has been measured yet" in empty["README.md"]


def test_the_index_leads_to_every_page_and_counts_the_verdicts():
    suite = replace(
        NOTHING,
        environment={"cores": 2, "cpu": "Zuse Z3", "boot_id": "secret"},
        experiments=("made-up",),
        runs=(make_run(),),
    )
    runs = [
        make_run(setup=replace(SETUP, concurrency=n), repeat=r, wall_s=w) for r in (0, 1) for n, w in ((1, 2), (2, 1))
    ]
    findings = judge_all([EXPERIMENT], replace(suite, runs=tuple(runs)))
    said = index([EXPERIMENT], suite, findings)
    assert list(cells(said)) == [["made-up", "Are two faster?", "1 supported"]]
    assert links(said) == ["made-up.md"]
    assert "Zuse Z3" in said
    # What tells one boot from another is nobody's business
    assert "secret" not in said


def test_a_page_says_when_fewer_repeats_were_taken_than_declared():
    few = replace(NOTHING, experiments=("made-up",), repeats={"made-up": 3})
    assert "The reference machine ran 3 repeats instead of 5." in experiment_page(EXPERIMENT, few, [])
    assert "with `--quick`, and 3 repeats." in experiment_page(EXPERIMENT, replace(few, quick=True), [])
    as_declared = replace(few, repeats={"made-up": 5})
    assert "The reference machine ran" not in experiment_page(EXPERIMENT, as_declared, [])


def test_a_run_with_a_fault_is_no_figure_on_the_page():
    suite = replace(NOTHING, environment={"cores": 2}, experiments=("made-up",))
    runs = [
        make_run(setup=replace(SETUP, concurrency=n), faults=(Fault("noise", "others were busy: close them"),))
        for n in (1, 2)
    ]
    suite = replace(suite, runs=tuple(runs))
    page = experiment_page(EXPERIMENT, suite, judge_all([EXPERIMENT], suite))
    assert "**Invalid** on the reference machine: others were busy: close them." in page


def test_the_table_goes_between_its_marks_and_touches_nothing_else():
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = spliced(readme, "| new |\n")
    assert once == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    assert spliced(once, "| new |\n") == once
    for broken in ("", BEGIN, f"{END}\n{BEGIN}\n"):
        with pytest.raises(LabError, match="put both where the table belongs"):
            spliced(broken, "")


def test_the_readme_has_both_marks():
    assert re.search(f"{BEGIN}.*{END}", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def run(root: Path, *arguments: str) -> int:
    return SCRIPT["main"](arguments, root)


def test_the_command_stores_a_suite_and_writes_everything_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # Given a README with marks, and a page of an experiment that is no more
    (tmp_path / "README.md").write_text(f"# Title\n{BEGIN}\n{END}\n")
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "gone.md").write_text("old")
    # Without a stored suite it says what to do, in one line, and touches nothing
    assert run(tmp_path) == 2
    assert "scripts/catalogue SUITE" in one_line(capsys)
    assert (tmp_path / FOLDER / "gone.md").exists()
    # When it gets a suite
    suite = plausible_suite(EXPERIMENTS["gil-release"], repeats=2)
    SuiteFile(tmp_path / "suite").save(suite)
    assert run(tmp_path, str(tmp_path / "suite")) == 0
    stored = tmp_path / SCRIPT["STORED"]
    first = stored.read_bytes()
    # Then that is stored and shown
    assert [r.trial for r in load(stored).runs] == [r.trial for r in suite.runs]
    verdicts = [row[2] for row in cells((tmp_path / "README.md").read_text()) if "gil-release/" in row[1]]
    assert all(verdict.startswith(("supported", "refuted", "inconclusive")) for verdict in verdicts)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"README.md", *(f"{n}.md" for n in EXPERIMENTS)}
    # And once more, from the file, from the compressed one or from what is stored, gives the same bytes
    before = files(tmp_path)
    for again in ((str(tmp_path / "suite" / FILE),), (str(stored),), (str(stored.parent),), ()):
        assert run(tmp_path, *again) == 0
        assert stored.read_bytes() == first
        assert files(tmp_path) == before


def without_gil(suite: Suite) -> Suite:
    """The suite as if `--python` had given it an interpreter without a GIL."""
    runs = [replace(run, resources=replace(run.resources, gil_enabled=False)) for run in suite.runs]
    return replace(suite, runs=tuple(runs), environment={**suite.environment, "workers_python": "3.13.5t"})


def test_a_control_says_of_every_claim_whether_its_verdict_is_turned_over():
    # Given two slots that are twice as fast as one with a GIL and no faster without, and the other way round
    def suite(two_s: float) -> Suite:
        runs = [
            make_run(setup=replace(SETUP, concurrency=n), repeat=r, wall_s=wall_s * (1 + r / 1000))
            for r in range(3)
            for n, wall_s in ((1, 2.0), (2, two_s))
        ]
        return replace(NOTHING, experiments=("made-up",), runs=tuple(runs), environment={"python": "3.11.7"})

    fast, slow = suite(1.0), suite(2.0)

    def changes(before: Suite, after: Suite) -> list[str]:
        sides = [(one, judge_all([EXPERIMENT], one)) for one in (before, without_gil(after))]
        page = control_page([EXPERIMENT], sides[0], sides[1])
        assert "sidestep run made-up --python" in page
        assert links(page) == ["no-gil.md", "README.md"]
        ((says, _, _, change),) = cells(page)
        assert says.endswith("`made-up/threads`")
        return [change, page.partition(" verdicts are turned over")[0].rpartition("\n")[2]]

    assert changes(fast, slow) == changes(slow, fast) == ["turned over", "1 of 1"]
    assert changes(fast, fast) == changes(slow, slow) == ["the same", "0 of 1"]
    assert changes(replace(fast, runs=()), slow) == ["undecided", "0 of 1"]


def test_a_suite_of_an_interpreter_without_a_gil_is_stored_beside_the_reference(tmp_path: Path):
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    suite = plausible_suite(EXPERIMENTS["gil-release"], repeats=2)
    SuiteFile(tmp_path / "suite").save(suite)
    SuiteFile(tmp_path / "control").save(without_gil(suite))
    assert run(tmp_path, str(tmp_path / "suite")) == 0
    before = files(tmp_path)
    assert run(tmp_path, str(tmp_path / "control")) == 0
    after = files(tmp_path)
    page = f"{FOLDER}/without-the-gil.md"
    assert after.keys() - before.keys() == {page, SCRIPT["CONTROL"]}
    assert {name: after[name] for name in before} == before
    assert "gil-release/" in after[page].decode()


def test_what_a_bench_printed_is_stored_as_it_is_and_gets_a_page(tmp_path: Path):
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    SuiteFile(tmp_path / "suite").save(plausible_suite(EXPERIMENTS["gil-release"], repeats=2))
    assert run(tmp_path, str(tmp_path / "suite")) == 0
    assert not (tmp_path / PAGE).exists()
    printed = json.dumps(printed_drain())
    (tmp_path / "out.json").write_text(printed)
    assert run(tmp_path, str(tmp_path / "out.json")) == 0
    assert (tmp_path / SCRIPT["BENCHES"]["drain"]).read_text() == printed
    assert "sidestep bench drain" in (tmp_path / PAGE).read_text()


def test_the_command_keeps_what_is_stored_when_it_gets_no_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    SuiteFile(tmp_path / "suite").save(plausible_suite(EXPERIMENTS["gil-release"], repeats=2))
    assert run(tmp_path, str(tmp_path / "suite")) == 0
    capsys.readouterr()
    before = files(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    for bad in (("/no/such/suite",), (str(tmp_path / "broken.json"),), ("--help",), ("one", "two")):
        assert run(tmp_path, *bad) == 2
        assert one_line(capsys)
    (tmp_path / "broken.json").unlink()
    assert files(tmp_path) == before


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("catalogue: ")
    return line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
