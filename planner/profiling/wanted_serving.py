"""Which points a profile should have for a serving spec: every kernel that pricing its engines asks for.

Every engine that the spec allows is priced once, and whatever is asked of a profile is noted: shapes of products, of
attention, of collectives, for every sharding. Tokens of a step, batches and contexts lie on grids that are finer than a
profile needs; of these every second power of two is taken (of products every one: their tiles change that fast). All
points weigh alike: which step is run how often, the plan will say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.serving.measured import Asked, Factors, Measured, unmeasured
from planner.serving.prices import ServingPrices
from planner.serving_search.candidates import DraftGround, Ground
from planner.serving_search.field import ground_of
from planner.serving_search.inputs import ServeInputs
from planner.serving_search.shapes import engine_shapes
from profiles.hardware import Cluster
from profiles.measure.points import Point, Wanted, point
from profiles.measured_operations import points_of
from profiles.ops import Attention, Collective, CollectiveKind, MemoryBound
from profiles.served_kernels import ServedKernel
from profiles.served_rows import ServedRows
from profiles.tables import Shape

MEASURED_RATES = ("bf16", "fp16", "fp8", "int8")
"""Formats of products that the collector measures."""

LEAST_ROWS, MOST_ROWS = 8, 16384
"""Tokens of a step: fewer are one tile, and more no step of a serving engine has."""

LEAST_CONTEXT = 256
"""Tokens that attention sees, at least, in what is asked to be measured."""


class NotedMeasured(Measured):
    """A profile without rows that notes what it is asked.

    Args:
        cluster: What it would be of.
    """

    def __init__(self, cluster: Cluster) -> None:
        rows = ServedRows(cluster=cluster, is_own=True, name="", software="", seconds={}, kernel_seconds=None)
        super().__init__(rows)
        self.asked: dict[tuple[ServedKernel, Shape], None] = {}

    def factors(self, asked: Asked) -> Factors:
        """Return that nothing is known, and note what was asked."""
        self.asked |= dict.fromkeys((asked.kernel, shape) for shape in asked.shapes)
        return unmeasured(len(asked.shapes))


def wanted_serving_points(inputs: ServeInputs) -> tuple[Wanted, ...]:
    """Return the points that price the engines of a serving spec, in the order in which they are asked for.

    Raises:
        profiles.errors.CoverageError: A GPU lacks a rate that the model's formats need.
    """
    found: dict[Point, None] = {}
    longest = inputs.request.workload.max_model_len
    for index, cluster in enumerate(inputs.clusters):
        noted = NotedMeasured(cluster)
        ground = ground_of(inputs.model, replace(cluster, profile=None), inputs.request, index=index)
        _price_all(ground, noted)
        for kernel, shape in noted.asked:
            found |= dict.fromkeys(_points(kernel, shape, node=cluster.gpus_per_node, longest=longest))
    return tuple(Wanted(point=entry) for entry in (*found, point("launch", term="graph", kernels=100)))


def _price_all(ground: Ground, noted: NotedMeasured) -> None:
    """Price every engine that a spec allows on one kind of GPU."""
    model, cluster = ground.prices.model, ground.prices.cluster
    prices = ServingPrices(model, cluster, measured=noted)
    space = engine_shapes(model, cluster, ground.formats, ground.request.constraints)
    draft: DraftGround | None = ground.draft
    of_draft = None if draft is None else ServingPrices(draft.prices.model, cluster, measured=noted)
    for shape in space.shapes:
        prices.costs(shape, ground.formats, ground.engine)
        if draft is not None and of_draft is not None and shape.pp == 1:
            of_draft.costs(shape, draft.formats, ground.engine)


def _points(kernel: ServedKernel, shape: Shape, *, node: int, longest: int) -> Iterator[Point]:
    """Yield what is to be measured for a shape; nothing for those between points of a profile's grid.

    Args:
        kernel: Which kernel.
        shape: The shape.
        node: GPUs of a node.
        longest: Tokens of the longest sequence.
    """
    sizes = shape.sizes
    match kernel:
        case ServedKernel.PRODUCTS | ServedKernel.GROUPED:
            m, n, k, batch = sizes
            if shape.words[0] in MEASURED_RATES and LEAST_ROWS <= m <= MOST_ROWS and _is_power(m):
                suite = "gemm" if kernel is ServedKernel.PRODUCTS else "experts"
                yield point(suite, dtype=shape.words[0], part="forward", batch=batch, m=m, n=n, k=k)
        case ServedKernel.ANSWERS:
            if _is_power_of_four(sizes[0]) and LEAST_CONTEXT <= sizes[3] <= longest and _is_power_of_four(sizes[3]):
                yield _attention_point(sizes, phase="decode")
        case ServedKernel.PROMPTS:
            if sizes[1] == sizes[2] and LEAST_CONTEXT <= sizes[1] <= longest and _is_power(sizes[1]):
                yield from points_of(_attention(sizes), node=node)
        case ServedKernel.ELEMENT_WISE:
            yield from points_of(
                MemoryBound(name=shape.words[0], num_bytes=sizes[0], is_norm=shape.words[0] == "norm"), node=node
            )
        case ServedKernel.COLLECTIVES:
            kind, where = shape.words
            collective = Collective(kind=CollectiveKind(kind), buffer_bytes=sizes[2], size=sizes[0], stride=1)
            for entry in points_of(collective, node=node, crosses=where == "between nodes"):
                yield replace(entry, words=(kind, "graph", "alone"))


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0


def _is_power_of_four(number: int) -> bool:
    return _is_power(number) and number.bit_length() % 2 == 1


def _attention_point(sizes: Sequence[int], *, phase: str) -> Point:
    batch, query_len, _, seen, heads, kv_heads, qk_dim, v_dim = sizes
    return point(
        "attention",
        dtype="bf16",
        phase=phase,
        mask="full",
        batch=batch,
        query_len=query_len,
        kv_len=seen,
        window=0,
        heads=heads,
        kv_heads=kv_heads,
        qk_dim=qk_dim,
        v_dim=v_dim,
    )


def _attention(sizes: Sequence[int]) -> Attention:
    batch, query_len, kv_len, seen, heads, kv_heads, qk_dim, v_dim = sizes
    return Attention(
        batch=batch,
        query_len=query_len,
        kv_len=kv_len,
        pairs=seen * query_len,
        num_heads=heads,
        num_kv_heads=kv_heads,
        qk_head_dim=qk_dim,
        v_head_dim=v_dim,
        dtype="bf16",
        bytes_per_element=2,
        backward=False,
        fused=True,
    )
