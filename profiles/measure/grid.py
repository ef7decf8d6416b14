"""The logarithmic grid that is measured where no model says what it needs, and which groups of ranks a job has."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from profiles.measure.points import COLLECTIVES, ELEMENTWISE, PARTS, PHASES, Point, point

ON_CPU = 16
"""By what kernels shrink for a CPU, which takes seconds for what a GPU does in a millisecond."""


def _powers(first: int, last: int, factor: int = 2) -> Iterator[int]:
    value = first
    while value <= last:
        yield value
        value *= factor


def group_shapes(world_size: int, per_node: int) -> tuple[tuple[int, int], ...]:
    """Return (size, stride) of every regular group that a layout of so many ranks can have, smallest first.

    Sizes and strides divide the ranks; a group of consecutive ranks has stride 1 (tensor parallelism), one of a member
    in each of several such groups their size (data or pipeline parallelism).
    """
    divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
    found = [
        (size, stride)
        for size in divisors
        for stride in divisors
        if size > 1 and size * stride <= world_size and (stride < per_node or stride % per_node == 0)
    ]
    return tuple(sorted(found))


def default_points(
    suites: Iterable[str], *, dtypes: Sequence[str], world_size: int, per_node: int, shrink: int = 1
) -> tuple[Point, ...]:
    """Return the logarithmic grid that is measured where no model says what it needs.

    Args:
        suites: Which suites.
        dtypes: Formats of products; attention and the rest are measured in the first 16-bit or 32-bit one.
        world_size: Ranks of the job; collectives need two.
        per_node: Ranks of one node.
        shrink: Sizes of kernels are divided by this, a power of two of at most 16: `ON_CPU` for a CPU.
    """
    wide = next((dtype for dtype in dtypes if dtype in ("bf16", "fp16", "fp32")), "bf16")
    makers: Mapping[str, Callable[[], Iterator[Point]]] = {
        "gemm": lambda: _gemm_grid(dtypes, shrink),
        "experts": lambda: _experts_grid(wide, shrink),
        "attention": lambda: _attention_grid(wide, shrink),
        "elementwise": lambda: _elementwise_grid(wide, shrink),
        "collectives": lambda: _collectives_grid(world_size, per_node, shrink),
        "copies": lambda: _copies_grid(per_node),
        "overlap": lambda: _overlap_grid(wide, world_size, shrink),
        "memory": lambda: _memory_grid(world_size, per_node),
        "launch": _launch_grid,
        "layer": lambda: _layer_grid(wide, shrink),
    }
    return tuple(dict.fromkeys(entry for suite in suites for entry in makers[suite]()))


def _gemm_grid(dtypes: Sequence[str], shrink: int) -> Iterator[Point]:
    for dtype in dtypes:
        parts = PARTS if dtype != "int8" else ("forward",)
        for m in _powers(128 // shrink, 32768 // shrink, 4):
            for n in _powers(1024 // shrink, 65536 // shrink, 4):
                for k in _powers(1024 // shrink, 16384 // shrink, 4):
                    for part in parts:
                        yield point("gemm", dtype=dtype, part=part, batch=1, m=m, n=n, k=k)


def _experts_grid(dtype: str, shrink: int) -> Iterator[Point]:
    for batch in (4, 16, 64):
        for m in (64, 512, 4096):
            for n, k in ((2048, 4096), (4096, 14336), (7168, 2048)):
                for part in PARTS:
                    sizes = {"m": m, "n": n // shrink, "k": k // shrink}
                    yield point("experts", dtype=dtype, part=part, batch=batch, **sizes)


def _attention_grid(dtype: str, shrink: int) -> Iterator[Point]:
    widths = {"MHA": (32, 32, 128, 128), "GQA": (32, 8, 128, 128), "few": (8, 1, 128, 128), "MLA": (16, 16, 192, 128)}
    for heads, kv_heads, qk_dim, v_dim in widths.values():
        shape = {"heads": heads, "kv_heads": kv_heads, "qk_dim": qk_dim, "v_dim": v_dim}
        for tokens in _powers(1024 // shrink, 32768 // shrink, 2):
            for phase in PHASES:
                for window in (0, 4096 // shrink) if tokens > 4096 // shrink and qk_dim == v_dim else (0,):
                    yield point(
                        "attention",
                        dtype=dtype,
                        phase=phase,
                        mask="causal",
                        batch=1,
                        query_len=tokens,
                        kv_len=tokens,
                        window=window,
                        **shape,
                    )
        for batch in (1, 16, 128):
            for tokens in (1024 // shrink, 8192 // shrink):
                yield point(
                    "attention",
                    dtype=dtype,
                    phase="decode",
                    mask="full",
                    batch=batch,
                    query_len=1,
                    kv_len=tokens,
                    window=0,
                    **shape,
                )


def _elementwise_grid(dtype: str, shrink: int) -> Iterator[Point]:
    for operation in ELEMENTWISE:
        one_row = operation in ("adam", "copy")
        for phase in ("forward",) if one_row else PHASES:
            width = 32768 if operation == "cross_entropy" else 4096
            shapes = [(rows, width) for rows in _powers(256 // shrink, 16384 // shrink, 4)]
            if one_row:
                shapes = [(1, elements) for elements in _powers(1 << 16, (1 << 28) // shrink, 8)]
            for rows, features in shapes:
                yield point("elementwise", dtype=dtype, operation=operation, phase=phase, rows=rows, features=features)


def _collectives_grid(world_size: int, per_node: int, shrink: int) -> Iterator[Point]:
    for size, stride in group_shapes(world_size, per_node):
        for kind in COLLECTIVES:
            if kind == "send_recv" and size > 2:
                continue
            besides = ("alone", "concurrent") if size < world_size else ("alone",)
            for beside in besides:
                for num_bytes in _powers(1 << 10, (1 << 30) // shrink, 4):
                    modes = ("eager", "graph") if beside == "alone" and num_bytes <= 1 << 20 else ("eager",)
                    for mode in modes:
                        yield point(
                            "collectives",
                            kind=kind,
                            mode=mode,
                            beside=beside,
                            size=size,
                            stride=stride,
                            bytes=num_bytes,
                        )


def _copies_grid(per_node: int) -> Iterator[Point]:
    besides = ("alone", "socket", "concurrent") if per_node > 1 else ("alone",)
    for direction in ("to_device", "to_host"):
        for memory in ("pinned", "pageable"):
            for beside in besides:
                for num_bytes in _powers(1 << 16, 1 << 28, 16):
                    yield point("copies", direction=direction, memory=memory, beside=beside, bytes=num_bytes)
    for direction in ("to_drive", "from_drive"):
        yield point("copies", direction=direction, memory="pageable", beside="alone", bytes=1 << 28)


def _overlap_grid(dtype: str, world_size: int, shrink: int) -> Iterator[Point]:
    besides = ["to_device", "to_host", *(["all_reduce"] if world_size > 1 else [])]
    if world_size > 1 and world_size % 2 == 0:
        besides.append("send_recv")
    for beside in besides:
        for num_bytes in (1 << 24, 1 << 27):
            sizes = {"product": 4096 // shrink, "bytes": num_bytes // shrink}
            yield point("overlap", dtype=dtype, beside=beside, **sizes)


def _memory_grid(world_size: int, per_node: int) -> Iterator[Point]:
    yield point("memory", term="context", count=1)
    for count in dict.fromkeys((2, per_node, world_size)):
        if count > 1 and world_size % count == 0:
            yield point("memory", term="communicator", count=count)
    yield point("memory", term="allocator", count=256)


def _launch_grid() -> Iterator[Point]:
    for term in ("launch", "queue", "graph"):
        for kernels in (1, 100):
            yield point("launch", term=term, kernels=kernels)


def _layer_grid(dtype: str, shrink: int) -> Iterator[Point]:
    for hidden, heads, kv_heads, intermediate in ((4096, 32, 8, 14336), (8192, 64, 8, 28672)):
        for phase in PHASES:
            yield point(
                "layer",
                dtype=dtype,
                phase=phase,
                batch=1,
                tokens=4096 // shrink,
                hidden=hidden // shrink,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=hidden // heads // shrink,
                intermediate=intermediate // shrink,
            )
