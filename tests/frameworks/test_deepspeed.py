"""DeepSpeed reads what is emitted as it was meant, and every layout of a model takes the same steps as one process."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from planner.emit.deepspeed import CONFIG_FILE, emit_deepspeed
from planner.emit.deepspeed_config import REDUCE_BUCKET_ELEMENTS
from planner.frameworks.capabilities import DEEPSPEED
from planner.inputs.load import load_inputs
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, Layout, Offload
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.specs import ModelSpec, Trait
from planner.offloading.drive_weights import drive_weights
from planner.plans.plan import Plan
from planner.ranks.placement import place
from planner.requests.workload import DType, Precision
from planner.search.search import search
from planner.verification.logs import read_log
from tests.emitted.deepspeed_plans import (
    FULL_RECOMPUTE,
    GPT,
    LATENT_DENSE,
    LATENT_EXPERTS,
    LLAMA,
    TIED,
    deepspeed_plan,
    layout_with,
)
from tests.emitted.plans import LLAMA_8B, LLAMA_70B
from tests.emitted.test_node_order_in_bash import on_nodes_that_differ
from tests.frameworks.deepspeed_environment import (
    Trained,
    environment,
    free_port,
    program_arguments,
    run_beside_deepspeed,
    trained,
    write_files,
)
from tests.frameworks.deepspeed_runs import ALONE, STEPS, TOLERANCE, Run, halves, run_of, trained_runs

pytestmark = pytest.mark.frameworks

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama-3.1-8b-deepspeed-1xdgx-h100" / "spec.yaml"


def searched(*overrides: str) -> Plan:
    """Return what the search plans for DeepSpeed: the example, with some fields changed."""
    inputs = load_inputs(EXAMPLE, overrides)
    return search(inputs.model, inputs.cluster, inputs.request, top=1)


WHOLE = Offload(optimizer_fraction=1.0, overlapped=False)
PLACES = {GPU_WEIGHTS: None, HOST_WEIGHTS: "cpu", DRIVE_WEIGHTS: "nvme"}
ON_HOST = replace(layout_with((32,), dp=8, zero_stage=3), offload=WHOLE)

SEARCHED: Mapping[str, tuple[str, ...]] = {
    "8B, as searched": (),
    "70B, as searched": ("model=llama-3.1-70b", "cluster.nodes=8"),
    "mixture, as searched": ("model=mixtral-8x7b", "cluster.nodes=8", "workload.global_batch_size=512"),
    "long sequences, as searched": ("workload.seq_len=131072", "cluster.nodes=8"),
}
WRITTEN: Mapping[str, Plan] = {
    "8B, optimizer sharded": deepspeed_plan(LLAMA_8B, layout_with((32,), dp=8)),
    "8B, gradients sharded, fp16": deepspeed_plan(
        LLAMA_8B, layout_with((32,), dp=8, zero_stage=2), precision=Precision.FP16, gradient_dtype=DType.FP16
    ),
    "70B, weights sharded, second copy in each node": deepspeed_plan(
        LLAMA_70B, layout_with((80,), dp=64, zero_stage=3, secondary_shard=8, recompute=FULL_RECOMPUTE)
    ),
    "8B, states on the host": deepspeed_plan(LLAMA_8B, ON_HOST),
    "8B, states and weights on the host": deepspeed_plan(
        LLAMA_8B, replace(ON_HOST, offload=replace(WHOLE, parameters=True))
    ),
    "8B, weights on drives": deepspeed_plan(
        LLAMA_8B, replace(ON_HOST, offload=replace(WHOLE, parameters=True, parameter_drives=True))
    ),
    "8B, states and weights on drives": deepspeed_plan(
        LLAMA_8B, replace(ON_HOST, offload=replace(WHOLE, parameters=True, drives=True, parameter_drives=True))
    ),
    "70B, heads exchanged": deepspeed_plan(
        LLAMA_70B, layout_with((80,), cp=8, dp=4, zero_stage=3, num_microbatches=2), seq_len=131072
    ),
    "70B, split by AutoTP": deepspeed_plan(LLAMA_70B, layout_with((80,), tp=8, dp=4, micro_batch_size=2)),
    "70B, uneven stages": deepspeed_plan(
        LLAMA_70B, layout_with((19, 21, 21, 19), dp=8, num_microbatches=16, recompute=FULL_RECOMPUTE)
    ),
}


def asked(plan: Plan, **changes: object) -> dict[str, object]:
    """Return what the oracle is asked about a plan's configuration, with some keys changed."""
    layout = plan.best.layout
    config = json.loads(emit_deepspeed(plan)[CONFIG_FILE]) | changes
    return {"config": config, "world": layout.world_size, "dp": layout.dp, "sequence": layout.cp}


