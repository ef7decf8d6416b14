"""One class of operations slower: what belongs to it takes longer by its band, nothing else does."""

import pytest

from profiles.analytic import AnalyticCostModel
from profiles.ops import Attention, Collective, CollectiveKind, Gemm, MemoryBound
from profiles.slowed import OperationClass, SlowedCostModel
from profiles.software import CURRENT_SOFTWARE
from tests.builders import two_node_cluster

CLUSTER = two_node_cluster()
PREDICTED = AnalyticCostModel(CLUSTER)


def slowed(kind: OperationClass) -> SlowedCostModel:
    return SlowedCostModel(PREDICTED, cluster=CLUSTER, software=CURRENT_SOFTWARE, slow=kind)


def collective(kind: CollectiveKind, size: int, stride: int, first_rank: int | None = 0) -> Collective:
    return Collective(kind=kind, buffer_bytes=1 << 24, size=size, stride=stride, first_rank=first_rank)


COMPUTE = {
    OperationClass.PRODUCTS: Gemm(
        m=512, n=512, k=512, dtype="bf16", input_bytes_per_element=2, output_bytes_per_element=2
    ),
    OperationClass.ATTENTION: Attention(
        batch=1,
        query_len=512,
        kv_len=512,
        pairs=512 * 513 // 2,
        num_heads=8,
        num_kv_heads=8,
        qk_head_dim=64,
        v_head_dim=64,
        dtype="bf16",
        bytes_per_element=2,
        backward=False,
        fused=True,
    ),
    OperationClass.MEMORY_BOUND: MemoryBound(name="norm", num_bytes=1 << 24),
}
COLLECTIVES = [
    (collective(CollectiveKind.ALL_REDUCE, 4, 1), OperationClass.INSIDE),
    (collective(CollectiveKind.ALL_REDUCE, 8, 1), OperationClass.BETWEEN),
    (collective(CollectiveKind.ALL_GATHER, 2, 2), OperationClass.INSIDE),
    (collective(CollectiveKind.ALL_GATHER, 2, 4), OperationClass.BETWEEN),
    (collective(CollectiveKind.SEND_RECV, 2, 1, first_rank=0), OperationClass.INSIDE),
    (collective(CollectiveKind.SEND_RECV, 2, 1, first_rank=3), OperationClass.BETWEEN),
]


@pytest.mark.parametrize("kind", OperationClass)
def test_a_class_takes_longer_by_its_band_and_no_other_does(kind: OperationClass) -> None:
    model = slowed(kind)
    factor = 1.0 + kind.band.value
    for own, operation in COMPUTE.items():
        ratio = model.compute(operation).seconds / PREDICTED.compute(operation).seconds
        assert ratio == pytest.approx(factor if own is kind else 1.0)
    for sent, own in COLLECTIVES:
        ratio = model.collective(sent).seconds / PREDICTED.collective(sent).seconds
        assert ratio == pytest.approx(factor if own is kind else 1.0)
    assert model.launch_seconds / PREDICTED.launch_seconds == pytest.approx(
        factor if kind is OperationClass.HOST else 1.0
    )
    assert model.overlap_slowdown == PREDICTED.overlap_slowdown
    assert model.transfer_slowdown == PREDICTED.transfer_slowdown
    assert model.tensor_parallel_overlap == PREDICTED.tensor_parallel_overlap


def test_an_estimate_says_that_it_is_slowed() -> None:
    product = COMPUTE[OperationClass.PRODUCTS]
    assert slowed(OperationClass.PRODUCTS).compute(product).note.endswith("; matrix products slower by 16 %")
    assert slowed(OperationClass.HOST).compute(product) == PREDICTED.compute(product)


def test_every_class_has_a_band_with_a_source() -> None:
    for kind in OperationClass:
        assert 0.0 < kind.band.value < 1.0
        assert kind.band.source
