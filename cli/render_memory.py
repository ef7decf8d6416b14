"""A memory ledger: every rank in every phase, and the heaviest rank term by term."""

from collections.abc import Sequence

from cli.render import Block, Table, columns, gib, numbered, percent, section
from planner.plans.plan import HostMemory, MemoryLine, Phase
from planner.plans.rank_memory import RankMemory, heaviest_rank, memory_by_rank, peak_terms


def heaviest_in_words(heaviest: RankMemory) -> str:
    """Return a rank's peak and where it is: "65.21 GiB on rank 0 in forward-backward"."""
    return f"{gib(heaviest.peak_bytes)} on rank {heaviest.rank} in {heaviest.peak_phase.value}"


def memory_blocks(lines: Sequence[MemoryLine], *, limit_bytes: int | tuple[int, ...]) -> tuple[Block, ...]:
    """Return a ledger by rank and phase, and the terms of the heaviest rank."""
    ranks = memory_by_rank(lines, limit_bytes=limit_bytes)
    heaviest = heaviest_rank(ranks)
    return (
        *section("Memory by rank and phase", rank_table(ranks)),
        *section(f"Memory of rank {heaviest.rank} in {heaviest.peak_phase.value}", *peak_blocks(lines, heaviest)),
    )


def rank_table(ranks: Sequence[RankMemory]) -> Table:
    """Return every pipeline rank's memory in every phase, and what is left below the limit."""
    phases = tuple(phase for phase in Phase if any(phase in memory.phase_bytes for memory in ranks))
    return Table(
        columns=columns("from rank", *(f">{phase.value}" for phase in phases), ">left"),
        rows=tuple(
            (
                str(memory.rank),
                *(gib(memory.phase_bytes[phase]) if phase in memory.phase_bytes else "" for phase in phases),
                gib(memory.left_bytes),
            )
            for memory in ranks
        ),
    )


def peak_blocks(lines: Sequence[MemoryLine], heaviest: RankMemory) -> tuple[Block, ...]:
    """Return the ledger of one rank in its peak phase, with its sources below."""
    peak_bytes = heaviest.peak_bytes
    terms = peak_terms(lines, heaviest)
    sources = numbered([line.source for line in terms])
    table = Table(
        columns=columns("term", ">memory", ">share", "source"),
        rows=(
            *(
                (line.term, gib(line.num_bytes), percent(line.num_bytes / peak_bytes), mark)
                for line, mark in zip(terms, sources.marks, strict=True)
            ),
            ("peak", gib(peak_bytes), percent(1.0), ""),
        ),
    )
    return (table, *sources.notes)


def memory_document(lines: Sequence[MemoryLine], *, limit_bytes: int | tuple[int, ...]) -> dict[str, object]:
    """Return a ledger as JSON, in bytes."""
    ranks = memory_by_rank(lines, limit_bytes=limit_bytes)
    heaviest = heaviest_rank(ranks)
    return {
        "limit_bytes": heaviest.limit_bytes,
        "peak": {"rank": heaviest.rank, "phase": heaviest.peak_phase.value, "num_bytes": heaviest.peak_bytes},
        "ranks": [
            {
                "rank": memory.rank,
                "phase_bytes": {phase.value: num_bytes for phase, num_bytes in memory.phase_bytes.items()},
                "left_bytes": memory.left_bytes,
            }
            for memory in ranks
        ],
        "lines": [
            {
                "rank": line.rank,
                "phase": line.phase.value,
                "term": line.term,
                "num_bytes": line.num_bytes,
                "source": line.source,
            }
            for line in lines
        ],
    }


def host_blocks(hosted: HostMemory | None, *, what: str = "Host memory") -> tuple[Block, ...]:
    """Return the ledger of the node that keeps most, with its sources below; nothing where nothing is offloaded."""
    if hosted is None:
        return ()
    terms = sorted(hosted.lines, key=lambda line: (-line.num_bytes, line.term))
    sources = numbered([line.source for line in terms])
    table = Table(
        columns=columns("term", ">memory", ">share", "source"),
        rows=(
            *(
                (line.term, gib(line.num_bytes), percent(line.num_bytes / hosted.num_bytes), mark)
                for line, mark in zip(terms, sources.marks, strict=True)
            ),
            ("all", gib(hosted.num_bytes), percent(1.0), ""),
        ),
    )
    return section(f"{what} of the fullest node, of {gib(hosted.limit_bytes)}", table, *sources.notes)


def host_document(hosted: HostMemory | None) -> dict[str, object] | None:
    """Return that ledger as JSON, in bytes; None where nothing is offloaded."""
    if hosted is None:
        return None
    return {
        "num_bytes": hosted.num_bytes,
        "limit_bytes": hosted.limit_bytes,
        "lines": [{"term": line.term, "num_bytes": line.num_bytes, "source": line.source} for line in hosted.lines],
    }
