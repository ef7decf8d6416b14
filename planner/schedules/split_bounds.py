"""What passes of ranks with one stage each keep in memory, and a span that no order within it undercuts.

Let a rank be away for A seconds: from the end of a micro-batch's forward pass, on to the last rank and back, until the
gradient of its output is there. A = sum over the ranks behind it of F + B, and twice each transfer on the way. With m
micro-batches, b activation bytes of each, k of them until the gradient of the weights, M bytes of memory:

Before its first gradient of an input the rank runs forward passes only, and no more than n = floor(M / b) of them. The
first such gradient starts at least F + A after the rank starts. So the rank waits for at least

    head = F + A - n F                                                                                            (1)

Behind its last forward pass it runs gradients only. That micro-batch's own comes at least A later; until then the rank
can run what others have left, and all that others have left is still in memory beside the last one's b bytes: x
micro-batches with both gradients to run, y with that of the weights, x b + y k <= M - b. It waits for at least

    tail = A - max over such x, y of x (B + W) + y W                                                              (2)

If m > n, the last forward pass starts only after some gradient, so that both waits count. If not, the longer of them
does. A rank's span is at least its work and these waits; one that is away for longer than that has at least

    F + A + B + W                                                                                                 (3)

For uniform times 1000 and transfers of 50, 16 ranks and 64 micro-batches in the memory of 1F1B (b = 2 k, M = 16 b) the
first rank has A = 31,500: it waits for 16,500 and 1,500 on 192,000 of work. No order has a bubble below
18,000 / 210,000 = 8.5714 %, and the search of `planner.schedules.limited` finds one with exactly that.
"""

from dataclasses import dataclass

from planner.schedules.passes import PassTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the passes of each rank keep, and what there is for them, in bytes.

    Args:
        activation_bytes_R: Of one micro-batch, from its forward pass to its input gradient.
        weight_gradient_bytes_R: What stays from there until the gradient of the weights.
        limit_bytes_R: What each rank has.
    """

    activation_bytes_R: tuple[int, ...]
    weight_gradient_bytes_R: tuple[int, ...]
    limit_bytes_R: tuple[int, ...]

    def most_ahead(self, rank: int, num_microbatches: int) -> int:
        """Return the forward passes that a rank has room for before any gradient."""
        activation = self.activation_bytes_R[rank]
        if not activation:
            return num_microbatches
        return min(num_microbatches, max(0, self.limit_bytes_R[rank]) // activation)


def lower_bound_seconds(times: PassTimes, memory: Memory, num_microbatches: int) -> float:
    """Return a span that no order undercuts, of ranks with one stage each."""
    longest = 0.0
    away = 0.0
    for rank in reversed(range(len(times.forward_seconds_V))):
        if rank < len(times.forward_seconds_V) - 1:
            away += 2 * times.transfer_seconds_V[rank]
            away += times.forward_seconds_V[rank + 1] + _gradient_seconds(times, rank + 1)
        longest = max(longest, _rank_seconds(times, memory, num_microbatches, rank, away))
    return longest


def _gradient_seconds(times: PassTimes, rank: int) -> float:
    """Return the least time from the start of a backward pass to the end of the gradient of the input."""
    split = times.input_gradient_seconds_V[rank]
    return min(split, times.backward_seconds_V[rank]) if times.backward_seconds_V else split


def _rank_seconds(times: PassTimes, memory: Memory, num_microbatches: int, rank: int, away: float) -> float:
    forward = times.forward_seconds_V[rank]
    weights = times.weight_gradient_seconds_V[rank]
    split = times.input_gradient_seconds_V[rank] + weights
    gradients = min(split, times.backward_seconds_V[rank]) if times.backward_seconds_V else split
    ahead = memory.most_ahead(rank, num_microbatches)
    head = max(0.0, forward + away - ahead * forward)
    tail = max(0.0, away - _left_seconds(memory, num_microbatches, rank, both=split, weights=weights))
    waits = head + tail if num_microbatches > ahead else max(head, tail)
    return max(num_microbatches * (forward + gradients) + waits, forward + away + gradients)


def _left_seconds(memory: Memory, num_microbatches: int, rank: int, *, both: float, weights: float) -> float:
    """Return the most work that other micro-batches can have left beside one that is just forward."""
    activation, kept = memory.activation_bytes_R[rank], memory.weight_gradient_bytes_R[rank]
    others = num_microbatches - 1
    room = memory.limit_bytes_R[rank] - activation
    most = 0.0
    for whole in range(memory.most_ahead(rank, num_microbatches)):
        left = room - whole * activation
        if left < 0:
            break
        halves = others - whole if not kept else min(others - whole, left // kept)
        most = max(most, whole * both + halves * weights)
    return most
