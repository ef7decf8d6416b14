"""Laws of what tokens cost to see one another over ranks, and of who sends anything at all."""

from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.models.graph import CoreAttention, Operator, Region, StateScan
from planner.ranks.shard import RankOperator
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step, Term
from planner.requests.workload import DType
from profiles.ops import Attention, Collective, CollectiveKind
from profiles.ops import StateScan as ScanKernel
from tests.examples import examples
from tests.kinds import (
    MICRO_BATCH_SIZE,
    every_model,
    graph_of,
    is_legal,
    mixes_tokens,
    sharded_models,
    steps_of,
    unsharded,
)

LAWS = settings(max_examples=80, deadline=None)
NAMES = tuple(model.name for model in every_model())
POWERS = st.sampled_from((1, 2, 4, 8))


@st.composite
def attentions(draw: st.DrawFn) -> CoreAttention:
    """Return attention whose heads split over up to 64 ranks."""
    return CoreAttention(
        num_heads=draw(st.sampled_from((64, 128))),
        num_kv_heads=64,
        qk_head_dim=draw(st.sampled_from((64, 192))),
        v_head_dim=draw(st.sampled_from((64, 128))),
        pairs=draw(st.integers(1, 10**9)),
        dtype=DType.BF16,
        fused=True,
    )


@st.composite
def recurrences(draw: st.DrawFn) -> StateScan:
    """Return a recurrence whose heads split over up to 64 ranks."""
    heads = draw(st.sampled_from((64, 128)))
    return StateScan(
        num_heads=heads,
        num_groups=draw(st.sampled_from((8, 64))),
        key_dim=draw(st.sampled_from((64, 128))),
        value_dim=draw(st.sampled_from((64, 128))),
        chunk_size=64,
        corrects=draw(st.booleans()),
        in_features=64 * draw(st.integers(4, 40)),
        dtype=DType.BF16,
    )


def cut(*, tp: int, cp: int, seq_len: int, ulysses: int = 1, state_exchange: bool = False) -> Sharding:
    return replace(
        unsharded(seq_len=seq_len),
        tp=tp,
        sequence_parallel=tp > 1,
        cp=cp,
        ulysses=ulysses,
        state_exchange=state_exchange,
    )


