"""A whole decoder layer, forward or backward: a check of the sum of its parts.

Two RMS norms, grouped-query attention with rotary embedding left out, SwiGLU, residual sums: PyTorch modules without
compilation. Backward has all gradients, the forward pass left out. `peak_bytes` is the most memory that the allocator
has handed out during a forward and a backward pass, the layer's weights and their gradients included,
workspaces of cuBLAS and what earlier points have left not.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional

from profiles.measure.points import Point
from profiles.measure.suites.context import Context, wide_dtype
from profiles.measure.timing import Call, as_result


class Layer(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A decoder layer.

    Args:
        point: Its sizes.
    """

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = (point.size(name) for name in ("heads", "kv_heads", "head_dim"))
        hidden, intermediate = point.size("hidden"), point.size("intermediate")
        queries, keys = self.heads * self.width, self.kv_heads * self.width
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(hidden) for _ in range(2))
        self.qkv = torch.nn.Linear(hidden, queries + 2 * keys, bias=False)
        self.out = torch.nn.Linear(queries, hidden, bias=False)
        self.up = torch.nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = torch.nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, `[batch, tokens, hidden]`."""
        batch, tokens, _ = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, tokens, -1, self.width).transpose(1, 2)
        queries, keys, values = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        gate, up = self.up(self.norms[1](x)).chunk(2, dim=-1)
        out: torch.Tensor = x + self.down(functional.silu(gate) * up)
        return out


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what a layer takes.

    Raises:
        NotMeasurableError: The format is too narrow, or memory is short.
    """
    dtype = wide_dtype(point)
    batch, tokens, hidden = (point.size(name) for name in ("batch", "tokens", "hidden"))
    layer = Layer(point).to(device=context.device, dtype=dtype)
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
    return as_result(timing, kernel="eager", more=_peak(layer, shape, dtype, context))


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
    weights = sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters())
    others = int(torch.cuda.memory_allocated(context.device)) - weights
    torch.cuda.reset_peak_memory_stats(context.device)
    run()
    return {"peak_bytes": int(torch.cuda.max_memory_allocated(context.device)) - others}
