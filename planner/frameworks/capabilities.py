"""What each target framework can run, as data: the search, the checker and the emitters all read it.

A rule that more than one framework has is a field; what only one framework's files can say is its emitter's business.
Each figure was read in the framework's own source, at the version that its emitter names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.frameworks.overheads import PUBLISHED, Overheads, overheads_on
from planner.layout import ContextKind
from planner.requests.request import Target
from profiles.hardware import Cluster
from profiles.software import CURRENT_SOFTWARE, AttentionKernels, Software, TensorParallelOverlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one framework can run.

    Args:
        title: The framework with the version that was checked.
        interleaving: Several virtual stages a pipeline rank.
        sequence_parallel: Norms and residuals split over tp.
        context_kinds: Kinds of context parallelism.
        ring_around_windows: Rings where attention sees only near tokens.
        chosen_keys_with_context: Context parallelism where an indexer chooses keys.
        packed_with_context: Context parallelism over sequences packed from several documents.
        chosen_keys_with_tensor: tp above 1 where an indexer chooses keys.
        ulysses_with_unequal_heads: Ulysses alone where value heads are not as wide as key heads.
        reduce_scatter_from: Least zero_stage whose gradients are reduced and scattered, not reduced whole.
        scattered_transfers: Without sequence parallelism a rank of tp sends its part of the residual stream to the next
            stage, where the parts are gathered; else each sends all of it.
        state_exchange: Linear-attention layers exchange states over cp; else heads.
        experts: Expert parallelism.
        expert_tensor: A tensor-parallel degree of the experts' own.
        shared_key_values: Several ranks of tp hold the same key/value heads where there are fewer heads than ranks.
        half_gradients: With zero_stage 1 and fp32 gradients, 16-bit gradients are kept beside them.
        least_zero_stage: Smallest zero_stage that is run.
        least_zero_with_context: Smallest zero_stage with cp above 1.
        reduce_overlap_from: Smallest zero_stage whose gradients are reduced beside backward.
        gather_overlap_from: Smallest zero_stage whose weights are gathered beside computation.
        zero_with_pipeline: Largest zero_stage with pp above 1.
        zero_with_tensor: Largest zero_stage with tp above 1.
        zero_with_context: Largest zero_stage with cp above 1.
        zero_with_experts: Largest zero_stage with ep above 1.
        zero_with_adapters: Largest zero_stage with low-rank adapters.
        pipeline_with_tensor: pp and tp above 1 together.
        pipeline_with_context: pp and cp above 1 together.
        tensor_with_context: tp and cp above 1 together.
        pipeline_with_experts: pp above 1 for a model with routed experts.
        tensor_with_experts: tp above 1 for a model with routed experts.
        replicas_outermost: The stages of a model replica can be neighbours.
        hybrid_sharding: States sharded in groups, each of which holds everything.
        secondary_shard: A second copy of the weights, sharded in a smaller group.
        partial_recompute: Some layers of a stage recomputed whole, the others not.
        selective_recompute: Modules of a layer recomputed.
        per_layer_recompute: What is recomputed is another thing from layer to layer.
        sharded_optimizers: Optimizers (by name) whose states can be sharded.
        low_precision_states: Optimizer states below fp32.
        offload_zero_stages: Where a part of the optimizer's states, or all, can lie and be updated on the host.
        parameter_offload: With zero_stage 3 and all optimizer states there, the weights can lie on the host too.
        drive_offload: With zero_stage 3 all optimizer states can lie on the drives of their node.
        parameter_drives: With zero_stage 3 the weights can lie there too, the optimizer states on the hosts or there.
        activation_offload: Saved tensors of layers can lie on the host between forward and backward pass.
        module_offload: Those of named modules of every layer can.
        vocab_divisor: The embedding table is padded to a multiple of this times tp; 1 pads to tp alone.
        queued_gradients: Elements of unsharded gradients that wait with zero_stage 2 and 3.
        prefetched_weights: Elements gathered ahead with zero_stage 3.
        software: What runs the kernels.
        eager: Layers are plain PyTorch modules, which keep more and pass over memory more often than fused kernels.
        overheads: What a GPU holds beside tensors.
    """

    title: str
    interleaving: bool
    sequence_parallel: bool
    context_kinds: frozenset[ContextKind]
    ring_around_windows: bool
    chosen_keys_with_context: bool
    packed_with_context: bool
    chosen_keys_with_tensor: bool
    ulysses_with_unequal_heads: bool
    reduce_scatter_from: int
    scattered_transfers: bool
    state_exchange: bool
    experts: bool
    expert_tensor: bool
    shared_key_values: bool
    half_gradients: bool
    least_zero_stage: int
    least_zero_with_context: int
    reduce_overlap_from: int
    gather_overlap_from: int
    zero_with_pipeline: int
    zero_with_tensor: int
    zero_with_context: int
    zero_with_experts: int
    zero_with_adapters: int
    pipeline_with_tensor: bool
    pipeline_with_context: bool
    tensor_with_context: bool
    pipeline_with_experts: bool
    tensor_with_experts: bool
    replicas_outermost: bool
    hybrid_sharding: bool
    secondary_shard: bool
    partial_recompute: bool
    selective_recompute: bool
    per_layer_recompute: bool
    sharded_optimizers: frozenset[str]
    low_precision_states: bool
    offload_zero_stages: frozenset[int]
    parameter_offload: bool
    drive_offload: bool
    parameter_drives: bool
    activation_offload: bool
    module_offload: bool
    vocab_divisor: int
    queued_gradients: int
    prefetched_weights: int
    software: Software
    eager: bool
    overheads: Overheads = PUBLISHED


