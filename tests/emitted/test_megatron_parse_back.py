"""What is emitted for Megatron-LM and read back is the plan."""

import dataclasses

import pytest
from hypothesis import given, settings

from planner.emit.megatron import BATCH_SCRIPT, LAUNCH_SCRIPT, emit_megatron
from planner.plans.plan import Plan
from planner.readers.megatron import layout_of, read_megatron
from planner.readers.megatron_model import model_of
from planner.readers.megatron_workload import workload_of
from planner.requests.workload import Precision, TrainWorkload
from tests.emitted.drawn_plans import plans_of_every_kind
from tests.emitted.models import mamba
from tests.emitted.plans import LLAMA_8B, cluster_of, expressible_plans, layout_of_degrees, plan_of
from tests.examples import examples


@pytest.mark.parametrize("file", [LAUNCH_SCRIPT, BATCH_SCRIPT])
@settings(max_examples=examples(few=40, many=100), deadline=None)
@given(plan=expressible_plans())
def test_layout_model_and_workload_survive_the_round_trip(file: str, plan: Plan) -> None:
    job = read_megatron(emit_megatron(plan)[file], file=file)

    assert layout_of(job) == plan.best.layout
    assert (job.num_nodes, job.gpus_per_node) == (plan.cluster.num_nodes, plan.cluster.gpus_per_node)
    named = dataclasses.replace(plan.model, name=file, architecture="megatron-lm")
    assert model_of(job) == named
    assert workload_of(job) == plan.request.workload


@settings(max_examples=examples(few=80, many=300), deadline=None)
@given(plan=plans_of_every_kind())
def test_models_and_layouts_of_every_kind_survive_the_round_trip(plan: Plan) -> None:
    text = emit_megatron(plan)[LAUNCH_SCRIPT]
    job = read_megatron(text, file=LAUNCH_SCRIPT)

    assert layout_of(job) == plan.best.layout
    assert model_of(job) == dataclasses.replace(plan.model, name=LAUNCH_SCRIPT, architecture="megatron-lm")
    # How long documents are is no flag; that they are kept apart is.
    workload = dataclasses.replace(plan.request.workload, documents=None)
    assert workload_of(job) == workload
    assert job.has("--dataloader-inter-document-masking") == (plan.request.workload.documents is not None)


def test_a_model_without_attention_and_feed_forwards_survives_the_round_trip() -> None:
    layout = layout_of_degrees(layers=(2, 2), pp=2, dp=4, num_microbatches=2)
    workload = TrainWorkload(seq_len=8192, global_batch_size=8, precision=Precision.BF16)
    text = emit_megatron(plan_of(mamba(), workload, layout, cluster_of(1, 8)))[LAUNCH_SCRIPT]
    assert "--ffn-hidden-size" not in text
    assert model_of(read_megatron(text, file="mamba")) == dataclasses.replace(mamba(), architecture="megatron-lm")


def test_a_blend_of_data_survives_the_round_trip() -> None:
    layout = layout_of_degrees(layers=(32,), tp=2, dp=8, num_microbatches=16)
    workload = TrainWorkload(
        seq_len=8192,
        global_batch_size=128,
        precision=Precision.BF16,
        data_path=("0.3", "/data/a", "0.7", "/data/b"),
        tokenizer_model="/models/t",
    )
    text = emit_megatron(plan_of(LLAMA_8B, workload, layout, cluster_of(2, 8)))[LAUNCH_SCRIPT]
    assert "    --data-path 0.3 /data/a 0.7 /data/b\n" in text
    job = read_megatron(text, file=LAUNCH_SCRIPT)
    assert workload_of(job).data_path == workload.data_path
    assert job.text("--padded-vocab-size", "") == "128256"
    assert model_of(job).vocab_size == LLAMA_8B.vocab_size


@settings(max_examples=examples(few=25, many=50), deadline=None)
@given(plan=expressible_plans())
def test_both_scripts_carry_the_same_flags(plan: Plan) -> None:
    files = emit_megatron(plan)
    launch, batch = (read_megatron(files[name], file=name) for name in (LAUNCH_SCRIPT, BATCH_SCRIPT))

    assert [(flag.name, flag.values) for flag in launch.flags] == [(flag.name, flag.values) for flag in batch.flags]
    settings_of = {"CUDA_DEVICE_MAX_CONNECTIONS"}
    for job in (launch, batch):
        tp_or_not = {"1"} if plan.best.layout.tp > 1 and plan.best.layout.zero_stage < 2 else set()
        assert {job.environment[name] for name in settings_of & job.environment.keys()} == tp_or_not


@settings(max_examples=20, deadline=None)
@given(plan=expressible_plans())
def test_the_same_plan_gives_the_same_bytes(plan: Plan) -> None:
    assert emit_megatron(plan) == emit_megatron(plan)
