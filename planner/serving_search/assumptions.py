"""What the figures of a serving plan rest on, in sentences."""

from collections.abc import Iterable

from planner.frameworks.profile_remarks import profile_remarks
from planner.requests.routing import Routing
from planner.serving.balancer import STEP_INTERVAL
from planner.serving.engines import calibration
from planner.serving.formats import formats_of
from planner.serving_plans.request import Arrivals, ServeRequest, Splits
from planner.serving_search.candidates import Ground
from planner.serving_search.field import ENGINE, Field
from planner.serving_search.simulated import TRACED
from profiles.uses import Use


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


def assumptions_of(request: ServeRequest, field: Field) -> tuple[str, ...]:
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
