# ruff: noqa: PLC0415 - Megatron can be imported only after what it lacks here has been stood in for
"""Real training steps of a tiny GPT with the emitted adapters, on CPU processes. Runs in the framework environment.

Reads one JSON list of cases on standard input and writes one JSON list of outcomes. A case is `{"program": path of
lora_gpt.py, "tp": n, "pp": n, "vpp": n, "dp": n, "sequence_parallel": bool, "gated": bool, "fused_norm": bool,
"recompute": bool}`; its processes talk over gloo, and calls to CUDA are stood in for. The base weights depend on their
names alone, so every layout starts from one model. An outcome holds:

- `losses`: the mean loss of each step on the last pipeline rank;
- `frozen`: no base parameter moved on any rank;
- `trained`: every adapter matrix moved on every rank;
- `agreed`: matrices that are whole on each tensor-parallel rank are still equal there;
- `adapter_parameters`: how many each rank holds;
- `checkpoint_keys`: names of the adapter matrices of rank 0 in a distributed checkpoint.

`fused_norm` puts the norm inside qkv and fc1 under the attribute names of Transformer Engine's fused layers, which
need a GPU.
"""

import importlib.util
import json
import os
import socket
import sys
import zlib
from typing import Any

from tests.frameworks.megatron_oracle import prepare_imports

STEPS = 4
LAYERS, HIDDEN, INNER, HEADS, GROUPS, VOCABULARY, LENGTH = 4, 32, 64, 4, 2, 128, 16
MICRO_BATCHES, MICRO_BATCH_SIZE = 4, 2


