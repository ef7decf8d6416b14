"""The outer space of layouts, as arrays, with a reason for every point that is ruled out.

Axis X: points. The space is the full product of

    tp in divisors of the GPUs; cp in divisors of GPUs / tp; pp in divisors of what is left; dp what is left then;
    ulysses 1, cp, or a divisor of cp between them; with routed experts ep and etp in divisors of tp cp dp;
    micro_batch_size in divisors of global_batch_size / dp; sequence_parallel in {no, yes};
    rank order with the stages outermost, or the replicas (cp 1, edp equal to dp where experts are routed);
    zero_stage in {0, 1, 2, 3}, with hybrid sharding and secondary shards at the fast domain's size;
    vpp 1, or such that interleaved stages come out even, or one of a few; every recompute choice for all layers, and
    with vpp 1 and zero_stage 2 at most one for each layer, which `planner.search.splits.layer_choices` makes.

Combinations that say the same thing twice (sequence parallelism with tp 1, sharding over one rank, another order of
ranks in one fast domain) are not points;
where it shards over one rank, the sharded optimizer still comes with optimizer states below fp32 or on the host, and
with targets that have no other, and sharded weights with weights on the host; and zero_stage 2 with targets that keep
16-bit gradients beside the accumulated ones with zero_stage 1. Points with a part of the states on the host, those with
the weights there too, and those whose layers or modules keep saved tensors there are enumerated apart
(`planner.search.offload_search`, `planner.search.activation_search`, `planner.search.module_search`).

The product is unrolled in three steps, meshes first, then how a mesh is used, then what is recomputed. Rules are
applied after each step to the points so far, and every ruled-out point is counted, with all that would have come of
it, under the first rule that it breaks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from itertools import chain, product

import numpy as np

from planner.arrays import BoolArray, IntArray
from planner.layout import GPU_WEIGHTS, ON_HOSTS, Granularity, Recompute
from planner.offloading.modules import clashes
from planner.requests.request import Bounds, Constraints
from planner.requests.workload import TrainWorkload
from planner.search.space.dimensions import (
    LARGEST_ZERO_BY_LAYER,
    divisors,
    partial_recompute_layers,
    recompute_choices,
    virtual_degrees,
    zero_stages_alone,
)
from planner.search.space.module_rules import module_recompute_rules, module_rules
from planner.search.space.points import Points, Scope, distinct, distinct_columns
from planner.search.space.space_rules import Rule, mesh_rules, recompute_rules, use_rules

MAX_SCHEDULED_OPERATIONS = 1_000_000
"""Longest schedule that is simulated, in passes over all ranks: about a second of the simulator."""

RECOMPUTE_PINNED = "constraints: recompute"
UNSIMULATED = "schedule longer than the simulator runs"
"""The one rule that rules out layouts which might be fine."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """The legal points and the account of the others.

    Args:
        points: Legal points.
        recomputes: The recompute choices that `Points.recompute_X` indexes.
        considered: Points before any rule.
        pruned: Rule to number of points that broke it first.
        unsimulated: Points that broke no rule but are too long to simulate; counted in `pruned`.
        unfit: Points that broke no rule and were dropped because not even the most frugal use of their mesh fits.
        modules: Modules of all layers whose saved tensors wait in host memory.
    """

    points: Points
    unsimulated: Points
    recomputes: tuple[Recompute, ...]
    considered: int
    pruned: Mapping[str, int]
    unfit: int = 0
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sharding:
    """One way to split states: what is split, in how many groups, and over how many ranks a second copy."""

    zero_stage: int
    state_replicas: int = 1
    secondary_shard: int = 1


class _Inner:
    """What each mesh is unrolled into: the choices behind it, and how many points that makes."""

    def __init__(self, scope: Scope, *, offloads: bool, sharded: bool) -> None:
        self.scope = scope
        self.zero_stages_alone = zero_stages_alone(
            scope.workload, scope.capabilities, offloads=offloads, sharded=sharded
        )
        self.recomputes = recompute_choices(scope.graph, scope.workload, scope.capabilities)
        self.uses = cache(self._uses)
        self.recompute_columns = cache(self._recompute_columns)
        self.num_chains = cache(self._num_chains)
        self.most_partial = cache(self._most_partial)

    def micro_batches(self, dp: int) -> tuple[int, ...]:
        batch, remainder = divmod(self.scope.workload.global_batch_size, dp)
        return (0,) if remainder else divisors(batch)

    def shardings(self, *, tp: int, replicas: int, edp: int) -> tuple[_Sharding, ...]:
        """Return the ways to shard states over `replicas` ranks."""
        if replicas == 1 and (edp == 1 or not self.scope.graph.has_experts):
            return tuple(_Sharding(zero_stage=stage) for stage in self.zero_stages_alone)
        found = [_Sharding(zero_stage=stage) for stage in (0, 1, 2, 3)]
        near = max(self.scope.fast_domain_size // tp, 1)
        groups, rest = divmod(replicas, near)
        if near > 1 and groups > 1 and not rest:
            if self.scope.capabilities.hybrid_sharding and edp % groups == 0:
                found += [_Sharding(zero_stage=stage, state_replicas=groups) for stage in (1, 2, 3)]
            if self.scope.capabilities.secondary_shard:
                found.append(_Sharding(zero_stage=3, secondary_shard=near))
        return tuple(found)

    def partial(self, *, num_stages: int) -> tuple[int, ...]:
        if not self.scope.capabilities.partial_recompute:
            return ()
        return partial_recompute_layers(self.scope.model, num_stages=num_stages)

    def _most_partial(self, num_stages: int) -> int:
        """Return the most layers of each virtual stage that may be recomputed while others are not; 0 for none."""
        return max(self.partial(num_stages=num_stages), default=0)

    def _uses(self, tp: int, replicas: int, edp: int, dp: int, pp: int) -> IntArray:
        """Return how a mesh can be used: vpp, micro-batch, sequence parallelism, sharding; a column each."""
        shardings = self.shardings(tp=tp, replicas=replicas, edp=edp)
        grid = np.meshgrid(
            np.array(virtual_degrees(self.scope.model.num_layers, pp), dtype=np.int64),
            np.array(self.micro_batches(dp), dtype=np.int64),
            np.array((0, 1) if tp > 1 else (0,), dtype=np.int64),
            np.arange(len(shardings), dtype=np.int64),
            indexing="ij",
        )
        vpp, micro, sequence_parallel, which = (axis.ravel() for axis in grid)
        table = np.array([(way.zero_stage, way.state_replicas, way.secondary_shard) for way in shardings]).T
        return np.stack([vpp, micro, sequence_parallel, *table[:, which]])

    def _recompute_columns(self, pp: int, vpp: int, zero_stage: int) -> IntArray:
        """Return the recompute choices of a number of virtual stages, a column each."""
        partial = self.partial(num_stages=pp * vpp)
        per_layer = vpp == 1 and zero_stage <= LARGEST_ZERO_BY_LAYER
        whole = [index for index, choice in enumerate(self.recomputes) if per_layer or not choice.is_per_layer]
        return np.array([whole + [0] * len(partial), [0] * len(whole) + list(partial)], dtype=np.int64)

    def num_recomputes(self, pp: int, vpp: int, zero_stage: int) -> int:
        """Return how many recompute choices that makes."""
        return int(self.recompute_columns(pp, vpp, zero_stage).shape[1])

    def _num_chains(self, pp: int, zero_stage: int) -> int:
        """Return how many choices of virtual stages and recomputation there are."""
        return sum(self.num_recomputes(pp, vpp, zero_stage) for vpp in virtual_degrees(self.scope.model.num_layers, pp))

    def num_allowed(self, pp: int, vpp: int, zero_stage: int) -> int:
        """Return how many of them the user allows."""
        allowed = self.scope.constraints.recompute
        choices, layers = self.recompute_columns(pp, vpp, zero_stage)
        names = [
            Granularity.FULL if partial else self.recomputes[choice].granularity
            for choice, partial in zip(choices.tolist(), layers.tolist(), strict=True)
        ]
        return len(names) if allowed is None else sum(name.value in allowed for name in names)

    def num_points(self, tp: int, replicas: int, edp: int, dp: int, pp: int) -> int:
        """Return how many points a mesh is unrolled into."""
        shardings = self.shardings(tp=tp, replicas=replicas, edp=edp)
        chains = sum(self.num_chains(pp, way.zero_stage) for way in shardings)
        return chains * len(self.micro_batches(dp)) * (1 + (tp > 1))


MayFit = Callable[[Points], BoolArray]
"""Tells which points may fit into memory: False is proven."""


def enumerate_layouts(  # noqa: PLR0913 - what is enumerated, and what of it lies on the hosts
    scope: Scope,
    *,
    may_fit: MayFit | None = None,
    offload_percent: int = 0,
    parameters: int = GPU_WEIGHTS,
    drives: int = ON_HOSTS,
    activations: bool = False,
    modules: tuple[str, ...] = (),
    counts: bool = True,
) -> Space:
    """Return every legal point, and how many others broke which rule.

    Args:
        scope: What is enumerated.
        may_fit: Drops legal points whose mesh cannot fit however it is used, before they are unrolled; without it all
            legal points are returned.
        offload_percent: Part of the optimizer's states in host memory, the same for all points.
        parameters: Where all points have their weights.
        drives: How drives take part in the optimizer step of all points.
        activations: All points have the saved tensors of some layers in host memory.
        modules: All points have those of these modules of all layers there.
        counts: Whether the points that are ruled out are counted, which takes longer than to rule them out; without it
            the account of the space is empty.
    """
    inner = _Inner(scope, offloads=offload_percent > 0, sharded=parameters != GPU_WEIGHTS or drives != ON_HOSTS)
    pruned: dict[str, int] = {}

    def survivors(points: Points, weight_X: IntArray, rules: Iterable[Rule]) -> Points:
        """Return the points that break no rule; the others are charged, with all that would have come of them."""
        alive_X = np.ones(len(points), dtype=np.bool_)
        for reason, broken_X in rules:
            count = int(weight_X[alive_X & broken_X].sum())
            if count:
                pruned[reason] = pruned.get(reason, 0) + count
                alive_X &= ~broken_X
        return points.where(alive_X)

    def weight_X(columns: IntArray, count: Callable[..., int]) -> IntArray:
        """Return how many points each column is unrolled into, or 1 where nobody asks."""
        return _of_distinct(columns, count) if counts else np.ones(columns.shape[1], dtype=np.int64)

    several_domains = scope.num_gpus > scope.fast_domain_size
    meshes = _meshes(scope.num_gpus, with_experts=scope.graph.has_experts, several_domains=several_domains)
    offloaded_X = np.full(len(meshes), offload_percent, dtype=np.int64)
    meshes = replace(
        meshes,
        optimizer_offload_X=offloaded_X,
        least_offload_X=offloaded_X,
        parameter_offload_X=np.full(len(meshes), parameters, dtype=np.int64),
        drive_offload_X=np.full(len(meshes), drives, dtype=np.int64),
        offloaded_layers_X=np.full(len(meshes), int(activations), dtype=np.int64),
    )
    of_mesh_X = weight_X(_mesh_keys(meshes), inner.num_points)
    considered = int(of_mesh_X.sum())
    meshes = survivors(meshes, of_mesh_X, mesh_rules(meshes, scope))
    uses = _unrolled(meshes, [inner.uses(*key) for key in _mesh_keys(meshes).T.tolist()], _USE_COLUMNS)
    uses = replace(uses, num_microbatches_X=_num_microbatches_X(uses, scope.workload))
    of_use_X = weight_X(_recompute_keys(uses), inner.num_recomputes)
    uses = survivors(uses, of_use_X, chain(use_rules(uses, scope), module_rules(uses, scope, modules)))
    unfit = 0
    if may_fit is not None and len(uses):
        hopeless_X = ~_frugal_fits_X(uses, scope, inner, _frugal_choices(inner.recomputes, modules), may_fit)
        stages = _recompute_keys(uses)[:, hopeless_X]
        unfit = int(weight_X(stages, inner.num_allowed).sum())
        refused = int(weight_X(stages, inner.num_recomputes).sum()) - unfit
        if refused:
            pruned[RECOMPUTE_PINNED] = refused
        uses = uses.where(~hopeless_X)
    columns = [inner.recompute_columns(*key) for key in _recompute_keys(uses).T.tolist()]
    points = _unrolled(uses, columns, _RECOMPUTE_COLUMNS)
    points = survivors(
        points,
        np.ones(len(points), dtype=np.int64),
        chain(
            recompute_rules(points, scope.constraints, inner.recomputes),
            module_recompute_rules(points, inner.recomputes, modules),
        ),
    )
    long_X = _operations_X(points) > MAX_SCHEDULED_OPERATIONS
    if long_X.any():
        pruned[UNSIMULATED] = int(long_X.sum())
    return Space(
        points=points.where(~long_X),
        unsimulated=points.where(long_X),
        recomputes=inner.recomputes,
        considered=considered if counts else 0,
        pruned=pruned if counts else {},
        unfit=unfit if counts else 0,
        modules=modules,
    )


def _frugal_choices(recomputes: tuple[Recompute, ...], modules: tuple[str, ...]) -> tuple[int, ...]:
    """Return recompute choices of which one needs least: the last; any that goes with modules on the hosts."""
    if not modules:
        return (len(recomputes) - 1,)
    return tuple(index for index, choice in enumerate(recomputes) if not clashes(choice, modules))


def _frugal_fits_X(uses: Points, scope: Scope, inner: _Inner, choices: tuple[int, ...], may_fit: MayFit) -> BoolArray:
    """Return whether some frugal use of each mesh and its virtual stages may fit.

    Micro-batches of one sequence and every layer recomputed as one of `choices` says, or whole as many as may be while
    the others keep everything: what these keep is gone when the first ones are run again. Residuals split or not: a
    split one is gathered for the layer behind it, beside what it keeps. Every zero_stage that the target runs on such a
    mesh: a higher one shards more, but waits for it with buffers, and 0 needs a communicator less. No use of the mesh
    takes less than all these.
    """
    keys = np.stack([uses.tp_X, uses.cp_X, uses.ulysses_X, uses.pp_X, uses.ep_X, uses.etp_X, uses.vpp_X])
    first, index_X = distinct_columns(keys)
    frugal = uses.where(first)
    target = scope.capabilities
    largest_X = np.full(len(frugal), 3, dtype=np.int64)
    for degree_X, largest in (
        (frugal.pp_X, target.zero_with_pipeline),
        (frugal.tp_X, target.zero_with_tensor),
        (frugal.cp_X, target.zero_with_context),
        (frugal.ep_X, target.zero_with_experts),
    ):
        largest_X = np.where(degree_X > 1, np.minimum(largest_X, largest), largest_X)
    if frugal.optimizer_offload_X.any():
        largest_X = np.minimum(largest_X, max(target.offload_zero_stages, default=0))
    ones = np.ones(len(frugal), dtype=np.int64)
    frugal = replace(
        frugal,
        micro_batch_size_X=ones,
        num_microbatches_X=scope.workload.global_batch_size // frugal.dp_X,
        state_replicas_X=ones,
        secondary_shard_X=ones,
    )
    zeros = np.zeros_like(ones)
    most_X = np.array([inner.most_partial(stages) for stages in (frugal.pp_X * frugal.vpp_X).tolist()], dtype=np.int64)
    ways = [(np.full_like(ones, choice), zeros, ones > 0) for choice in choices]
    ways.append((zeros, most_X, most_X > 0))
    fits_X = np.zeros(len(frugal), dtype=np.bool_)
    splits = ((frugal.tp_X > 1).astype(np.int64), zeros)
    for (recompute_X, layers_X, has_X), split_X, zero_stage in product(ways, splits, (3, 2, 1, 0)):
        left = np.flatnonzero(~fits_X & has_X & (largest_X >= zero_stage))
        if len(left):
            use = replace(
                frugal,
                recompute_X=recompute_X,
                recompute_layers_X=layers_X,
                sequence_parallel_X=split_X,
                zero_stage_X=np.full_like(ones, zero_stage),
            )
            fits_X[left] = may_fit(use.where(left))
    of_uses_X: BoolArray = fits_X[index_X]
    return of_uses_X


def _operations_X(points: Points) -> IntArray:
    """Return the passes over all pipeline ranks that a step simulates."""
    operations_X: IntArray = 2 * points.num_microbatches_X * points.vpp_X * points.pp_X
    return operations_X


_USE_COLUMNS = (
    "vpp_X",
    "micro_batch_size_X",
    "sequence_parallel_X",
    "zero_stage_X",
    "state_replicas_X",
    "secondary_shard_X",
)
_RECOMPUTE_COLUMNS = ("recompute_X", "recompute_layers_X")


def _mesh_keys(meshes: Points) -> IntArray:
    """Return what decides how meshes can be used: a column each."""
    return np.stack([meshes.tp_X, meshes.dp_X * meshes.cp_X, meshes.edp_X, meshes.dp_X, meshes.pp_X])


def _recompute_keys(uses: Points) -> IntArray:
    """Return what decides which recompute choices a use of a mesh has: a column each."""
    return np.stack([uses.pp_X, uses.vpp_X, uses.zero_stage_X])


def _of_distinct(keys: IntArray, value: Callable[..., int]) -> IntArray:
    """Return `value` of each column of `keys`, computed once for each distinct one."""
    first, index_X = distinct_columns(keys)
    values = np.array([value(*key) for key in keys[:, first].T.tolist()], dtype=np.int64)
    return values[index_X]


def _unrolled(points: Points, parts: list[IntArray], names: tuple[str, ...]) -> Points:
    """Return each point as often as its part has columns, with those columns."""
    if not parts:
        return points
    repeats = np.array([part.shape[1] for part in parts], dtype=np.int64)
    columns = np.concatenate(parts, axis=1)
    repeated = points.where(np.repeat(np.arange(len(points)), repeats))
    return replace(repeated, **dict(zip(names, columns, strict=True)))


def _num_microbatches_X(points: Points, workload: TrainWorkload) -> IntArray:
    num_X: IntArray = workload.global_batch_size // points.dp_X // np.maximum(points.micro_batch_size_X, 1)
    return num_X


@lru_cache(maxsize=8)
def _meshes(num_gpus: int, *, with_experts: bool, several_domains: bool) -> Points:
    """Return every way to cut the GPUs into the two grids, in both rank orders where GPUs are unequally far apart."""
    parts: list[IntArray] = []
    for tp in divisors(num_gpus):
        for cp in divisors(num_gpus // tp):
            for pp in divisors(num_gpus // (tp * cp)):
                experts_GK = _expert_grids(num_gpus // pp) if with_experts else np.ones((2, 1), dtype=np.int64)
                ulysses_U = np.array(divisors(cp), dtype=np.int64)
                num_grids = experts_GK.shape[1]
                part = np.empty((7, len(ulysses_U) * num_grids), dtype=np.int64)
                part[:5] = np.array([[tp], [cp], [1], [pp], [num_gpus // (tp * cp * pp)]])
                part[2] = np.repeat(ulysses_U, num_grids)
                part[5:] = np.tile(experts_GK, len(ulysses_U))
                parts.append(part)
    columns = np.concatenate(parts, axis=1)
    columns = _with_rank_orders(columns, with_experts=with_experts, several_domains=several_domains)
    names = ("tp_X", "cp_X", "ulysses_X", "pp_X", "dp_X", "ep_X", "etp_X", "replicas_outermost_X")
    ones = np.ones(columns.shape[1], dtype=np.int64)
    blank = {entry.name: ones for entry in fields(Points)}
    return Points(**{**blank, **dict(zip(names, columns, strict=True))})


def _with_rank_orders(meshes: IntArray, *, with_experts: bool, several_domains: bool) -> IntArray:
    """Return each mesh with its stages outermost, and once more with its replicas where that is another order."""
    tp, cp, _, pp, dp, ep, etp = meshes
    other = several_domains & (pp > 1) & (dp > 1) & (cp == 1) & ((ep * etp == tp) | (not with_experts))
    stages_outermost = np.append(meshes, np.zeros((1, meshes.shape[1]), dtype=np.int64), axis=0)
    again = np.append(meshes[:, other], np.ones((1, int(other.sum())), dtype=np.int64), axis=0)
    return np.append(stages_outermost, again, axis=1)


@lru_cache(maxsize=256)
def _expert_grids(stage_ranks: int) -> IntArray:
    """Return every ep and etp whose product divides the GPUs of a pipeline rank: a column each."""
    grids = [(ep, etp) for ep in divisors(stage_ranks) for etp in divisors(stage_ranks // ep)]
    return np.array(grids, dtype=np.int64).T


def broken_rules(points: Points, scope: Scope) -> tuple[str, ...]:
    """Return every rule that some of `points` break, whoever chose them."""
    pinned = replace(scope, constraints=pinned_to(points))
    too_long_X = _operations_X(points) > MAX_SCHEDULED_OPERATIONS
    rules = (*mesh_rules(points, pinned), *use_rules(points, pinned), (UNSIMULATED, too_long_X))
    return tuple(reason for reason, broken_X in rules if broken_X.any())


def pinned_to(points: Points) -> Constraints:
    """Return constraints that pin the degrees which the space searches in part only, to what `points` have."""
    return Constraints(
        degrees={name: Bounds(allowed=tuple(distinct(getattr(points, f"{name}_X")))) for name in ("tp", "cp", "etp")}
    )