MEGATRON = Capabilities(
    title="Megatron-LM (megatron-core 0.19.2)",
    interleaving=True,
    sequence_parallel=True,
    context_kinds=frozenset(ContextKind),
    ring_around_windows=False,
    chosen_keys_with_context=False,
    # Transformer Engine wants each document to be a multiple of 2 cp tokens; Megatron-LM's dataset does not pad them.
    packed_with_context=False,
    # `experimental_attention_variant/dsa.py`: every rank of tp computes all of the indexer.
    chosen_keys_with_tensor=False,
    # Transformer Engine, `attn_forward_func_with_cp`: latent attention only with p2p or a2a+p2p.
    ulysses_with_unequal_heads=False,
    reduce_scatter_from=1,
    scattered_transfers=False,
    state_exchange=False,
    experts=True,
    shared_key_values=True,
    half_gradients=False,
    expert_tensor=True,
    least_zero_stage=0,
    least_zero_with_context=0,
    reduce_overlap_from=0,
    gather_overlap_from=1,
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
    tensor_with_experts=True,
    replicas_outermost=True,
    hybrid_sharding=True,
    secondary_shard=False,
    partial_recompute=True,
    selective_recompute=True,
    # `arguments.py`: --recompute-granularity and --recompute-modules are said once, for every layer.
    per_layer_recompute=False,
    sharded_optimizers=frozenset({"adam"}),
    low_precision_states=True,
    # `HybridDeviceOptimizer`: with the precision-aware path of the distributed optimizer (`validate_args`); with
    # Megatron-FSDP it would be left over the whole weights (`DistributedOptimizer.__init__` returns before).
    offload_zero_stages=frozenset({1}),
    parameter_offload=False,
    drive_offload=False,
    parameter_drives=False,
    # `--cpu-offloading-num-layers`.
    activation_offload=True,
    module_offload=True,
    vocab_divisor=128,
    # `megatron_fsdp.py`: `suggested_RS_queue_capacity`, and half of it as `suggested_AG_prefetch_size`; more where two
    # layers are larger.
    queued_gradients=1_000_000_000,
    prefetched_weights=500_000_000,
    software=CURRENT_SOFTWARE,
    eager=False,
)

DEEPSPEED = Capabilities(
    title="DeepSpeed 0.19.8",
    # `PipelineModule` gives a rank one run of layers (`pipe/module.py: _partition_layers`).
    interleaving=False,
    # AutoTP keeps what is between its column and row layers whole (`module_inject/layers.py: LinearAllreduce`).
    sequence_parallel=False,
    # `sequence/layer.py: DistributedAttention` exchanges heads for tokens.
    context_kinds=frozenset({ContextKind.ULYSSES}),
    ring_around_windows=False,
    chosen_keys_with_context=False,
    # The training program's attention knows no documents.
    packed_with_context=False,
    chosen_keys_with_tensor=True,
    ulysses_with_unequal_heads=True,
    # `runtime/engine.py: buffered_allreduce_fallback`, with stage 1 and fp32 gradients.
    reduce_scatter_from=2,
    scattered_transfers=False,
    state_exchange=False,
    # There are `deepspeed.moe` and AutoEP (`module_inject/auto_ep.py`); the emitted training program uses neither.
    experts=False,
    # AutoTP splits the projections by whole heads (`module_inject/auto_tp.py`).
    shared_key_values=False,
    # `runtime/bf16_optimizer.py`: gradients are added to the fp32 ones only after backward.
    half_gradients=True,
    expert_tensor=False,
    # Stage 0 in 16 bits keeps no unsharded fp32 gradients ("unsupported mix", `_do_optimizer_sanity_check`), its
    # `FP16_Optimizer` takes other steps than stages 1 to 3 do (`tests/frameworks/test_deepspeed.py` shows it), and
    # with pipeline stages in bf16 it shards after all (`BF16_Optimizer`).
    least_zero_stage=1,
    # `BF16_Optimizer`, stage 1 with fp32 gradients, sums their norm over the model-parallel group too, for which
    # `parallel_state_sp.py` gives the ranks of a sequence (`runtime/utils.py: get_global_norm_of_tensors`).
    least_zero_with_context=2,
    # `BF16_Optimizer` reduces at the end of the step; `stage_1_and_2.py` and `stage3.py` with `overlap_comm`.
    reduce_overlap_from=2,
    # Stages 1 and 2 gather the weights at the end of the step.
    gather_overlap_from=3,
    # `pipe/engine.py`: "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism".
    zero_with_pipeline=1,
    # AutoTP goes with stage 3 too; the training program builds the whole model on each rank before AutoTP splits it.
    zero_with_tensor=2,
    zero_with_context=3,
    zero_with_experts=0,
    zero_with_adapters=0,
    # Each of the three brings a process grid of its own.
    pipeline_with_tensor=False,
    pipeline_with_context=False,
    tensor_with_context=False,
    # With ep 1 experts are a layer like any other; AutoTP splits matrices, not stacks of them.
    pipeline_with_experts=True,
    tensor_with_experts=False,
    # `runtime/config.py: _REMOVED_ZERO_CONFIG_KEYS`: `mics_shard_size`.
    replicas_outermost=False,
    hybrid_sharding=False,
    # `zero_hpz_partition_size`.
    secondary_shard=True,
    # The program checkpoints every layer or none.
    partial_recompute=False,
    selective_recompute=False,
    per_layer_recompute=False,
    # `runtime/zero/utils.py: ZERO_SUPPORTED_OPTIMIZERS`.
    sharded_optimizers=frozenset({"adam"}),
    # `bf16_optimizer_states` lowers the moments together with master weights and gradients only.
    low_precision_states=False,
    # `offload_optimizer`; with stages 1 and 2 the gradients of all micro-batches stay on the GPU until the last
    # (`stage_1_and_2.py`), which is not priced.
    offload_zero_stages=frozenset({3}),
    # `offload_param`.
    parameter_offload=True,
    # `offload_optimizer` with device nvme.
    drive_offload=True,
    # `offload_param` with device nvme.
    parameter_drives=True,
    # `cpu_checkpointing` moves the inputs of layers that are recomputed, which is not priced.
    activation_offload=False,
    module_offload=False,
    # The LM head and a tied embedding split by rows (`module_inject/layers.py: VocabParallelLinear`).
    vocab_divisor=1,
    # Two `reduce_bucket_size` of half as many: one is filled while the other is reduced (`stage_1_and_2.py`).
    queued_gradients=500_000_000,
    # `stage3_max_live_parameters`, DeepSpeed's default.
    prefetched_weights=1_000_000_000,
    # `planner/data/deepspeed/planned_model.py`.
    # The shipped program pins PyTorch's FlashAttention-2; AutoTP's reductions run alone.
    software=Software(attention=AttentionKernels.FLASH_2, tensor_parallel_overlap=TensorParallelOverlap.NOTHING),
    eager=True,
)

