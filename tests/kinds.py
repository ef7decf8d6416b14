"""Models of every kind and every legal way to cut them: what laws about sharding are stated over."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import strategies as st

from planner.models.bundled import load_bundled, model_names
from planner.models.graph import Axis, CoreAttention, LayerGraph, ModelGraph, StateScan
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.ranks.shard import shard_layer
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step
from planner.requests.workload import Precision, TrainWorkload
from tests.unit.planner.model_kinds import expert_model, hybrid_model, latent_model

MICRO_BATCH_SIZE = 2
SEQ_LEN = 4096
DEGREES = (1, 2, 3, 4, 5, 7, 8, 16)


def even_workload(*, seq_len: int = SEQ_LEN, precision: Precision = Precision.BF16) -> TrainWorkload:
    """Return a run whose experts all get the same number of tokens."""
    return TrainWorkload(seq_len=seq_len, global_batch_size=16, precision=precision, routing_skew=1.0)


@cache
def handmade_models() -> tuple[ModelSpec, ...]:
    """Return the models of `model_kinds`, one of each kind."""
    return expert_model(), latent_model(), hybrid_model()


@cache
def every_model() -> tuple[ModelSpec, ...]:
    """Return every bundled model and every handmade one."""
    return (*(load_bundled(name) for name in model_names()), *handmade_models())


def model_cases() -> list[object]:
    """Return the name of every model as a parameter: slow where another model before it has the same architecture.

    The handmade ones have architectures of their own kind and are never slow.
    """
    handmade, seen = {model.name for model in handmade_models()}, set[str]()
    cases: list[object] = []
    for model in every_model():
        again = model.architecture in seen and model.name not in handmade
        seen.add(model.architecture)
        cases.append(pytest.param(model.name, marks=pytest.mark.slow if again else ()))
    return cases


@cache
def graph_of(name: str, precision: Precision = Precision.BF16, seq_len: int = SEQ_LEN) -> ModelGraph:
    """Return the operators of a model of `every_model`, by its name."""
    model = next(model for model in every_model() if model.name == name)
    return build_graph(model, even_workload(seq_len=seq_len, precision=precision))


def unsharded(*, seq_len: int = SEQ_LEN) -> Sharding:
    """Return the sharding that cuts nothing."""
    return Sharding(tp=1, sequence_parallel=False, micro_batch_size=MICRO_BATCH_SIZE, seq_len=seq_len)


def is_legal(graph: ModelGraph, sharding: Sharding) -> bool:
    """Return whether a model can be cut so, by what its layers say and by how sequences split."""
    degrees = {
        Axis.TP: sharding.tp,
        Axis.ETP: sharding.etp,
        Axis.EP: sharding.ep,
        Axis.ULYSSES: sharding.ulysses,
        Axis.STATE_HEADS: 1 if sharding.state_exchange else sharding.cp,
    }
    for rule in graph.divisible:
        applies = rule.only_above_one is None or degrees[rule.only_above_one] > 1
        if applies and not rule.admits(math.prod(degrees[axis] for axis in rule.axes)):
            return False
    if sharding.cp > 1 and sharding.seq_len % (2 * sharding.cp):
        return False
    if sharding.sequence_parallel and (sharding.tp == 1 or sharding.seq_len % (sharding.tp * sharding.cp)):
        return False
    if graph.has_experts:
        return sharding.sequence_parallel or sharding.tp == 1
    return sharding.ep * sharding.etp == 1


def dense_shardings(graph: ModelGraph, *, seq_len: int = SEQ_LEN) -> Iterator[Sharding]:
    """Yield every legal way to cut a model over tp, sequences and cp, experts whole."""
    for tp in DEGREES:
        for sequence_parallel in (False, True):
            for cp in DEGREES:
                for ulysses in (degree for degree in DEGREES if cp % degree == 0):
                    for state_exchange in (False, True)[: 1 + (cp > 1)]:
                        sharding = Sharding(
                            tp=tp,
                            sequence_parallel=sequence_parallel,
                            micro_batch_size=MICRO_BATCH_SIZE,
                            seq_len=seq_len,
                            cp=cp,
                            ulysses=ulysses,
                            state_exchange=state_exchange,
                        )
                        if is_legal(graph, sharding):
                            yield sharding


@cache
def dense_shardings_of(name: str) -> tuple[Sharding, ...]:
    """Return `dense_shardings` of a model of `every_model`."""
    return tuple(dense_shardings(graph_of(name)))


@cache
def expert_grids_of(name: str) -> tuple[tuple[int, int], ...]:
    """Return every legal (ep, etp) of a model of `every_model`."""
    graph = graph_of(name)
    if not graph.has_experts:
        return ((1, 1),)
    shape = unsharded()
    grids = ((ep, etp) for ep in (*DEGREES, 32, 64, 128) for etp in DEGREES)
    return tuple((ep, etp) for ep, etp in grids if is_legal(graph, replace(shape, ep=ep, etp=etp)))


@cache
def shardings_of(name: str) -> tuple[Sharding, ...]:
    """Return shardings of a model of `every_model` in which every dense one and every (ep, etp) occurs."""
    dense, grids = dense_shardings_of(name), expert_grids_of(name)
    pairs = ((dense[index % len(dense)], grids[index % len(grids)]) for index in range(max(len(dense), len(grids))))
    return tuple(replace(sharding, ep=ep, etp=etp) for sharding, (ep, etp) in pairs)


@st.composite
def sharded_models(draw: st.DrawFn, models: tuple[str, ...]) -> tuple[str, Sharding]:
    """Return a model's name and any legal sharding of it."""
    name = draw(st.sampled_from(models))
    ep, etp = draw(st.sampled_from(expert_grids_of(name)))
    return name, replace(draw(st.sampled_from(dense_shardings_of(name))), ep=ep, etp=etp)


def replicas(sharding: Sharding) -> int:
    """Return the least dp at which the experts' grid covers the GPUs of a pipeline stage."""
    experts = sharding.ep * sharding.etp
    return experts // math.gcd(sharding.tp * sharding.cp, experts)


def steps_of(layer: LayerGraph, sharding: Sharding) -> tuple[Step, ...]:
    """Return what one rank runs for a layer, forward and backward."""
    rank = shard_layer(layer, sharding)
    return (*rank.forward, *rank.backward)


def mixes_tokens(layer: LayerGraph) -> bool:
    """Return whether tokens see one another in a layer."""
    return any(isinstance(operator.work, CoreAttention | StateScan) for operator in layer.operators)
