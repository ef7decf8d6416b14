"""Single parts of the argument list."""

from dataclasses import replace

import pytest

from planner.emit.megatron import emit_megatron, environment
from planner.emit.megatron_arguments import argument_groups, arguments
from planner.emit.megatron_layout_arguments import pipeline_layout
from planner.emit.megatron_words import pattern
from planner.layout import Layout, stages_from_counts
from planner.readers.megatron_patterns import parse_list
from planner.requests.workload import (
    AttentionKernel,
    DocumentLengths,
    DType,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
)
from tests.emitted.models import gpt_oss, kimi, mixtral, nemotron_h
from tests.emitted.plans import LLAMA_8B, LLAMA_405B, cluster_of, layout_of_degrees, plan_of

WORKLOAD = TrainWorkload(seq_len=8192, global_batch_size=128, precision=Precision.BF16)
FLAT = layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32)


def values(words: tuple[str, ...], flag: str) -> tuple[str, ...]:
    """Return what stands between a flag and the next."""
    start = words.index(flag) + 1
    end = next((index for index in range(start, len(words)) if words[index].startswith("--")), len(words))
    return words[start:end]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((7, *(8,) * 14, 7), "Et*7|(t*8|)*14t*7L"),
        ((0, *(1,) * 3, 0), "E|(t|)*3L"),
        ((2, 1, 1, 2), "Et*2|t|t|t*2L"),
        ((5,), "Et*5L"),
        ((1, 0), "Et|L"),
    ],
)
def test_stages_are_written_in_the_frameworks_notation(counts: tuple[int, ...], text: str) -> None:
    assert pipeline_layout(stages_from_counts(counts)) == text


def test_prediction_modules_stand_in_front_of_the_head() -> None:
    assert pipeline_layout(stages_from_counts((2, 3, 0)), num_modules=1) == "Et*2|t*3|mL"
    assert pipeline_layout(stages_from_counts((1, 2)), num_modules=2) == "Et|t*2m*2L"


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((True,) * 4, "[1]*4"),
        ((False,) * 3 + (True,) * 58, "[0]*3+[1]*58"),
        ((True, False) * 18, "([1]*1+[0]*1)*18"),
        ((True, True, True, False) * 12, "([1]*3+[0]*1)*12"),
        ((True, False, True), "[1]*1+[0]*1+[1]*1"),
    ],
)
def test_lists_of_layers_are_short_and_mean_what_they_should(layers: tuple[bool, ...], text: str) -> None:
    assert pattern(layers) == text
    assert tuple(map(bool, parse_list(text))) == layers


def test_an_even_split_needs_no_layout_string() -> None:
    layout = layout_of_degrees(layers=(8,) * 4, tp=2, pp=2, dp=2, num_microbatches=32)
    words = arguments(LLAMA_8B, WORKLOAD, layout)
    assert "--pipeline-model-parallel-layout" not in words
    assert values(words, "--num-virtual-stages-per-pipeline-rank") == ("2",)


def test_an_uneven_split_is_spelled_out() -> None:
    layout = layout_of_degrees(layers=(7, *(8,) * 14, 7), tp=8, pp=16, dp=8, num_microbatches=16)
    words = arguments(LLAMA_405B, WORKLOAD, layout)
    assert values(words, "--pipeline-model-parallel-layout") == ("Et*7|(t*8|)*14t*7L",)


def test_the_vocabularys_padding_is_stated() -> None:
    groups = argument_groups(LLAMA_8B, WORKLOAD, layout_of_degrees(layers=(32,), tp=8, num_microbatches=128))
    titles = [group.title for group in groups if ("--vocab-size", "128256") in group.flags]
    assert titles == ["Vocabulary: 128256 rows, padded to 129024 (a multiple of 128 x tp)"]


