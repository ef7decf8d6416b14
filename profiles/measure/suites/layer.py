"""A whole decoder layer, forward or backward: a check of the sum of its parts.

Two RMS norms, grouped-query attention with rotary embedding, SwiGLU, residual sums, out of the kernels that the other
suites measure: PyTorch's own norms, products and attention, rotary embedding and activation compiled on a GPU with
Triton. Backward has all gradients, the forward pass left out. `peak_bytes` is the most memory that the allocator has
handed out during a forward and a backward pass, the layer's weights and their gradients included, workspaces of cuBLAS
and what earlier points have left not.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional

from profiles.measure.points import Point
from profiles.measure.suites.context import Context, wide_dtype
from profiles.measure.suites.elementwise import compiled, compiles, swiglu
from profiles.measure.timing import Call, as_result

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-other, one), dim=-1) * sine


def split_heads(
    qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, num_heads: int, num_kv_heads: int
) -> Heads:
    """Return queries, keys and values out of one projection, as tensors of their own, the first two rotated.

    Args:
        qkv: `[batch, tokens, all heads, width]`.
        cosine: `[tokens, 1, width]`.
        sine: Likewise.
        num_heads: Heads of the queries.
        num_kv_heads: Heads of the keys, and of the values.
    """
    queries, keys, values = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    return _rotated(queries, cosine, sine), _rotated(keys, cosine, sine), values.contiguous()


class Layer(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A decoder layer.

    Args:
        point: Its sizes.
        fuses: Rotary embedding and activation are compiled.
    """

    def __init__(self, point: Point, *, fuses: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = (point.size(name) for name in ("heads", "kv_heads", "head_dim"))
        hidden, intermediate = point.size("hidden"), point.size("intermediate")
        queries, keys = self.heads * self.width, self.kv_heads * self.width
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(hidden) for _ in range(2))
        self.qkv = torch.nn.Linear(hidden, queries + 2 * keys, bias=False)
        self.out = torch.nn.Linear(queries, hidden, bias=False)
        self.up = torch.nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = torch.nn.Linear(intermediate, hidden, bias=False)
        self.register_buffer("angles", torch.randn(point.size("tokens"), 1, self.width))
        self.activation = compiled(swiglu) if fuses else swiglu
        self.split = compiled(split_heads) if fuses else split_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, `[batch, tokens, hidden]`."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, tokens, -1, self.width)
        split = self.split(qkv, self.angles, self.angles, self.heads, self.kv_heads)
        queries, keys, values = (part.transpose(1, 2) for part in split)
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        out: torch.Tensor = x + self.down(self.activation(self.up(self.norms[1](x))))
        return out


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what a layer takes.

    Raises:
        NotMeasurableError: The format is too narrow, or memory is short.
    """
    dtype = wide_dtype(point)
    batch, tokens, hidden = (point.size(name) for name in ("batch", "tokens", "hidden"))
    fuses = compiles(context)
    layer = Layer(point, fuses=fuses).to(device=context.device, dtype=dtype)
    parameters = list(layer.parameters())
    shape = (batch, tokens, hidden)

    def make() -> Call:
        x = torch.randn(*shape, dtype=dtype, device=context.device, requires_grad=True)
        if point.word("phase") == "forward":
            return lambda: layer(x)
        out = layer(x)
        gradient = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (x, *parameters), gradient, retain_graph=True)

    # Its weights alone overflow any cache, so one set of inputs is enough.
    num_bytes = sum(parameter.numel() for parameter in parameters) * dtype.itemsize
    timing = context.bench.time(make, max(num_bytes, 2 * context.bench.machine.cache_bytes))
    return as_result(timing, kernel="compiled" if fuses else "eager", more=_peak(layer, shape, dtype, context))


def _peak(layer: Layer, shape: tuple[int, ...], dtype: torch.dtype, context: Context) -> Mapping[str, object]:
    if not context.is_cuda:
        return {}

    def run() -> None:
        layer(torch.randn(*shape, dtype=dtype, device=context.device, requires_grad=True)).sum().backward()
        torch.cuda.synchronize()
        layer.zero_grad(set_to_none=True)

    # The first makes the workspaces of cuBLAS. These, and what other points have left, are not the layer's.
    run()
    context.bench.machine.release()
    held = (*layer.parameters(), *layer.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
    others = int(torch.cuda.memory_allocated(context.device)) - weights
    torch.cuda.reset_peak_memory_stats(context.device)
    run()
    return {"peak_bytes": int(torch.cuda.max_memory_allocated(context.device)) - others}
