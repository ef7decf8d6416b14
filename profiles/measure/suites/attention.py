"""Scaled dot-product attention through PyTorch's own kernels, each pinned and named.

Without a window: `scaled_dot_product_attention`, held to the first of flash, cuDNN, memory-efficient and plain kernels
that takes the shape (latent attention's wider keys are not for flash). With one: flash's kernel for packed sequences
(`torch.nn.attention.varlen`), which skips what the window hides; a CPU has only the plain one, with a mask.
Backward is the gradient of queries, keys and values, the forward pass left out.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from profiles.measure.points import Point
from profiles.measure.suites.context import Context, wide_dtype
from profiles.measure.timing import Call, NotMeasurableError, as_result, first_line

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}


MOST_REASONS = 2
"""Reasons of one kernel that are kept."""


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what one attention takes.

    Raises:
        NotMeasurableError: No kernel takes the shape, or memory is short.
    """
    dtype = wide_dtype(point)
    packed = point.size("window") > 0 and context.is_cuda
    backward = point.word("phase") == "backward"
    refused: dict[str, str] = {}
    for name, apply in _kernels(point, context, packed=packed):

        def make(apply: Apply = apply) -> Call:
            tensors = _operands(point, context.device, dtype, packed=packed, needs_gradient=backward)
            if not backward:
                return lambda: apply(*tensors)
            out = apply(*tensors)
            gradient = torch.randn_like(out)
            return lambda: torch.autograd.grad(out, tensors, gradient, retain_graph=True)

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                make()()
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:  # as kernels refuse a shape
                refused[name] = _reason(error, [str(warning.message) for warning in said])
                context.bench.machine.release()
                continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            timing = context.bench.time(make, _operand_bytes(point))
        return as_result(timing, kernel=name, more={"refused": refused} if refused else None)
    told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise NotMeasurableError(f"no attention kernel takes this shape here: {told}")


def _reason(error: Exception, warned: Sequence[str]) -> str:
    """Return why a kernel refuses a shape: torch warns of the reasons and then only says that there is no kernel."""
    reasons = [text.partition(" (Triggered")[0].strip() for text in warned]
    told = [text for text in reasons if text and not text.rstrip(".").endswith("because:")]
    return "; ".join([*told[-MOST_REASONS:], first_line(error)] if told else [first_line(error)])


def _operand_bytes(point: Point) -> int:
    batch, query, keys, _, heads, kv_heads, qk, v = point.sizes
    width = 4 if point.word("dtype") == "fp32" else 2
    once = batch * (query * heads + keys * kv_heads) * (qk + v) * width
    return 2 * once if point.word("phase") == "backward" else once


def _operands(point: Point, device: torch.device, dtype: torch.dtype, *, packed: bool, needs_gradient: bool) -> Tensors:
    """Return queries, keys and values: `[batch, heads, tokens, width]`, or packed `[batch * tokens, heads, width]`."""
    batch, query, keys, _, heads, kv_heads, qk, v = point.sizes

    def random(tokens: int, num_heads: int, width: int) -> torch.Tensor:
        made = torch.randn(batch, tokens, num_heads, width, dtype=dtype, device=device)
        # Heads are the second dimension of a view, as a model's projection leaves them.
        made = made.flatten(0, 1) if packed else made.transpose(1, 2)
        return made.detach().requires_grad_(needs_gradient)

    return random(query, heads, qk), random(keys, kv_heads, qk), random(keys, kv_heads, v)


def _kernels(point: Point, context: Context, *, packed: bool) -> Iterator[tuple[str, Apply]]:
    """Yield the kernels that may take a point, best first."""
    if packed:
        yield "flash, packed", _packed(point, context.device)
        return
    mask = _mask(point, context.device)
    causal = point.word("mask") == "causal" and mask is None
    grouped = point.size("heads") != point.size("kv_heads")
    for name, backend in BACKENDS.items():

        def apply(
            queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, backend: SDPBackend = backend
        ) -> torch.Tensor:
            with sdpa_kernel([backend]):
                out: torch.Tensor = scaled_dot_product_attention(
                    queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
                )
            return out

        yield name, apply


def _mask(point: Point, device: torch.device) -> torch.Tensor | None:
    """Return which keys each query sees, where a window or a shorter query does not leave it to the kernel."""
    query, keys, window = point.size("query_len"), point.size("kv_len"), point.size("window")
    causal = point.word("mask") == "causal"
    if not window and (not causal or query == keys):
        return None
    rows = torch.arange(keys - query, keys, device=device)[:, None]
    columns = torch.arange(keys, device=device)[None, :]
    seen = columns <= rows if causal else torch.ones(query, keys, dtype=torch.bool, device=device)
    return seen & (columns > rows - window) if window else seen


def _packed(point: Point, device: torch.device) -> Apply:
    """Return flash's kernel for packed sequences, which knows windows."""
    batch, query, keys, window, heads, kv_heads, _, _ = point.sizes
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - torch has it since 2.10
    except ImportError:
        raise NotMeasurableError("this torch has no attention with a window") from None
    starts = torch.arange(0, (batch + 1) * query, query, dtype=torch.int32, device=device)
    of_keys = torch.arange(0, (batch + 1) * keys, keys, dtype=torch.int32, device=device)
    right = 0 if point.word("mask") == "causal" else -1

    def apply(queries: torch.Tensor, keys_: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = varlen_attn(
            queries,
            keys_,
            values,
            starts,
            of_keys,
            query,
            keys,
            # The window counts the query's own key, the kernel only those to its left.
            window_size=(window - 1, right),
            enable_gqa=heads != kv_heads,
        )
        return out

    return apply
