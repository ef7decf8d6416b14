"""Memory-bound operations: norms, rotary embedding, activations, loss, permutation, optimizer, and a plain copy.

Each runs as the fused kernel that training uses: PyTorch's own where it has one (norms, fused AdamW), else what
`torch.compile` makes of it on a GPU, where Triton is at hand. On a CPU, and without Triton, it is a chain of
operations. The kernel is named in the result.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
import torch._functorch.config
from torch.nn import functional

from profiles.measure.points import Point
from profiles.measure.suites.context import Context, wide_dtype
from profiles.measure.timing import Call, NotMeasurableError, as_result

Function = Callable[..., torch.Tensor]

ROTARY_WIDTH = 128
"""Width of a head, whose halves are rotated against one another."""

EXPERTS_OF_A_TOKEN = 2
"""Rows that a permutation makes of each row: each is read once and written twice."""


def _rotary(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    heads = x.view(x.shape[0], -1, ROTARY_WIDTH)
    one, other = heads.chunk(2, dim=-1)
    turned = torch.cat((-other, one), dim=-1)
    return (heads * cosine[:, None, :] + turned * sine[:, None, :]).view_as(x)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """Return the gated activation of a layer's gate and up projections, side by side."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), labels)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, weight.shape, weight, bias)


def _permute(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.index_select(0, order)


_NATIVE: Mapping[str, tuple[Function, int]] = {"rmsnorm": (_rms_norm, 1), "layernorm": (_layer_norm, 2)}
"""Kernels of PyTorch's own, with how many vectors of features they take beside their input."""

_COMPILED: Mapping[str, Function] = {
    "permute": _permute,
    "rotary": _rotary,
    "swiglu": swiglu,
    "gelu": functional.gelu,
    "cross_entropy": _loss,
}


@cache
def compiled(function: Function) -> Function:
    """Return a function as one kernel of `torch.compile`."""
    # One forward pass is measured backward many times, so a backward pass may not write over what it was left.
    if hasattr(torch._functorch.config, "donated_buffer"):  # else nothing is donated, and the word is not known
        torch._functorch.config.donated_buffer = False
    made: Function = torch.compile(function, dynamic=True)
    return made


def compiles(context: Context) -> bool:
    """Return whether chains of operations are made one kernel here."""
    return context.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what one operation takes.

    Raises:
        NotMeasurableError: The format is too narrow, or memory is short.
    """
    dtype = wide_dtype(point)
    operation = point.word("operation")
    if operation in ("adam", "copy") and point.word("phase") == "backward":
        raise NotMeasurableError(f"{operation} has no backward pass")
    is_compiled = operation in _COMPILED and operation != "permute" and compiles(context)
    make = _maker(point, context.device, dtype, is_compiled=is_compiled)
    timing = context.bench.time(make, operand_bytes(point, dtype.itemsize))
    native = operation in ("rmsnorm", "layernorm", "adam", "copy", "permute")
    return as_result(timing, kernel="native" if native else "compiled" if is_compiled else "eager")


def operand_bytes(point: Point, width: int) -> int:
    """Return about what a point's operands take up."""
    elements = point.size("rows") * point.size("features")
    copies = {"adam": 16 / width, "swiglu": 1.5, "permute": 1 + EXPERTS_OF_A_TOKEN}.get(point.word("operation"), 2)
    return int(elements * width * copies * (1 if point.word("phase") == "forward" else 2))


Operands = tuple[torch.Tensor, ...]


def _maker(point: Point, device: torch.device, dtype: torch.dtype, *, is_compiled: bool) -> Callable[[], Call]:
    operation, elements = point.word("operation"), point.size("rows") * point.size("features")

    def make() -> Call:
        if operation == "adam":
            return _adam(elements, device)
        if operation == "copy":
            source = torch.randn(elements, dtype=dtype, device=device)
            into = torch.empty_like(source)
            return lambda: into.copy_(source)
        function, operands = _applied(point, device, dtype, is_compiled=is_compiled)
        if point.word("phase") == "forward":
            return lambda: function(*operands)
        leaves = [operand.requires_grad_() for operand in operands if operand.is_floating_point()]
        out = function(*operands)
        gradient = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    return make


def _applied(point: Point, device: torch.device, dtype: torch.dtype, *, is_compiled: bool) -> tuple[Function, Operands]:
    """Return an operation and operands for it."""
    rows, features = point.sizes
    operation = point.word("operation")

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=dtype, device=device)

    if operation in _NATIVE:
        function, scales = _NATIVE[operation]
        return function, (random(rows, features), *(random(features) for _ in range(scales)))
    function = compiled(_COMPILED[operation]) if is_compiled else _COMPILED[operation]
    match operation:
        case "permute":
            order = torch.randperm(EXPERTS_OF_A_TOKEN * rows, device=device) % rows
            return function, (random(rows, features), order)
        case "rotary":
            angles = random(rows, ROTARY_WIDTH)
            return partial(function, cosine=angles, sine=angles), (random(rows, max(features, ROTARY_WIDTH)),)
        case "cross_entropy":
            return function, (random(rows, features), torch.randint(0, features, (rows,), device=device))
    return function, (random(rows, features),)


def _adam(elements: int, device: torch.device) -> Call:
    """Return a step of fused AdamW over fp32 parameters, gradients and moments."""
    parameter = torch.nn.Parameter(torch.randn(elements, dtype=torch.float32, device=device))
    parameter.grad = torch.randn_like(parameter)
    # Its count of steps lies on the GPU, or no graph could hold it.
    optimizer = torch.optim.AdamW([parameter], lr=1e-6, fused=True, capturable=device.type == "cuda")
    step: Call = optimizer.step
    return step
