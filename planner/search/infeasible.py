"""Why nothing fits: the binding constraint, the shortfall, and changes that would fit, as small as were found.

Only the most frugal points matter here: full recomputation, the smallest micro-batch. Each relaxation that is offered
was checked with exact bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from planner.frameworks.capabilities import capabilities_on
from planner.layout import DRIVE_WEIGHTS, ON_HOSTS, Layout, degrees_text
from planner.memory.host import drive_memory, host_memory
from planner.memory.ledger import memory_limit_bytes
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.layout_words import layers_in_words
from planner.plans.plan import Infeasible, PlannedLayout, Relaxation
from planner.requests.request import OFFLOADED_LAYERS, OFFLOADED_MODULES, Constraints, PlanRequest
from planner.search.bounds.costs import CostTable
from planner.search.space.dimensions import least_offload_percent, offload_percents, offloaded_layer_counts, tiers
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.module_rules import searched_modules
from planner.search.space.points import Points, Scope, distinct_columns
from planner.search.splits.activation_prices import ActivationPricer
from planner.search.splits.candidates import Pricer, layout_at
from planner.search.splits.offload_prices import OffloadPricer
from planner.search.splits.rank_map import pricer_on
from planner.units import GIB
from profiles.catalogue import device_names, load_device
from profiles.drives import has_drives
from profiles.estimate import CostModel
from profiles.hardware import Cluster, LinkLevel
from profiles.software import Software

PriceOn = Callable[[Cluster, Software], CostModel]
"""Gives the cost model of a cluster."""
MAX_GPUS = 1 << 18
"""Clusters beyond this are not offered: the largest that there are have about 2**17 GPUs."""

MAX_HOST_BYTES = 8192 * GIB
"""Nodes with more memory are not offered: a choice, four times the 2 TiB of the usual node of 8 GPUs."""

HOST_STEP_BYTES = 64 * GIB
"""Memory of nodes is offered in steps of this: a choice, the size of a common memory module."""

_RESOLUTION = GIB // 16
"""How finely the least memory of a layout is sought: a choice."""
_ANY_MEMORY = 1 << 60
"""More than any GPU has, and small enough for sums of bytes in 64-bit integers."""
_MAX_CHECKED = 24
"""Points placed exactly to find one that fits, the roomiest first: a choice; the others are taken not to fit."""
_MAX_FINER_STEPS = 16
"""Numbers of nodes below the coarse one that are tried one by one: a choice; with more the coarse one is offered."""


class Describe(Protocol):
    """Prices a layout for the report."""

    def __call__(self, layout: Layout, *, step_seconds: float, bound_seconds: float) -> PlannedLayout:
        """Return `layout` with its price."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A model on a cluster under a request: does anything fit?"""

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest
    price_on: PriceOn

    @property
    def limit_bytes(self) -> int:
        """Return what a GPU may use; where GPUs differ, the one with least memory."""
        return memory_limit_bytes(self.cluster.least_memory_bytes, self.request.memory_headroom)

    def scope(self) -> Scope:
        capabilities = capabilities_on(self.cluster, self.request.target)
        return Scope(
            model=self.model,
            graph=build_graph(self.model, self.request.workload, eager=capabilities.eager),
            num_gpus=self.cluster.world_size,
            fast_domain_size=self.cluster.fast_domain_size,
            workload=self.request.workload,
            constraints=self.request.constraints,
            capabilities=capabilities,
            has_drives=has_drives(self.cluster),
        )

    def table(self, space: Space) -> CostTable:
        scope = self.scope()
        table = CostTable(
            model=scope.model,
            graph=scope.graph,
            workload=scope.workload,
            cost_model=self.price_on(self.cluster, scope.capabilities.software),
            recomputes=space.recomputes,
            capabilities=scope.capabilities,
        )
        return table.with_modules(space.modules)

    def fits(self) -> bool:
        """Return whether some layout fits, by exact bytes, with everything on the GPUs or states on the hosts."""
        return any(
            _first_fit(_frugal(space), self.pricer(space, limit_bytes=self.limit_bytes)) is not None
            for space in self.spaces()
        )

    def spaces(self) -> Iterator[Space]:
        """Yield the space with everything on the GPUs, and those with as much on the hosts as may be."""
        scope = self.scope()
        constraints = scope.constraints
        asks_more = constraints.pinned_modules or not constraints.admits(OFFLOADED_LAYERS, 0)
        if not least_offload_percent(scope) and not asks_more:
            yield enumerate_layouts(scope, counts=False)
        yield from self.hosted_spaces()

    def hosted_spaces(self) -> Iterator[Space]:
        """Yield the spaces with as much on the hosts as may be."""
        scope = self.scope()
        for tier in tiers(scope):
            percent = offload_percents(scope)[-1]
            yield enumerate_layouts(
                scope, offload_percent=percent, parameters=tier.parameters, drives=tier.drives, counts=False
            )
        if offloaded_layer_counts(scope):
            yield enumerate_layouts(scope, activations=True, counts=False)
        for modules in searched_modules(scope)[-1:]:
            yield enumerate_layouts(scope, modules=modules, counts=False)

    def pricer(
        self, space: Space, *, limit_bytes: int, asks_hosts: bool = True, table: CostTable | None = None
    ) -> Pricer:
        """Return what prices the points of a space, each with the least on the hosts that it needs.

        A table of the space that is at hand keeps what other limits asked of it.
        """
        table, cluster, scope = table or self.table(space), self.cluster if asks_hosts else None, self.scope()
        if (space.points.offloaded_layers_X > 0).any():
            counts = offloaded_layer_counts(scope)
            return ActivationPricer(table, limit_bytes=limit_bytes, cluster=cluster, counts=counts)
        return OffloadPricer(table, limit_bytes=limit_bytes, cluster=cluster, percents=offload_percents(scope))