def passes(work: CoreAttention | StateScan, sharding: Sharding) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Return what one rank runs for `work`, forward and backward."""
    part = RankOperator(operator=Operator(name="mixer", work=work), sharding=sharding)
    return part.forward, part.backward


def sent(steps: tuple[Step, ...], kind: CollectiveKind) -> list[tuple[Collective, int]]:
    """Return the collectives of one kind with how often each runs."""
    return [
        (step.collective, step.repeats)
        for step in steps
        if step.collective is not None and step.collective.kind is kind
    ]


@LAWS
@given(work=attentions(), tp=POWERS, ulysses=st.sampled_from((2, 4)), factor=st.sampled_from((2, 4)))
def test_ulysses_exchanges_as_much_a_rank_when_sequence_and_ranks_grow_together(
    work: CoreAttention, tp: int, ulysses: int, factor: int
) -> None:
    assume(tp * ulysses * factor <= work.num_kv_heads)
    few = cut(tp=tp, cp=ulysses, ulysses=ulysses, seq_len=8192)
    many = replace(few, cp=factor * ulysses, ulysses=factor * ulysses, seq_len=factor * 8192)
    for before, after in zip(passes(work, few), passes(work, many), strict=True):
        exchanged = sent(before, CollectiveKind.ALL_TO_ALL)
        grown = sent(after, CollectiveKind.ALL_TO_ALL)
        assert len(exchanged) == len(grown) == 2, "heads are exchanged for tokens, and back"
        assert [part.buffer_bytes for part, _ in exchanged] == [part.buffer_bytes for part, _ in grown]
        assert {(part.size, part.stride) for part, _ in grown} == {(factor * ulysses, tp)}


@LAWS
@given(work=attentions(), tp=POWERS, ring=st.sampled_from((2, 4, 8)))
def test_a_ring_passes_every_other_ranks_keys_and_values_and_twice_that_backward(
    work: CoreAttention, tp: int, ring: int
) -> None:
    seq_len = 8192
    sharding = cut(tp=tp, cp=ring, seq_len=seq_len)
    heads = work.num_kv_heads // tp
    everything = MICRO_BATCH_SIZE * seq_len * heads * (work.qk_head_dim + work.v_head_dim) * 2
    for steps, tensors in zip(passes(work, sharding), (1, 2), strict=True):
        ((hop, repeats),) = sent(steps, CollectiveKind.SEND_RECV)
        assert repeats == ring - 1
        assert ring * repeats * hop.buffer_bytes == tensors * (ring - 1) * everything
        assert (hop.size, hop.stride, hop.first_rank) == (ring, tp, None), "the worst ring of all is priced"
        assert not sent(steps, CollectiveKind.ALL_TO_ALL)


@LAWS
@given(work=attentions(), tp=POWERS, ring=st.sampled_from((2, 4)), factor=st.sampled_from((2, 4)))
def test_a_ring_passes_more_as_the_sequence_grows_however_many_ranks_share_it(
    work: CoreAttention, tp: int, ring: int, factor: int
) -> None:
    def passed(sharding: Sharding) -> int:
        forward, _ = passes(work, sharding)
        ((hop, repeats),) = sent(forward, CollectiveKind.SEND_RECV)
        return hop.buffer_bytes * repeats

    few = cut(tp=tp, cp=ring, seq_len=8192)
    assert passed(replace(few, seq_len=factor * 8192)) == factor * passed(few)
    grown = replace(few, cp=factor * ring, seq_len=factor * 8192)
    assert passed(grown) > factor * passed(few), "with more ranks a rank passes a larger part of all keys and values"


@LAWS
@given(work=attentions(), tp=st.sampled_from((1, 2, 4)), ulysses=st.sampled_from((2, 4)), ring=st.sampled_from((2, 4)))
def test_in_two_dimensions_neighbours_exchange_heads_and_rings_connect_those_further_apart(
    work: CoreAttention, tp: int, ulysses: int, ring: int
) -> None:
    seq_len = 8192
    both = cut(tp=tp, cp=ulysses * ring, ulysses=ulysses, seq_len=seq_len)
    (forward, _), (of_ring, _) = passes(work, both), passes(work, cut(tp=tp * ulysses, cp=ring, seq_len=seq_len))
    assert {(part.size, part.stride) for part, _ in sent(forward, CollectiveKind.ALL_TO_ALL)} == {(ulysses, tp)}
    # Behind the exchange a rank is one of a ring whose heads are split over tp times ulysses.
    assert sent(forward, CollectiveKind.SEND_RECV) == sent(of_ring, CollectiveKind.SEND_RECV)
    kernels = [step.compute for step in forward if isinstance(step.compute, Attention)]
    assert kernels == [step.compute for step in of_ring if isinstance(step.compute, Attention)]
    assert kernels[0].num_heads == work.num_heads // (tp * ulysses)
    assert kernels[0].query_len == seq_len // ring


@LAWS
@given(work=recurrences(), tp=st.sampled_from((1, 2, 4)), cp=st.sampled_from((2, 4, 8)), factor=st.sampled_from((2, 4)))
def test_exchanged_states_do_not_grow_with_the_sequence_and_exchanged_heads_do(
    work: StateScan, tp: int, cp: int, factor: int
) -> None:
    states = cut(tp=tp, cp=cp, seq_len=8192, state_exchange=True)
    heads = replace(states, state_exchange=False)
    for direction in (0, 1):
        ((short, _),) = sent(passes(work, states)[direction], CollectiveKind.ALL_GATHER)
        ((long, _),) = sent(passes(work, replace(states, seq_len=factor * 8192))[direction], CollectiveKind.ALL_GATHER)
        assert short == long
        one_state = 4 * work.key_dim * work.value_dim
        assert short.buffer_bytes == cp * MICRO_BATCH_SIZE * work.num_heads // tp * one_state
        assert not sent(passes(work, states)[direction], CollectiveKind.ALL_TO_ALL)

        few = sent(passes(work, heads)[direction], CollectiveKind.ALL_TO_ALL)
        more = sent(passes(work, replace(heads, seq_len=factor * 8192))[direction], CollectiveKind.ALL_TO_ALL)
        assert [factor * part.buffer_bytes for part, _ in few] == [part.buffer_bytes for part, _ in more]
        assert {(part.size, part.stride) for part, _ in few} == {(cp, tp)}
        entering, leaving = work.in_features, work.num_heads * work.value_dim
        assert sum(part.buffer_bytes for part, _ in few) == heads.tokens * (entering + leaving) // tp * 2


@LAWS
@given(work=recurrences(), cp=st.sampled_from((2, 4, 8)))
def test_both_ways_over_cp_a_rank_does_its_share_of_a_recurrence(work: StateScan, cp: int) -> None:
    def kernel(sharding: Sharding) -> ScanKernel:
        (found,) = (step.compute for step in passes(work, sharding)[0] if isinstance(step.compute, ScanKernel))
        return found

    alone = kernel(cut(tp=1, cp=1, seq_len=8192))
    by_state = kernel(cut(tp=1, cp=cp, seq_len=8192, state_exchange=True))
    by_heads = kernel(cut(tp=1, cp=cp, seq_len=8192))
    assert (by_state.tokens, by_state.num_heads) == (alone.tokens // cp, alone.num_heads)
    assert (by_heads.tokens, by_heads.num_heads) == (alone.tokens, alone.num_heads // cp)
    assert cp * by_state.flops == alone.flops <= cp * by_heads.flops


def collective_terms(steps: tuple[Step, ...]) -> set[Term]:
    """Return on what behalf anything is sent."""
    assert all(step.collective is None or step.collective.size > 1 for step in steps), "a group of one sends nothing"
    return {step.collective_term for step in steps if step.collective is not None}


def expected_terms(name: str, sharding: Sharding, *, layer: int) -> set[Term]:
    """Return the kinds of collectives that a layer must run."""
    graph = graph_of(name).layers[layer]
    routed = any(saved.region is Region.ROUTED for operator in graph.operators for saved in operator.saved)
    return {
        term
        for term, present in (
            (Term.TENSOR_PARALLEL, sharding.tp > 1),
            (Term.CONTEXT_PARALLEL, sharding.cp > 1 and mixes_tokens(graph)),
            (Term.EXPERT_PARALLEL, sharding.ep * sharding.etp > 1 and routed),
        )
        if present
    }


@settings(max_examples=examples(few=50, many=120), deadline=None)
@given(drawn=sharded_models(NAMES))
def test_a_degree_at_one_removes_exactly_its_own_collectives(drawn: tuple[str, Sharding]) -> None:
    name, sharding = drawn
    for fewer in (
        sharding,
        replace(sharding, tp=1, sequence_parallel=False),
        replace(sharding, cp=1, ulysses=1, state_exchange=False),
        replace(sharding, ep=1, etp=1),
    ):
        assert is_legal(graph_of(name), fewer), f"{name}: {fewer} is no longer legal"
        for index, layer in enumerate(graph_of(name).layers):
            found = collective_terms(steps_of(layer, fewer))
            assert found == expected_terms(name, fewer, layer=index), f"{name}: {layer.name} under {fewer}"
