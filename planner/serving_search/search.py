"""From a model, GPUs and traffic to a serving plan: the main path.

    shapes -> engines that fit -> what each bears in closed form -> composition -> simulation of the engines in it,
    and again, until every engine of the composition was simulated -> the plan

The closed form ranks every engine, the composition is exact over the best of each kind of GPU, role and size, and the
figures of what is started are the simulation's. `bound` is the composition's: no fleet of these options, at the rates
that are known of them, does better.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from planner.frameworks.profile_remarks import profile_remarks
from planner.models.specs import ModelSpec
from planner.requests.routing import Routing
from planner.serving.balancer import STEP_INTERVAL
from planner.serving.engines import calibration, engine_named
from planner.serving.formats import formats_of
from planner.serving.prices import ServingPrices
from planner.serving_plans.layout import EngineShape, Role
from planner.serving_plans.plan import (
    Composition,
    Deployment,
    RankedEngine,
    ServePlan,
    ServeSearchSummary,
    ServeStatus,
)
from planner.serving_plans.request import Arrivals, ServeObjective, ServeRequest, Splits
from planner.serving_search.candidates import Candidate, DraftGround, Ground, candidates_of
from planner.serving_search.compose import DEFAULT_SOLVER, Composed, Freed, composed, price_of
from planner.serving_search.deployments import deployments_of, keep_targets
from planner.serving_search.infeasible import explain
from planner.serving_search.options import Option, OptionTable, Simulations, option_table
from planner.serving_search.pareto import pareto_front
from planner.serving_search.passing import Pairing
from planner.serving_search.shapes import engine_shapes
from planner.serving_search.simulated import TRACED
from planner.serving_search.traffic import mean_of
from profiles.hardware import Cluster
from profiles.uses import Use
from solvers.solution import Status

ENGINE = "vllm"
RUNNERS_UP = 5

TOGETHER_STEP = 0.97
"""What engines of a split plan bear less at each turn, where their requests together miss a target that each keeps, and
engines of any plan where requests of a whole trace miss one that its fastest stretch keeps; at the last turn they are
left out."""
MOST_TURNS = 24

ROUNDING = 1e-9
"""Part of a load that sums of rates may miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Everything that is looked at.

    Args:
        grounds: Of each kind of GPU.
        candidates: Engines that fit.
        considered: Shapes before any rule.
        legal: Shapes that break none and fit.
        pruned: Shapes that were left out, by reason.
        one_node: All GPUs stand in one node.
    """

    grounds: tuple[Ground, ...]
    candidates: list[Candidate]
    considered: int
    legal: int
    pruned: Counter[str]
    one_node: bool


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
        assumptions=_assumptions(request, field),
    )


def field_of(model: ModelSpec, clusters: tuple[Cluster, ...], request: ServeRequest) -> Field:
    """Return every engine that fits, on every kind of GPU."""
    grounds: list[Ground] = []
    candidates: list[Candidate] = []
    pruned: Counter[str] = Counter()
    considered = legal = 0
    for index, cluster in enumerate(clusters):
        ground = ground_of(model, cluster, request, index=index)
        space = engine_shapes(model, cluster, ground.formats, request.constraints)
        considered += space.considered
        pruned += space.pruned
        grounds.append(ground)
        found = candidates_of(ground, space.shapes, pruned)
        legal += len({candidate.shape for candidate in found})
        candidates += found
    return Field(
        grounds=tuple(grounds),
        candidates=candidates,
        considered=considered,
        legal=legal,
        pruned=pruned,
        one_node=len(clusters) == 1 and clusters[0].num_nodes == 1,
    )


def ground_of(model: ModelSpec, cluster: Cluster, request: ServeRequest, *, index: int) -> Ground:
    """Return what all engines of a model on one kind of GPU share."""
    workload = request.workload
    return Ground(
        index=index,
        prices=ServingPrices(model, cluster),
        formats=formats_of(workload.quantization, model, cache=workload.kv_cache_dtype),
        engine=engine_named(ENGINE),
        request=request,
        mean=mean_of(workload),
        draft=_draft_ground(request, cluster),
    )


def _draft_ground(request: ServeRequest, cluster: Cluster) -> DraftGround | None:
    speculation = request.speculation
    if speculation is None:
        return None
    # vLLM loads a draft as its files hold it (`DraftModelProposer._create_draft_vllm_config`).
    formats = formats_of("", speculation.model, cache=request.workload.kv_cache_dtype)
    return DraftGround(prices=ServingPrices(speculation.model, cluster), formats=formats, speculation=speculation)


def demand_of(request: ServeRequest) -> float | None:
    """Return the requests a second that must be served; None for as many as there can be."""
    workload = request.workload
    if workload.arrivals is Arrivals.TRACE:
        assert workload.trace is not None
        return workload.trace.requests_per_second
    return workload.requests_per_second


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


def _checkpoint(request: ServeRequest, ground: Ground) -> list[str]:
    """Return what is taken of the weights that engines load, where these are not quantised as they are loaded."""
    name = ground.formats.name
    if name in {"fp8", formats_of("", ground.prices.model).name}:
        return []
    return [f"the files of {request.served_model} hold {name} weights; else give served_model: engines load them as is"]


def _version() -> Iterable[str]:
    """Yield what is taken of the engine's version, where earlier ones differ."""
    eras = calibration().eras.get(ENGINE, ())
    if eras:
        yield f"host time of a running sequence: of {ENGINE} {eras[-1].before} and later; {eras[-1].source}"


