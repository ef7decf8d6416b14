"""A composition as what is started: pools with their settings, and what becomes of requests at the planned load."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from planner.experts.written import rows_of
from planner.serving.rank_operators import Balance
from planner.serving.steady import prefill_seconds
from planner.serving_plans.layout import Pool, Role, ServingLayout
from planner.serving_plans.plan import Deployment, MemoryItem, PlannedPool, Served
from planner.serving_plans.request import ServeRequest
from planner.serving_search.closed_form import BUSIEST, Point, in_a_loop, seats_for
from planner.serving_search.expert_places import load_words
from planner.serving_search.options import Option
from planner.serving_search.passing import connector_of
from planner.serving_search.simulated import Times, at_rate_of, keeps, served_of, targets_of, times_of
from planner.serving_search.step_sources import answers_step, prompt_step, source_fractions
from planner.serving_search.transfer import transfer_of

NAMES = {Role.BOTH: "server", Role.PREFILL: "prefill", Role.DECODE: "decode"}
PROMPTS_BETWEEN = "prompts of other requests"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def deployments_of(
    request: ServeRequest,
    options: Mapping[int, Option],
    counts: Mapping[int, int],
    *,
    load: float | None,
    one_node: bool,
) -> tuple[Deployment, ...]:
    """Return what a composition starts, and what becomes of the requests.

    Args:
        request: What is asked.
        options: The engines, at what they bear.
        counts: How many of each.
        load: Requests a second in all; None for as many as they bear.
        one_node: All pools stand on one node.
    """
    whole = [(options[index], count) for index, count in counts.items() if options[index].point.role is Role.BOTH]
    first = [(options[index], count) for index, count in counts.items() if options[index].point.role is Role.PREFILL]
    second = [(options[index], count) for index, count in counts.items() if options[index].point.role is Role.DECODE]
    borne = sum(option.rate * count for option, count in whole)
    halves = min(_borne(first), _borne(second))
    part = 1.0 if load is None else load / (borne + halves)
    found: list[Deployment] = []
    if whole:
        found.append(_aggregated(request, whole, part=part))
    if first and second:
        found.append(_split(request, first, second, load=halves * part, one_node=one_node))
    return tuple(found)


def _borne(group: list[tuple[Option, int]]) -> float:
    return sum(option.rate * count for option, count in group)


def _aggregated(request: ServeRequest, group: list[tuple[Option, int]], *, part: float) -> Deployment:
    points, times = _run([(option, _at(option.point, option.rate * part)) for option, _ in group])
    targets = request.workload.targets
    served = tuple(
        served_of(entry, targets, in_loop=in_a_loop(point.candidate, Role.BOTH))
        for point, entry in zip(points, times, strict=True)
    )
    pools = tuple(
        planned_pool(point, count, name=name, batch=entry.mean_batch, bears=option.rate)
        for (option, count), point, name, entry in zip(group, points, _names(group), times, strict=True)
    )
    layout = ServingLayout(model=request.served_model, pools=tuple(pool.pool for pool in pools))
    rate = sum(entry.requests_per_second * count for entry, (_, count) in zip(served, group, strict=True))
    return Deployment(layout=layout, pools=pools, requests_per_second=rate, served=served)


def _run(loaded: list[tuple[Option, Point]]) -> tuple[list[Point], list[Times]]:
    """Return engines at their loads with the seats that these need, and the times of their requests.

    An engine that bears more than its load is told no larger batch than that of the load, if it keeps its targets then.
    """
    seated: list[Point] = []
    found: list[Times] = []
    for option, point in loaded:
        times = times_of(point, whole=True)
        seqs = seats_for(point.candidate, max(times.mean_batch, 1.0), point.role)
        if in_a_loop(point.candidate, point.role) or point.role is Role.PREFILL or seqs >= point.seqs:
            seated.append(point)
        else:
            fewer = replace(point, seqs=seqs)
            tried = times_of(fewer, whole=True)
            targets = targets_of(fewer, first_seconds=option.first_seconds)
            good = keeps(served_of(tried, targets, in_loop=False), targets)
            seated.append(fewer if good else point)
            times = tried if good else times
        found.append(times)
    return seated, found


def _at(point: Point, rate: float) -> Point:
    """Return an engine at its load; in a closed loop it has its own already."""
    return point if in_a_loop(point.candidate, point.role) else at_rate_of(point, rate)


def _split(
    request: ServeRequest,
    first: list[tuple[Option, int]],
    second: list[tuple[Option, int]],
    *,
    load: float,
    one_node: bool,
) -> Deployment:
    groups, borne = [*first, *second], {Role.PREFILL: _borne(first), Role.DECODE: _borne(second)}
    points, times = _run(
        [(option, _at(option.point, option.rate * load / borne[option.point.role])) for option, _ in groups]
    )
    pools = tuple(
        planned_pool(point, count, name=name, batch=entry.mean_batch, bears=option.rate)
        for (option, count), point, name, entry in zip(
            groups, points, [*_names(first), *_names(second)], times, strict=True
        )
    )
    transfers = [
        transfer_of(one.point.candidate, other.point.candidate, one_node=one_node)
        for one, _ in first
        for other, _ in second
    ]
    slowest = max(transfers, key=lambda transfer: transfer.seconds)
    served = tuple(
        joined(times[i], times[len(first) + j], transfer_seconds=slowest.seconds, rate=load, request=request)
        for i in range(len(first))
        for j in range(len(second))
    )
    layout = ServingLayout(
        model=request.served_model,
        pools=tuple(pool.pool for pool in pools),
        connector=connector_of([option.point.candidate for option, _ in first]),
    )
    return Deployment(layout=layout, pools=pools, requests_per_second=load, served=served, transfer=slowest)


def joined(first: Times, second: Times, *, transfer_seconds: float, rate: float, request: ServeRequest) -> Served:
    """Return what becomes of requests that go from one pool to another: their times in each are independent."""
    count = min(len(first.ttft_N), len(second.ttft_N))
    draws = np.random.default_rng(request.seed)
    order_N = draws.permutation(len(second.ttft_N))[:count]
    ttft_N = first.ttft_N[:count] + transfer_seconds + second.ttft_N[order_N]
    rest_N = (second.e2e_N - second.ttft_N)[order_N]
    times = Times(
        arrival_N=first.arrival_N[:count],
        ttft_N=ttft_N,
        tpot_N=second.tpot_N[order_N],
        e2e_N=ttft_N + rest_N,
        requests_per_second=rate,
        preempted=first.preempted + second.preempted,
        refused=first.refused + second.refused,
        mean_batch=second.mean_batch,
    )
    return served_of(times, request.workload.targets, in_loop=False)


def keep_targets(request: ServeRequest, deployments: tuple[Deployment, ...]) -> bool:
    """Return whether the requests of every deployment keep the targets."""
    targets = request.workload.targets
    return all(keeps(served, targets) for deployment in deployments for served in deployment.served)


def _names(group: list[tuple[Option, int]]) -> list[str]:
    name = NAMES[group[0][0].point.role]
    return [name] if len(group) == 1 else [f"{name}-{LETTERS[index]}" for index in range(len(group))]


def planned_pool(point: Point, count: int, *, name: str, batch: float, bears: float) -> PlannedPool:
    """Return a pool of equal engines with its figures.

    Args:
        point: One engine at its load.
        count: How many there are.
        name: What the pool is called.
        batch: Running answers of a data-parallel rank, in the mean.
        bears: Requests a second that one bears within the targets.
    """
    candidate = point.candidate
    cluster = candidate.ground.prices.cluster
    settings = candidate.settings(point.seqs)
    ledger = candidate.ledger(point.seqs)
    mean = candidate.ground.mean
    slot_bytes = candidate.costs.rank.bytes_of_one_expert / candidate.shape.pp
    return PlannedPool(
        pool=Pool(
            name=name,
            role=point.role,
            replicas=count,
            shape=candidate.shape,
            settings=settings,
            gpu=cluster.device.name,
            gpus_per_node=cluster.gpus_per_node,
        ),
        cluster=cluster.name,
        requests_per_second=point.requests_per_second,
        capacity_requests_per_second=bears,
        batch=point.batch if in_a_loop(candidate, point.role) else batch,
        memory=tuple(MemoryItem(name=line.name, num_bytes=line.num_bytes, source=line.source) for line in ledger.lines),
        memory_limit_bytes=ledger.limit_bytes,
        cache_bytes=ledger.pool_bytes,
        cache_tokens=ledger.pool_tokens(mean.typical_tokens),
        step_seconds=_step(point, batch=batch),
        source_fractions=source_fractions(candidate, point.role, running=max(batch, 1.0)),
        notes=candidate.costs.tables.notes,
        of_experts=load_words(candidate.build.balance, slot_bytes=slot_bytes) or None,
        placement=_placement(candidate.build.balance),
    )


def _placement(balance: Balance) -> tuple[str, ...] | None:
    """Return the expert on each slot, a row for each counted layer; None without a balancer."""
    return None if balance.redundant is None or balance.placed is None else rows_of(balance.placed.expert_LGS)


def _step(point: Point, *, batch: float) -> Mapping[str, float]:
    """Return a step by terms: of a prefill engine one with a prompt, else that of the running answers, over its tokens.

    An engine that does everything also computes prompts in between; their part of the time of a token is a term: those
    of the others under way in a closed loop, of arrivals by the clock the part u of all time that prompts take, which
    makes u / (1 - u) of the rest. Where answers have one token, only prompts are computed.
    """
    costs, mean = point.candidate.costs, point.candidate.ground.mean
    running = max(batch, 1.0)
    only_prompts = point.role is Role.PREFILL or (point.role is Role.BOTH and mean.output <= 1)
    if only_prompts:
        terms = prompt_step(point.candidate, costs)
    else:
        terms = answers_step(point.candidate, costs, running=running)
    gain = 1.0 if only_prompts else costs.answering.gain
    found = {name: seconds / gain for name, seconds in terms.items() if seconds > 0}
    if point.role is Role.BOTH and mean.output > 1:
        prompt = prefill_seconds(costs, point.candidate.most_seats, mean.load, decodes=running)
        if in_a_loop(point.candidate, point.role):
            between = (running - 1) * prompt / (mean.output - 1)
        else:
            busy = min(prompt * point.requests_per_second / point.candidate.shape.dp, BUSIEST)
            between = sum(found.values()) * busy / (1 - busy)
        if between > 0:
            found[PROMPTS_BETWEEN] = between
    return found
