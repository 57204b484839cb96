"""Every experiment of the catalogue can be shown, whatever it measures."""

from __future__ import annotations

import re
from functools import cache

import pytest

from experiments.catalogue import EXPERIMENTS
from lab.model import Suite
from lab.report.page import page
from lab.verdict import judge_all
from tests.simulator import run_experiment
from tests.test_report import Outline, printed

each = pytest.mark.parametrize("name", EXPERIMENTS)


@cache
def suite_of(name: str) -> Suite:
    return run_experiment(EXPERIMENTS[name], quick=True, cores=2)


@cache
def page_of(name: str) -> str:
    return page(suite_of(name), judge_all([EXPERIMENTS[name]], suite_of(name)), [EXPERIMENTS[name]])


@each
def test_every_experiment_has_a_page_with_all_its_claims(name: str) -> None:
    outline = Outline(page_of(name))
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.targets) <= set(outline.ids)
    assert outline.loads == []
    for claim in EXPERIMENTS[name].claims:
        assert claim.says in outline.reads
    assert not re.search(r"\b(inf|nan)\b", outline.reads)


@each
def test_every_experiment_fits_the_terminal(name: str) -> None:
    prints = printed(suite_of(name), EXPERIMENTS[name])
    assert max(map(len, prints.splitlines())) <= 80
    assert not re.search(r"\b(inf|nan)\b", prints)
    for claim in EXPERIMENTS[name].claims:
        assert claim.id in prints
