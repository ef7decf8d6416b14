"""Snapshots as torch writes them, of blocks made up here."""

from collections.abc import Mapping, Sequence

Frame = tuple[str, str]
FRAMES: Mapping[str, tuple[Frame, ...]] = {
    "weights": (
        ("/src/megatron/core/tensor_parallel/layers.py", "__init__"),
        ("/src/megatron/core/transformer/transformer_layer.py", "__init__"),
        ("/src/pretrain_gpt.py", "model_provider"),
    ),
    "master weights": (
        ("/src/megatron/core/optimizer/distrib_optimizer.py", "_build_model_and_main_param_groups"),
        ("/src/megatron/core/optimizer/distrib_optimizer.py", "__init__"),
    ),
    "optimizer moments": (
        ("/opt/apex/optimizers/fused_adam.py", "step"),
        ("/src/megatron/core/optimizer/optimizer.py", "step_with_ready_grads"),
    ),
    "activations": (
        ("/opt/transformer_engine/pytorch/module/layernorm_linear.py", "forward"),
        ("/opt/torch/autograd/function.py", "apply"),
        ("/opt/torch/nn/modules/module.py", "_call_impl"),
        ("/src/megatron/training/training.py", "train_step"),
    ),
    "backward temporaries": (
        ("/src/megatron/core/tensor_parallel/layers.py", "backward"),
        ("/opt/torch/autograd/function.py", "apply"),
    ),
    "logits and loss": (
        ("/src/megatron/core/tensor_parallel/cross_entropy.py", "calculate_predicted_logits"),
        ("/src/megatron/core/models/gpt/gpt_model.py", "compute_language_model_loss"),
        ("/src/megatron/core/models/gpt/gpt_model.py", "forward"),
    ),
    "pipeline buffers": (("/src/megatron/core/pipeline_parallel/p2p_communication.py", "_communicate"),),
    "workspaces": (("/opt/transformer_engine/pytorch/module/base.py", "get_workspace"),),
}
"""By term of the ledger, who asks for such memory, the innermost first."""


def frames(term: str) -> list[dict[str, object]]:
    return [{"filename": file, "line": 1, "name": name} for file, name in FRAMES.get(term, ())]


def snapshot(
    blocks: Sequence[tuple[str, int]], *, free: int = 0, history: Sequence[Mapping[str, object]] = ()
) -> dict[str, object]:
    """Return a snapshot of blocks of terms, with so many bytes of the segment free.

    Args:
        blocks: Terms with bytes.
        free: Bytes of the segment that no block has.
        history: Entries of the trace of device 0.
    """
    address, listed = 0x7F0000000000, []
    for term, num_bytes in blocks:
        state = "active_allocated"
        entry = {"address": address, "size": num_bytes, "requested_size": num_bytes, "state": state}
        listed.append({**entry, "frames": frames(term)})
        address += num_bytes
    listed.append({"address": address, "size": free, "requested_size": 0, "state": "inactive", "frames": []})
    total = free + sum(num_bytes for _, num_bytes in blocks)
    segment = {"device": 0, "address": 0x7F0000000000, "total_size": total, "stream": 0, "blocks": listed}
    small = {"device": 1, "address": 1, "total_size": 1, "blocks": []}
    return {"segments": [small, segment], "device_traces": [list(history), []], "allocator_settings": {}}


def traced(action: str, address: int, size: int, term: str = "") -> dict[str, object]:
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, "frames": frames(term)}
