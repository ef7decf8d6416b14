import gzip
import json
import pickle
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.plan_file import read_plan
from planner.calibration.fit import Fit, fitted
from planner.calibration.predicted import class_seconds
from planner.calibration.traces import read_trace
from planner.errors import InputError
from planner.evaluation.described import given_layout, placed_alone
from planner.memory.ledger import WORKING_TERMS
from planner.memory.terms import FRAGMENTATION
from planner.plans.plan import Phase, Plan
from planner.reconcile.terms import OUTSIDE
from planner.schema.calibration import read_calibration
from profiles.hardware import Calibration, MemoryCalibration
from profiles.slowed import OperationClass
from tests.unit.planner.calibration.runs import megatron_log, trace
from tests.unit.planner.reconcile.snapshots import snapshot, traced

RUNNER = CliRunner()
SPEC = """schema: 1
model: llama-3.2-1b
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 4096, global_batch_size: 32, precision: bf16}
constraints: {tp: 2, pp: 2, vpp: 1, cp: 1, micro_batch_size: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "spec.yaml").write_text(SPEC)
    result = RUNNER.invoke(app, ["plan", str(folder / "spec.yaml"), "--out", str(folder / "run"), "--quiet"])
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return read_plan(folder / "run")


def predicted(plan: Plan, pipeline_rank: int) -> dict[OperationClass, float]:
    placed, cost_model = placed_alone(plan.plans[0].layout, plan.model, plan.cluster, plan.request)
    return dict(class_seconds(placed, cost_model, pipeline_rank=pipeline_rank))


def fit_of(plan: Plan, *paths: Path, rank: int | None = None) -> Fit:
    return fitted(plan, 0, paths, rank=rank, sources=["run"])


def written(tmp_path: Path, data: object, name: str = "trace.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(data))
    return path


def test_a_log_gives_one_factor_with_which_the_run_is_predicted(plan: Plan, tmp_path: Path) -> None:
    before = plan.plans[0].reevaluated_step_seconds
    (tmp_path / "run.log").write_text(megatron_log(before * 1300))
    fit = fit_of(plan, tmp_path / "run.log")
    assert fit.is_common
    assert [factor for _, factor in fit.calibration.factors] == pytest.approx([1.3] * len(OperationClass), rel=1e-3)
    assert fit.calibrated_step_seconds == pytest.approx(fit.measured_step_seconds, rel=1e-9)
    assert "which of them is off it does not say" in fit.remarks[0]


@pytest.mark.parametrize("pipeline_rank", [0, 1])
def test_a_trace_gives_back_the_factor_of_each_class(plan: Plan, tmp_path: Path, pipeline_rank: int) -> None:
    factors = {
        OperationClass.PRODUCTS: 1.2,
        OperationClass.ATTENTION: 0.8,
        OperationClass.MEMORY_BOUND: 1.5,
        OperationClass.INSIDE: 2.0,
    }
    before = predicted(plan, pipeline_rank)
    seconds = {kind: factor * before[kind] for kind, factor in factors.items()}
    rank = plan.plans[0].layout.first_global_rank(pipeline_rank)
    path = written(tmp_path, trace(seconds, rank=rank, waiting=0.7))
    fit = fit_of(plan, path)
    assert {OperationClass(name): factor for name, factor in fit.calibration.factors} == pytest.approx(factors)
    assert fit.remarks == ("the trace does not show launches of the host: predicted as before",)
    assert not fit.is_common


def test_classes_add_up_to_the_work_of_the_rank(plan: Plan) -> None:
    time = {line.term: line.seconds for line in plan.plans[0].time}
    work = [predicted(plan, rank) for rank in (0, 1)]
    products = [of_rank[OperationClass.PRODUCTS] for of_rank in work]
    assert any(seconds == pytest.approx(time["linear layers"]) for seconds in products)
    attention = [of_rank[OperationClass.ATTENTION] for of_rank in work]
    assert any(seconds == pytest.approx(time["attention"]) for seconds in attention)


def test_collectives_without_what_they_move_have_no_factor(plan: Plan, tmp_path: Path) -> None:
    data = trace(predicted(plan, 0))
    events = data["traceEvents"]
    assert isinstance(events, list)
    for event in events:
        event.pop("args", None)
    fit = fit_of(plan, written(tmp_path, data))
    assert "collectives inside a node" not in dict(fit.calibration.factors)
    assert "its collectives do not say what they move" in fit.remarks[1]


def test_a_packed_trace_is_the_same_trace(plan: Plan, tmp_path: Path) -> None:
    data = trace(predicted(plan, 0))
    plain = read_trace(written(tmp_path, data))
    (tmp_path / "trace.json.gz").write_bytes(gzip.compress(json.dumps(data).encode()))
    packed = read_trace(tmp_path / "trace.json.gz")
    assert (packed.kernel_seconds, packed.num_steps, packed.step_seconds) == (plain.kernel_seconds, 2, 2.5)


@pytest.mark.parametrize(
    ("data", "rank", "message"),
    [
        ([], None, "There is no list of traceEvents."),
        (
            {"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "dur": 1}]},
            None,
            "There is no ProfilerStep in it.",
        ),
        ({"traceEvents": [{"ph": "X", "name": "ProfilerStep#1", "dur": 1}]}, None, "There is no kernel in it."),
        (trace({OperationClass.PRODUCTS: 1.0}, rank=None), None, "The trace does not say which rank it is of"),
        (trace({OperationClass.PRODUCTS: 1.0}, rank=64), None, "The trace is of rank 64, and the layout has 8."),
        (trace({OperationClass.PRODUCTS: 1e4}), 0, "By this matrix products takes "),
    ],
)
def test_what_is_wrong_with_a_trace_is_said(
    plan: Plan, tmp_path: Path, data: object, rank: int | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        fit_of(plan, written(tmp_path, data), rank=rank)
    assert message in str(caught.value)
    assert "trace.json" in str(caught.value)
    assert caught.value.hint


def test_a_log_too_short_or_of_something_else(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(megatron_log(1000.0, steps=5))
    with pytest.raises(InputError, match="The log holds 2 steps behind the first 3, which warm up"):
        fit_of(plan, path)
    path.write_text(megatron_log(1e9))
    with pytest.raises(InputError, match="it is a run of something else"):
        fit_of(plan, path)
    path.write_text(megatron_log(1000.0, batch=128))
    with pytest.raises(InputError, match="A step of this log consumes 128 sequences, one of the plan 32"):
        fit_of(plan, path)
    path.write_text(megatron_log(1000.0))
    with pytest.raises(InputError, match="a second log, a second trace or a second snapshot"):
        fit_of(plan, path, path)


def test_a_mutated_trace_is_read_or_refused(plan: Plan, tmp_path: Path) -> None:
    random_ = random.Random(7)
    text = json.dumps(trace(predicted(plan, 0)))
    path = tmp_path / "trace.json"
    for _ in range(60):
        cut = list(text)
        for _ in range(random_.randint(1, 4)):
            place = random_.randrange(len(cut))
            cut[place : place + random_.randint(0, 30)] = random_.choice(["", "9", "[", "{}", "null", '"', "-1e999"])
        path.write_text("".join(cut))
        with suppress(InputError):
            fit_of(plan, path)


def test_a_plan_is_made_with_a_calibration_and_says_so(folder: Path, plan: Plan) -> None:
    before = plan.plans[0].reevaluated_step_seconds
    (folder / "run.log").write_text(megatron_log(before * 1100))
    out = folder / "calibration.json"
    made = RUNNER.invoke(app, ["calibrate", str(folder / "run"), str(folder / "run.log"), "--out", str(out)])
    assert made.exit_code == 0, made.stderr
    assert "All classes of operations  x 1.100" in made.stdout
    spec = str(folder / "spec.yaml")
    again = RUNNER.invoke(
        app, ["plan", spec, "--calibration", str(out), "--out", str(folder / "calibrated"), "--quiet", "--force"]
    )
    assert again.exit_code == 0, again.stderr
    assert "calibrated by run.log (sha256 " in again.stdout
    assert "on h100-sxm-80gb: all classes x 1.1\n" in again.stdout
    calibrated = read_plan(folder / "calibrated")
    assert calibrated.cluster.calibration is not None
    assert calibrated.plans[0].layout == plan.plans[0].layout
    assert calibrated.plans[0].step_seconds == pytest.approx(before * 1.1, rel=1e-4)
    evaluated = RUNNER.invoke(
        app,
        ["evaluate", str(folder / "run" / "launch.sh"), "--spec", spec, "--calibration", str(out), "--format", "json"],
    )
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "calibrated by run.log" in evaluated.stdout
    once_more = fitted(calibrated, 0, [folder / "run.log"], rank=None, sources=["run"])
    assert once_more.predicted_step_seconds == pytest.approx(before, rel=1e-9)


def test_a_launch_script_is_held_against_its_own_price(folder: Path, plan: Plan) -> None:
    (folder / "own.log").write_text(megatron_log(plan.plans[0].reevaluated_step_seconds * 1250))
    words = [str(folder / "own.log"), "--spec", str(folder / "spec.yaml"), "--format", "json"]
    result = RUNNER.invoke(app, ["calibrate", str(folder / "run" / "launch.sh"), *words])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["factors"]["attention"] == pytest.approx(1.25, rel=1e-3)
    both = RUNNER.invoke(app, ["calibrate", str(folder / "run"), *words])
    assert both.exit_code == 2
    assert "A plan says its cluster and its spec itself." in both.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "b200"}, "It was fitted on b200, the cluster has h100-sxm-80gb."),
        ({"factors": {"bread": 1.0}}, "bread is no class of operations"),
        ({"factors": {"attention": 0.0}}, "each class needs one factor above 0 and below 100"),
        ({"kind": "plan"}, "kind"),
        ({"more": 1}, "more"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    whole = {
        "schema_version": 1,
        "kind": "calibration",
        "device": "h100-sxm-80gb",
        "factors": {"attention": 1.1},
        "source": "run.log",
        "account": {},
    }
    path = folder / "broken.json"
    path.write_text(json.dumps({**whole, **change}))
    result = RUNNER.invoke(app, ["plan", str(folder / "spec.yaml"), "--calibration", str(path), "--quiet"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "broken.json" in result.stderr


def test_a_calibration_names_known_classes() -> None:
    with pytest.raises(ValueError, match="each class needs one factor"):
        Calibration(factors=(), source="x")


LOST = 0.2
MIB = 1 << 20


def held(plan: Plan, rank: int) -> dict[str, int]:
    """Return one rank's ledger in forward and backward pass."""
    phase = Phase.FORWARD_BACKWARD
    return {line.term: line.num_bytes for line in plan.plans[0].memory if line.rank == rank and line.phase is phase}


