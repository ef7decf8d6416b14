"""Parameters and flops as published by Narayanan et al., arXiv 2104.04473, equations 2 and 3."""

import pytest

from planner.layout import Granularity, Recompute
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.required_flops import required_flops_per_sequence
from planner.ranks.placement import shard_model
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step
from profiles.ops import Attention, Gemm
from tests.published.gpt import gpt, unfused_run

SEQ_LEN, VOCAB = 2048, 51200
# Table 1: billions of parameters, heads, hidden size, layers.
TABLE_1 = [
    (1.7, 24, 2304, 24),
    (3.6, 32, 3072, 30),
    (7.5, 32, 4096, 36),
    (18.4, 48, 6144, 40),
    (39.1, 64, 8192, 48),
    (76.1, 80, 10240, 60),
    (145.6, 96, 12288, 80),
    (310.1, 128, 16384, 96),
    (529.6, 128, 20480, 105),
    (1008.0, 160, 25600, 128),
]


@pytest.mark.parametrize(("billions", "heads", "hidden", "layers"), TABLE_1)
def test_equation_2_counts_our_parameters_but_for_the_final_norm(
    billions: float, heads: int, hidden: int, layers: int
) -> None:
    model = gpt(hidden=hidden, heads=heads, layers=layers)
    published = 12 * layers * hidden**2 + 13 * layers * hidden + (VOCAB + SEQ_LEN) * hidden
    ours = graph_parameters(model, build_graph(model, unfused_run(batch=1)))
    assert ours == published + 2 * hidden  # scale and shift of the final norm
    assert round(ours / 1e9, 1) == billions


@pytest.mark.parametrize(("heads", "hidden", "layers"), [row[1:] for row in TABLE_1])
def test_equation_3_is_what_a_step_with_full_recomputation_executes(heads: int, hidden: int, layers: int) -> None:
    batch = 4
    model = gpt(hidden=hidden, heads=heads, layers=layers)
    graph = build_graph(model, unfused_run(batch=batch))
    sharding = Sharding(tp=1, sequence_parallel=False, micro_batch_size=batch, seq_len=SEQ_LEN)
    rank_model = shard_model(graph, sharding)
    (layer,) = rank_model.layers
    again = layer.recomputed_steps(Recompute(granularity=Granularity.FULL))
    executed = layers * flops((*layer.forward, *layer.backward, *again))
    executed += flops((*rank_model.head.forward, *rank_model.head.backward))
    # F = 96 B s l h^2 (1 + s / 6h + V / 16lh), its terms multiplied out.
    linear, scores, logits = 96 * layers * hidden**2, 16 * layers * SEQ_LEN * hidden, 6 * hidden * VOCAB
    assert executed == batch * SEQ_LEN * (linear + scores + logits)


@pytest.mark.parametrize(("heads", "hidden", "layers"), [row[1:] for row in TABLE_1])
def test_required_flops_are_three_quarters_of_the_layers_with_half_the_scores(
    heads: int, hidden: int, layers: int
) -> None:
    model = gpt(hidden=hidden, heads=heads, layers=layers)
    graph = build_graph(model, unfused_run(batch=1))
    linear, logits = 72 * layers * hidden**2, 6 * hidden * VOCAB
    causal_scores = 6 * layers * (SEQ_LEN + 1) * hidden  # equation 3 has 12 s for all s^2 pairs; s (s + 1) / 2 count
    ours = required_flops_per_sequence(model, graph, seq_len=SEQ_LEN)
    assert ours == SEQ_LEN * (linear + causal_scores + logits)


def flops(steps: tuple[Step, ...]) -> int:
    """Return the flops of the products among `steps`."""
    return sum(step.compute.flops for step in steps if isinstance(step.compute, Gemm | Attention))
