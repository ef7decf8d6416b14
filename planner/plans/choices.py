"""What a plan says beside its layouts: numbers of nodes, the front of memory and time, lost nodes, slow operations.

And what its layouts would do if they divided the tokens of their activations between the GPU, the host, and computing
again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from planner.layout import Layout


class NodeVerdict(StrEnum):
    """What became of one number of nodes."""

    BEST = "chosen"
    WORSE = "worse than the best"
    NO_LAYOUT = "no layout is legal and fits"
    REFUSED = "the target can say none that fits"
    TOO_SLOW = "misses the deadline"
    BOUND_TOO_SLOW = "bound misses the deadline"
    BOUND_WORSE = "bound is worse than the best"
    OPEN = "not decided"
    NOT_NEEDED = "more than are needed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCount:
    """One number of nodes.

    Args:
        num_nodes: How many.
        verdict: What became of them.
        step_seconds: The best step that was found; None where none was looked for or none was found.
        bound_seconds: No layout on so many nodes takes less; None where no layout fits, or nothing was looked at.
    """

    num_nodes: int
    verdict: NodeVerdict
    step_seconds: float | None = None
    bound_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChoice:
    """How the number of nodes was chosen.

    Args:
        num_offered: Nodes of the cluster that was asked for.
        counts: Every number that was allowed, ascending.
        proven: No other number is better, whatever its layout; without a chosen one, none meets the deadline.
    """

    num_offered: int
    counts: tuple[NodeCount, ...]
    proven: bool

    @property
    def chosen(self) -> NodeCount | None:
        """Return the number of nodes that the plan is for; None without a plan."""
        return next((count for count in self.counts if count.verdict is NodeVerdict.BEST), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A layout that no other beats in both memory and time.

    Args:
        layout: The layout.
        step_seconds: Time of one step.
        peak_memory_bytes: Largest phase of the heaviest rank.
        limit_bytes: The memory under which it was found the best.
        bound_seconds: No layout within that memory takes less.
    """

    layout: Layout
    step_seconds: float
    peak_memory_bytes: int
    limit_bytes: int
    bound_seconds: float

    @property
    def gap(self) -> float:
        """Return the share of the step that could still be saved within the same memory."""
        return max(0.0, (self.step_seconds - self.bound_seconds) / self.step_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Memory against time.

    Args:
        points: The fastest first; each next one needs less memory and takes longer.
        step_bytes: Between two points there may be others, whose memory is within so many bytes of the first's.
        open_below_bytes: What fits into this memory is not decided; None where it is proved that nothing fits into
            the last point's less `step_bytes`.
        of_bytes: Where GPUs differ in memory, that of the largest: bytes are then shares of each GPU's own memory, told
            as so many of these. None where all have equally much.
    """

    points: tuple[FrontPoint, ...]
    step_bytes: int
    open_below_bytes: int | None
    of_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    """A run after nodes were lost.

    Args:
        num_nodes: Nodes that it goes on with; those that are left beyond stand idle.
        layout: The layout that it restarts with.
        step_seconds: Time of one step.
        lost_fraction: Share of the throughput of the best plan on all nodes that is lost.
    """

    num_nodes: int
    layout: Layout
    step_seconds: float
    lost_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLayout:
    """One of the plan's layouts after nodes were lost, with fewer replicas and nothing else changed.

    Args:
        index: Its place in the plan, 0 being the best.
        degraded: What it goes on as; None where it cannot.
        reason: Why it cannot; empty where it can.
    """

    index: int
    degraded: Degraded | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Some nodes that are lost, where it matters which.

    Args:
        nodes: Their numbers in the plan's cluster.
        num_alike: Sets of nodes whose loss is the same to the plan, this one included.
        left: Numbers of the nodes that the new plan takes, as its own `node_order` numbers them from 0.
        replanned: The best layout on nodes that are left; None where there is none.
        reason: Why there is none; empty where there is.
        proven: No layout on any of the nodes that are left is faster.
    """

    nodes: tuple[int, ...]
    num_alike: int
    left: tuple[int, ...]
    replanned: Degraded | None
    reason: str
    proven: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """What is left of a plan when nodes are lost; where nodes differ, of the worst loss.

    Args:
        num_lost: Nodes that are lost.
        replanned: The best layout on what is left, planned anew; None where there is none.
        reason: Why there is none; empty where there is.
        proven: No layout on any number of the nodes that are left is faster.
        kept: The plan's layouts with fewer replicas, in their order; none where nodes differ.
        losses: Where nodes differ, every loss of so many nodes that is not like another one, the worst first.
    """

    num_lost: int
    replanned: Degraded | None
    reason: str
    proven: bool
    kept: tuple[KeptLayout, ...]
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCase:
    """One way in which predictions may be off: all operations of one class slower, nothing else.

    Args:
        slow: The class; empty where everything is as predicted.
        factor: By how much it is slower.
        source: Where the factor comes from.
        best_seconds: The best step found in this case.
        bound_seconds: No layout searched takes less in this case.
        fastest_seconds: What the layout takes here that is fastest where everything is as predicted.
        seconds_P: What each of the plan's layouts takes here.
    """

    slow: str
    factor: float
    source: str
    best_seconds: float
    bound_seconds: float
    fastest_seconds: float
    seconds_P: tuple[float, ...]

    @property
    def loss_P(self) -> tuple[float, ...]:
        """Return what each of the plan's layouts loses here against the best, as a factor less one."""
        return tuple(seconds / self.best_seconds - 1.0 for seconds in self.seconds_P)

    @property
    def fastest_loss(self) -> float:
        """Return what the layout loses here that is fastest where everything is as predicted."""
        return self.fastest_seconds / self.best_seconds - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """How the plan's layouts do in each case, the first of them losing least in its worst one.

    Args:
        fastest: The layout that is fastest where everything is as predicted.
        cases: As predicted first, then a class of operations slower at a time.
        least_loss: No layout searched loses less in its worst case.
        uneven_least_loss: The same with any split of interleaved stages whose most even one fits; None where none of
            them can lose less than the plan's first layout.
    """

    fastest: Layout
    cases: tuple[SlowCase, ...]
    least_loss: float
    uneven_least_loss: float | None

    def worst(self, index: int) -> SlowCase:
        """Return the case in which one of the plan's layouts loses most; the first of equals."""
        return max(self.cases, key=lambda case: case.loss_P[index])

    @property
    def fastest_worst(self) -> SlowCase:
        """Return the case in which the fastest layout loses most."""
        return max(self.cases, key=lambda case: case.fastest_loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTokens:
    """What becomes of the tokens of the layers of a pipeline rank; the fractions add up to 1.

    Args:
        kept_fraction: All that they save stays on the GPU.
        swapped_fraction: All of it waits on the host.
        again_fraction: Layer inputs and attention outputs wait on the host; the rest is computed again.
        again_here_fraction: Those stay on the GPU; the rest is computed again.
    """

    kept_fraction: float
    swapped_fraction: float
    again_fraction: float
    again_here_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SwappedTokens:
    """A layout of the plan whose activations are divided token by token, instead of its own recomputation.

    Args:
        index: The layout, by its place among the plans.
        step_seconds: Time of one optimizer step.
        gap: By what part another division may take less of the solver's objective at most; 0 where none does.
        peak_memory_bytes: Largest phase of the heaviest rank.
        host_memory_bytes: Activations on the host of the node that holds most of them.
        again_seconds: What the rank that computes most again takes for that in a step.
        waiting_seconds: What copies add to the passes of the rank that waits longest, in a step.
        ranks: What becomes of the tokens of each pipeline rank.
    """

    index: int
    step_seconds: float
    gap: float
    peak_memory_bytes: int
    host_memory_bytes: int
    again_seconds: float
    waiting_seconds: float
    ranks: tuple[RankTokens, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSwapping:
    """What divided tokens would make of the plan's layouts.

    Args:
        priced: In the order of the plans.
        left_out: Why others are not, by the layout's place among the plans.
        assumptions: What was assumed of hosts and of the ways there.
    """

    priced: tuple[SwappedTokens, ...]
    left_out: Mapping[str, str]
    assumptions: tuple[str, ...]

    @property
    def best(self) -> SwappedTokens | None:
        """Return the fastest."""
        return min(self.priced, key=lambda entry: entry.step_seconds, default=None)
