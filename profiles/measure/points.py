"""What can be measured: a point is a suite and the values of that suite's columns.

Words choose a kernel (format, phase, kind); sizes are whole numbers. Points of equal words form a group: between them
the planner interpolates, never across. The order of points is that of their keys' making and never of a set, so that
the same request gives the same order everywhere.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

LARGEST = 1 << 45
"""Largest whole number of a point."""


@dataclass(frozen=True)
class Columns:
    """The columns of one suite.

    Args:
        words: Columns of words, each with the words that it knows.
        sizes: Columns of whole numbers, from 0.
        needs: Columns whose value is at least 1.
    """

    words: Mapping[str, tuple[str, ...]]
    sizes: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return all columns, words first."""
        return (*self.words, *self.sizes)


FORMATS = ("bf16", "fp16", "fp8", "int8", "fp32")
PARTS = ("forward", "grad_input", "grad_weight")
PHASES = ("forward", "backward")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
ELEMENTWISE = ("rmsnorm", "layernorm", "rotary", "swiglu", "gelu", "cross_entropy", "permute", "adam", "copy")

_PRODUCT = Columns(
    words={"dtype": FORMATS, "part": PARTS}, sizes=("batch", "m", "n", "k"), needs=("batch", "m", "n", "k")
)

COLUMNS: Mapping[str, Columns] = MappingProxyType(
    {
        # C[m, n] = A[m, k] B[k, n]; of experts `batch` at once, each with weights of its own.
        "gemm": _PRODUCT,
        "experts": _PRODUCT,
        # window 0 is none; decode has query_len 1 and sees all kv_len keys.
        "attention": Columns(
            words={"dtype": FORMATS, "phase": ("forward", "backward", "decode"), "mask": ("causal", "full")},
            sizes=("batch", "query_len", "kv_len", "window", "heads", "kv_heads", "qk_dim", "v_dim"),
            needs=("batch", "query_len", "kv_len", "heads", "kv_heads", "qk_dim", "v_dim"),
        ),
        # Rows of features; of adam and copy all elements in one row.
        "elementwise": Columns(
            words={"dtype": FORMATS, "operation": ELEMENTWISE, "phase": PHASES},
            sizes=("rows", "features"),
            needs=("rows", "features"),
        ),
        # bytes as in `profiles.ops.Collective.buffer_bytes`; concurrent: all groups of the shape at once.
        "collectives": Columns(
            words={"kind": COLLECTIVES, "mode": ("eager", "graph"), "beside": ("alone", "concurrent")},
            sizes=("size", "stride", "bytes"),
            needs=("size", "stride", "bytes"),
        ),
        # socket: every GPU of the first socket copies at once; concurrent: every GPU of the node.
        "copies": Columns(
            words={
                "direction": ("to_device", "to_host", "to_drive", "from_drive"),
                "memory": ("pinned", "pageable"),
                "beside": ("alone", "socket", "concurrent"),
            },
            sizes=("bytes",),
            needs=("bytes",),
        ),
        # A product of m = n = k while a collective of all ranks, or a copy, of so many bytes runs beside it.
        "overlap": Columns(
            words={"dtype": FORMATS, "beside": ("all_reduce", "send_recv", "to_device", "to_host")},
            sizes=("product", "bytes"),
            needs=("product", "bytes"),
        ),
        # Bytes, not seconds. context: of one process; communicator: of one more group of so many ranks; allocator:
        # what it keeps beyond what was asked for, for so many tensors.
        "memory": Columns(words={"term": ("context", "communicator", "allocator")}, sizes=("count",), needs=("count",)),
        # launch: the host's time for one of so many launches; queue: from a launch to its kernel's end; graph: one
        # kernel of a graph of so many.
        "launch": Columns(words={"term": ("launch", "queue", "graph")}, sizes=("kernels",), needs=("kernels",)),
        # A whole transformer layer, a check of the sum of its parts.
        "layer": Columns(
            words={"dtype": FORMATS, "phase": PHASES},
            sizes=("batch", "tokens", "hidden", "heads", "kv_heads", "head_dim", "intermediate"),
            needs=("batch", "tokens", "hidden", "heads", "kv_heads", "head_dim", "intermediate"),
        ),
    }
)
"""Every suite."""


