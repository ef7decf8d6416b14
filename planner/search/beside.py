"""What every search in host memory stands on: the run, what is known of it, and the visit of a space beside others."""

from dataclasses import dataclass, replace

from planner.search.bounds.costs import CostTable
from planner.search.found import Refused, Watch
from planner.search.space.enumeration import Space
from planner.search.space.points import Scope
from planner.search.splits.candidates import Pricer
from planner.search.visit import Visit, added, visit
from profiles.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A search beside one that came before it.

    Args:
        scope: What is enumerated.
        table: Costs, with nothing on the hosts.
        cluster: Knows what each node has.
        limit_bytes: What each GPU may use.
        top: Candidates to keep at most.
        watch: Called as the search goes on.
        refused: Returns why the target has no words for a layout, if it has none.
    """

    scope: Scope
    table: CostTable
    cluster: Cluster
    limit_bytes: int
    top: int
    watch: Watch
    refused: Refused

    def visited(self, space: Space, pricer: Pricer, *, before: Visit, table: CostTable | None = None) -> Visit:
        """Return what came of a space whose layouts have to beat those that were found before.

        Args:
            space: Points with something on the hosts.
            pricer: Prices them.
            before: What was visited before.
            table: Their costs, where these are not the search's own.
        """
        seen = visit(
            space,
            self.table if table is None else table,
            pricer,
            scope=self.scope,
            start=None,
            top=self.top,
            watch=self.watch,
            refused=self.refused,
            rivals=before.candidates,
        )
        return replace(
            seen,
            pruned=added(space.pruned, seen.pruned),
            offloaded_considered=space.considered,
            offloaded_legal=len(space.points) + space.unfit,
        )
