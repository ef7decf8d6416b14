"""A serving plan on one screen: what is started, what becomes of requests, the other ways, why there is none."""

from collections.abc import Iterator

from cli.render import (
    Blank,
    Block,
    Facts,
    Item,
    Line,
    Style,
    Table,
    columns,
    count,
    counted,
    duration,
    gib,
    milliseconds,
    percent,
    section,
    sources_in_words,
)
from planner.requests.objectives import SECONDS_PER_DAY
from planner.serving_plans.layout import Pool, Role
from planner.serving_plans.plan import PlannedPool, Served, ServeInfeasible, ServePlan, ServeStatus
from planner.serving_plans.request import Arrivals, Lengths, ServeObjective, ServeWorkload
from planner.serving_search.shapes import engine_words
from planner.serving_search.traffic import mean_of

FRONT = "Speed against throughput, in closed form"


LEAST_SHOWN = 0.01
"""Requests a second below which two places show nothing."""


def serve_blocks(plan: ServePlan, *, verbose: bool = False) -> tuple[Block, ...]:
    """Return what `plan` prints of a serving plan."""
    blocks: list[Block] = [*header(plan), *verdict(plan)]
    for title, inside in serve_sections(plan, verbose=verbose):
        blocks += section(title, *inside)
    return tuple(blocks)


def serve_sections(plan: ServePlan, *, verbose: bool) -> Iterator[tuple[str, tuple[Block, ...]]]:
    """Yield the sections behind the verdict, each with its title, in reading order.

    Args:
        plan: The plan.
        verbose: Also what was looked at, and why shapes were left out.
    """
    if plan.infeasible is not None and plan.infeasible.moves:
        yield "How far each target must move", _moves(plan.infeasible)
    if plan.deployments:
        yield "Engines", _engines(plan)
        yield "Requests, by simulation", _served(plan)
        yield "Where the time of a token goes, or of a prompt", _spent(plan)
        yield "Memory of a GPU", _memory(plan)
        if any(entry.of_experts for entry in plan.pools):
            yield "Experts", _experts(plan)
        yield "Ways to compose", _ways(plan)
    if plan.engines:
        yield "Engines that do everything, each at its most", _ranked(plan)
    if plan.pareto:
        yield FRONT, _pareto(plan)
    yield "Assumptions", tuple(Item(text) for text in plan.assumptions)
    if verbose:
        yield "Search", _search(plan)


def header(plan: ServePlan) -> tuple[Block, ...]:
    """Return what was asked."""
    workload = plan.request.workload
    gpus = " + ".join(f"{cluster.name}: {cluster.nodes_in_words}" for cluster in plan.clusters)
    pairs = [
        ("model", f"{plan.model.name}, {workload.quantization}, cache {workload.kv_cache_dtype}"),
        ("GPUs", gpus),
        ("requests", _traffic(workload)),
        ("targets", _targets(workload)),
        ("objective", plan.objective.value),
    ]
    return (Facts(pairs=tuple(pairs)),)


def _traffic(workload: ServeWorkload) -> str:
    if workload.trace is not None:
        lengths = f"{len(workload.trace.prompts_N):,} of {workload.trace.file}"
    else:
        lengths = f"{_lengths(workload.prompts)} in, {_lengths(workload.outputs)} out"
    load = {
        Arrivals.POISSON: "Poisson arrivals"
        if workload.burstiness == 1.0
        else f"arrivals of burstiness {workload.burstiness:g}",
        Arrivals.CLOSED: "closed loop",
        Arrivals.OFFLINE: "all at once",
        Arrivals.TRACE: "as recorded",
    }[workload.arrivals]
    if workload.arrivals is Arrivals.TRACE and workload.trace is not None:
        load = f"{_rate(workload.trace.requests_per_second)}/s {load}"
    if workload.requests_per_second is not None:
        load = f"{workload.requests_per_second:g}/s {load}"
    if workload.concurrency is not None:
        load = f"{load} of {workload.concurrency:,}"
    return f"{lengths}, {load}"


def _lengths(lengths: Lengths | None) -> str:
    assert lengths is not None
    if lengths.shortest == lengths.longest:
        return count(lengths.longest)
    middle = "" if lengths.mean is None else f", mean {lengths.mean:,.0f}"
    return f"{lengths.shortest:,} to {lengths.longest:,}{middle}"