def a_snapshot(
    plan: Plan,
    tmp_path: Path,
    *,
    rank: int = 0,
    more: dict[str, int] | None = None,
    lost: float = LOST,
    history: bool = True,
) -> Path:
    """Write the snapshot of a run that held what the ledger says of a rank, more of some terms, and lost a part.

    What no frame tells of it is told by its size.
    """
    terms = {term: num_bytes for term, num_bytes in held(plan, rank).items() if term not in (*OUTSIDE, FRAGMENTATION)}
    working = sum(num_bytes for term, num_bytes in terms.items() if term in WORKING_TERMS)
    blocks = [(term, num_bytes + (more or {}).get(term, 0)) for term, num_bytes in terms.items()]
    entries = [traced("alloc", 1, 8), traced("free_completed", 1, 8)] if history else []
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(pickle.dumps(snapshot(blocks, free=round(lost * working), history=entries)))
    return path


@pytest.mark.parametrize("stage", [0, 1])
def test_a_snapshot_of_what_the_ledger_says_gives_back_what_was_lost(plan: Plan, tmp_path: Path, stage: int) -> None:
    rank = plan.plans[0].layout.first_global_rank(stage)
    fit = fit_of(plan, a_snapshot(plan, tmp_path, rank=rank), rank=rank)
    assert fit.memory is not None
    assert fit.memory.calibration.lost_fraction == pytest.approx(LOST, abs=1e-6)
    assert fit.memory.calibration.fixed_bytes == 0
    assert fit.memory.calibrated_bytes == pytest.approx(fit.memory.found_bytes, abs=16)
    assert fit.memory.predicted_bytes < fit.memory.found_bytes
    assert (fit.calibration.factors, fit.factors, fit.is_common) == ((), (), False)
    assert fit.calibrated_step_seconds == fit.predicted_step_seconds
    assert fit.remarks[-1] == "a snapshot shows no times"


