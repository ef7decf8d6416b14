"""vLLM's files say the layout, start what they should in bash on every node, and break no rule."""

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.emit.vllm import config_name
from planner.errors import InputError
from planner.readers.vllm_engine import settings_of, shape_of
from planner.readers.vllm_run import read_vllm_config, read_vllm_runs
from planner.rules.rule import Severity
from planner.serving.files import serving_files
from planner.serving_plans.layout import (
    Draft,
    EngineSettings,
    EngineShape,
    Executor,
    Pool,
    Role,
    ServingLayout,
    check_layout,
)
from planner.validation.judge import judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.emitted.started_servers import started

VERSION = "0.32.0"
DENSE, EXPERTS = "meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-235B-A22B"
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30)


@st.composite
def settings(draw: st.DrawFn) -> EngineSettings:
    """Return any settings."""
    by_share = draw(st.booleans())
    return EngineSettings(
        max_num_seqs=draw(st.integers(1, 4096)),
        max_num_batched_tokens=draw(st.integers(1, 1 << 20)),
        max_model_len=draw(st.integers(1, 1 << 24)),
        gpu_memory_utilization=draw(st.floats(0.01, 1.0)) if by_share else None,
        kv_cache_memory_bytes=None if by_share else draw(st.integers(1, 1 << 38)),
        block_size=draw(st.sampled_from((None, 16, 64))),
        kv_cache_dtype=draw(st.sampled_from(("auto", "fp8", "fp8_e4m3"))),
        dtype=draw(st.sampled_from(("auto", "bfloat16"))),
        quantization=draw(st.sampled_from((None, "fp8"))),
        chunked_prefill=draw(st.booleans()),
        prefix_caching=draw(st.booleans()),
        redundant_experts=draw(st.sampled_from((None, 0, 16))),
        draft=draw(st.sampled_from((None, Draft(model="a draft", num_tokens=3, tp=2)))),
    )


@st.composite
def layouts(draw: st.DrawFn) -> ServingLayout:
    """Return any layout that its nodes can hold."""
    roles = draw(st.sampled_from(((Role.BOTH,), (Role.PREFILL, Role.DECODE))))
    sizes = st.sampled_from((1, 2, 4, 8))
    pools = tuple(
        Pool(
            name=f"pool-{index}",
            role=role,
            replicas=draw(st.integers(1, 9)),
            shape=EngineShape(
                tp=draw(sizes),
                pp=draw(st.sampled_from((1, 2))),
                dp=draw(sizes),
                dcp=draw(st.sampled_from((1, 2))),
                expert_parallel=draw(st.booleans()),
            ),
            settings=draw(settings()),
            gpu="a gpu",
            gpus_per_node=8,
        )
        for index, role in enumerate(roles)
    )
    layout = ServingLayout(
        model=draw(NAMES),
        pools=pools,
        executor=draw(st.sampled_from(Executor)),
        connector="NixlConnector" if len(roles) == 2 else None,
    )
    try:
        check_layout(layout)
    except InputError:
        assume(False)
    return layout


@given(layout=layouts())
def test_the_files_say_the_layout(layout: ServingLayout) -> None:
    files = serving_files(layout)
    for pool in layout.pools:
        run = read_vllm_config(
            files[config_name(pool)], file=config_name(pool), version=VERSION, num_gpus=None, gpus_per_node=8
        )
        assert run.model_name == layout.model
        assert shape_of(run) == pool.shape
        assert settings_of(run) == pool.settings
        assert run.arguments.integer("max_num_seqs") == pool.settings.max_num_seqs
        assert [mistake.message for mistake in run.arguments.mistakes] == []


def layout_of(
    shape: EngineShape, *, model: str = DENSE, executor: Executor = Executor.MULTIPROCESSING
) -> ServingLayout:
    told = EngineSettings(max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=8192, gpu_memory_utilization=0.9)
    pool = Pool(name="server", role=Role.BOTH, replicas=1, shape=shape, settings=told, gpu="h100", gpus_per_node=8)
    return ServingLayout(model=model, pools=(pool,), executor=executor)


@pytest.mark.parametrize(
    ("replicas", "times"),
    [
        (1, "on a node: SLOT=0 PORT=8000 bash server.sh"),
        (2, "2 times on a node: SLOT=0 PORT=8000 bash server.sh, SLOT=1 PORT=8001 bash server.sh"),
        (4, "4 times on a node: SLOT=0 PORT=8000 bash server.sh, SLOT=1 PORT=8001 bash server.sh ..."),
        (9, "9 times, 4 on a node: SLOT=0 PORT=8000 bash server.sh, SLOT=1 PORT=8001 bash server.sh ..."),
    ],
)
def test_a_script_says_how_often_it_is_run(replicas: int, times: str) -> None:
    layout = layout_of(EngineShape(tp=2))
    pools = (replace(layout.pools[0], replicas=replicas),)
    assert f"# Run it {times}\n" in serving_files(replace(layout, pools=pools))["server.sh"]


