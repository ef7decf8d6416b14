"""From a model, GPUs and traffic to a serving plan: the main path.

    shapes -> engines that fit -> what each bears in closed form -> composition -> simulation of the engines in it,
    and again, until every engine of the composition was simulated -> the plan

The closed form ranks every engine, the composition is exact over the best of each kind of GPU, role and size, and the
figures of what is started are the simulation's. `bound` is the composition's: no fleet of these options, at the rates
that are known of them, does better.
"""

from functools import partial

from planner.models.specs import ModelSpec
from planner.serving_plans.layout import EngineShape, Role
from planner.serving_plans.plan import Composition, Deployment, RankedEngine, ServePlan, ServeSearchSummary, ServeStatus
from planner.serving_plans.request import Arrivals, ServeObjective, ServeRequest
from planner.serving_search.assumptions import assumptions_of
from planner.serving_search.compose import DEFAULT_SOLVER, Composed, price_of
from planner.serving_search.deployments import deployments_of, keep_targets
from planner.serving_search.field import field_of
from planner.serving_search.infeasible import explain
from planner.serving_search.options import Option, OptionTable, Simulations, option_table
from planner.serving_search.pareto import pareto_front
from planner.serving_search.settle import Task
from profiles.hardware import Cluster
from solvers.solution import Status

RUNNERS_UP = 5
"""Engines that do everything to list, unless the user says otherwise."""

TOGETHER_STEP = 0.97
"""What engines of a split plan bear less at each turn, where their requests together miss a target that each keeps, and
engines of any plan where requests of a whole trace miss one that its fastest stretch keeps; at the last turn they are
left out. The step is a choice: smaller ones lose less and take more turns."""

MOST_TURNS = 24
"""Turns after which such engines are left out: by then they are asked for less than half of what they bear alone."""


def plan_serving(
    model: ModelSpec,
    clusters: tuple[Cluster, ...],
    request: ServeRequest,
    *,
    top: int = RUNNERS_UP,
    solver: str = DEFAULT_SOLVER,
) -> ServePlan:
    """Return the best serving plan, or why there is none.

    Args:
        model: The model.
        clusters: The GPUs, one entry for each kind.
        request: What is asked.
        top: Engines that do everything to list.
        solver: What composes engines.

    Raises:
        profiles.errors.CoverageError: An operation has no cost on a GPU.
        solvers.errors.SolverError: The composition stopped with nothing.
    """
    field = field_of(model, clusters, request)
    table = option_table(request, field.candidates, one_node=field.one_node)
    simulations = Simulations(table.options)
    task = Task(
        request=request,
        clusters=clusters,
        simulations=simulations,
        demand=demand_of(request) if request.objective is not ServeObjective.GOODPUT else None,
        solver=solver,
        pairings=simulations.pairings,
    )
    load = demand_of(request)
    best = task.able()
    deployments: tuple[Deployment, ...] = ()
    traced = request.workload.arrivals is Arrivals.TRACE
    for turn in range(MOST_TURNS + 1):
        if not task.bears(best, load):
            break
        deployments = deployments_of(request, simulations.options, best.counts, load=load, one_node=field.one_node)
        if keep_targets(request, tuple(one for one in deployments if traced or one.layout.is_split)):
            break
        deployments = ()
        simulations.scale(TOGETHER_STEP if turn < MOST_TURNS - 1 else 0.0, halves_alone=not traced)
        best = task.able()
    infeasible = None
    if not deployments:
        most = task.most() if load is not None else task.borne(best)
        infeasible = explain(
            field.grounds,
            field.candidates,
            clusters,
            borne=most,
            demand=load,
            one_node=field.one_node,
            able=tuple(option for option in simulations.options.values() if option.rate > 0),
            least=partial(task.least, demand=load or 0.0),
        )
    status = ServeStatus.OPTIMAL if best.fleet.status is Status.OPTIMAL else ServeStatus.FEASIBLE
    return ServePlan(
        model=model,
        clusters=clusters,
        request=request,
        status=status if deployments else ServeStatus.INFEASIBLE,
        value=best.fleet.objective if deployments else None,
        bound=best.fleet.bound if deployments else None,
        deployments=deployments,
        compositions=_compositions(task, best) if deployments else (),
        engines=_ranked(table, simulations, top=top),
        pareto=pareto_front(field.candidates, simulations.options.values()),
        search=ServeSearchSummary(
            considered=field.considered,
            legal=field.legal,
            pruned=dict(sorted((field.pruned + table.pruned).items())),
            priced=table.priced,
            simulated=sum(option.simulated for option in simulations.options.values()),
            options=len(table.options),
            solver=solver,
        ),
        infeasible=infeasible,
        assumptions=assumptions_of(request, field),
    )


