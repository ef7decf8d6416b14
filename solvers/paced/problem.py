"""Shares of things whose phases lie on ranks that run the same thing again and again, as a pipeline does.

Axes, beside those of `solvers.shares.problem`
    R  ranks; each phase is of one of them, and rank r is busy for sum over its phases p of weight[p] * seconds[p]
    K  links that ranks share

Objective
    minimise  periods * pace + sum over r of busy[r]
    where     pace = max(max over r of busy[r], max over k of (sum over o of seconds[k,o] x[o]))

A pipeline of m micro-batches takes no less than (m - 1) times its busiest rank and once through all ranks (Mist, Zhu et
al., EuroSys 2025, has the same objective for its stages), and the busiest rank takes no less than a link that every
micro-batch needs for so long: `periods` is m - 1.

Constraints, in the numbers of `solvers.shares.check`
    (1) to (3)  as there: shares sum to 1, come in units, and rooms hold them
"""

from dataclasses import dataclass

from solvers.shares.problem import SharesProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What ranks share: it is busy for each of them, one after the other, while none of them need wait for it.

    Args:
        name: What it is.
        seconds_O: How long it is busy in a period for a thing that takes an option as a whole.
    """

    name: str
    seconds_O: tuple[float, ...]

    def seconds(self, share_O: tuple[float, ...]) -> float:
        """Return how long it is busy in a period."""
        return sum(each * share for each, share in zip(self.seconds_O, share_O, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedProblem:
    """One problem.

    Args:
        shares: Things, options, phases, chains and rooms; a weight says how often a phase occurs in a period.
        rank_P: Rank of each phase.
        links: What ranks share.
        periods: How often the pace counts.
    """

    shares: SharesProblem
    rank_P: tuple[int, ...]
    links: tuple[Link, ...]
    periods: float

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if len(self.rank_P) != len(self.shares.weight_P):
            raise ValueError(f"{len(self.rank_P)} ranks of {len(self.shares.weight_P)} phases")
        if set(self.rank_P) != set(range(self.num_ranks)):
            raise ValueError("every rank needs a phase")
        if any(len(link.seconds_O) != self.shares.num_options for link in self.links):
            raise ValueError(f"every link needs {self.shares.num_options} numbers, one for each option")
        numbers = [self.periods, *(seconds for link in self.links for seconds in link.seconds_O)]
        if any(not 0 <= number < float("inf") for number in numbers):
            raise ValueError("seconds and periods are finite and at least 0")

    @property
    def num_ranks(self) -> int:
        """Return the number of ranks."""
        return max(self.rank_P, default=-1) + 1

    def busy_R(self, share_O: tuple[float, ...]) -> tuple[float, ...]:
        """Return how long each rank is busy in a period."""
        busy = [0.0] * self.num_ranks
        for rank, weight, seconds in zip(
            self.rank_P, self.shares.weight_P, self.shares.seconds_P(share_O), strict=True
        ):
            busy[rank] += weight * seconds
        return tuple(busy)

    def pace(self, share_O: tuple[float, ...]) -> float:
        """Return how long a period lasts."""
        return max((*self.busy_R(share_O), *(link.seconds(share_O) for link in self.links)), default=0.0)

    def objective(self, share_O: tuple[float, ...]) -> float:
        """Return how long everything lasts."""
        return self.periods * self.pace(share_O) + sum(self.busy_R(share_O))
