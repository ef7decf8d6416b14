"""Parameters are counted from the shapes of weights."""

from dataclasses import replace

from planner.models.blocks import Norm, PositionEmbedding
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters, layer_parameters, total_parameters
from tests.builders import tiny_dense_model, tiny_workload
from tests.unit.cli.samples import sample_model


def test_parameters_are_counted_from_the_shapes() -> None:
    attention = 512 * (512 + 2 * 128) + 512 * 512
    feed_forward = 3 * 512 * 1024
    layer = attention + feed_forward + 2 * 512
    assert total_parameters(sample_model()) == 2 * 1000 * 512 + 4 * layer + 512


def test_parameters_of_a_tiny_model_by_hand() -> None:
    model = tiny_dense_model()
    graph = build_graph(model, tiny_workload())
    # qkv 64 x (64 + 2 x 32), proj 64 x 64, gate and up 64 x 160 each, down 160 x 64, two norms of 64.
    layer = 64 * 128 + 64 * 64 + 2 * 64 * 160 + 160 * 64 + 2 * 64
    assert layer_parameters(graph.blocks[model.runs[0].block]) == layer
    assert graph_parameters(model, graph) == 512 * 64 + 4 * layer + 64 + 512 * 64
    tied = replace(model, tie_word_embeddings=True)
    assert graph_parameters(tied, build_graph(tied, tiny_workload())) == 512 * 64 + 4 * layer + 64
    learned = replace(model, position_embedding=PositionEmbedding.LEARNED, position_offset=2, norm=Norm.LAYER)
    assert graph_parameters(learned, build_graph(learned, tiny_workload())) == (
        (512 + 4096 + 2) * 64 + 4 * (layer + 2 * 64) + 2 * 64 + 512 * 64
    )