@dataclass(frozen=True)
class Point:
    """One thing to be measured.

    Args:
        suite: Which suite.
        words: Its words, in the order of the suite's columns.
        sizes: Its whole numbers, likewise.
    """

    suite: str
    words: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def key(self) -> str:
        """Return the point in one line; equal points have equal keys."""
        columns = COLUMNS[self.suite]
        cells = zip(columns.names, (*self.words, *self.sizes), strict=True)
        return " ".join((self.suite, *(f"{name}={value}" for name, value in cells)))

    @property
    def group(self) -> tuple[str, ...]:
        """Return what it shares with the points that are interpolated with it."""
        return (self.suite, *self.words)

    def size(self, name: str) -> int:
        """Return one of its sizes."""
        return self.sizes[COLUMNS[self.suite].sizes.index(name)]

    def word(self, name: str) -> str:
        """Return one of its words."""
        return self.words[tuple(COLUMNS[self.suite].words).index(name)]

    def as_json(self) -> dict[str, object]:
        """Return the point as a mapping of its columns."""
        return {"suite": self.suite, **dict(zip(COLUMNS[self.suite].names, (*self.words, *self.sizes), strict=True))}


def point(suite: str, **values: str | int) -> Point:
    """Return the point with these values.

    Raises:
        ValueError: There is no such suite, a column is missing or unknown, or a value cannot be.
    """
    if suite not in COLUMNS:
        raise ValueError(f"suite {suite[:40]!r} is not one of {', '.join(COLUMNS)}")
    columns = COLUMNS[suite]
    if set(values) != set(columns.names):
        raise ValueError(f"the columns of {suite} are {', '.join(columns.names)}, not {', '.join(sorted(values))}")
    for name, known in columns.words.items():
        if values[name] not in known:
            raise ValueError(f"{name} {str(values[name])[:40]!r} is not one of {', '.join(known)}")
    for name in columns.sizes:
        value = values[name]
        least = 1 if name in columns.needs else 0
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
            raise ValueError(f"{name} = {str(value)[:40]!r} is no whole number from {least} to {LARGEST}")
    return Point(
        suite=suite,
        words=tuple(str(values[name]) for name in columns.words),
        sizes=tuple(int(values[name]) for name in columns.sizes),
    )


def point_from_json(data: object) -> Point:
    """Return the point that `Point.as_json` has written.

    Raises:
        TypeError: It is no mapping with a suite.
        ValueError: It is no point.
    """
    if not isinstance(data, dict) or not isinstance(data.get("suite"), str):
        raise TypeError("a point is a mapping with a suite")
    values = {str(name): value for name, value in data.items() if name != "suite"}
    return point(data["suite"], **values)


def allocator_sizes(count: int) -> tuple[int, ...]:
    """Return the bytes of the tensors that the term `allocator` of the suite `memory` asks for.

    0.5 to 32 MiB and a little, none a power of two, in an order that is always the same.
    """
    return tuple((1 << 19) + (index * 7919 % 997) * (1 << 15) + 512 * index for index in range(count))


@dataclass(frozen=True)
class Wanted:
    """A point with how much depends on it.

    Args:
        point: The point.
        weight: Seconds of a step, or any other measure, that ride on its accuracy; points of no model have 1.
    """

    point: Point
    weight: float = 1.0


def request_text(wanted: Sequence[Wanted]) -> str:
    """Return a request: one point a line, with its weight."""
    lines = (json.dumps({**entry.point.as_json(), "weight": round(entry.weight, 6)}) for entry in wanted)
    return "".join(f"{line}\n" for line in lines)


def read_request(text: str) -> tuple[Wanted, ...]:
    """Return the points of a request, each once, in its order.

    Raises:
        ValueError: A line is no point; the message says which.
    """
    found: dict[Point, Wanted] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = _wanted(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number}: {error}") from None
        found.setdefault(entry.point, entry)
    return tuple(found.values())


def _wanted(data: object) -> Wanted:
    """Return one line of a request.

    Raises:
        TypeError: It is no mapping, or its weight no number.
        ValueError: It is no point, or weighs less than nothing.
    """
    values = dict(data) if isinstance(data, dict) else data
    weight = float(values.pop("weight", 1.0)) if isinstance(values, dict) else 1.0
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight = {weight} is no number from 0")
    return Wanted(point=point_from_json(values), weight=weight)