def _first_fit(points: Points, pricer: Pricer) -> Layout | None:
    """Return the first of the roomiest points that fits by exact bytes, its layers placed."""
    table, limit_bytes = pricer.table, pricer.limit_bytes
    capacity_X = table.capacity_layers_X(points, limit_bytes=limit_bytes)
    for index in np.argsort(-capacity_X, kind="stable")[:_MAX_CHECKED]:
        if capacity_X[index] >= table.model.num_layers:
            fitting = pricer.fitting(layout_at(points, int(index), table))
            if fitting is not None:
                return fitting
    return None


def _frugal(space: Space) -> Points:
    """Return the points that need the least memory for their mesh."""
    points = space.points
    if not len(points):
        return points
    points = points.where(points.recompute_X == points.recompute_X.max())
    most_spread_X = (points.sequence_parallel_X == points.sequence_parallel_X.max()) | (points.tp_X == 1)
    points = points.where(most_spread_X)
    # Of two shardings either may need less: stages 2 and 3 split more, and more waits whole on its way.
    columns = np.stack(
        [
            points.tp_X,
            points.cp_X,
            points.ulysses_X,
            points.pp_X,
            points.vpp_X,
            points.ep_X,
            points.etp_X,
            points.zero_stage_X,
            points.state_replicas_X,
            points.secondary_shard_X,
        ]
    )
    _, mesh_X = distinct_columns(columns)
    order = np.lexsort((points.micro_batch_size_X, mesh_X))
    first = np.unique(mesh_X[order], return_index=True)[1]
    keep_X = np.zeros(len(points), dtype=np.bool_)
    keep_X[order[first]] = True
    return points.where(keep_X)


def explain_infeasible(  # noqa: PLR0913 - the question, and how its answer is priced
    model: ModelSpec, cluster: Cluster, request: PlanRequest, *, space: Space, planned: Describe, price_on: PriceOn
) -> Infeasible:
    """Return why no layout of `space` fits, the attempt that comes closest, and what would fit."""
    question = _Question(model=model, cluster=cluster, request=request, price_on=price_on)
    if not len(space.points):
        # Rules are charged in order, so the last one ruled out what every other rule would have left.
        reason, count = list(space.pruned.items())[-1]
        return Infeasible(
            binding=f"no layout of {space.considered:,} is legal; the last {count:,} of them: {reason}",
            shortfall_bytes=0,
            nearest=None,
            relaxations=tuple(_relaxations(question)),
        )
    pricer = pricer_on(cluster, question.table(space), headroom=request.memory_headroom)
    near = [layout for tried in question.spaces() if (layout := _nearest(question, tried)) is not None]
    shortage = _host_shortage(question)
    if not near and shortage is None:  # too much for the GPUs whatever the nodes hold
        near = [layout for tried in question.spaces() if (layout := _nearest(question, tried, asks_hosts=False))]
    if not near:
        assert shortage is not None, "what fits into no node's memory needs too much of it"
        return Infeasible(
            binding=f"host memory: {shortage.in_words}",
            shortfall_bytes=shortage.num_bytes,
            nearest=None,
            relaxations=tuple(_relaxations(question)),
        )
    layout = min(near, key=lambda layout: pricer.prices(layout).peak_bytes(layout))
    seconds = pricer.prices(layout).step_seconds(layout)
    nearest = planned(layout, step_seconds=seconds, bound_seconds=seconds)
    return Infeasible(
        binding=(
            f"GPU memory: the layout that needs least, {degrees_text(layout)} with "
            f"{layout.recompute.granularity} recompute{_offloaded(layout)}, needs "
            f"{nearest.peak_memory_bytes / GIB:.2f} GiB a GPU; {question.limit_bytes / GIB:.2f} GiB may be used"
            f"{'' if shortage is None else f'; {shortage.in_words}'}"
        ),
        shortfall_bytes=nearest.peak_memory_bytes - question.limit_bytes,
        nearest=nearest,
        relaxations=tuple(_relaxations(question)),
    )


