"""A row of a training run becomes the model, cluster, workload and layout that it describes."""

import pytest

from planner.accuracy.runs import run_of
from planner.accuracy.stacks import attention_of, stack_named
from planner.accuracy.training import TrainingPredictor
from planner.layout import Granularity, Schedule
from planner.requests.workload import AttentionKernel, DType, Precision, TrainMethod
from profiles.software import AttentionKernels, HostPath
from tests.unit.planner.accuracy.rows import run_row


def test_a_row_that_says_everything_is_taken_at_its_word() -> None:
    run = run_of(run_row(pp="2.0", vpp="4.0", cp="1.0", recompute="full", sequence_parallel="False"))
    assert (run.model.name, run.cluster.name, run.cluster.world_size) == ("llama-3.1-8b", "dgx-h100", 8)
    layout = run.layout
    assert (layout.tp, layout.pp, layout.vpp, layout.dp, layout.micro_batch_size) == (2, 2, 4, 2, 1)
    assert (layout.num_microbatches, layout.schedule) == (64, Schedule.INTERLEAVED)
    assert not layout.sequence_parallel
    assert layout.recompute.granularity is Granularity.FULL
    assert (run.workload.seq_len, run.workload.global_batch_size) == (8192, 128)


def test_what_a_row_leaves_open_is_assumed_and_said() -> None:
    run = run_of(run_row(model="GPT-of-tests", layers="12", hidden="1024", heads="16", ffn="4096", micro_batch=""))
    assert run.model.num_layers == 12
    assert run.model.tie_word_embeddings
    assert set(run.assumptions) == {
        "vocabulary: 51,200 tokens, of the model's family",
        "architecture: not gated, layer norms, no positions' table, tied embeddings, by the width of its feed-forward",
        "stack: Megatron-Core (distributed optimizer, Transformer Engine)",
        "micro_batch: 1",
        "recompute: none",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nobody's"}, 'model "nobody\'s" is not bundled, and layers, hidden, heads, ffn are empty'),
        ({"hardware": "abacus"}, "hardware 'abacus' is no GPU of the catalogue"),
        ({"tp": "3"}, "tp pp cp = 3 does not divide num_gpus = 8"),
        ({"global_batch": "3"}, "micro_batch dp = 4 does not divide global_batch = 3"),
        ({"precision": "nvfp4"}, "precision 'nvfp4' has no price"),
        ({"precision": "fp8", "hardware": "A100"}, "precision 'fp8': a100-sxm-80gb has no fp8"),
        ({"num_gpus": "-1"}, "num_gpus = '-1' is no finite number from 0 on"),
        ({"num_gpus": "0"}, "num_gpus = '0' is no positive whole number"),
        ({"pp": "8", "tp": "1", "vpp": "8", "global_batch": "8"}, "32 layers for pp vpp = 64 stages"),
    ],
)
def test_a_row_that_cannot_be_priced_says_why_and_stays(changes: dict[str, str], message: str) -> None:
    found = TrainingPredictor().predict(run_row(**changes))
    assert found.error == message
    assert found.predicted_step_seconds is None


@pytest.mark.parametrize(
    ("framework", "zero_stage", "overlaps", "host"),
    [
        ("Megatron-DeepSpeed (2022)", 0, False, HostPath.EAGER_2022),
        ("llm-foundry/Composer FSDP", 3, True, HostPath.CURRENT),
        ("torchtitan", 3, True, HostPath.CURRENT),
        ("NeMo 24.07", 1, True, HostPath.CURRENT),
        ("Megatron-Bridge 26.04", 1, True, HostPath.CURRENT),
        ("something new", 1, True, HostPath.CURRENT),
    ],
)
def test_a_framework_fills_what_its_recipe_would(
    framework: str, zero_stage: int, overlaps: bool, host: HostPath
) -> None:
    run = run_of(run_row(framework=framework))
    assert run.layout.zero_stage == zero_stage
    assert run.layout.overlap.grad_reduce == overlaps
    assert run.software.host is host
    assert f"stack: {stack_named(framework).title}" in run.assumptions


def test_cells_override_the_frameworks_recipe() -> None:
    run = run_of(run_row(framework="Aleph Alpha in-house", flash_attention="FA1", optimizer="ZeRO-2", mode="sft"))
    assert run.software.attention is AttentionKernels.FLASH_1
    assert not run.software.fused_norms
    assert run.layout.zero_stage == 2
    assert run.workload.method is TrainMethod.FULL_FINETUNE
    fused = run_of(run_row(framework="Aleph Alpha in-house", flash_attention="FA2+RMSNorm kernel"))
    assert fused.software.fused_norms
    kept = run_of(run_row(flash_attention="no"))
    assert (kept.workload.attention_kernel, kept.software.scores) == (AttentionKernel.UNFUSED, AttentionKernels.PLAIN)
    compiled = run_of(run_row(framework="torchtitan", notes="torch.compile; memory in GiB"))
    assert compiled.software.host is HostPath.CURRENT
    assert compiled.workload.gradient_dtype is DType.BF16
    assert run_of(run_row(precision="", framework="NeMo 24.07")).workload.precision is Precision.FP8_DELAYED
    assert run_of(run_row(precision="")).workload.precision is Precision.BF16


