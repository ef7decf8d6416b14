"""The independent price of a layout: small cases by hand, and what each choice adds."""

from dataclasses import replace

import pytest

from planner.evaluation.evaluate import Evaluation, evaluate, model_flops_utilisation
from planner.evaluation.priced_step import BUBBLE, DATA_PARALLEL, OPTIMIZER, RECOMPUTATION
from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.required_flops import required_flops_per_sequence
from planner.models.specs import ModelSpec
from planner.ranks.communication import data_parallel_traffic, gradient_norm_reduction, optimizer_traffic
from planner.ranks.placement import PlacedModel, place
from planner.ranks.pricing import added_seconds, price_steps
from planner.ranks.shard import Elements, RankLayer
from planner.requests.workload import Lora, TrainMethod, TrainWorkload
from profiles.analytic import AnalyticCostModel
from profiles.catalogue import load_preset
from tests.builders import tiny_dense_model, tiny_layout, tiny_workload, two_node_cluster

MODEL = tiny_dense_model()
RUN = tiny_workload()


class InstantLaunches(AnalyticCostModel):
    """Kernels alone: the layers here are so small that they would wait for the host, whatever else is tested."""

    launch_seconds = 0.0


COSTS = InstantLaunches(two_node_cluster())
NO_OVERLAP = Overlap(grad_reduce=False, param_gather=False, p2p=False)
LONE = Layout(
    tp=1,
    sequence_parallel=False,
    pp=1,
    vpp=1,
    dp=1,
    zero_stage=0,
    micro_batch_size=1,
    num_microbatches=16,
    schedule=Schedule.NO_PIPELINE,
    recompute=Recompute(granularity=Granularity.NONE),
    overlap=NO_OVERLAP,
    stages=stages_from_counts((4,)),
)
DATA = replace(LONE, dp=8, zero_stage=1, num_microbatches=2)
PIPELINE = replace(LONE, pp=2, schedule=Schedule.ONE_F_ONE_B, stages=stages_from_counts((2, 2)))


def placed(layout: Layout, *, model: ModelSpec = MODEL, workload: TrainWorkload = RUN) -> PlacedModel:
    return place(model, build_graph(model, workload), layout, workload, MEGATRON)


def priced(layout: Layout, *, model: ModelSpec = MODEL, workload: TrainWorkload = RUN) -> Evaluation:
    return evaluate(placed(layout, model=model, workload=workload), COSTS)


def terms(evaluation: Evaluation) -> dict[str, float]:
    return {line.term: line.seconds for line in evaluation.time}


def layers() -> list[RankLayer]:
    """Return every layer of the model on a lone rank."""
    rank_model = placed(LONE).rank_model
    return [rank_model.embedding, *rank_model.stage_layers(LONE.stages[0]), rank_model.head]


FORWARD = sum(price_steps(layer.forward, COSTS).total_seconds for layer in layers())
BACKWARD = sum(price_steps(layer.backward, COSTS).total_seconds for layer in layers())
PARAMETERS = Elements(dense=graph_parameters(MODEL, build_graph(MODEL, RUN)))


def test_layers_wait_for_the_host_where_their_kernels_are_short() -> None:
    waiting = AnalyticCostModel(two_node_cluster())
    evaluation = evaluate(placed(LONE), waiting)
    waited = 0.0
    for layer in layers():
        for steps in (layer.forward, layer.backward):
            launches = sum(step.num_launches for step in steps) * waiting.launch_seconds
            waited += max(0.0, launches - price_steps(steps, COSTS).total_seconds)
    assert waited > 0
    assert terms(evaluation)["waiting for the host"] == pytest.approx(16 * waited)
    assert evaluation.step_seconds == pytest.approx(priced(LONE).step_seconds + 16 * waited)


def optimizer_seconds(layout: Layout) -> float:
    return COSTS.compute(optimizer_traffic(PARAMETERS, layout, RUN)).seconds


def test_a_lone_rank_runs_every_layer_for_every_micro_batch_and_then_the_optimizer() -> None:
    found = priced(LONE)
    assert found.step_seconds == pytest.approx(16 * (FORWARD + BACKWARD) + optimizer_seconds(LONE), rel=1e-12)
    assert terms(found).keys() == {"linear layers", "attention", "memory-bound kernels", OPTIMIZER}


def test_without_overlap_data_parallel_collectives_are_exposed_whole() -> None:
    traffic = data_parallel_traffic(PARAMETERS, DATA, RUN)
    sent = sum(COSTS.collective(part).seconds for part in (*traffic.reduce, *traffic.gather))
    norm = COSTS.collective(gradient_norm_reduction(DATA)).seconds
    expected = 2 * (FORWARD + BACKWARD) + sent + norm + optimizer_seconds(DATA)
    found = priced(DATA)
    assert found.step_seconds == pytest.approx(expected, rel=1e-12)
    assert terms(found)[DATA_PARALLEL] == pytest.approx(sent + norm, rel=1e-9)


def test_with_overlap_they_run_beside_the_first_forward_and_the_last_backward() -> None:
    overlapped = replace(DATA, overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False))
    traffic = data_parallel_traffic(PARAMETERS, DATA, RUN)
    assert traffic.num_buckets == 1
    # One bucket has nothing to hide behind.
    assert priced(overlapped).step_seconds == pytest.approx(priced(DATA).step_seconds, rel=1e-12)
    wide = replace(DATA, dp=4, num_microbatches=4)
    hidden = replace(wide, overlap=overlapped.overlap)
    assert priced(hidden).step_seconds <= priced(wide).step_seconds


