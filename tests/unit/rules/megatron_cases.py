"""For each Megatron-LM rule a script that breaks it and nothing else."""

from collections.abc import Mapping

SOUND: Mapping[str, str | None] = {
    "--num-layers": "32",
    "--hidden-size": "4096",
    "--num-attention-heads": "32",
    "--seq-length": "4096",
    "--max-position-embeddings": "4096",
    "--tensor-model-parallel-size": "2",
    "--pipeline-model-parallel-size": "2",
    "--sequence-parallel": None,
    "--use-distributed-optimizer": None,
    "--bf16": None,
    "--micro-batch-size": "1",
    "--global-batch-size": "64",
    "--train-iters": "100",
    "--lr": "3e-4",
    "--mock-data": None,
    "--tokenizer-type": "NullTokenizer",
    "--vocab-size": "32000",
}
"""A run on 16 GPUs that breaks nothing."""

EXPERTS: Mapping[str, str | None] = {"--num-experts": "8", "--expert-model-parallel-size": "4"}


def script(
    *drop: str, nodes: int = 2, export: str = "export CUDA_DEVICE_MAX_CONNECTIONS=1", **changed: str | None
) -> str:
    """Return the sound script with flags dropped and changed; `tensor_model_parallel_size="3"` names a flag."""
    flags = {name: value for name, value in SOUND.items() if name not in drop}
    flags |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    words = [f"    {name}" if value is None else f"    {name} {value}" for name, value in flags.items()]
    arguments = "\n".join(words)
    return (
        f"#!/usr/bin/env bash\n{export}\nARGS=(\n{arguments}\n)\n"
        f'torchrun --nnodes {nodes} --nproc-per-node 8 pretrain_gpt.py "${{ARGS[@]}}"\n'
    )


CASES: Mapping[str, str] = {
    "MLM101": script(tensor_model_parallel_size="16", pipeline_model_parallel_size="2"),
    "MLM102": script(num_experts="16", expert_model_parallel_size="8"),
    "MLM103": script(num_attention_heads="31", kv_channels="128"),
    "MLM110": script("--sequence-parallel", num_experts="8", expert_model_parallel_size="4"),
    "MLM111": script(tensor_model_parallel_size="1"),
    "S001": script(tensor_model_paralel_size="2"),
    "S004": script(weight_decay=None),
    "S005": script(bf16="true"),
    "S006": script(num_layers="thirty"),
    "S007": script(recompute_granularity="partial"),
    "S009": script(disable_msc=None),
    "S008": script().replace("--bf16", "--bf16 --micro-batch-size 2"),
}
