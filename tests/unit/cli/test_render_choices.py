"""How the number of nodes, the front of memory and time, lost nodes and slow operations are printed."""

from dataclasses import replace

from cli.render import Table, as_text, shown_columns
from cli.render_choices import choice_blocks
from cli.render_plan import plan_blocks
from planner.plans.choices import Loss, NodeCount, NodeVerdict
from planner.plans.plan import Infeasible, Plan, Relaxation, Status
from planner.requests.objectives import whole_run
from planner.requests.request import Objective
from tests.builders import tiny_plan, tiny_plan_with_choices, tiny_robust_plan

WORDS = (
    "tp 2 with sequence parallelism, pp 2, dp {dp}; zero_stage 1; {num} micro-batches of 1; 1f1b; recompute selective"
    " (core_attn)"
)

CHOICES = """\

Numbers of nodes
   nodes      GPUs  step time  whole run  cost   energy  no less than  verdict
       1         4                                           750.0 ms  bound misses the deadline
       2         8   250.0 ms  2 minutes     1  0.2 kWh      200.0 ms  chosen
  3 to 4  12 to 16                                                     no layout is legal and fits
  2 nodes, proven: every other number is ruled out by a bound of all its layouts, or by its own best.

The front of memory and time
  peak memory   step time   vs best     gap  layout@pad  layers per stage
     3.00 GiB    250.0 ms    +0.0 %  50.0 %  @whole  2 x 2
     1.00 GiB  1,000.0 ms  +300.0 %   0.0 %  @whole  2 x 2
  No layout searched needs less memory and is faster, up to its gap; others may lie between\
 two of them, within 1.00 GiB of the upper one.

With 1 node lost
  restart        nodes  step time     lost  layout
  planned anew       1   500.0 ms   50.0 %  @fewer
  layout 0 kept                    100.0 %  dp 1 needs 16.00 GiB a GPU, of 15.00 GiB usable
  layout 1 kept      1   500.0 ms   50.0 %  @fewer
  Lost: of layout 0's tokens a second on all nodes. A layout that is kept has fewer replicas.
  Layout 1 loses least without a new layout: 50.0 %; with all nodes it takes +100.0 % against the best.
"""


def choices_text() -> str:
    """Return what is printed, the two layouts named by what they are."""
    whole, fewer = WORDS.format(dp=2, num=8), WORDS.format(dp=1, num=16)
    text = CHOICES.replace("@whole", whole).replace("@fewer", fewer)
    return text.replace("layout@pad", "layout".ljust(len(whole)))


def test_all_that_was_asked_is_printed() -> None:
    assert as_text(choice_blocks(tiny_plan_with_choices())) == choices_text()


def test_it_stands_behind_everything_else() -> None:
    plan = tiny_plan_with_choices()
    for verbose in (False, True):
        assert as_text(plan_blocks(plan, verbose=verbose)).endswith(choices_text())
    assert choice_blocks(tiny_plan()) == ()


def test_tables_are_read_on_80_columns() -> None:
    tables = [block for block in choice_blocks(tiny_plan_with_choices()) if isinstance(block, Table)]
    assert len(tables) == 3
    for table in tables:
        assert {table.columns[index].header for index in shown_columns(table, width=80)} >= {"step time"}


def test_what_is_not_proved_is_said() -> None:
    plan = tiny_plan_with_choices()
    assert plan.node_choice is not None
    assert plan.front is not None
    assert plan.spare is not None
    open_ = replace(
        plan,
        node_choice=replace(plan.node_choice, proven=False),
        front=replace(plan.front, open_below_bytes=1 << 30),
        spare=replace(plan.spare, proven=False, kept=plan.spare.kept[:1]),
    )
    text = as_text(choice_blocks(open_))
    assert "2 nodes, not proven: on some other number a better layout is not ruled out" in text
    assert "What fits into 1.00 GiB is not decided." in text
    assert "None of the layouts can go on with fewer replicas: a restart needs a new one." in text
    assert "That no layout on the nodes left is faster is not proved." in text


