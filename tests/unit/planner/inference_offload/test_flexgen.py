"""FlexGen's formulas, recomputed by hand for one layer, and the throughput that its programme is known to find."""

from dataclasses import replace

import pytest

from benchmarks.offload import CASES, DRIVE, Case, flexgen_model
from planner.inference_offload.blocks import best_block
from planner.inference_offload.flexgen import (
    GB,
    OPTIONS,
    FlexGenBlock,
    FlexGenHardware,
    FlexGenModel,
    flexgen_problem,
)
from solvers.shares.problem import SharesProblem
from tests.offloaded import offload_inputs

OPT_30B = FlexGenModel(num_layers=48, hidden_size=7168, intermediate_size=28672, num_heads=56)
T4 = FlexGenHardware(gpu_bytes=16 * GB, host_bytes=200 * GB, drive_bytes=1500 * GB)
LAYER = 12 * 7168**2 * 2
"""Bytes of a layer's four projections and two of the feed-forward, 12 h^2 weights in all."""


def problem(batch_size: int = 24, num_batches: int = 7) -> SharesProblem:
    block = FlexGenBlock(prompt_tokens=512, output_tokens=32, batch_size=batch_size, num_batches=num_batches)
    return flexgen_problem(OPT_30B, T4, block)


def shares(**named: float) -> tuple[float, ...]:
    short = ("wg", "wc", "wn", "cg", "cc", "cn", "hg", "hc")
    assert len(short) == len(OPTIONS)
    return tuple(named.get(name, 0.0) for name in short)


def test_the_times_of_a_layer_are_those_of_the_paper() -> None:
    """Section 4.3: everything on the host, the CPU attends; a block of 168 sequences."""
    sequences = 168
    up, down, gpu = (chain.seconds(shares(wc=1.0, cc=1.0, hc=1.0)) for chain in problem().chains[:3])
    hidden = sequences * 512 * 7168 * 2
    assert up == pytest.approx((LAYER + hidden) / (12.89 * GB))
    assert down == pytest.approx(sequences * 513 * 7168 * 4 / (0.97 * GB) + hidden / (4.82 * GB))
    flops = 2 * 12 * 7168**2 * sequences * 512
    assert gpu == pytest.approx(flops / 21.24e12 + 4 * sequences * 512**2 * 7168 / 9.97e12)
    answers = problem().chains[-1].seconds(shares(wc=1.0, cc=1.0, hc=1.0))
    brought = (LAYER + sequences * 7168 * 2) / (12.89 * GB)
    products = sequences * 2 * 12 * 7168**2 / 4.3e12
    attention = 4 * sequences * (512 + 16) * 7168 / T4.cpu_rate(batch_size=24, hidden_size=7168)
    assert answers == pytest.approx(brought + products + attention)


def test_small_batches_and_narrow_models_slow_the_cpu_down() -> None:
    assert T4.cpu_rate(batch_size=64, hidden_size=4096) == T4.cpu
    assert T4.cpu_rate(batch_size=32, hidden_size=4096) == pytest.approx(T4.cpu * (1 - 0.0328))
    assert T4.cpu_rate(batch_size=64, hidden_size=2048) == pytest.approx(T4.cpu * (1 - 0.0621))
    assert T4.cpu_rate(batch_size=32, hidden_size=2048) == pytest.approx(T4.cpu * (1 + 0.0168 - 0.0328 - 0.0621))
    assert replace(T4, cpu_width=0.2).cpu_rate(batch_size=64, hidden_size=64) == pytest.approx(T4.cpu * 0.1)


def test_a_place_is_filled_to_four_fifths() -> None:
    rooms = {room.name: room for room in problem().rooms}
    assert rooms["drive"].capacity == pytest.approx(0.8 * 1500 * GB)
    whole = shares(wn=1.0, cn=1.0)
    assert rooms["drive"].used(whole) == pytest.approx(48 * (LAYER + 168 * 544 * 7168 * 4))
    assert rooms["GPU, prompts"].used(shares(wg=1.0)) > 48 * LAYER


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_the_search_reaches_what_flexgens_own_programme_finds(case: Case) -> None:
    models = {
        "opt-30b": OPT_30B,
        "opt-66b": FlexGenModel(num_layers=64, hidden_size=9216, intermediate_size=36864, num_heads=72),
        "opt-175b": FlexGenModel(num_layers=96, hidden_size=12288, intermediate_size=49152, num_heads=96),
    }
    hardware = FlexGenHardware(gpu_bytes=case.gpu * GB, host_bytes=case.host * GB, drive_bytes=DRIVE * GB)
    found = best_block(
        lambda batch_size, num_batches: flexgen_problem(
            models[case.model],
            hardware,
            FlexGenBlock(prompt_tokens=512, output_tokens=32, batch_size=batch_size, num_batches=num_batches),
        )
    )
    assert found.best is not None
    assert round(found.best.rate * 32, 2) >= case.wanted
    assert found.best.rate <= found.most_rate


def test_the_benchmark_reads_the_sizes_off_the_model() -> None:
    assert flexgen_model(offload_inputs("opt-30b", "l40s", 200).model) == OPT_30B