@pytest.mark.parametrize(
    ("cell", "kernels"),
    [
        ("", None),
        ("no", AttentionKernels.PLAIN),
        ("no (fused softmax kernel)", AttentionKernels.FUSED_SOFTMAX),
        ("unfused", AttentionKernels.FUSED_SOFTMAX),
        ("FA1", AttentionKernels.FLASH_1),
        ("FlashAttention-2", AttentionKernels.FLASH_2),
        ("yes", None),
    ],
)
def test_attention_kernels_are_read_from_their_cell(cell: str, kernels: AttentionKernels | None) -> None:
    assert attention_of(cell) is kernels


def test_a_measured_run_says_its_step_in_seconds_tokens_or_flops() -> None:
    predictor = TrainingPredictor()
    by_time = predictor.predict(run_row())
    assert by_time.measured_step_seconds == 16.0
    assert by_time.measured_tokens_per_second_per_gpu == pytest.approx(8192 * 128 / 16 / 8)
    by_tokens = predictor.predict(run_row(step_time_s="", tokens_per_s_per_gpu="8192"))
    assert by_tokens.measured_step_seconds == pytest.approx(16.0)
    by_flops = predictor.predict(run_row(step_time_s="", tflops_per_gpu="400"))
    assert by_flops.measured_step_seconds is not None
    # 6 flops a parameter and token, and attention as if nothing were masked.
    assert by_flops.measured_step_seconds * 400e12 * 8 == pytest.approx(1.2 * 6 * 8.03e9 * 8192 * 128, rel=0.1)
    assert by_time.predicted_step_seconds == by_tokens.predicted_step_seconds
    assert by_time.predicted_fits


def test_plain_operations_and_whole_logits_take_more_memory() -> None:
    predictor = TrainingPredictor()
    fused, plain = (
        predictor.predict(run_row(framework=name, optimizer="ZeRO-1", sequence_parallel="False", recompute="none"))
        for name in ("Megatron-LM", "Aleph Alpha in-house")
    )
    assert fused.predicted_peak_bytes is not None
    assert plain.predicted_peak_bytes is not None
    # 128,256 logits of 8,192 tokens, 16 bytes each, where two ranks kept halves of 6 bytes; 2 bytes a gradient less.
    more = 8192 * 128_256 * (16 - 3) - 4.1e9 * 2
    assert plain.predicted_peak_bytes - fused.predicted_peak_bytes > more


def test_what_a_silent_row_recomputes_is_what_fits() -> None:
    predictor = TrainingPredictor()
    silent, said = (
        predictor.predict(run_row(recompute=recompute, tp="1", num_gpus="64", micro_batch="2", global_batch="256"))
        for recompute in ("", "none")
    )
    assert silent.predicted_fits
    assert not said.predicted_fits
    assert "recompute: in memory full, as a recipe that does not fit otherwise; not in time" in silent.assumptions
    assert silent.predicted_step_seconds == said.predicted_step_seconds


def test_a_peak_is_compared_with_what_the_allocator_holds() -> None:
    found = TrainingPredictor().predict(run_row(peak_mem_gb="50", notes="memory in GiB"))
    assert found.measured_peak_bytes == 50 * (1 << 30)
    assert found.predicted_peak_bytes is not None
    assert found.predicted_allocated_bytes is not None
    assert found.predicted_allocated_bytes < found.predicted_peak_bytes


@pytest.mark.parametrize(("per_node", "nodes_of"), [("4", 4), ("8", 8), ("", 8), ("3", 8), ("16", 8)])
def test_nodes_are_as_large_as_a_row_says(per_node: str, nodes_of: int) -> None:
    row = run_row(hardware="A100-80GB", num_gpus="64", gpus_per_node=per_node)
    cluster = run_of(row).cluster
    assert cluster.gpus_per_node == nodes_of
    assert cluster.fast_domain_size == nodes_of
    assert cluster.world_size >= 64
    assert cluster.levels[0].num_gpus == nodes_of


@pytest.mark.parametrize("per_node", ["4", "72"])
def test_nodes_of_a_rack_stay_in_its_domain(per_node: str) -> None:
    row = run_row(hardware="DGX-GB200", num_gpus="144", gpus_per_node=per_node, global_batch="144")
    assert run_of(row).cluster.fast_domain_size == 72
