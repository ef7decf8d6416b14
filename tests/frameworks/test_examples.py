"""Every layout that the examples' plans offer, the runners-up included, is accepted by Megatron-LM."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from planner.emit.megatron import emit_megatron
from planner.inputs.load import load_inputs
from planner.plans.plan import Plan
from planner.readers.megatron import read_megatron
from planner.requests.request import Target
from planner.search.search import search
from planner.verification.kit import verification_kit
from tests.frameworks.megatron_counts import ledger_parameters
from tests.frameworks.megatron_environment import Job, Verdict, ask_megatron, job_of

pytestmark = pytest.mark.frameworks

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNNERS_UP = 3

MIXTURE = "qwen3-235b-a22b-32xdgx-h100"

SPECS: Mapping[str, tuple[str, ...]] = {
    **{path.parent.name: () for path in sorted(EXAMPLES.glob("*/spec.yaml")) if "deepspeed" not in path.parent.name},
    "llama-3.1-405b-128xdgx-h100 on 2048 nodes": ("cluster.nodes=2048", "workload.global_batch_size=2048"),
    "llama-3.1-405b-128xdgx-h100 on 131,072 tokens": (
        "cluster.nodes=2048",
        "workload.seq_len=131072",
        "workload.global_batch_size=128",
    ),
    f"{MIXTURE} on gpt-oss-120b": ("model=gpt-oss-120b", "cluster.nodes=8", "workload.global_batch_size=512"),
    f"{MIXTURE} on deepseek-v3": (
        "model=deepseek-v3",
        "cluster.preset=h800-8",
        "cluster.nodes=256",
        "workload.global_batch_size=15360",
    ),
    f"{MIXTURE} on kimi-k2": (
        "model=kimi-k2",
        "cluster.preset=gb200-nvl72",
        "cluster.nodes=576",
        "workload.global_batch_size=4608",
    ),
}
"""Every example for Megatron-LM, and what is too large to be one: the example's name, and what is changed in it."""


@pytest.fixture(scope="module")
def plans() -> Mapping[str, Plan]:
    """Return the plan of every example."""
    found: dict[str, Plan] = {}
    for name, overrides in SPECS.items():
        inputs = load_inputs(EXAMPLES / name.split(" on ")[0] / "spec.yaml", overrides)
        found[name] = search(inputs.model, inputs.cluster, inputs.request, top=RUNNERS_UP)
    return found


@pytest.fixture(scope="module")
def verdicts(plans: Mapping[str, Plan]) -> Mapping[tuple[str, int], Verdict]:
    """Return Megatron's verdict on every layout of every plan."""
    keys = [(name, index) for name, plan in plans.items() for index in range(len(plan.plans))]
    answers = ask_megatron([job_of(plans[name], index) for name, index in keys])
    return dict(zip(keys, answers, strict=True))


@pytest.fixture(scope="module")
def short_verdicts(plans: Mapping[str, Plan]) -> Mapping[tuple[str, int], Verdict]:
    """Return Megatron's verdict on the argument lists that `verify/` holds; no model is built a second time."""
    keys: list[tuple[str, int]] = []
    jobs: list[Job] = []
    for name, plan in plans.items():
        kit = verification_kit(plan, target=Target.MEGATRON)
        assert kit is not None
        scripts = [text for file, text in kit.files.items() if file.endswith("/launch.sh")]
        for index, (script, _) in enumerate(zip(scripts, plan.plans, strict=True)):
            flags = read_megatron(script, file="launch.sh").flags
            words = tuple(word for flag in flags for word in (flag.name, *flag.values))
            jobs.append(replace(job_of(plan, index), arguments=words, pipeline_ranks=()))
            keys.append((name, index))
    return dict(zip(keys, ask_megatron(jobs), strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_short_runs_are_parsed_and_validated_as_the_long_ones(
    name: str, plans: Mapping[str, Plan], short_verdicts: Mapping[tuple[str, int], Verdict]
) -> None:
    plan = plans[name]
    for index, planned in enumerate(plan.plans):
        verdict = short_verdicts[name, index]
        assert (verdict.failed_level, verdict.error) == ("", "")
        assert verdict.num_microbatches == planned.layout.num_microbatches


@pytest.mark.parametrize("name", SPECS)
def test_every_offered_layout_is_accepted_and_holds_what_we_count(
    name: str, plans: Mapping[str, Plan], verdicts: Mapping[tuple[str, int], Verdict]
) -> None:
    plan = plans[name]
    assert plan.plans
    for index, planned in enumerate(plan.plans):
        assert emit_megatron(plan, index)
        verdict = verdicts[name, index]
        assert (verdict.failed_level, verdict.error) == ("", "")
        assert verdict.num_microbatches == planned.layout.num_microbatches
        for stage in verdict.built:
            chunks = planned.layout.chunks(stage.pipeline_rank)
            assert stage.layers == tuple(chunk.num_layers for chunk in chunks)
            assert stage.parameters == ledger_parameters(plan, stage.pipeline_rank, index=index)
