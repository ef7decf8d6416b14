"""Things that are divided into shares among options, under capacities, so that phases end early.

Axes
    T  things
    O  options, those of all things in one list; each belongs to one thing
    P  phases, one behind the other; phase p is gone through weight[p] times
    C  chains: what happens one after the other in a phase; a phase lasts as long as its longest chain
    R  rooms: what can be full

Choice
    x[o]  share of its thing that takes option o; the shares of a thing sum to 1. Where units[t] is 0 they are any
          numbers, else whole multiples of 1 / units[t]

Objective
    minimise the sum over p of weight[p] * max over the chains c of p of (fixed[c] + sum over o of seconds[c,o] x[o])

Constraints, in the numbers of `solvers.shares.check`
    (1)  the shares of a thing are none below 0, and sum to 1
    (2)  the shares of a thing with units are whole multiples of them
    (3)  fixed[r] + sum over o of use[r,o] x[o] <= capacity[r]

All numbers are at least 0.
"""

from dataclasses import dataclass, replace

from solvers.solution import OPTIMALITY_TOLERANCE, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What happens one after the other in a phase.

    Args:
        name: What it is.
        phase: In which phase.
        fixed_seconds: What it takes whatever is chosen.
        seconds_O: What a thing that takes an option as a whole adds.
    """

    name: str
    phase: int
    fixed_seconds: float
    seconds_O: tuple[float, ...]

    def seconds(self, share_O: tuple[float, ...]) -> float:
        """Return how long it takes."""
        return self.fixed_seconds + sum(each * share for each, share in zip(self.seconds_O, share_O, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What can be full.

    Args:
        name: What it is.
        capacity: How much it holds.
        fixed: What it holds whatever is chosen.
        use_O: What a thing that takes an option as a whole adds.
    """

    name: str
    capacity: float
    fixed: float
    use_O: tuple[float, ...]

    def used(self, share_O: tuple[float, ...]) -> float:
        """Return how much of it is taken."""
        return self.fixed + sum(use * share for use, share in zip(self.use_O, share_O, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesProblem:
    """One problem.

    Args:
        thing_O: Thing of each option.
        units_T: Parts that a thing is made of; 0 for any share.
        weight_P: How often each phase is gone through.
        chains: Every chain of every phase.
        rooms: Every room.
    """

    thing_O: tuple[int, ...]
    units_T: tuple[int, ...]
    weight_P: tuple[float, ...]
    chains: tuple[Chain, ...]
    rooms: tuple[Room, ...]

    def __post_init__(self) -> None:
        """Check that the parts fit together and that no number is below 0."""
        options = len(self.thing_O)
        if set(self.thing_O) != set(range(len(self.units_T))):
            raise ValueError("every thing needs an option, and every option a thing")
        if any(not 0 <= chain.phase < len(self.weight_P) for chain in self.chains):
            raise ValueError("a chain is of a phase that is not there")
        rows = [
            *((chain.fixed_seconds, *chain.seconds_O) for chain in self.chains),
            *((room.fixed, *room.use_O) for room in self.rooms),
        ]
        if any(len(row) != options + 1 for row in rows):
            raise ValueError(f"every chain and room needs {options} numbers, one for each option")
        numbers = [number for row in rows for number in row]
        if any(not 0 <= number < float("inf") for number in (*numbers, *self.weight_P)):
            raise ValueError("seconds, uses and weights are finite and at least 0")

    @property
    def num_options(self) -> int:
        """Return the number of options."""
        return len(self.thing_O)

    @property
    def relaxed(self) -> "SharesProblem":
        """Return the problem in which everything takes any share; its answers bound this one's."""
        return replace(self, units_T=(0,) * len(self.units_T))

    def seconds_P(self, share_O: tuple[float, ...]) -> tuple[float, ...]:
        """Return how long each phase lasts."""
        return tuple(
            max((chain.seconds(share_O) for chain in self.chains if chain.phase == phase), default=0.0)
            for phase in range(len(self.weight_P))
        )

    def objective(self, share_O: tuple[float, ...]) -> float:
        """Return how long everything lasts."""
        return sum(weight * each for weight, each in zip(self.weight_P, self.seconds_P(share_O), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesLimits:
    """How far a solver may go; counted, so that the same problem gives the same answer.

    Args:
        max_nodes: Nodes of a branch and bound.
        max_points: Choices that are tried one by one.
    """

    max_nodes: int = 100_000
    max_points: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """An answer.

    Args:
        solver: Name of the solver.
        status: What is known about it.
        share_O: Share of each option; empty when infeasible.
        objective: How long everything lasts; None when infeasible.
        bound: No choice lasts less; None when infeasible.
    """

    solver: str
    status: Status
    share_O: tuple[float, ...] = ()
    objective: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        """Check that status, shares and bound belong together."""
        if self.status is Status.INFEASIBLE:
            if self.share_O or self.objective is not None or self.bound is not None:
                raise ValueError("an infeasible problem has no shares, objective or bound")
            return
        if self.objective is None or self.bound is None:
            raise ValueError(f"an answer that is {self.status} has an objective and a bound")
        if self.status is Status.OPTIMAL and self.objective - self.bound > OPTIMALITY_TOLERANCE * self.objective:
            raise ValueError(f"{self.objective} with the bound {self.bound} is not optimal")