def _targets(workload: ServeWorkload) -> str:
    targets = workload.targets
    if not targets.given:
        return "none"
    statistic = "mean" if targets.percentile is None else f"p{targets.percentile:g}"
    parts = [f"{name.upper()} {statistic} <= {milliseconds(seconds)}" for name, seconds in targets.given.items()]
    if targets.attainment is not None:
        parts.append(f"all of {percent(targets.attainment)} of requests")
    return ", ".join(parts)


def verdict(plan: ServePlan) -> tuple[Block, ...]:
    """Return the objective's value with its proof, or what is in the way."""
    if plan.infeasible is not None:
        none = "keeps the targets" if plan.request.workload.targets.given else "serves the requests"
        return (Blank(), Line(f"No plan {none}.", Style.BAD), *_in_the_way(plan.infeasible))
    assert plan.value is not None
    assert plan.bound is not None
    within = " within the targets" if plan.request.workload.targets.given else ""
    value = {
        ServeObjective.GOODPUT: f"{_rate(plan.value)} requests/s{within}",
        ServeObjective.FEWEST_GPUS: counted(round(plan.value), "GPU"),
        ServeObjective.COST: f"{plan.value:,.2f} an hour",
    }[plan.objective]
    proof = (
        "no composition of these engines does better"
        if plan.status is ServeStatus.OPTIMAL
        else (f"none can be better than {plan.bound:,.2f}")
    )
    return (Blank(), Line(f"{value}; {proof}.", Style.GOOD))


def _rate(per_second: float) -> str:
    """Return a rate with two places, or two digits where these would show nothing of it."""
    return f"{per_second:,.2f}" if per_second >= LEAST_SHOWN or per_second <= 0 else f"{per_second:.2g}"


def _engines(plan: ServePlan) -> tuple[Block, ...]:
    rows = tuple(
        (
            entry.pool.name,
            str(entry.pool.replicas),
            _engine_words(entry.pool),
            str(entry.pool.num_gpus),
            entry.pool.gpu,
            str(entry.pool.settings.max_num_seqs),
            str(entry.pool.settings.max_num_batched_tokens),
            _rate(entry.requests_per_second),
            _rate(entry.capacity_requests_per_second),
        )
        for entry in plan.pools
    )
    head = columns(
        "pool",
        ">engines",
        "each",
        ">GPUs",
        "GPU",
        ">seqs",
        ">tokens",
        ">req/s",
        ">bears",
        whole=["each", "GPU"],
        spare=["tokens", "seqs", "GPU"],
    )
    idle = sum(cluster.world_size for cluster in plan.clusters) - plan.num_gpus
    price = "" if plan.price_per_hour is None else f", {plan.price_per_hour:,.2f} an hour"
    used = f"{counted(plan.num_gpus, 'GPU')} used, {idle} left{price}."
    told = "seqs: --max-num-seqs, the planned batch; tokens: --max-num-batched-tokens; bears: req/s at most."
    return (Table(columns=head, rows=rows), Line(f"  {used}", Style.QUIET), Line(f"  {told}", Style.QUIET))


def _engine_words(pool: Pool) -> str:
    draft = pool.settings.draft
    return engine_words(
        pool.shape, guesses=0 if draft is None else draft.num_tokens, redundant=pool.settings.redundant_experts
    )


