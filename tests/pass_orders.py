"""Whether an order of passes is one: every pass is there once, on the rank of its stage."""

from planner.schedules.passes import PassKind, PassOrder


def check_complete(order: PassOrder) -> None:
    """Check that every micro-batch passes every stage of its chain once each way, on the stage's rank.

    Raises:
        ValueError: A pass is missing, or there twice, or on another rank.
    """
    seen: dict[tuple[int, int], list[PassKind]] = {}
    for rank in range(order.pp):
        for entry in order.passes(rank):
            if order.rank_of_stage_V[entry.stage] != rank:
                raise ValueError(f"{order.name}: stage {entry.stage} runs on rank {rank}, not on its own")
            seen.setdefault((entry.stage, entry.microbatch), []).append(entry.kind)
    whole = [PassKind.FORWARD, PassKind.BACKWARD]
    split = [PassKind.FORWARD, PassKind.INPUT_GRADIENT, PassKind.WEIGHT_GRADIENT]
    first = 0
    wanted: set[tuple[int, int]] = set()
    for chain, count in zip(order.chains, order.microbatches_of_chain, strict=True):
        wanted |= {(stage, microbatch) for stage in chain for microbatch in range(first, first + count)}
        first += count
    for key in sorted(wanted | set(seen)):
        if key not in wanted or seen.get(key, []) not in (whole, split):
            stage, microbatch = key
            raise ValueError(f"{order.name}: stage {stage} and micro-batch {microbatch} have {seen.get(key, [])}")
