"""What steps are priced from, held against the shipped timings of single kernels on H100."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import numpy as np
import pytest

from planner.serving.engines import Engine, KernelFactors, calibration
from planner.serving.exchange import ExchangeTimes
from planner.serving.rank_model import RoutedExperts
from planner.serving.step_tables import LayerKernels
from profiles.catalogue import load_device, load_preset
from profiles.kernels.operations import FORMATS
from profiles.store import shipped_directory

ALONE = KernelFactors(
    blackwell_fp8=1.0,
    blackwell_fp4=1.0,
    blackwell_memory=1.0,
    experts_memory=1.0,
    hidden_start=0.0,
    fp4_experts_share=1.0,
    fp4_start_seconds=0.0,
    routing_spread=0.0,
)
"""Kernels alone, as benchmarks time them."""


def _rows(table: str) -> Iterator[dict[str, str]]:
    text = (shipped_directory() / "h100-sxm-80gb" / f"{table}.csv").read_text(encoding="utf-8")
    yield from csv.DictReader(io.StringIO(text))


def _engine(origin: str) -> Engine | None:
    """Return the engine whose kernels a timing is of."""
    return next((engine for name, engine in calibration().engines.items() if origin.startswith(name)), None)


@pytest.mark.parametrize("size", [2, 8])
def test_sums_in_graphs_take_what_the_engines_timings_say(size: int) -> None:
    cluster = load_preset("dgx-h100").to_cluster()
    errors = []
    for row in _rows("collectives"):
        engine = _engine(row["origin"])
        if row["op"] != "all_reduce" or engine is None or row["origin"].endswith("eager"):
            continue
        num_bytes = int(row["bytes"])
        if int(row["num_gpus"]) != size or num_bytes > 256e6:
            continue
        exchange = ExchangeTimes(cluster, engine.sums)
        predicted = float(exchange.all_reduce_seconds_P(num_bytes, size))
        errors.append(abs(predicted * 1e6 / float(row["latency_us"]) - 1))
    assert len(errors) > 100
    assert median(errors) < 0.15


def test_a_larger_sum_never_takes_less() -> None:
    engine = calibration().engines["vllm"]
    exchange = ExchangeTimes(load_preset("dgx-h100").to_cluster(), engine.sums)
    sizes = np.geomspace(256, 1e9, 200)
    for ranks in (2, 4, 8):
        assert (np.diff(exchange.all_reduce_seconds_P(sizes, ranks)) >= 0).all()


def test_a_group_of_one_sends_nothing() -> None:
    exchange = ExchangeTimes(load_preset("dgx-h100").to_cluster(), calibration().engines["vllm"].sums)
    assert float(exchange.all_reduce_seconds_P(1e6, 1)) == float(exchange.gather_seconds_P(1e6, 1)) == 0.0


def test_experts_take_what_published_timings_say() -> None:
    device = load_device("h100-sxm-80gb")
    errors: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for number, row in enumerate(_rows("moe")):
        if number % 2 or row["distribution"] != "balanced" or row["moe_dtype"] not in {"bfloat16", "fp8_block"}:
            continue
        engine = _engine(row["origin"])
        if engine is None or int(row["moe_ep_size"]) > 1:
            continue
        kernels = LayerKernels(device, ALONE, engine.name)
        name = {"bfloat16": "bf16"}.get(row["moe_dtype"], row["moe_dtype"])
        experts = RoutedExperts(
            hidden=int(row["hidden_size"]),
            inter=int(row["inter_size"]) // int(row["moe_tp_size"]),
            gated=True,
            experts=int(row["num_experts"]),
            copies=int(row["num_experts"]),
            on_rank=int(row["num_experts"]),
            topk=int(row["topk"]),
            format=FORMATS[row["moe_dtype"]],
            grouped=name,
        )
        tokens = int(row["num_tokens"])
        predicted = float(kernels.experts_T(experts, np.array([float(tokens)]))[0])
        errors[name, tokens > 512].append(abs(predicted * 1e6 / float(row["latency_us"]) - 1))
    assert len(errors) == 4
    for kind, found in errors.items():
        assert len(found) > 20
        assert median(found) < 0.25, kind
