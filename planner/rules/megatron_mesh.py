"""Megatron-LM: degrees against the number of GPUs, the heads, the experts and the batch."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, listed, nearest_divisors, nearest_multiples, rule

VALIDATE = "megatron/training/arguments.py: validate_args"


@rule(
    id="MLM101",
    name="world-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: world size (...) is not divisible by total_model_size",
    found_at=FoundAt.START,
    source=VALIDATE,
)
def world_divisible(run: MegatronRun) -> Iterator[Found]:
    """Tp x pp x cp divides the number of GPUs.

    Tensor, pipeline and context parallel ranks make up one replica of the model, and the GPUs are split into whole
    replicas.
    """
    world, replica = run.world_size, run.tp * run.pp * run.cp
    if world % replica:
        yield Found(
            place=run.place("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
            message=f"{world} GPUs are not a multiple of tp {run.tp} x pp {run.pp} x cp {run.cp} = {replica}.",
            hint=f"A replica of {listed(nearest_divisors(world, replica))} GPUs would do, "
            f"or {listed(nearest_multiples(replica, world))} GPUs.",
        )


@rule(
    id="MLM102",
    name="expert-mesh-divisible",
    framework=Framework.MEGATRON,
    prevents="RuntimeError: world_size (...) is not divisible by expert_tensor_model_pipeline_parallel size (...)",
    found_at=FoundAt.BUILD,
    source="megatron/core/parallel_state.py: initialize_model_parallel",
)
def expert_mesh_divisible(run: MegatronRun) -> Iterator[Found]:
    """Etp x ep x pp divides the number of GPUs.

    Experts have a mesh of their own over the same GPUs. Without `--expert-tensor-parallel-size`, etp is tp.
    """
    world, block = run.world_size, run.etp * run.ep * run.pp
    if world % (run.tp * run.pp * run.cp) == 0 and world % block:
        ranks = world // run.pp
        yield Found(
            place=run.place("expert_model_parallel_size", "expert_tensor_parallel_size"),
            message=f"{world} GPUs are not a multiple of etp {run.etp} x ep {run.ep} x pp {run.pp} = {block}.",
            hint=f"ep {listed(nearest_divisors(max(ranks // run.etp, 1), run.ep))} would do"
            + (f", or etp 1 with ep {listed(nearest_divisors(ranks, run.ep))}." if run.etp > 1 else "."),
        )


@rule(
    id="MLM103",
    name="heads-divisible",
    framework=Framework.MEGATRON,
    prevents="ValueError: num_attention_heads (...) must be a multiple of tensor_model_parallel_size (...)",
    found_at=FoundAt.BUILD,
    source="megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__",
)
def heads_divisible(run: MegatronRun) -> Iterator[Found]:
    """Tp divides the number of attention heads: each tensor-parallel rank holds whole ones."""
    if run.num_attention_heads % run.tp:
        yield Found(
            place=run.place("tensor_model_parallel_size", "num_attention_heads"),
            message=f"tp {run.tp} does not divide {run.num_attention_heads} attention heads.",
            hint=f"tp {listed(nearest_divisors(run.num_attention_heads, run.tp))} would do.",
        )


@rule(
    id="MLM110",
    name="sequence-parallel-for-experts",
    framework=Framework.MEGATRON,
    prevents="ValueError: During training, performance may degrade if MoE and tensor parallelism are enabled without "
    "also enabling sequence parallelism.",
    found_at=FoundAt.STEP,
    source="megatron/core/transformer/moe/moe_layer.py: MoELayer.forward",
)
def sequence_parallel_for_experts(run: MegatronRun) -> Iterator[Found]:
    """Experts with tp above 1 need `--sequence-parallel`.

    Every tensor-parallel rank would route the same tokens. Sequence parallelism gives each rank tokens of its own.
    """
    if run.num_experts is not None and run.tp > 1 and not run.arguments.is_on("sequence_parallel"):
        yield Found(
            place=run.place("tensor_model_parallel_size"),
            message=f"tp {run.tp} with {run.num_experts} experts and without --sequence-parallel.",
            hint="Add --sequence-parallel, or use tp 1.",
        )


@rule(
    id="MLM111",
    name="sequence-parallel-without-tp",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="Disabling sequence parallelism because tensor model parallelism is disabled",
    found_at=FoundAt.NEVER,
    source=VALIDATE,
)
def sequence_parallel_without_tp(run: MegatronRun) -> Iterator[Found]:
    """Sequence parallelism splits what tensor parallelism leaves whole; with tp 1 Megatron switches it off."""
    use = run.arguments.use("sequence_parallel")
    if use is not None and run.tp == 1:
        yield Found(
            place=use.location,
            message="--sequence-parallel does nothing with tp 1.",
            hint="Remove it, or raise --tensor-model-parallel-size.",
            fix=Fix(location=use.location, old=use.spelled, new=""),
        )


RULES: tuple[Rule[MegatronRun], ...] = (
    world_divisible,
    expert_mesh_divisible,
    heads_divisible,
    sequence_parallel_for_experts,
    sequence_parallel_without_tp,
)
