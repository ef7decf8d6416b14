"""The model that a Megatron-LM argument list describes."""

from itertools import groupby

from planner.models.blocks import Block, Norm, PositionEmbedding
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction, Trait
from planner.ranks.sharding import VOCAB_DIVISOR, padded_vocab_size
from planner.readers.launch_line import LaunchLine
from planner.readers.megatron_blocks import gpt_blocks, heterogeneous_blocks, hybrid_blocks
from planner.readers.megatron_stages import hybrid_pattern

POSITIONS = {
    "rope": PositionEmbedding.ROPE,
    "yarn": PositionEmbedding.ROPE,
    "learned_absolute": PositionEmbedding.LEARNED,
    "none": PositionEmbedding.NONE,
}

TRAITS = {"--apply-layernorm-1p": Trait.ZERO_CENTERED_NORM, "--rotary-interleaved": Trait.INTERLEAVED_ROTARY}

LATENT_YARN = {"original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
"""What `MLATransformerConfig` has built in."""


def model_of(job: LaunchLine) -> ModelSpec:
    """Return the model that the flags describe, named after its file."""
    kind = job.choice("--position-embedding-type", "learned_absolute", POSITIONS)
    rotary = POSITIONS[kind] is PositionEmbedding.ROPE
    blocks, prediction = _chain(job)
    return ModelSpec(
        name=job.file,
        architecture="megatron-lm",
        hidden_size=job.positive("--hidden-size"),
        vocab_size=_vocab_size(job),
        tie_word_embeddings=not job.has("--untie-embeddings-and-output-weights"),
        max_position_embeddings=job.integer("--max-position-embeddings"),
        norm=Norm.RMS if job.text("--normalization", "LayerNorm") == "RMSNorm" else Norm.LAYER,
        position_embedding=POSITIONS[kind],
        norm_epsilon=job.number("--norm-epsilon", 1e-5),
        rope_theta=job.number("--rotary-base", 10000) if rotary else None,
        rotary_fraction=job.number("--rotary-percent", 1.0) if rotary else 1.0,
        rope_scaling=_rope_scaling(job, kind),
        traits=_traits(job),
        runs=tuple(BlockRun(block=block, count=len(tuple(run))) for block, run in groupby(blocks)),
        mtp=prediction,
    )


def _chain(job: LaunchLine) -> tuple[tuple[Block, ...], MultiTokenPrediction | None]:
    """Return the layers and the prediction modules, which copy the last layer unless a pattern says theirs."""
    pattern = hybrid_pattern(job)
    if pattern is not None:
        blocks, module = hybrid_blocks(job, pattern)
        return blocks, MultiTokenPrediction(num_modules=pattern.modules, block=module) if module else None
    flag = job.flag("--heterogeneous-layers-config-encoded-json") or job.flag("--heterogeneous-layers-config-path")
    blocks = heterogeneous_blocks(job, flag) if flag is not None else gpt_blocks(job)
    modules = job.integer("--mtp-num-layers", 0)
    return blocks, MultiTokenPrediction(num_modules=modules, block=blocks[-1]) if modules else None


def _traits(job: LaunchLine) -> tuple[Trait, ...]:
    """Return the traits that flags say; multi-head latent attention is always rotated interleaved."""
    found = [trait for name, trait in TRAITS.items() if job.has(name)]
    if job.has("--multi-latent-attention"):
        found.append(Trait.INTERLEAVED_ROTARY)
    if job.has("--quick-geglu"):
        found.append(Trait.CLAMPED_ACTIVATION)
    return tuple(found)


def _vocab_size(job: LaunchLine) -> int:
    """Return the rows of the vocabulary before padding; `--padded-vocab-size` may not say others."""
    padded = job.flag("--padded-vocab-size")
    if padded is None:
        return job.integer("--vocab-size")
    rows = job.integer("--padded-vocab-size")
    vocab_size = job.integer("--vocab-size", rows)
    tp = job.positive("--tensor-model-parallel-size", 1)
    expected = padded_vocab_size(vocab_size, tp)
    if rows != expected:
        raise job.error(
            padded,
            f"is {rows}; plans pad {vocab_size} rows over tp {tp} to {expected}",
            f"Plans pad to a multiple of {VOCAB_DIVISOR} x tp.",
        )
    return vocab_size


def _rope_scaling(job: LaunchLine, kind: str) -> dict[str, float | str]:
    if job.has("--multi-latent-attention"):
        return _latent_scaling(job)
    if kind == "yarn":
        scaling: dict[str, float | str] = {
            "rope_type": "yarn",
            "factor": job.number("--rotary-scaling-factor", 1.0),
            "original_max_position_embeddings": job.integer("--yarn-original-max-position-embeddings", 4096),
            "beta_fast": job.number("--yarn-beta-fast", 32.0),
            "beta_slow": job.number("--yarn-beta-slow", 1.0),
        }
        return {**scaling, "truncate": False} if job.has("--no-yarn-correction-range-round-to-int") else scaling
    if kind == "rope" and job.has("--use-rope-scaling"):
        return {
            "rope_type": "llama3",
            "factor": job.number("--rope-scaling-factor", 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    if kind == "rope" and job.has("--rotary-seq-len-interpolation-factor"):
        return {"rope_type": "linear", "factor": float(job.integer("--rotary-seq-len-interpolation-factor"))}
    return {}


def _latent_scaling(job: LaunchLine) -> dict[str, float | str]:
    """Return the scaling inside multi-head latent attention, which is yarn unless --rope-type says otherwise."""
    if job.choice("--rope-type", "yarn", ("rope", "yarn")) == "rope":
        return {}
    return {
        "rope_type": "yarn",
        "factor": job.number("--rotary-scaling-factor", 1.0),
        **LATENT_YARN,
        "mscale": job.number("--mscale", 1.0),
        "mscale_all_dim": job.number("--mscale-all-dim", 0.0),
    }