def _moves(field: Field) -> str:
    """Return what is taken of a balancer's moves."""
    ranks = max(one.shape.tp * one.shape.dp for one in field.candidates if one.build.balance.redundant is not None)
    return (
        f"a balancer deals experts anew every {STEP_INTERVAL:,} steps: all slots change rank but those that chance "
        f"leaves there (one in {ranks} on {ranks} ranks), and steps wait for it"
    )


def _routing(routing: Routing | None) -> str:
    """Return what is taken of the tokens that experts get."""
    if routing is None:
        spread = calibration().kernels.routing_spread
        return (
            f"routing was not counted: the logarithm of an expert's part of all choices has a standard deviation of "
            f"{spread:.2g}, as fitted to runs of servers"
        )
    return (
        f"routing: {routing.source}; every step is routed alike, and a layer with experts takes the mean of all; a "
        "balancer places copies as well as this plan does"
    )


def _of_arrivals(request: ServeRequest) -> Iterable[str]:
    """Yield what is taken of when requests come."""
    workload = request.workload
    if workload.arrivals is Arrivals.TRACE:
        yield (
            "recorded arrivals keep their clock, and run faster only where an engine bears more than all of them; what"
            f" engines bear is searched by the {TRACED:,} requests of a rank that come fastest, what becomes of"
            " requests by a rank's part of the whole trace"
        )
    if workload.concurrency is not None:
        yield "a fixed number under way is planned for engines that do everything: no split was looked at"
    elif workload.arrivals in {Arrivals.CLOSED, Arrivals.OFFLINE} and request.constraints.split is not Splits.NEVER:
        yield "pools of a split plan get their requests by the clock, independently"


def _assumptions(request: ServeRequest, field: Field) -> tuple[str, ...]:
    """Return what the figures rest on."""
    workload = request.workload
    texts = [
        f"times of steps: kernel by kernel; constants of the engine: {calibration().source}",
        *_version(),
        "requests are dealt to engines at random, each keeping the distribution of lengths",
        *_of_arrivals(request),
    ]
    if workload.prefix is not None:
        texts.append(
            f"{workload.prefix.hit_fraction:.0%} of the prompts find their first {workload.prefix.tokens} tokens cached"
        )
    for ground in field.grounds:
        texts += profile_remarks(ground.prices.cluster, use=Use.SERVING, launch_seconds=ground.engine.kernel_seconds)
    if field.grounds:
        texts += _checkpoint(request, field.grounds[0])
    if field.grounds and field.grounds[0].prices.model.has_experts:
        texts.append(_routing(workload.routing))
    if any(candidate.build.balance.redundant is not None for candidate in field.candidates):
        texts.append(_moves(field))
    if request.speculation is not None:
        texts.append(
            f"guesses of {request.speculation.model.name} are taken with probability "
            f"{request.speculation.acceptance:g} each, at every load; it stands on the engine's GPUs with the engine's "
            "tensor parallelism, and a pass of it occupies the host as a step does"
        )
    if workload.targets.given and workload.targets.percentile is None:
        texts.append("targets speak of means")
    return tuple(texts)