def _offloaded(layout: Layout) -> str:
    return f" and {_hosted_part(layout)}" if layout.uses_hosts else ""


def _hosted_part(layout: Layout) -> str:
    """Return what of a layout lies on the host, and what drives hold, in words."""
    if layout.offloaded_modules:
        return f"activations of {', '.join(layout.offloaded_modules)} on the host"
    if layout.offloaded_layers:
        return f"activations of {layers_in_words(layout.offloaded_layers)} on the host"
    states = f"{100 * layout.offloaded_fraction:.4g} % of optimizer states"
    of_states = "on the host" if layout.drive_offload == ON_HOSTS else "on drives"
    of_weights = "on drives" if layout.parameter_offload == DRIVE_WEIGHTS else "on the host"
    if not layout.parameters_offloaded:
        return f"{states} {of_states}"
    apart = "" if of_states == of_weights else f" {of_states}"
    return f"{states}{apart} and the weights {of_weights}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostShortage:
    """What a node lacks for a layout that would fit into the GPUs with states on the host."""

    num_bytes: int
    in_words: str


def _host_shortage(question: _Question) -> _HostShortage | None:
    """Return what a node lacks for a layout that would fit into the GPUs with something on the host, if one would.

    The first such shortage; with states or weights on drives the last, as these take least of a host.
    """
    found: _HostShortage | None = None
    for space in question.hosted_spaces():
        points = space.points
        driven = bool(((points.drive_offload_X != ON_HOSTS) | (points.parameter_offload_X == DRIVE_WEIGHTS)).any())
        if found is not None and not driven:
            continue
        pricer = question.pricer(space, limit_bytes=question.limit_bytes, asks_hosts=False)
        layout = _first_fit(_frugal(space), pricer)
        if layout is not None:
            placed = pricer.prices(layout).place(layout)
            for ledger, what in (
                (host_memory(placed, question.cluster), ""),
                (drive_memory(placed, question.cluster), " on drives"),
            ):
                if ledger is not None and ledger.num_bytes > ledger.limit_bytes:
                    found = _HostShortage(
                        num_bytes=ledger.num_bytes - ledger.limit_bytes,
                        in_words=(
                            f"{degrees_text(layout)} would fit with {_hosted_part(layout)}, where a node would need"
                            f" {ledger.num_bytes / GIB:,.2f} GiB{what} of its {ledger.limit_bytes / GIB:,.2f} GiB"
                        ),
                    )
                    break
    return found


def _nearest(question: _Question, space: Space, *, asks_hosts: bool = True) -> Layout | None:
    """Return the layout that fits into the smallest memory, by bisection; None where the nodes hold none."""
    points, table = _frugal(space), question.table(space)
    if not len(points):
        points = space.points

    def fitting(limit_bytes: int) -> Layout | None:
        return _first_fit(points, question.pricer(space, limit_bytes=limit_bytes, asks_hosts=asks_hosts, table=table))

    if fitting(_ANY_MEMORY) is None:
        return None
    low, high = question.limit_bytes, question.limit_bytes * 2
    found = fitting(high)
    while found is None:
        low, high = high, high * 2
        found = fitting(high)
    while high - low > _RESOLUTION:
        middle = (low + high) // 2
        attempt = fitting(middle)
        if attempt is None:
            low = middle
        else:
            high, found = middle, attempt
    return found


def _relaxations(question: _Question) -> Iterator[Relaxation]:
    """Yield single changes that make something fit."""
    request, cluster = question.request, question.cluster
    if request.memory_headroom > 0 and replace(question, request=replace(request, memory_headroom=0.0)).fits():
        yield Relaxation(
            change=f"memory_headroom 0 instead of {request.memory_headroom}", path="memory_headroom", value="0"
        )
    yield from _without_constraints(question)
    if cluster.unequal is not None:
        return  # other nodes or GPUs for which of them?
    node_bytes = _enough_host_memory(question)
    if node_bytes is not None:
        yield Relaxation(
            change=f"{node_bytes // GIB:,} GiB of host memory a node instead of {cluster.host_memory_bytes / GIB:,.0f}",
            path="cluster.host_ram",
            value=f"{node_bytes // GIB}GiB",
        )
    nodes = _enough_nodes(question)
    if nodes is not None:
        yield Relaxation(change=f"{nodes} nodes instead of {cluster.num_nodes}", path="cluster.nodes", value=str(nodes))
    yield from _larger_device(question)


