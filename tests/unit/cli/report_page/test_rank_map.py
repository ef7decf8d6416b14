"""The map of ranks: rows hold every node once, repeated ones are counted, axes are what the grids are."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.report_page.markup import as_html, element
from cli.report_page.rank_map import grid_axes, node_rows, rank_map_elements
from planner.layout import Layout, Schedule, stages_from_counts
from planner.plans.rank_places import DENSE_AXES, EXPERT_AXES, rank_places
from tests.pages import read_elements
from tests.unit.cli.samples import sample_layout


def layout_of(*, tp: int = 1, cp: int = 1, dp: int = 1, pp: int = 1, ep: int = 1, etp: int = 1) -> Layout:
    return replace(
        sample_layout(),
        tp=tp,
        cp=cp,
        dp=dp,
        pp=pp,
        ep=ep,
        etp=etp,
        schedule=Schedule.ONE_F_ONE_B if pp > 1 else Schedule.NO_PIPELINE,
        stages=stages_from_counts((1,) * pp),
    )


DEGREE = st.sampled_from([1, 2, 3, 4, 8])


@settings(max_examples=60, deadline=None)
@given(tp=DEGREE, cp=DEGREE, dp=DEGREE, pp=DEGREE, gpus=st.sampled_from([1, 2, 4, 8]))
def test_rows_hold_every_node_once_and_only_nodes_that_look_alike(
    tp: int, cp: int, dp: int, pp: int, gpus: int
) -> None:
    layout = layout_of(tp=tp, cp=cp, dp=dp, pp=pp)
    if layout.world_size % gpus:
        return
    rows = node_rows(layout, gpus_per_node=gpus)
    assert [node for row in rows for node in row.nodes] == list(range(layout.world_size // gpus))
    for row in rows:
        for node in row.nodes:
            places = rank_places(layout, range(node * gpus, (node + 1) * gpus))
            assert {place.dense[3] for place in places} == set(row.pipeline_ranks)
            first = places[0]
            moved = tuple(
                tuple(
                    own - base for own, base in zip(place.dense + place.expert, first.dense + first.expert, strict=True)
                )
                for place in places
            )
            assert moved == row.shape


@settings(max_examples=40, deadline=None)
@given(tp=DEGREE, cp=DEGREE, dp=DEGREE, pp=DEGREE)
def test_axes_name_the_group_of_rank_0_and_the_nodes_of_any_group(tp: int, cp: int, dp: int, pp: int) -> None:
    layout = layout_of(tp=tp, cp=cp, dp=dp, pp=pp)
    places = rank_places(layout, range(layout.world_size))
    for axes, of in ((DENSE_AXES, "dense"), (EXPERT_AXES, "expert")):
        for index, axis in enumerate(grid_axes(layout, axes, gpus_per_node=4)):
            groups: dict[tuple[int, ...], list[int]] = {}
            for place in places:
                own = getattr(place, of)
                groups.setdefault((*own[:index], *own[index + 1 :]), []).append(place.rank)
            assert list(axis.members) == groups[0, 0, 0]
            assert axis.most_nodes == max(len({rank // 4 for rank in group}) for group in groups.values())


def test_sixteen_thousand_gpus_take_a_few_rows() -> None:
    layout = layout_of(tp=8, cp=2, dp=64, pp=16)
    assert layout.world_size == 16_384
    elements = rank_map_elements(layout, gpus_per_node=8, has_experts=False)
    page = read_elements(*elements)
    assert [node.text for node in page.all("h4")] == [
        *(f"node {node}" for node in (0, 1, 127)),
        *(f"node {node}" for node in (128, 129, 255)),
        *(f"node {node}" for node in (1920, 1921, 2047)),
    ]
    assert [more.text for more in page.with_class("more")] == [
        "+ 125 nodes that look alike: nodes 2 to 126",
        "+ 125 nodes that look alike: nodes 130 to 254",
        "+ 125 nodes that look alike: nodes 1922 to 2046",
    ]
    assert [line.text for line in page.with_class("quiet")] == [
        "Pipeline ranks 2 to 14: likewise, nodes 256 to 1919, 128 nodes each."
    ]
    assert page.rows()[:5] == [
        ["axis", "size", "distance", "a group stands", "the group of rank 0"],
        ["tp", "8", "1", "inside a node", "0, 1, 2, 3, 4, 5, 6, 7"],
        ["cp", "2", "8", "up to 2 nodes", "0, 8"],
        ["dp", "64", "16", "up to 64 nodes", "0, 16, 32, ..., 1008"],
        ["pp", "16", "1024", "up to 16 nodes", "0, 1024, 2048, ..., 15360"],
    ]
    assert len(as_html(element("div", *elements))) < 30_000


def test_gpus_say_where_they_stand_in_both_grids() -> None:
    layout = layout_of(tp=2, dp=4, pp=2, ep=4, etp=1)
    page = read_elements(*rank_map_elements(layout, gpus_per_node=8, has_experts=True))
    cells = [[part.text for part in gpu.all()] for gpu in page.with_class("gpu")]
    assert cells[0] == ["GPU 0", "tp 0 dp 0", "ep 0 edp 0"]
    assert cells[5] == ["GPU 5", "tp 1 dp 2", "ep 1 edp 1"]
    assert cells[8] == ["GPU 8", "tp 0 dp 0", "ep 0 edp 0"]
    assert [title.text for title in page.all("h3")][:2] == ["Pipeline rank 0: node 0", "Pipeline rank 1: node 1"]


def test_a_node_of_several_pipeline_ranks_says_so_on_each_gpu() -> None:
    page = read_elements(*rank_map_elements(layout_of(tp=2, pp=4), gpus_per_node=8, has_experts=False))
    assert page.all("h3")[0].text == "Pipeline ranks 0 to 3: node 0"
    assert [gpu.all()[1].text for gpu in page.with_class("gpu")][1:3] == ["tp 1 pp 0", "tp 0 pp 1"]


def test_nodes_that_are_all_unlike_are_drawn_up_to_a_limit_and_counted() -> None:
    page = read_elements(*rank_map_elements(layout_of(tp=3, dp=64), gpus_per_node=8, has_experts=False))
    assert len(page.with_class("node")) == 24
    assert "0 more nodes" not in [text.text for text in page.all("p")]
    larger = read_elements(*rank_map_elements(layout_of(tp=3, dp=128), gpus_per_node=8, has_experts=False))
    assert "24 more nodes, each unlike the one before it, are not drawn." in [text.text for text in larger.all("p")]


@pytest.mark.parametrize(("dp", "members"), [(8, "0, 1, 2, 3, 4, 5, 6, 7"), (9, "0, 1, 2, ..., 8")])
def test_long_groups_are_shortened(dp: int, members: str) -> None:
    page = read_elements(*rank_map_elements(layout_of(dp=dp), gpus_per_node=1, has_experts=False))
    assert page.rows()[3][-1] == members
