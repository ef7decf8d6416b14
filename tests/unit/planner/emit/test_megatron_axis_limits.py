"""Degrees that Megatron-LM or Transformer Engine would not run; each case breaks one rule of a plan that is fine."""

from dataclasses import replace

import pytest

from planner.layout import Granularity, Layout, Recompute
from planner.models.blocks import StateSpace
from planner.models.specs import ModelSpec
from planner.requests.workload import (
    AttentionKernel,
    DocumentLengths,
    Lora,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
)
from tests.emitted import models
from tests.emitted.plans import LLAMA_8B, layout_of_degrees
from tests.unit.planner.emit.megatron_refusals import WORKLOAD, accepts, refusal


def flat(model: ModelSpec, *, num_microbatches: int = 16, **degrees: int) -> Layout:
    return layout_of_degrees(
        layers=(model.num_layers,),
        num_microbatches=num_microbatches,
        **degrees,  # type: ignore[arg-type]
    )


MIXTRAL, KIMI, OSS = models.mixtral(), models.kimi(), models.gpt_oss()
HYBRID, LINEAR, SPARSE = models.nemotron_h(), models.linear_hybrid(), models.sparse_latent()


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (MIXTRAL, flat(MIXTRAL, tp=2, dp=4, ep=4, etp=2)),
        (KIMI, flat(KIMI, tp=2, cp=4, dp=1, ep=8)),
        (OSS, flat(OSS, cp=8, ulysses=8, ep=8)),
        (HYBRID, flat(HYBRID, tp=4, cp=2)),
        (HYBRID, flat(HYBRID, cp=16)),
        (LINEAR, flat(LINEAR, tp=2, cp=4, ep=8)),
    ],
)
def test_the_plans_that_the_cases_start_from_are_expressible(model: ModelSpec, layout: Layout) -> None:
    assert accepts(model, layout)


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        (MIXTRAL, flat(MIXTRAL, dp=16, ep=16), "ep = 16 with 8 experts."),
        (MIXTRAL, flat(MIXTRAL, dp=24, etp=3), "etp = 3 with 14336 features of an expert (intermediate_size)."),
        (OSS, flat(OSS, dp=8, etp=2), "etp = 2 with experts that have biases."),
        (
            MIXTRAL,
            replace(flat(MIXTRAL, tp=2, dp=4), sequence_parallel=False),
            "tp = 2 with experts and without sequence_parallel.",
        ),
        (
            MIXTRAL,
            layout_of_degrees(layers=(2, 2), pp=2, dp=4, num_microbatches=8, etp=2, rank_order="tp-cp-ep-pp-dp"),
            "rank order tp-cp-ep-pp-dp with dp = 4 and edp = 2.",
        ),
        (
            LLAMA_8B,
            layout_of_degrees(layers=(16, 16), pp=2, cp=2, dp=2, num_microbatches=8, rank_order="tp-cp-ep-pp-dp"),
            "rank order tp-cp-ep-pp-dp with dp = 2 and edp = 4.",
        ),
    ],
)
def test_grids_of_experts_that_cannot_be_made_are_refused(model: ModelSpec, layout: Layout, message: str) -> None:
    assert refusal(model, layout) == message


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        (HYBRID, flat(HYBRID, tp=16), "tp = 16 with 8 Mamba-2 groups."),
        (LINEAR, flat(LINEAR, tp=32), "tp = 32 with 16 attention heads."),
        (LLAMA_8B, flat(LLAMA_8B, tp=12), "tp = 12 with 32 attention heads."),
        (LLAMA_8B, replace(flat(LLAMA_8B, cp=2), state_exchange=True), "state_exchange; Megatron exchanges the heads"),
        (LLAMA_8B, flat(LLAMA_8B, cp=3), "cp = 3 with sequences of 8192 tokens."),
        (
            LLAMA_8B,
            flat(LLAMA_8B, cp=16, ulysses=16),
            "ulysses = 16 with 8 key/value heads on each of tp = 1 ranks.",
        ),
        (KIMI, flat(KIMI, tp=8, cp=16, ulysses=16), "ulysses = 16 with 8 attention heads on each of tp = 8 ranks."),
        (OSS, flat(OSS, cp=8, ulysses=2), "a ring of 4 (cp 8) around sliding windows."),
        (SPARSE, flat(SPARSE, cp=2), "cp = 2 with sparse attention (`indexer`)."),
        (HYBRID, flat(HYBRID, tp=8, cp=32), "cp = 32 with 16 Mamba-2 heads on each of tp = 8 ranks."),
        (
            LINEAR,
            flat(LINEAR, tp=2, cp=16),
            "cp = 16 with 8 linear-attention key heads on each of tp = 2 ranks.",
        ),
    ],
)
def test_degrees_that_do_not_fit_the_model_are_refused(model: ModelSpec, layout: Layout, message: str) -> None:
    assert refusal(model, layout).startswith(message)


def test_sinks_are_exchanged_and_not_passed_round() -> None:
    plain = replace(OSS, runs=tuple(run for run in OSS.runs if run.block == OSS.blocks[1]))
    assert refusal(plain, flat(plain, cp=2)) == "a ring of 2 (cp 2) around attention with sinks."


DOCUMENTS = DocumentLengths(lengths=(512,), weights=(1.0,), packing=Packing.PACKED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"documents": DOCUMENTS},
            (
                "cp = 2 with packed documents: Megatron's pretraining data keeps them at their own lengths, and "
                "Transformer Engine's context parallelism needs multiples of 2 cp tokens."
            ),
        ),
        (
            {"attention_kernel": AttentionKernel.UNFUSED},
            "cp = 2 with attention_kernel unfused, which sees one rank only.",
        ),
    ],
)
def test_context_parallelism_that_the_kernel_lacks_is_refused(changes: dict[str, object], message: str) -> None:
    workload: TrainWorkload = replace(WORKLOAD, **changes)  # type: ignore[arg-type]
    assert accepts(LLAMA_8B, flat(LLAMA_8B, dp=2), workload)
    assert refusal(LLAMA_8B, flat(LLAMA_8B, cp=2), workload) == message