def _without_constraints(question: _Question) -> Iterator[Relaxation]:
    constraints = question.request.constraints
    looser: list[tuple[str, Constraints]] = [
        (name, replace(constraints, degrees={key: kept for key, kept in constraints.degrees.items() if key != name}))
        for name in sorted(constraints.degrees)
    ]
    if constraints.recompute is not None:
        looser.append(("recompute", replace(constraints, recompute=None)))
    if constraints.cp_kind is not None:
        looser.append(("cp_kind", replace(constraints, cp_kind=None)))
    if constraints.offloaded_modules is not None:
        looser.append((OFFLOADED_MODULES, replace(constraints, offloaded_modules=None)))
    looser += _without_offload(constraints)
    if constraints.sequence_parallel is not None:
        looser.append(("sequence_parallel", replace(constraints, sequence_parallel=None)))
    for name, relaxed in looser:
        if replace(question, request=replace(question.request, constraints=relaxed)).fits():
            yield Relaxation(change=f"no constraint on {name}", path=f"constraints.{name}", value="null")


def _without_offload(constraints: Constraints) -> list[tuple[str, Constraints]]:
    """Return what is pinned of where states and weights lie, each with the constraints that leave it open."""
    looser: list[tuple[str, Constraints]] = []
    if constraints.optimizer_offload is not None:
        looser.append(("optimizer_offload", replace(constraints, optimizer_offload=None)))
    if constraints.parameter_offload is not None:
        looser.append(("parameter_offload", replace(constraints, parameter_offload=None)))
    if constraints.drive_offload is not None:
        looser.append(("drive_offload", replace(constraints, drive_offload=None)))
    if constraints.parameter_drives is not None:
        looser.append(("parameter_drives", replace(constraints, parameter_drives=None)))
    return looser


def _enough_host_memory(question: _Question) -> int | None:
    """Return the least memory of a node, in steps, with which something fits; None where no memory is enough."""

    def fits(steps: int) -> bool:
        cluster = replace(question.cluster, host_memory_bytes=steps * HOST_STEP_BYTES)
        return replace(question, cluster=cluster).fits()

    low, high = question.cluster.host_memory_bytes // HOST_STEP_BYTES, MAX_HOST_BYTES // HOST_STEP_BYTES
    scope = question.scope()
    hosts = offload_percents(scope) or offloaded_layer_counts(scope) or searched_modules(scope)
    if low >= high or not hosts or not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high * HOST_STEP_BYTES


def _enough_nodes(question: _Question) -> int | None:
    """Return the fewest nodes found to fit: doubled until they do, then in steps of an eighth, then one by one.

    More nodes need not fit where fewer do (the batch must split over them), so this is no proof of the minimum.
    """
    nodes = question.cluster.num_nodes

    def fits(count: int) -> bool:
        return replace(question, cluster=with_nodes(question.cluster, count)).fits()

    most = max(MAX_GPUS // (question.cluster.gpus_per_node * nodes), 1)
    factor = 2
    while factor <= most and not fits(nodes * factor):
        factor *= 2
    if factor > most:
        return None
    low, high = nodes * factor // 2, nodes * factor
    step = max((high - low) // 8, 1)
    coarse = next(count for count in range(low + step, high + 1, step) if count == high or fits(count))
    finer = range(max(coarse - step + 1, low + 1), coarse)
    return next((count for count in finer if len(finer) <= _MAX_FINER_STEPS and fits(count)), coarse)


def with_nodes(cluster: Cluster, num_nodes: int) -> Cluster:
    """Return `cluster` with another number of nodes; its outermost level is stretched to span them."""
    world = cluster.gpus_per_node * num_nodes
    levels: list[LinkLevel] = list(cluster.levels)
    if levels and levels[-1].num_gpus < world:
        levels[-1] = replace(levels[-1], num_gpus=world)
    return replace(cluster, num_nodes=num_nodes, levels=tuple(levels))


def _larger_device(question: _Question) -> Iterator[Relaxation]:
    """Yield the smallest catalogue GPU of the same vendor that fits."""
    present = question.cluster.device
    devices = [load_device(name) for name in device_names()]
    needed = question.request.workload.precision.gemm_dtype.value
    larger = sorted(
        (
            device
            for device in devices
            if device.vendor == present.vendor
            and device.memory_bytes > present.memory_bytes
            and needed in device.dense_flops_per_second
        ),
        key=lambda device: (device.memory_bytes, device.name),
    )
    tried: set[int] = set()
    for device in larger:
        if device.memory_bytes in tried:
            continue
        tried.add(device.memory_bytes)
        if replace(question, cluster=replace(question.cluster, device=device)).fits():
            yield Relaxation(
                change=f"{device.name} ({device.memory_bytes / GIB:.0f} GiB) instead of {present.name}",
                path="cluster.gpu",
                value=device.name,
            )
            return
