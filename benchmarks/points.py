"""The points that the search says it searches, stated a second time: plain Python, loops over divisors, one at a time.

Nothing of `planner.search.space.enumeration` and `planner.search.space.space_rules` is used, so that two counts and two
sets of points can be compared. The rules are stated from the README, the docstring of
`planner.search.space.enumeration` and the sources that the capabilities name:

    tp cp pp dp = the GPUs; ulysses divides cp; with routed experts ep etp divides tp cp dp
    tp within the fast domain and at most 16; etp 1 or tp
    with cp above 1 at least 1,024 tokens of a sequence on a rank, 2,048 with routed experts
    a ring around ulysses groups that stay in the fast domain
    the stages of a model replica neighbours only with cp 1, edp = dp, and replicas that tile fast domains
    what heads, groups, widths and experts divide; what the target cannot run

What is not stated here is refused by name (`NotStated`): fp8 recipes, packed documents, pins. Nothing is known of
memory here: a legal point may be too large for the cluster.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from benchmarks.meshes import (
    Mesh,
    Run,
    divisors,
    has_another_order,
    is_legal_mesh,
    kinds_of,
    meshes,
    mixers_of,
    require_stated,
)
from planner.layout import (
    DRIVE_WEIGHTS,
    GPU_WEIGHTS,
    REPLICAS_OUTERMOST,
    STAGES_OUTERMOST,
    Granularity,
    Layout,
    Overlap,
    Recompute,
    Schedule,
    stages_from_counts,
)
from planner.models.blocks import (
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    SelfAttention,
    StateSpace,
)
from planner.requests.request import Target
from planner.requests.workload import AttentionKernel, DType, Optimizer

LONGEST_SCHEDULE = 1_000_000
"""Passes over all pipeline ranks that are simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a mesh is used, but for what is recomputed."""

    vpp: int
    micro_batch_size: int
    sequence_parallel: bool
    zero_stage: int
    state_replicas: int
    secondary_shard: int


def uses(mesh: Mesh, run: Run) -> Iterator[Use]:
    """Yield every use of a mesh, legal or not."""
    batch, rest = divmod(run.workload.global_batch_size, mesh.dp)
    micro_batches = (0,) if rest else divisors(batch)
    for vpp, micro_batch_size, sequence_parallel, (zero_stage, replicas, secondary) in product(
        virtual_stages(run.model.num_layers, mesh.pp),
        micro_batches,
        (False, True) if mesh.tp > 1 else (False,),
        shardings(mesh, run),
    ):
        yield Use(
            vpp=vpp,
            micro_batch_size=micro_batch_size,
            sequence_parallel=sequence_parallel,
            zero_stage=zero_stage,
            state_replicas=replicas,
            secondary_shard=secondary,
        )


def shardings(mesh: Mesh, run: Run) -> list[tuple[int, int, int]]:
    """Return (zero_stage, state_replicas, secondary_shard) of every way to shard states."""
    ranks = mesh.dp * mesh.cp
    if ranks == 1 and not (run.model.has_experts and mesh.edp > 1):
        if run.parameters != GPU_WEIGHTS or run.drives:
            return [(3, 1, 1)]
        if run.request.target is not Target.DEEPSPEED:
            return [(int(_has_low_states(run) or run.offloaded), 1, 1)]
        # DeepSpeed keeps gradients of a backward pass in 16 bit with stage 1, and adds them up at once with stage 2.
        return [(1, 1, 1), (2, 1, 1)] if run.workload.gradient_dtype is DType.FP32 else [(1, 1, 1)]
    found = [(stage, 1, 1) for stage in range(4)]
    near = max(run.cluster.fast_domain_size // mesh.tp, 1)
    if 1 < near < ranks and ranks % near == 0:
        groups = ranks // near
        if run.request.target is not Target.DEEPSPEED and mesh.edp % groups == 0:
            found += [(stage, groups, 1) for stage in (1, 2, 3)]
        if run.request.target is not Target.MEGATRON:
            found.append((3, 1, near))
    return found


def _has_low_states(run: Run) -> bool:
    """Return whether optimizer states are kept in less than fp32, which only a sharded optimizer does."""
    return run.workload.moment_dtype != DType.FP32 or run.workload.master_dtype != DType.FP32


@cache
def virtual_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    """Return every vpp at which interleaved stages come out even, embedding and head counted or not, and 2, 4 and 8."""
    if pp == 1:
        return (1,)
    return tuple(
        vpp for vpp in range(1, max(num_layers // pp, 1) + 1) if vpp in (1, 2, 4, 8) or _even(num_layers, pp * vpp)
    )


def _even(num_layers: int, stages: int) -> bool:
    """Return whether stages are alike, or the last, or the first and the last, hold one layer fewer but still one."""
    return num_layers % stages == 0 or any(
        (num_layers + light) % stages == 0 and (num_layers + light) // stages > 1 for light in (1, 2)
    )


def interleaved_split(num_layers: int, stages: int) -> tuple[int, ...]:
    """Return the one split that the search stands for where stages are interleaved."""
    for light in ((), (stages - 1,), (0, stages - 1)):
        each, rest = divmod(num_layers + len(light), stages)
        if rest == 0 and (each > 1 or not light):
            return tuple(each - (stage in light) for stage in range(stages))
    each, more = divmod(num_layers, stages)
    before = (stages - more) // 2
    return tuple(each + (before <= stage < before + more) for stage in range(stages))


def is_legal_use(use: Use, mesh: Mesh, run: Run) -> bool:
    """Return whether a use of a legal mesh breaks no rule; its length is not asked."""
    workload = run.workload
    num_microbatches = workload.global_batch_size // mesh.dp // use.micro_batch_size
    return (
        mesh.pp * use.vpp <= run.model.num_layers
        and (use.vpp == 1 or num_microbatches % mesh.pp == 0)
        and (not use.sequence_parallel or workload.seq_len % (mesh.tp * mesh.cp) == 0)
        and (use.sequence_parallel or mesh.tp == 1 or not run.model.has_experts)
        and (not mesh.replicas_outermost or use.state_replicas == use.secondary_shard == 1)
        and _target_has_use(use, mesh, run)
    )


def _target_has_use(use: Use, mesh: Mesh, run: Run) -> bool:
    zero, adapters = use.zero_stage, run.workload.lora is not None
    low, shardable = _has_low_states(run), run.workload.optimizer is Optimizer.ADAM
    if low and zero == 0:
        return False
    hosted = {Target.MEGATRON: (1,), Target.DEEPSPEED: (3,)}.get(run.request.target, (1, 3))
    if run.offloaded and (low or adapters or not shardable or zero not in hosted):
        return False
    weights = zero == 3 and use.secondary_shard == 1 and run.request.target is not Target.MEGATRON
    layers = zero <= 1 and mesh.pp == 1 and _may_offload_layers(run)
    modules = zero <= 1 and not adapters and _may_offload_modules(run)
    drives = zero == 3 and mesh.pp == 1 and run.request.target is not Target.MEGATRON
    if (
        (run.parameters != GPU_WEIGHTS and not weights)
        or ((run.drives or run.parameters == DRIVE_WEIGHTS) and not drives)
        or (run.activations and not layers)
        or (run.modules and not modules)
    ):
        return False
    match run.request.target:
        case Target.DEEPSPEED:
            return (
                use.vpp == 1
                and not use.sequence_parallel
                and not low
                and not adapters
                and shardable
                and zero >= (2 if mesh.cp > 1 else 1)
                and zero <= (1 if mesh.pp > 1 else 2 if mesh.tp > 1 else 3)
            )
        case Target.MEGATRON:
            alone = mesh.tp == mesh.cp == mesh.pp == mesh.ep == 1
            return zero <= (3 if alone and not adapters else 1) and (shardable or zero == 0)
    return True


def _may_offload_layers(run: Run) -> bool:
    """Return whether the target moves what layers save to the hosts, and there are layers of which it does."""
    return (
        run.request.target is not Target.DEEPSPEED
        and run.model.num_layers > 1
        and not any(isinstance(mixer, StateSpace | LinearAttention) for mixer in mixers_of(run.model))
    )


def _may_offload_modules(run: Run) -> bool:
    """Return whether the target moves what modules save to the hosts, plans price it, and the model has them all."""
    mixers = mixers_of(run.model)
    present = {"core_attn", "attn_proj"} if mixers else set()
    present |= {"qkv_linear"} if any(isinstance(mixer, SelfAttention) for mixer in mixers) else set()
    present |= {"expert_fc1", "moe_act"} if run.model.has_experts else set()
    return (
        run.request.target is not Target.DEEPSPEED
        and present.issuperset(run.modules)
        and not run.workload.precision.is_fp8
        and run.workload.attention_kernel is not AttentionKernel.UNFUSED
        and not any(isinstance(mixer, StateSpace | LinearAttention) for mixer in mixers)
    )


def _goes_with_modules(recompute: Recompute, run: Run) -> bool:
    """Return whether what a recompute choice keeps is there to be moved: attention and experts are not run again."""
    if not run.modules:
        return True
    again = {"core_attn", "mla_up_proj", *(("moe",) if "expert_fc1" in run.modules else ())}
    alike = recompute.granularity in (Granularity.NONE, Granularity.SELECTIVE)
    return alike and again.isdisjoint(recompute.modules)


def recomputes(mesh: Mesh, vpp: int, run: Run) -> list[Recompute]:
    """Return what may be recomputed of all layers alike, legal always."""
    found = [Recompute(granularity=Granularity.NONE)]
    if run.request.target is not Target.DEEPSPEED:
        found += [
            Recompute(granularity=Granularity.SELECTIVE, modules=modules)
            for mixer, norm, forward in product(*_modules(run))
            if (modules := (*mixer, *norm, *forward))
        ]
        stages = mesh.pp * vpp
        if len(run.model.distinct_blocks) == 1 or stages == 1:
            found += [
                Recompute(granularity=Granularity.FULL, num_layers=layers)
                for layers in range(1, run.model.num_layers // stages + 1)
                if layers * stages < run.model.num_layers
            ]
    found.append(Recompute(granularity=Granularity.FULL))
    return found


def is_chosen_by_layer(*, vpp: int, zero_stage: int, run: Run) -> bool:
    """Return whether each layer may also be recomputed in a way of its own, which no framework has a word for."""
    return run.request.target is Target.ANY and vpp == 1 and zero_stage <= 2


def _modules(run: Run) -> tuple[list[tuple[str, ...]], ...]:
    """Return the choices of modules to recompute in mixers, of norms, and in feed-forwards; the empty one always.

    Norms are layers of their own in front of latent attention and of experts; others are part of a linear layer.
    """
    blocks = kinds_of(run.model)
    experts = any(isinstance(block.feed_forward, MixtureOfExperts) for block in blocks)
    dense = any(isinstance(block.feed_forward, DenseFeedForward) for block in blocks)
    mixers: list[tuple[str, ...]] = [()]
    latent = any(isinstance(block.mixer, LatentAttention) for block in blocks)
    attends = any(isinstance(block.mixer, SelfAttention | LatentAttention) for block in blocks)
    if attends and run.workload.attention_kernel is AttentionKernel.UNFUSED:
        mixers.append(("core_attn",))
    if latent:
        mixers.append(("mla_up_proj",))
    forwards: list[tuple[str, ...]] = [()]
    if experts:
        forwards.append(("moe_act",))
    forwards.append((*(("mlp",) if dense else ()), *(("moe",) if experts else ())))
    norms: list[tuple[str, ...]] = [(), ("layernorm",)] if latent or experts else [()]
    return mixers, norms, [choice for index, choice in enumerate(forwards) if choice or not index]


def count_considered(run: Run) -> int:
    """Return the points before any rule, mesh by mesh: of each, the product of its choices."""
    total = 0
    for mesh in meshes(run):
        chains = sum(len(recomputes(mesh, vpp, run)) for vpp in virtual_stages(run.model.num_layers, mesh.pp))
        batch, rest = divmod(run.workload.global_batch_size, mesh.dp)
        uses_of_each = (1 if rest else len(divisors(batch))) * (1 + (mesh.tp > 1))
        for zero_stage, _, _ in shardings(mesh, run):
            total += uses_of_each * (chains + is_chosen_by_layer(vpp=1, zero_stage=zero_stage, run=run))
    return total


def legal_points(run: Run) -> Iterator[Layout]:
    """Yield every legal point whose schedule is simulated, one after the other, layers not placed."""
    for mesh, use, recompute in _legal(run):
        if not _is_long(mesh, use, run):
            yield point(mesh, use, recompute, run)


def count_legal(run: Run) -> tuple[int, int]:
    """Return how many legal points are simulated, and how many have too long a schedule, counted one by one."""
    short = long = 0
    for mesh, use, _ in _legal(run):
        if _is_long(mesh, use, run):
            long += 1
        else:
            short += 1
    return short, long


def _legal(run: Run) -> Iterator[tuple[Mesh, Use, Recompute]]:
    require_stated(run)
    for mesh in meshes(run):
        if not is_legal_mesh(mesh, run):
            continue
        choices = {vpp: recomputes(mesh, vpp, run) for vpp in virtual_stages(run.model.num_layers, mesh.pp)}
        for use in uses(mesh, run):
            if is_legal_use(use, mesh, run):
                for recompute in choices[use.vpp]:
                    if (not run.activations or recompute.granularity is Granularity.NONE) and _goes_with_modules(
                        recompute, run
                    ):
                        yield mesh, use, recompute
                if (
                    not run.activations
                    and not run.modules
                    and is_chosen_by_layer(vpp=use.vpp, zero_stage=use.zero_stage, run=run)
                ):
                    yield mesh, use, Recompute(granularity=Granularity.PER_LAYER)


def _is_long(mesh: Mesh, use: Use, run: Run) -> bool:
    num_microbatches = run.workload.global_batch_size // mesh.dp // use.micro_batch_size
    return 2 * num_microbatches * use.vpp * mesh.pp > LONGEST_SCHEDULE


def point(mesh: Mesh, use: Use, recompute: Recompute, run: Run) -> Layout:
    """Return a point as a layout, its layers not placed, communication overlapped where the target can."""
    target = run.request.target
    deepspeed = target is Target.DEEPSPEED
    recurrent = any(isinstance(mixer, StateSpace | LinearAttention) for mixer in mixers_of(run.model))
    several = mesh.dp * mesh.cp > 1
    schedule = Schedule.NO_PIPELINE
    if mesh.pp > 1:
        schedule = Schedule.INTERLEAVED if use.vpp > 1 else Schedule.ONE_F_ONE_B
    return Layout(
        tp=mesh.tp,
        sequence_parallel=use.sequence_parallel,
        pp=mesh.pp,
        vpp=use.vpp,
        dp=mesh.dp,
        zero_stage=use.zero_stage,
        micro_batch_size=use.micro_batch_size,
        num_microbatches=run.workload.global_batch_size // mesh.dp // use.micro_batch_size,
        schedule=schedule,
        recompute=recompute,
        overlap=Overlap(
            grad_reduce=several and use.zero_stage >= (2 if deepspeed else 0),
            param_gather=several and use.zero_stage >= (3 if deepspeed else 1),
            p2p=use.vpp > 1,
        ),
        stages=stages_from_counts((0,) * (mesh.pp * use.vpp)),
        cp=mesh.cp,
        ulysses=mesh.ulysses,
        state_exchange=mesh.cp > 1 and recurrent and target is Target.ANY,
        ep=mesh.ep,
        etp=mesh.etp,
        state_replicas=use.state_replicas,
        secondary_shard=use.secondary_shard,
        rank_order=REPLICAS_OUTERMOST if mesh.replicas_outermost else STAGES_OUTERMOST,
    )


def mesh_of(layout: Layout) -> Mesh:
    """Return the mesh of a layout."""
    return Mesh(
        tp=layout.tp,
        cp=layout.cp,
        ulysses=layout.ulysses,
        pp=layout.pp,
        dp=layout.dp,
        ep=layout.ep,
        etp=layout.etp,
        replicas_outermost=layout.rank_order == REPLICAS_OUTERMOST,
    )


def use_of(layout: Layout) -> Use:
    """Return how a layout uses its mesh."""
    return Use(
        vpp=layout.vpp,
        micro_batch_size=layout.micro_batch_size,
        sequence_parallel=layout.sequence_parallel,
        zero_stage=layout.zero_stage,
        state_replicas=layout.state_replicas,
        secondary_shard=layout.secondary_shard,
    )


def is_proved(layout: Layout, run: Run) -> bool:
    """Return whether the search proves its answer for a placed layout, and `benchmarks.brute_force` looks at it.

    Of interleaved stages that is the split which is as even as they come. Layers are recomputed alike.
    """
    mesh, use = mesh_of(layout), use_of(layout)
    counts = tuple(stage.num_layers for stage in layout.stages)
    stages = mesh.pp * use.vpp
    return (
        (not mesh.replicas_outermost or has_another_order(mesh, run))
        and is_legal_mesh(mesh, run)
        and use in uses(mesh, run)
        and is_legal_use(use, mesh, run)
        and layout.recompute in recomputes(mesh, use.vpp, run)
        and (use.vpp == 1 or counts == interleaved_split(run.model.num_layers, stages))
        and (layout.offload is not None) == run.offloaded
        and layout.parameter_offload == run.parameters
        and (layout.offload is not None and layout.offload.drives) == run.drives
        and (layout.offloaded_layers > 0) == run.activations
        and (not run.activations or layout.recompute.granularity is Granularity.NONE)
        and layout.offloaded_modules == run.modules
        and _goes_with_modules(layout.recompute, run)
        and replace(
            layout,
            stages=stages_from_counts((0,) * stages),
            offload=None,
            offloaded_layers=0,
            offloaded_modules=(),
        )
        == point(mesh, use, layout.recompute, run)
    )
