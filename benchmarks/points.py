"""The points that the search says it searches, stated a second time: plain Python, loops over divisors, one at a time.

Nothing of `planner.search.space.enumeration` and `planner.search.space.space_rules` is used, so that two counts and two
sets of points can be compared. The rules are stated from the README, the docstring of
`planner.search.space.enumeration` and the sources that the capabilities name:

    tp cp pp dp = the GPUs; ulysses divides cp; with routed experts ep etp divides tp cp dp
    tp within the fast domain and at most 16; etp 1 or tp; with cp above 1 at least 2,048 tokens of a sequence on a rank
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

from planner.layout import (
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
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    Mixer,
    MixtureOfExperts,
    SelfAttention,
    StateSpace,
)
from planner.models.specs import ModelSpec
from planner.requests.request import Constraints, PlanRequest, Target
from planner.requests.workload import AttentionKernel, DType, Optimizer, TrainWorkload
from profiles.hardware import Cluster

LONGEST_SCHEDULE = 1_000_000
"""Passes over all pipeline ranks that are simulated."""


class NotStated(Exception):  # noqa: N818 - it says what it is
    """The rules of this run are not stated here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is planned.

    Args:
        model: The model.
        cluster: The cluster.
        request: What is asked.
        offloaded: Every layout has a part of the optimizer's states on the hosts, or with sharded weights all of them;
            which part is not said here.
        parameters: Every layout has the weights there too.
        drives: Every layout has the states on drives, in one way or the other, and brings them to the hosts.
        activations: Every layout has what some layers save on the hosts; how many is not said here.
        modules: Every layout has what these modules of all layers save on the hosts; some layers have them.
    """

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest
    offloaded: bool = False
    parameters: bool = False
    drives: bool = False
    activations: bool = False
    modules: tuple[str, ...] = ()

    @property
    def workload(self) -> TrainWorkload:
        """Return the training run."""
        return self.request.workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How the GPUs are cut into the two grids."""

    tp: int
    cp: int
    ulysses: int
    pp: int
    dp: int
    ep: int
    etp: int
    replicas_outermost: bool = False

    @property
    def edp(self) -> int:
        """Return the ranks that hold the same routed experts."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a mesh is used, but for what is recomputed."""

    vpp: int
    micro_batch_size: int
    sequence_parallel: bool
    zero_stage: int
    state_replicas: int
    secondary_shard: int


def require_stated(run: Run) -> None:
    """Raise `NotStated` for a run whose rules are not stated here."""
    workload = run.workload
    unstated = {
        f"target {run.request.target}": run.request.target is Target.VLLM,
        "constraints": run.request.constraints != Constraints(),
        f"precision {workload.precision}": workload.precision.is_fp8,
        "documents": workload.documents is not None,
    }
    for what, found in unstated.items():
        if found:
            raise NotStated(what)


def kinds_of(model: ModelSpec) -> tuple[Block, ...]:
    """Return each kind of layer, that of multi-token prediction among them."""
    return (*model.distinct_blocks, *(() if model.mtp is None else (model.mtp.block,)))


def _mixers(model: ModelSpec) -> list[Mixer]:
    return [block.mixer for block in kinds_of(model) if block.mixer is not None]


