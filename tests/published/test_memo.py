"""MEMO's own figures and formula (Zhao et al., SIGMOD 2025, arXiv 2407.12117), against what is planned from them."""

import math
from dataclasses import replace

import pytest

from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.ranks.placement import place
from planner.requests.workload import Precision, TrainWorkload
from planner.token_swaps.token_choices import TokenChoice, TokenLayer, always_bytes
from planner.token_swaps.token_problem import TOKEN_UNITS, TokenCase, TokenProblem, TokenStage
from profiles.catalogue import load_preset
from solvers.paced.registry import divide_paced
from solvers.solution import OPTIMALITY_TOLERANCE

MODEL = load_bundled("gpt3-175b")
SEQ_LEN = 1 << 16
LAYOUT = Layout(
    tp=1,
    sequence_parallel=False,
    pp=1,
    vpp=1,
    dp=8,
    zero_stage=1,
    micro_batch_size=1,
    num_microbatches=4,
    schedule=Schedule.NO_PIPELINE,
    recompute=Recompute(granularity=Granularity.NONE),
    overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False),
    stages=stages_from_counts((96,)),
)
CLUSTER = load_preset("dgx-h100").to_cluster()


def test_a_layer_saves_sixteen_times_its_input_and_a_sixteenth_of_that_is_the_attention_output() -> None:
    # Figure 4: 16 bsh elements, of which 6.25 % are the attention's output; the log-sum-exp is not in the figure.
    run = TrainWorkload(seq_len=SEQ_LEN, global_batch_size=32, precision=Precision.BF16)
    placed = place(MODEL, build_graph(MODEL, run, eager=False), LAYOUT, run, MEGATRON)
    (layer,) = placed.rank_model.layers
    log_sum_exp = next(part.num_bytes for part in layer.saved if part.saved.name == "log-sum-exp")
    unit = SEQ_LEN * MODEL.hidden_size * 2
    assert layer.all_saved_bytes - log_sum_exp == 16 * unit
    assert always_bytes(layer) - log_sum_exp == 2 * unit
    assert log_sum_exp / unit == pytest.approx(4 / 2 / 128)


def test_a_million_tokens_of_seven_billion_parameters_save_four_tebibytes() -> None:
    # Section 2.1.3 and 3.2: 32 layers of h = 4096 and one sequence of a million tokens, 4096 GB.
    assert 32 * 16 * (1 << 20) * 4096 * 2 == 4096 << 30


def case(*, link_seconds: float, host_bytes: int, layers: int) -> TokenCase:
    """Return equal layers that save 16 units, on one GPU that has room for the two buffers alone."""
    unit = 1 << 24
    layer = TokenLayer(
        saved_bytes=16 * unit,
        always_bytes=2 * unit,
        input_bytes=unit,
        forward_seconds=1.0,
        backward_seconds=2.0,
        again_seconds=0.3,
        link_seconds=link_seconds,
        memory_seconds=link_seconds / 1000,
    )
    layout = replace(LAYOUT, dp=1, stages=stages_from_counts((layers,)))
    stage = TokenStage(rank=0, chunk=0, kinds=(0,) * layers, other_seconds=0.0, other_bytes=0, keeps_input=False)
    return TokenCase(
        layout=layout,
        layers=(layer,),
        stages=(stage,),
        cluster=replace(CLUSTER, gpus_per_node=1),
        room_bytes_R=(2 * 16 * unit + unit // 1000,),
        host_room_bytes=host_bytes,
        slowdown=0.0,
    )


@pytest.mark.parametrize("solver", ["mathopt", "pulp", "exhaustive"])
@pytest.mark.parametrize(
    ("link_seconds", "host_units", "layers"),
    [
        (0.9, 9_999, 8),
        (1.25, 9_999, 8),
        (2.0, 9_999, 12),
        (5.0, 9_999, 6),
        (0.9, 60, 8),
        (1.6, 45, 8),
        (1.25, 97, 10),
    ],
)
def test_the_programme_swaps_what_memos_formula_does(
    solver: str, link_seconds: float, host_units: int, layers: int
) -> None:
    # Section 4.1: the largest alpha with (S_input + S_attn + alpha S_others) / B <= T_layer and (n - 2) times that
    # within the host's memory. Computing again is faster than copying here, as MEMO takes for granted.
    asked = case(link_seconds=link_seconds, host_bytes=host_units << 24, layers=layers)
    by_link = (16 / link_seconds - 2) / 14
    by_host = (host_units / (layers - 2) - 2) / 14
    alpha = min(1.0, by_link, by_host)
    problem = TokenProblem(asked)
    answer = divide_paced(problem.problem(), solver=solver)
    swapped = problem.share(answer.share_O, 0, 0, TokenChoice.SWAPPED)
    assert swapped == pytest.approx(math.floor(alpha * TOKEN_UNITS) / TOKEN_UNITS)
    assert problem.share(answer.share_O, 0, 0, TokenChoice.AGAIN) == pytest.approx(1 - swapped)
    assert answer.objective is not None
    again = (layers - 2) * 0.3 * (1 - swapped)
    assert answer.objective == pytest.approx(4 * (3 * layers + again), rel=OPTIMALITY_TOLERANCE)
