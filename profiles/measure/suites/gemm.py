"""Matrix products as training runs them, alone or grouped for experts.

`C[m, n] = A[m, k] B[k, n]`. The three products of a linear layer lie differently in memory, as PyTorch keeps them:

- forward: activations `[m, k]`, weight `[n, k]`, which is read transposed.
- grad_input: gradient `[m, k]`, weight `[k, n]`.
- grad_weight: gradient `[k, m]` and input `[k, n]`; the result is added to an fp32 buffer `[m, n]`, in the product's
  own kernel where cuBLAS takes 16-bit operands and an fp32 sum (`torch.addmm(out_dtype=...)`), else in one more.

fp8 has one scale a tensor and always multiplies rows by rows (`torch._scaled_mm`), with the fast accumulation of the
forward pass alone, as Transformer Engine's recipes have it. int8 is `torch._int_mm`, forward only. Groups of experts
run as one grouped kernel (`torch._grouped_mm`) in bf16 where the GPU has it, else as a batched product.
"""

from collections.abc import Callable, Mapping

import torch

from profiles.measure.points import Point
from profiles.measure.suites.context import DTYPES, Context
from profiles.measure.timing import Call, NotMeasurableError, as_result, first_line

Maker = Callable[[], Call]

GROUPED_SINCE = (9, 0)
"""First compute capability with a grouped kernel of its own (pytorch/pytorch pull request 161407)."""

REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError)
"""How torch refuses a kernel that it has not, or not with these arguments: private ones change between versions."""


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what one product takes.

    Raises:
        NotMeasurableError: The format has no such product, or memory is short.
    """
    dtype = point.word("dtype")
    refused: dict[str, str] = {}
    if dtype == "fp8":
        make, kernel = _scaled(point, context)
    elif dtype == "int8":
        make, kernel = _integer(point, context)
    elif point.size("batch") > 1:
        make, kernel = _grouped(point, context, refused)
    else:
        make, kernel = _plain(point, context, refused)
    timing = context.bench.time(make, _operand_bytes(point))
    return as_result(timing, kernel=kernel, more={"refused": refused} if refused else None)


def _operand_bytes(point: Point) -> int:
    batch, m, n, k = point.sizes
    width = {"fp8": 1, "int8": 1, "fp32": 4}.get(point.word("dtype"), 2)
    result = 4 if point.word("part") == "grad_weight" or point.word("dtype") == "int8" else 2
    return batch * ((m * k + k * n) * width + m * n * result)


def _plain(point: Point, context: Context, refused: dict[str, str]) -> tuple[Maker, str]:
    _, m, n, k = point.sizes
    dtype, device = DTYPES[point.word("dtype")], context.device
    part = point.word("part")

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=dtype, device=device)

    def forward() -> Call:
        activations, weight = random(m, k), random(n, k)
        return lambda: torch.nn.functional.linear(activations, weight)

    def grad_input() -> Call:
        gradient, weight = random(m, k), random(k, n)
        return lambda: torch.mm(gradient, weight)

    def grad_weight() -> Call:
        gradient, inputs = random(k, m).t(), random(k, n)
        into = torch.zeros(m, n, dtype=torch.float32, device=device)
        if dtype is torch.float32:
            return lambda: into.addmm_(gradient, inputs)
        if fused:
            return lambda: torch.ops.aten.addmm.dtype_out(into, gradient, inputs, torch.float32, out=into)
        return lambda: into.add_(torch.mm(gradient, inputs))

    fused = part == "grad_weight" and context.is_cuda and _adds_in_fp32(dtype, device, refused)
    if part == "forward":
        return forward, "linear"
    if part == "grad_input":
        return grad_input, "mm"
    return grad_weight, "addmm" if fused or dtype is torch.float32 else "mm + add"


def _adds_in_fp32(dtype: torch.dtype, device: torch.device, refused: dict[str, str]) -> bool:
    """Return whether a product of 16-bit operands is added to an fp32 buffer by its own kernel; if not, note why."""
    if dtype is torch.float32:
        return False
    if not hasattr(torch.ops.aten.addmm, "dtype_out"):
        refused["addmm"] = "this torch has none with an fp32 sum of narrower operands"
        return False
    operand = torch.ones(16, 16, dtype=dtype, device=device)
    into = torch.zeros(16, 16, dtype=torch.float32, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(into, operand, operand, torch.float32, out=into)
    except REFUSALS as error:
        refused["addmm"] = first_line(error)
        return False
    if not bool((into == 16).all()):
        refused["addmm"] = "its sum is wrong here"
    return not refused


def _scaled(point: Point, context: Context) -> tuple[Maker, str]:
    batch, m, n, k = point.sizes
    if batch > 1:
        raise NotMeasurableError("torch has no grouped product with one scale a tensor in fp8")
    # Rows may be as few as a step of a server has; torch asks it of the other two (`torch._scaled_mm`).
    if n % 16 or k % 16:
        raise NotMeasurableError("products in fp8 need columns and inner dimensions that are multiples of 16")
    device, part = context.device, point.word("part")
    one = torch.ones((), dtype=torch.float32, device=device)
    # Gradients are kept in e5m2, everything else in e4m3 (Micikevicius et al., arXiv 2209.05433).
    left = torch.float8_e4m3fn if part == "forward" else torch.float8_e5m2

    def make() -> Call:
        a = torch.randn(m, k, device=device, dtype=torch.bfloat16).to(left)
        b = torch.randn(n, k, device=device, dtype=torch.bfloat16).to(torch.float8_e4m3fn).t()
        fast = part == "forward"

        def product() -> torch.Tensor:
            out: torch.Tensor = torch._scaled_mm(
                a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=fast
            )
            return out

        if part != "grad_weight":
            return product
        into = torch.zeros(m, n, dtype=torch.float32, device=device)
        return lambda: into.add_(product())

    _require(make)
    return make, "_scaled_mm" if part != "grad_weight" else "_scaled_mm + add"


def _integer(point: Point, context: Context) -> tuple[Maker, str]:
    batch, m, n, k = point.sizes
    if batch > 1 or point.word("part") != "forward":
        raise NotMeasurableError("int8 is for the forward pass of single products")

    def make() -> Call:
        a = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=context.device)
        b = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=context.device).t()
        return lambda: torch._int_mm(a, b)

    _require(make)
    return make, "_int_mm"


def _require(make: Maker) -> None:
    """Try a kernel that not every machine has.

    Raises:
        NotMeasurableError: This one has not.
    """
    try:
        make()()
    except REFUSALS as error:
        raise NotMeasurableError(f"this machine has no such kernel: {first_line(error)}") from None


def _grouped(point: Point, context: Context, refused: dict[str, str]) -> tuple[Maker, str]:
    batch, m, n, k = point.sizes
    dtype, device, part = DTYPES[point.word("dtype")], context.device, point.word("part")
    offsets = torch.arange(m, (batch + 1) * m, m, dtype=torch.int32, device=device)
    depths = torch.arange(k, (batch + 1) * k, k, dtype=torch.int32, device=device)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=dtype, device=device)

    def grouped() -> Call:
        if part == "forward":
            rows, weights = random(batch * m, k), random(batch, n, k).transpose(1, 2)
            return lambda: torch._grouped_mm(rows, weights, offs=offsets)
        if part == "grad_input":
            rows, weights = random(batch * m, k), random(batch, k, n)
            return lambda: torch._grouped_mm(rows, weights, offs=offsets)
        gradient, inputs = random(batch * k, m).t(), random(batch * k, n)
        into = torch.zeros(batch, m, n, dtype=torch.float32, device=device)
        return lambda: into.add_(torch._grouped_mm(gradient, inputs, offs=depths))

    def batched() -> Call:
        if part == "forward":
            rows, weights = random(batch, m, k), random(batch, n, k).transpose(1, 2)
            return lambda: torch.bmm(rows, weights)
        if part == "grad_input":
            rows, weights = random(batch, m, k), random(batch, k, n)
            return lambda: torch.bmm(rows, weights)
        gradient, inputs = random(batch, k, m).transpose(1, 2), random(batch, k, n)
        into = torch.zeros(batch, m, n, dtype=torch.float32, device=device)
        return lambda: into.add_(torch.bmm(gradient, inputs))

    added = " + add" if part == "grad_weight" else ""
    if context.is_cuda and _is_one_kernel(grouped, dtype, device, refused):
        return grouped, f"_grouped_mm{added}"
    return batched, f"bmm{added}"


def _is_one_kernel(grouped: Maker, dtype: torch.dtype, device: torch.device, refused: dict[str, str]) -> bool:
    """Return whether a GPU multiplies a point's groups in one kernel; if not, note why."""
    why_not = grouped_refusal(dtype, torch.cuda.get_device_capability(device))
    if not why_not:
        try:
            _require(grouped)
        except NotMeasurableError as error:
            why_not = str(error)
    if why_not:
        refused["_grouped_mm"] = why_not
    return not why_not


def grouped_refusal(dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """Return why a GPU's experts are not measured as one grouped kernel; empty where they are.

    Before compute capability 9.0 torch multiplies group by group and waits for the offsets on the host, which no graph
    can hold (pytorch/pytorch issue 169970): a capture of it ends the process.

    Args:
        dtype: Format of the operands.
        capability: The GPU's compute capability.
    """
    if dtype is not torch.bfloat16:
        return "it is for bf16"
    if not hasattr(torch, "_grouped_mm"):
        return "this torch has none"
    if capability < GROUPED_SINCE:
        return "before compute capability 9.0 it waits for the host, which no graph can hold"
    return ""
