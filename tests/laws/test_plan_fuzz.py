"""Whatever numbers a spec holds, planning ends in a plan, a proof that nothing fits, or a message."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError, NotExpressibleError
from planner.inputs.load import load_inputs
from planner.plans.plan import Status
from planner.search.search import search
from planner.targets.launch import launch_files
from planner.verification.kit import short_plan, verification_kit
from profiles.errors import CoverageError
from tests.examples import examples

MODELS = ("llama-3.1-8b", "llama-3.1-405b", "qwen3-0.6b", "gpt2-xl", "gpt-j-6b", "falcon-7b")
PRESETS = ("dgx-h100", "dgx-a100", "l40s-pcie-4", "gb200-nvl72", "mi300x-8", "p4d")
WORKLOADS = (
    "",
    "method: lora, lora: {rank: 16, alpha: 32, target_modules: [qkv, proj]}",
    "method: full-finetune",
    "attention_kernel: unfused, attention_dropout: 0.1",
    "moment_dtype: bf16",
    "optimizer: sgd",
    "gradient_dtype: bf16",
    "hidden_dropout: 0.1",
    "tokens_to_train: 1T",
)
CONSTRAINTS = (
    "{}",
    "{tp: 4}",
    "{tp: 16}",
    "{pp: {min: 2}}",
    "{vpp: 2}",
    "{dp: 1}",
    "{micro_batch_size: [1, 2]}",
    "{zero_stage: 0}",
    "{zero_stage: 3}",
    "{recompute: full, sequence_parallel: false}",
)

SPECS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "preset": st.sampled_from(PRESETS),
        "nodes": st.sampled_from((1, 2, 3, 5, 17)),
        "seq_len": st.sampled_from((1, 2, 7, 128, 1000, 1024)),
        "batch": st.sampled_from((1, 2, 3, 7, 64, 1000, 4096)),
        "precision": st.sampled_from(("bf16", "fp16", "fp8-delayed", "fp8-mxfp8")),
        "workload": st.sampled_from(WORKLOADS),
        "constraints": st.sampled_from(CONSTRAINTS),
        "headroom": st.sampled_from((0, 0.05, 0.9)),
    }
)


@settings(max_examples=examples(few=12, many=40), deadline=None)
@given(spec=SPECS)
def test_any_numbers_end_in_a_plan_a_proof_or_a_message(
    spec: Mapping[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    more = f", {spec['workload']}" if spec["workload"] else ""
    text = (
        f"schema: 1\nmodel: {spec['model']}\n"
        f"cluster: {{preset: {spec['preset']}, nodes: {spec['nodes']}}}\n"
        f"workload: {{kind: train, seq_len: {spec['seq_len']}, global_batch_size: {spec['batch']}, "
        f"precision: {spec['precision']}{more}}}\n"
        f"constraints: {spec['constraints']}\nmemory_headroom: {spec['headroom']}\n"
    )
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_text(text)
    message: str | None = None
    try:
        inputs = load_inputs(file)
        plan = search(inputs.model, inputs.cluster, inputs.request, top=2)
    except (InputError, NotExpressibleError, CoverageError) as error:
        message = str(error)
    if message is not None:
        assert message
        return
    assert plan.search.simulated + sum(plan.search.pruned.values()) == plan.search.considered
    if plan.status is Status.INFEASIBLE:
        assert plan.infeasible is not None
        assert plan.infeasible.binding
        return
    assert plan.best.peak_memory_bytes <= plan.best.memory_limit_bytes
    assert plan.best.lower_bound_seconds <= plan.best.step_seconds * (1 + 1e-9)
    uneven = plan.search.uneven_bound_seconds
    assert uneven is None or uneven < plan.best.step_seconds
    assert launch_files(plan)
    kit = verification_kit(plan, target=plan.target)
    assert kit is not None
    assert kit.num_runs == len(plan.plans)
    assert short_plan(plan).request.workload.steps_to_train == kit.steps
