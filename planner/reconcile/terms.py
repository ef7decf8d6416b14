"""Lays live blocks beside the terms of the ledger: by where they were asked for, else by their size.

A block's frames say what asked for it. The first rule that fits decides, from what is most special to what is least; in
a backward pass recomputed forward passes are temporaries of it. What no frame tells apart may be told by its size:
frameworks keep a term in one buffer, as large as the ledger says to within 1 %. The rest stays unassigned, and is
counted as that.

Context, libraries and communicators are no part of torch's allocator: a snapshot does not hold them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.memory.terms import FRAGMENTATION
from planner.plans.plan import MemoryLine, Phase
from planner.reconcile.snapshots import Block, Snapshot

WEIGHTS, GRADIENTS, MASTER, MOMENTS = "weights", "gradients", "master weights", "optimizer moments"
ACTIVATIONS, TEMPORARIES, LOSS = "activations", "backward temporaries", "logits and loss"
OUTSIDE = ("context and libraries", "communicators")
UNASSIGNED = "unassigned"
SAME_SIZE = 0.01
"""Part of a term's bytes by which a block that is told by its size may differ."""

SMALLEST_BUFFER = 1 << 20
"""Bytes of the smallest term that is told by its size."""

_RULES = (
    ("workspaces", re.compile(r"workspace")),
    ("pipeline buffers", re.compile(r"p2p_communication|pipeline_parallel/.*(recv|send)|:recv_(forward|backward)$")),
    (LOSS, re.compile(r":(?:\w*cross_entropy\w*|\w*log_softmax\w*|compute_\w*loss|loss_func|forward_step_calc_loss)$")),
    (GRADIENTS, re.compile(r"AccumulateGrad|grad_buffer.*:(?:allocate_grad|_make_grad)|:main_grad")),
    (MASTER, re.compile(r"optim.*:(?:_build_model_and_main_param_groups|_create_fp32_partitions|__init__)$")),
    (MOMENTS, re.compile(r"(?:optim|adam)[^:]*:(?:_init_group|init\w*state\w*|step|_?adam\w*|_multi_tensor_\w+)$")),
    (TEMPORARIES, re.compile(r":(?:backward|_engine_run_backward)$|autograd::Engine")),
    (ACTIVATIONS, re.compile(r":forward$")),
    (
        WEIGHTS,
        re.compile(
            r":(?:reset_parameters|_initialize_affine_weight\w*|to_empty|_apply|convert|cuda|build_model|__init__)$"
        ),
    ),
)
"""Frames of Megatron-LM, DeepSpeed and torch by term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermBeside:
    """One term.

    Args:
        term: Its name in the ledger, or that it is in none.
        planned_bytes: By the ledger; None for what no term says.
        found_bytes: In the snapshot; None for what a snapshot cannot hold.
        num_blocks: Blocks of it.
        by_size: They were told by their size.
    """

    term: str
    planned_bytes: int | None
    found_bytes: int | None
    num_blocks: int
    by_size: bool

    @property
    def difference_bytes(self) -> int | None:
        """Return found less planned, where both are known."""
        if self.planned_bytes is None or self.found_bytes is None:
            return None
        return self.found_bytes - self.planned_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """A snapshot beside one rank's ledger.

    Args:
        rank: The rank.
        phase: The phase of the ledger.
        at_peak: The blocks are those at the peak of a history.
        terms: The terms, in the ledger's order, what is unassigned last.
        most_wrong: The term whose difference is largest; empty where nothing differs.
        largest_unassigned: Where the largest of the unassigned blocks were asked for, with their bytes.
    """

    rank: int
    phase: Phase
    at_peak: bool
    terms: tuple[TermBeside, ...]
    most_wrong: str
    largest_unassigned: tuple[tuple[str, int], ...]


def term_of(block: Block) -> str:
    """Return the term that a block's frames name; empty where they name none."""
    return next((term for term, pattern in _RULES if any(pattern.search(frame) for frame in block.frames)), "")