CASES: Mapping[str, tuple[EngineShape, Executor, Mapping[str, str], list[str]]] = {
    "second of four on a node": (
        EngineShape(tp=2),
        Executor.MULTIPROCESSING,
        {"SLOT": "1", "PORT": "8001"},
        ["serve", "--config", "server.yaml", "--port", "8001", "devices=2,3"],
    ),
    "a whole node": (
        EngineShape(tp=8),
        Executor.MULTIPROCESSING,
        {},
        ["serve", "--config", "server.yaml", "--port", "8000", "devices=all"],
    ),
    "second node of a pipeline": (
        EngineShape(tp=8, pp=2),
        Executor.MULTIPROCESSING,
        {"HEAD_ADDR": "10.0.0.1", "NODE_RANK": "1"},
        [
            "serve",
            "--config",
            "server.yaml",
            "--nnodes",
            "2",
            "--node-rank",
            "1",
            "--master-addr",
            "10.0.0.1",
            "--master-port",
            "29501",
            "--headless",
            "--port",
            "8000",
            "devices=all",
        ],
    ),
    "third node of data-parallel ranks": (
        EngineShape(tp=2, dp=16, expert_parallel=True),
        Executor.MULTIPROCESSING,
        {"HEAD_ADDR": "head", "NODE_RANK": "2"},
        [
            "serve",
            "--config",
            "server.yaml",
            "--data-parallel-size-local",
            "4",
            "--data-parallel-address",
            "head",
            "--data-parallel-rpc-port",
            "13345",
            "--headless",
            "--data-parallel-start-rank",
            "8",
            "--port",
            "8000",
            "devices=all",
        ],
    ),
    "head of Ray": (
        EngineShape(tp=2, dp=16, expert_parallel=True),
        Executor.RAY,
        {"HEAD_ADDR": "head"},
        [
            "serve",
            "--config",
            "server.yaml",
            "--distributed-executor-backend",
            "ray",
            "--data-parallel-backend",
            "ray",
            "--data-parallel-size-local",
            "4",
            "--data-parallel-address",
            "head",
            "--port",
            "8000",
            "devices=all",
        ],
    ),
    "another node of Ray": (
        EngineShape(tp=8, pp=2),
        Executor.RAY,
        {"HEAD_ADDR": "head", "NODE_RANK": "1"},
        ["joined"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bash_starts_what_each_node_runs(tmp_path: Path, case: str) -> None:
    shape, executor, environment, expected = CASES[case]
    assert started(tmp_path, layout_of(shape, executor=executor), **environment) == expected


def test_a_split_says_its_roles_and_needs_an_address(tmp_path: Path) -> None:
    base = layout_of(EngineShape(tp=8)).pools[0]
    pools = tuple(
        Pool(
            name=role.value,
            role=role,
            replicas=1,
            shape=base.shape,
            settings=base.settings,
            gpu=base.gpu,
            gpus_per_node=8,
        )
        for role in (Role.PREFILL, Role.DECODE)
    )
    files = serving_files(ServingLayout(model=DENSE, pools=pools, connector="NixlConnector"))
    assert 'kv_role: "kv_producer"' in files["prefill.yaml"]
    assert 'kv_role: "kv_consumer"' in files["decode.yaml"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    result = subprocess.run(
        ["bash", "prefill.sh"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "set it to the address of this node" in result.stderr


@pytest.mark.parametrize("name", ["$(touch owned)", "a'b", "`touch owned`", "x\ny: 1", '"; touch owned; "'])
def test_a_hostile_model_name_stays_a_name(tmp_path: Path, name: str) -> None:
    layout = layout_of(EngineShape(tp=8), model=name)
    words = started(tmp_path, layout)
    assert words[0] == "serve"
    assert not (tmp_path / "owned").exists()
    assert serving_files(layout)


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        (EngineShape(tp=8), DENSE),
        (EngineShape(tp=8, pp=2), DENSE),
        (EngineShape(tp=4, dp=8, expert_parallel=True), EXPERTS),
        (EngineShape(tp=4, dp=2, expert_parallel=True), EXPERTS),
    ],
)
@pytest.mark.parametrize("executor", Executor)
def test_no_rule_finds_fault_with_the_files(tmp_path: Path, shape: EngineShape, model: str, executor: Executor) -> None:
    for name, text in serving_files(layout_of(shape, model=model, executor=executor)).items():
        (tmp_path / name).write_text(text)
        file = str(tmp_path / name)
        source = read_source(text, file=file, asked=Asked(versions={}, gpus_per_node=8))
        assert source.runs
        found = judged_text(text, source.runs, file=file).findings
        assert [f.rule_id for f in found if f.severity is Severity.ERROR] == []


def test_the_script_is_read_together_with_its_configuration(tmp_path: Path) -> None:
    layout = layout_of(EngineShape(tp=8, pp=2))
    for name, text in serving_files(layout).items():
        (tmp_path / name).write_text(text)
    file = str(tmp_path / "server.sh")
    (run,) = read_vllm_runs((tmp_path / "server.sh").read_text(), file=file, version=VERSION, gpus_per_node=8)
    assert shape_of(run) == layout.pools[0].shape
    assert settings_of(run) == layout.pools[0].settings
    assert run.nnodes == 2


LAYOUT = layout_of(EngineShape(tp=8))
REFUSED = {
    "dcp 2 with tp 8, pcp 1 and NixlConnector": ServingLayout(
        model=DENSE,
        connector="NixlConnector",
        pools=tuple(
            replace(LAYOUT.pools[0], name=role.value, role=role, shape=EngineShape(tp=8, dcp=2))
            for role in (Role.PREFILL, Role.DECODE)
        ),
    ),
    "has a connector and no split": replace(LAYOUT, connector="NixlConnector"),
    "do not fill nodes of 8": layout_of(EngineShape(tp=3, dp=5)),
    "have the roles decode": replace(LAYOUT, pools=(replace(LAYOUT.pools[0], role=Role.DECODE),)),
    "Two pools have one name": replace(LAYOUT, pools=LAYOUT.pools * 2),
    "gives no size of its cache": replace(
        LAYOUT,
        pools=(replace(LAYOUT.pools[0], settings=replace(LAYOUT.pools[0].settings, gpu_memory_utilization=None)),),
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_pools_that_cannot_work_are_refused(said: str) -> None:
    with pytest.raises(InputError, match=said):
        serving_files(REFUSED[said])
