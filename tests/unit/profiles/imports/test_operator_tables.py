import random
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from profiles.errors import ProfileFileError
from profiles.imports.nccl_tests import Said
from profiles.imports.operator_tables import read_tables
from profiles.recorded import read_recording

RUNNER = CliRunner()
HEAD = "framework,version,device,op_name,kernel_source"
LEAD = "vllm,0.11,NVIDIA H100 80GB HBM3"
GEMM = f"""{HEAD},gemm_dtype,m,n,k,latency
{LEAD},gemm,cublas,bfloat16,4096,8192,1024,0.11
{LEAD},gemm,cublas,bfloat16,4096,8192,1024,0.11
{LEAD},gemm,deepgemm,fp8_block,4096,8192,1024,0.06
{LEAD},gemm,cutlass,fp8,4096,8192,1024,0.07
"""
SIZES = "batch_size,isl,num_heads,num_key_value_heads,head_dim,beam_width"
CONTEXT = f"""{HEAD},{SIZES},attn_dtype,kv_cache_dtype,step,window_size,latency
{LEAD},attention,flash,2,4096,32,8,128,1,bfloat16,bfloat16,0,0,0.9
{LEAD},attention,flash,2,4096,32,0,128,1,bfloat16,bfloat16,0,0,0.9
"""
GENERATION = CONTEXT.replace("2,4096,32,8,128,1,bfloat16,bfloat16,0,", "2,1,32,8,128,1,bfloat16,bfloat16,4095,")
REDUCE = f"""{HEAD},allreduce_dtype,num_gpus,message_size,latency,backend
{LEAD},allreduce,custom,bfloat16,8,1048576,0.05,custom
{LEAD},allreduce,custom,bfloat16,16,1048576,0.05,custom
"""
NCCL = f"""{HEAD},nccl_dtype,num_gpus,message_size,latency
{LEAD},all_reduce,nccl,half,4,2097152,0.06
{LEAD},all_gather,nccl,half,4,2097152,0.06
{LEAD},all_reduce,nccl,int8,4,2097152,0.06
"""
MOE = f"{HEAD},moe_dtype,latency\n{LEAD},moe,triton,bfloat16,1.0\n"
EIGHT = Said(gpus_per_node=8)


def folder_of(tmp_path: Path, **tables: str) -> Path:
    folder = tmp_path / "h100" / "vllm" / "0.11"
    folder.mkdir(parents=True)
    for name, text in tables.items():
        (folder / f"{name}_perf.csv").write_text(text)
    return tmp_path / "h100"


def points(folder: Path, said: Said = EIGHT) -> list[tuple[object, ...]]:
    runs = read_tables(folder, said=said).runs
    return [
        (entry.point.suite, *entry.point.words, *entry.point.sizes, entry.result["seconds"])
        for run in runs
        for entry in run.points
    ]


def test_products_in_milliseconds_each_once(tmp_path: Path) -> None:
    found = read_tables(folder_of(tmp_path, gemm=GEMM), said=Said())
    assert [(entry.point.words, entry.point.sizes) for entry in found.runs[0].points] == [
        (("bf16", "forward"), (1, 4096, 8192, 1024)),
        (("fp8", "forward"), (1, 4096, 8192, 1024)),
    ]
    assert found.runs[0].points[0].result["seconds"] == pytest.approx(0.11e-3)
    assert found.runs[0].software == {"vllm": "0.11"}
    assert found.left_out == {"gemm_perf: the same row again": 1, "gemm_perf: gemm_dtype fp8_block": 1}


def test_attention_of_both_phases(tmp_path: Path) -> None:
    found = points(folder_of(tmp_path, context_attention=CONTEXT, generation_attention=GENERATION))
    assert [row[:-1] for row in found] == [
        ("attention", "bf16", "forward", "causal", 2, 4096, 4096, 0, 32, 8, 128, 128),
        ("attention", "bf16", "decode", "full", 2, 1, 4096, 0, 32, 8, 128, 128),
    ]


def test_messages_are_elements_and_stay_inside_a_node(tmp_path: Path) -> None:
    found = points(folder_of(tmp_path, custom_allreduce=REDUCE, nccl=NCCL))
    assert [row[:-1] for row in found] == [
        ("collectives", "all_reduce", "eager", "alone", 8, 1, 2 << 20),
        ("collectives", "all_reduce", "eager", "alone", 4, 1, 4 << 20),
    ]


SIZE = 1 << 24  # elements, 32 MiB in 16 bit


def of_collectives(*rows: tuple[str, int, int, float]) -> str:
    """Return a table of collectives: name, GPUs, elements, milliseconds."""
    lines = [f"{LEAD},{name},nccl,half,{ranks},{size},{latency}" for name, ranks, size, latency in rows]
    return "\n".join([f"{HEAD},nccl_dtype,num_gpus,message_size,latency", *lines, ""])


SUMS = (("all_reduce", 8, SIZE, 0.30), ("all_reduce", 4, SIZE, 0.28), ("all_reduce", 8, 512, 0.02))