def test_where_nothing_is_left_it_is_said_why() -> None:
    plan = tiny_plan_with_choices()
    assert plan.spare is not None
    text = as_text(choice_blocks(replace(plan, spare=replace(plan.spare, replanned=None, reason="no node is left"))))
    assert "  planned anew                     100.0 %  no node is left\n" in text


def test_without_budget_and_price_their_columns_are_left_out() -> None:
    plan = tiny_plan_with_choices()
    workload = replace(plan.request.workload, tokens_to_train=None)
    bare = replace(plan, request=replace(plan.request, workload=workload, deadline_days=None), front=None, spare=None)
    (table,) = (block for block in choice_blocks(bare) if isinstance(block, Table))
    assert [column.header for column in table.columns] == ["nodes", "GPUs", "step time", "no less than", "verdict"]


def test_a_runner_up_that_survives_and_may_be_as_fast_is_said_to() -> None:
    plan = tiny_plan_with_choices()
    near = replace(plan.plans[1], step_seconds=plan.best.step_seconds * 1.05)
    text = as_text(choice_blocks(replace(plan, plans=(plan.best, near))))
    assert text.endswith("with all nodes it takes +5.0 % against the best, within the band of their ratio.\n")


def late_plan() -> Plan:
    """Return a search in which nothing met the deadline."""
    plan = tiny_plan_with_choices()
    row = NodeCount(num_nodes=2, verdict=NodeVerdict.TOO_SLOW, step_seconds=0.25, bound_seconds=0.25)
    assert plan.node_choice is not None
    return replace(
        plan,
        status=Status.INFEASIBLE,
        bound=None,
        gap=None,
        plans=(),
        baseline=None,
        front=None,
        spare=None,
        node_choice=replace(plan.node_choice, counts=(row,)),
        infeasible=Infeasible(
            binding="the deadline: too slow",
            shortfall_bytes=0,
            nearest=plan.best,
            relaxations=(Relaxation(change="40.0 days instead of 30", path="deadline_days", value="40.0"),),
        ),
    )


LATE = """\
Infeasible: no layout meets the deadline.
10 layouts searched: 6 legal, 3 simulated.

Why none meets the deadline
  the deadline: too slow

Fastest layout
  @whole
  layers per stage  2 x 2
  step time         250.0 ms
  peak memory       3.00 GiB on rank 4 in forward-backward, of 15.00 GiB usable

Changes that meet it, each by itself
  change                   try
  40.0 days instead of 30  --set deadline_days=40.0

Numbers of nodes
"""


def test_a_missed_deadline_is_told_from_missing_memory() -> None:
    text = as_text(plan_blocks(late_plan()))
    assert LATE.replace("@whole", WORDS.format(dp=2, num=8)) in text
    assert "Each number was ruled out by a bound of all its layouts, or searched." in text


def test_a_deadline_is_shown_with_the_band_of_the_run() -> None:
    plan = tiny_plan_with_choices()
    run = whole_run(0.25, plan.cluster, plan.request.workload, num_nodes=2)
    assert run is not None
    long = replace(plan.request.workload, tokens_to_train=round(1_000_000 * 20 / run.days))
    text = as_text(plan_blocks(replace(plan, request=replace(plan.request, workload=long))))
    assert "  deadline          30 days; by the band of the step the run takes 16.0 to 25.0\n" in text
    assert "  whole run         20.0 days for " in text


def test_bounds_are_in_the_unit_of_the_objective() -> None:
    for objective, bound, words in (
        (Objective.DAYS, 1.5, "1.5 days"),
        (Objective.ENERGY, 7.2e6, "2.0 kWh"),
        (Objective.ENERGY, 7.2e9, "2.0 MWh"),
        (Objective.COST, 12.5, "12.50"),
        (Objective.FEWEST_NODES, 1.0, "1 node"),
    ):
        text = as_text(plan_blocks(replace(tiny_plan(), objective=objective, bound=bound)))
        assert f"not proven optimal by {objective.value}: at most 20.0 % better is possible (bound {words})." in text


