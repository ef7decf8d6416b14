"""Recomputes from scratch whether a solution is feasible and worth what it says.

Plain loops and exact integers; nothing is shared with the solvers but the problem. The constraints, in the numbers of
`solvers.mip`, each checked by the function named:

    (1) every layer has one stage and one option                     _choice_violations
    (2) stages do not decrease along the layers                      _order_violations
    (3) each stage holds between min_layers and max_layers layers    _count_violations
    (4) no rank's seconds exceed the bottleneck in the objective     _objective_violations
    (5) no rank needs more bytes than its capacity                   _memory_violations
"""

from collections.abc import Iterator
from dataclasses import dataclass

from solvers.problem import Problem
from solvers.solution import Solution, Status

# Seconds are added in another order than the solvers add them.
_RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One constraint that a solution breaks.

    Args:
        constraint: Its number.
        message: What is broken, where and by how much.
    """

    constraint: int
    message: str


def check(problem: Problem, solution: Solution) -> tuple[Violation, ...]:
    """Return everything that is wrong with a solution; nothing for one that says the problem is infeasible."""
    if solution.status is Status.INFEASIBLE:
        return ()
    # Without a stage and an option for every layer nothing else can be computed.
    broken_choice = tuple(_choice_violations(problem, solution))
    if broken_choice:
        return broken_choice
    return (
        *_order_violations(solution),
        *_count_violations(problem, solution),
        *_objective_violations(problem, solution),
        *_memory_violations(problem, solution),
    )


def _choice_violations(problem: Problem, solution: Solution) -> Iterator[Violation]:
    for name, values, count in (
        ("stage", solution.stage_of_layer_L, problem.num_stages),
        ("option", solution.option_of_layer_L, problem.num_options),
    ):
        if len(values) != problem.num_layers:
            yield Violation(constraint=1, message=f"{len(values)} layers have a {name}, not {problem.num_layers}")
        for layer, value in enumerate(values):
            if not 0 <= value < count:
                yield Violation(constraint=1, message=f"layer {layer} has {name} {value}, of {count}")


def _order_violations(solution: Solution) -> Iterator[Violation]:
    stages = solution.stage_of_layer_L
    for layer in range(1, len(stages)):
        if stages[layer] < stages[layer - 1]:
            yield Violation(
                constraint=2,
                message=f"layer {layer} is on stage {stages[layer]}, the layer before it on stage {stages[layer - 1]}",
            )


def _count_violations(problem: Problem, solution: Solution) -> Iterator[Violation]:
    for stage in range(problem.num_stages):
        count = sum(1 for of_layer in solution.stage_of_layer_L if of_layer == stage)
        least, most = int(problem.min_layers_S[stage]), int(problem.max_layers_S[stage])
        if not least <= count <= most:
            yield Violation(constraint=3, message=f"stage {stage} holds {count} layers, not {least} to {most}")


def _objective_violations(problem: Problem, solution: Solution) -> Iterator[Violation]:
    seconds_R = [0.0] * problem.num_ranks
    for stage in range(problem.num_stages):
        seconds_R[int(problem.rank_of_stage_S[stage])] += float(problem.fixed_seconds_S[stage])
    for layer, (stage, option) in enumerate(zip(solution.stage_of_layer_L, solution.option_of_layer_L, strict=True)):
        seconds_R[int(problem.rank_of_stage_S[stage])] += float(problem.stage_seconds_LO(stage)[layer, option])
    objective = problem.bottleneck_weight * max(seconds_R) + problem.total_weight * sum(seconds_R)
    claimed = solution.objective
    if claimed is None or abs(claimed - objective) > _RELATIVE_TOLERANCE * objective:
        yield Violation(constraint=4, message=f"the objective is {objective!r}, not {claimed!r}")


def _memory_violations(problem: Problem, solution: Solution) -> Iterator[Violation]:
    bytes_R = [0] * problem.num_ranks
    for stage in range(problem.num_stages):
        bytes_R[int(problem.rank_of_stage_S[stage])] += int(problem.fixed_bytes_S[stage])
    for layer, (stage, option) in enumerate(zip(solution.stage_of_layer_L, solution.option_of_layer_L, strict=True)):
        in_flight = int(problem.in_flight_S[stage])
        demand = int(problem.static_bytes_LO[layer, option]) + in_flight * int(
            problem.activation_bytes_LO[layer, option]
        )
        bytes_R[int(problem.rank_of_stage_S[stage])] += demand
    for rank, demand in enumerate(bytes_R):
        capacity = int(problem.capacity_bytes_R[rank])
        if demand > capacity:
            yield Violation(
                constraint=5, message=f"rank {rank} needs {demand} bytes, {demand - capacity} more than its {capacity}"
            )
