"""A memory snapshot beside the ledger, as a table and as JSON."""

from cli.render import Block, Facts, Item, Line, Style, Table, columns, count, gib, section, signed_gib
from planner.reconcile.snapshots import Snapshot
from planner.reconcile.terms import OUTSIDE, UNASSIGNED, Reconciled, TermBeside


def reconciled_document(found: Reconciled, snapshot: Snapshot) -> dict[str, object]:
    """Return a snapshot beside the ledger as plain data."""
    return {
        "snapshot": snapshot.file,
        "rank": found.rank,
        "phase": found.phase.value,
        "at_peak": found.at_peak,
        "live_bytes": sum(block.num_bytes for block in snapshot.blocks),
        "reserved_bytes": snapshot.reserved_bytes,
        "most_wrong": found.most_wrong or None,
        "terms": [
            {
                "term": entry.term,
                "planned_bytes": entry.planned_bytes,
                "found_bytes": entry.found_bytes,
                "difference_bytes": entry.difference_bytes,
                "blocks": entry.num_blocks,
                "told_by": _told_by(entry) or None,
            }
            for entry in found.terms
        ],
        "largest_unassigned": [{"where": place, "bytes": num_bytes} for place, num_bytes in found.largest_unassigned],
    }


def reconciled_blocks(found: Reconciled, snapshot: Snapshot) -> tuple[Block, ...]:
    """Return what `reconcile` prints."""
    moment = "the peak of its history" if found.at_peak else "the moment it was taken (no history was recorded)"
    live = sum(block.num_bytes for block in snapshot.blocks)
    facts = Facts(
        pairs=(
            ("snapshot", f"{snapshot.file}, at {moment}"),
            ("ledger", f"rank {found.rank} in {found.phase.value}"),
            ("live", f"{gib(live)} in {count(len(snapshot.blocks))} blocks"),
            ("reserved", gib(snapshot.reserved_bytes)),
        )
    )
    rows = tuple(
        (
            entry.term,
            "" if entry.planned_bytes is None else gib(entry.planned_bytes),
            "" if entry.found_bytes is None else gib(entry.found_bytes),
            "" if entry.difference_bytes is None else signed_gib(entry.difference_bytes),
            count(entry.num_blocks) if entry.num_blocks else "",
            _told_by(entry),
        )
        for entry in found.terms
    )
    table = Table(columns=columns("term", ">ledger", ">snapshot", ">difference", ">blocks", "told by"), rows=rows)
    places = [Item(f"{gib(num_bytes)}: {place}") for place, num_bytes in found.largest_unassigned]
    verdict = f"Most wrong: {found.most_wrong}." if found.most_wrong else "Nothing differs."
    return (
        Line("Memory, found beside planned", Style.HEADING),
        facts,
        *section("Terms", table),
        Line(verdict, Style.BAD if found.most_wrong else Style.GOOD),
        *(section("Unassigned, by where it was asked for", *places) if places else ()),
    )


def _told_by(entry: TermBeside) -> str:
    if entry.term in OUTSIDE:
        return "not torch's"
    if entry.term == UNASSIGNED or not entry.num_blocks:
        return ""
    return "size" if entry.by_size else "frames"
