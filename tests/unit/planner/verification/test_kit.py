"""The kit holds short runs of the best layouts that can be launched; no earlier run can be taken for one of them."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from planner.accuracy.measurements import COLUMNS as NEEDED
from planner.accuracy.measurements import Kind, Row
from planner.accuracy.runs import run_of
from planner.inputs.load import load_inputs
from planner.layout import Schedule, stages_from_counts
from planner.plans.certainty import certainty_of
from planner.plans.plan import Plan
from planner.readers.megatron import layout_of, read_megatron
from planner.requests.request import Target
from planner.requests.workload import DocumentLengths, Packing
from planner.search.search import search
from planner.targets.launch import launch_files
from planner.verification.kit import STEPS, Kit, short_plan, verification_kit
from planner.verification.rows import COLUMNS, MEASURED, UNSAID_MODEL, row_of
from tests.unit.planner.model_kinds import latent_model
from tests.unit.planner.verification.plans import one_node_plan, two_node_plan

ROOT = Path(__file__).parents[4]
EXAMPLES = ROOT / "examples"


def kit_of(plan: Plan, target: Target = Target.MEGATRON) -> Kit:
    kit = verification_kit(plan, target=target)
    assert kit is not None
    return kit


def rows_of(kit: Kit) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(kit.files["verify/runs.csv"])))


def test_the_three_best_have_a_folder_each_that_reads_back_as_their_layout() -> None:
    plan = one_node_plan()
    plan = replace(plan, plans=(*plan.plans, plan.plans[1]))
    kit = kit_of(plan)
    assert (kit.num_runs, kit.steps) == (3, STEPS)
    assert kit.steps_seconds == pytest.approx(STEPS * (0.2 + 0.25 + 0.26))
    folders = [row["id"] for row in rows_of(kit)]
    assert [folder[:8] for folder in folders] == ["layout-0", "layout-1", "layout-2"]
    for planned, folder in zip(plan.plans, folders, strict=False):
        for script in ("launch.sh", "job.sbatch"):
            launch = read_megatron(kit.files[f"verify/{folder}/{script}"], file=script)
            assert layout_of(launch) == planned.layout
            assert launch.text("--train-iters") == str(STEPS)
            assert launch.text("--eval-iters") == "0"
            assert launch.text("--log-interval") == "1"
            assert not launch.has("--save")


def test_the_runs_differ_from_the_long_run_in_their_length_alone() -> None:
    plan = one_node_plan()
    kit = kit_of(plan)
    folder = rows_of(kit)[0]["id"]
    long, short = launch_files(plan)["launch.sh"].splitlines(), kit.files[f"verify/{folder}/launch.sh"].splitlines()
    changed = [(old, new) for old, new in zip(long, short, strict=True) if old != new]
    assert [new.split()[0] for _, new in changed] == ["#", "--train-iters"]


def test_a_step_budget_is_a_few_steps_with_padding_too() -> None:
    plan = one_node_plan()
    documents = DocumentLengths(packing=Packing.PADDED, lengths=(7, 501), weights=(0.3, 0.7))
    for workload in (plan.request.workload, replace(plan.request.workload, documents=documents)):
        short = short_plan(replace(plan, request=replace(plan.request, workload=workload)))
        assert short.request.workload.steps_to_train == STEPS


def test_another_plan_has_other_folders() -> None:
    plan = one_node_plan()
    other = replace(plan, request=replace(plan.request, workload=replace(plan.request.workload, seq_len=512)))
    assert not {row["id"] for row in rows_of(kit_of(plan))} & {row["id"] for row in rows_of(kit_of(other))}
    assert kit_of(plan) == kit_of(one_node_plan())


def test_one_layout_makes_a_kit_of_one_run() -> None:
    plan = one_node_plan()
    kit = kit_of(replace(plan, plans=plan.plans[:1]))
    assert kit.num_runs == 1
    assert "10 steps of the best layout." in kit.files["verify/run.sh"]


def test_a_layout_that_the_target_cannot_say_is_left_out() -> None:
    plan = replace(one_node_plan(), target=Target.ANY)
    interleaved = replace(
        plan.best.layout, vpp=2, schedule=Schedule.INTERLEAVED, stages=stages_from_counts((1, 1, 1, 1))
    )
    odd = replace(plan.plans[1], layout=interleaved)  # over two stages Megatron-LM only interleaves with overlap
    folders = [row["id"] for row in rows_of(kit_of(replace(plan, plans=(plan.plans[0], odd, plan.plans[2]))))]
    assert [folder[:8] for folder in folders] == ["layout-0", "layout-2"]


def test_the_rows_have_the_columns_of_training_measurements() -> None:
    with (EXAMPLES / "measured-runs" / "training.csv").open(encoding="utf-8") as stream:
        shipped = next(csv.reader(stream))
    assert list(COLUMNS[: len(shipped)]) == shipped
    assert set(COLUMNS) >= NEEDED[Kind.TRAINING]
    for row in rows_of(kit_of(one_node_plan())):
        assert {row[column] for column in MEASURED} == {""}


@pytest.mark.parametrize("name", ["llama-3.1-8b-1xdgx-h100", "mixtral-8x22b-8xdgx-h100", "llama-2-7b-4xl40s"])
def test_a_row_is_read_as_the_model_machine_and_degrees_of_its_layout(name: str) -> None:
    inputs = load_inputs(EXAMPLES / name / "spec.yaml")
    plan = search(inputs.model, inputs.cluster, inputs.request, top=1)
    cells = row_of(plan, 0, name="layout-0", framework="Megatron-LM")
    run = run_of(Row(id="layout-0", line=2, cells=cells))
    layout, planned = run.layout, plan.best.layout
    assert run.model == plan.model
    assert (run.cluster.device, run.cluster.world_size) == (plan.cluster.device, plan.cluster.world_size)
    for field in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "zero_stage", "sequence_parallel", "micro_batch_size"):
        assert getattr(layout, field) == getattr(planned, field)
    assert layout.num_microbatches == planned.num_microbatches
    assert layout.recompute.granularity is planned.recompute.granularity
    assert float(cells["predicted_step_time_s"]) == pytest.approx(plan.best.step_seconds, rel=1e-5)


def test_a_model_that_columns_cannot_say_is_not_taken_for_another() -> None:
    plan = replace(two_node_plan(), model=replace(latent_model(), name="llama-3.1-8b"))
    cells = row_of(plan, 0, name="layout-0", framework="Megatron-LM")
    assert UNSAID_MODEL in cells["notes"]
    with pytest.raises(ValueError, match="is not bundled, and layers, hidden, heads, ffn are empty"):
        run_of(Row(id="layout-0", line=2, cells={**cells, "hardware": "dgx-h100"}))


def test_deepspeed_runs_its_own_program_for_as_many_steps() -> None:
    inputs = load_inputs(EXAMPLES / "llama-3.1-8b-deepspeed-1xdgx-h100" / "spec.yaml")
    plan = search(inputs.model, inputs.cluster, inputs.request, top=2)
    kit = kit_of(plan, Target.DEEPSPEED)
    for row in rows_of(kit):
        folder = f"verify/{row['id']}"
        assert f"    --steps {STEPS}\n" in kit.files[f"{folder}/launch.sh"]
        assert {f"{folder}/{name}" for name in ("ds_config.json", "train_deepspeed.py")} <= set(kit.files)
        assert row["framework"].startswith("DeepSpeed")


def test_a_plan_says_what_its_bands_come_from() -> None:
    certainty = certainty_of(one_node_plan().model, one_node_plan().cluster)
    assert certainty.ratio_half_width > 0
    assert certainty.half_width > 0
    plans = one_node_plan().plans
    near = replace(plans[0], step_seconds=plans[0].step_seconds * (1 + certainty.ratio_half_width))
    far = replace(plans[0], step_seconds=near.step_seconds * 1.001)
    assert certainty.could_swap((plans[0], near, far)) == (1,)
    assert certainty.could_swap(plans[:1]) == ()
    low, high = certainty.band_seconds(plans[0])
    assert low * high == pytest.approx(plans[0].step_seconds ** 2)
    assert high / plans[0].step_seconds - 1 == pytest.approx(certainty.half_width)
