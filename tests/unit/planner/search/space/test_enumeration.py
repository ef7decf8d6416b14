"""The outer space: its size, its rules (each satisfied, just satisfied, broken), its account."""

from dataclasses import fields, replace

import numpy as np
import pytest

from planner.frameworks.capabilities import CAPABILITIES, MEGATRON
from planner.layout import Granularity, Recompute
from planner.models.blocks import DenseFeedForward, SelfAttention
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.request import Bounds, Constraints, Target
from planner.requests.workload import AttentionKernel, DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload
from planner.search.space.dimensions import (
    divisors,
    interleaved_counts,
    partial_recompute_layers,
    recompute_choices,
    virtual_degrees,
    zero_stages_alone,
)
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.points import Scope
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.kinds import even_workload, graph_of

NONE = Constraints()
ANY_TP = Constraints(degrees={"tp": Bounds(minimum=1)})
LORA_RUN = replace(tiny_workload(), method=TrainMethod.LORA, lora=Lora(rank=4, alpha=8.0, target_modules=("qkv",)))


def space(
    *,
    model: ModelSpec | None = None,
    workload: TrainWorkload | None = None,
    constraints: Constraints = ANY_TP,
    num_nodes: int = 2,
    target: Target = Target.MEGATRON,
    counts: bool = True,
) -> Space:
    model, workload = model or tiny_dense_model(), workload or tiny_workload()
    cluster = two_node_cluster(num_nodes=num_nodes)
    return enumerate_layouts(
        Scope(
            model=model,
            graph=build_graph(model, workload),
            num_gpus=cluster.world_size,
            fast_domain_size=cluster.fast_domain_size,
            workload=workload,
            constraints=constraints,
            capabilities=CAPABILITIES[target],
        ),
        counts=counts,
    )


def model_with(*, heads: int = 8, groups: int = 4, head_dim: int = 8, width: int = 160, layers: int = 4) -> ModelSpec:
    model = tiny_dense_model()
    block = model.runs[0].block
    assert isinstance(block.feed_forward, DenseFeedForward)
    block = replace(
        block,
        mixer=SelfAttention(num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim),
        feed_forward=replace(block.feed_forward, intermediate_size=width),
    )
    return replace(model, runs=(BlockRun(block=block, count=layers),))


def choices(
    *, model: ModelSpec | None = None, workload: TrainWorkload | None = None, target: Target = Target.MEGATRON
) -> tuple[Recompute, ...]:
    workload = workload or tiny_workload()
    return recompute_choices(build_graph(model or tiny_dense_model(), workload), workload, CAPABILITIES[target])


def values(found: Space, dimension: str) -> set[int]:
    return set(getattr(found.points, f"{dimension}_X").tolist())


def test_divisors() -> None:
    assert divisors(1) == (1,)
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(49) == (1, 7, 49)


def test_ranks_are_ordered_both_ways_where_replicas_tile_the_fast_domain() -> None:
    found = space(constraints=Constraints(degrees={"cp": Bounds(allowed=(1,))}))  # two nodes of 4 GPUs
    points = found.points
    other = points.where(points.replicas_outermost_X == 1)
    assert len(other) > 0
    assert ((other.pp_X > 1) & (other.dp_X > 1) & (other.state_replicas_X == 1)).all()
    assert (4 % (other.tp_X * other.pp_X) == 0).all()
    one_node = space(num_nodes=1)
    assert not one_node.points.replicas_outermost_X.any()
    assert not space(target=Target.DEEPSPEED).points.replicas_outermost_X.any()


def test_every_point_uses_every_gpu_and_the_whole_batch_and_none_is_there_twice() -> None:
    found = space()
    points = found.points
    assert (points.tp_X * points.pp_X * points.dp_X == 8).all()
    assert (points.micro_batch_size_X * points.num_microbatches_X * points.dp_X == 16).all()
    rows = np.stack([getattr(points, name) for name in points.__dataclass_fields__], axis=1)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_the_account_is_complete() -> None:
    found = space()
    assert sum(found.pruned.values()) + len(found.points) == found.considered
    assert all(count > 0 for count in found.pruned.values())


