"""A decoder layer in torch that keeps for backward what fused kernels keep, with each tensor under the ledger's name.

torch's own operators keep more than a training framework does (a bf16 dropout mask, an upcast of a norm's input), so
norms, activations, rotary embedding, dropout, softmax and cross entropy are autograd functions that save what the
fused kernel saves. Linear layers are torch's own; so is flash attention, in its CPU kernel.

What autograd keeps is read with `saved_tensors_hooks`, by storage: two views of one buffer are one tensor. Parameters
do not count, and neither do tables that all layers share (the rotary angles).
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from planner.blocks import DenseFeedForward, Norm, SelfAttention
from planner.specs import ModelSpec
from planner.workload import AttentionKernel, TrainWorkload

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


@dataclass(slots=True)
class TorchLayer:
    """One decoder layer of a model under a run, on one rank.

    Args:
        model: The model; its first block is built.
        workload: The run: kernel, dropout, adapters.
        recorder: Where tensors are named.
        recompute_mlp: The feed-forward block, its norm included, is recomputed.
    """

    model: ModelSpec
    workload: TrainWorkload
    recorder: Recorder
    recompute_mlp: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of `[sequences, tokens, hidden]`."""
        block = self.model.runs[0].block
        attention, feed_forward = block.mixer, block.feed_forward
        assert attention is not None
        assert feed_forward is not None
        self.recorder.named("attention norm input", x)
        normed = self.norm("attention norm output", x)
        mixed = self.attention(attention, normed)
        if block.parallel:
            second = normed if block.num_norms == 1 else self.norm("feed-forward norm output", x)
            return x + self.dropout("feed-forward residual", mixed + self.mlp(feed_forward, second))
        stream = self.recorder.named("feed-forward norm input", x + self.dropout("attention residual", mixed))

        def second_half(stream: Tensor) -> Tensor:
            return self.mlp(feed_forward, self.norm("feed-forward norm output", stream))

        if self.recompute_mlp:
            output = torch.utils.checkpoint.checkpoint(second_half, stream, use_reentrant=True)
        else:
            output = second_half(stream)
        return stream + self.dropout("feed-forward residual", output)

    @property
    def trains_base(self) -> bool:
        """Return whether the layer's own weights have gradients."""
        return self.workload.lora is None

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return a norm of the model's kind."""
        scale = self.recorder.parameter(x.shape[-1], trainable=self.trains_base)
        return self.recorder.named(name, FusedNorm.apply(x, scale, self.model.norm is Norm.LAYER))

    def linear(self, name: str, x: Tensor, out_features: int) -> Tensor:
        """Return a linear layer, with its adapter if it has one."""
        weight = self.recorder.parameter(out_features, x.shape[-1], trainable=self.trains_base)
        column = name in {"qkv", "fc1"}
        if column and not self.trains_base:
            x = Kept.apply(x)  # the fused norm's output stays although the weight is frozen
        output = functional.linear(x, weight)
        lora = self.workload.lora
        if lora is not None and name in lora.target_modules:
            if column:
                x = self.recorder.named(f"{name} adapter input", x.clone())  # normalised once more
            thin = functional.linear(x, self.recorder.parameter(lora.rank, x.shape[-1]))
            self.recorder.named(f"{name} adapter hidden", thin)
            output = output + functional.linear(thin, self.recorder.parameter(out_features, lora.rank))
        return output

    def dropout(self, name: str, x: Tensor) -> Tensor:
        """Return dropout behind a sub-block."""
        if not self.workload.hidden_dropout:
            return x
        kept: list[Tensor] = []
        output = FusedDropout.apply(x, self.workload.hidden_dropout, kept)
        self.recorder.named(f"{name} dropout mask", kept[0])
        return output

    def attention(self, spec: SelfAttention, x: Tensor) -> Tensor:
        """Return attention from projection to projection."""
        named = self.recorder.named
        sizes = (spec.query_size, spec.key_value_size, spec.key_value_size)
        parts = self.linear("qkv", x, sum(sizes)).split(sizes, dim=-1)
        heads = [part.reshape(*part.shape[:-1], -1, spec.head_dim) for part in parts]
        if spec.qk_norm:
            heads[:2] = [
                self.norm(f"{name} normed", named(f"{name} norm input", part.clone()))
                for name, part in zip(("query", "key"), heads[:2], strict=True)
            ]
        heads = [FusedRotary.apply(part) for part in heads]
        if self.workload.attention_kernel is AttentionKernel.UNFUSED:
            context = self.unfused_core(heads, spec)
        else:
            query, key, value = (
                named(name, part).transpose(1, 2) for name, part in zip(("query", "key", "value"), heads, strict=True)
            )
            context = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            assert context.grad_fn is None or "FlashAttention" in context.grad_fn.name()
        context = context.transpose(1, 2).reshape(*x.shape[:-1], spec.query_size)
        return self.linear("proj", named("attention output", context), self.model.hidden_size)

    def unfused_core(self, heads: list[Tensor], spec: SelfAttention) -> Tensor:
        """Return attention that writes its score matrix; key/value heads are copied for each query head."""
        named = self.recorder.named
        copies = spec.num_attention_heads // spec.num_key_value_heads
        query, key, value = (
            named(name, part if count == 1 else part.repeat_interleave(count, dim=2))
            for name, part, count in zip(("query", "key", "value"), heads, (1, copies, copies), strict=True)
        )
        rows = (query.shape[0] * spec.num_attention_heads, query.shape[1])
        flat = [part.transpose(1, 2).reshape(rows[0], rows[1], spec.head_dim) for part in (query, key, value)]
        for name, part in zip(("query", "key", "value"), flat, strict=True):
            named(name, part)
        softmax = named("softmax output", FusedSoftmax.apply(flat[0] @ flat[1].transpose(1, 2)))
        if self.workload.attention_dropout:
            kept: list[Tensor] = []
            softmax = FusedDropout.apply(softmax, self.workload.attention_dropout, kept)
            named("attention dropout mask", kept[0])
            named("attention dropout output", softmax)
        context = softmax @ flat[2]
        return context.reshape(query.shape[0], spec.num_attention_heads, query.shape[1], spec.head_dim)

    def mlp(self, spec: DenseFeedForward, x: Tensor) -> Tensor:
        """Return the two projections around the activation."""
        named = self.recorder.named
        wide = named("activation input", self.linear("fc1", x, spec.intermediate_size * (2 if spec.gated else 1)))
        active = named("activation output", FusedActivation.apply(wide, spec.gated))
        return self.linear("fc2", active, self.model.hidden_size)


def torch_head(model: ModelSpec, recorder: Recorder, x: Tensor, targets: Tensor) -> Tensor:
    """Return the loss: final norm, LM head, cross entropy."""
    named = recorder.named
    scale = recorder.parameter(model.hidden_size)
    normed = named("final norm output", FusedNorm.apply(named("final norm input", x), scale, model.norm is Norm.LAYER))
    kept: list[Tensor] = []
    logits = functional.linear(normed, recorder.parameter(model.vocab_size, model.hidden_size))
    loss = FusedCrossEntropy.apply(logits, targets, kept)
    named("softmax of logits", kept[0])
    return loss
