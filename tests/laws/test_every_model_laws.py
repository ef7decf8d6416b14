"""What the ranks of a stage hold and do adds up to the whole model, plus what is declared to be there more than once.

Checked for every bundled model and every legal way to cut it over tp, sequences, cp with each of its splits, ep and
etp. All ranks of a stage work alike, so what one does, times their number, is what all do. `replicas` of them read
other sequences; everything is counted against that many micro-batches.
"""

import pytest
from hypothesis import given, settings

from planner.frameworks.capabilities import ANY
from planner.models.graph import (
    CoreAttention,
    ExpertLinear,
    LayerGraph,
    Linear,
    Mesh,
    Operator,
    Parallel,
    Region,
    StateScan,
)
from planner.models.required_flops import layer_flops
from planner.ranks.shard import RankOperator, RankSaved, Sharder, shard_layer
from planner.ranks.sharding import Sharding, padded_vocab_size
from planner.ranks.step import Step
from planner.requests.workload import Precision
from planner.search.space.dimensions import recompute_choices
from profiles.ops import Attention, Gemm
from profiles.ops import StateScan as ScanKernel
from tests.kinds import (
    MICRO_BATCH_SIZE,
    SEQ_LEN,
    even_workload,
    every_model,
    graph_of,
    model_cases,
    replicas,
    sharded_models,
    shardings_of,
    unsharded,
)

NAMES = tuple(model.name for model in every_model())


def where(layer: LayerGraph, name: str, sharding: Sharding) -> str:
    """Return what a law failed for, in words."""
    return f"{layer.name}: {name} under {sharding}"


@pytest.mark.parametrize("name", model_cases())
def test_the_ranks_of_a_stage_hold_every_weight_once_and_its_declared_copies(name: str) -> None:
    graph = graph_of(name)
    for sharding in shardings_of(name):
        dp = replicas(sharding)
        ranks = sharding.tp * sharding.cp * dp
        edp = ranks // (sharding.ep * sharding.etp)
        assert sharding.tp * sharding.cp * dp == sharding.etp * sharding.ep * edp
        for layer in graph.layers:
            for part in shard_layer(layer, sharding).weights:
                weight = part.weight
                whole = weight.num_elements
                if weight.vocab_dim is not None:
                    rows = weight.shape[weight.vocab_dim]
                    whole = whole // rows * padded_vocab_size(rows, sharding.tp)
                if weight.mesh is Mesh.EXPERT:
                    copies = edp * (1 if weight.split_dim is not None else sharding.etp)
                else:
                    copies = sharding.cp * dp * (1 if weight.split_dim is not None else sharding.tp)
                assert ranks * part.num_elements == copies * whole, where(layer, weight.name, sharding)


def flops_of(steps: tuple[Step, ...]) -> int:
    """Return the flops of every kernel but the memory-bound."""
    return sum(step.compute.flops for step in steps if isinstance(step.compute, Gemm | Attention | ScanKernel))


def filling_flops(operator: Operator, steps: tuple[Step, ...], sharding: Sharding) -> int:
    """Return the flops of a rank that only fill up: rows of its experts, and pairs that a ring cannot split evenly."""
    work = operator.work
    filling = 0
    for kernel in (step.compute for step in steps):
        if isinstance(work, ExpertLinear) and isinstance(kernel, Gemm):
            rows = kernel.k if kernel.accumulate else kernel.m
            surplus = kernel.batch * rows - sharding.expert_rows(work.visits)
            assert 0 <= surplus < kernel.batch, f"{surplus} rows fill up {kernel.batch} experts"
            filling += kernel.flops // (kernel.batch * rows) * surplus
        elif isinstance(work, CoreAttention) and isinstance(kernel, Attention):
            surplus = kernel.pairs * sharding.ring - work.pairs
            assert 0 <= surplus < sharding.ring, f"{surplus} pairs fill up a ring of {sharding.ring}"
            filling += kernel.flops // (kernel.pairs * sharding.ring) * surplus if surplus else 0
    return filling


