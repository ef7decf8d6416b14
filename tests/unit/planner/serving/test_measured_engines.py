"""Engines on GPUs that were measured: what was measured comes back, doubles, fades, and says where it comes from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.models.bundled import load_bundled
from planner.serving.engines import KernelFactors, calibration, engine_named
from planner.serving.formats import formats_of
from planner.serving.measured_kernels import is_measured
from planner.serving.prices import ServingPrices
from planner.serving.source_fractions import COUNTED, fractions
from planner.serving.step_costs import StepCosts, Term
from planner.serving.step_tables import TOKENS_T, LayerKernels
from planner.serving_plans.layout import EngineShape
from profiles.catalogue import load_preset
from profiles.estimate import Source
from profiles.hardware import Cluster
from profiles.kernels.operations import FORMATS
from profiles.measure.journal import Journal
from profiles.measure.points import Point, point
from profiles.recorded import read_recording
from profiles.served_kernels import ServedKernel
from profiles.served_rows import served_rows
from tests.written_profiles import result_of, run_line, seconds_of, write_profile

CLUSTER = load_preset("dgx-h100").to_cluster()
MODEL = load_bundled("llama-3.1-8b")
MIXTURE = load_bundled("mixtral-8x7b")
VLLM = engine_named("vllm")
TP1 = EngineShape(tp=1)
ALONE = replace(calibration().kernels, hidden_start=0.0)
"""Kernels as a benchmark runs them, with nothing before them that hides their start."""

TOKENS = 64
"""Tokens of a step that the engine's tables hold exactly."""


def products(rows: int = TOKENS, dtype: str = "bf16") -> list[Point]:
    """Return the products of a step on one GPU, as a profile has them."""
    rank = ServingPrices(MODEL, CLUSTER).rank(TP1, formats_of("bf16", MODEL))
    found = [product for layer in rank.layers for product in layer.products] + [rank.head]
    return [gemm(rows, product.columns, product.depth, dtype) for product in found]


def gemm(m: int, n: int, k: int, dtype: str = "bf16", part: str = "forward") -> Point:
    return point("gemm", dtype=dtype, part=part, batch=1, m=m, n=n, k=k)


def decode(batch: int, context: int) -> Point:
    return attention("decode", "full", batch, 1, context)


def prompt(tokens: int) -> Point:
    return attention("forward", "causal", 1, tokens, tokens)


def attention(phase: str, mask: str, batch: int, query_len: int, kv_len: int) -> Point:
    sizes = {"batch": batch, "query_len": query_len, "kv_len": kv_len, "window": 0}
    heads = {"heads": 32, "kv_heads": 8, "qk_dim": 128, "v_dim": 128}
    return point("attention", dtype="bf16", phase=phase, mask=mask, **sizes, **heads)


def collective(mode: str, beside: str, *, kind: str = "all_reduce", num_bytes: int = 1 << 26) -> Point:
    return point("collectives", kind=kind, mode=mode, beside=beside, size=8, stride=1, bytes=num_bytes)


def measured(cluster: Cluster, directory: Path) -> Cluster:
    return replace(cluster, profile=read_recording(directory).reference)


def costs(
    cluster: Cluster, *, shape: EngineShape = TP1, quantisation: str = "bf16", cache: str = "bfloat16"
) -> StepCosts:
    return ServingPrices(MODEL, cluster).costs(shape, formats_of(quantisation, MODEL, cache=cache), VLLM)


def with_points(
    directory: Path, points: Sequence[Point], *, factor: Callable[[Point], float] = lambda _: 1.0
) -> Cluster:
    return measured(CLUSTER, write_profile(directory, points, CLUSTER, factor=factor))


def with_seconds(directory: Path, *figures: tuple[Point, float], **changed: object) -> Cluster:
    with Journal(directory, resume=True) as journal:
        journal.begin(run_line(CLUSTER, **changed))
        for entry, seconds in figures:
            journal.measured(entry, result_of(seconds))
    return measured(CLUSTER, directory)


def split(prices: ServingPrices, price: Callable[[StepCosts], dict[str, float]]) -> dict[Source, dict[str, float]]:
    """Return a step's terms by source."""
    formats = formats_of("bf16", prices.model)
    return {source: price(prices.counting(source).costs(TP1, formats, VLLM)) for source in COUNTED}