@pytest.mark.parametrize("target", [Target.MEGATRON, Target.DEEPSPEED])
def test_the_points_are_the_same_where_the_others_are_not_counted(target: Target) -> None:
    counted, alone = (space(target=target, counts=counts) for counts in (True, False))
    assert len(counted.points) > 0
    for entry in fields(counted.points):
        assert np.array_equal(getattr(counted.points, entry.name), getattr(alone.points, entry.name))
    assert (alone.considered, dict(alone.pruned), alone.unfit) == (0, {}, 0)
    assert counted.considered > 0


def test_the_size_of_a_small_space_by_hand() -> None:
    # One node of 4 GPUs, 3 layers, batch 4, no recompute but full: none, mlp, full and some layers recomputed whole.
    found = space(model=model_with(layers=3), workload=replace(tiny_workload(), global_batch_size=4), num_nodes=1)
    recomputes = len(choices())

    def count(*, tp: int, cp: int, pp: int) -> int:
        dp = 4 // (tp * cp * pp)
        total = 0
        for vpp in virtual_degrees(3, pp):
            recomputed = recomputes + len(partial_recompute_layers(model_with(layers=3), num_stages=pp * vpp))
            total += len(divisors(4 // dp)) * (2 if tp > 1 else 1) * (4 if dp * cp > 1 else 1) * recomputed
        return total * len(divisors(cp))  # so many ways of ulysses

    degrees = (1, 2, 4)
    meshes = [(tp, cp, pp) for tp in degrees for cp in degrees for pp in degrees if tp * cp * pp <= 4]
    assert found.considered == sum(count(tp=tp, cp=cp, pp=pp) for tp, cp, pp in meshes)


# Each rule: satisfied, just satisfied, broken.


@pytest.mark.parametrize(("heads", "groups", "degrees"), [(8, 8, {1, 2, 4, 8}), (4, 4, {1, 2, 4}), (6, 6, {1, 2})])
def test_tp_divides_the_attention_heads(heads: int, groups: int, degrees: set[int]) -> None:
    found = space(model=model_with(heads=heads, groups=groups))
    assert values(found, "tp") == degrees
    assert ("num_attention_heads is not a multiple of tp x ulysses" in found.pruned) == (degrees != {1, 2, 4, 8})


@pytest.mark.parametrize(("groups", "degrees"), [(8, {1, 2, 4, 8}), (1, {1, 2, 4, 8}), (3, {1})])
def test_tp_divides_the_key_value_heads_or_is_divided_by_them(groups: int, degrees: set[int]) -> None:
    found = space(model=model_with(heads=24, groups=groups))
    assert values(found, "tp") == degrees
    reason = "num_key_value_heads is neither a multiple nor a divisor of tp"
    assert (reason in found.pruned) == (groups == 3)


def test_tp_divides_q_k_and_v_together() -> None:
    # 8 query heads and 1 key/value head of 2: 20 rows split over 4 ranks, not over 8.
    found = space(model=model_with(groups=1, head_dim=2))
    assert values(found, "tp") == {1, 2, 4}
    assert "the width of q, k and v together is not a multiple of tp" in found.pruned


@pytest.mark.parametrize(("width", "degrees"), [(160, {1, 2, 4, 8}), (8, {1, 2, 4, 8}), (12, {1, 2, 4})])
def test_tp_divides_the_feed_forward(width: int, degrees: set[int]) -> None:
    found = space(model=model_with(width=width))
    assert values(found, "tp") == degrees
    assert ("intermediate_size is not a multiple of tp" in found.pruned) == (width == 12)


def test_tp_stays_in_the_fast_domain_unless_it_is_pinned() -> None:
    assert values(space(constraints=NONE), "tp") == {1, 2, 4}
    assert values(space(constraints=ANY_TP), "tp") == {1, 2, 4, 8}
    assert "tp leaves the fast domain (pin tp to allow it)" in space(constraints=NONE).pruned


@pytest.mark.parametrize(("batch", "degrees"), [(16, {1, 2, 4, 8}), (8, {1, 2, 4, 8}), (12, {1, 2, 4})])
def test_dp_divides_the_batch(batch: int, degrees: set[int]) -> None:
    found = space(workload=replace(tiny_workload(), global_batch_size=batch))
    assert values(found, "dp") == degrees
    assert ("global_batch_size is not a multiple of dp" in found.pruned) == (batch == 12)


@pytest.mark.parametrize(("layers", "degrees"), [(9, {1, 2, 4, 8}), (8, {1, 2, 4, 8}), (7, {1, 2, 4})])
def test_there_are_no_more_stages_than_layers(layers: int, degrees: set[int]) -> None:
    found = space(model=model_with(layers=layers))
    assert values(found, "pp") == degrees
    assert ("more pipeline stages than layers" in found.pruned) == (layers == 7)


def test_interleaving_needs_whole_groups_of_micro_batches() -> None:
    points = space(model=model_with(layers=8)).points
    interleaved = points.where(points.vpp_X > 1)
    assert len(interleaved)
    assert (interleaved.num_microbatches_X % interleaved.pp_X == 0).all()
    assert (interleaved.num_microbatches_X == interleaved.pp_X).any()


@pytest.mark.parametrize(("seq_len", "split"), [(128, {1, 2, 4, 8}), (8, {1, 2, 4, 8}), (12, {1, 2, 4})])
def test_sequence_parallelism_splits_the_sequence(seq_len: int, split: set[int]) -> None:
    found = space(workload=replace(tiny_workload(), seq_len=seq_len))
    points = found.points
    assert set(points.tp_X[(points.sequence_parallel_X == 1) | (points.tp_X == 1)].tolist()) == split
    assert ("seq_len is not a multiple of tp cp" in found.pruned) == (seq_len == 12)
    assert not points.sequence_parallel_X[points.tp_X == 1].any()


def test_gradients_and_weights_are_sharded_only_with_data_parallelism_alone() -> None:
    points = space().points
    sharded = points.where(points.zero_stage_X >= 2)
    assert set(sharded.dp_X.tolist()) == {8}
    adapters = space(workload=LORA_RUN).points
    assert values(space(workload=LORA_RUN), "zero_stage") == {0, 1}
    assert len(adapters)


@pytest.mark.parametrize(("width", "degrees"), [(512, {1, 2, 4, 8}), (128, {1, 2, 4, 8}), (160, {1, 2})])
def test_fp8_wants_multiples_of_16_features(width: int, degrees: set[int]) -> None:
    workload = replace(tiny_workload(), precision=Precision.FP8_DELAYED)
    found = space(model=model_with(groups=8, head_dim=64, width=width), workload=workload)
    assert values(found, "tp") == degrees
    assert ("fp8-delayed needs the features of a rank to be a multiple of 16" in found.pruned) == (width == 160)


@pytest.mark.parametrize(("seq_len", "fewest"), [(256, 1), (128, 1), (64, 2), (16, 8)])
def test_fp8_wants_multiples_of_16_tokens(seq_len: int, fewest: int) -> None:
    workload = replace(tiny_workload(), precision=Precision.FP8_DELAYED, seq_len=seq_len)
    found = space(model=model_with(groups=8, head_dim=64, width=512), workload=workload)
    points = found.points
    split_over_8 = points.where((points.sequence_parallel_X == 1) & (points.tp_X == 8))
    assert split_over_8.micro_batch_size_X.min() == fewest
    assert ("fp8-delayed needs the tokens of a rank to be a multiple of 16" in found.pruned) == (fewest > 1)


@pytest.mark.parametrize(
    ("precision", "multiple"),
    [
        (Precision.FP8_DELAYED, 16),
        (Precision.FP8_TENSORWISE, 16),
        (Precision.FP8_BLOCKWISE, 16),
        (Precision.FP8_MXFP8, 32),
    ],
)
def test_each_fp8_recipe_has_its_multiple_of_tokens_features_and_hidden_size(
    precision: Precision, multiple: int
) -> None:
    workload = replace(tiny_workload(), precision=precision)
    fitting = replace(model_with(groups=8, head_dim=multiple, width=8 * multiple), hidden_size=multiple)
    found = space(model=fitting, workload=workload)
    assert values(found, "tp") == {1, 2, 4, 8}
    for wrong in (multiple // 2, 3 * multiple // 2):
        odd = space(model=replace(fitting, hidden_size=wrong), workload=workload)
        assert len(odd.points) == 0
        assert f"{precision} needs the features of a rank to be a multiple of {multiple}" in odd.pruned
    narrow = space(model=replace(model_with(groups=8, head_dim=multiple, width=4 * multiple)), workload=workload)
    assert values(narrow, "tp") == {1, 2, 4}
    assert f"{precision} needs the features of a rank to be a multiple of {multiple}" in narrow.pruned
    short = space(model=fitting, workload=replace(workload, seq_len=multiple // 2, global_batch_size=8))
    assert values(short, "micro_batch_size").isdisjoint({1})
    assert f"{precision} needs the tokens of a rank to be a multiple of {multiple}" in short.pruned


def test_states_below_fp32_come_with_the_sharded_optimizer() -> None:
    found = space(workload=replace(tiny_workload(), moment_dtype=DType.BF16))
    assert 0 not in values(found, "zero_stage")
    assert "optimizer states below fp32 need a sharded optimizer" in found.pruned
    alone = found.points.where(found.points.dp_X == 1)
    assert set(alone.zero_stage_X.tolist()) == {1}


def test_where_a_target_always_shards_one_replica_alone_is_legal() -> None:
    found = space(target=Target.DEEPSPEED, num_nodes=1)
    alone = found.points.where(found.points.dp_X * found.points.cp_X == 1)
    degrees = set(zip(alone.tp_X.tolist(), alone.pp_X.tolist(), alone.zero_stage_X.tolist(), strict=True))
    assert degrees == {(4, 1, 1), (4, 1, 2), (1, 4, 1)}


def test_one_replica_alone_has_zero_stage_2_where_1_keeps_16_bit_gradients() -> None:
    accumulated_in_16_bit = replace(tiny_workload(), gradient_dtype=DType.BF16)
    found = space(target=Target.DEEPSPEED, num_nodes=1, workload=accumulated_in_16_bit)
    alone = found.points.where(found.points.dp_X * found.points.cp_X == 1)
    assert set(alone.zero_stage_X.tolist()) == {1}
    assert zero_stages_alone(tiny_workload(), CAPABILITIES[Target.DEEPSPEED], offloads=False) == (1, 2)
    assert zero_stages_alone(tiny_workload(), CAPABILITIES[Target.MEGATRON], offloads=False) == (0,)


def test_only_adam_is_sharded() -> None:
    found = space(workload=replace(tiny_workload(), optimizer=Optimizer.SGD))
    assert values(found, "zero_stage") == {0}
    assert f"{MEGATRON.title}: states of sgd are not sharded" in found.pruned


def test_a_schedule_that_is_too_long_is_not_simulated() -> None:
    found = space(workload=replace(tiny_workload(), global_batch_size=1 << 20))
    points = found.points
    assert "schedule longer than the simulator runs" in found.pruned
    assert (2 * points.num_microbatches_X * points.vpp_X * points.pp_X <= 1_000_000).all()


# Constraints.


@pytest.mark.parametrize(
    ("dimension", "bounds", "left"),
    [
        ("tp", Bounds(allowed=(2,)), {2}),
        ("pp", Bounds(minimum=2, maximum=4), {2, 4}),
        ("dp", Bounds(maximum=1), {1}),
        ("zero_stage", Bounds(allowed=(1,)), {1}),
        ("micro_batch_size", Bounds(minimum=16), {16}),
        ("num_microbatches", Bounds(allowed=(4,)), {4}),
        ("vpp", Bounds(minimum=2), {2}),
    ],
)
def test_a_pin_leaves_what_it_admits_and_counts_the_rest(dimension: str, bounds: Bounds, left: set[int]) -> None:
    degrees = {"tp": Bounds(minimum=1)} | {dimension: bounds}
    found = space(constraints=Constraints(degrees=degrees))
    assert values(found, dimension) == left
    assert found.pruned[f"constraints: {dimension}"] > 0


@pytest.mark.parametrize(
    ("allowed", "indices", "partial"),
    [
        (("none",), {0}, False),
        (("selective",), {1}, False),
        (("full",), {0, 2}, True),
        (("none", "full"), {0, 2}, True),
    ],
)
def test_recompute_can_be_pinned(allowed: tuple[str, ...], indices: set[int], partial: bool) -> None:
    found = space(constraints=Constraints(recompute=allowed))
    points = found.points
    assert set(points.recompute_X.tolist()) == indices
    assert (points.recompute_layers_X > 0).any() == partial
    if "none" not in allowed:
        assert (points.recompute_layers_X[points.recompute_X == 0] > 0).all()


@pytest.mark.parametrize("wanted", [False, True])
def test_sequence_parallelism_can_be_pinned_and_means_nothing_at_tp_1(wanted: bool) -> None:
    points = space(constraints=Constraints(sequence_parallel=wanted)).points
    assert set(points.sequence_parallel_X[points.tp_X > 1].tolist()) == {int(wanted)}
    assert 1 in points.tp_X


# Choices.


def test_recomputing_the_attention_core_is_a_choice_only_where_scores_are_kept() -> None:
    flash = choices()
    unfused = choices(workload=replace(tiny_workload(), attention_kernel=AttentionKernel.UNFUSED))
    assert [choice.modules for choice in flash] == [(), ("mlp",), ()]
    assert [choice.modules for choice in unfused] == [(), ("core_attn",), ("mlp",), ("core_attn", "mlp"), ()]
    for found in (flash, unfused):
        assert found[0].granularity is Granularity.NONE
        assert found[-1].granularity is Granularity.FULL


def test_norms_that_are_layers_of_their_own_are_recomputed_alone_and_beside_everything_else() -> None:
    found = [
        frozenset(choice.modules) for choice in recompute_choices(graph_of("deepseek-v3"), even_workload(), MEGATRON)
    ]
    without = [modules for modules in found if "layernorm" not in modules]
    assert len(set(found)) == len(found) - 1  # nothing and everything name no modules
    assert {modules | {"layernorm"} for modules in without} == {modules for modules in found if "layernorm" in modules}
    assert frozenset({"layernorm", "mla_up_proj", "moe_act"}) in found


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "counts"),
    [
        (8, 4, (2, 2, 2, 2)),
        (7, 4, (2, 2, 2, 1)),
        (6, 4, (1, 2, 2, 1)),
        (5, 4, (1, 2, 1, 1)),  # what is over goes to the middle
        (9, 6, (1, 2, 2, 2, 1, 1)),
        (4, 4, (1, 1, 1, 1)),
        (3, 4, None),  # a stage would be empty
        (126, 64, (1, *(2,) * 62, 1)),
        (99, 64, (1,) * 14 + (2,) * 35 + (1,) * 15),
        (127, 65, (1, *(2,) * 62, 1, 1)),
        (129, 65, (*(2,) * 64, 1)),
    ],
)
def test_interleaved_stages_come_out_even_or_light_at_both_ends(
    num_layers: int, num_stages: int, counts: tuple[int, ...] | None
) -> None:
    assert interleaved_counts(num_layers, num_stages) == counts


def test_virtual_degrees() -> None:
    assert virtual_degrees(80, 1) == (1,)
    assert virtual_degrees(8, 2) == (1, 2, 4)
    assert virtual_degrees(7, 2) == (1, 2)
    assert virtual_degrees(3, 4) == (1,)
    assert virtual_degrees(256, 64) == (1, 2, 4)
    # Those that come out even or with light ends, and a few that do not.
    assert virtual_degrees(100, 4) == (1, 2, 4, 5, 8, 25)


def test_some_layers_of_each_stage_are_recomputed_but_never_all() -> None:
    model = model_with(layers=8)
    assert partial_recompute_layers(model, num_stages=2) == (1, 2, 3)
    assert partial_recompute_layers(model, num_stages=8) == ()
    two_kinds = replace(model, runs=(*model.runs, BlockRun(block=model_with(groups=8).runs[0].block, count=8)))
    assert partial_recompute_layers(two_kinds, num_stages=2) == ()