def repeated_flops(operator: Operator, alone: tuple[Step, ...], sharding: Sharding) -> int:
    """Return what the tp times cp ranks of one micro-batch do together beyond what one rank alone would."""
    work, tp = operator.work, sharding.tp
    if isinstance(work, Linear) and work.parallel is Parallel.REPLICATED:
        return 0 if sharding.sequence_parallel else (tp - 1) * flops_of(alone)
    if isinstance(work, Linear) and work.vocab_output:
        rows = padded_vocab_size(work.out_features, 1)
        return flops_of(alone) // rows * (padded_vocab_size(work.out_features, tp) - rows)
    if isinstance(work, StateScan):
        # Where there are fewer groups than ranks, each rank computes the scores of a whole one.
        ranks = tp * (1 if sharding.state_exchange else sharding.cp)
        scores = 2 * MICRO_BATCH_SIZE * SEQ_LEN * work.chunk_size * work.key_dim * max(ranks - work.num_groups, 0)
        return sum(
            scores * (3 if step.compute.backward else 1) for step in alone if isinstance(step.compute, ScanKernel)
        )
    if isinstance(work, CoreAttention):
        # Each rank has at least one head.
        heads = max(tp * sharding.ulysses - work.num_heads, 0)
        return flops_of(alone) // work.num_heads * heads
    return 0


@pytest.mark.parametrize("name", model_cases())
def test_the_flops_of_all_ranks_sum_to_the_unsharded_ones_and_the_repeated(name: str) -> None:
    for sharding in shardings_of(name):
        dp = replicas(sharding)
        ranks = sharding.tp * sharding.cp * dp
        for layer in graph_of(name).layers:
            for operator in layer.operators:
                alone = RankOperator(operator=operator, sharding=unsharded())
                part = RankOperator(operator=operator, sharding=sharding)
                for one, many in ((alone.forward, part.forward), (alone.backward, part.backward)):
                    whole = flops_of(one) - filling_flops(operator, one, unsharded())
                    done = flops_of(many) - filling_flops(operator, many, sharding)
                    expected = dp * (whole + repeated_flops(operator, one, sharding))
                    assert ranks * done == expected, where(layer, operator.name, sharding)


@pytest.mark.parametrize("name", model_cases())
def test_an_unsharded_layer_does_the_products_that_the_model_requires(name: str) -> None:
    for layer in graph_of(name).layers:
        for operator in layer.operators:
            alone = RankOperator(operator=operator, sharding=unsharded())
            done = sum(
                flops_of(steps) - filling_flops(operator, steps, unsharded())
                for steps in (alone.forward, alone.backward)
            )
            work = operator.work
            required = MICRO_BATCH_SIZE * layer_flops(
                LayerGraph(name="", operators=(operator,), layer_input=None), SEQ_LEN
            )
            if isinstance(work, CoreAttention):
                # A fused kernel computes the scores again in backward.
                required += MICRO_BATCH_SIZE * 2 * work.pairs * work.num_heads * work.qk_head_dim
            elif isinstance(work, Linear) and work.vocab_output:
                required = required // work.out_features * padded_vocab_size(work.out_features, 1)
            elif isinstance(work, StateScan):
                assert done > required, where(layer, operator.name, unsharded())  # a chunk multiplies more out
                continue
            assert done == required, where(layer, operator.name, unsharded())


