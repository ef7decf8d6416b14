"""`shardwright accuracy` on files made up for tests."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from profiles.catalogue import load_preset
from profiles.constants import Origin
from profiles.measure.journal import Journal
from profiles.measure.points import point
from tests.unit.planner.accuracy.rows import RUN, SERVING_CELLS
from tests.unit.profiles.profile_files import METADATA, TABLES, write_profile
from tests.written_profiles import result_of, run_line

RUNNER = CliRunner()
GEMM = "system,dtype,m,n,k,latency_us\nh100_sxm,bfloat16,4096,4096,4096,210\nh100_sxm,int3_wo,1,2,3,4\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    rows = [RUN, {**RUN, "id": "T-2", "tp": "4.0", "step_time_s": "17.5"}, {**RUN, "id": "T-3", "model": "nobody's"}]
    lines = [",".join(RUN), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_row_is_beside_its_prediction_and_none_is_dropped(runs: Path) -> None:
    result = RUNNER.invoke(app, ["accuracy", str(runs), "--format", "json"])
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["schema_version"], document["kind"]) == (1, "training")
    assert [row["id"] for row in document["rows"]] == ["T-1", "T-2", "T-3"]
    first, second, third = document["rows"]
    assert first["measured_step_seconds"] == 16.0
    low, high = first["band"]
    assert low < first["predicted_step_seconds"] < high
    assert second["predicted_step_seconds"] != first["predicted_step_seconds"]
    assert third["predicted_step_seconds"] is None
    assert "is not bundled" in third["error"]
    summary = document["summary"]
    assert (summary["rows"], summary["predicted"], summary["coverage"]) == (3, 2, pytest.approx(2 / 3))
    assert summary["step_time"]["dense"]["count"] == 2
    assert summary["step_time"]["experts"] is None
    assert {"name", "value", "low", "high", "origin", "source"} == set(document["constants"][0])


def test_the_table_has_a_line_for_each_value_and_one_for_all(runs: Path) -> None:
    result = RUNNER.invoke(app, ["accuracy", str(runs), "--by", "hardware,tp"])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["DGX-H100", "2.0", "2"] in [line[:3] for line in lines]
    assert ["DGX-H100", "4.0", "1"] in [line[:3] for line in lines]
    assert "Not predicted: 1 of 3 rows" in result.stdout


def test_a_file_without_the_usual_column_has_one_line_for_all(tmp_path: Path) -> None:
    cells = {column: text for column, text in RUN.items() if column != "source_group"}
    path = tmp_path / "runs.csv"
    path.write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
    result = RUNNER.invoke(app, ["accuracy", str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    header, line = result.stdout.splitlines()[1:3]
    assert header.split()[:3] == ["rows", "median", "error"]
    assert line.split()[:2] == ["all", "1"]


def test_runs_without_a_measurement_say_so_and_which_column_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    unit_slip = {("step_time_ms" if name == "step_time_s" else name): text for name, text in RUN.items()}
    unit_slip = {name: text for name, text in unit_slip.items() if name not in ("tokens_per_s_per_gpu", "peak_mem_gb")}
    path.write_text(",".join(unit_slip) + "\n" + ",".join(unit_slip.values()) + "\n")
    text = RUNNER.invoke(app, ["accuracy", str(path)]).stdout
    assert "\nNot scored\n  1 x nothing measured: one of step_time_s (seconds), " in text
    assert "\n  column step_time_ms is not read; step_time_s is, in seconds\n" in text
    path.write_text(",".join(RUN) + "\n" + ",".join(RUN.values()) + "\n")
    assert "Not scored" not in RUNNER.invoke(app, ["accuracy", str(path)]).stdout


def test_operations_are_scored_too(tmp_path: Path) -> None:
    path = tmp_path / "gemm.csv"
    path.write_text(GEMM)
    document = json.loads(RUNNER.invoke(app, ["accuracy", str(path), "--format", "json"]).stdout)
    assert [row["id"] for row in document["rows"]] == ["0", "1"]
    assert document["rows"][0]["predicted_us"] == pytest.approx(210, rel=0.3)
    assert document["rows"][0]["source"] == "measured"
    assert "format 'int3_wo' is not one of" in document["rows"][1]["error"]
    assert document["basis"]["kind"] == "tables"
    text = RUNNER.invoke(app, ["accuracy", str(path)]).stdout
    assert "Not predicted: 1 of 2 rows" in text


def test_files_of_two_kinds_and_unknown_columns_are_refused(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "gemm.csv"
    other.write_text(GEMM)
    result = RUNNER.invoke(app, ["accuracy", str(runs), str(other)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "This file measures gemm, the first one training." in result.stderr
    for file in (runs, other):
        result = RUNNER.invoke(app, ["accuracy", str(file), "--by", "colour"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert "the file has no column colour" in result.stderr


def kernels(path: Path) -> Path:
    sizes = [512, 1024, 2048, 4096, 8192]
    lines = [f"h100_sxm,bfloat16,{m},{n},4096,{m * n / 3e4}" for m in sizes for n in sizes]
    path.write_text("\n".join(["system,dtype,m,n,k,latency_us", *lines]) + "\n")
    return path


def test_rows_left_out_and_analytic_prices_say_that_they_are(tmp_path: Path) -> None:
    path = kernels(tmp_path / "gemm.csv")
    left_out = RUNNER.invoke(app, ["accuracy", str(path), "--left-out", "5"])
    assert left_out.exit_code == 0
    assert "left out: each of 5 parts predicted by tables of the others, equal shapes together" in left_out.stdout
    assert "measured" not in left_out.stdout.partition("of them")[2]
    surface = RUNNER.invoke(app, ["accuracy", str(path), "--surface-only", "--format", "json"])
    document = json.loads(surface.stdout)
    assert document["basis"] == {
        "kind": "surface",
        "parts": None,
        "text": "analytic models alone, no measured table",
    }
    assert document["summary"]["sources"] == {"analytic": 25}


def test_a_profile_of_ones_own_replaces_the_shipped_one(tmp_path: Path) -> None:
    write_profile(tmp_path / "mine", METADATA, TABLES)
    path = tmp_path / "gemm.csv"
    path.write_text(
        "system,dtype,m,n,k,latency_us,framework\nh100_sxm,bfloat16,4096,4096,4096,200,ours\na100_sxm,bfloat16,1,2,3,4,ours\n"
    )
    result = RUNNER.invoke(app, ["accuracy", str(path), "--profile", str(tmp_path / "mine"), "--format", "json"])
    document = json.loads(result.stdout)
    assert document["rows"][0]["predicted_us"] == pytest.approx(210.25)
    assert [row["source"] for row in document["rows"]] == ["measured", "analytic"]
    (tmp_path / "mine" / "gemm.csv").write_text("dtype,m,n,k,latency_us,origin\nbfloat16,1,2,3,x,ours\n")
    broken = RUNNER.invoke(app, ["accuracy", str(path), "--profile", str(tmp_path / "mine")])
    assert (broken.exit_code, broken.stdout) == (2, "")
    assert f"{tmp_path / 'mine' / 'gemm.csv'}:2: latency_us = 'x' is no time in microseconds above 0" in broken.stderr
    missing = RUNNER.invoke(app, ["accuracy", str(path), "--profile", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
    assert "there is no such file" in missing.stderr


def test_what_profile_run_has_written_prices_kernels_too(tmp_path: Path) -> None:
    sizes = {"m": 4096, "n": 4096, "k": 4096}
    kept = point("gemm", dtype="bf16", part="forward", batch=1, **sizes)
    seen = {"batch": 2, "heads": 32, "kv_heads": 8, "qk_dim": 128, "v_dim": 128, "window": 0}
    others = {
        point("gemm", dtype="bf16", part="grad_weight", batch=1, **sizes): 300e-6,
        point("attention", dtype="bf16", phase="forward", mask="causal", query_len=4096, kv_len=4096, **seen): 700e-6,
        point("attention", dtype="bf16", phase="decode", mask="full", query_len=1, kv_len=4096, **seen): 30e-6,
    }
    with Journal(tmp_path / "mine", resume=False) as journal:
        journal.begin(run_line(load_preset("dgx-h100").to_cluster()))
        for entry, seconds in {kept: 250e-6, **others}.items():
            journal.measured(entry, result_of(seconds))
    (tmp_path / "gemm.csv").write_text(
        "system,dtype,m,n,k,latency_us,framework\nh100_sxm,bfloat16,4096,4096,4096,200,ours\n"
    )
    attention = "system,attn_dtype,kv_cache_dtype,batch_size,num_heads,num_kv_heads,head_dim,latency_us,framework"
    cells = "h100_sxm,bfloat16,bfloat16,2,32,8,128,100,ours"
    (tmp_path / "prefill.csv").write_text(f"{attention},isl\n{cells},4096\n")
    (tmp_path / "decode.csv").write_text(f"{attention},kv_len\n{cells},4096\n")
    for name, microseconds in (("gemm", 250.0), ("prefill", 700.0), ("decode", 30.0)):
        words = ["accuracy", str(tmp_path / f"{name}.csv"), "--profile", str(tmp_path / "mine"), "--format", "json"]
        result = RUNNER.invoke(app, words)
        assert result.exit_code == 0, result.stderr
        (row,) = json.loads(result.stdout)["rows"]
        assert (row["predicted_us"], row["source"]) == (pytest.approx(microseconds), "measured")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--left-out", "5", "--surface-only"], "exclude one another"),
        (["--left-out", "1"], "neither a number from 2 to 100 nor nodes"),
        (["--left-out", "nodes"], "is for collectives, and these files measure gemm"),
    ],
)
def test_options_that_contradict_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["accuracy", str(kernels(tmp_path / "gemm.csv")), *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_collectives_are_left_out_by_their_nodes(tmp_path: Path) -> None:
    path = tmp_path / "collectives.csv"
    lines = ["system,op,num_gpus,num_nodes,bytes,latency_us,library"]
    # All take a third longer than analytic prices say; two nodes are predicted by four, and four by two.
    predict = ["accuracy", str(path), "--surface-only", "--format", "json"]
    sizes = [(nodes, 1 << power) for nodes in (1, 2, 4) for power in range(10, 30)]
    path.write_text("\n".join((*lines, *(f"alps,all_reduce,{4 * n},{n},{size},1,nccl" for n, size in sizes))))
    analytic = [row["predicted_us"] for row in json.loads(RUNNER.invoke(app, predict).stdout)["rows"]]
    rows = [
        f"alps,all_reduce,{4 * n},{n},{size},{found * 4 / 3},nccl"
        for (n, size), found in zip(sizes, analytic, strict=True)
    ]
    path.write_text("\n".join((*lines, *rows)))
    result = RUNNER.invoke(app, ["accuracy", str(path), "--left-out", "nodes", "--format", "json"])
    document = json.loads(result.stdout)
    inside, across = document["rows"][:20], document["rows"][20:]
    assert all("it ran inside a node" in row["error"] for row in inside)
    assert {row["source"] for row in across} == {"extrapolated"}
    for row, found in zip(across, analytic[20:], strict=True):
        # One octave of nodes beyond what was measured, a residual fades to 2^(-1/4) of itself.
        assert row["predicted_us"] == pytest.approx(found * (4 / 3) ** (0.5**0.25), rel=1e-6)


def test_a_collective_costs_the_same_whatever_else_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "collectives.csv"
    lines = [
        "system,op,num_gpus,num_nodes,bytes,latency_us,library",
        "gb200-nvl72,all_reduce,16,4,1073741824,1,nccl",
        "gb200-nvl72,all_reduce,64,16,1073741824,1,nccl",
    ]
    predict = ["accuracy", str(path), "--surface-only", "--format", "json"]
    path.write_text("\n".join(lines))
    alone = [row["predicted_us"] for row in json.loads(RUNNER.invoke(app, predict).stdout)["rows"]]
    path.write_text("\n".join((*lines, "gb200-nvl72,all_reduce,144,36,1073741824,1,nccl")))
    beside = [row["predicted_us"] for row in json.loads(RUNNER.invoke(app, predict).stdout)["rows"]]
    assert alone == beside[:2]
    assert beside[2] > beside[1]


def test_training_runs_have_no_tables(runs: Path) -> None:
    result = RUNNER.invoke(app, ["accuracy", str(runs), "--left-out", "5"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--profile, --left-out and --surface-only are for kernels" in result.stderr


def test_columns_files_and_refits_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    header = "id,source_group,model,hardware,num_gpus,seq_len,tp,pp,micro_batch,global_batch,step_time_s"
    row = "a,one,llama-3.1-8b,H100,8,8192,1,1,1,128,9.0"
    file.write_text(f"{header}\n")
    for arguments, message in (
        ([], "The file has no rows."),
        (["--by", ","], "--by names no column."),
        (["--refit-without", "source_group"], "every row says the same there, so nothing is left to fit."),
        (["--refit-without", "nowhere"], "the file has no such column."),
    ):
        result = RUNNER.invoke(app, ["accuracy", str(file), *arguments])
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
        file.write_text(f"{header}\n{row}\n")


def test_refits_list_every_constant_and_predict_what_they_left_out(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    header = "id,source_group,model,hardware,num_gpus,seq_len,tp,pp,micro_batch,global_batch,step_time_s"
    rows = ["a,one,llama-3.1-8b,H100,8,8192,1,1,1,128,9.0", "b,two,llama-3.1-8b,A100,8,8192,1,1,1,128,30.0"]
    file.write_text("\n".join([header, *rows]) + "\n")
    arguments = ["accuracy", str(file), "--refit", "--refit-without", "generation"]
    document = json.loads(RUNNER.invoke(app, [*arguments, "--format", "json"]).stdout)
    trained = {entry["name"]: entry for entry in document["constants"] if entry["origin"] == Origin.TRAINED}
    assert set(document["refit"]) == set(trained)
    for name, entry in document["refit"].items():
        assert entry["value"] == trained[name]["value"]
        assert trained[name]["low"] <= entry["fitted"] <= trained[name]["high"]
    groups = document["refit_without"]["groups"]
    assert [(group["group"], group["errors"]["count"]) for group in groups] == [("hopper", 1), ("ampere", 1)]
    assert document["refit_without"]["dense"]["errors"]["count"] == 2
    printed = RUNNER.invoke(app, arguments)
    assert (printed.exit_code, printed.stderr) == (0, "")
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert ["ampere", "1"] in [line[:2] for line in lines]
    for name, constant in trained.items():
        fitted = [f"{constant['value']:.4g}", f"{document['refit'][name]['fitted']:.4g}"]
        assert [*name.split(), *fitted] in [line[: len(name.split()) + 2] for line in lines]


def test_a_gpu_that_only_begins_like_one_is_not_taken_for_it(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    header = "id,source_group,model,hardware,num_gpus,seq_len,tp,pp,micro_batch,global_batch,step_time_s,status"
    rows = ["a,one,llama-3.1-8b,H1000,8,8192,1,1,1,128,9.0,ok", "b,one,llama-3.1-8b,H100,8,8192,1,1,1,128,9.0,burnt"]
    file.write_text("\n".join([header, *rows]) + "\n")
    result = RUNNER.invoke(app, ["accuracy", str(file)])
    assert result.exit_code == 0
    assert "1 x hardware 'H1000' is no GPU of the catalogue" in result.stdout
    assert "1 x status: 'burnt' is not understood, and read as nothing" in result.stdout


def test_a_file_counts_once_and_an_absurd_error_stays_short(tmp_path: Path) -> None:
    file = tmp_path / "gemm.csv"
    file.write_text("system,dtype,m,n,k,latency_us\nh100_sxm,bfloat16,4096,4096,4096,1e-300\n")
    twice = RUNNER.invoke(app, ["accuracy", str(file), str(file)])
    assert twice.exit_code == 2
    assert "A file is given twice" in twice.stderr
    once = RUNNER.invoke(app, ["accuracy", str(file)])
    assert once.exit_code == 0
    assert "over 10,000 %" in once.stdout
    assert max(map(len, once.stdout.splitlines())) < 150


def _serving_file(tmp_path: Path) -> Path:
    path = tmp_path / "serving.csv"
    rows = [
        SERVING_CELLS,
        {**SERVING_CELLS, "id": "T-2", "tp": "2", "num_gpus": "2", "tpot_ms": "5"},
        {**SERVING_CELLS, "id": "T-3", "model": "nobody's"},
        {**SERVING_CELLS, "id": "S00890", "tpot_ms": "1"},
    ]
    path.write_text("\n".join(",".join(cells) for cells in (SERVING_CELLS, *(row.values() for row in rows))) + "\n")
    return path


def test_serving_runs_are_scored_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    path = _serving_file(tmp_path)
    document = json.loads(RUNNER.invoke(app, ["accuracy", str(path), "--format", "json"]).stdout)
    assert document["kind"] == "serving"
    assert [row["id"] for row in document["rows"]] == ["T-1", "T-2", "T-3", "S00890"]
    first, second, third, _ = document["rows"]
    assert first["predicted_fits"] is True
    assert first["predicted_tpot_ms"] > second["predicted_tpot_ms"] > 0
    assert first["predicted_ttft_ms"] > 0
    assert first["predicted_total_tokens_per_second_per_gpu"] > first["predicted_output_tokens_per_second_per_gpu"]
    assert third["error"] == 'model "nobody\'s" is not bundled'
    assert document["summary"]["clean"]["tpot"]["rows_alike"]["count"] == 2
    assert document["summary"]["ranking"]["unequal_tpot"] == {"pairs": 1, "right": 1.0, "by_gpus": 1.0}
    assert (document["summary"]["coverage"], document["summary"]["coverage_of_stated"]) == (0.75, 1.0)
    excluded = {entry["name"]: entry["rows"] for entry in document["excluded"]}
    assert excluded["impossible as labelled"] == 1
    assert "published" in document["constants"]["source"]

    text = RUNNER.invoke(app, ["accuracy", str(path)])
    assert text.exit_code == 0
    assert "faster than the GPU's peak" in text.stdout
    assert "Not predicted: 1 of 4 rows" in text.stdout
    assert "100.0 % of 1 pairs; by counting GPUs 100.0 %" in text.stdout
    assert "\n  clean vllm " in text.stdout


def test_serving_runs_can_be_refitted_and_left_out(tmp_path: Path) -> None:
    path = _serving_file(tmp_path)
    found = RUNNER.invoke(app, ["accuracy", str(path), "--refit", "--refit-without", "tp", "--format", "json"])
    document = json.loads(found.stdout)
    assert document["refit"]["engines"]["vllm"]["compute_factor"] > 0
    assert [group["group"] for group in document["refit_without"]["groups"]] == ["1.0", "2"]
    text = RUNNER.invoke(app, ["accuracy", str(path), "--refit", "--refit-without", "tp"])
    assert "vllm compute_factor" in text.stdout
    assert "By constants fitted without them" in text.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nowhere", "--refit-without nowhere: the file has no such column."),
        ("engine", "--refit-without engine: every row says the same there, so nothing is left to fit."),
    ],
)
def test_a_serving_column_that_leaves_nothing_is_refused(tmp_path: Path, option: str, message: str) -> None:
    result = RUNNER.invoke(app, ["accuracy", str(_serving_file(tmp_path)), "--refit-without", option])
    assert result.exit_code == 2
    assert message in result.stderr