def _served(plan: ServePlan) -> tuple[Block, ...]:
    rows = []
    for deployment in plan.deployments:
        for name, served in zip(deployment.ways, deployment.served, strict=True):
            for metric, spread in (("TTFT", served.ttft), ("TPOT", served.tpot), ("E2E", served.e2e)):
                values = (spread.mean, spread.p50, spread.p90, spread.p99)
                rows.append((name, metric, *(milliseconds(value) for value in values)))
    table = Table(
        columns=columns("requests of", "metric", ">mean", ">p50", ">p90", ">p99", whole=["metric"], spare=["p50"]),
        rows=tuple(rows),
    )
    blocks: list[Block] = [table]
    has_targets = bool(plan.request.workload.targets.given)
    for deployment in plan.deployments:
        for name, served in zip(deployment.ways, deployment.served, strict=True):
            blocks.append(Line(f"  {name}: {_verdict_of(served, has_targets=has_targets)}"))
        if deployment.transfer is not None:
            sent = deployment.transfer
            blocks.append(
                Line(f"  A prompt's cache, {gib(sent.num_bytes)}, takes {milliseconds(sent.seconds)} over {sent.over}.")
            )
    per_gpu, per_user = speeds(plan)
    gpus = sum(cluster.world_size for cluster in plan.clusters)
    blocks.append(
        Line(
            f"  {per_gpu * gpus:,.0f} output tokens/s, {per_gpu:,.1f} of each of the {gpus} GPUs there are; "
            f"{per_user:,.1f} of a user."
        )
    )
    concurrency = plan.request.workload.concurrency
    under_way = round(sum(entry.batch * entry.pool.shape.dp * entry.pool.replicas for entry in plan.pools))
    if concurrency is not None and under_way < concurrency:
        blocks.append(
            Line(f"  Of the {concurrency:,} requests {under_way:,} are under way; the wait of others is left out.")
        )
    asked = plan.request.workload.num_requests
    if asked is not None:
        days = asked / plan.requests_per_second / SECONDS_PER_DAY
        ends = milliseconds(max(served.e2e.mean for deployment in plan.deployments for served in deployment.served))
        blocks.append(
            Line(f"  {count(asked)} requests take {duration(days)} at that rate, and the last ones' end {ends} more.")
        )
    return tuple(blocks)


def speeds(plan: ServePlan) -> tuple[float, float]:
    """Return the output tokens a second of a GPU of all that there are, and those of a user of the first pool."""
    total = plan.requests_per_second * mean_of(plan.request.workload).output
    served = plan.deployments[0].served[0]
    per_user = 1 / served.tpot.mean if served.tpot.mean else 0.0
    return total / sum(cluster.world_size for cluster in plan.clusters), per_user


def _verdict_of(served: Served, *, has_targets: bool) -> str:
    parts = [f"{percent(served.attainment)} keep all targets"] if has_targets else []
    parts.append("saturated: waiting grows" if served.saturated else "not saturated")
    if served.preempted:
        parts.append(f"{percent(served.preempted)} put back for want of cache")
    if served.is_few:
        parts.append("too few requests for percentiles")
    of = counted(served.num_requests, "request")
    return f"{', '.join(parts)} (of {of}, {served.mean_batch:,.1f} at once in a rank)"


def _spent(plan: ServePlan) -> tuple[Block, ...]:
    terms: list[str] = []
    for entry in plan.pools:
        terms += [name for name in entry.step_seconds if name not in terms]
    rows = [(name, *(_milliseconds(entry, name) for entry in plan.pools)) for name in terms]
    rows.append(("all", *(milliseconds(sum(entry.step_seconds.values())) for entry in plan.pools)))
    heads = [f">{entry.pool.name}" for entry in plan.pools]
    only_prompts = mean_of(plan.request.workload).output <= 1
    kinds = ", ".join(
        f"{entry.pool.name}: {'a prompt' if entry.pool.role is Role.PREFILL or only_prompts else 'running answers'}"
        for entry in plan.pools
    )
    table = Table(columns=columns("time of", *heads), rows=tuple(rows))
    return (table, Line(f"  {kinds}.", Style.QUIET), *_sources(plan))


def _sources(plan: ServePlan) -> tuple[Block, ...]:
    """Return how much of each pool's steps is measured; nothing where the GPUs were not."""
    said = {"step": "a step of running answers", "prompt": "a step with a prompt"}
    return tuple(
        Line(f"  {entry.pool.name}, {said[name]}: {sources_in_words(of_step)}.")
        for entry in plan.pools
        for name, of_step in (entry.source_fractions or {}).items()
    )


def _milliseconds(entry: PlannedPool, name: str) -> str:
    return milliseconds(entry.step_seconds[name]) if name in entry.step_seconds else "-"


def _memory(plan: ServePlan) -> tuple[Block, ...]:
    names: list[str] = []
    for entry in plan.pools:
        names += [item.name for item in entry.memory if item.name not in names]
    rows = [
        (
            name,
            *(gib(sum(item.num_bytes for item in entry.memory if item.name == name)) for entry in plan.pools),
        )
        for name in names
    ]
    rows.append(("cache", *(gib(entry.cache_bytes) for entry in plan.pools)))
    rows.append(("taken of the GPU", *(gib(entry.memory_limit_bytes) for entry in plan.pools)))
    rows.append(("tokens in the cache", *(count(entry.cache_tokens) for entry in plan.pools)))
    heads = [f">{entry.pool.name}" for entry in plan.pools]
    return (Table(columns=columns("what", *heads), rows=tuple(rows)),)


