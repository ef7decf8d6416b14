"""A decoder layer in torch that keeps for backward what fused kernels keep, with each tensor under the ledger's name.

Linear layers are torch's own; so is flash attention, in its CPU kernel, where all heads are equally wide.
"""

from dataclasses import dataclass
from typing import Any

from planner.models.blocks import (
    DenseFeedForward,
    FeedForward,
    LatentAttention,
    Mixer,
    MixtureOfExperts,
    Norm,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.specs import ModelSpec
from planner.requests.workload import AttentionKernel, TrainWorkload
from tests.oracle.torch_kernels import (
    FusedActivation,
    FusedAttention,
    FusedCrossEntropy,
    FusedDropout,
    FusedGather,
    FusedNorm,
    FusedRotary,
    FusedRouting,
    FusedScatter,
    FusedSoftmax,
    FusedWeightedActivation,
    Kept,
    Recorder,
    Tensor,
    functional,
    torch,
)


@dataclass(slots=True)
class TorchLayer:
    """One decoder layer of a model under a run, on one rank.

    Args:
        model: The model; its first block is built.
        workload: The run: kernel, dropout, adapters.
        recorder: Where tensors are named.
        recompute: Modules that are recomputed, by Megatron-LM's names.
    """

    model: ModelSpec
    workload: TrainWorkload
    recorder: Recorder
    recompute: tuple[str, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of `[sequences, tokens, hidden]`."""
        block = self.model.runs[0].block
        self.recorder.named("attention norm input", x)
        normed = self.norm("attention norm output", x)
        mixed = self.mixer(block.mixer, normed)
        if block.parallel:
            second = normed if block.num_norms == 1 else self.norm("feed-forward norm output", x)
            return x + self.dropout("feed-forward residual", mixed + self.feed_forward(block.feed_forward, second))
        stream = self.recorder.named("feed-forward norm input", x + self.dropout("attention residual", mixed))

        def second_half(stream: Tensor) -> Tensor:
            return self.feed_forward(block.feed_forward, self.norm("feed-forward norm output", stream))

        output = self.again("mlp", second_half, stream)
        return stream + self.dropout("feed-forward residual", output)

    def again(self, module: str, function: Any, *inputs: Tensor) -> Any:
        """Return `function` of `inputs`, which alone are kept if `module` is recomputed."""
        if module in self.recompute:
            return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=True)
        return function(*inputs)

    def mixer(self, spec: Mixer | None, x: Tensor) -> Tensor:
        """Return the block's attention."""
        match spec:
            case SelfAttention():
                return self.attention(spec, x)
            case LatentAttention():
                return latent_attention(self, spec, x)
        raise NotImplementedError(spec)

    def feed_forward(self, spec: FeedForward | None, x: Tensor) -> Tensor:
        """Return the block's feed-forward."""
        match spec:
            case DenseFeedForward():
                return self.mlp(spec, x)
            case MixtureOfExperts():
                return mixture(self, spec, x)
        raise NotImplementedError(spec)

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
        if spec.qk_norm is QueryKeyNorm.HEAD:
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

    def mlp(self, spec: DenseFeedForward, x: Tensor, *, prefix: str = "") -> Tensor:
        """Return the two projections around the activation."""
        named = self.recorder.named
        width = spec.intermediate_size * (2 if spec.gated else 1)
        wide = named(f"{prefix}activation input", self.linear(f"{prefix}fc1", x, width))
        active = named(f"{prefix}activation output", FusedActivation.apply(wide, spec.gated))
        return self.linear(f"{prefix}fc2", active, self.model.hidden_size)


def latent_attention(layer: TorchLayer, spec: LatentAttention, x: Tensor) -> Tensor:
    """Return multi-head latent attention from projection to projection."""
    named, heads = layer.recorder.named, spec.num_attention_heads
    direct = spec.q_lora_rank is None
    queries = x if spec.q_lora_rank is None else named("query latent", layer.linear("q down", x, spec.q_lora_rank))
    joined = layer.linear("kv down", x, spec.kv_lora_rank + spec.qk_rope_head_dim)
    named("key-value latent", joined)
    latent, rotated = joined.split((spec.kv_lora_rank, spec.qk_rope_head_dim), dim=-1)

    def up(queries: Tensor, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = queries if direct else layer.norm("query latent norm output", queries)
        query = layer.linear("q up", normed, heads * spec.qk_head_dim).unflatten(-1, (heads, -1))
        normed = layer.norm("key-value latent norm output", latent)
        wide = layer.linear("kv up", normed, heads * (spec.qk_nope_head_dim + spec.v_head_dim))
        key, value = wide.unflatten(-1, (heads, -1)).split((spec.qk_nope_head_dim, spec.v_head_dim), dim=-1)
        common = FusedRotary.apply(rotated).unsqueeze(-2).expand(*rotated.shape[:-1], heads, -1)
        key = torch.cat((key, common), dim=-1)
        return FusedRotary.apply(query), key, value.contiguous()

    parts = [
        named(name, part)
        for name, part in zip(
            ("query", "key", "value"), layer.again("mla_up_proj", up, queries, latent, rotated), strict=True
        )
    ]
    context = named("attention output", FusedAttention.apply(*parts))
    if "mla_up_proj" in layer.recompute:
        for part in parts:
            layer.recorder.discard(part)
    return layer.linear("proj", context, layer.model.hidden_size)


def mixture(layer: TorchLayer, spec: MixtureOfExperts, x: Tensor) -> Tensor:
    """Return a mixture of experts on one rank."""

    def whole(x: Tensor) -> Tensor:
        output = routed(layer, spec, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return output if spec.shared is None else output + layer.again("shared_experts", shared, x)

    def shared(x: Tensor) -> Tensor:
        assert spec.shared is not None
        output = layer.mlp(spec.shared, x, prefix="shared ")
        if not spec.shared_gate:
            return output
        gate = functional.linear(x, layer.recorder.parameter(1, x.shape[-1])).sigmoid()
        return layer.recorder.named("shared output", output) * layer.recorder.named("shared gate output", gate)

    return layer.again("moe", whole, x)


def routed(layer: TorchLayer, spec: MixtureOfExperts, x: Tensor) -> Tensor:
    """Return the routed experts' results for tokens `x`, in their order."""
    named, visits, count = layer.recorder.named, spec.experts_per_token, spec.num_experts
    logits = functional.linear(x, layer.recorder.parameter(count, x.shape[-1]))
    kept: list[Tensor] = []
    weights, chosen = FusedRouting.apply(logits, visits, kept)
    for name, tensor in zip(("router scores", "expert choice", "expert choice"), kept, strict=True):
        named(name, tensor)
    if spec.latent_size is not None:
        x = layer.linear("latent down", x, spec.latent_size)
    order = chosen.flatten().argsort(stable=True)
    row_map = named("row map", torch.zeros(x.shape[0], 2 * count + 1, dtype=torch.int32))
    rows = FusedGather.apply(x, order // visits, row_map)
    rows = named("expert input", sorted_again(layer, rows))
    row_weights = named("expert weights of rows", FusedGather.apply(weights.flatten(), order, row_map))
    sizes = chosen.flatten().bincount(minlength=count).tolist()
    inner = spec.expert.intermediate_size

    def linears(x: Tensor, out_features: int) -> Tensor:
        made = [layer.linear("expert", part, out_features) for part in x.split(sizes)]
        return torch.cat(made)

    wide = named("expert activation input", linears(rows, inner * (2 if spec.expert.gated else 1)))

    def activation(wide: Tensor, row_weights: Tensor) -> Tensor:
        return FusedWeightedActivation.apply(wide, row_weights, spec.expert.gated)

    active = named("expert activation output", layer.again("moe_act", activation, wide, row_weights))
    output = sorted_again(layer, linears(active, x.shape[-1]))
    if "moe_act" in layer.recompute:
        layer.recorder.discard(active)
    combined = FusedScatter.apply(output, order // visits, row_map)
    if spec.latent_size is not None:
        combined = layer.linear("latent up", named("latent expert output", combined), layer.model.hidden_size)
    return combined


def sorted_again(layer: TorchLayer, rows: Tensor) -> Tensor:
    """Return rows in another order, of which a map is kept."""
    order = layer.recorder.named("row order", torch.arange(rows.shape[0], dtype=torch.int32))
    return FusedGather.apply(rows, order.long(), order)


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