ROBUST = """\

If some operations are slower than predicted
  slower                       by  best then  layout 0   loses  the fastest loses
  nothing                           250.0 ms  250.0 ms   0.0 %              0.0 %
  collectives between nodes  50 %   500.0 ms  562.5 ms  12.5 %             50.0 %
  Layout 0 loses at most 12.5 % against the best layout, with collectives between nodes slower by 50 %.
  It takes at most 562.5 ms, with collectives between nodes slower by 50 %.
  The fastest as predicted loses up to 50.0 %, with collectives between nodes slower by 50 %: @fastest; layers per\
 stage 1, 3.
  Interleaved stages: as even as can be, and the best of each case; others may do up to 11.1 % better in their\
 worst case.
  Best then: the best that was found; that it is the best is not proved in every case.
"""


def test_what_a_robust_layout_loses_in_each_case_is_printed() -> None:
    plan = tiny_robust_plan()
    assert as_text(choice_blocks(plan)) == ROBUST.replace("@fastest", WORDS.format(dp=2, num=8))
    assert "Feasible, not proven optimal by robust: at most 5.6 % better is possible (bound a loss of 6.2 %" in as_text(
        plan_blocks(plan)
    )


def test_a_layout_that_is_the_best_in_every_case_is_called_so() -> None:
    plan = tiny_robust_plan()
    assert plan.robustness is not None
    cases = tuple(
        replace(
            case, best_seconds=case.seconds_P[0], bound_seconds=case.seconds_P[0], fastest_seconds=case.seconds_P[0]
        )
        for case in plan.robustness.cases
    )
    best = replace(plan.robustness, cases=cases, fastest=plan.best.layout, least_loss=0.0, uneven_least_loss=None)
    lines = as_text(choice_blocks(replace(plan, robustness=best))).splitlines()
    assert lines[-2:] == [
        "  Layout 0 is the best in every case.",
        "  It takes at most 562.5 ms, with collectives between nodes slower by 50 %.",
    ]
    assert "the fastest loses" not in lines[2]


def test_losses_of_nodes_that_differ_are_printed_worst_first() -> None:
    plan = tiny_plan_with_choices()
    assert plan.spare is not None
    degraded = plan.spare.replanned
    worst = Loss(nodes=(1,), num_alike=1, left=(), replanned=None, reason="no layout is legal and fits", proven=True)
    mild = Loss(nodes=(0,), num_alike=2, left=(1,), replanned=degraded, reason="", proven=False)
    spare = replace(plan.spare, replanned=None, kept=(), losses=(worst, mild))
    text = as_text(choice_blocks(replace(tiny_plan(), spare=spare)))
    fewer = WORDS.format(dp=1, num=16)
    assert (
        text
        == f"""\

With 1 node lost
  lost                  nodes  step time  lost speed  layout
  node 1                                     100.0 %  no layout is legal and fits
  node 0, or 1 like it      1   500.0 ms      50.0 %  {fewer}
  Lost speed: of layout 0's tokens a second on all nodes. Each row is planned anew on the nodes left.
  The worst loss is that of node 1.
  That no layout on the nodes left is faster is not proved of every loss.
"""
    )


def test_a_front_of_shares_is_printed_in_percent() -> None:
    front = tiny_plan_with_choices().front
    assert front is not None
    shares = replace(front, of_bytes=4 << 30)
    text = as_text(choice_blocks(replace(tiny_plan(), front=shares)))
    assert "share of memory" in text
    assert "75.0 %    250.0 ms" in text
    assert "within 25.0 % of the upper one.\n" in text, "less than a step is nothing"
    finer = replace(shares, step_bytes=1 << 29)
    of_finer = as_text(choice_blocks(replace(tiny_plan(), front=finer)))
    assert "within 12.5 % of the upper one. Nothing fits into 12.5 %." in of_finer
    assert text.endswith("  Shares are of each GPU's own memory; the tightest GPU counts.\n")
