"""How layouts of models with experts, with context parallelism and with padding are printed."""

from dataclasses import replace

from cli.render import Table, as_text, shown_columns
from cli.render_explain import explanation_blocks, grid_blocks
from cli.render_plan import header, layout_facts, others_blocks
from planner.layout import Granularity, Layout, Recompute
from planner.plans.plan import Plan
from planner.requests.workload import DocumentLengths, Packing
from tests.unit.cli.samples import sample_layout, sample_plan
from tests.unit.planner.model_kinds import expert_model


def expert_layout() -> Layout:
    """Return tp 2, cp 2, dp 2, pp 2 beside etp 1, ep 4, edp 2."""
    return replace(sample_layout(), cp=2, dp=2, ep=4)


def expert_plan() -> Plan:
    """Return the sample plan with experts, which the runner-up lays out otherwise."""
    plan = sample_plan()
    best, other = plan.plans
    best = replace(best, layout=expert_layout())
    other = replace(other, layout=replace(expert_layout(), ulysses=2, ep=8, state_replicas=2))
    return replace(plan, model=expert_model(), plans=(best, other), baseline=None)


FACTS = """\
  tp 2 with sequence parallelism, pp 2, cp 2 ring, ep 4, dp 2; zero_stage 1; 16 micro-batches of 1; 1f1b; recompute none
  layers per stage  2 x 2
  routed experts    etp 1 x ep 4 x edp 2; routing skew 1.2 (assumed): load of the busiest rank over the mean
  overlapped        gradient reduction, parameter gather
"""


def test_experts_are_told_with_their_grid_and_assumption() -> None:
    plan = expert_plan()
    assert as_text(layout_facts(plan, plan.best)).startswith(FACTS)


def test_a_model_without_experts_says_nothing_of_them() -> None:
    plan = sample_plan()
    text = as_text(layout_facts(plan, plan.best))
    for word in ("expert", " cp ", " ep ", " etp ", "useful"):
        assert word not in text


def test_padding_is_told_from_useful_tokens() -> None:
    plan = sample_plan()
    documents = DocumentLengths(lengths=(256,), weights=(1.0,), packing=Packing.PADDED)
    workload = replace(plan.request.workload, documents=documents)
    padded = replace(plan, request=replace(plan.request, workload=workload))
    assert "  useful tokens     25.0 %; throughput and MFU leave out the rest, which is padding\n" in as_text(
        layout_facts(padded, padded.best)
    )
    assert "sequences of 1,024 tokens (padded documents of 256 tokens on average), " in as_text(header(padded))
    packed = replace(workload, documents=replace(documents, packing=Packing.PACKED))
    assert "useful" not in as_text(
        layout_facts(replace(plan, request=replace(plan.request, workload=packed)), plan.best)
    )


def test_runners_up_are_told_by_the_dimensions_in_which_they_differ() -> None:
    text = as_text(others_blocks(expert_plan()))
    assert "  cp 2 ulysses [2 ring]; ep 8 [4]; state_replicas 2 [1]\n" in text


GRIDS = """\
  rank   (tp, cp, dp, pp)  routed experts (etp, ep, edp, pp)
  0      (0, 0, 0, 0)      (0, 0, 0, 0)
  1      (1, 0, 0, 0)      (0, 1, 0, 0)
  2      (0, 1, 0, 0)      (0, 2, 0, 0)
  3      (1, 1, 0, 0)      (0, 3, 0, 0)
  4      (0, 0, 1, 0)      (0, 0, 1, 0)
  5      (1, 0, 1, 0)      (0, 1, 1, 0)
  6      (0, 1, 1, 0)      (0, 2, 1, 0)
  7      (1, 1, 1, 0)      (0, 3, 1, 0)
  8      (0, 0, 0, 1)      (0, 0, 0, 1)
  9      (1, 0, 0, 1)      (0, 1, 0, 1)
  10     (0, 1, 0, 1)      (0, 2, 0, 1)
  11     (1, 1, 0, 1)      (0, 3, 0, 1)
  12     (0, 0, 1, 1)      (0, 0, 1, 1)
  13     (1, 0, 1, 1)      (0, 1, 1, 1)
  14     (0, 1, 1, 1)      (0, 2, 1, 1)
  15     (1, 1, 1, 1)      (0, 3, 1, 1)
  sizes  (2, 2, 2, 2)      (1, 4, 2, 2)
"""


def test_few_ranks_are_all_listed_in_both_grids() -> None:
    assert as_text(grid_blocks(expert_layout())) == GRIDS


def test_many_ranks_are_told_by_their_steps() -> None:
    blocks = grid_blocks(replace(expert_layout(), dp=1024))
    assert as_text(blocks).splitlines()[-1] == ("  6 of 8,192 ranks: the first, the next along each axis, the last.")
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == ["0", "1", "2", "4", "4,096", "8,191", "sizes"]
    assert shown_columns(table, width=80) == (0, 1, 2)


def test_only_models_with_experts_have_two_grids_to_explain() -> None:
    assert "\nRanks in both grids\n" in as_text(explanation_blocks(expert_plan(), index=0))
    assert "grid" not in as_text(explanation_blocks(sample_plan(), index=0))


RECOMPUTE = """
Recompute of each stage
  stage  layers  recompute
      0       2  full for each layer
      1       2  selective (mlp) for layer 2, none for the rest
"""


def test_recompute_layer_by_layer_is_explained_stage_by_stage() -> None:
    plan = sample_plan()
    none, full = (Recompute(granularity=granularity) for granularity in (Granularity.NONE, Granularity.FULL))
    mlp = Recompute(granularity=Granularity.SELECTIVE, modules=("mlp",))
    recompute = Recompute(granularity=Granularity.PER_LAYER, layers=(full, full, mlp, none))
    best = replace(plan.best, layout=replace(sample_layout(), recompute=recompute))
    assert RECOMPUTE in as_text(explanation_blocks(replace(plan, plans=(best, *plan.plans[1:])), index=0))
    assert "Recompute of each stage" not in as_text(explanation_blocks(plan, index=0))
