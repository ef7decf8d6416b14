"""Megatron-LM: positions and kinds of attention."""

from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import fact, given, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, LATENT
from planner.rules.rule import FoundAt, Rule

DEMANDS = (
    Demand(
        id="MLM413",
        name="relative-positions",
        when=one_of("--position-embedding-type", "relative"),
        needs=(one_of("--transformer-impl", "transformer_engine"),),
        error="AssertionError: Local transformer implementation currently does not support attention bias-based "
        "position embeddings.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="They are a bias of the attention.",
    ),
    Demand(
        id="MLM414",
        name="multimodal-positions",
        when=one_of("--position-embedding-type", "mrope"),
        needs=(given("--mrope-section"),),
        error="AssertionError: --mrope-section should be set when using --position-embedding-type mrope.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The sections say which part of a head turns with which axis.",
    ),
    Demand(
        id="MLM415",
        name="no-position-embedding",
        mends=False,
        when=fact(
            "--no-position-embedding", lambda run: run.said("add_position_embedding") is False, "add_position_embedding"
        ),
        needs=(one_of("--position-embedding-type", "rope"),),
        error="RuntimeError: --no-position-embedding is deprecated, use --position-embedding-type",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The kind of position embedding is said by its own flag.",
    ),
    Demand(
        id="MLM416",
        name="latent-attention-groups",
        when=on("--multi-latent-attention"),
        excludes=(on("--group-query-attention"),),
        error="AssertionError: Group query attention is mutually exclusive with multi latent attention.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Latent attention has one latent vector for all heads.",
    ),
    Demand(
        id="MLM417",
        name="latent-attention-only",
        mends=False,
        when=on("--mla-down-proj-fusion"),
        needs=(on("--multi-latent-attention"),),
        error="AssertionError: --mla-down-proj-fusion requires --multi-latent-attention",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="It fuses projections of latent attention.",
    ),
    Demand(
        id="MLM418",
        name="latent-attention-features",
        when=on("--multi-latent-attention"),
        excludes=(
            on("--rotary-interleaved"),
            on("--attention-output-gate"),
            fact(
                "fused rotation with --rope-type rope",
                lambda run: run.value("apply_rope_fusion") is True and run.said("rope_type") == "rope",
                "rope_type",
            ),
            on("--cache-mla-latents")
            & fact("fused rotation", lambda run: run.value("apply_rope_fusion") is True, "apply_rope_fusion"),
        ),
        error="ValueError: apply_rope_fusion for MLA only works with YARN RoPE.",
        found_at=FoundAt.BUILD,
        source=LATENT,
        why="Rotation is fused unless --no-rope-fusion is given.",
    ),
    Demand(
        id="MLM419",
        name="kind-of-rotation",
        mends=False,
        when=one_of("--rope-type", "yarn"),
        needs=(on("--multi-latent-attention"),),
        error='AssertionError: Common attention only support rope_type="rope"',
        found_at=FoundAt.BUILD,
        source="megatron/training/argument_utils.py: core_transformer_config_from_args",
        why="Other attention takes its rotation from --position-embedding-type.",
    ),
    Demand(
        id="MLM420",
        name="attention-norm-of-latent",
        when=on("--multi-latent-attention"),
        excludes=(on("--qk-l2-norm"),),
        error="AssertionError: qk_l2_norm is not supported with MLA.",
        found_at=FoundAt.BUILD,
        source="megatron/core/models/gpt/gpt_layer_specs.py",
        why="Latent attention normalises what it projects from.",
    ),
    Demand(
        id="MLM421",
        name="batch-invariance",
        when=on("--batch-invariant-mode"),
        needs=(one_of("--attention-backend", "flash"),),
        error="AssertionError: Batch invariant mode only supports FlashAttention (--attention-backend flash)",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Only these kernels give the same numbers for every batch.",
    ),
    Demand(
        id="MLM423",
        name="rotation-off-and-decoding",
        when=given("--no-rope-freq") & fact("a number above 0", lambda run: bool(run.said("no_rope_freq"))),
        excludes=(on("--flash-decode"),),
        error="AssertionError: flash_decode cannot be used with no_rope.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It keeps tables of one rotation for all layers.",
    ),
    Demand(
        id="MLM424",
        name="sparse-attention",
        when=one_of("--experimental-attention-variant", "dsa"),
        needs=(
            fact("--disable-bias-linear", lambda run: run.said("add_bias_linear") is False, "add_bias_linear"),
            fact("--no-rope-fusion", lambda run: run.value("apply_rope_fusion") is not True, "apply_rope_fusion"),
            fact(
                "--cp-comm-type allgather, with cp above 1",
                lambda run: (
                    run.cp == 1
                    or all(kind.replace("_", "").lower() == "allgather" for kind in run.words("cp_comm_type"))
                ),
                "cp_comm_type",
            ),
        ),
        error="AssertionError: RoPE fusion is not supported for DSAttention",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="Sparse attention has kernels of its own.",
    ),
    Demand(
        id="MLM426",
        name="sparse-attention-over-context",
        when=one_of("--experimental-attention-variant", "dsa"),
        needs=(
            one_of("--context-parallel-size", 1),
            fact("--no-rope-fusion", lambda run: run.value("apply_rope_fusion") is not True, "apply_rope_fusion"),
        ),
        error="AssertionError: Currently context parallelism is not supported by DSAttention!",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.19",
        why="Sparse attention has kernels of its own.",
    ),
    Demand(
        id="MLM427",
        name="batch-invariant-kernels",
        when=on("--batch-invariant-mode"),
        needs=(
            one_of("--flash-attention-version", 3, 4),
            one_of("--context-parallel-size", 1),
            one_of("--attention-dropout", 0.0),
        ),
        error="AssertionError: Batch invariant mode requires --flash-attention-version 3 or 4",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="Training and inference run the same kernel.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = rules_of_demands(DEMANDS)
