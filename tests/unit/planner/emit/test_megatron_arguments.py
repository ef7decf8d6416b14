"""Single parts of the argument list."""

from dataclasses import replace

import pytest

from planner.emit.megatron import environment
from planner.emit.megatron_arguments import argument_groups, arguments, pipeline_layout, train_iterations
from planner.layout import Layout, stages_from_counts
from planner.workload import DType, Precision, TrainMethod, TrainWorkload
from tests.emitted.plans import LLAMA_8B, LLAMA_405B, cluster_of, layout_of_degrees

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
    assert [group.title for group in argument_groups(LLAMA_8B, workload, layout)][1] == (
        "Vocabulary: 128256 rows, padded to 129024 (a multiple of 128 x tp); "
        "the tokenizer may know fewer tokens, not more"
    )


def test_iterations_cover_the_token_budget() -> None:
    assert train_iterations(WORKLOAD) == 100
    assert train_iterations(replace(WORKLOAD, tokens_to_train=8192 * 128 * 7)) == 7
    assert train_iterations(replace(WORKLOAD, tokens_to_train=8192 * 128 * 7 + 1)) == 8


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
