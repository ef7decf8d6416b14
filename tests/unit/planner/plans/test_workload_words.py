"""Experts and documents in words."""

from dataclasses import replace

import pytest

from planner.layout import Layout
from planner.plans.workload_words import documents_in_words, experts_in_words
from planner.requests.workload import DEFAULT_ROUTING_SKEW, DocumentLengths, Packing
from tests.unit.cli.samples import sample_plan, spread_layout


@pytest.mark.parametrize(
    ("layout", "skew", "words"),
    [
        (
            spread_layout(),
            DEFAULT_ROUTING_SKEW,
            "etp 1 x ep 8 x edp 4; routing skew 1.2 (assumed): load of the busiest rank over the mean",
        ),
        (
            replace(spread_layout(), etp=2),
            1.5,
            "etp 2 x ep 8 x edp 2; routing skew 1.5 (given): load of the busiest rank over the mean",
        ),
        (replace(spread_layout(), ep=1), 1.2, "etp 1 x ep 1 x edp 32; every rank holds all of them"),
    ],
)
def test_the_experts_grid_is_said_with_its_assumption(layout: Layout, skew: float, words: str) -> None:
    assert experts_in_words(layout, replace(sample_plan().request.workload, routing_skew=skew)) == words


def test_documents_are_said_by_their_mean() -> None:
    documents = DocumentLengths(lengths=(1000, 3000), weights=(0.25, 0.75), packing=Packing.PACKED)
    assert documents_in_words(documents) == "packed documents of 2,500 tokens on average"
