"""What must hold of clusters whatever their size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import catalogue
from profiles.hardware import LinkKind
from profiles.schema import ClusterEntry


@settings(max_examples=60, deadline=None)
@given(preset=st.sampled_from(catalogue.preset_names()), nodes=st.integers(1, 600), more_nodes=st.integers(1, 600))
def test_more_nodes_never_change_inner_levels(preset: str, nodes: int, more_nodes: int) -> None:
    small = ClusterEntry.model_validate({"preset": preset, "nodes": nodes}).to_cluster()
    large = ClusterEntry.model_validate({"preset": preset, "nodes": nodes + more_nodes}).to_cluster()
    assert len(large.levels) >= len(small.levels)
    assert large.levels[: len(small.levels) - 1] == small.levels[:-1]
    last, grown = small.levels[-1], large.levels[len(small.levels) - 1]
    assert grown.num_gpus >= last.num_gpus
    assert (grown.name, grown.kind, grown.bytes_per_second, grown.latency_seconds) == (
        last.name,
        last.kind,
        last.bytes_per_second,
        last.latency_seconds,
    )


@settings(max_examples=60, deadline=None)
@given(preset=st.sampled_from(catalogue.preset_names()), nodes=st.integers(1, 600))
def test_kinds_go_outwards_and_the_fast_domain_ends_where_the_network_begins(preset: str, nodes: int) -> None:
    built = ClusterEntry.model_validate({"preset": preset, "nodes": nodes}).to_cluster()
    order = [tuple(LinkKind).index(level.kind) for level in built.levels]
    assert order == sorted(order)
    inside = [level.num_gpus for level in built.levels if level.kind is not LinkKind.NETWORK]
    assert built.fast_domain_size == min(inside, default=1)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_oversubscription_divides_the_bandwidth(factor: int) -> None:
    built = ClusterEntry.model_validate(
        {
            "preset": "dgx-h100",
            "nodes": 64,
            "links": [{"name": "leaf", "nodes": 32}, {"name": "spine", "oversubscription": factor}],
        }
    ).to_cluster()
    assert built.levels[2].bytes_per_second * factor == built.levels[1].bytes_per_second