def test_what_stays_and_is_more_than_planned_is_told_apart_from_what_is_lost(plan: Plan, tmp_path: Path) -> None:
    fit = fit_of(plan, a_snapshot(plan, tmp_path, more={"master weights": 70 * MIB}), rank=0)
    assert fit.memory is not None
    assert fit.memory.calibration.fixed_bytes == 70 * MIB
    assert fit.memory.calibration.lost_fraction == pytest.approx(LOST, abs=1e-6)
    again = fit_of(plan, a_snapshot(plan, tmp_path, more={"activations": 70 * MIB}), rank=0)
    assert again.memory is not None
    assert again.memory.calibration.fixed_bytes == 0
    assert again.memory.found_bytes == fit.memory.found_bytes
    assert again.memory.calibrated_bytes == pytest.approx(again.memory.found_bytes, abs=16)


def test_a_run_that_holds_less_lowers_no_plan_below_its_own_bytes(plan: Plan, tmp_path: Path) -> None:
    fit = fit_of(plan, a_snapshot(plan, tmp_path, more={"master weights": -70 * MIB}, lost=0.0), rank=0)
    assert fit.memory is not None
    assert fit.memory.calibration == MemoryCalibration(lost_fraction=0.0, fixed_bytes=0)
    assert "it held less than the ledger counts: no plan goes below the ledger's own bytes" in fit.remarks


