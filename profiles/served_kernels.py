"""Kernels of a serving engine that a profile measures, and which points measure them.

An engine multiplies forward, decodes, and runs inside captured graphs: of a shape that was measured several ways the
one nearest to that counts (`unlikeness`).
"""

from enum import StrEnum

from profiles.measure.points import Point
from profiles.measured_operations import FAMILIES, Family, FamilySpec


class ServedKernel(StrEnum):
    """Kernels of an engine that are interpolated together."""

    PRODUCTS = "matrix products"
    GROUPED = "grouped products"
    PROMPTS = "attention of prompts"
    ANSWERS = "attention of answers"
    ELEMENT_WISE = "element-wise kernels"
    COLLECTIVES = "collectives"

    @property
    def family(self) -> FamilySpec:
        """Return how their shapes lie."""
        return FAMILIES[_FAMILY_OF[self]]


_FAMILY_OF = {
    ServedKernel.PRODUCTS: Family.PRODUCTS,
    ServedKernel.GROUPED: Family.PRODUCTS,
    ServedKernel.PROMPTS: Family.ATTENTION,
    ServedKernel.ANSWERS: Family.ATTENTION,
    ServedKernel.ELEMENT_WISE: Family.MEMORY_BOUND,
    ServedKernel.COLLECTIVES: Family.COLLECTIVES,
}

_ELEMENT_WISE = ("rmsnorm", "layernorm", "rotary", "swiglu", "gelu", "permute", "copy")
"""Measured operations that engines run."""

_COLLECTIVES = ("all_reduce", "all_gather", "send_recv")

_UNLIKENESS = {
    "forward": 0,
    "grad_input": 1,
    "graph alone": 0,
    "graph concurrent": 0,
    "eager concurrent": 1,
    "eager alone": 2,
}
"""A product for the gradient stands in for a forward one, and a collective that the host starts for one in a graph."""


def unserved(point: Point) -> str | None:
    """Return why a point prices no kernel of an engine whatever the GPU; None where it may."""
    match point.suite:
        case "gemm" | "experts" if point.word("part") == "grad_weight":
            return "engines compute no gradients"
        case "attention" if point.word("phase") == "backward":
            return "engines compute no gradients"
        case "elementwise" if point.word("phase") == "backward" or point.word("operation") not in _ELEMENT_WISE:
            return "engines compute no gradients, no loss and no optimizer step"
        case "collectives" if point.word("kind") not in _COLLECTIVES:
            return f"engines are priced with {', '.join(_COLLECTIVES)}"
        case "collectives" if point.size("stride") > 1 and point.word("kind") != "send_recv":
            return "groups of an engine are of neighbouring GPUs"
    return None


_KERNEL_OF = {
    "gemm": ServedKernel.PRODUCTS,
    "experts": ServedKernel.GROUPED,
    "elementwise": ServedKernel.ELEMENT_WISE,
    "collectives": ServedKernel.COLLECTIVES,
}


def kernel_of(point: Point) -> ServedKernel | None:
    """Return which kernel a point measures; None where it measures none of an engine."""
    if unserved(point) is not None:
        return None
    if point.suite == "attention":
        return ServedKernel.ANSWERS if point.word("phase") == "decode" else ServedKernel.PROMPTS
    return _KERNEL_OF.get(point.suite)


def unlikeness(point: Point) -> int:
    """Return how unlike an engine a point was measured; among those of one shape the least counts."""
    match point.suite:
        case "gemm" | "experts":
            return _UNLIKENESS[point.word("part")]
        case "collectives":
            return _UNLIKENESS[f"{point.word('mode')} {point.word('beside')}"]
    return 0
