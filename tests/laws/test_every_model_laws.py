"""What the ranks of a stage hold and do adds up to the whole model, plus what is declared to be there more than once.

Checked for every bundled model and every legal way to cut it over tp, sequences, cp with each of its splits, ep and
etp. All ranks of a stage work alike, so what one does, times their number, is what all do. `replicas` of them read
other sequences; everything is counted against that many micro-batches.
"""

import math

import pytest
from hypothesis import given, settings

from planner.graph import (
    CoreAttention,
    ExpertLinear,
    LayerGraph,
    Linear,
    Mesh,
    Operator,
    Parallel,
    Region,
    StateScan,
    layer_flops,
)
from planner.shard import RankLayer, RankOperator, Sharder, shard_layer
from planner.sharding import Sharding, padded_vocab_size
from planner.steps import Step
from planner.workload import Precision
from profiles.ops import Attention, Gemm
from profiles.ops import StateScan as ScanKernel
from tests.kinds import (
    MICRO_BATCH_SIZE,
    SEQ_LEN,
    every_model,
    graph_of,
    replicas,
    sharded_models,
    shardings_of,
    unsharded,
)

NAMES = tuple(model.name for model in every_model())
ADAPTED_ATTENTION = ("key", "value", "key norm input", "value norm input")
"""Saved tensors of which a rank keeps at least one key/value head."""


def where(layer: LayerGraph, name: str, sharding: Sharding) -> str:
    """Return what a law failed for, in words."""
    return f"{layer.name}: {name} under {sharding}"


@pytest.mark.parametrize("name", NAMES)
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


def rounding(operator: Operator, steps: tuple[Step, ...], sharding: Sharding) -> int:
    """Return flops of one rank that only fill up: rows of its experts, and pairs that a ring cannot split evenly."""
    work = operator.work
    filled = 0
    for step in steps:
        kernel = step.compute
        if isinstance(work, ExpertLinear) and isinstance(kernel, Gemm):
            rows = kernel.k if kernel.accumulate else kernel.m
            surplus = kernel.batch * rows - sharding.expert_rows(work.visits)
            assert 0 <= surplus < kernel.batch or rows == 1, f"{surplus} surplus rows over {kernel.batch} experts"
            filled += kernel.flops // (kernel.batch * rows) * surplus
        if isinstance(work, CoreAttention) and isinstance(kernel, Attention):
            surplus = kernel.pairs * sharding.ring - work.pairs
            assert 0 <= surplus < sharding.ring
            filled += kernel.flops * surplus // (kernel.pairs * sharding.ring)
    return filled


def declared_flops(operator: Operator, steps: tuple[Step, ...], sharding: Sharding) -> int:
    """Return flops that all tp times cp ranks of one micro-batch do beyond the unsharded operator."""
    work = operator.work
    if isinstance(work, Linear):
        tokens = MICRO_BATCH_SIZE * SEQ_LEN
        products = 1 + work.needs_input_gradient + work.trains_weight
        if work.parallel is Parallel.REPLICATED and not sharding.sequence_parallel:
            return (sharding.tp - 1) * products * 2 * tokens * work.in_features * work.out_features
        if work.vocab_output:
            rows = padded_vocab_size(work.out_features, sharding.tp) - padded_vocab_size(work.out_features, 1)
            return products * 2 * tokens * work.in_features * rows
    if isinstance(work, StateScan):
        # Where there are fewer groups than ranks, each rank computes the scores of a whole one.
        ranks = sharding.tp * (1 if sharding.state_exchange else sharding.cp)
        kernels = [step.compute for step in steps if isinstance(step.compute, ScanKernel)]
        surplus = max(ranks - work.num_groups, 0)
        tokens = MICRO_BATCH_SIZE * SEQ_LEN
        return sum(
            tokens * 2 * kernel.chunk_size * surplus * kernel.key_dim * (3 if kernel.backward else 1)
            for kernel in kernels
        )
    return 0


@pytest.mark.parametrize("name", NAMES)
def test_the_flops_of_all_ranks_sum_to_the_unsharded_ones_and_the_declared(name: str) -> None:
    graph = graph_of(name)
    for sharding in shardings_of(name):
        dp = replicas(sharding)
        ranks = sharding.tp * sharding.cp * dp
        for layer in graph.layers:
            for operator in layer.operators:
                alone = RankOperator(operator=operator, sharding=unsharded())
                part = RankOperator(operator=operator, sharding=sharding)
                for one, many in ((alone.forward, part.forward), (alone.backward, part.backward)):
                    whole = flops_of(one) - rounding(operator, one, unsharded())
                    done = ranks * (flops_of(many) - rounding(operator, many, sharding))
                    # products of forward and backward are declared together
                    assert done == dp * whole, where(layer, operator.name, sharding)