CONFIGURATIONS = (*SEARCHED, *WRITTEN)


@cache
def configured(name: str) -> Plan:
    """Return the plan of a configuration, searched for when it is first asked for."""
    return WRITTEN[name] if name in WRITTEN else searched(*SEARCHED[name])


EIGHT = WRITTEN["8B, optimizer sharded"]
REFUSED: Mapping[str, tuple[dict[str, object], str]] = {
    "a batch that does not divide": (asked(EIGHT, train_batch_size=31), "31 != 1 * 4 * 8"),
    "an unknown key in a section": (asked(EIGHT, zero_optimization={"stage": 1, "stag": 2}), "Extra inputs"),
    "MiCS": (
        asked(EIGHT, zero_optimization={"stage": 3, "mics_shard_size": 8}),
        "MiCS ZeRO-3 sharding has been removed",
    ),
}


@pytest.fixture(scope="module")
def readings() -> Mapping[str, Mapping[str, object]]:
    """Return what DeepSpeed reads from every configuration above; one process imports it once."""
    cases = {name: asked(configured(name)) for name in CONFIGURATIONS}
    cases |= {name: case for name, (case, _) in REFUSED.items()}
    cases["an unknown key at the top"] = asked(EIGHT, zero_optimisation={"stage": 3})
    answers = run_beside_deepspeed("tests.frameworks.deepspeed_oracle", list(cases.values()), jobs=1)
    return dict(zip(cases, answers, strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_deepspeed_reads_the_plan(name: str, readings: Mapping[str, Mapping[str, object]]) -> None:
    plan, read = configured(name), readings[name]
    layout, workload = plan.best.layout, plan.request.workload
    assert (read["error"], read["ignored"]) == ("", [])
    assert read["batch"] == [workload.global_batch_size, layout.micro_batch_size, layout.num_microbatches]
    assert read["data_parallel"] == layout.dp
    assert (read["zero_stage"], read["overlap_comm"]) == (layout.zero_stage, layout.overlap.grad_reduce)
    assert read["buckets"] == [REDUCE_BUCKET_ELEMENTS, 50_000_000, DEEPSPEED.prefetched_weights]
    assert read["secondary_shard"] == layout.secondary_shard
    states, weights = "nvme" if layout.drive_offload else "cpu", PLACES[layout.parameter_offload]
    assert read["offload"] == ([states, True, 1.0] if layout.offload is not None else None)
    assert read["offload_param"] == ([weights, True] if weights is not None else None)
    assert read["nvme_paths"] == [
        "/local_nvme" if layout.drive_offload else None,
        "/local_nvme" if weights == "nvme" else None,
    ]
    assert read["tensor_parallel"] == (layout.tp if layout.tp > 1 else 0)
    assert (read["bf16"], read["fp16"]) == (workload.precision is Precision.BF16, workload.precision is Precision.FP16)
    names = {"fp32": "torch.float32", "fp16": "torch.float16", "bf16": "torch.bfloat16"}
    assert read["gradients"] == [workload.gradient_dtype.value, names[workload.gradient_dtype.value]]
    assert read["interval"] == (1 if layout.pp > 1 and layout.recompute == FULL_RECOMPUTE else 0)
    assert read["optimizer"] == "adamw"


def test_deepspeed_reads_the_buffers_of_weights_on_drives(readings: Mapping[str, Mapping[str, object]]) -> None:
    read, plan = readings["8B, states and weights on drives"], configured("8B, states and weights on drives")
    graph = build_graph(plan.model, plan.request.workload, eager=DEEPSPEED.eager)
    needed = drive_weights(place(plan.model, graph, plan.best.layout, plan.request.workload, DEEPSPEED))
    assert read["weight_buffers"] == [needed.num_buffers, needed.buffer_elements, 0]
    assert read["reuse_distance"] == needed.reuse_elements


@pytest.mark.parametrize("name", REFUSED)
def test_deepspeed_refuses_what_it_can_see(name: str, readings: Mapping[str, Mapping[str, object]]) -> None:
    assert REFUSED[name][1] in str(readings[name]["error"])


def test_deepspeed_still_ignores_unknown_keys_at_the_top(readings: Mapping[str, Mapping[str, object]]) -> None:
    """The reason why the reader refuses them; when this fails, DeepSpeed does it itself."""
    read = readings["an unknown key at the top"]
    assert (read["error"], read["ignored"], read["zero_stage"]) == ("", ["zero_optimisation"], 1)


MODELS = {
    "llama": replace(LLAMA, traits=(Trait.ZERO_CENTERED_NORM, Trait.INTERLEAVED_ROTARY)),
    "tied": TIED,
    "gpt": GPT,
    "latent experts": LATENT_EXPERTS,
    "latent": LATENT_DENSE,
}
LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    "llama": {
        "optimizer sharded": halves(),
        "gradients sharded": halves(zero_stage=2),
        "weights sharded, recomputed": halves(zero_stage=3, recompute=FULL_RECOMPUTE),
        "second copy of the weights": halves(zero_stage=3, secondary_shard=2),
        "two stages": layout_with((1, 3)),
        "two stages, recomputed": layout_with((3, 1), recompute=FULL_RECOMPUTE),
        "a stage without layers": layout_with((0, 4), micro_batch_size=2, num_microbatches=2),
        "split by AutoTP": layout_with((4,), tp=2),
        "heads exchanged": layout_with((4,), cp=2, zero_stage=2),
        "heads exchanged, weights sharded": layout_with((4,), cp=2, zero_stage=3),
    },
    "tied": {"two stages": layout_with((3, 1)), "split by AutoTP": layout_with((4,), tp=2, zero_stage=2)},
    "gpt": {
        "weights sharded": halves(zero_stage=3),
        "two stages": layout_with((1, 3)),
        "split by AutoTP": layout_with((4,), tp=2),
        "heads exchanged": layout_with((4,), cp=2, zero_stage=2),
    },
    "latent experts": {
        "weights sharded": halves(zero_stage=3),
        "two stages": layout_with((1, 3)),
        "heads exchanged": layout_with((4,), cp=2, zero_stage=3),
    },
    "latent": {"split by AutoTP": layout_with((4,), tp=2)},
}
EQUAL = {
    (model, layout): run_of(MODELS[model], LAYOUTS[model][layout]) for model in LAYOUTS for layout in LAYOUTS[model]
}
FOUR = {
    ("llama", "AutoTP twice"): run_of(MODELS["llama"], halves(tp=2, zero_stage=2)),
    ("llama", "two stages twice"): run_of(MODELS["llama"], layout_with((1, 3), dp=2, num_microbatches=2)),
    ("llama", "heads exchanged twice"): run_of(MODELS["llama"], halves(cp=2, zero_stage=3)),
}
AS_EMITTED = {
    "optimizer sharded": halves(),
    "gradients sharded": halves(zero_stage=2),
    "weights sharded": halves(zero_stage=3),
    "two stages": layout_with((1, 3)),
    "split by AutoTP": layout_with((4,), tp=2),
    "heads exchanged": layout_with((4,), cp=2, zero_stage=2),
}
RUNS: Mapping[tuple[str, str], Run] = {
    **{(model, "alone"): run_of(MODELS[model], ALONE) for model in MODELS},
    **EQUAL,
    **FOUR,
    **{("bf16", name): run_of(MODELS["llama"], layout, exact=False) for name, layout in AS_EMITTED.items()},
    ("bf16", "16-bit gradients"): run_of(MODELS["llama"], halves(), exact=False, gradient_dtype=DType.BF16),
    ("bf16", "not sharded"): replace(
        run_of(MODELS["llama"], halves(), exact=False, gradient_dtype=DType.BF16), stage=0
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Trained]:
    """Return what every run above printed."""
    return trained_runs(RUNS, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", [*EQUAL, *FOUR], ids=", ".join)
def test_every_layout_takes_the_steps_of_one_process(
    name: tuple[str, str], results: Mapping[tuple[str, str], Trained]
) -> None:
    alone, found = results[name[0], "alone"], results[name]
    assert len(found.losses) == STEPS
    assert found.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    assert found.norms == pytest.approx(alone.norms, rel=5 * TOLERANCE)


def test_the_steps_change_the_model(results: Mapping[tuple[str, str], Trained]) -> None:
    """Equal steps of equal models would prove nothing if nothing were trained."""
    for model in MODELS:
        norms = results[model, "alone"].norms
        assert max(norms) > 1.04 * min(norms)


@pytest.mark.parametrize("name", AS_EMITTED)
def test_the_emitted_formats_train_as_fp32_does(name: str, results: Mapping[tuple[str, str], Trained]) -> None:
    exact, found = results["llama", "alone"], results["bf16", name]
    assert found.losses == pytest.approx(exact.losses, rel=2e-4)
    assert found.norms == pytest.approx(exact.norms, rel=2e-2)


def test_deepspeed_without_sharding_still_takes_other_steps(results: Mapping[tuple[str, str], Trained]) -> None:
    """The reason why zero_stage 0 is refused; when this fails, the refusal can go."""
    sharded, whole = results["bf16", "16-bit gradients"], results["bf16", "not sharded"]
    assert sharded.norms == pytest.approx(results["llama", "alone"].norms, rel=2e-2)
    assert whole.norms[0] == pytest.approx(sharded.norms[0], rel=1e-3)
    assert abs(whole.norms[2] / sharded.norms[2] - 1) > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_the_program_builds_the_planned_model(name: str, results: Mapping[tuple[str, str], Trained]) -> None:
    plan = RUNS[name, "alone"].plan
    graph = build_graph(plan.model, plan.request.workload)
    assert results[name, "alone"].parameters == (graph_parameters(plan.model, graph),)


@pytest.mark.parametrize("name", [*EQUAL, *FOUR], ids=", ".join)
def test_every_process_holds_what_is_counted(name: tuple[str, str], results: Mapping[tuple[str, str], Trained]) -> None:
    plan = RUNS[name].plan
    layout, workload = plan.best.layout, plan.request.workload
    placed = place(plan.model, build_graph(plan.model, workload), layout, workload, DEEPSPEED)
    assert results[name].parameters == tuple(placed.elements(rank).total for rank in range(layout.pp))


ROPES: Mapping[str, ModelSpec] = {
    "none": replace(LLAMA, rope_scaling={}),
    "llama3": LLAMA,
    "linear": replace(LLAMA, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "yarn": replace(LLAMA, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "tied": replace(LLAMA, tie_word_embeddings=True),
}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, float]]:
    """Return a folder for each Llama above with Hugging Face's model, and how far its logits are from ours."""
    folders = {name: tmp_path_factory.mktemp("llamas") / name for name in ROPES}
    for name, folder in folders.items():
        write_files(deepspeed_plan(ROPES[name], ALONE), folder, {})
    asked_about = [str(folder) for folder in folders.values()]
    found = run_beside_deepspeed("tests.frameworks.deepspeed_hugging_face", asked_about, jobs=len(folders))
    return {name: (folder, far) for (name, folder), far in zip(folders.items(), found, strict=True)}


@pytest.mark.parametrize("name", ROPES)
def test_the_decoder_is_hugging_faces_llama(name: str, llamas: Mapping[str, tuple[Path, float]]) -> None:
    assert llamas[name][1] < 1e-6


def test_a_hugging_face_model_takes_the_same_steps_however_it_is_sharded(
    llamas: Mapping[str, tuple[Path, float]], tmp_path: Path
) -> None:
    model, cases = str(llamas["llama3"][0] / "hugging_face"), []
    for index, layout in enumerate((ALONE, halves(), halves(zero_stage=3, recompute=FULL_RECOMPUTE))):
        run = run_of(LLAMA, layout)
        write_files(run.plan, tmp_path / str(index), run.changes())
        arguments = [*program_arguments(run.plan), "--steps", str(STEPS), "--model", model]
        cases.append({"folder": str(tmp_path / str(index)), "arguments": arguments, "world": layout.world_size})
    outputs = run_beside_deepspeed("tests.frameworks.deepspeed_steps", cases, jobs=len(cases))
    alone, *others = (trained(output) for output in outputs)
    for found in others:
        assert found.losses == pytest.approx(alone.losses, rel=TOLERANCE)
        assert found.norms == pytest.approx(alone.norms, rel=5 * TOLERANCE)


def test_the_emitted_script_trains_goes_on_and_reads_tokens(tmp_path: Path) -> None:
    """The script itself, with torchrun: it saves, goes on from there, and trains on a file of tokens."""
    run = run_of(LLAMA, halves(), exact=False)
    write_files(run.plan, tmp_path / "job", run.changes())
    (tmp_path / "tokens.bin").write_bytes(b"".join((index % 512).to_bytes(2, "little") for index in range(33 * 4)))
    outputs = []
    for extra in (["--steps", "2", "--save", "kept"], ["--steps", "3", "--load", "kept", "--data", "tokens.bin"]):
        result = subprocess.run(
            ["/bin/bash", str(tmp_path / "job" / "launch.sh"), *extra],
            cwd=tmp_path,
            env=environment() | {"LOCAL_SIZE": "2", "MASTER_PORT": free_port()},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert result.returncode == 0, result.stderr[-8000:]
        outputs.append([line for line in result.stdout.splitlines() if line.startswith("step ")])
        log = read_log(result.stdout)
        assert [f"{step}" for step in log.step_seconds] == [line.split()[1].partition("/")[0] for line in outputs[-1]]
        assert log.peak_bytes is not None
        assert log.peak_bytes > 0
    assert [line.split()[1] for line in outputs[0]] == ["1/2", "2/2"]
    assert [line.split()[1] for line in outputs[1]] == ["3/3"]


def test_its_launcher_reads_the_hostfile_in_the_order_of_the_places(tmp_path: Path) -> None:
    plan = on_nodes_that_differ(deepspeed_plan(LLAMA, layout_with((4,), dp=32, zero_stage=3)))
    for name, text in emit_deepspeed(plan).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    recorder = tmp_path / "deepspeed"
    recorder.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n')
    recorder.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    started = subprocess.run(
        ["/bin/bash", str(tmp_path / "launch.sh")], env=variables, capture_output=True, text=True, check=True
    )
    words = started.stdout.split("\0")[:-1]
    found = run_beside_deepspeed("tests.frameworks.deepspeed_hostfile", words, jobs=1)
    assert found["hosts"] == [["gamma", 8], ["alpha", 8], ["delta", 8], ["beta", 8]]
    assert found["program"] == str(tmp_path / "train_deepspeed.py")
    assert found["no_local_rank"] is True
    assert found["arguments"] == words[words.index(found["program"]) + 1 :]
