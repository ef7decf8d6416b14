"""Autograd functions that keep for backward what fused kernels keep, and a record of what autograd keeps.

torch's own operators keep more than a training framework does (a bf16 dropout mask, an upcast of a norm's input), so
norms, activations, rotary embedding, dropout, softmax, routing and cross entropy are functions that save what the
fused kernel saves.

What autograd keeps is read with `saved_tensors_hooks`, by storage: two views of one buffer are one tensor. Parameters
do not count, and neither do tables that all layers share (the rotary angles).
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the activation oracle runs a torch layer (extra: dev)")
functional: Any = torch.nn.functional
BF16 = torch.bfloat16
Tensor = Any


class FusedNorm(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """A norm that keeps its input and its fp32 statistics, one row each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, centred: bool) -> Tensor:
        wide = x.float()
        mean = wide.mean(-1) if centred else None
        wide = wide if mean is None else wide - mean.unsqueeze(-1)
        rstd = wide.pow(2).mean(-1).rsqrt()
        ctx.save_for_backward(x, scale, rstd, *(() if mean is None else (mean,)))
        return (wide * rstd.unsqueeze(-1)).to(x.dtype) * scale


class Kept(torch.autograd.Function):  # type: ignore[misc]
    """What a fused kernel keeps although no gradient needs it: the tensor itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)


class FusedActivation(torch.autograd.Function):  # type: ignore[misc]
    """An activation, gated or not, that keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gated: bool) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1) if gated else (x, None)
        return functional.gelu(gate) if up is None else functional.silu(gate) * up


class FusedRotary(torch.autograd.Function):  # type: ignore[misc]
    """A rotary embedding by shared angles: it keeps nothing of its own, and its output is a new tensor."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)


class FusedDropout(torch.autograd.Function):  # type: ignore[misc]
    """Dropout that keeps a mask of one byte an element; `kept` collects it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, kept: list[Tensor]) -> Tensor:
        mask = torch.rand(x.shape) >= probability
        kept.append(mask)
        ctx.save_for_backward(mask)
        return x * mask / (1 - probability)


class FusedAttention(torch.autograd.Function):  # type: ignore[misc]
    """Causal attention that keeps queries, keys, values, its output and the log-sum-exp of each row."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        query, key, value = (part.transpose(1, 2).float() for part in parts)
        hidden = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).triu(1)
        scores = (query @ key.transpose(-1, -2)).masked_fill(hidden, float("-inf"))
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2).to(parts[0].dtype)
        ctx.save_for_backward(*parts, context, scores.logsumexp(-1))
        return context


class FusedRouting(torch.autograd.Function):  # type: ignore[misc]
    """Scores and choice of experts that keep the scores, the indices of the chosen and their weights."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, visits: int, kept: list[Tensor]) -> tuple[Tensor, Tensor]:
        scores = logits.float().softmax(-1)
        weights, chosen = scores.topk(visits)
        kept += [scores, chosen, weights]
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(chosen)
        return weights, chosen


class FusedGather(torch.autograd.Function):  # type: ignore[misc]
    """Rows by index that keep a map and not what they read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return x[index]


class FusedScatter(torch.autograd.Function):  # type: ignore[misc]
    """Sums of rows by index that keep a map and not what they read."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return rows.new_zeros(kept.shape[0], rows.shape[1]).index_add(0, index, rows)


class FusedWeightedActivation(torch.autograd.Function):  # type: ignore[misc]
    """An activation times a weight a row that keeps its inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, gated: bool) -> Tensor:
        ctx.save_for_backward(x, weights)
        gate, up = x.chunk(2, dim=-1) if gated else (x, None)
        output = functional.relu(gate).square() if up is None else functional.silu(gate) * up
        return (output * weights.unsqueeze(-1)).to(x.dtype)


class FusedSoftmax(torch.autograd.Function):  # type: ignore[misc]
    """Scale, causal mask and softmax in one kernel that keeps its output."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        output = scores.float().masked_fill(hidden, float("-inf")).softmax(-1).to(scores.dtype)
        ctx.save_for_backward(output)
        return output


class FusedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Cross entropy that keeps the fp32 softmax and the targets."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, kept: list[Tensor]) -> Tensor:
        softmax = logits.float().softmax(-1)
        kept.append(softmax)
        ctx.save_for_backward(softmax, targets)
        return -softmax.gather(-1, targets.unsqueeze(-1)).log().mean()


@dataclass(slots=True)
class Recorder:
    """What autograd keeps, and what it is called.

    Args:
        names: Name of each named storage.
        kept: Bytes of each kept storage that is not a parameter, by address; the tensors are held so that no address
            is used twice.
    """

    names: dict[int, str] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)
    parameters: set[int] = field(default_factory=set)

    def discard(self, tensor: Tensor) -> None:
        """Forget that `tensor` is kept: its storage is freed, and recomputation fills it again before backward."""
        self.kept.pop(_address(tensor), None)

    def named(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor`, known by `name` from now on."""
        self.held.append(tensor)
        self.names.setdefault(_address(tensor), name)
        return tensor

    def parameter(self, *shape: int, trainable: bool = True) -> Tensor:
        """Return a parameter, which never counts as kept."""
        made = torch.randn(shape, dtype=BF16).requires_grad_(trainable)
        self.parameters.add(_address(made))
        self.held.append(made)
        return made

    def watch(self) -> Any:
        """Return the context in which everything that autograd saves is recorded."""

        def pack(tensor: Tensor) -> Tensor:
            if _address(tensor) not in self.parameters:
                self.held.append(tensor)
                self.kept[_address(tensor)] = int(tensor.untyped_storage().nbytes())
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    def by_name(self) -> dict[str, int]:
        """Return the bytes of every kept tensor that has a name, all of one name together."""
        found: dict[str, int] = {}
        for address, size in self.kept.items():
            if address in self.names:
                found[self.names[address]] = found.get(self.names[address], 0) + size
        return found

    def nameless(self) -> list[int]:
        """Return the bytes of every kept tensor without a name, ascending."""
        return sorted(size for address, size in self.kept.items() if address not in self.names)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())