def test_fp8_wants_projections_that_are_multiples_of_its_tiles() -> None:
    workload = replace(WORKLOAD, precision=Precision.FP8_TENSORWISE)
    assert accepts(HYBRID, flat(HYBRID, dp=8), workload)
    assert isinstance(models.MAMBA.mixer, StateSpace)
    mixer = replace(models.MAMBA, mixer=replace(models.MAMBA.mixer, num_heads=72))
    runs = (replace(run, block=mixer) if run.block == models.MAMBA else run for run in HYBRID.runs)
    narrow = replace(HYBRID, runs=tuple(runs))
    assert refusal(narrow, flat(narrow, dp=8), workload) == (
        "precision fp8-tensorwise with a Mamba-2 input projection 11336 wide."
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            replace(flat(LLAMA_8B, dp=8), secondary_shard=2),
            "a second copy of the weights over 2 ranks (`secondary_shard`).",
        ),
        (flat(LLAMA_8B, dp=8, state_replicas=3), "state_replicas 3 with dp * cp = 8."),
        (
            flat(LLAMA_8B, dp=8, state_replicas=2, zero_stage=0),
            "state_replicas 2 with zero_stage 0, where nothing is split.",
        ),
        (
            flat(LLAMA_8B, tp=2, dp=4, zero_stage=3),
            (
                "zero_stage 3 with tp = 2: Megatron-FSDP wants CUDA_DEVICE_MAX_CONNECTIONS unset, tp and cp before "
                "Blackwell want it to be 1."
            ),
        ),
        (
            flat(LLAMA_8B, cp=2, dp=4, zero_stage=2),
            (
                "zero_stage 2 with cp = 2: Megatron-FSDP wants CUDA_DEVICE_MAX_CONNECTIONS unset, tp and cp before "
                "Blackwell want it to be 1."
            ),
        ),
    ],
)
def test_sharding_that_cannot_be_said_is_refused(layout: Layout, message: str) -> None:
    assert refusal(LLAMA_8B, layout) == message


def test_groups_of_states_divide_the_experts_replicas_too() -> None:
    assert refusal(MIXTRAL, flat(MIXTRAL, dp=8, ep=4, state_replicas=4)) == "state_replicas 4 with edp = 2."
    assert refusal(MIXTRAL, flat(MIXTRAL, dp=8, ep=8, zero_stage=2)) == (
        "zero_stage 2 with ep = 8: plans do not combine Megatron-FSDP with expert parallelism."
    )


@pytest.mark.parametrize(
    ("model", "module"),
    [
        (LLAMA_8B, "moe"),
        (LLAMA_8B, "mla_up_proj"),
        (MIXTRAL, "mlp"),
        (MIXTRAL, "shared_experts"),
        (LLAMA_8B, "layernorm"),
    ],
)
def test_modules_that_no_layer_has_are_not_recomputed(model: ModelSpec, module: str) -> None:
    recompute = Recompute(granularity=Granularity.SELECTIVE, modules=(module,))
    layout = replace(flat(model, dp=8), recompute=recompute)
    assert refusal(model, layout) == f"recompute of {module}, which the layers do not have."


def test_norms_in_front_of_experts_are_layers_of_their_own() -> None:
    recompute = Recompute(granularity=Granularity.SELECTIVE, modules=("layernorm",))
    assert accepts(MIXTRAL, replace(flat(MIXTRAL, dp=8), recompute=recompute))


@pytest.mark.parametrize("module", ["moe_act", "layernorm"])
def test_delayed_scaling_does_not_run_activations_and_norms_again(module: str) -> None:
    recompute = Recompute(granularity=Granularity.SELECTIVE, modules=(module,))
    layout = replace(flat(MIXTRAL, dp=8), recompute=recompute)
    assert accepts(MIXTRAL, layout)
    assert refusal(MIXTRAL, layout, replace(WORKLOAD, precision=Precision.FP8_DELAYED)) == (
        f"recompute of {module} with precision fp8-delayed."
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MIXTRAL, "adapters on mixtral, whose layers are not all attention and a dense feed-forward."),
        (HYBRID, "adapters on nemotron-h, whose layers are not all attention and a dense feed-forward."),
        (
            models.nemotron_super(),
            "adapters on nemotron-super, whose layers are not all attention and a dense feed-forward.",
        ),
    ],
)
def test_adapters_are_refused_on_other_layers(model: ModelSpec, message: str) -> None:
    lora = Lora(rank=16, alpha=32.0, target_modules=("qkv",))
    workload = replace(WORKLOAD, method=TrainMethod.LORA, lora=lora)
    assert refusal(model, flat(model, dp=8), workload) == message


def test_a_tied_table_is_not_held_twice() -> None:
    model = replace(models.deepseek(), tie_word_embeddings=True)
    assert accepts(model, flat(model, dp=8))
    layout = layout_of_degrees(layers=(2, 3), pp=2, dp=4, num_microbatches=32)
    assert accepts(models.deepseek(), layout)
    assert refusal(model, layout) == (
        "pp = 2 for deepseek, with multi-token prediction and a tied LM head: Megatron would hold the table twice on "
        "the last stage (`GPTModel`: the embedding of its prediction modules, and an LM head)."
    )
