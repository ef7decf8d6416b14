"""The rules of the space and of a finished plan draw the same line for dense models of odd sizes and long schedules."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Layout
from planner.models.blocks import DenseFeedForward, SelfAttention
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.request import Target
from planner.requests.workload import AttentionKernel, DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload
from planner.search.space.enumeration import enumerate_layouts
from tests.agreement.test_target_rules import Case, disagreements, findings, pins, placed
from tests.builders import tiny_dense_model, tiny_workload
from tests.examples import examples
from tests.small_spaces import EVERY_DEGREE


@st.composite
def odd_models(draw: st.DrawFn) -> ModelSpec:
    """Return a decoder whose sizes split over some degrees and not over others."""
    heads = draw(st.sampled_from((4, 6, 8, 24)))
    groups = draw(st.sampled_from([count for count in (1, 2, 3, 4, 8) if heads % count == 0]))
    model = tiny_dense_model()
    block = model.runs[0].block
    assert isinstance(block.feed_forward, DenseFeedForward)
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
        global_batch_size=draw(st.sampled_from((4, 12, 16))),
        precision=draw(st.sampled_from(Precision)),
        optimizer=draw(st.sampled_from((Optimizer.ADAM, Optimizer.ADAM, Optimizer.SGD))),
        moment_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        method=TrainMethod.PRETRAIN if lora is None else TrainMethod.LORA,
        lora=lora,
    )


@settings(max_examples=examples(few=15, many=60), deadline=None)
@given(
    case=st.builds(
        Case, model=odd_models(), workload=odd_workloads(), constraints=pins(), target=st.just(Target.MEGATRON)
    ),
    seed=st.integers(0, 1000),
)
def test_the_space_and_the_checker_rule_out_the_same_points(case: Case, seed: int) -> None:
    found, _ = disagreements(case, seed=seed)
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
    found, seen = disagreements(
        Case(model=model, workload=workload, constraints=EVERY_DEGREE, target=Target.MEGATRON), seed=0
    )
    assert found == []
    assert seen[False] > 0
    assert seen[True] > 0 or precision.is_fp8


@pytest.mark.parametrize("num_layers", [4, 8])
def test_the_space_and_the_checker_find_the_same_schedules_too_long(num_layers: int) -> None:
    workload = replace(tiny_workload(), global_batch_size=1 << 20)
    model = tiny_dense_model(num_layers=num_layers)
    case = Case(model=model, workload=workload, constraints=EVERY_DEGREE, target=Target.MEGATRON)
    scope = case.scope()
    space = enumerate_layouts(scope)

    def layouts(indices: list[int], *, long: bool) -> list[Layout]:
        return [placed(space.unsimulated if long else space.points, index, scope) for index in indices]

    generator = np.random.default_rng(0)
    for long, points in ((True, space.unsimulated), (False, space.points)):
        chosen = generator.choice(len(points), size=40, replace=False).tolist()
        for layout in layouts(chosen, long=long):
            rules = {finding.partition(":")[0] for finding in findings(case, layout)}
            assert rules == ({"schedule"} if long else set()), layout