@cache
def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of `number`, by trying each number up to its root."""
    low = [part for part in range(1, int(number**0.5) + 2) if part * part <= number and number % part == 0]
    return tuple(sorted({*low, *(number // part for part in low)}))


def meshes(run: Run) -> Iterator[Mesh]:
    """Yield every way to cut the GPUs, legal or not."""
    gpus = run.cluster.world_size
    for tp in divisors(gpus):
        for cp in divisors(gpus // tp):
            for pp in divisors(gpus // (tp * cp)):
                dp = gpus // (tp * cp * pp)
                grids = [(1, 1)]
                if run.model.has_experts:
                    ranks = tp * cp * dp
                    grids = [(ep, etp) for ep in divisors(ranks) for etp in divisors(ranks // ep)]
                for ulysses, (ep, etp) in product(divisors(cp), grids):
                    mesh = Mesh(tp=tp, cp=cp, ulysses=ulysses, pp=pp, dp=dp, ep=ep, etp=etp)
                    yield mesh
                    if _has_another_order(mesh, run):
                        yield replace(mesh, replicas_outermost=True)


def _has_another_order(mesh: Mesh, run: Run) -> bool:
    """Return whether the replicas outermost are another order than the stages, and one whose links are known."""
    alike = mesh.cp == 1 and (mesh.edp == mesh.dp or not run.model.has_experts)
    return alike and mesh.pp > 1 and mesh.dp > 1 and run.cluster.world_size > run.cluster.fast_domain_size


def is_legal_mesh(mesh: Mesh, run: Run) -> bool:
    """Return whether a mesh breaks no rule."""
    return _is_searched_mesh(mesh, run) and splits_model(mesh, run) and target_has_mesh(mesh, run)


def _is_searched_mesh(mesh: Mesh, run: Run) -> bool:
    """Return whether the search looks at such degrees, and batch, sequence and layers come out."""
    fast, workload = run.cluster.fast_domain_size, run.workload
    return (
        workload.global_batch_size % mesh.dp == 0
        and mesh.tp <= min(fast, 16)
        and mesh.etp in (1, mesh.tp)
        and (mesh.cp == 1 or workload.seq_len // mesh.cp >= 2048)
        and (mesh.cp == 1 or workload.seq_len % (2 * mesh.cp) == 0)
        and (mesh.ulysses in (1, mesh.cp) or mesh.tp * mesh.ulysses <= fast)
        and mesh.pp <= run.model.num_layers
        and (not mesh.replicas_outermost or 0 in (fast % (mesh.tp * mesh.pp), mesh.tp * mesh.pp % fast))
        and (workload.lora is None or mesh.cp == 1)
    )


def splits_model(mesh: Mesh, run: Run) -> bool:
    """Return whether every layer splits over the degrees."""
    model, target = run.model, run.request.target
    further = model.mtp is None or model.hidden_size % mesh.tp == 0
    return further and all(
        _splits_mixer(block, mesh, target) and _splits_feed_forward(block, mesh) for block in kinds_of(model)
    )


def _splits_mixer(block: Block, mesh: Mesh, target: Target) -> bool:
    """Return whether a layer's mixer splits.

    With DeepSpeed's AutoTP several ranks never hold the same key/value heads. Without a framework in mind recurrences
    exchange states over cp and not heads.
    """
    tp, heads_over = mesh.tp, mesh.tp * mesh.ulysses
    match block.mixer:
        case SelfAttention() as attention:
            groups = attention.num_key_value_heads
            return (
                attention.num_attention_heads % heads_over == 0
                and (groups % tp == 0 or (target is not Target.DEEPSPEED and tp % groups == 0))
                and (mesh.ulysses == 1 or groups % heads_over == 0)
                and (attention.query_size * (1 + attention.output_gate) + 2 * attention.key_value_size) % tp == 0
            )
        case LatentAttention() as attention:
            return attention.num_attention_heads % heads_over == 0
        case StateSpace() as scan:
            over = tp if target is Target.ANY else tp * mesh.cp
            groups = scan.num_groups
            return scan.num_heads % over == 0 and groups % tp == 0 and (groups % over == 0 or over % groups == 0)
        case LinearAttention() as linear:
            over = tp if target is Target.ANY else tp * mesh.cp
            return linear.num_key_heads % over == 0 and linear.num_value_heads % over == 0
    return True


def _splits_feed_forward(block: Block, mesh: Mesh) -> bool:
    match block.feed_forward:
        case DenseFeedForward() as dense:
            return dense.intermediate_size % mesh.tp == 0
        case MixtureOfExperts() as experts:
            shared = experts.shared.intermediate_size if experts.shared is not None else 0
            return (
                experts.num_experts % mesh.ep == 0
                and experts.expert.intermediate_size % mesh.etp == 0
                and shared % mesh.tp == 0
            )
    return True


def target_has_mesh(mesh: Mesh, run: Run) -> bool:
    """Return whether the target can run the mesh."""
    mixers = _mixers(run.model)
    latent = [mixer for mixer in mixers if isinstance(mixer, LatentAttention)]
    chosen = any(mixer.indexer is not None for mixer in latent)
    near = any(isinstance(mixer, SelfAttention) and (mixer.window or mixer.chunk) for mixer in mixers)
    match run.request.target:
        case Target.DEEPSPEED:
            # Pipeline, AutoTP and Ulysses each bring a grid of their own; experts are layers like any other, and whole.
            one_grid = sum(degree > 1 for degree in (mesh.tp, mesh.cp, mesh.pp)) <= 1
            whole = mesh.ep == mesh.etp == 1 and not (run.model.has_experts and mesh.tp > 1)
            grids = one_grid and whole and mesh.ulysses == mesh.cp
            return grids and not mesh.replicas_outermost and not (chosen and mesh.cp > 1)
        case Target.MEGATRON:
            unequal = any(mixer.v_head_dim != mixer.qk_head_dim for mixer in latent)
            ulysses_alone = mesh.cp > 1 and mesh.ulysses == mesh.cp
            ring = mesh.cp > mesh.ulysses
            split = mesh.tp > 1 or mesh.cp > 1
            return not (unequal and ulysses_alone) and not (near and ring) and not (chosen and split)
    return True


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
        if run.parameters or run.drives:
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
        (run.parameters and not weights)
        or (run.drives and not drives)
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
        and not any(isinstance(mixer, StateSpace | LinearAttention) for mixer in _mixers(run.model))
    )


def _may_offload_modules(run: Run) -> bool:
    """Return whether the target moves what modules save to the hosts, and plans price it."""
    return (
        run.request.target is not Target.DEEPSPEED
        and not run.workload.precision.is_fp8
        and run.workload.attention_kernel is not AttentionKernel.UNFUSED
        and not any(isinstance(mixer, StateSpace | LinearAttention) for mixer in _mixers(run.model))
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
    recurrent = any(isinstance(mixer, StateSpace | LinearAttention) for mixer in _mixers(run.model))
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
        (not mesh.replicas_outermost or _has_another_order(mesh, run))
        and is_legal_mesh(mesh, run)
        and use in uses(mesh, run)
        and is_legal_use(use, mesh, run)
        and layout.recompute in recomputes(mesh, use.vpp, run)
        and (use.vpp == 1 or counts == interleaved_split(run.model.num_layers, stages))
        and (layout.offload is not None) == run.offloaded
        and layout.parameters_on_host == run.parameters
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