def reconciled(snapshot: Snapshot, memory: Sequence[MemoryLine], *, rank: int, phase: Phase) -> Reconciled:
    """Return a snapshot beside the ledger of one rank in one phase."""
    planned = {line.term: line.num_bytes for line in memory if line.rank == rank and line.phase is phase}
    found: dict[str, list[Block]] = {}
    for block in snapshot.blocks:
        found.setdefault(term_of(block), []).append(block)
    unassigned = found.pop("", [])
    by_size = _by_size(planned, found, unassigned)
    for term, block in by_size.items():
        found[term] = [block]
        unassigned.remove(block)
    terms = [_beside(term, num_bytes, found, by_size) for term, num_bytes in planned.items()]
    terms += [_beside(term, None, found, by_size) for term in sorted(set(found) - set(planned))]
    if FRAGMENTATION in planned:
        live = sum(block.num_bytes for block in snapshot.blocks)
        lost = TermBeside(
            term=FRAGMENTATION,
            planned_bytes=planned[FRAGMENTATION],
            found_bytes=max(0, snapshot.reserved_bytes - live),
            num_blocks=0,
            by_size=False,
        )
        terms = [lost if entry.term == FRAGMENTATION else entry for entry in terms]
    rest = sum(block.num_bytes for block in unassigned)
    terms.append(
        TermBeside(term=UNASSIGNED, planned_bytes=None, found_bytes=rest, num_blocks=len(unassigned), by_size=False)
    )
    return Reconciled(
        rank=rank,
        phase=phase,
        at_peak=snapshot.at_peak,
        terms=tuple(terms),
        most_wrong=_most_wrong(terms[:-1]),
        largest_unassigned=_largest(unassigned),
    )


def _by_size(
    planned: Mapping[str, int], found: Mapping[str, Sequence[Block]], unassigned: Sequence[Block]
) -> dict[str, Block]:
    """Return for terms without blocks the one unassigned block that is as large; none where several are."""
    assigned: dict[str, Block] = {}
    for term, num_bytes in planned.items():
        if term in found or term in OUTSIDE or term == FRAGMENTATION or num_bytes < SMALLEST_BUFFER:
            continue
        alike = [block for block in unassigned if abs(block.num_bytes - num_bytes) <= SAME_SIZE * num_bytes]
        rivals = [
            other
            for other, other_bytes in planned.items()
            if other not in (term, *found, *OUTSIDE, FRAGMENTATION)
            and abs(other_bytes - num_bytes) <= SAME_SIZE * num_bytes
        ]
        if len(alike) == 1 and not rivals:
            assigned[term] = alike[0]
    return assigned


def _beside(
    term: str, planned_bytes: int | None, found: Mapping[str, Sequence[Block]], by_size: Mapping[str, Block]
) -> TermBeside:
    blocks = found.get(term, ())
    return TermBeside(
        term=term,
        planned_bytes=planned_bytes,
        found_bytes=None if term in OUTSIDE else sum(block.num_bytes for block in blocks),
        num_blocks=len(blocks),
        by_size=term in by_size,
    )


def _most_wrong(terms: Sequence[TermBeside]) -> str:
    differences = {
        entry.term: abs(entry.difference_bytes if entry.difference_bytes is not None else entry.found_bytes or 0)
        for entry in terms
    }
    worst = max(differences, key=lambda term: differences[term], default="")
    return worst if differences.get(worst) else ""


def _largest(blocks: Sequence[Block]) -> tuple[tuple[str, int], ...]:
    """Return where most of the unassigned bytes were asked for."""
    places: dict[str, int] = {}
    for block in blocks:
        place = next(
            (frame for frame in block.frames if frame.partition(":")[0].endswith(".py")), "no frames of Python"
        )
        places[place] = places.get(place, 0) + block.num_bytes
    return tuple(sorted(places.items(), key=lambda item: (-item[1], item[0]))[:3])