def test_doubled_products_double_in_the_step_and_nothing_else_does(tmp_path: Path) -> None:
    points = [*products(), decode(TOKENS, 1024), prompt(1024)]
    once = costs(with_points(tmp_path / "once", points))
    twice = costs(with_points(tmp_path / "twice", points, factor=lambda entry: 2.0 if entry.suite == "gemm" else 1.0))
    before, after = (found.breakdown(decodes=TOKENS, context=1024) for found in (once, twice))
    for term in (Term.PRODUCTS, Term.HEAD):
        assert before[term] > 0
    assert after[Term.PRODUCTS] == pytest.approx(2 * before[Term.PRODUCTS], rel=1e-9)
    same = set(before) - {Term.PRODUCTS, Term.HEAD}
    assert {term: after[term] for term in same} == pytest.approx({term: before[term] for term in same}, rel=1e-12)
    # The LM head's logits are copied too, which the product's time is not of.
    assert 1.5 * before[Term.HEAD] < after[Term.HEAD] < 2 * before[Term.HEAD]
    gained = sum(after.values()) - sum(before.values())
    assert twice.seconds(decodes=TOKENS, context=1024) - once.seconds(decodes=TOKENS, context=1024) == pytest.approx(
        gained
    )


@pytest.mark.parametrize("factors", [ALONE, calibration().kernels])
def test_a_measured_product_takes_its_time_less_the_hidden_start(tmp_path: Path, factors: KernelFactors) -> None:
    points = products()
    taken = [seconds_of(entry, CLUSTER) * (1 + 0.1 * index) for index, entry in enumerate(points)]
    cluster = with_seconds(tmp_path, *zip(points, taken, strict=True))
    formats, rows = formats_of("bf16", MODEL), np.array([float(TOKENS)])
    prices = ServingPrices(MODEL, cluster, factors)
    (layer,) = prices.rank(TP1, formats).layers
    alone, inside = (LayerKernels(CLUSTER.device, of, VLLM.name) for of in (ALONE, factors))
    kept = [float(inside.product_T(product, rows)[0] / alone.product_T(product, rows)[0]) for product in layer.products]
    expected = layer.count * sum(seconds * part for seconds, part in zip(taken, kept, strict=False))
    found = prices.costs(TP1, formats, VLLM).tables.products_T[TOKENS_T.index(TOKENS)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert (kept == [1.0] * len(kept)) is (factors is ALONE)


def test_measured_attention_takes_its_time(tmp_path: Path) -> None:
    cluster = with_seconds(tmp_path, (decode(16, 1024), 4e-3), (prompt(3000), 5e-3))
    found = ServingPrices(MODEL, cluster, ALONE).costs(TP1, formats_of("bf16", MODEL), VLLM)
    assert found.answers_seconds(16, 1024) == pytest.approx(MODEL.num_layers * 4e-3, rel=1e-9)
    assert found.prompts_seconds([(3000, 0)]) == pytest.approx(MODEL.num_layers * 5e-3, rel=1e-9)
    # Alike prompts together take as much longer as by the engine's own price.
    own = ServingPrices(MODEL, CLUSTER, ALONE).costs(TP1, formats_of("bf16", MODEL), VLLM)
    slower = own.prompts_seconds([(3000, 0)] * 2) / own.prompts_seconds([(3000, 0)])
    assert found.prompts_seconds([(3000, 0)] * 2) == pytest.approx(slower * MODEL.num_layers * 5e-3, rel=1e-9)


def test_between_measured_lengths_a_factor_lies_between_theirs(tmp_path: Path) -> None:
    points = [prompt(2**power) for power in range(8, 15)]
    found, own = costs(with_points(tmp_path, points, factor=lambda _: 1.5)), costs(CLUSTER)
    for tokens in (700, 1500, 6000):
        reached = found.prompts_seconds([(tokens, 0)]) / own.prompts_seconds([(tokens, 0)])
        near = [2 ** math.floor(math.log2(tokens)), 2 ** math.ceil(math.log2(tokens))]
        ends = [found.prompts_seconds([(end, 0)]) / own.prompts_seconds([(end, 0)]) for end in near]
        assert min(ends) - 1e-9 <= reached <= max(ends) + 1e-9


def test_what_a_profile_does_not_have_is_priced_as_without(tmp_path: Path) -> None:
    cluster = with_points(tmp_path, [prompt(1024)])
    for quantisation, cache in (("bf16", "bfloat16"), ("fp8", "fp8"), ("awq", "bfloat16")):
        found, own = (
            costs(on, quantisation=quantisation, cache=cache).breakdown(decodes=100, context=900.0)
            for on in (cluster, CLUSTER)
        )
        assert found == pytest.approx(own, rel=1e-12)


def test_weights_that_are_unpacked_and_caches_of_other_widths_stand_on_no_row(tmp_path: Path) -> None:
    cluster = with_points(tmp_path, [*products(), decode(64, 1024)], factor=lambda _: 3.0)
    unpacked, own = (costs(on, quantisation="awq") for on in (cluster, CLUSTER))
    terms = unpacked.breakdown(decodes=64, context=1024), own.breakdown(decodes=64, context=1024)
    assert terms[0][Term.PRODUCTS] == pytest.approx(terms[1][Term.PRODUCTS], rel=1e-12)
    assert terms[0][Term.ANSWERS] > 2 * terms[1][Term.ANSWERS]
    narrow, own = (costs(on, cache="fp8") for on in (cluster, CLUSTER))
    assert narrow.answers_seconds(64, 1024) == pytest.approx(own.answers_seconds(64, 1024), rel=1e-12)
    assert {name for name, kind in FORMATS.items() if is_measured(kind)} >= {"bfloat16", "float16", "fp8", "int8"}
    assert not {name for name, kind in FORMATS.items() if is_measured(kind)} & {"int8_wo", "int4_wo", "w4afp8"}


def test_grouped_experts_double_with_what_was_measured(tmp_path: Path) -> None:
    sizes = {"m": 512, "n": 2 * 14336, "k": 4096}
    points = [
        point("experts", dtype="bf16", part="forward", batch=8, **sizes),
        point("experts", dtype="bf16", part="forward", batch=8, m=512, n=4096, k=14336),
    ]
    formats = formats_of("bf16", MIXTURE)
    clusters = (
        with_points(tmp_path / "once", points),
        with_points(tmp_path / "twice", points, factor=lambda _: 2.0),
    )
    before, after = (
        ServingPrices(MIXTURE, cluster).costs(TP1, formats, VLLM).breakdown(chunks=[(2048.0, 0.0)], finished=1)
        for cluster in clusters
    )
    # 2,048 tokens choose two of eight experts: 512 rows each. Sorting and copies are not of the products.
    assert 1.7 * before[Term.EXPERTS] < after[Term.EXPERTS] < 2 * before[Term.EXPERTS]
    assert before[Term.PRODUCTS] == after[Term.PRODUCTS]


def test_collectives_of_graphs_count_before_those_that_the_host_starts(tmp_path: Path) -> None:
    shape = EngineShape(tp=8)
    both = with_seconds(tmp_path / "both", (collective("eager", "alone"), 9e-3), (collective("graph", "alone"), 7e-3))
    eager = with_seconds(
        tmp_path / "eager", (collective("eager", "alone"), 9e-3), (collective("eager", "concurrent"), 8e-3)
    )
    formats = formats_of("bf16", MODEL)
    for cluster, expected in ((both, 7e-3), (eager, 8e-3)):
        times = ServingPrices(MODEL, cluster).exchange(VLLM)
        assert float(times.all_reduce_seconds_P(np.array([float(1 << 26)]), 8)[0]) == pytest.approx(expected, rel=1e-9)
        # Of small tensors the engine's own kernel is faster than a slow library's.
        small, own = (
            ServingPrices(MODEL, on).exchange(VLLM).all_reduce_seconds_P(np.array([4096.0]), 8)
            for on in (cluster, CLUSTER)
        )
        assert float(small[0]) == pytest.approx(float(own[0]), rel=1e-12)
    slow = ServingPrices(MODEL, both).costs(shape, formats, VLLM).breakdown(chunks=[(8192.0, 0.0)], finished=1)
    fast = ServingPrices(MODEL, CLUSTER).costs(shape, formats, VLLM).breakdown(chunks=[(8192.0, 0.0)], finished=1)
    assert slow[Term.EXCHANGE] > 2 * fast[Term.EXCHANGE]


def test_element_wise_kernels_take_what_was_measured_over_their_start(tmp_path: Path) -> None:
    norm = point("elementwise", dtype="bf16", operation="rmsnorm", phase="forward", rows=8192, features=4096)

    def taken(name: str, seconds: float) -> float:
        found = costs(with_seconds(tmp_path / name, (norm, seconds)))
        return found.breakdown(chunks=[(8192.0, 0.0)], finished=1)[Term.ELEMENT_WISE]

    terms = [taken("once", 1e-4), taken("twice", 2e-4)]
    # Other kernels stand on the norm, further away; so they lose a part of what it gains.
    assert 2 * terms[0] > terms[1] > 1.5 * terms[0] > 0
    assert 0 <= taken("tiny", 1e-9) < terms[0]


def test_a_bare_graph_bounds_small_kernels_from_below(tmp_path: Path) -> None:
    graph = point("launch", term="graph", kernels=100)
    one = point("launch", term="graph", kernels=1)
    slow = with_seconds(tmp_path / "slow", (products()[0], 1e-3), (one, 9e-5), (graph, 2e-5))
    fast = with_seconds(tmp_path / "fast", (products()[0], 1e-3), (graph, 1e-6))
    assert ServingPrices(MODEL, slow).engine(VLLM).kernel_seconds == 2e-5
    assert ServingPrices(MODEL, fast).engine(VLLM) == VLLM
    host = split(ServingPrices(MODEL, slow), lambda found: found.breakdown(decodes=8, context=64.0))
    kernels = costs(slow).tables.num_kernels
    assert host[Source.MEASURED][Term.HOST] == pytest.approx(2e-5 * kernels)
    assert host[Source.INTERPOLATED][Term.HOST] == 0.0


def test_every_source_has_its_part_and_the_parts_are_all(tmp_path: Path) -> None:
    cluster = with_points(tmp_path, [*products(), decode(64, 1024), prompt(1024)])
    prices = ServingPrices(MODEL, cluster)

    def step(found: StepCosts) -> dict[str, float]:
        return found.breakdown(decodes=64, context=1024)

    whole, parts = step(costs(cluster)), split(prices, step)
    measured_parts = parts[Source.MEASURED]
    assert measured_parts[Term.PRODUCTS] == pytest.approx(whole[Term.PRODUCTS], rel=1e-9)
    assert measured_parts[Term.ANSWERS] == pytest.approx(whole[Term.ANSWERS], rel=1e-9)
    assert measured_parts[Term.HOST] == measured_parts[Term.ELEMENT_WISE] == 0
    assert parts[Source.INTERPOLATED] == parts[Source.ASSUMED] == dict.fromkeys(whole, 0.0)
    found = fractions(sum(whole.values()), {source: sum(terms.values()) for source, terms in parts.items()})
    assert list(found) == [source.value for source in Source]
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["measured"] == pytest.approx(sum(measured_parts.values()) / sum(whole.values()))
    beside = split(prices, lambda of: of.breakdown(decodes=48, context=1024))
    assert beside[Source.MEASURED][Term.PRODUCTS] == 0
    assert beside[Source.EXTRAPOLATED][Term.PRODUCTS] + beside[Source.INTERPOLATED][Term.PRODUCTS] > 0


def test_another_generation_is_priced_without_it_and_another_memory_by_assumption(tmp_path: Path) -> None:
    with_points(tmp_path, products(), factor=lambda _: 2.0)
    older, larger = (measured(load_preset(name).to_cluster(), tmp_path) for name in ("dgx-a100", "dgx-h200"))
    assert not ServingPrices(MODEL, older).is_measured
    bare = replace(larger, profile=None)

    def step(of: StepCosts) -> dict[str, float]:
        return of.breakdown(decodes=TOKENS, context=512.0)

    found, own = step(costs(larger)), step(costs(bare))
    assert found[Term.PRODUCTS] == pytest.approx(2 * own[Term.PRODUCTS], rel=0.05), "residuals, not times"
    parts = split(ServingPrices(MODEL, larger), step)
    assert parts[Source.ASSUMED][Term.PRODUCTS] == pytest.approx(found[Term.PRODUCTS])
    assert parts[Source.MEASURED] == dict.fromkeys(found, 0.0)


def test_a_forward_product_counts_before_that_of_a_gradient(tmp_path: Path) -> None:
    own, other = gemm(64, 4096, 4096), gemm(64, 4096, 4096, part="grad_input")
    for name, figures, expected in (("both", ((other, 3e-3), (own, 2e-3)), 2e-3), ("other", ((other, 3e-3),), 3e-3)):
        with_seconds(tmp_path / name, *figures)
        rows = served_rows(read_recording(tmp_path / name), CLUSTER)
        assert list(rows.of(ServedKernel.PRODUCTS).values()) == pytest.approx([expected])
