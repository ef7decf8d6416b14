"""Settles which engines a fleet is composed of: compositions by known rates, engines in them simulated, and again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from planner.serving_plans.layout import Role
from planner.serving_plans.request import ServeRequest
from planner.serving_search.compose import Composed, Freed, composed
from planner.serving_search.options import Simulations
from planner.serving_search.passing import Pairing
from profiles.hardware import Cluster

ROUNDING = 1e-9
"""Part of a load that sums of rates may miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is composed, and how.

    Args:
        request: What is asked.
        clusters: The GPUs.
        simulations: The options.
        demand: Requests a second to bear at least cost; None for as many as there can be.
        solver: What composes engines.
        pairings: Prefill and decode options that work together.
        freed: A resource of which there is as much as is needed, and the least of it wanted; None for none.
    """

    request: ServeRequest
    clusters: tuple[Cluster, ...]
    simulations: Simulations
    demand: float | None
    solver: str
    pairings: tuple[Pairing, ...]
    freed: Freed | None = None

    def able(self) -> Composed:
        """Return the best composition, of engines in closed form only where it bears the load with them.

        The closed form may say less of an engine than the simulation: that nothing bears the load is the simulation's
        to say.
        """
        found = self.best()
        if self.demand is None or self.bears(found, self.demand) or self.most() < self.demand * (1 - ROUNDING):
            return found
        return self.best()

    def least(self, name: str, times: int, *, demand: float) -> float | None:
        """Return the least of one resource that bears a load while the others are as they are; None where none does.

        Args:
            name: The resource, of `planner.serving_search.compose`.
            times: The GPUs of each kind over those that there are.
            demand: Requests a second.
        """
        task = replace(self, demand=demand, freed=Freed(name=name, times=times))
        found = task.able()
        return found.fleet.objective if task.bears(found, demand) else None

    def best(self) -> Composed:
        """Return the best composition that the user allows: of any options, or of engines of one shape in each role.

        Engines that do everything and split ones are settled by themselves first, so that the rates of the best of
        each are the simulation's when they are compared.
        """
        options = self.simulations.options
        whole = [index for index, one in options.items() if one.point.role is Role.BOTH]
        if self.request.constraints.mixed:
            self.settled(whole)
            for pairing in self.pairings:
                self.settled(sorted(pairing))
            return self.best_with(whole)
        alone, halves = self.alone(whole), self.best_of(self.pairs())
        return self.better_of([one for one in (alone, halves) if one is not None])

    def best_with(self, whole: Iterable[int]) -> Composed:
        """Return the best composition of some options that do everything, and split ones that work together."""
        chosen = tuple(whole)
        return self.better_of(
            [self.settled(sorted({*chosen, *pairing})) for pairing in self.pairings or (frozenset(),)]
        )

    def better_of(self, found: Sequence[Composed]) -> Composed:
        """Return the best composition that bears the load; the first one where none does."""
        able = [one for one in found if self.bears(one, self.demand)]
        return max(able, key=self.advantage) if able else next(iter(found), None) or self.settled(())

    def pairs(self) -> list[tuple[int, ...]]:
        """Return every prefill option with every decode option that works with it."""
        options = self.simulations.options
        roles = {role: [index for index, one in options.items() if one.point.role is role] for role in Role}
        every = product(roles[Role.PREFILL], roles[Role.DECODE])
        return [pair for pair in every if any(pairing.issuperset(pair) for pairing in self.pairings)]

    def advantage(self, found: Composed) -> float:
        """Return the value of a composition, larger where it is better."""
        value = found.fleet.objective or 0.0
        return value if self.demand is None else -value

    def settled(self, indices: Iterable[int]) -> Composed:
        """Return the best composition of some options, of which every engine was simulated."""
        chosen = tuple(indices)
        while True:
            found = self._composed(chosen, demand=self.demand)
            if not self.simulations.require(found.counts):
                return found

    def alone(self, indices: Iterable[int]) -> Composed | None:
        """Return the best composition of engines of one option; None where none serves."""
        return self.best_of([(index,) for index in indices])

    def best_of(self, groups: Sequence[tuple[int, ...]]) -> Composed | None:
        """Return the best composition of engines of one group of options; None where none serves."""
        tried: dict[tuple[int, ...], Composed] = {}
        while True:
            for group in groups:
                if group not in tried:
                    tried[group] = self._composed(group, demand=self.demand)
            able = [one for one in tried.values() if one.counts]
            if not able:
                return None
            best = max(able, key=self.advantage)
            new = {index for index in best.counts if not self.simulations.options[index].simulated}
            if not self.simulations.require(best.counts):
                return best
            # What was simulated bears something else now.
            tried = {group: one for group, one in tried.items() if not new & set(group)}

    def most(self) -> float:
        """Return the requests a second that the best composition bears at most."""
        return self.borne(replace(self, demand=None).best())

    def _composed(self, indices: tuple[int, ...], *, demand: float | None) -> Composed:
        known = self.simulations.options
        options = {index: known[index] for index in indices if known[index].rate > 0}
        return composed(self.request, self.clusters, options, demand=demand, solver=self.solver, freed=self.freed)

    def borne(self, found: Composed) -> float:
        """Return the requests a second that a composition bears."""
        sums = dict.fromkeys(Role, 0.0)
        for index, count in found.counts.items():
            option = self.simulations.options[index]
            sums[option.point.role] += option.rate * count
        return sums[Role.BOTH] + min(sums[Role.PREFILL], sums[Role.DECODE])

    def bears(self, found: Composed, load: float | None) -> bool:
        """Return whether a composition bears a load, or anything where there is none."""
        borne = self.borne(found)
        return borne > 0 if load is None else borne >= load * (1 - ROUNDING)