def test_with_a_tokenizer_the_padded_rows_are_said_because_its_own_count_would_be_taken() -> None:
    layout = layout_of_degrees(layers=(32,), tp=8, num_microbatches=128)
    assert "--padded-vocab-size" not in arguments(LLAMA_8B, WORKLOAD, layout)
    workload = replace(WORKLOAD, tokenizer_model="/models/t")
    assert values(arguments(LLAMA_8B, workload, layout), "--padded-vocab-size") == ("129024",)
    assert [group.title for group in argument_groups(LLAMA_8B, workload, layout)][2] == (
        "Vocabulary: 128256 rows, padded to 129024 (a multiple of 128 x tp); "
        "the tokenizer may know fewer tokens, not more"
    )


def test_iterations_cover_the_token_budget() -> None:
    def iterations(workload: TrainWorkload) -> tuple[str, ...] | None:
        return values(arguments(LLAMA_8B, workload, FLAT), "--train-iters")

    step = 8192 * 128
    assert iterations(WORKLOAD) == ("100",)
    assert iterations(replace(WORKLOAD, tokens_to_train=step * 7)) == ("7",)
    assert iterations(replace(WORKLOAD, tokens_to_train=step * 7 + 1)) == ("8",)
    half_empty = DocumentLengths(lengths=(4096,), weights=(1.0,), packing=Packing.PADDED)
    assert iterations(replace(WORKLOAD, tokens_to_train=step * 7, documents=half_empty)) == ("14",)


def test_mock_data_gives_way_to_named_data() -> None:
    words = arguments(LLAMA_8B, WORKLOAD, FLAT)
    assert "--mock-data" in words
    assert values(words, "--tokenizer-type") == ("NullTokenizer",)

    named = replace(WORKLOAD, data_path=("0.3", "/data/a b", "0.7", "-dash"), tokenizer_model="/models/t")
    words = arguments(LLAMA_8B, named, FLAT)
    assert "--mock-data" not in words
    assert values(words, "--data-path") == ("0.3", "/data/a b", "0.7", "./-dash")
    assert values(words, "--tokenizer-type") == ("HuggingFaceTokenizer",)
    assert values(words, "--tokenizer-model") == ("/models/t",)


def test_low_precision_states_bring_the_optimizer_that_keeps_them() -> None:
    words = arguments(LLAMA_8B, replace(WORKLOAD, moment_dtype=DType.BF16, gradient_dtype=DType.BF16), FLAT)
    assert "--use-precision-aware-optimizer" in words
    assert "--grad-reduce-in-bf16" in words
    assert "--accumulate-allreduce-grads-in-fp32" not in words
    assert values(words, "--main-params-dtype") == ("fp32",)
    assert values(words, "--main-grads-dtype") == ("bf16",)
    assert values(words, "--exp-avg-dtype") == values(words, "--exp-avg-sq-dtype") == ("bf16",)


def test_fp16_goes_without_the_fused_loss_that_casts_to_bf16() -> None:
    assert "--cross-entropy-loss-fusion" in arguments(LLAMA_8B, WORKLOAD, FLAT)
    assert "--cross-entropy-loss-fusion" not in arguments(LLAMA_8B, replace(WORKLOAD, precision=Precision.FP16), FLAT)


def test_fine_tuning_says_so() -> None:
    assert "--finetune" in arguments(LLAMA_8B, replace(WORKLOAD, method=TrainMethod.FULL_FINETUNE), FLAT)


