# ruff: noqa: PLC0415 - pretrain_gpt.py is found only where Megatron-LM is
"""Trains low-rank adapters on Megatron-LM's GPT (Hu et al., arXiv 2106.09685): pretrain_gpt.py with the base frozen.

Takes the arguments of pretrain_gpt.py, and from the environment:

LORA_RANK     inner width r of each adapter
LORA_ALPHA    an adapter's output is scaled by LORA_ALPHA / LORA_RANK
LORA_TARGETS  comma-separated linear layers that carry an adapter: qkv, proj, fc1, fc2

An adapter adds `scale * up(down(x))` to its layer's output. Beside a column-parallel layer (qkv, fc1) `down` is whole
on every tensor-parallel rank and `up` is split by rows; beside a row-parallel layer (proj, fc2) `down` is split by
columns and `up` is whole. The sums and gathers over the ranks are of the r-wide hidden tensor.

The first start needs the base model: append --load DIR. Its checkpoint lacks the adapters, which start at zero.
"""

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.nn.functional import layer_norm, linear, rms_norm


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kind of linear layer.

    Args:
        in_features: Inputs of the whole layer.
        out_features: Outputs of the whole layer.
        column_parallel: Tensor parallelism splits its outputs, not its inputs.
        gated: Its outputs are a gate and a value, each split over the ranks on its own.
    """

    in_features: int
    out_features: int
    column_parallel: bool
    gated: bool = False


class Adapter(torch.nn.Module):
    """The low-rank product beside one linear layer, split over the tensor-parallel ranks as the layer is.

    Args:
        layer: The layer.
        name: Its name in the whole model; seeds `down`, so that every layout starts alike.
        rank: Inner width.
        scale: Factor of the output.
        config: The model's configuration.
    """

    def __init__(self, layer: Layer, *, name: str, rank: int, scale: float, config: Any) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.tensor_parallel = config.tensor_model_parallel_size
        self.sequence_parallel = config.sequence_parallel
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        bound = 1 / math.sqrt(layer.in_features)
        down = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        up = torch.zeros(layer.out_features, rank)
        ranks, mine = self.tensor_parallel, parallel_state.get_tensor_model_parallel_rank()
        if layer.column_parallel:
            up = up.chunk(ranks, dim=0)[mine]
        else:
            down = down.chunk(ranks, dim=1)[mine]
        self.down = torch.nn.Parameter(down.to(device=device, dtype=config.params_dtype).contiguous())
        self.up = torch.nn.Parameter(up.to(device=device, dtype=config.params_dtype).contiguous())
        split, whole = (self.up, self.down) if layer.column_parallel else (self.down, self.up)
        split.tensor_model_parallel = True
        split.partition_dim = 0 if layer.column_parallel else 1
        split.partition_stride = 1
        # Each rank sees its own part of the sequence: Megatron sums the gradients of such parameters over the ranks.
        whole.sequence_parallel = self.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the layer's output, split as that is."""
        hidden = linear(x, self.down)
        if self.tensor_parallel > 1:
            hidden = self._across_ranks(hidden)
        return self.scale * linear(hidden, self.up)

    def _across_ranks(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.layer.column_parallel and self.sequence_parallel:
            return gather_from_sequence_parallel_region(hidden)
        if self.layer.column_parallel:
            return copy_to_tensor_model_parallel_region(hidden)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(hidden)
        return reduce_from_tensor_model_parallel_region(hidden)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the two matrices as a distributed checkpoint stores them, whatever the layout."""
        groups = {}
        if metadata is not None:
            groups["tp_group"] = parallel_state.get_tensor_model_parallel_group()
            groups["dp_cp_group"] = metadata["dp_cp_group"]
        axes = {"up": 0} if self.layer.column_parallel else {"down": 1}
        own = self.state_dict(keep_vars=True)
        tensors = dict(make_sharded_tensors_for_checkpoint(own, prefix, axes, sharded_offsets, **groups))
        if self.layer.gated:
            tensors[f"{prefix}up"] = apply_swiglu_sharded_factory(tensors[f"{prefix}up"], sharded_offsets)
        return tensors


def normalised(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Return what a layer multiplies: Transformer Engine fuses the norm in front into qkv and fc1."""
    weight = getattr(module, "layer_norm_weight", None)
    if weight is None:
        return x
    scale = 1 + weight if module.zero_centered_gamma else weight
    if module.normalization == "RMSNorm":
        return rms_norm(x, (x.shape[-1],), scale, module.eps)
    return layer_norm(x, (x.shape[-1],), scale, module.layer_norm_bias, module.eps)


def attach(owner: torch.nn.Module, name: str, adapter: Adapter) -> None:
    """Let the adapter add to what `owner.name` returns; the layer's own parameters keep their names."""
    owner.add_module(f"{name}_adapter", adapter)

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, Any]) -> Any:
        product, bias = output
        return product + adapter(normalised(module, inputs[0])), bias

    getattr(owner, name).register_forward_hook(add)


