"""Lost nodes where nodes differ: a new plan for the rest, whichever of them are lost.

Nodes that could change places unnoticed are alike (`UnequalNodes.groups_alike`), so a loss is told by how many nodes
of each group it takes: every such loss is planned for once. So are the choices among the nodes that are left, since
the fastest plan may leave some of them idle: a batch that does not split, or a GPU that is slower than none. A choice
is ruled out where its bound is no better than the best plan known; where there are more choices than `MOST_PARTS`, all
nodes that are left are taken, and the answer is not proved.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

from planner.errors import InputError, NotExpressibleError
from planner.plans.choices import Degraded, Loss
from planner.plans.plan import Plan
from planner.search.found import Watch
from planner.search.ground import Ground, ignore, prepare
from planner.search.search import conclude
from planner.search.visit import Visit
from profiles.hardware import UnequalNodes

MOST_LOSSES = 16
"""Losses that are planned for. A choice: each is a search of its own; more are refused with a message."""

MOST_PARTS = 64
"""Choices among the nodes that are left of one loss. A choice, as each may be a search; with more nothing is proved."""

Nodes = tuple[int, ...]


def losses_of(plan: Plan, *, num_lost: int, watch: Watch) -> tuple[Loss, ...]:
    """Return every loss of so many nodes with what is planned anew, the worst first.

    Args:
        plan: A plan on nodes that differ.
        num_lost: Nodes that are lost, fewer than there are.
        watch: Called with (activity, done, of how many) as the search goes on.

    Raises:
        InputError: There are too many losses.
        profiles.errors.CoverageError: An operation has no cost.
    """
    nodes = plan.cluster.unequal
    assert nodes is not None, "equal nodes are lost by their number"
    groups = nodes.groups_alike
    taken = [counts for counts in _counts(groups) if sum(counts) == num_lost]
    if len(taken) > MOST_LOSSES:
        raise InputError(
            f"--spare {num_lost}: which nodes are lost matters here, in {len(taken):,} ways; at most {MOST_LOSSES} are"
            " planned for.",
            hint="Ask for fewer lost nodes, or plan the cluster without those you expect to lose.",
        )
    found = []
    for done, counts in enumerate(taken):
        watch("losing nodes", done, len(taken))
        lost = _first_of(groups, counts)
        num_alike = math.prod(math.comb(len(group), count) for group, count in zip(groups, counts, strict=True))
        found.append(_loss(plan, lost, num_alike=num_alike))
    return tuple(sorted(found, key=_by_harm))


def _by_harm(loss: Loss) -> tuple[float, Nodes]:
    return -math.inf if loss.replanned is None else -loss.replanned.step_seconds, loss.nodes


def _counts(groups: Sequence[Nodes]) -> Iterator[Nodes]:
    """Yield how many nodes of each group may be taken."""
    return product(*(range(len(group) + 1) for group in groups))


def _first_of(groups: Sequence[Nodes], counts: Nodes) -> Nodes:
    """Return the first nodes of each group, so many of each, in the order of their numbers."""
    return tuple(sorted(node for group, count in zip(groups, counts, strict=True) for node in group[:count]))


def _loss(plan: Plan, lost: Nodes, *, num_alike: int) -> Loss:
    """Return the best plan on any of the nodes that are left."""
    cluster = plan.cluster
    left = tuple(node for node in range(cluster.num_nodes) if node not in lost)
    rest = cluster.only(left)
    parts = list(_parts(left, rest.unequal))
    complete = len(parts) <= MOST_PARTS
    best: tuple[Ground, Visit, Nodes] | None = None
    proven, reason = complete, ""
    for part in sorted(parts, key=lambda part: (-len(part), part)) if complete else [left]:
        seconds = best[1].candidates[0].step_seconds if best is not None else math.inf
        try:
            ground = prepare(plan.model, cluster.only(part), plan.request)
        except NotExpressibleError as error:
            reason, proven = reason or error.message, False
            continue
        bound = ground.lower_bound_seconds()
        if math.isfinite(bound) and bound >= seconds:
            continue
        seen = ground.visit(top=1, watch=ignore)
        if not seen.candidates:
            nothing = "no layout is legal and fits" if seen.refusal is None else seen.refusal.message
            reason = reason or nothing
            proven = proven and not seen.unsettled
            continue
        found = seen.candidates[0].step_seconds
        if found < seconds:
            best = (ground, seen, part)
        proven = proven and seen.any_split_bound_seconds >= min(found, seconds) * (1.0 - 1e-9)
    if best is None:
        return Loss(nodes=lost, num_alike=num_alike, left=(), replanned=None, reason=reason, proven=proven)
    ground, seen, part = best
    replanned = conclude(ground, seen, watch=ignore).best
    return Loss(
        nodes=lost,
        num_alike=num_alike,
        left=part,
        replanned=Degraded(
            num_nodes=len(part),
            layout=replanned.layout,
            step_seconds=replanned.step_seconds,
            lost_fraction=1.0 - plan.best.step_seconds / replanned.step_seconds,
        ),
        reason="",
        proven=proven,
    )


def _parts(left: Nodes, nodes: UnequalNodes | None) -> Iterator[Nodes]:
    """Yield every choice among the nodes that are left that is not like another one."""
    groups = (tuple(range(len(left))),) if nodes is None else nodes.groups_alike
    for counts in _counts(groups):
        if any(counts):
            yield tuple(left[node] for node in _first_of(groups, counts))
