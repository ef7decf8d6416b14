"""Laws of the pairs that attention computes: masks hide pairs, packing hides more, padding hides none."""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.requests.workload import DocumentLengths, Packing, TrainWorkload, causal_pairs, chunk_pairs, window_pairs
from tests.kinds import even_workload

LAWS = settings(max_examples=150, deadline=None)
LENGTHS = st.integers(1, 1 << 20)


@st.composite
def documents(draw: st.DrawFn, *, seq_len: int, packing: Packing) -> DocumentLengths:
    """Return any few lengths of at most `seq_len` with any weights."""
    lengths = draw(st.lists(st.integers(1, seq_len), min_size=1, max_size=6, unique=True).map(sorted))
    counts = draw(st.lists(st.integers(1, 1000), min_size=len(lengths), max_size=len(lengths)))
    weights = tuple(count / sum(counts) for count in counts)
    return DocumentLengths(lengths=tuple(lengths), weights=weights, packing=packing)


@st.composite
def runs(draw: st.DrawFn, packing: Packing) -> TrainWorkload:
    """Return a run over documents that fill its sequences so."""
    seq_len = draw(st.integers(1, 1 << 20))
    return replace(even_workload(seq_len=seq_len), documents=draw(documents(seq_len=seq_len, packing=packing)))


def at_most(pairs: int, most: int) -> bool:
    """Return whether `pairs` is no larger than `most`, apart from the rounding up of a mean in floating point."""
    return pairs <= most * (1 + 1e-12) + 1


@LAWS
@given(length=LENGTHS, window=LENGTHS)
def test_a_window_lets_through_no_more_than_a_causal_mask_and_all_of_it_where_it_covers_the_sequence(
    length: int, window: int
) -> None:
    pairs = window_pairs(length, window)
    assert pairs <= causal_pairs(length)
    assert (pairs == causal_pairs(length)) == (window >= length)
    assert length <= pairs <= length * window
    assert pairs <= window_pairs(length, window + 1)


@LAWS
@given(length=st.integers(1, 200), reach=st.integers(1, 200))
def test_the_formulas_count_the_pairs_of_the_masks(length: int, reach: int) -> None:
    tokens = range(length)
    assert causal_pairs(length) == sum(token + 1 for token in tokens)
    assert window_pairs(length, reach) == sum(min(token + 1, reach) for token in tokens)
    assert chunk_pairs(length, reach) == sum(token % reach + 1 for token in tokens)


@LAWS
@given(length=LENGTHS, chunk=LENGTHS)
def test_chunks_let_through_no_more_than_a_window_of_their_size(length: int, chunk: int) -> None:
    pairs = chunk_pairs(length, chunk)
    assert pairs <= window_pairs(length, chunk)
    assert (pairs == causal_pairs(length)) == (chunk >= length)
    # Two sequences behind one another, cut between chunks, are two sequences.
    whole = math.ceil(length / chunk) * chunk
    assert chunk_pairs(whole + length, chunk) == chunk_pairs(whole, chunk) + pairs


@LAWS
@given(run=runs(Packing.PACKED), window=LENGTHS)
def test_packed_documents_need_no_more_pairs_than_one_document_a_sequence(run: TrainWorkload, window: int) -> None:
    whole = replace(run, documents=None)
    assert at_most(run.visible_pairs(), whole.visible_pairs())
    assert run.visible_pairs() >= run.seq_len, "a token sees itself at least"

    def reach(length: int) -> int:
        return window_pairs(length, window)

    assert at_most(run.visible_pairs(reach), whole.visible_pairs(reach))
    assert at_most(run.visible_pairs(reach), run.visible_pairs())


@LAWS
@given(run=runs(Packing.PACKED), parts=st.integers(1, 64))
def test_packed_documents_need_no_more_pairs_than_one_document_of_whole_chunks(run: TrainWorkload, parts: int) -> None:
    chunk = max(run.seq_len // parts, 1)
    run = replace(run, seq_len=run.seq_len // chunk * chunk, documents=None)
    fits = DocumentLengths(lengths=(chunk,), weights=(1.0,), packing=Packing.PACKED)

    def reach(length: int) -> int:
        return chunk_pairs(length, chunk)

    assert at_most(replace(run, documents=fits).visible_pairs(reach), run.visible_pairs(reach))
    assert at_most(run.visible_pairs(reach), replace(run, documents=fits).visible_pairs(reach))


@LAWS
@given(run=runs(Packing.PADDED))
def test_padding_is_computed_and_is_of_no_use(run: TrainWorkload) -> None:
    whole = replace(run, documents=None)
    assert run.documents is not None
    assert run.visible_pairs() == whole.visible_pairs()
    assert run.tokens_per_step == whole.tokens_per_step
    useful = run.documents.mean(float) / run.seq_len
    assert run.useful_fraction == useful
    assert 0 < useful <= 1 + 1e-12
    packed = replace(run, documents=replace(run.documents, packing=Packing.PACKED))
    assert packed.useful_fraction == whole.useful_fraction == 1.0
    assert math.isclose(run.useful_tokens_per_step, useful * run.tokens_per_step)


@LAWS
@given(seq_len=st.integers(1, 1 << 20), packing=st.sampled_from(Packing))
def test_documents_as_long_as_a_sequence_change_nothing(seq_len: int, packing: Packing) -> None:
    whole = even_workload(seq_len=seq_len)
    alike = DocumentLengths(lengths=(seq_len,), weights=(1.0,), packing=packing)
    run = replace(whole, documents=alike)
    # A mean in floating point, rounded up, may be a pair above the whole number that it stands for.
    assert 0 <= run.visible_pairs() - whole.visible_pairs() <= 1
    assert run.useful_fraction == 1.0
