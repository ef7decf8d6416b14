"""Activation memory as published by Korthikanti et al., arXiv 2205.05198: equal to the byte."""

from fractions import Fraction

import pytest

from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.memory.ledger import memory_ledger
from planner.models.layers import build_graph
from planner.plans.plan import Phase
from planner.ranks.placement import place
from planner.ranks.shard import RankLayer, shard_layer
from planner.ranks.sharding import Sharding
from tests.published.gpt import gpt, unfused_run

SEQ_LEN = 2048
BATCH = 2
# Heads, hidden size and layers of table 3: 22B, 175B (GPT-3), 530B (MT-NLG), 1T.
MODELS = {"22B": (64, 6144, 48), "175B": (96, 12288, 96), "530B": (128, 20480, 105), "1T": (160, 25600, 128)}
CORE_ATTENTION = Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn",))
FULL = Recompute(granularity=Granularity.FULL)


def rank_layer(name: str, *, tp: int, sequence_parallel: bool) -> RankLayer:
    heads, hidden, layers = MODELS[name]
    model = gpt(hidden=hidden, heads=heads, layers=layers)
    graph = build_graph(model, unfused_run(batch=BATCH))
    sharding = Sharding(tp=tp, sequence_parallel=sequence_parallel, cp=1, micro_batch_size=BATCH, seq_len=SEQ_LEN)
    return shard_layer(graph.blocks[model.runs[0].block], sharding)


def scores_factor(name: str) -> Fraction:
    """Return 5 a s / h."""
    heads, hidden, _ = MODELS[name]
    return Fraction(5 * heads * SEQ_LEN, hidden)


def sbh(name: str) -> int:
    return SEQ_LEN * BATCH * MODELS[name][1]


@pytest.mark.parametrize("name", MODELS)
def test_equation_1_a_layer_keeps_sbh_34_plus_scores(name: str) -> None:
    layer = rank_layer(name, tp=1, sequence_parallel=False)
    assert layer.all_saved_bytes == sbh(name) * (34 + scores_factor(name))


@pytest.mark.parametrize("name", MODELS)
def test_of_34_sbh_32_wait_for_the_gradients_of_weights(name: str) -> None:
    # Qi et al., arXiv 2401.10241, table 1: inputs of the four products, and the gradients of their outputs.
    assert rank_layer(name, tp=1, sequence_parallel=False).weight_gradient_bytes == sbh(name) * 32


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_equation_2_tensor_parallelism_leaves_10_sbh_whole(name: str, tp: int) -> None:
    layer = rank_layer(name, tp=tp, sequence_parallel=False)
    assert layer.all_saved_bytes == sbh(name) * (10 + Fraction(24, tp) + scores_factor(name) / tp)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_equation_4_sequence_parallelism_splits_everything(name: str, tp: int) -> None:
    layer = rank_layer(name, tp=tp, sequence_parallel=True)
    assert layer.all_saved_bytes * tp == sbh(name) * (34 + scores_factor(name))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_recomputing_the_attention_core_drops_the_scores(name: str, sequence_parallel: bool) -> None:
    layer = rank_layer(name, tp=8, sequence_parallel=sequence_parallel)
    published = Fraction(34, 8) if sequence_parallel else Fraction(13)
    assert layer.saved_bytes(CORE_ATTENTION) == sbh(name) * published


@pytest.mark.parametrize("name", MODELS)
def test_recomputing_whole_layers_keeps_2_sbh(name: str) -> None:
    assert rank_layer(name, tp=8, sequence_parallel=False).saved_bytes(FULL) == 2 * sbh(name)


@pytest.mark.parametrize(("name", "percent"), [("175B", 70), ("530B", 65)])
def test_section_5_selective_recomputation_saves_70_and_65_percent(name: str, percent: int) -> None:
    layer = rank_layer(name, tp=8, sequence_parallel=True)
    saved = 1 - layer.saved_bytes(CORE_ATTENTION) / layer.all_saved_bytes
    assert round(100 * saved) == percent


def test_section_4_3_the_first_stage_keeps_as_many_layers_as_the_model_has_and_p_embedding_masks() -> None:
    heads, hidden, layers = MODELS["175B"]
    model = gpt(hidden=hidden, heads=heads, layers=layers)
    workload = unfused_run(batch=64)
    layout = Layout(
        tp=8,
        sequence_parallel=True,
        pp=8,
        vpp=1,
        dp=1,
        zero_stage=0,
        micro_batch_size=1,
        num_microbatches=64,
        schedule=Schedule.ONE_F_ONE_B,
        recompute=Recompute(granularity=Granularity.NONE),
        overlap=Overlap(grad_reduce=False, param_gather=False, p2p=False),
        stages=stages_from_counts((12,) * 8),
    )
    placed = place(model, build_graph(model, workload), layout, workload, MEGATRON)
    activations = next(
        line.num_bytes
        for line in memory_ledger(placed)
        if line.rank == 0 and line.phase is Phase.FORWARD_BACKWARD and line.term == "activations"
    )
    one_sbh = SEQ_LEN * hidden
    assert activations * 8 == one_sbh * layers * (34 + scores_factor("175B")) + one_sbh * layout.pp
    head = sum(part.num_bytes for part in placed.rank_model.head.saved)
    assert head * 8 == 4 * one_sbh * (1 + Fraction(model.vocab_size, hidden))
