"""Where published memory estimates of training go wrong, each class of error as a test of the ledger.

Tolerances, where the report gives what the estimate needs: temporaries of an update in one call (within 1 %, verl
5364), communicators (exact, nccl 964), the loss of Megatron-LM's functional tests (within 5 %), torchtitan's eight
peaks and SimuMax's (median 3 %, worst 8 %).

Laws, where it gives the size of the error but not the run: the heaviest stage decides, not the mean (Megatron-Bridge
5077: 32 % off); micro-batches in flight differ per stage (Megatron-LM 482); mixtures count top-k rows, shared experts
and ep (Megatron-LM 1784); routing skew raises the busiest rank (pith-train 18: 1.2 times); what ZeRO-3 gathers is held
beside the shards (DeepSpeed 4527, 4093); shards of experts are gathered too (Automodel 2577); a resumed run has its
moments in the first forward pass (Megatron-LM 4638); key/value heads are copied where there are fewer than ranks
(vLLM 51454, its training side); logits of long sequences (transformers 48131).

Not in the ledger: memory of the host, which NCCL's proxies pin too. Of inference engines captured graphs (vLLM 45178),
pages of hybrid caches (vLLM 37124, 54458, 55196) and an engine's default fraction of a GPU (aiconfigurator 1396) are
held to the engine's ledger (tests/unit/planner/serving/test_published_memory.py).
"""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from planner.accuracy.measurements import read_measurements
from planner.accuracy.training import Prediction, TrainingPredictor
from planner.frameworks.capabilities import ANY, MEGATRON
from planner.frameworks.habits import PLANNED, Fsdp, Habits
from planner.layout import Layout, Schedule, stages_from_counts
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.blocks import Activation, Block, DenseFeedForward, MixtureOfExperts, Router
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.plans.plan import MemoryLine, Phase
from planner.ranks.placement import place
from planner.requests.workload import Precision, TrainWorkload
from tests.builders import tiny_dense_model, tiny_layout, tiny_workload

MIB = 1 << 20
RUNS = Path(__file__).parents[2] / "examples" / "measured-runs"


def lines_of(
    layout: Layout,
    *,
    model: ModelSpec | None = None,
    workload: TrainWorkload | None = None,
    habits: Habits = PLANNED,
) -> tuple[MemoryLine, ...]:
    model, workload = model or tiny_dense_model(), workload or tiny_workload()
    return memory_ledger(place(model, build_graph(model, workload), layout, workload, ANY), habits)


def of_rank(
    lines: tuple[MemoryLine, ...], layout: Layout, rank: int, phase: Phase = Phase.FORWARD_BACKWARD
) -> dict[str, int]:
    first = layout.first_global_rank(rank)
    return {line.term: line.num_bytes for line in lines if (line.rank, line.phase) == (first, phase)}


def alone(**changes: Any) -> Layout:
    """Return a layout without tp and pp, over 4 data-parallel ranks."""
    layout = replace(
        tiny_layout(),
        tp=1,
        sequence_parallel=False,
        pp=1,
        dp=4,
        schedule=Schedule.NO_PIPELINE,
        stages=stages_from_counts((4,)),
    )
    return replace(layout, **changes)


def mixture_model(*, experts: int, visits: int, shared: int = 0) -> ModelSpec:
    dense = tiny_dense_model()
    expert = DenseFeedForward(intermediate_size=160, gated=True, activation=Activation.SILU)
    block = dense.runs[0].block
    shared_expert = replace(expert, intermediate_size=shared) if shared else None
    mixture = MixtureOfExperts(
        num_experts=experts, experts_per_token=visits, expert=expert, router=Router(), shared=shared_expert
    )
    return replace(dense, runs=(BlockRun(block=Block(mixer=block.mixer, feed_forward=mixture), count=4),))


def test_the_heaviest_stage_decides() -> None:
    model = tiny_dense_model(num_layers=8)
    layout = replace(
        alone(dp=1, zero_stage=0), pp=4, schedule=Schedule.ONE_F_ONE_B, stages=stages_from_counts((1, 2, 2, 3))
    )
    lines = lines_of(layout, model=model)
    totals = [sum(of_rank(lines, layout, rank).values()) for rank in range(4)]
    assert peak_memory_bytes(lines) == max(totals)
    # Weights of the layers alone: the mean is a third below the heaviest stage.
    placed = place(model, build_graph(model, tiny_workload()), layout, tiny_workload(), ANY)
    layers = [sum(layer.elements().total * count for layer, count in placed.layer_counts(rank)) for rank in range(4)]
    assert sum(layers) / 4 / max(layers) - 1 == pytest.approx(-0.318, rel=0.1)


