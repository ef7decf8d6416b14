"""Plans of offloaded inference: what lies where, what each target reaches, and what more memory would gain."""

from cli.render import (
    Block,
    Facts,
    Item,
    Line,
    Style,
    Table,
    columns,
    counted,
    gib,
    percent,
    section,
    sources_in_words,
)
from planner.inference_offload.plan import OffloadPlan, Placed, TargetPlan
from planner.inference_offload.request import WORDS, Place, Target, Thing

NAMES = {Target.ANY: "everything", Target.VLLM: "vLLM", Target.DEEPSPEED: "DeepSpeed"}
PLACES = {Place.GPU: "GPU", Place.PEER: "peer GPUs", Place.HOST: "host", Place.DRIVE: "drive"}


LEAST_SECONDS = 0.1
"""Shorter times are written in ms."""

NOTHING_SECONDS = 5e-9
"""What two decimals of us show as nothing."""


def rate(tokens_per_second: float) -> str:
    """Return a throughput with three significant digits."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 1000 else f"{tokens_per_second:.3g}"


def seconds(value: float) -> str:
    """Return a time with three significant digits, or in whole seconds; below a tenth of one in ms, then in us."""
    if value < NOTHING_SECONDS:
        return "0 s"
    if value >= LEAST_SECONDS:
        return f"{value:,.0f} s" if value >= 1000 else f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= LEAST_SECONDS / 1e3 else f"{value * 1e6:.2f} us"


def offload_blocks(plan: OffloadPlan, target: Target) -> tuple[Block, ...]:
    """Return what `offload` prints."""
    request = plan.request
    chosen = plan.of(target)
    heading = Line(
        f"{plan.model.name}: prompts of {request.prompt_tokens:,} and answers of {request.output_tokens:,} tokens "
        f"on one {plan.cluster.device.name}",
        Style.HEADING,
    )
    return (
        heading,
        *((_nothing(plan, target),) if chosen is None else _chosen(plan, chosen)),
        *(section("What each runtime can be told", _targets(plan)) if plan.plans else ()),
        *section("What it lacks", *_lacks(target)),
        *(() if chosen is None else section("What one GiB more gains, if parts never waited", _gains(chosen))),
        *section("Assumptions", *(Item(text) for text in plan.assumptions)),
    )


def _nothing(plan: OffloadPlan, target: Target) -> Line:
    if plan.least_bytes:
        return Line(
            f"Nothing fits: the model and one sequence take {gib(plan.least_bytes)} more than all places have.",
            Style.BAD,
        )
    return Line(f"Nothing fits that {NAMES[target]} can be told: not even a batch of one sequence.", Style.BAD)


def _chosen(plan: OffloadPlan, chosen: TargetPlan) -> tuple[Block, ...]:
    sequences = chosen.batch_size * chosen.num_batches
    batches = counted(chosen.num_batches, "batch", "batches")
    pairs = [
        ("throughput", f"{rate(chosen.tokens_per_second)} tokens/s generated, prompts included, in a simulation"),
        ("block", f"{counted(sequences, 'sequence')}: {batches} of {chosen.batch_size}"),
        ("prompts", f"{seconds(chosen.prompt_seconds)}, busiest part: {chosen.longest('prompts').part}"),
        ("answers", f"{seconds(chosen.answer_seconds)} a token, busiest part: {chosen.longest('answers').part}"),
        ("without waits", f"{rate(chosen.unpaused_tokens_per_second)} tokens/s if the busiest part never waited"),
        (
            "bound",
            f"{rate(chosen.most_tokens_per_second)} tokens/s at most, of all blocks of the batch sizes looked at",
        ),
    ]
    pairs += [
        (f"GPU, {phase}", f"{sources_in_words(of_phase)} of its time")
        for phase, of_phase in (chosen.source_fractions or {}).items()
    ]
    if plan.streaming is not None and plan.model.has_experts:
        by = "host memory" if plan.streaming.by_memory else "the GPU"
        most = rate(plan.streaming.tokens_per_second)
        pairs.append(("streaming", f"{most} tokens/s at most where experts are brought once a pass, bound by {by}"))
    return (
        Facts(pairs=tuple(pairs)),
        *section("What lies where", _placed(chosen)),
        *section("How long each part works in a pass", _busy(chosen)),
        *section("Memory", _held(chosen)),
    )


def _thing(placed: Placed, chosen: TargetPlan) -> str:
    groups = {other.option.group for other in chosen.placed if other.option.thing is Thing.EXPERTS}
    name = str(placed.option.thing)
    if placed.option.thing is Thing.EXPERTS and len(groups) > 1:
        return f"{name}, group {placed.option.group + 1}"
    return name


def _placed(chosen: TargetPlan) -> Table:
    return Table(
        columns=columns("thing", "where", ">share", ">GiB"),
        rows=tuple(
            (_thing(each, chosen), each.option.use.words, percent(each.share), gib(each.num_bytes).removesuffix(" GiB"))
            for each in chosen.placed
        ),
    )


def _busy(chosen: TargetPlan) -> Table:
    parts = list(dict.fromkeys(busy.part for busy in chosen.busy))
    found = {(busy.phase, busy.part): busy.seconds for busy in chosen.busy}
    rows = [(part, found.get(("prompts", part), 0.0), found.get(("answers", part), 0.0)) for part in parts]
    return Table(
        columns=columns("part", ">prompts", ">answers"),
        rows=tuple((name, seconds(first), seconds(second)) for name, first, second in rows if first or second),
    )


def _held(chosen: TargetPlan) -> Table:
    return Table(
        columns=columns("place", ">held", ">room"),
        rows=tuple((held.name, gib(held.num_bytes), gib(held.room_bytes)) for held in chosen.held),
    )


def _targets(plan: OffloadPlan) -> Table:
    whole = plan.of(Target.ANY)
    rows = []
    for target in Target:
        found = plan.of(target)
        if found is None or whole is None:
            rows.append((NAMES[target], "nothing fits", "", "", ""))
            continue
        lost = "" if target is Target.ANY else percent(1 - found.tokens_per_second / whole.tokens_per_second)
        rows.append(
            (
                NAMES[target],
                rate(found.tokens_per_second),
                rate(found.most_tokens_per_second),
                f"{found.num_batches} x {found.batch_size}",
                lost,
            )
        )
    return Table(columns=columns("runtime", ">tokens/s", ">at most", ">batches", ">slower"), rows=tuple(rows))


def _lacks(target: Target) -> tuple[Block, ...]:
    if target is not Target.ANY:
        return tuple(Item(f"{NAMES[target]}: {text}") for text in WORDS[target].lacks)
    return (
        *(Item(f"vLLM: {text}") for text in WORDS[Target.VLLM].lacks),
        *(Item(f"DeepSpeed: {text}") for text in WORDS[Target.DEEPSPEED].lacks),
        Item("everything: no released runtime has all of it; FlexGen comes nearest for models like OPT"),
    )


def _gains(chosen: TargetPlan) -> Table:
    return Table(
        columns=columns("place", ">tokens/s", ">faster"),
        rows=tuple(
            (
                PLACES[gain.place],
                f"+{gain.tokens_per_second:.3g}",
                f"{gain.tokens_per_second / chosen.unpaused_tokens_per_second:.2%}",
            )
            for gain in chosen.gains
        ),
    )


def offload_document(plan: OffloadPlan) -> dict[str, object]:
    """Return the plan as JSON."""
    request = plan.request
    return {
        "schema": 1,
        "model": plan.model.name,
        "gpu": plan.cluster.device.name,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "plans": {found.target.value: _plan_document(found, request.prompt_tokens) for found in plan.plans},
        "streaming_bound": None
        if plan.streaming is None
        else {
            "tokens_per_second": plan.streaming.tokens_per_second,
            "bound_by": "host memory" if plan.streaming.by_memory else "gpu",
        },
        "missing_bytes": plan.least_bytes,
        "lacks": {target.value: list(WORDS[target].lacks) for target in Target},
        "assumptions": list(plan.assumptions),
    }


def _plan_document(found: TargetPlan, prompt_tokens: int) -> dict[str, object]:
    return {
        "tokens_per_second": found.tokens_per_second,
        "unpaused_tokens_per_second": found.unpaused_tokens_per_second,
        "most_tokens_per_second": found.most_tokens_per_second,
        "batch_size": found.batch_size,
        "num_batches": found.num_batches,
        "prompt_tokens_at_once": found.slice_tokens or found.batch_size * prompt_tokens,
        "prompt_seconds": found.prompt_seconds,
        "answer_seconds": found.answer_seconds,
        "placed": [
            {
                "thing": each.option.thing.value,
                "group": each.option.group,
                "place": each.option.use.place.value,
                "on_cpu": each.option.use.on_cpu,
                "share": each.share,
                "bytes": each.num_bytes,
            }
            for each in found.placed
        ],
        "busy": [{"phase": busy.phase, "part": busy.part, "seconds": busy.seconds} for busy in found.busy],
        "memory": [{"place": held.name, "bytes": held.num_bytes, "room_bytes": held.room_bytes} for held in found.held],
        "tokens_per_second_of_one_gib_more": {gain.place.value: gain.tokens_per_second for gain in found.gains},
        **({} if found.source_fractions is None else {"source_fractions": found.source_fractions}),
        "programmes": found.programmes,
        "search_stopped": found.stopped,
    }
