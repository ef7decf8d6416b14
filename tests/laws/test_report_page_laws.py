"""Laws of the page of a plan: it loads nothing, no text becomes markup, every figure is there, the same bytes again."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cli.plan_file import read_plan
from cli.render import milliseconds
from cli.report_page.page import report_page
from planner.evaluation.described import evaluation_of
from planner.plans.plan import Certainty, Plan, PlannedLayout
from planner.units import GIB
from tests.pages import Node, read_page
from tests.unit.cli.samples import infeasible_plan, sample_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = sorted(path.parent.name for path in EXAMPLES.glob("*/spec.yaml"))
MOST_BYTES = 1_000_000
HOSTILE = "</style><script>alert('x')</script><img src=\"https://example.org/a.png\" onload='x()'>&lt;\"'"
LOADING = re.compile(r"@import|@font-face|url\((?!#)|image-set", re.IGNORECASE)


def page_of(plan: Plan) -> str:
    return report_page(plan, evaluation_of(plan, plan.best.layout) if plan.plans else None)


def check_loads_nothing(page: Node) -> None:
    """Assert that a page needs nothing but itself, and that its links lead somewhere in it."""
    nodes = page.all()
    anchors = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(set(anchors)) == len(anchors)
    loading = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "use", "image"}
    assert loading.isdisjoint(node.tag for node in nodes)
    for node in nodes:
        for name, value in node.attributes.items():
            assert not name.startswith("on"), name
            assert name not in {"src", "srcset", "background", "action"}
            assert not LOADING.search(value), value
            if name.endswith("href"):
                assert value.removeprefix("#") in anchors
            if value.startswith("url("):
                assert value[5:-1] in anchors
    (style,) = page.all("style")
    assert not LOADING.search(style.text)
    (policy,) = (node for node in page.all("meta") if "http-equiv" in node.attributes)
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("case", CASES)
def test_the_page_of_an_example_is_whole(case: str) -> None:
    plan = read_plan(EXAMPLES / case / "expected")
    text = page_of(plan)
    assert len(text.encode()) < MOST_BYTES
    page = read_page(text)
    check_loads_nothing(page)

    tables = {frame.attributes["aria-label"]: frame for frame in page.with_class("scroll")}
    head, *rows = tables["Memory by rank, phase and term"].rows()
    figures = Counter(
        (row[0], row[1], term, cell) for row in rows for term, cell in zip(head[2:-2], row[2:-2], strict=True) if cell
    )
    assert figures == Counter(
        (f"rank {line.rank}", line.phase.value, line.term, f"{line.num_bytes / GIB:,.2f}") for line in plan.best.memory
    )
    exact = [int(data.attributes["value"]) for data in tables["Memory by rank, phase and term"].all("data")]
    assert not Counter(line.num_bytes for line in plan.best.memory) - Counter(exact)

    everything = page.text
    for planned in (*plan.plans, *([plan.baseline] if plan.baseline is not None else [])):
        assert milliseconds(planned.step_seconds) in everything
        assert f"{planned.peak_memory_bytes / GIB:,.2f} GiB" in everything
    for line in plan.best.time:
        assert [line.term, "", milliseconds(line.seconds)] in [row[:3] for row in page.rows()]
        assert all(phrase in everything for phrase in line.source.split("; ")), "what notes share is said once"
    for text_of in (*plan.best.assumptions, *plan.search.pruned, *(line.source for line in plan.best.memory)):
        assert text_of in everything
    assert "made with others" not in everything


def test_the_same_plan_gives_the_same_bytes_in_any_process() -> None:
    command = [sys.executable, "-m", "cli.start", "report", str(EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "expected")]
    first, second = (
        subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert first.startswith(b"<!DOCTYPE html>")


def hostile_twin(plan: Plan, text: str) -> Plan:
    """Return a plan with this text in all the places whose words are not our own, or come from a file."""

    def twisted(planned: PlannedLayout) -> PlannedLayout:
        return replace(
            planned,
            memory=tuple(replace(line, source=line.source + text) for line in planned.memory),
            time=tuple(replace(line, source=line.source + text) for line in planned.time),
            assumptions=tuple(words + text for words in planned.assumptions),
        )

    infeasible = plan.infeasible
    if infeasible is not None:
        infeasible = replace(
            infeasible,
            binding=infeasible.binding + text,
            nearest=twisted(infeasible.nearest) if infeasible.nearest is not None else None,
            relaxations=tuple(
                replace(entry, change=entry.change + text, path=entry.path + text, value=entry.value + text)
                for entry in infeasible.relaxations
            ),
        )
    return replace(
        plan,
        model=replace(plan.model, name=plan.model.name + text),
        cluster=replace(
            plan.cluster,
            name=plan.cluster.name + text,
            device=replace(plan.cluster.device, name=plan.cluster.device.name + text),
        ),
        search=replace(
            plan.search,
            pruned={reason + text: number for reason, number in plan.search.pruned.items()},
            dimensions=tuple(name + text for name in plan.search.dimensions),
        ),
        plans=tuple(twisted(planned) for planned in plan.plans),
        certainty=Certainty(half_width=0.1, source="runs" + text, ratio_half_width=0.1, ratio_source="pairs" + text),
        infeasible=infeasible,
    )


@pytest.mark.parametrize("plan", [sample_plan(), infeasible_plan()], ids=["a plan", "nothing fits"])
def test_no_text_becomes_markup(plan: Plan) -> None:
    evaluation = evaluation_of(plan, plan.best.layout) if plan.plans else None
    tame, wild = (read_page(report_page(hostile_twin(plan, text), evaluation)) for text in ("", HOSTILE))
    assert [node.tag for node in wild.all()] == [node.tag for node in tame.all()]
    assert [sorted(node.attributes) for node in wild.all()] == [sorted(node.attributes) for node in tame.all()]
    check_loads_nothing(wild)
    (title,) = wild.all("h1")
    assert title.text.strip() == f"{plan.model.name}{HOSTILE} on {plan.cluster.name}{HOSTILE}"


def test_the_page_where_nothing_fits_says_why_and_what_would() -> None:
    page = read_page(page_of(infeasible_plan()))
    check_loads_nothing(page)
    assert [heading.text for heading in page.all("h2")] == [
        "Why nothing fits",
        "Memory of the closest attempt",
        "Search",
    ]
    for words in (
        "Infeasible: no layout fits.",
        "Memory: no layout keeps weights and activations below 5.00 GiB.",
        "1.00 GiB are missing on the heaviest rank.",
        "2 nodes instead of 1",
        "--set cluster.nodes=2",
    ):
        assert words in page.text


def test_a_plan_made_with_other_costs_is_told_from_its_picture() -> None:
    # The figures of the sample are made up, so that its timeline is not theirs.
    page = read_page(page_of(sample_plan()))
    (warning,) = [line.text for line in page.with_class("bad")]
    assert re.fullmatch(
        r"The picture is simulated with today's costs and takes [\d.]+ ms; the plan, "
        r"made with others, says 200\.0 ms\. Plan again\.",
        warning,
    )


def test_the_certificate_stands_in_words() -> None:
    plan = replace(sample_plan(), gap=0.034, bound=0.1932)
    words = [line.text for line in read_page(page_of(plan)).all("p")]
    assert "Bound: no layout searched has a step-time better than 193.2 ms. Gap: 3.4 %." in words
    assert "10 layouts fell to 2 reasons, most (8) to: tp does not divide the heads. All reasons" in words