def layers_of(config: Any) -> dict[str, Layer]:
    """Return the linear layers that can carry an adapter, by target name."""
    heads = config.kv_channels * config.num_attention_heads
    qkv = heads + 2 * config.kv_channels * config.num_query_groups
    hidden, inner, gated = config.hidden_size, config.ffn_hidden_size, config.gated_linear_unit
    return {
        "qkv": Layer(in_features=hidden, out_features=qkv, column_parallel=True),
        "proj": Layer(in_features=heads, out_features=hidden, column_parallel=False),
        "fc1": Layer(in_features=hidden, out_features=inner * (1 + gated), column_parallel=True, gated=gated),
        "fc2": Layer(in_features=inner, out_features=hidden, column_parallel=False),
    }


def add_adapters(chunks: list[Any], *, rank: int, alpha: float, targets: tuple[str, ...]) -> list[Any]:
    """Freeze every parameter of the model's chunks and put adapters beside the targeted linear layers."""
    for chunk in chunks:
        chunk.requires_grad_(requires_grad=False)
        kinds = layers_of(chunk.config)
        for block in chunk.decoder.layers:
            owners = {"qkv": block.self_attention, "proj": block.self_attention, "fc1": block.mlp, "fc2": block.mlp}
            for target in targets:
                name = f"{block.layer_number}.{target}"
                adapter = Adapter(kinds[target], name=name, rank=rank, scale=alpha / rank, config=chunk.config)
                attach(owners[target], f"linear_{target}", adapter)
        if chunk.pre_process:
            # Recomputation runs a layer again only if its input needs a gradient; a frozen embedding's does not.
            chunk.embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    return chunks


def adapters_from_environment() -> Callable[[list[Any]], list[Any]]:
    """Return `add_adapters` with what the environment asks for."""
    return partial(
        add_adapters,
        rank=int(os.environ["LORA_RANK"]),
        alpha=float(os.environ["LORA_ALPHA"]),
        targets=tuple(os.environ["LORA_TARGETS"].split(",")),
    )


def main() -> None:
    """Run Megatron-LM's training with the adapters added before the model is wrapped for data parallelism."""
    import pretrain_gpt
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    args = parse_and_validate_args(args_defaults={"tokenizer_type": "GPT2BPETokenizer"})
    model_config = gpt_config_from_args(args)
    model_config.pre_wrap_hooks.append(adapters_from_environment())
    datasets = pretrain_gpt.train_valid_test_datasets_provider
    datasets.is_distributed = True
    pretrain(
        pretrain_cfg_container_from_args(args, model_config),
        datasets,
        ModelType.encoder_or_decoder,
        pretrain_gpt.forward_step,
        get_embedding_ranks=pretrain_gpt.get_embedding_ranks,
    )


if __name__ == "__main__":
    main()