def test_sharded_gradients_are_reduced_and_sharded_weights_gathered_for_every_micro_batch() -> None:
    traffic = data_parallel_traffic(PARAMETERS, DATA, RUN)
    (reduced,), (gathered,) = traffic.reduce, traffic.gather
    reduce, gather = COSTS.collective(reduced).seconds, COSTS.collective(gathered).seconds
    once, gradients, weights = (priced(replace(DATA, zero_stage=stage)).step_seconds for stage in (1, 2, 3))
    assert gradients - once == pytest.approx((2 - 1) * reduce, rel=1e-9)
    # Forward and again backward, for both micro-batches, instead of once.
    assert weights - gradients == pytest.approx((4 - 1) * gather, rel=1e-9)


@pytest.mark.parametrize("granularity", [Granularity.SELECTIVE, Granularity.FULL])
def test_recomputation_is_a_term_of_its_own_and_all_that_it_adds(granularity: Granularity) -> None:
    modules = ("mlp",) if granularity is Granularity.SELECTIVE else ()
    again = replace(LONE, recompute=Recompute(granularity=granularity, modules=modules))
    added = priced(again).step_seconds - priced(LONE).step_seconds
    assert added > 0
    assert terms(priced(again))[RECOMPUTATION] == pytest.approx(added, rel=1e-9)
    assert RECOMPUTATION not in terms(priced(LONE))


def test_recomputing_half_of_the_layers_takes_half_as_long() -> None:
    whole = replace(LONE, recompute=Recompute(granularity=Granularity.FULL))
    half = replace(LONE, recompute=Recompute(granularity=Granularity.FULL, num_layers=2))
    assert terms(priced(half))[RECOMPUTATION] == pytest.approx(terms(priced(whole))[RECOMPUTATION] / 2, rel=1e-9)


def test_a_pipeline_has_a_bubble_that_shrinks_with_more_micro_batches() -> None:
    shares = []
    for num_microbatches in (2, 4, 16):
        found = priced(replace(PIPELINE, num_microbatches=num_microbatches))
        shares.append(terms(found)[BUBBLE] / found.step_seconds)
    assert shares == sorted(shares, reverse=True)
    assert BUBBLE not in terms(priced(LONE))


def test_a_tied_table_is_reduced_across_the_pipeline_where_it_is_trained() -> None:
    tied = replace(MODEL, tie_word_embeddings=True)
    assert priced(PIPELINE, model=tied).step_seconds > priced(PIPELINE).step_seconds
    lora = Lora(rank=4, alpha=8.0, target_modules=("qkv",))
    frozen = replace(RUN, method=TrainMethod.LORA, lora=lora)
    untied_seconds = priced(PIPELINE, workload=frozen).step_seconds
    assert priced(PIPELINE, model=tied, workload=frozen).step_seconds == pytest.approx(untied_seconds, rel=1e-12)


def test_every_term_and_every_line_of_memory_names_its_source() -> None:
    found = priced(replace(tiny_layout(), recompute=Recompute(granularity=Granularity.NONE)))
    assert all(line.source for line in found.time)
    assert all(line.source for line in found.memory)
    by_term = {line.term: line.source for line in found.time}
    assert by_term[BUBBLE].endswith("analytic: simulated 1f1b schedule")
    assert "send over link levels" in by_term[BUBBLE]


def test_what_is_carried_over_from_other_hardware_is_listed_as_assumed() -> None:
    ada = evaluate(placed(LONE), AnalyticCostModel(load_preset("l40s-pcie-4").to_cluster()))
    hopper = evaluate(placed(LONE), AnalyticCostModel(load_preset("dgx-h100").to_cluster()))
    assert any(line.startswith("linear layers: bf16 tiles and waves") for line in ada.assumptions)
    assert all(line.startswith("memory, ") for line in hopper.assumptions)


def test_mfu_is_required_flops_over_the_datasheet_rate() -> None:
    graph = build_graph(MODEL, RUN)
    cluster = two_node_cluster()
    flops = 16 * required_flops_per_sequence(MODEL, graph, seq_len=128)
    assert model_flops_utilisation(placed(DATA), graph, cluster, step_seconds=0.5) == flops / (0.5 * 8 * 4e14)


def test_a_collective_beside_a_kernel_counts_for_what_it_adds() -> None:
    layout = replace(tiny_layout(), pp=1, dp=4, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((4,)))
    layer = placed(layout).rank_model.layers[0]
    price = price_steps(layer.backward, COSTS)
    compute = sum(COSTS.compute(step.compute).seconds for step in layer.backward if step.compute is not None)
    added = 0.0
    for step in layer.backward:
        if step.collective is not None:
            beside = 0.0 if step.compute is None else COSTS.compute(step.compute).seconds
            sent = COSTS.collective(step.collective).seconds
            added += added_seconds(sent, beside, slowdown=COSTS.overlap_slowdown)
    assert price.total_seconds == pytest.approx(compute + added, rel=1e-12)
