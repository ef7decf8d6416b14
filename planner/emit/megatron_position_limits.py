"""Positions that Megatron-LM's flags cannot describe: kinds and scalings of the rotary embedding."""

from dataclasses import replace

from planner.emit.megatron_parts import Form, Parts, parts_of
from planner.emit.megatron_refusal import EDITED, refuse
from planner.errors import NotExpressibleError
from planner.models.blocks import PositionEmbedding
from planner.models.specs import ModelSpec
from planner.requests.workload import TrainMethod, TrainWorkload

LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The only Llama-3 scaling that reaches the model: `gpt_config_from_args` drops `--rope-scaling-factor`, and
`RotaryEmbedding._apply_scaling` has the other three built in."""

YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}

LATENT_YARN = {**YARN_DEFAULTS, "original_max_position_embeddings": 4096}
"""Defaults of `MLATransformerConfig` that no flag of this version changes."""

LATENT_MSCALE = {"mscale": 1.0, "mscale_all_dim": 0.0}

ROPE_PARAMETERS = {
    "llama3": frozenset(LLAMA3_ROPE),
    "linear": frozenset({"factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "truncate", *YARN_DEFAULTS}),
}
"""Parameters of each kind of rope scaling that the flags can say."""


def written_model(model: ModelSpec, workload: TrainWorkload) -> ModelSpec:
    """Return the model as the flags start it: without a rope scaling that they cannot say and the run does not need.

    A scaling is for sequences beyond `original_max_position_embeddings`. A run that pretrains with shorter ones starts
    as the published models did, before their context was extended; the script says so.
    """
    original = model.rope_scaling.get("original_max_position_embeddings")
    if workload.method is not TrainMethod.PRETRAIN or not isinstance(original, int | float):
        return model
    if workload.seq_len > original or _has_flags(model):
        return model
    return replace(model, rope_scaling={})


def _has_flags(model: ModelSpec) -> bool:
    """Return whether the flags can say the model's positions."""
    try:
        require_positions(model, parts_of(model))
    except NotExpressibleError:
        return False
    return True


def require_positions(model: ModelSpec, parts: Parts) -> None:
    """Refuse positions that the flags cannot describe."""
    if model.position_embedding is not PositionEmbedding.ROPE:
        if parts.latent is not None:
            refuse(
                f"{model.name} has multi-head latent attention with positions of kind {model.position_embedding}; "
                "Megatron's is always rotary.",
                "Use `target: any`.",
            )
        return
    if model.rope_theta is None or not float(model.rope_theta).is_integer():
        refuse(
            f"rope_theta = {model.rope_theta} of {model.name}; --rotary-base takes an integer.",
            "Round rope_theta to an integer.",
        )
    if parts.form is Form.HYBRID and any(parts.unrotated):
        refuse(
            f"some attention layers of {model.name} are not rotated; in a hybrid model all are, or none.",
            "Use `position_embedding: none`, or rotate all.",
        )
    kind = model.rope_kind
    if not kind:
        return
    if parts.latent is not None:
        _require_latent_scaling(model, kind)
        return
    _require_scaling(model, kind, parts)


def _require_scaling(model: ModelSpec, kind: str, parts: Parts) -> None:
    scaling = model.rope_scaling
    if kind not in ROPE_PARAMETERS:
        refuse(f"rope scaling of kind {kind!r} in {model.name}.", "The flags know llama3, linear and yarn.")
    _require_parameters(model, kind, ROPE_PARAMETERS[kind])
    if kind == "llama3" and parts.form is Form.HYBRID:
        refuse(
            f"llama3 rope scaling of {model.name}; Megatron's hybrid models have none.",
            f"Leave `rope_scaling`, which changes no cost, out: {EDITED}",
        )
    if kind == "llama3" and any(scaling.get(key, value) != value for key, value in LLAMA3_ROPE.items()):
        found = ", ".join(f"{key} {scaling.get(key, value)}" for key, value in LLAMA3_ROPE.items())
        refuse(
            f"the llama3 rope scaling of {model.name} ({found}) does not reach the model: this version parses "
            "--rope-scaling-factor and then builds with factor 8, low 1, high 4, original length 8192.",
            f"Use factor 8, or leave `rope_scaling`, which changes no cost, out: {EDITED}",
        )
    if kind == "linear" and not float(scaling["factor"]).is_integer():
        refuse(
            f"linear rope scaling by {scaling['factor']}; --rotary-seq-len-interpolation-factor takes an integer.",
            "Use an integer factor.",
        )


def _require_parameters(model: ModelSpec, kind: str, known: frozenset[str]) -> None:
    scaling = model.rope_scaling
    unknown = sorted(set(scaling) - known - {"rope_type", "type"})
    if unknown or "factor" not in scaling:
        problem = f"with {', '.join(unknown)}" if unknown else "without a factor"
        refuse(
            f"{kind} rope scaling of {model.name} {problem}.",
            f"The flags for {kind} can say {', '.join(sorted(known))}.",
        )


def _require_latent_scaling(model: ModelSpec, kind: str) -> None:
    """Refuse scaling of latent attention other than yarn with the parameters that are built in."""
    if kind != "yarn":
        refuse(
            f"rope scaling of kind {kind!r} with multi-head latent attention in {model.name}.",
            "--rope-type takes rope and yarn.",
        )
    _require_parameters(model, kind, frozenset({"factor", *LATENT_YARN, *LATENT_MSCALE}))
    scaling = model.rope_scaling
    if any(scaling.get(key, value) != value for key, value in LATENT_YARN.items()):
        found = ", ".join(f"{key} {scaling.get(key, value)}" for key, value in LATENT_YARN.items())
        expected = ", ".join(f"{key} {value}" for key, value in LATENT_YARN.items())
        refuse(
            f"the yarn rope scaling of {model.name} ({found}); with multi-head latent attention this version has "
            f"{expected} built in.",
            f"Use these values, or leave `rope_scaling`, which changes no cost, out: {EDITED}",
        )
