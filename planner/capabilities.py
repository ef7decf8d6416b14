"""What each target framework can run, as data: the search, the checker and the emitters all read it.

A rule that more than one framework has is a field; what only one framework's files can say is its emitter's business.
Each figure was read in the framework's own source, at the version that its emitter names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.layout import ContextKind
from planner.request import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one framework can run.

    Args:
        title: The framework with the version that was checked.
        interleaving: Several virtual stages a pipeline rank.
        sequence_parallel: Norms and residuals split over tp.
        context_kinds: Kinds of context parallelism.
        ring_around_windows: Rings where attention sees only near tokens.
        state_exchange: Linear-attention layers exchange states over cp; else heads.
        experts: Expert parallelism.
        expert_tensor: A tensor-parallel degree of the experts' own.
        zero_with_pipeline: Largest zero_stage with pp above 1.
        zero_with_tensor: Largest zero_stage with tp above 1.
        zero_with_context: Largest zero_stage with cp above 1.
        zero_with_experts: Largest zero_stage with ep above 1.
        zero_with_adapters: Largest zero_stage with low-rank adapters.
        pipeline_with_tensor: pp and tp above 1 together.
        pipeline_with_context: pp and cp above 1 together.
        tensor_with_context: tp and cp above 1 together.
        pipeline_with_experts: pp above 1 for a model with routed experts.
        hybrid_sharding: States sharded in groups, each of which holds everything.
        secondary_shard: A second copy of the weights, sharded in a smaller group.
        partial_recompute: Some layers of a stage recomputed whole, the others not.
        selective_recompute: Modules of a layer recomputed.
        sharded_optimizers: Optimizers (by name) whose states can be sharded.
        low_precision_states: Optimizer states below fp32.
        vocab_divisor: The embedding table is padded to a multiple of this times tp; 1 pads to tp alone.
        queued_gradients: Elements of unsharded gradients that wait with zero_stage 2 and 3.
        prefetched_weights: Elements gathered ahead with zero_stage 3.
    """

    title: str
    interleaving: bool
    sequence_parallel: bool
    context_kinds: frozenset[ContextKind]
    ring_around_windows: bool
    state_exchange: bool
    experts: bool
    expert_tensor: bool
    zero_with_pipeline: int
    zero_with_tensor: int
    zero_with_context: int
    zero_with_experts: int
    zero_with_adapters: int
    pipeline_with_tensor: bool
    pipeline_with_context: bool
    tensor_with_context: bool
    pipeline_with_experts: bool
    hybrid_sharding: bool
    secondary_shard: bool
    partial_recompute: bool
    selective_recompute: bool
    sharded_optimizers: frozenset[str]
    low_precision_states: bool
    vocab_divisor: int
    queued_gradients: int
    prefetched_weights: int


MEGATRON = Capabilities(
    title="Megatron-LM (megatron-core 0.19.2)",
    interleaving=True,
    sequence_parallel=True,
    context_kinds=frozenset(ContextKind),
    ring_around_windows=False,
    state_exchange=False,
    experts=True,
    expert_tensor=True,
    # Megatron-FSDP wants CUDA_DEVICE_MAX_CONNECTIONS unset, tensor and context parallelism before Blackwell want 1.
    zero_with_pipeline=1,
    zero_with_tensor=1,
    zero_with_context=1,
    zero_with_experts=1,
    zero_with_adapters=1,
    pipeline_with_tensor=True,
    pipeline_with_context=True,
    tensor_with_context=True,
    pipeline_with_experts=True,
    hybrid_sharding=True,
    secondary_shard=False,
    partial_recompute=True,
    selective_recompute=True,
    sharded_optimizers=frozenset({"adam"}),
    low_precision_states=True,
    vocab_divisor=128,
    # `megatron_fsdp.py`: at least two layers either way.
    queued_gradients=1_000_000_000,
    prefetched_weights=500_000_000,
)

DEEPSPEED = Capabilities(
    title="DeepSpeed 0.19.8",
    interleaving=False,
    sequence_parallel=False,
    context_kinds=frozenset({ContextKind.ULYSSES}),
    ring_around_windows=False,
    state_exchange=False,
    experts=False,
    expert_tensor=False,
    zero_with_pipeline=1,
    zero_with_tensor=2,
    zero_with_context=3,
    zero_with_experts=0,
    zero_with_adapters=0,
    pipeline_with_tensor=False,
    pipeline_with_context=False,
    tensor_with_context=False,
    pipeline_with_experts=False,
    hybrid_sharding=False,
    secondary_shard=True,
    partial_recompute=False,
    selective_recompute=False,
    sharded_optimizers=frozenset({"adam"}),
    low_precision_states=False,
    vocab_divisor=1,
    # Defaults of the ZeRO section: `reduce_bucket_size`, `stage3_max_live_parameters`.
    queued_gradients=500_000_000,
    prefetched_weights=1_000_000_000,
)

ANY = Capabilities(
    title="no framework in particular",
    interleaving=True,
    sequence_parallel=True,
    context_kinds=frozenset(ContextKind),
    ring_around_windows=True,
    state_exchange=True,
    experts=True,
    expert_tensor=True,
    zero_with_pipeline=3,
    zero_with_tensor=3,
    zero_with_context=3,
    zero_with_experts=3,
    zero_with_adapters=3,
    pipeline_with_tensor=True,
    pipeline_with_context=True,
    tensor_with_context=True,
    pipeline_with_experts=True,
    hybrid_sharding=True,
    secondary_shard=True,
    partial_recompute=True,
    selective_recompute=True,
    sharded_optimizers=frozenset({"adam", "sgd"}),
    low_precision_states=True,
    vocab_divisor=128,
    queued_gradients=MEGATRON.queued_gradients,
    prefetched_weights=MEGATRON.prefetched_weights,
)

CAPABILITIES: Mapping[Target, Capabilities] = {
    Target.MEGATRON: MEGATRON,
    Target.DEEPSPEED: DEEPSPEED,
    Target.ANY: ANY,
}