def copies_of_saved(layer: LayerGraph, part: RankSaved, sharding: Sharding) -> int:
    """Return on how many of the ranks that share a micro-batch each element of a saved tensor is."""
    saved = part.saved
    match saved.region:
        case Region.RESIDUAL:
            return 1 if sharding.sequence_parallel else sharding.tp
        case Region.SHARDED:
            # A rank keeps at least one key/value head.
            granules = saved.features // saved.granule
            return max(sharding.tp // granules, 1) if saved.granule > 1 else 1
        case Region.ROUTED:
            return sharding.etp
        case Region.EXPERT:
            return 1


def saved_whole(part: RankSaved, sharding: Sharding) -> int:
    """Return the bytes of a saved tensor of one micro-batch, vocabulary padding included."""
    saved = part.saved
    features = padded_vocab_size(saved.features, sharding.tp) if saved.vocab_features else saved.features
    return MICRO_BATCH_SIZE * SEQ_LEN * saved.visits * features * saved.element_bytes


@pytest.mark.parametrize("name", model_cases())
def test_what_all_ranks_keep_sums_to_what_is_kept_unsharded_and_declared_copies(name: str) -> None:
    for sharding in shardings_of(name):
        dp = replicas(sharding)
        ranks = sharding.tp * sharding.cp * dp
        for layer in graph_of(name).layers:
            rank = shard_layer(layer, sharding)
            for part in rank.saved:
                expected = dp * copies_of_saved(layer, part, sharding) * saved_whole(part, sharding)
                assert ranks * part.num_bytes == expected, where(layer, part.saved.name, sharding)
            if layer.layer_input is not None:
                stream = RankSaved(saved=layer.layer_input, num_bytes=rank.layer_input_bytes)
                expected = dp * copies_of_saved(layer, stream, sharding) * saved_whole(stream, sharding)
                assert ranks * stream.num_bytes == expected, where(layer, "layer input", sharding)


SCALES = {Precision.FP8_BLOCKWISE: (128, 4), Precision.FP8_MXFP8: (32, 1)}
"""Elements that share a scale, and its bytes, by recipe; the others have one for a tensor."""


@pytest.mark.parametrize("precision", [precision for precision in Precision if precision.is_fp8])
def test_every_rank_keeps_a_scale_for_each_block_of_what_it_keeps_in_fp8(precision: Precision) -> None:
    found = 0
    for name in NAMES:
        for sharding in shardings_of(name)[::9]:
            for layer in graph_of(name, precision).layers:
                kept = {part.saved.name: part for part in shard_layer(layer, sharding).saved}
                for copy, scales in ((kept[name], kept.get(f"{name} scales")) for name in kept if "scales" not in name):
                    if copy.saved.element_bytes != 1 or precision not in SCALES or "mask" in copy.saved.name:
                        assert scales is None, where(layer, copy.saved.name, sharding)
                        continue
                    assert scales is not None, where(layer, copy.saved.name, sharding)
                    elements, scale_bytes = SCALES[precision]
                    # Every row is a token's, and its features on this rank are cut into blocks.
                    ranks = {Region.SHARDED: sharding.tp, Region.EXPERT: sharding.etp}.get(copy.saved.region, 1)
                    features = copy.saved.features // ranks
                    rows = copy.num_bytes // features
                    expected = rows * -(-features // elements) * scale_bytes
                    assert scales.num_bytes == expected, where(layer, scales.saved.name, sharding)
                    found += 1
    assert (found > 0) == (precision in SCALES)


SUMS = ("trainable", "frozen", "gemm_operands", "transient_bytes", "all_saved_bytes", "layer_input_bytes")


@settings(max_examples=60, deadline=None)
@given(drawn=sharded_models(NAMES))
def test_layers_cut_by_what_they_feel_are_cut_alike(drawn: tuple[str, Sharding]) -> None:
    name, sharding = drawn
    sharder = Sharder()
    for layer in graph_of(name).layers:
        whole, felt = shard_layer(layer, sharding), sharder.layer(layer, sharding)
        shared = {part.operator.name: part for part in felt.operators}
        assert len(felt.operators) == len(shared) == len(whole.operators)
        for part in whole.operators:
            for what in ("forward", "backward", "weights", "saved", "transient_bytes"):
                same = getattr(part, what) == getattr(shared[part.operator.name], what)
                assert same, where(layer, f"{what} of {part.operator.name}", sharding)
        for what in SUMS:
            assert getattr(whole, what) == getattr(felt, what), where(layer, what, sharding)
        for choice in recompute_choices(graph_of(name), even_workload(), ANY):
            if choice.is_per_layer:  # each layer has one of the others
                continue
            assert whole.saved_bytes(choice) == felt.saved_bytes(choice), where(layer, f"{choice}", sharding)
            again = {part.operator.name for part in whole.recomputed_operators(choice)}
            assert again == {part.operator.name for part in felt.recomputed_operators(choice)}
