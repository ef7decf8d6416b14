"""vLLM: an engine held against the lock of the serving plan that it was written from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import Location
from planner.readers.flag_tables import Framework
from planner.rules.rule import Found, FoundAt, Rule, Severity, rule
from planner.units import GIB

if TYPE_CHECKING:
    from planner.serving_search.held import HeldEngine

SOURCE = "planner/serving_search/held.py, on the plan that `plan --out` wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldServer:
    """An engine and what changed in it since its plan was locked.

    Args:
        place: Where it is started.
        pool: The pool that it is of.
        settings: What it is told otherwise: locked, and told.
        engine: Its memory and its requests; None where it is told nothing else.
        targets: The targets, in words.
    """

    place: Location
    pool: str
    settings: Mapping[str, tuple[str, str]]
    engine: "HeldEngine | None"
    targets: str


@rule(
    id="LCK006",
    name="targets-missed",
    framework=Framework.VLLM,
    prevents="a server that misses the targets which the plan kept, at the planned load",
    found_at=FoundAt.UNNOTICED,
    source=SOURCE,
)
def targets_missed(run: HeldServer) -> Iterator[Found]:
    """At the locked load requests keep the targets, by simulation."""
    engine = run.engine
    if engine is None or engine.served is None or engine.keeps:
        return
    served = engine.served
    what = "waiting grows as long as requests come" if served.saturated else f"{served.attainment:.1%} keep all targets"
    yield Found(
        place=run.place,
        message=f"At the locked load of pool {run.pool} {what} ({run.targets}): TTFT {served.ttft.stated * 1e3:,.0f} "
        f"ms, TPOT {served.tpot.stated * 1e3:,.1f} ms.",
        hint="Take the change back, or plan again and commit the new lock.",
    )


@rule(
    id="LCK007",
    name="no-room-for-locked-requests",
    framework=Framework.VLLM,
    prevents="ValueError: No available memory for the cache blocks",
    found_at=FoundAt.BUILD,
    source=SOURCE,
)
def no_room(run: HeldServer) -> Iterator[Found]:
    """The weights, a step and the longest sequence fit into a GPU of the plan."""
    if run.engine is not None and run.engine.ledger.shortfall_bytes:
        lacking = run.engine.ledger.shortfall_bytes / GIB
        yield Found(
            place=run.place,
            message=f"A GPU of pool {run.pool} lacks {lacking:.2f} GiB for weights, a step and the longest sequence.",
            hint="Take the change back, or plan again.",
        )


@rule(
    id="LCK008",
    name="other-engine",
    framework=Framework.VLLM,
    severity=Severity.NOTE,
    prevents="an engine that nobody planned",
    found_at=FoundAt.UNNOTICED,
    source=SOURCE,
)
def other_engine(run: HeldServer) -> Iterator[Found]:
    """The engine is the one that was locked."""
    if run.settings:
        words = ", ".join(f"{name} {told} (locked: {locked})" for name, (locked, told) in run.settings.items())
        yield Found(
            place=run.place,
            message=f"The engine is not the locked one of pool {run.pool}: {words}.",
            hint="Plan again, or keep it.",
        )


RULES: tuple[Rule[HeldServer], ...] = (targets_missed, no_room, other_engine)