class NoStream:
    """Stands in for a CUDA stream or event."""

    def __init__(self, *_args: object, **_keywords: object) -> None:
        pass

    def __enter__(self) -> "NoStream":
        return self

    def __exit__(self, *_args: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_keywords: NoStream()


def stand_in_for_cuda() -> None:
    """Let CUDA calls on the paths taken do nothing, or act on the CPU."""
    import torch
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    cpu = torch.device("cpu")
    cuda = torch.cuda
    cuda.current_device = lambda: cpu
    cuda.synchronize = cuda.manual_seed = lambda *_args: None
    cuda.Stream = cuda.Event = NoStream
    cuda.current_stream = lambda *_args: NoStream()
    cuda.stream = lambda stream: stream
    cuda.get_device_capability = lambda *_args: (9, 0)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_args: None
    cuda.get_rng_state = lambda *_args: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_args: torch.set_rng_state(state)
    megatron_random._get_cuda_rng_state = lambda *_args, **_keywords: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_args, **_keywords: torch.set_rng_state(state)
    torch.Tensor.cuda = lambda self, *_args, **_keywords: self
    plain_type = torch.Tensor.type

    def cuda_type(self: Any, *args: Any, **keywords: Any) -> Any:
        """Name CPU tensors as CUDA ones: the optimizers compare names."""
        answer = plain_type(self, *args, **keywords)
        return answer if args or keywords else answer.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = cuda_type
    for name in ("tensor", "empty", "zeros", "ones", "arange", "full"):
        setattr(torch, name, _on_cpu(getattr(torch, name), cpu))
    # The torch norm of the local layers refuses sequence parallelism; its weights are frozen here.
    WrappedTorchNorm.__new__ = staticmethod(
        lambda _cls, hidden_size, eps=1e-5, **_keywords: torch.nn.RMSNorm(hidden_size, eps=eps)
    )


def _on_cpu(function: Any, cpu: Any) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        if str(keywords.get("device", "")).startswith("cuda"):
            keywords["device"] = cpu
        return function(*args, **keywords)

    return call


def load_program(path: str) -> Any:
    """Return the emitted program as a module."""
    spec = importlib.util.spec_from_file_location("lora_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(case: dict[str, Any], chunk: int) -> Any:
    """Return one chunk of this rank's part of the model, with base weights that depend on their names alone."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        ffn_hidden_size=INNER,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        tensor_model_parallel_size=case["tp"],
        pipeline_model_parallel_size=case["pp"],
        virtual_pipeline_model_parallel_size=case["vpp"] if case["vpp"] > 1 else None,
        overlap_p2p_comm=case["vpp"] > 1,
        batch_p2p_comm=case["vpp"] == 1,
        sequence_parallel=case["sequence_parallel"],
        gated_linear_unit=case["gated"],
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **(recompute if case["recompute"] else {}),
    )
    stage = chunk if case["vpp"] > 1 else None
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        VOCABULARY,
        LENGTH,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        position_embedding_type="rope",
        vp_stage=stage,
    )
    fill(model, gated=case["gated"], tp=case["tp"])
    if case["fused_norm"]:
        for layer in model.decoder.layers:
            fuse_norm(layer, "input_layernorm", layer.self_attention, "linear_qkv")
            fuse_norm(layer, "pre_mlp_layernorm", layer.mlp, "linear_fc1")
    return model


def fill(model: Any, *, gated: bool, tp: int) -> None:
    """Give every weight values that depend on its name in the whole model; ranks take their part."""
    import torch
    from megatron.core import parallel_state

    mine = parallel_state.get_tensor_model_parallel_rank()
    offset = model.decoder.layers[0].layer_number - 1
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if "layers" in parts:
            parts[2] = str(int(parts[2]) + offset)
        dim = getattr(weight, "partition_dim", -1) if getattr(weight, "tensor_model_parallel", False) else -1
        shape = [size * tp if axis == dim else size for axis, size in enumerate(weight.shape)]
        generator = torch.Generator().manual_seed(zlib.crc32(".".join(parts).encode()))
        whole = torch.randn(*shape, generator=generator) * 0.1
        if weight.dim() == 1:
            whole = 1 + whole
        if dim >= 0 and gated and "linear_fc1" in name:
            # The whole matrix is a gate over a value; a rank holds its part of each.
            part = torch.cat([half.chunk(tp, dim=dim)[mine] for half in whole.chunk(2, dim=dim)], dim=dim)
        else:
            part = whole.chunk(tp, dim=dim)[mine] if dim >= 0 else whole
        weight.data.copy_(part)


def fuse_norm(layer: Any, norm_name: str, owner: Any, linear_name: str) -> None:
    """Move a norm into the linear layer behind it, under Transformer Engine's attribute names."""
    import torch

    norm, linear = getattr(layer, norm_name), getattr(owner, linear_name)
    linear.layer_norm_weight = torch.nn.Parameter(norm.weight.data - 1)
    linear.zero_centered_gamma = True
    linear.normalization = "RMSNorm"
    linear.eps = norm.eps
    plain = linear.forward

    def forward(x: Any, *args: Any, **keywords: Any) -> Any:
        scale = 1 + linear.layer_norm_weight
        normed = torch.nn.functional.rms_norm(x, (x.shape[-1],), scale, linear.eps)
        return plain(normed, *args, **keywords)

    linear.forward = forward
    setattr(layer, norm_name, torch.nn.Identity())


def batches(case: dict[str, Any], step: int) -> Any:
    """Return this replica's micro-batches of one step; replicas together see the same tokens in every layout."""
    import torch
    from megatron.core import parallel_state

    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (MICRO_BATCHES, MICRO_BATCH_SIZE, LENGTH + 1), generator=generator)
    return iter(tokens.chunk(case["dp"])[parallel_state.get_data_parallel_rank()])


def train(rank: int, case: dict[str, Any], port: int, answers: Any) -> None:
    """Take the steps on one process and hand back what it saw."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func

    world = case["tp"] * case["pp"] * case["dp"]
    stand_in_for_cuda()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_DEVICE_MAX_CONNECTIONS="1")
    dist.init_process_group("gloo", rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(case["tp"], case["pp"], case["vpp"] if case["vpp"] > 1 else None)
    tensor_parallel.random.CudaRNGStatesTracker.add = lambda self, name, _seed: self.states_.setdefault(
        name, torch.get_rng_state()
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)

    chunks = load_program(case["program"]).add_adapters(
        [build(case, chunk) for chunk in range(case["vpp"])], rank=4, alpha=8.0, targets=("qkv", "proj", "fc1", "fc2")
    )
    weights = {
        f"{index}.{name}": weight for index, chunk in enumerate(chunks) for name, weight in chunk.named_parameters()
    }
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    config = chunks[0].config
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True
    )
    wrapped = [DistributedDataParallel(config, settings, chunk) for chunk in chunks]
    config.finalize_model_grads_func = finalize_model_grads
    no_sync = [chunk.no_sync for chunk in wrapped]
    config.no_sync_func = no_sync if case["vpp"] > 1 else no_sync[0]
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=0.01, use_distributed_optimizer=True, clip_grad=1.0), wrapped
    )

    def forward_step(micro_batches: Any, chunk: Any) -> Any:
        tokens = next(micro_batches)
        mask = torch.triu(torch.ones(1, 1, LENGTH, LENGTH), 1).bool()
        output = chunk(tokens[:, :-1], torch.arange(LENGTH)[None], mask, labels=tokens[:, 1:])
        return output, lambda out: (out.mean(), {"loss": out.mean().detach()})

    losses: list[float] = []
    for step in range(STEPS):
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        data = [batches(case, step) for _ in chunks]
        seen = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=data if case["vpp"] > 1 else data[0],
            model=wrapped,
            num_microbatches=MICRO_BATCHES // case["dp"],
            seq_length=LENGTH,
            micro_batch_size=MICRO_BATCH_SIZE,
            forward_only=False,
        )
        optimizer.step()
        losses.append(sum(float(part["loss"]) for part in seen) / len(seen) if seen else 0.0)
    for chunk in wrapped:
        chunk.disable_forward_pre_hook()
    moved = {name: not torch.equal(before[name], weight) for name, weight in weights.items()}
    answers.put(
        {
            "rank": rank,
            "last": parallel_state.is_pipeline_last_stage(),
            "losses": losses,
            "frozen": not any(changed for name, changed in moved.items() if "_adapter." not in name),
            "trained": all(changed for name, changed in moved.items() if "_adapter." in name),
            "agreed": all(agree(weight) for name, weight in weights.items() if "_adapter." in name),
            "adapter_parameters": sum(weight.numel() for name, weight in weights.items() if "_adapter." in name),
            "checkpoint_keys": sorted(key for key in chunks[0].sharded_state_dict() if "_adapter." in key),
        }
    )
    dist.barrier()
    dist.destroy_process_group()


def agree(weight: Any) -> bool:
    """Return whether a matrix that is whole on every tensor-parallel rank is equal there."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    if getattr(weight, "tensor_model_parallel", False):
        return True
    group = parallel_state.get_tensor_model_parallel_group()
    copies = [torch.empty_like(weight) for _ in range(dist.get_world_size(group))]
    dist.all_gather(copies, weight.detach().contiguous(), group=group)
    return all(torch.equal(copies[0], copy) for copy in copies)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case and join what its processes saw; replicas' losses are averaged."""
    from torch import multiprocessing

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    world = case["tp"] * case["pp"] * case["dp"]
    multiprocessing.start_processes(
        train, (case, free_port(), answers), nprocs=world, start_method="fork", join=True, daemon=True
    )
    seen = [answers.get() for _ in range(world)]
    last = [answer["losses"] for answer in seen if answer["last"]]
    return {
        "losses": [sum(step) / len(step) for step in zip(*last, strict=True)],
        "frozen": all(answer["frozen"] for answer in seen),
        "trained": all(answer["trained"] for answer in seen),
        "agreed": all(answer["agreed"] for answer in seen),
        "adapter_parameters": [answer["adapter_parameters"] for answer in sorted(seen, key=lambda one: one["rank"])],
        "checkpoint_keys": seen[0]["checkpoint_keys"],
    }


def main() -> None:
    """Run every case on standard input."""
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    prepare_imports()
    import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401 - imported once, before the forks

    json.dump([outcome(case) for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
