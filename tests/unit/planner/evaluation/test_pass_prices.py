"""The passes of a stage: parts of what the evaluator prices, and what tensor parallelism no longer hides."""

from dataclasses import replace

import pytest

from planner.evaluation.pass_prices import stage_passes
from planner.evaluation.priced_step import stage_prices
from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Recompute
from planner.memory.saved import chunk_activation_bytes
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.ranks.placement import PlacedModel, place
from planner.ranks.pricing import steps_seconds
from planner.ranks.step import split_backward
from planner.requests.workload import Lora, TrainMethod, TrainWorkload
from profiles.analytic import AnalyticCostModel
from tests.builders import tiny_dense_model, tiny_layout, tiny_workload, two_node_cluster
from tests.unit.planner.model_kinds import expert_model

RUN = tiny_workload()
NOTHING = Recompute(granularity=Granularity.NONE)
TENSOR = replace(tiny_layout(), recompute=NOTHING)
ALONE = replace(TENSOR, tp=1, sequence_parallel=False, dp=4, zero_stage=0)
MODELS = {"dense": tiny_dense_model(), "experts": expert_model()}
WAITING = AnalyticCostModel(two_node_cluster())


class InstantLaunches(AnalyticCostModel):
    """Kernels alone: the layers here are so small that they would wait for the host."""

    launch_seconds = 0.0


COSTS = InstantLaunches(two_node_cluster())


def placed(layout: Layout, *, model: ModelSpec = MODELS["dense"], workload: TrainWorkload = RUN) -> PlacedModel:
    return place(model, build_graph(model, workload), layout, workload, MEGATRON)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "recompute",
    [NOTHING, Recompute(granularity=Granularity.FULL), Recompute(granularity=Granularity.FULL, num_layers=1)],
)
def test_both_gradients_take_as_long_as_the_backward_pass_where_it_hides_nothing(
    model: str, recompute: Recompute
) -> None:
    there = placed(replace(ALONE, recompute=recompute), model=MODELS[model])
    for found, price in zip(stage_passes(there, COSTS), stage_prices(there, COSTS), strict=True):
        assert found.forward_seconds == price.forward_seconds
        assert found.backward_seconds == price.backward_seconds
        together = found.input_gradient_seconds + found.weight_gradient_seconds
        assert together == pytest.approx(price.backward_seconds, rel=1e-12)
        assert 0 < found.weight_gradient_seconds < 0.5 * found.backward_seconds


def test_with_tensor_parallelism_apart_they_take_what_the_other_product_hid() -> None:
    there = placed(TENSOR)
    layer = there.rank_model.layers[0]
    hidden = sum(steps_seconds(part, COSTS) for part in split_backward(layer.backward))
    hidden -= steps_seconds(layer.backward, COSTS)
    assert hidden > 0
    for found in stage_passes(there, COSTS):
        together = found.input_gradient_seconds + found.weight_gradient_seconds
        assert together == pytest.approx(found.backward_seconds + 2 * hidden, rel=1e-12)


def test_a_layer_that_waits_for_the_host_waits_in_each_part() -> None:
    for found in stage_passes(placed(ALONE), WAITING):
        launched = sum(
            step.num_launches * WAITING.launch_seconds
            for step in split_backward(placed(ALONE).rank_model.layers[0].backward)[1]
        )
        assert found.weight_gradient_seconds == pytest.approx(2 * launched, rel=1e-12)


def test_recomputation_lengthens_the_gradient_of_the_input_alone() -> None:
    plain, again = (
        stage_passes(placed(replace(ALONE, recompute=recompute)), COSTS)
        for recompute in (NOTHING, Recompute(granularity=Granularity.FULL))
    )
    for before, after in zip(plain, again, strict=True):
        assert after.weight_gradient_seconds == before.weight_gradient_seconds
        assert after.input_gradient_seconds > before.input_gradient_seconds
        # What is dropped is there again for the gradients of the weights, whatever was kept until then.
        assert after.activation_bytes < before.activation_bytes
        assert after.weight_gradient_bytes == before.weight_gradient_bytes


def test_bytes_are_those_of_the_stage() -> None:
    there = placed(ALONE)
    for stage, found in zip(ALONE.stages, stage_passes(there, COSTS), strict=True):
        assert found.activation_bytes == chunk_activation_bytes(there, stage)
        # Inputs of the layers' products, and the gradients of their outputs; head and embedding wait for nothing.
        assert found.weight_gradient_bytes == 2 * there.rank_model.layers[0].weight_gradient_bytes > 0


def test_frozen_weights_leave_the_gradients_of_their_adapters() -> None:
    workload = replace(RUN, method=TrainMethod.LORA, lora=Lora(rank=8, alpha=16, target_modules=("qkv",)))
    whole, adapted = (stage_passes(placed(ALONE, workload=run), COSTS)[0] for run in (RUN, workload))
    assert 0 < adapted.weight_gradient_seconds < 0.5 * whole.weight_gradient_seconds
    assert 0 < adapted.weight_gradient_bytes < whole.weight_gradient_bytes