def test_micro_batches_in_flight_differ_per_stage() -> None:
    layout = replace(
        alone(dp=1, zero_stage=0),
        pp=4,
        schedule=Schedule.ONE_F_ONE_B,
        stages=stages_from_counts((1, 1, 1, 1)),
        num_microbatches=8,
    )
    lines = lines_of(layout)
    kept = [of_rank(lines, layout, rank)["activations"] for rank in range(4)]
    assert [number // kept[-1] for number in kept] == [4, 3, 2, 1]


def test_activations_of_a_mixture_count_every_visit() -> None:
    workload = replace(tiny_workload(), routing_skew=1.0)
    kept = [
        of_rank(
            lines_of(alone(), model=mixture_model(experts=8, visits=visits, shared=shared), workload=workload),
            alone(),
            0,
        )["activations"]
        for visits, shared in ((1, 0), (2, 0), (3, 0), (2, 160))
    ]
    one_visit = kept[1] - kept[0]
    assert one_visit > 4 * 128 * (2 * 64 + 3 * 160)  # a row's input, and what lies inside the expert
    assert kept[2] - kept[1] == pytest.approx(one_visit, rel=0.01)
    assert kept[3] > kept[1]
    dense = of_rank(lines_of(alone()), alone(), 0)["activations"]
    assert kept[1] > 1.4 * dense  # priced as dense it would be far off


def test_experts_parallelism_moves_weights_not_visits() -> None:
    workload = replace(tiny_workload(), routing_skew=1.0)
    model = mixture_model(experts=8, visits=2)
    whole, spread = (of_rank(lines_of(alone(ep=ep), model=model, workload=workload), alone(), 0) for ep in (1, 4))
    assert spread["weights"] < whole["weights"] / 2
    assert spread["activations"] == pytest.approx(whole["activations"], rel=0.02)


def test_skewed_routing_raises_the_busiest_rank() -> None:
    model = mixture_model(experts=8, visits=2)
    even, skewed = (
        of_rank(lines_of(alone(ep=4), model=model, workload=replace(tiny_workload(), routing_skew=skew)), alone(), 0)[
            "activations"
        ]
        for skew in (1.0, 1.2)
    )
    assert 1.0 < skewed / even <= 1.2


def test_sharded_weights_are_whole_while_they_work() -> None:
    model = load_bundled("llama-3.1-8b")
    workload = TrainWorkload(seq_len=2048, global_batch_size=64, precision=Precision.BF16)
    layout = alone(dp=64, zero_stage=3, num_microbatches=1, stages=stages_from_counts((32,)))
    for habits in (PLANNED, Habits(fsdp=Fsdp.FLAT_PARAMETERS), Habits(fsdp=Fsdp.PER_PARAMETER)):
        lines = lines_of(layout, model=model, workload=workload, habits=habits)
        terms = of_rank(lines, layout, 0)
        shards = sum(terms.get(name, 0) for name in ("weights", "gradients", "master weights", "optimizer moments"))
        assert terms["gathered parameters"] > 2 * (2 * 128_256 * 4096 + 2 * 218_112_000)
        assert peak_memory_bytes(lines) > 5 * shards


def test_pytorch_keeps_sixteen_bytes_a_parameter_in_its_shards() -> None:
    layout = alone(zero_stage=3)
    terms = of_rank(lines_of(layout, habits=Habits(fsdp=Fsdp.PER_PARAMETER)), layout, 0)
    placed = place(tiny_dense_model(), build_graph(tiny_dense_model(), tiny_workload()), layout, tiny_workload(), ANY)
    states = sum(terms[name] for name in ("weights", "gradients", "master weights", "optimizer moments"))
    assert states == pytest.approx(16 * placed.elements(0).total / 4, rel=1e-6)


def test_shards_of_experts_are_gathered_too() -> None:
    model = mixture_model(experts=8, visits=2)
    dense, mixture = (
        of_rank(lines_of(alone(zero_stage=3), model=found), alone(), 0)["gathered parameters"]
        for found in (tiny_dense_model(), model)
    )
    assert mixture - dense == 2 * 4 * (7 * 3 * 64 * 160 + 8 * 64)  # 16 bit, all four layers of this small model


def test_an_update_in_one_call_has_a_temporary_of_one_moment() -> None:
    lines = lines_of(alone(), habits=Habits(foreach_update=True))
    terms = of_rank(lines, alone(), 0, Phase.OPTIMIZER_STEP)
    assert terms["update temporaries"] / terms["optimizer moments"] == pytest.approx(15.58 / 31.16, rel=0.01)
    assert "update temporaries" not in of_rank(lines, alone(), 0)
    assert "update temporaries" not in of_rank(lines_of(alone()), alone(), 0, Phase.OPTIMIZER_STEP)


def test_a_resumed_run_has_its_moments_in_the_first_forward_pass() -> None:
    lines = lines_of(alone())
    assert "optimizer moments" not in of_rank(lines, alone(), 0, Phase.INITIALISATION)
    assert of_rank(lines, alone(), 0)["optimizer moments"] > 0
    assert peak_memory_bytes(lines) >= sum(of_rank(lines, alone(), 0).values())


def test_communicators_are_counted_from_the_layout() -> None:
    # All ranks, tp 2, dp 2, all ranks for the gradient norm, pp 2.
    assert of_rank(lines_of(tiny_layout()), tiny_layout(), 0)["communicators"] == (2 * 688 + 3 * 544) * MIB
    alone_on_one = alone(dp=1, zero_stage=0)
    assert "communicators" not in of_rank(lines_of(alone_on_one), alone_on_one, 0)


def test_key_value_heads_are_copied_where_ranks_are_more() -> None:
    model = load_bundled("llama-3.1-8b")  # 32 query heads, 8 key/value heads
    workload = TrainWorkload(seq_len=2048, global_batch_size=8, precision=Precision.BF16)
    kept = []
    for tp in (8, 16):
        layout = alone(tp=tp, dp=1, zero_stage=0, stages=stages_from_counts((32,)), num_microbatches=8)
        placed = place(model, build_graph(model, workload), layout, workload, MEGATRON)
        kept.append({part.saved.name: part.num_bytes for part in placed.rank_model.layers[0].saved})
    assert kept[1]["query"] == kept[0]["query"] // 2
    assert kept[1]["key"] == kept[0]["key"]
    assert kept[1]["value"] == kept[0]["value"]


def test_logits_of_a_long_sequence_are_in_the_ledger() -> None:
    model = load_bundled("llama-3.1-8b")
    workload = TrainWorkload(seq_len=131_072, global_batch_size=8, precision=Precision.BF16)
    layout = alone(tp=8, sequence_parallel=True, dp=1, zero_stage=0, stages=stages_from_counts((32,)))
    layout = replace(layout, num_microbatches=8)
    loss = of_rank(lines_of(layout, model=model, workload=workload), layout, 0)["logits and loss"]
    logits = 131_072 * 128_256 // 8
    assert 10 * logits <= loss < 10.3 * logits  # fp32 twice, 16 bit once; the rest are the norm's tensors


@pytest.fixture(scope="module")
def measured() -> dict[str, list[Prediction]]:
    predictor = TrainingPredictor()
    found: dict[str, list[Prediction]] = {}
    for name in ("training.csv", "functional-tests.csv"):
        for row in read_measurements(RUNS / name).rows:
            group = "functional tests" if name.startswith("functional") else row.text("source_group")
            found.setdefault(group, []).append(predictor.predict(row))
    return found


def errors(found: list[Prediction]) -> list[float]:
    return [
        abs(entry.predicted_allocated_bytes / entry.measured_peak_bytes - 1)
        for entry in found
        if entry.predicted_allocated_bytes and entry.measured_peak_bytes
    ]


@pytest.mark.parametrize("group", ["torchtitan", "simumax"])
def test_published_peaks_are_met(group: str, measured: dict[str, list[Prediction]]) -> None:
    found = errors(measured[group])
    assert len(found) >= 4
    assert median(found) < 0.03
    assert max(found) < 0.08


def test_peaks_of_functional_tests_are_met(measured: dict[str, list[Prediction]]) -> None:
    found = errors(measured["functional tests"])
    assert len(found) > 35
    assert median(found) < 0.03
    assert sum(entry.error is not None for entry in measured["functional tests"]) <= 1
    named = [entry.assumptions for entry in measured["functional tests"] if entry.error is None]
    assert all(any(text.startswith("vocabulary: ") for text in assumptions) for assumptions in named)


NEARLY_FULL = {"MPT-0058", "MPT-0201"}
"""Micro-batches that were chosen to fill the GPU: predicted 1 % above what it has."""

UNEXPLAINED = {"CI-0408"}
"""A test of captured graphs in fp8: its row says less than what it keeps by half."""


def test_runs_that_ran_fit(measured: dict[str, list[Prediction]]) -> None:
    ran = [entry for found in measured.values() for entry in found if entry.error is None and entry.measured_fits]
    assert len(ran) > 190
    assert {entry.row.id for entry in ran if not entry.predicted_fits} == NEARLY_FULL | UNEXPLAINED
