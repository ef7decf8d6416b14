"""Runs in DeepSpeed's own environment: reads configurations from standard input, answers what DeepSpeed makes of each.

A configuration is read as on a machine of the given size: the data-parallel processes are told by an object with the
same methods as the one that the training program hands over.
"""

import json
import logging
import sys
from typing import Any
from unittest import mock

from deepspeed.runtime.config import DeepSpeedConfig

READ_BY_INITIALIZE = frozenset({"sequence_parallel_size", "data_parallel_size"})
"""Keys that `deepspeed.initialize` looks at, not the configuration object."""


class Watched(dict[str, Any]):
    """A configuration that remembers which of its keys were looked at; DeepSpeed ignores the others silently."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.looked_at: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.looked_at.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.looked_at.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.looked_at.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> "Watched":
        return self


class DataParallel:
    """What `DeepSpeedConfig` asks about pipeline stages and AutoTP."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_data_parallel_world_size(self) -> int:
        return self.size


class SequenceParallel:
    """What `DeepSpeedConfig` asks about Ulysses."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_sequence_parallel_world_size(self) -> int:
        return self.size


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """Return what DeepSpeed reads from one configuration, or why it refuses it.

    The program hands over groups of data-parallel processes ("dp"), of sequence-parallel ones ("sequence"), or none.
    """
    config, sequence = Watched(case["config"]), case.get("sequence", 1)
    mpu = SequenceParallel(sequence) if sequence > 1 else DataParallel(case["dp"]) if "dp" in case else None
    with (
        mock.patch("deepspeed.runtime.config.dist.get_rank", return_value=0),
        mock.patch("deepspeed.runtime.config.dist.get_world_size", return_value=case["world"]),
    ):
        try:
            read = DeepSpeedConfig(config, mpu=mpu)
        except Exception as error:  # noqa: BLE001 - whatever stops it is its verdict
            return {"error": f"{type(error).__name__}: {error}"}
    zero = read.zero_config
    return {
        "error": "",
        "batch": [read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps],
        "data_parallel": read.world_size,
        "zero_stage": int(zero.stage),
        "overlap_comm": zero.overlap_comm,
        "buckets": [zero.reduce_bucket_size, zero.prefetch_bucket_size, zero.max_live_parameters],
        "secondary_shard": zero.zero_hpz_partition_size,
        "offload": None
        if zero.offload_optimizer is None
        else [str(zero.offload_optimizer.device), zero.offload_optimizer.pin_memory, zero.offload_optimizer.ratio],
        "offload_param": None
        if zero.offload_param is None
        else [str(zero.offload_param.device), zero.offload_param.pin_memory],
        "weight_buffers": None
        if zero.offload_param is None
        else [zero.offload_param.buffer_count, zero.offload_param.buffer_size, zero.offload_param.max_in_cpu],
        "nvme_paths": [
            None if section is None or section.nvme_path is None else str(section.nvme_path)
            for section in (zero.offload_optimizer, zero.offload_param)
        ],
        "reuse_distance": zero.max_reuse_distance,
        "tensor_parallel": read.tensor_parallel_config.autotp_size,
        "bf16": read.bfloat16_config.enabled,
        "fp16": read.float16_config.enabled,
        "gradients": [read.grad_accum_dtype, str(read.communication_data_type)],
        "interval": read.pipeline["activation_checkpoint_interval"],
        "optimizer": read.optimizer_name,
        "ignored": sorted(set(case["config"]) - config.looked_at - READ_BY_INITIALIZE),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(json.dumps([answer(case) for case in json.load(sys.stdin)]))  # noqa: T201 - the answer