def demand_of(request: ServeRequest) -> float | None:
    """Return the requests a second that must be served; None for as many as there can be."""
    workload = request.workload
    if workload.arrivals is Arrivals.TRACE:
        assert workload.trace is not None
        return workload.trace.requests_per_second
    return workload.requests_per_second


def _compositions(task: Task, best: Composed) -> tuple[Composition, ...]:
    """Return the best of each way to compose."""
    options = task.simulations.options
    whole = [index for index, option in options.items() if option.point.role is Role.BOTH]
    found: list[Composition] = []
    alone = task.alone(whole)
    if alone is not None:
        found.append(_composition("one shape", alone, task))
    for name, one in (("aggregated", task.settled(whole)), ("prefill/decode split", task.best_with(()))):
        if one.counts:
            found.append(_composition(name, one, task))
    found.append(_composition("the plan", best, task))
    return tuple(found)


def _composition(name: str, found: Composed, task: Task) -> Composition:
    options = task.simulations.options
    chosen = [(options[index], count) for index, count in sorted(found.counts.items())]
    prices = [option.point.candidate.ground.prices.cluster.price_per_gpu_hour for option, _ in chosen]
    price = None if None in prices else sum(price_of(option) * count for option, count in chosen)
    return Composition(
        name=name,
        words=" + ".join(_words(option, count, several=len(task.clusters) > 1) for option, count in chosen),
        requests_per_second=task.borne(found),
        num_gpus=sum(option.point.candidate.num_gpus * count for option, count in chosen),
        price_per_hour=price,
    )


def _words(option: Option, count: int, *, several: bool) -> str:
    candidate = option.point.candidate
    role = {Role.BOTH: "", Role.PREFILL: "prefill ", Role.DECODE: "decode "}[option.point.role]
    where = f" {candidate.ground.prices.cluster.name}" if several else ""
    return f"{count} x {role}{candidate.words}{where}"


def _ranked(table: OptionTable, simulations: Simulations, *, top: int) -> tuple[RankedEngine, ...]:
    """Return the best engines that do everything, one of each shape, by the simulation where there is one."""
    simulated = {
        (option.point.candidate.ground.index, option.point.candidate.shape): option.point
        for option in simulations.options.values()
        if option.simulated and option.point.role is Role.BOTH and not option.share
    }
    found: dict[tuple[int, EngineShape], RankedEngine] = {}
    for closed in table.both:
        candidate = closed.candidate
        key = (candidate.ground.index, candidate.shape)
        if key in found:
            continue
        point = simulated.get(key, closed)
        found[key] = RankedEngine(
            gpu=candidate.ground.prices.cluster.device.name,
            words=point.candidate.words,
            num_gpus=candidate.num_gpus,
            max_num_seqs=point.seqs,
            max_num_batched_tokens=point.candidate.budget,
            requests_per_second=point.requests_per_second,
            tokens_per_second_per_gpu=point.per_gpu * candidate.ground.mean.output,
            tpot_seconds=point.tpot_seconds,
            ttft_seconds=point.ttft_seconds,
            simulated=key in simulated,
        )
        if len(found) == top * 2:
            break
    ordered = sorted(found.values(), key=lambda engine: (-engine.tokens_per_second_per_gpu, engine.gpu, engine.words))
    return tuple(ordered[:top])
