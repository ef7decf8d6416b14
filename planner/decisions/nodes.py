"""The number of nodes as a decision, and deadlines: which number is best, and why no other one is.

For each allowed number n of nodes, ascending (descending where only time counts), the space of layouts on n nodes is
enumerated and bounded. With

    s(n)   the best step on n nodes,     b(n) <= s(n) the least bound of its points,     S the longest step that meets
    the deadline (infinite without one), f(n, s) what the objective makes of a step
    (`planner.requests.objectives.merit`),

a number is ruled out without a search where b(n) > S or f(n, b(n)) is no better than the best known; else it is
searched, which gives s(n), or a sharper b(n) where the search stopped early. Bounds hold however layers are split over
stages. Nothing is taken to be monotone in n: a batch that does not split over more nodes makes them slower. With
objective fewest-nodes the first number that meets the deadline ends the pass. A choice is proved when every other
number is ruled out by its bound.

Where none meets the deadline, what was ruled out by the deadline alone is searched in the order of its bounds until
the fastest is known: an answer says how far off it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.models.specs import ModelSpec
from planner.plans.choices import NodeChoice, NodeCount, NodeVerdict
from planner.plans.plan import Infeasible, Plan, Relaxation, Status
from planner.requests.objectives import days_of, merit, objective_value, seconds_at_deadline
from planner.requests.request import Objective, PlanRequest
from planner.search.found import Watch
from planner.search.ground import Ground, ignore, prepare
from planner.search.infeasible import MAX_GPUS, with_nodes
from planner.search.search import conclude
from planner.search.visit import Visit
from profiles.hardware import Cluster, LinkKind
from solvers.errors import SolverError
from solvers.solution import OPTIMALITY_TOLERANCE

_MOST_DOUBLINGS = 3
"""How often the nodes are doubled to find some that meet a deadline: a choice, up to eight times what was offered."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """The best layouts on one number of nodes."""

    ground: Ground
    seen: Visit
    num_nodes: int

    @property
    def step_seconds(self) -> float:
        return self.seen.candidates[0].step_seconds


def part_of(cluster: Cluster, num_nodes: int) -> Cluster:
    """Return so many nodes of a cluster, as a spec with that number describes them."""
    if num_nodes == cluster.num_nodes:
        return cluster
    part = cluster.with_nodes(num_nodes)
    levels = tuple(replace(level, num_gpus=min(level.num_gpus, part.world_size)) for level in part.levels)
    return replace(part, levels=levels, name=_name(cluster, num_nodes))


def _name(cluster: Cluster, num_nodes: int) -> str:
    """Return the name of a part: its own number of nodes where the name is made of it."""
    made = f"{cluster.gpus_per_node} {cluster.device.name}"
    return f"{num_nodes} x {made}" if cluster.name == f"{cluster.num_nodes} x {made}" else cluster.name


class _Search:
    """Looks at one number of nodes after the other.

    Args:
        model: The model.
        cluster: All nodes that are offered.
        request: What is asked for.
        top: Layouts to keep of each number.
    """

    def __init__(self, model: ModelSpec, cluster: Cluster, request: PlanRequest, *, top: int) -> None:
        self.model = model
        self.cluster = cluster
        self.request = request
        self.top = top
        self.rows: dict[int, NodeCount] = {}
        deadline = request.deadline_days
        self.allowed_seconds = math.inf if deadline is None else seconds_at_deadline(deadline, request.workload)
        self.best: _Found | None = None
        """The best that meets the deadline."""
        self.fastest: _Found | None = None
        """The fastest of those that miss it."""
        self.last: tuple[Ground, Visit] | None = None
        """The largest number of nodes on which nothing was found."""

    def merit(self, seconds: float, num_nodes: int) -> float:
        return merit(self.request.objective, seconds, num_nodes)

    def look(self, num_nodes: int, *, watch: Watch, needed_seconds: float) -> None:
        """Rule a number out by its bound, or search it.

        Args:
            num_nodes: The number.
            watch: Called as the search goes on.
            needed_seconds: A longer step is of no interest.
        """
        ground = prepare(self.model, part_of(self.cluster, num_nodes), self.request)
        bound = ground.lower_bound_seconds()
        if math.isfinite(bound):
            if bound > needed_seconds:
                self._book(num_nodes, NodeVerdict.BOUND_TOO_SLOW, bound=bound)
                return
            if self.best is not None and self.merit(bound, num_nodes) >= self._best_merit:
                self._book(num_nodes, NodeVerdict.BOUND_WORSE, bound=bound)
                return
        seen = ground.visit(top=self.top, watch=watch)
        if not seen.candidates:
            if self.last is None or self.last[0].cluster.num_nodes < num_nodes:
                self.last = (ground, seen)
            if seen.unsettled:
                self._book(num_nodes, NodeVerdict.OPEN, bound=bound)
            else:
                self._book(num_nodes, NodeVerdict.REFUSED if seen.refusal is not None else NodeVerdict.NO_LAYOUT)
            return
        self._compare(_Found(ground=ground, seen=seen, num_nodes=num_nodes))

    @property
    def _best_merit(self) -> float:
        assert self.best is not None
        return self.merit(self.best.step_seconds, self.best.num_nodes)

    def _compare(self, found: _Found) -> None:
        """Book a number that was searched, and keep it where it is the best so far."""
        seconds, bound, nodes = found.step_seconds, found.seen.any_split_bound_seconds, found.num_nodes
        if seconds > self.allowed_seconds:
            missed = bound > self.allowed_seconds
            self._book(nodes, NodeVerdict.TOO_SLOW if missed else NodeVerdict.OPEN, seconds=seconds, bound=bound)
            if self.fastest is None or seconds < self.fastest.step_seconds:
                self.fastest = found
            return
        if self.best is not None and self.merit(seconds, nodes) >= self._best_merit:
            self._book(nodes, NodeVerdict.WORSE, seconds=seconds, bound=bound)
            return
        if self.best is not None:
            former = self.rows[self.best.num_nodes]
            self.rows[former.num_nodes] = replace(former, verdict=NodeVerdict.WORSE)
        self.best = found
        self._book(nodes, NodeVerdict.BEST, seconds=seconds, bound=bound)

    def _book(
        self, num_nodes: int, verdict: NodeVerdict, *, seconds: float | None = None, bound: float | None = None
    ) -> None:
        self.rows[num_nodes] = NodeCount(
            num_nodes=num_nodes, verdict=verdict, step_seconds=seconds, bound_seconds=bound
        )

    def find_fastest(self, *, watch: Watch) -> None:
        """Search what the deadline alone ruled out, in the order of the bounds, until the fastest is known."""
        ruled_out = [row for row in self.rows.values() if row.verdict is NodeVerdict.BOUND_TOO_SLOW]
        for row in sorted(ruled_out, key=lambda row: (row.bound_seconds or 0.0, row.num_nodes)):
            if self.fastest is not None and (row.bound_seconds or 0.0) >= self.fastest.step_seconds:
                break
            self.look(row.num_nodes, watch=watch, needed_seconds=math.inf)

    def bound_merit(self, *, but: int) -> float:
        """Return what no number of nodes but one is better than, whatever its layout."""
        return min(
            (
                self.merit(row.bound_seconds, row.num_nodes)
                for row in self.rows.values()
                if row.num_nodes != but and row.bound_seconds is not None and row.bound_seconds <= self.allowed_seconds
            ),
            default=math.inf,
        )


def plan_nodes(
    model: ModelSpec,
    cluster: Cluster,
    request: PlanRequest,
    *,
    top: int = 5,
    watch: Watch | None = None,
) -> Plan:
    """Return the best plan on the best allowed number of nodes that meets the deadline, or why there is none.

    Args:
        model: The model.
        cluster: All nodes that are offered.
        request: The workload, and what is asked of the plan.
        top: Layouts to return at most.
        watch: Called with (activity, done, of how many) as the search goes on.

    Raises:
        solvers.errors.SolverError: Nothing was found, and that nothing can be is not proved.
        profiles.errors.CoverageError: An operation has no cost on such a cluster.
        planner.errors.NotExpressibleError: The target has no way to say the model, the workload, or any layout found.
    """
    watch = watch or ignore
    allowed = request.counts_of(cluster.num_nodes)
    search = _Search(model, cluster, request, top=top)
    slower_first = request.objective not in (Objective.STEP_TIME, Objective.DAYS)
    for index, num_nodes in enumerate(allowed if slower_first else reversed(allowed)):
        if search.best is not None and request.objective is Objective.FEWEST_NODES:
            search.rows[num_nodes] = NodeCount(num_nodes=num_nodes, verdict=NodeVerdict.NOT_NEEDED)
            continue
        watch("numbers of nodes", index, len(allowed))
        inner = watch if len(allowed) == 1 else ignore
        search.look(num_nodes, watch=inner, needed_seconds=search.allowed_seconds)
    if search.best is None:
        search.find_fastest(watch=ignore)
        return _without_plan(search, watch=watch)
    return _with_certificate(conclude(search.best.ground, search.best.seen, watch=watch), search)


def _with_certificate(plan: Plan, search: _Search) -> Plan:
    """Return the plan on the best number of nodes with what is proved of all numbers."""
    objective, nodes = search.request.objective, plan.cluster.num_nodes
    others = search.bound_merit(but=nodes)
    best = search.merit(plan.best.step_seconds, nodes)
    assert plan.gap is not None, "a plan with layouts has a gap"
    least = min(search.merit(plan.best.step_seconds * (1.0 - plan.gap), nodes), others)
    gap = max(0.0, (best - least) / best)
    choice = None
    if search.request.chooses_nodes:
        rows = tuple(search.rows[count] for count in sorted(search.rows))
        proven = others >= best * (1.0 - OPTIMALITY_TOLERANCE)
        choice = NodeChoice(num_offered=search.cluster.num_nodes, counts=rows, proven=proven)
    if objective is Objective.FEWEST_NODES:
        bound: float | None = least
    else:
        # A step of this length on the chosen nodes is worth what is proved of all of them.
        seconds = least if search.merit(1.0, nodes) == 1.0 else least / nodes
        bound = objective_value(objective, seconds, plan.cluster, search.request.workload)
    return replace(
        plan,
        status=Status.OPTIMAL if gap <= OPTIMALITY_TOLERANCE else Status.FEASIBLE,
        bound=bound,
        gap=gap,
        node_choice=choice,
    )


def _without_plan(search: _Search, *, watch: Watch) -> Plan:
    """Return why no number of nodes has a plan that meets the deadline.

    Raises:
        SolverError: It is not proved.
    """
    rows = tuple(search.rows[count] for count in sorted(search.rows))
    undecided = [row.num_nodes for row in rows if row.verdict is NodeVerdict.OPEN]
    if undecided:
        missing = "that meets the deadline " if search.fastest is not None else ""
        raise SolverError(
            solver="layout search",
            status=f"nothing found {missing}and nothing proved",
            limit=f"not decided on {_listed(undecided)}{_nearest_in_words(search)}",
        )
    choice = None
    if search.request.chooses_nodes:
        choice = NodeChoice(num_offered=search.cluster.num_nodes, counts=rows, proven=True)
    if search.fastest is None:
        assert search.last is not None, "some number of nodes is allowed"
        ground, seen = search.last
        return replace(conclude(ground, seen, watch=watch), node_choice=choice)
    plan = conclude(search.fastest.ground, search.fastest.seen, watch=watch)
    deadline, days = search.request.deadline_days, plan.days_to_train
    assert deadline is not None, "only a deadline is missed"
    assert days is not None, "a deadline comes with a token budget"
    return replace(
        plan,
        status=Status.INFEASIBLE,
        bound=None,
        gap=None,
        plans=(),
        baseline=None,
        infeasible=Infeasible(
            binding=(
                f"the deadline: the fastest layout takes {_days(days)} on {_listed([plan.cluster.num_nodes])},"
                f" {_days(days - deadline)} too long; {deadline:,g} days are allowed"
            ),
            shortfall_bytes=0,
            nearest=plan.best,
            relaxations=tuple(_relaxations(search, days=days)),
        ),
        node_choice=choice,
    )


def _days(days: float) -> str:
    """Return "25.63 days"; of less than a tenth of a day, its first digits."""
    return f"{days:,.2f} days" if days >= 0.1 else f"{days:.3g} days"


def _listed(numbers: list[int]) -> str:
    """Return "1 node" or "3, 5, 6 nodes"."""
    return f"{', '.join(str(number) for number in numbers)} {'node' if numbers == [1] else 'nodes'}"


def _nearest_in_words(search: _Search) -> str:
    """Return how near the fastest layout comes to the deadline, if there is one."""
    if search.fastest is None:
        return ""
    days = days_of(search.fastest.step_seconds, search.request.workload)
    assert days is not None, "a deadline comes with a token budget"
    return f"; the fastest layout found takes {_days(days)} on {search.fastest.num_nodes}"


def _relaxations(search: _Search, *, days: float) -> Iterator[Relaxation]:
    """Yield a later deadline, and more nodes that meet this one: doubled until they do, so not the fewest.

    Without a network in the description of the cluster it is not known what would join more nodes.
    """
    later = math.ceil(days * 10) / 10
    yield Relaxation(
        change=f"{later:,.1f} days instead of {search.request.deadline_days:,g}",
        path="deadline_days",
        value=f"{later:.1f}",
    )
    cluster = search.cluster
    if not cluster.levels or cluster.levels[-1].kind is not LinkKind.NETWORK:
        return
    for doublings in range(1, _MOST_DOUBLINGS + 1):
        nodes = cluster.num_nodes << doublings
        if nodes * cluster.gpus_per_node > MAX_GPUS or nodes not in search.request.counts_of(nodes):
            return
        wider = _Search(search.model, with_nodes(cluster, nodes), search.request, top=1)
        wider.look(nodes, watch=ignore, needed_seconds=search.allowed_seconds)
        if wider.best is not None:
            yield Relaxation(
                change=f"{nodes} nodes instead of {cluster.num_nodes}", path="cluster.nodes", value=str(nodes)
            )
            return
