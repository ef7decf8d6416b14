"""The rules of the space and the rules of a finished plan, written twice, draw the same line."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.blocks import SelfAttention
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, even_counts, stages_from_counts
from planner.request import Bounds, Constraints
from planner.space import Points, _product, _rules, interleaved_counts, recompute_choices
from planner.specs import BlockRun, ModelSpec
from planner.validate import violations
from planner.workload import AttentionKernel, DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload
from tests.builders import tiny_dense_model, tiny_planned_layout, tiny_request, tiny_workload, two_node_cluster

POINTS_OF_EACH_KIND = 20


@st.composite
def odd_models(draw: st.DrawFn) -> ModelSpec:
    """Return a decoder whose sizes split over some degrees and not over others."""
    heads = draw(st.sampled_from((4, 6, 8, 24)))
    groups = draw(st.sampled_from([count for count in (1, 2, 3, 4, 8) if heads % count == 0]))
    model = tiny_dense_model()
    block = model.runs[0].block
    assert block.feed_forward is not None
    head_dim = draw(st.sampled_from((2, 8, 16, 64)))
    width = draw(st.sampled_from((12, 128, 160, 512)))
    block = replace(
        block,
        mixer=SelfAttention(num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim),
        feed_forward=replace(block.feed_forward, intermediate_size=width),
    )
    return replace(
        model,
        hidden_size=draw(st.sampled_from((64, 72, 80, 128))),
        runs=(BlockRun(block=block, count=draw(st.sampled_from((3, 6, 7, 8)))),),
    )


@st.composite
def odd_workloads(draw: st.DrawFn) -> TrainWorkload:
    """Return a run that breaks some rule at some degrees."""
    lora = draw(st.sampled_from((None, Lora(rank=4, alpha=8.0, target_modules=("qkv",)))))
    return replace(
        tiny_workload(),
        seq_len=draw(st.sampled_from((12, 64, 128, 1024))),
        global_batch_size=draw(st.sampled_from((4, 12, 16, 1 << 20))),
        precision=draw(st.sampled_from(Precision)),
        optimizer=draw(st.sampled_from((Optimizer.ADAM, Optimizer.ADAM, Optimizer.SGD))),
        moment_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        method=TrainMethod.PRETRAIN if lora is None else TrainMethod.LORA,
        lora=lora,
    )


@st.composite
def pins(draw: st.DrawFn) -> Constraints:
    """Return constraints; tp is always among them, so that it may leave the fast domain."""
    bounds = st.sampled_from((Bounds(allowed=(1, 2)), Bounds(minimum=2), Bounds(maximum=1)))
    others = st.sampled_from(("pp", "vpp", "dp", "zero_stage", "micro_batch_size", "num_microbatches"))
    return Constraints(
        degrees={"tp": Bounds(minimum=1), **draw(st.dictionaries(others, bounds, max_size=1))},
        recompute=draw(st.sampled_from((None, None, ("none", "full"), ("selective",)))),
        sequence_parallel=draw(st.sampled_from((None, None, False, True))),
    )


def layout_of(points: Points, index: int, model: ModelSpec, recomputes: tuple[Recompute, ...]) -> Layout:
    """Return the layout that a point stands for, its layers placed as evenly as they go."""
    values = {name.removesuffix("_X"): int(getattr(points, name)[index]) for name in points.__dataclass_fields__}
    pp, vpp, zero_stage, partial = (values[name] for name in ("pp", "vpp", "zero_stage", "recompute_layers"))
    counts = interleaved_counts(model.num_layers, pp * vpp) if vpp > 1 else even_counts(model.num_layers, pp)
    assert counts is not None
    schedule = Schedule.NO_PIPELINE if pp == 1 else Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    return Layout(
        tp=values["tp"],
        sequence_parallel=bool(values["sequence_parallel"]),
        pp=pp,
        vpp=vpp,
        dp=values["dp"],
        zero_stage=zero_stage,
        micro_batch_size=values["micro_batch_size"],
        num_microbatches=values["num_microbatches"],
        schedule=schedule,
        recompute=Recompute(granularity=Granularity.FULL, num_layers=partial)
        if partial
        else recomputes[values["recompute"]],
        overlap=Overlap(grad_reduce=True, param_gather=zero_stage >= 1, p2p=vpp > 1),
        stages=stages_from_counts(counts),
    )


def disagreements(
    model: ModelSpec, workload: TrainWorkload, constraints: Constraints, *, seed: int
) -> tuple[list[str], Counter[bool]]:
    """Return the points on which the two disagree, and how many of those looked at were legal."""
    cluster = two_node_cluster()
    request = replace(tiny_request(), workload=workload, constraints=constraints)
    recomputes = recompute_choices(workload)
    points = _product(model, cluster, workload, num_recomputes=len(recomputes))
    points = points.where(points.micro_batch_size_X > 0)  # without a micro-batch there is no layout to ask about
    broken = list(_rules(points, model, workload, constraints, recomputes, fast_domain_size=cluster.fast_domain_size))
    num_broken_X = np.sum([broken_X for _, broken_X in broken], axis=0)
    # Of the points looked at a third are legal and a third break one rule, where there are any.
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(indices, size=min(len(indices), POINTS_OF_EACH_KIND), replace=False)
        for indices in (
            np.flatnonzero(num_broken_X == 0),
            np.flatnonzero(num_broken_X == 1),
            np.flatnonzero(num_broken_X),
        )
    ]
    found: list[str] = []
    seen: Counter[bool] = Counter()
    for index in np.concatenate(chosen):
        layout = layout_of(points, int(index), model, recomputes)
        messages = [
            entry.message
            for entry in violations(replace(tiny_planned_layout(), layout=layout), model, cluster, request)
        ]
        reasons = [reason for reason, broken_X in broken if broken_X[index]]
        seen[not reasons] += 1
        if bool(messages) != bool(reasons):
            found.append(f"{layout}: the space says {reasons}, the checker {messages}")
    return found, seen


@settings(max_examples=60, deadline=None)
@given(model=odd_models(), workload=odd_workloads(), constraints=pins(), seed=st.integers(0, 1000))
def test_the_space_and_the_checker_rule_out_the_same_points(
    model: ModelSpec, workload: TrainWorkload, constraints: Constraints, seed: int
) -> None:
    found, _ = disagreements(model, workload, constraints, seed=seed)
    assert found == []


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("heads", "groups", "head_dim", "seq_len"), [(8, 4, 8, 128), (8, 1, 2, 128), (8, 4, 8, 12), (24, 3, 8, 128)]
)
def test_among_the_points_compared_are_legal_and_illegal_ones(
    precision: Precision, heads: int, groups: int, head_dim: int, seq_len: int
) -> None:
    block = tiny_dense_model().runs[0].block
    mixer = SelfAttention(num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim)
    model = replace(tiny_dense_model(), runs=(BlockRun(block=replace(block, mixer=mixer), count=8),))
    workload = replace(tiny_workload(), precision=precision, seq_len=seq_len)
    found, seen = disagreements(model, workload, Constraints(degrees={"tp": Bounds(minimum=1)}), seed=0)
    assert found == []
    assert seen[False] > 0
    assert seen[True] > 0 or precision.is_fp8
