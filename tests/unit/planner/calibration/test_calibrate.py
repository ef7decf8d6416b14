import gzip
import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.plan_file import read_plan
from planner.calibration.fit import Fit, fitted
from planner.calibration.predicted import class_seconds
from planner.calibration.traces import read_trace
from planner.described import placed_alone
from planner.errors import InputError
from planner.plan import Plan
from profiles.hardware import Calibration
from profiles.slowed import OperationClass
from tests.unit.planner.calibration.runs import megatron_log, trace

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
    path.write_text(megatron_log(1000.0))
    with pytest.raises(InputError, match="a second log or a second trace"):
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
