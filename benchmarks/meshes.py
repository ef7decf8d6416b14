"""Meshes that the search says it searches, stated a second time; the rules are those of `benchmarks.points`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from planner.layout import GPU_WEIGHTS
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
from planner.requests.workload import TrainWorkload
from profiles.hardware import Cluster


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
        parameters: Where every layout has the weights, as `planner.layout` numbers it.
        drives: Every layout has the states on drives, in one way or the other, and brings them to the hosts.
        activations: Every layout has what some layers save on the hosts; how many is not said here.
        modules: Every layout has what these modules of all layers save on the hosts; some layers have them.
    """

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest
    offloaded: bool = False
    parameters: int = GPU_WEIGHTS
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


def mixers_of(model: ModelSpec) -> list[Mixer]:
    """Return the mixers of the kinds of layers of a model."""
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
                    if has_another_order(mesh, run):
                        yield replace(mesh, replicas_outermost=True)


def has_another_order(mesh: Mesh, run: Run) -> bool:
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
        and (mesh.cp == 1 or workload.seq_len // mesh.cp >= (2048 if run.model.has_experts else 1024))
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
    mixers = mixers_of(run.model)
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