@pytest.mark.parametrize(
    ("layout", "capability", "expected"),
    [
        (FLAT, "9.0", {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
        (FLAT, None, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
        (FLAT, "10.0", {}),
        (FLAT, "12.0", {}),
        (layout_of_degrees(layers=(32,), dp=8, num_microbatches=16), "9.0", {}),
        (replace(FLAT, zero_stage=3), "9.0", {"CUDA_DEVICE_MAX_CONNECTIONS": None}),
    ],
)
def test_the_connection_limit_is_what_megatron_asserts(
    layout: Layout, capability: str | None, expected: dict[str, str | None]
) -> None:
    assert environment(WORKLOAD, layout, cluster_of(1, 8, capability=capability)) == expected


def test_a_ring_around_exchanged_heads_names_the_neighbours_first() -> None:
    layout = layout_of_degrees(layers=(32,), cp=8, ulysses=4, num_microbatches=128)
    words = arguments(LLAMA_8B, WORKLOAD, layout)
    assert values(words, "--cp-comm-type") == ("a2a+p2p",)
    assert values(words, "--hierarchical-context-parallel-sizes") == ("4", "2")
    one = arguments(LLAMA_8B, WORKLOAD, replace(layout, ulysses=8))
    assert values(one, "--cp-comm-type") == ("a2a",)
    assert "--hierarchical-context-parallel-sizes" not in one


def test_groups_of_states_are_instances_of_the_distributed_optimizer() -> None:
    layout = layout_of_degrees(layers=(32,), dp=8, num_microbatches=16, state_replicas=2)
    assert values(arguments(LLAMA_8B, WORKLOAD, layout), "--num-distributed-optimizer-instances") == ("2",)


def test_experts_say_their_own_degrees_even_where_they_are_one() -> None:
    layout = layout_of_degrees(layers=(4,), tp=2, dp=4, num_microbatches=32)
    words = arguments(mixtral(), WORKLOAD, layout)
    assert values(words, "--expert-tensor-parallel-size") == ("1",)
    assert values(words, "--expert-model-parallel-size") == ("1",)
    assert "--moe-layer-freq" not in words


def test_the_kernel_of_latent_attention_and_of_sinks_is_left_to_transformer_engine() -> None:
    layout = layout_of_degrees(layers=(4,), dp=8, num_microbatches=16)
    fused = replace(WORKLOAD, attention_kernel=AttentionKernel.FUSED)
    for model in (kimi(), gpt_oss()):
        assert values(arguments(model, WORKLOAD, layout), "--attention-backend") == ("auto",)
        assert values(arguments(model, fused, layout), "--attention-backend") == ("fused",)


def test_a_window_of_tokens_counts_those_before_the_token() -> None:
    words = arguments(gpt_oss(), WORKLOAD, layout_of_degrees(layers=(4,), dp=8, num_microbatches=16))
    assert values(words, "--window-size") == ("127,0",)
    assert values(words, "--window-attn-skip-freq") == ("([1]*1+[0]*1)*2",)
    assert "--no-bias-dropout-fusion" in words


def test_a_hybrid_runs_its_own_program_and_says_its_stages_in_its_pattern() -> None:
    layout = layout_of_degrees(layers=(0, 4, 6, 0), tp=2, pp=4, num_microbatches=128)
    files = emit_megatron(plan_of(nemotron_h(), WORKLOAD, layout, cluster_of(1, 8)))
    assert "--hybrid-layer-pattern '|M-M*|-M-M*-|'" in files["launch.sh"]
    assert '"$MEGATRON_LM_DIR/pretrain_hybrid.py"' in files["launch.sh"]
    assert "# Its layers also need mamba-ssm, causal-conv1d.\n" in files["launch.sh"]
    assert "--pipeline-model-parallel-layout" not in files["launch.sh"]


@pytest.mark.parametrize(("packing", "note"), [(Packing.PACKED, "several in"), (Packing.PADDED, "one in")])
def test_documents_are_kept_apart_where_they_share_a_sequence(packing: Packing, note: str) -> None:
    documents = DocumentLengths(lengths=(512,), weights=(1.0,), packing=packing)
    script = emit_megatron(plan_of(LLAMA_8B, replace(WORKLOAD, documents=documents), FLAT, cluster_of(1, 8)))[
        "launch.sh"
    ]
    assert f"# Documents: {note} a sequence" in script
    assert ("    --dataloader-inter-document-masking\n" in script) == (packing is Packing.PACKED)