def test_a_snapshot_and_a_log_of_one_run_make_one_calibration(folder: Path, plan: Plan, tmp_path: Path) -> None:
    before = plan.plans[0].reevaluated_step_seconds
    (tmp_path / "run.log").write_text(megatron_log(before * 1300))
    path = a_snapshot(plan, tmp_path, more={"master weights": 70 * MIB})
    out = tmp_path / "calibration.json"
    words = ["calibrate", str(folder / "run"), str(tmp_path / "run.log"), str(path), "--rank", "0", "--out", str(out)]
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "All classes of operations  x 1.300" in lines
    assert "  lost        20.0 % beside activations and temporaries" in lines
    assert "  fixed       0.07 GiB beside what is there all the time" in lines
    content = json.loads(out.read_text())
    assert list(content) == ["schema_version", "kind", "device", "factors", "memory", "source", "account"]
    assert content["memory"]["fixed_bytes"] == 70 * MIB
    words = ["plan", str(folder / "spec.yaml"), "--calibration", str(out), "--quiet", "--format", "json"]
    planned = RUNNER.invoke(app, words)
    assert planned.exit_code == 0, planned.stderr
    (first, *_) = json.loads(planned.stdout)["plans"]
    assert first["memory"]["0"]["initialisation"]["difference of a real run"] == 70 * MIB
    told = [text for text in first["assumptions"] if text.startswith("calibrated by run.log")]
    assert told[0].endswith(
        "all classes x 1.3; 20 % lost beside activations and temporaries, 0.07 GiB beside what stays"
    )


def test_a_snapshot_alone_plans_with_memory_alone(folder: Path, plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    words = ["calibrate", str(folder / "run"), str(a_snapshot(plan, tmp_path)), "--rank", "0", "--out", str(out)]
    result = RUNNER.invoke(app, [*words, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["factors"] == {}
    again = RUNNER.invoke(app, [*words[:-2], "--format", "text"])
    assert "The step" not in again.stdout
    cluster = replace(plan.cluster, calibration=read_calibration(out, plan.cluster))
    after = given_layout(plan.plans[0].layout, plan.model, cluster, plan.request)
    assert after.step_seconds == plan.plans[0].reevaluated_step_seconds


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no history", "The snapshot has no history, so it does not show the peak."),
        ("no rank", "The snapshot does not say which rank it is of, and stages of a pipeline differ."),
        ("no such rank", "The snapshot is of rank 99, and the layout has 8."),
        ("twice", "This is a second log, a second trace or a second snapshot."),
        ("another run", "By this a rank holds 25.1 times what the plan says: it is a run of something else."),
    ],
)
def test_a_snapshot_that_says_nothing_of_the_plan_is_refused(
    plan: Plan, tmp_path: Path, case: str, message: str
) -> None:
    path = a_snapshot(plan, tmp_path, history=case != "no history", lost=60.0 if case == "another run" else LOST)
    paths = [path, path] if case == "twice" else [path]
    rank = {"no rank": None, "no such rank": 99}.get(case, 0)
    with pytest.raises(InputError) as caught:
        fit_of(plan, *paths, rank=rank)
    assert str(caught.value.message) == message


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"lost_fraction": -0.1, "fixed_bytes": 0}, "lost_fraction is from 0 and below 4."),
        ({"lost_fraction": 0.1, "fixed_bytes": -1}, "fixed_bytes is from 0 and below 1099511627776."),
    ],
)
def test_figures_that_no_run_shows_are_refused_with_their_place(
    plan: Plan, tmp_path: Path, memory: dict[str, float], message: str
) -> None:
    content = {"schema_version": 1, "kind": "calibration", "device": plan.cluster.device.name, "factors": {}}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**content, "memory": memory, "source": "run", "account": {}}))
    with pytest.raises(InputError) as caught:
        read_calibration(path, plan.cluster)
    assert str(caught.value.message) == message
    assert caught.value.location is not None
    assert caught.value.location.path == "memory"
