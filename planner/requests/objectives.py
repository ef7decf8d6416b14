"""What a step of so many seconds is worth by each objective: days, cost and energy of the whole token budget.

The energy of a run is its time at one power: every GPU draws its share of the node's power all the time, the
`watts_per_gpu` of the cluster, and its board power where a cluster gives none. Presets give the most that a node draws
by its user guide, and a board power is the most that a GPU draws, so both are upper bounds; the latter leaves hosts,
network and cooling out. What a GPU saves while it waits is not taken off: no published figure says how much.
"""

from dataclasses import dataclass

from planner.requests.request import Objective
from planner.requests.workload import TrainWorkload
from profiles.hardware import Cluster

SECONDS_PER_DAY = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """What the token budget takes.

    Args:
        days: Its time.
        cost: Its price; None where a GPU has none.
        joules: Its energy.
    """

    days: float
    cost: float | None
    joules: float


def days_of(step_seconds: float, workload: TrainWorkload) -> float | None:
    """Return the days that the token budget takes; None without a budget."""
    if workload.tokens_to_train is None:
        return None
    return workload.tokens_to_train / workload.useful_tokens_per_step * step_seconds / SECONDS_PER_DAY


def whole_run(step_seconds: float, cluster: Cluster, workload: TrainWorkload, *, num_nodes: int) -> WholeRun | None:
    """Return what the token budget takes on so many nodes of a cluster; None without a budget."""
    days = days_of(step_seconds, workload)
    if days is None:
        return None
    price, num_gpus = cluster.price_per_gpu_hour, num_nodes * cluster.gpus_per_node
    return WholeRun(
        days=days,
        cost=None if price is None else days * 24 * price * num_gpus,
        joules=days * SECONDS_PER_DAY * watts_of(cluster) * num_gpus,
    )


def watts_of(cluster: Cluster) -> float:
    """Return the power of one GPU: its share of the node where that is known, its board elsewhere."""
    return cluster.device.tdp_watts if cluster.watts_per_gpu is None else cluster.watts_per_gpu


def power_assumption(cluster: Cluster) -> str:
    """Return what the energy of a run assumes."""
    if cluster.watts_per_gpu is None:
        return (
            f"energy: every GPU draws its board power, {watts_of(cluster):,g} W, all the time; hosts, network and"
            " cooling come on top"
        )
    return (
        f"energy: every GPU draws {watts_of(cluster):,g} W, its share of the node by the cluster's description, all"
        " the time; cooling comes on top"
    )


def seconds_at_deadline(deadline_days: float, workload: TrainWorkload) -> float:
    """Return the longest step with which the token budget takes no more than so many days."""
    per_second = days_of(1.0, workload)
    assert per_second is not None, "a deadline comes with a token budget"
    return deadline_days / per_second


def objective_value(  # noqa: PLR0911 - one for each objective
    objective: Objective, step_seconds: float, cluster: Cluster, workload: TrainWorkload
) -> float | None:
    """Return what a step of this length is worth: seconds, tokens a second and GPU, days, a price, joules, nodes.

    None where the inputs do not say it, and of the objective robust, which no single step time decides
    (`planner.decisions.robust`). On one cluster all others have the same best plan.
    """
    run = whole_run(step_seconds, cluster, workload, num_nodes=cluster.num_nodes)
    match objective:
        case Objective.STEP_TIME:
            return step_seconds
        case Objective.TOKENS_PER_GPU:
            return workload.useful_tokens_per_step / (step_seconds * cluster.world_size)
        case Objective.DAYS:
            return None if run is None else run.days
        case Objective.COST:
            return None if run is None else run.cost
        case Objective.ENERGY:
            return None if run is None else run.joules
        case Objective.FEWEST_NODES:
            return float(cluster.num_nodes)
        case Objective.ROBUST:
            return None


def merit(objective: Objective, step_seconds: float, num_nodes: int) -> float:
    """Return what orders plans on different numbers of nodes of one cluster, less being better.

    GPUs have one price and one power, so cost, energy and tokens a second and GPU all follow the GPU-seconds of a step.
    """
    match objective:
        case Objective.STEP_TIME | Objective.DAYS:
            return step_seconds
        case Objective.TOKENS_PER_GPU | Objective.COST | Objective.ENERGY:
            return step_seconds * num_nodes
        case Objective.FEWEST_NODES:
            return float(num_nodes)
        case Objective.ROBUST:
            raise AssertionError("robust plans are made on one number of nodes")