ANY = Capabilities(
    title="no framework in particular",
    interleaving=True,
    sequence_parallel=True,
    context_kinds=frozenset(ContextKind),
    ring_around_windows=True,
    chosen_keys_with_context=True,
    packed_with_context=True,
    chosen_keys_with_tensor=True,
    ulysses_with_unequal_heads=True,
    reduce_scatter_from=1,
    scattered_transfers=False,
    state_exchange=True,
    experts=True,
    shared_key_values=True,
    half_gradients=False,
    expert_tensor=True,
    least_zero_stage=0,
    least_zero_with_context=0,
    reduce_overlap_from=0,
    gather_overlap_from=1,
    zero_with_pipeline=3,
    zero_with_tensor=3,
    zero_with_context=3,
    zero_with_experts=3,
    zero_with_adapters=3,
    pipeline_with_tensor=True,
    pipeline_with_context=True,
    tensor_with_context=True,
    pipeline_with_experts=True,
    tensor_with_experts=True,
    replicas_outermost=True,
    hybrid_sharding=True,
    secondary_shard=True,
    partial_recompute=True,
    selective_recompute=True,
    per_layer_recompute=True,
    sharded_optimizers=frozenset({"adam", "sgd"}),
    low_precision_states=True,
    offload_zero_stages=frozenset({1, 3}),
    parameter_offload=True,
    drive_offload=True,
    parameter_drives=True,
    activation_offload=True,
    module_offload=True,
    vocab_divisor=128,
    queued_gradients=MEGATRON.queued_gradients,
    prefetched_weights=MEGATRON.prefetched_weights,
    software=CURRENT_SOFTWARE,
    eager=False,
)

CAPABILITIES: Mapping[Target, Capabilities] = {
    Target.MEGATRON: MEGATRON,
    Target.DEEPSPEED: DEEPSPEED,
    Target.ANY: ANY,
}


def capabilities_of(cluster: Cluster, target: Target) -> Capabilities:
    """Return what a target can run, its GPUs holding beside tensors what a cluster's measurements say.

    Raises:
        profiles.errors.ProfileFileError: The cluster's profile cannot be read, or has changed.
    """
    return replace(CAPABILITIES[target], overheads=overheads_on(cluster))


def capabilities_on(cluster: Cluster, target: Target) -> Capabilities:
    """Return what of a target is searched on a cluster.

    On nodes that differ layers are placed with one recompute choice for all, and nothing goes to the hosts.
    """
    capabilities = capabilities_of(cluster, target)
    if cluster.unequal is None:
        return capabilities
    return replace(
        capabilities,
        per_layer_recompute=False,
        offload_zero_stages=frozenset(),
        parameter_offload=False,
        drive_offload=False,
        parameter_drives=False,
        activation_offload=False,
        module_offload=False,
    )
