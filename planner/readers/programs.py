"""The training programs that readers look for."""

import re

from planner.readers.launch_line import ProgramKind

MEGATRON_PROGRAM = ProgramKind(
    title="a Megatron-LM training program",
    path=re.compile(r"(?:^|/)(?:pretrain_\w+|lora_gpt)\.py$"),
    command="torchrun with .../pretrain_gpt.py and its arguments",
    sizes="torchrun --nnodes and --nproc-per-node",
)

DEEPSPEED_PROGRAM = ProgramKind(
    title="a training program",
    path=re.compile(r"(?:^|/)train_deepspeed\.py$"),
    command="torchrun or deepspeed with the program and its arguments",
    sizes="torchrun --nnodes and --nproc-per-node, or deepspeed --num_nodes and --num_gpus,",
)