@pytest.mark.parametrize("name", ["all_gather", "reduce_scatter", "alltoall"])
@pytest.mark.parametrize(
    ("on_eight", "on_four", "factor"),
    [
        (0.16, 0.15, 1),  # half of the sum: the whole
        (0.29, 0.24, 1),  # nearly all of it, where a switch adds
        (1.20, 0.58, 8),  # eight and four parts
    ],
)
def test_times_say_whether_a_message_is_the_whole_or_a_part(
    tmp_path: Path, name: str, on_eight: float, on_four: float, factor: int
) -> None:
    # A latency on two ranks, or of a short message, says nothing and is read as the others are.
    others = ((name, 8, SIZE, on_eight), (name, 4, SIZE, on_four), (name, 8, 512, 0.02), (name, 2, 512, 0.01))
    found = points(folder_of(tmp_path, nccl=of_collectives(*SUMS, *others)))
    kind = {"alltoall": "all_to_all"}.get(name, name)
    read = [(row[4], row[6]) for row in found if row[1] == kind]
    parts = {8: 8, 4: 4, 2: 2} if factor == 8 else {8: 1, 4: 1, 2: 1}
    assert read == [(8, 2 * SIZE * parts[8]), (4, 2 * SIZE * parts[4]), (8, 1024 * parts[8]), (2, 1024 * parts[2])]


@pytest.mark.parametrize(
    "others",
    [
        (("all_gather", 8, 512, 0.02),),  # latencies alone
        (("all_gather", 8, SIZE, 0.60),),  # between the whole and a part
        (("all_gather", 8, SIZE, 0.16), ("all_gather", 4, SIZE, 0.58)),  # one this, the other that
        (("all_gather", 2, SIZE, 0.16),),  # two ranks
    ],
)
def test_times_that_do_not_say_it_leave_the_rows_out(
    tmp_path: Path, others: tuple[tuple[str, int, int, float], ...]
) -> None:
    found = read_tables(folder_of(tmp_path, nccl=of_collectives(*SUMS, *others)), said=EIGHT)
    assert {entry.point.word("kind") for run in found.runs for entry in run.points} == {"all_reduce"}
    reason = "nccl_perf: op_name all_gather: its times do not say whether message_size is a part or the whole"
    assert found.left_out == {reason: len(others)}


def test_copied_folders_and_tables_of_whole_layers_are_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, gemm=GEMM, moe=MOE)
    (folder / "vllm" / "0.12").mkdir()
    (folder / "vllm" / "0.12" / "gemm_perf.csv").write_text(GEMM)
    found = read_tables(folder, said=Said())
    assert len(found.runs) == 1
    assert found.left_out["gemm_perf: a copy of another file"] == 1
    assert found.left_out["moe_perf: no single operation of a plan"] == 1


@pytest.mark.parametrize(
    ("tables", "said", "message"),
    [
        ({}, EIGHT, "h100: there are no tables of operators in it"),
        ({"moe": MOE}, EIGHT, "h100: no row of it can be used: moe_perf: no single operation of a plan, 1 times"),
        ({"nccl": NCCL}, Said(), "nccl_perf.csv:2: the table does not say how many GPUs a node has: say it with"),
        (
            {"gemm": GEMM.replace("0.07", "-1")},
            EIGHT,
            "gemm_perf.csv:5: latency '-1' is no time in milliseconds above 0",
        ),
        ({"gemm": GEMM.replace("fp8,4096", "fp8,many")}, EIGHT, "gemm_perf.csv:5: m 'many' is no whole number"),
        ({"gemm": GEMM.replace(",m,", ",rows,")}, EIGHT, "gemm_perf.csv:2: m is missing"),
        ({"gemm": GEMM + "a,b\n"}, EIGHT, "gemm_perf.csv:6: the row has 2 cells, the header 10"),
        ({"gemm": GEMM.replace("NVIDIA H100 80GB HBM3", "")}, EIGHT, "gemm_perf.csv: the table does not name the GPU"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, tables: dict[str, str], said: Said, message: str) -> None:
    with pytest.raises(ProfileFileError) as caught:
        read_tables(folder_of(tmp_path, **tables), said=said)
    assert message in str(caught.value)
    assert caught.value.remedy


def test_mutated_tables_are_read_or_refused(tmp_path: Path) -> None:
    random_ = random.Random(2)
    folder = folder_of(tmp_path, context_attention=CONTEXT)
    (path,) = folder.rglob("*.csv")
    for _ in range(200):
        cut = list(CONTEXT)
        for _ in range(random_.randint(1, 5)):
            place = random_.randrange(len(cut))
            cut[place : place + random_.randint(0, 10)] = random_.choice(["", ",", "\n", '"', "9", "x", "\x00", "²"])
        path.write_text("".join(cut))
        with suppress(ProfileFileError):
            read_tables(folder, said=EIGHT)


def test_parquet_says_what_it_needs_or_holds_the_same(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    path = folder / "gemm_perf.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(ProfileFileError) as caught:
        read_tables(folder, said=EIGHT)
    try:
        import pyarrow  # noqa: PLC0415
        from pyarrow import csv, parquet  # noqa: PLC0415
    except ImportError:
        assert "reading Parquet needs pyarrow\nInstall it: pip install 'shardwright[parquet]'." in str(caught.value)
        return
    assert "gemm_perf.parquet: this is no Parquet: " in str(caught.value)
    parquet.write_table(csv.read_csv(pyarrow.py_buffer(GEMM.encode())), path)
    as_parquet = points(folder)
    path.unlink()
    (folder / "gemm_perf.csv").write_text(GEMM)
    assert as_parquet == points(folder)


def test_the_command_makes_a_profile_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, gemm=GEMM, custom_allreduce=REDUCE)
    out = tmp_path / "measured"
    result = RUNNER.invoke(app, ["profile", "import", str(folder), "--gpus-per-node", "8", "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    assert "left out 1 x gemm_perf: gemm_dtype fp8_block" in result.stderr
    recording = read_recording(out)
    assert (recording.device, len(recording.measured)) == ("h100-sxm-80gb", 3)
