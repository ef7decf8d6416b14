"""Configurations of DeepSpeed that are sound: what the corpus of mutations starts from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.emit.deepspeed import CONFIG_FILE, emit_deepspeed
from planner.layout import Layout
from tests.emitted.deepspeed_plans import FULL_RECOMPUTE, deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, LLAMA_70B

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama-3.1-8b-deepspeed-1xdgx-h100" / "expected"
NODE_GPUS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A sound configuration, and how it is started.

    Args:
        name: What it is.
        config: The JSON.
        world: Processes.
        stages: Pipeline stages of the program.
        ours: The program is the one that plans are emitted with.
        command: Whether a command is known; else the number of GPUs is all that is said.
    """

    name: str
    config: Mapping[str, Any]
    world: int
    stages: int = 1
    ours: bool = False
    command: bool = True

    @property
    def launcher(self) -> str:
        """Return the command of the run; nothing where none is known."""
        if not self.command:
            return ""
        sizes = f"--nnodes {self.world // NODE_GPUS} --nproc-per-node {NODE_GPUS}"
        if self.ours:
            layers = ",".join("8" for _ in range(self.stages))
            return f"torchrun {sizes} train_deepspeed.py --deepspeed-config {CONFIG_FILE} --layers-per-stage {layers}"
        stages = f" --pipe-parallel-size {self.stages}" if self.stages > 1 else ""
        return f"torchrun {sizes} train.py --deepspeed --deepspeed_config {CONFIG_FILE}{stages}"


ADAM: Mapping[str, Any] = {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8}}
BF16: Mapping[str, Any] = {"bf16": {"enabled": True}}
FP16: Mapping[str, Any] = {"fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "min_loss_scale": 1}}


def batch(replicas: int, micro: int = 2, steps: int = 4) -> Mapping[str, Any]:
    """Return the three sizes."""
    return {
        "train_batch_size": micro * steps * replicas,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
    }


def zero(stage: int, **more: object) -> Mapping[str, Any]:
    """Return a section of ZeRO."""
    return {"zero_optimization": {"stage": stage, **more}}


CPU: Mapping[str, Any] = {"device": "cpu", "pin_memory": True}
DISK: Mapping[str, Any] = {"device": "nvme", "nvme_path": "/local", "buffer_count": 5}
WARMUP: Mapping[str, Any] = {
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 1000, "warmup_num_steps": 100}}
}
KEPT: Mapping[str, Any] = {
    "activation_checkpointing": {
        "partition_activations": False,
        "cpu_checkpointing": True,
        "contiguous_memory_optimization": False,
        "number_checkpoints": 32,
    }
}

WRITTEN = (
    Base(name="no ZeRO", config={**batch(8), **FP16, "optimizer": ADAM, **WARMUP}, world=8),
    Base(
        name="stage 1",
        config={**batch(16), **BF16, "optimizer": ADAM, **zero(1, reduce_bucket_size=200000000), "steps_per_print": 10},
        world=16,
    ),
    Base(
        name="stage 2",
        config={
            **batch(16),
            **BF16,
            "optimizer": ADAM,
            "gradient_clipping": 1.0,
            "communication_data_type": "fp32",
            **zero(2, overlap_comm=True, reduce_scatter=True, allgather_bucket_size=500000000),
        },
        world=16,
        command=False,
    ),
    Base(
        name="stage 2, offload",
        config={**batch(8), **FP16, "optimizer": ADAM, **zero(2, offload_optimizer=CPU, contiguous_gradients=True)},
        world=8,
    ),
    Base(
        name="stage 3",
        config={
            **batch(32, 1, 8),
            **BF16,
            "optimizer": ADAM,
            **zero(3, stage3_prefetch_bucket_size=5e7, stage3_param_persistence_threshold=100000, sub_group_size=1e9),
            "zero_allow_untested_optimizer": False,
        },
        world=32,
    ),
    Base(
        name="stage 3, offload",
        config={**batch(16), **BF16, "optimizer": ADAM, **zero(3, offload_param=CPU, offload_optimizer=CPU), **KEPT},
        world=16,
        command=False,
    ),
    Base(
        name="stage 3, disks",
        config={
            **batch(8),
            **FP16,
            "optimizer": ADAM,
            **zero(3, offload_param=DISK, offload_optimizer={**DISK, "pipeline_read": True}),
            "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True},
        },
        world=8,
    ),
    Base(
        name="stage 3, second copies",
        config={
            **batch(32),
            **BF16,
            "optimizer": ADAM,
            **zero(3, zero_hpz_partition_size=8, zero_quantized_weights=True, zero_quantized_gradients=True),
        },
        world=32,
    ),
    Base(
        name="pipeline",
        config={
            **batch(8, 1, 16),
            **BF16,
            "optimizer": ADAM,
            **zero(1),
            "pipeline": {"activation_checkpoint_interval": 1, "pipe_partitioned": True},
        },
        world=32,
        stages=4,
    ),
    Base(
        name="AutoTP",
        config={
            **{key: size for key, size in batch(4).items() if key != "train_batch_size"},
            **BF16,
            "optimizer": ADAM,
            **zero(2),
            "tensor_parallel": {"autotp_size": 4},
        },
        world=16,
    ),
    Base(
        name="sequence parallel",
        config={
            **batch(4),
            **BF16,
            "optimizer": ADAM,
            **zero(3),
            "sequence_parallel_size": 4,
            "data_parallel_size": 4,
            "seq_parallel_communication_data_type": "fp32",
        },
        world=16,
    ),
    Base(
        name="experts",
        config={
            **batch(16),
            **BF16,
            "optimizer": ADAM,
            **zero(2),
            "expert_parallel": {"enabled": True, "autoep_size": 8, "preset_model": "mixtral"},
        },
        world=16,
    ),
    Base(
        name="reports",
        config={
            **batch(8),
            **BF16,
            "optimizer": ADAM,
            **zero(1),
            "wall_clock_breakdown": False,
            "tensorboard": {"enabled": True, "output_path": "logs", "job_name": "run"},
            "flops_profiler": {"enabled": False, "profile_step": 1},
            "comms_logger": {"enabled": False, "verbose": False},
            "checkpoint": {"tag_validation": "Warn", "load_universal": False},
        },
        world=8,
    ),
)

EMITTED: Mapping[str, Layout] = {
    "emitted, optimizer sharded": layout_with((32,), dp=8),
    "emitted, stages": layout_with((19, 21, 21, 19), dp=8, num_microbatches=16, recompute=FULL_RECOMPUTE),
    "emitted, weights sharded": layout_with((80,), dp=64, zero_stage=3, secondary_shard=8, recompute=FULL_RECOMPUTE),
}


def bases() -> tuple[Base, ...]:
    """Return every sound configuration."""
    found = list(WRITTEN)
    for name, layout in EMITTED.items():
        plan = deepspeed_plan(LLAMA_8B if layout.world_size == 8 else LLAMA_70B, layout)
        config = json.loads(emit_deepspeed(plan)[CONFIG_FILE])
        found.append(Base(name=name, config=config, world=layout.world_size, stages=layout.pp, ours=True))
    example = json.loads((EXAMPLE / CONFIG_FILE).read_text(encoding="utf-8"))
    return (*found, Base(name="emitted example", config=example, world=NODE_GPUS, ours=True))