def _experts(plan: ServePlan) -> tuple[Block, ...]:
    """Return the load of experts, where it is known how tokens choose them."""
    return tuple(Item(f"{entry.pool.name}: {text}") for entry in plan.pools for text in entry.of_experts or ())


def _ways(plan: ServePlan) -> tuple[Block, ...]:
    priced = all(entry.price_per_hour is not None for entry in plan.compositions)
    rows = tuple(
        (
            entry.name,
            entry.words,
            str(entry.num_gpus),
            *((f"{entry.price_per_hour:,.2f}",) if priced else ()),
            _rate(entry.requests_per_second),
        )
        for entry in plan.compositions
    )
    heads = ("way", "engines", ">GPUs", *((">an hour",) if priced else ()), ">bears req/s")
    return (Table(columns=columns(*heads), rows=rows),)


def _ranked(plan: ServePlan) -> tuple[Block, ...]:
    rows = tuple(
        (
            entry.words,
            entry.gpu,
            str(entry.max_num_seqs),
            _rate(entry.requests_per_second),
            f"{entry.tokens_per_second_per_gpu:,.0f}",
            milliseconds(entry.ttft_seconds),
            milliseconds(entry.tpot_seconds),
            "simulated" if entry.simulated else "closed form",
        )
        for entry in plan.engines
    )
    head = columns(
        "engine", "GPU", ">seqs", ">req/s", ">tok/s/GPU", ">TTFT", ">TPOT", "by", whole=["by"], spare=["seqs", "GPU"]
    )
    return (Table(columns=head, rows=rows),)


def _pareto(plan: ServePlan) -> tuple[Block, ...]:
    rows = tuple(
        (
            f"{point.tokens_per_second_per_user:,.1f}",
            f"{point.tokens_per_second_per_gpu:,.1f}",
            str(point.batch),
            point.words,
        )
        for point in plan.pareto
    )
    head = columns(">tok/s/user", ">tok/s/GPU", ">batch", "engines", whole=["engines"])
    return (Table(columns=head, rows=rows),)


def _in_the_way(found: ServeInfeasible) -> tuple[Block, ...]:
    blocks: list[Block] = [Line(f"Binding: {found.binding}.")]
    if found.nearest:
        values = ", ".join(
            f"{_value(name, value)} are missing on a GPU" if name == "memory" else f"{name} {_value(name, value)}"
            for name, value in found.nearest_values.items()
        )
        blocks.append(Line(f"Nearest: {found.nearest}{f': {values}' if values else ''}."))
    return tuple(blocks)


def _moves(found: ServeInfeasible) -> tuple[Block, ...]:
    rows = tuple(
        (
            move.target,
            _value(move.target, move.given),
            "-" if move.needed is None else _value(move.target, move.needed),
            _value(move.target, move.together),
        )
        for move in found.moves
    )
    return (Table(columns=columns("target", ">asked for", ">alone would do", ">nearest plan"), rows=rows),)


def _value(name: str, value: float) -> str:
    if name == "memory":
        return gib(value)
    if name == "num_gpus":
        return f"{value:,.0f} GPUs"
    if name in {"ttft", "tpot", "e2e"}:
        return milliseconds(value)
    unit = {"requests_per_second": "/s", "max_watts": " W", "max_price_per_hour": " an hour"}.get(name, "")
    if name == "requests_per_second":
        return f"{_rate(value)}{unit}"
    return f"{value:,.2f}{unit}" if unit else f"{value:,.0f}"


def _search(plan: ServePlan) -> tuple[Block, ...]:
    found = plan.search
    pairs = (
        ("shapes", f"{found.considered:,} considered, {found.legal:,} legal and fitting"),
        ("priced", f"{found.priced:,} engines with a budget and a role, in closed form"),
        ("simulated", f"{found.simulated:,} of {found.options:,} options of the composition ({found.solver})"),
    )
    pruned = tuple((reason, count(number)) for reason, number in found.pruned.items())
    table = Table(columns=columns("left out because", ">how many"), rows=pruned)
    return (Facts(pairs=pairs), table)
