"""Runs in DeepSpeed's own environment: trains a few layers whose states are on a drive, and answers what went there.

DeepSpeed's swappers are its own. What reads and writes beneath them stands in for libaio, which not every machine has:
it does at once what it is asked for, and remembers the bytes. A model on the CPU, in one process.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

WIDTH = 1024
LAYERS = 5
STEPS = 2


class Drive:
    """What all handles locked and moved."""

    def __init__(self) -> None:
        self.locked: list[torch.Tensor] = []
        self.bytes = {"read": 0, "written": 0}


class Handle:
    """What a handle of libaio does; each waits for what it was asked for itself."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.pending = 0

    def new_cpu_locked_tensor(self, num_elements: int, example: torch.Tensor) -> torch.Tensor:
        self.drive.locked.append(torch.empty(num_elements, dtype=example.dtype))
        return self.drive.locked[-1]

    def free_cpu_locked_tensor(self, _: torch.Tensor) -> bool:
        return True

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return any(held.data_ptr() <= first and last <= held.data_ptr() + held.nbytes for held in self.drive.locked)

    def async_pread(self, buffer: torch.Tensor, path: str, _: int) -> int:
        content = np.fromfile(path, dtype=np.uint8, count=buffer.nbytes)
        buffer.view(torch.uint8).numpy()[: len(content)] = content
        return self._asked("read", buffer.nbytes)

    def async_pwrite(self, buffer: torch.Tensor, path: str, _: int) -> int:
        buffer.detach().view(torch.uint8).numpy().tofile(path)
        return self._asked("written", buffer.nbytes)

    def wait(self) -> int:
        done, self.pending = self.pending, 0
        return done

    def _asked(self, way: str, num_bytes: int) -> int:
        self.drive.bytes[way] += num_bytes
        self.pending += 1
        return 0


def trained(case: Mapping[str, Any]) -> dict[str, object]:
    """Return what a run with these keys of `offload_optimizer` did, or the words of the assertion that ended it."""
    drive = Drive()
    AsyncIOBuilder.load = lambda *_, **__: SimpleNamespace(aio_handle=lambda **_: Handle(drive))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _steps(case, drive, Path(folder))
        except AssertionError as error:
            return {"error": str(error)}


def _steps(case: Mapping[str, Any], drive: Drive, folder: Path) -> dict[str, object]:
    zero = {"stage": 3, "sub_group_size": 1_000_000}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            **zero,
            "offload_optimizer": {**case["offload_optimizer"], "nvme_path": str(folder), "pin_memory": False},
        },
        "aio": case["aio"],
    }
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=index == 0) for index in range(LAYERS)])
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    inputs = torch.randn(2, WIDTH, dtype=torch.bfloat16)
    steps = []
    for _ in range(STEPS):
        drive.bytes = {"read": 0, "written": 0}
        loss = engine(inputs).float().pow(2).mean()
        engine.backward(loss)
        waiting = engine.optimizer.optimizer_swapper.swap_params_info.values()
        kept = sum(part.untyped_storage().nbytes() for info in waiting for part in info.unswapped_gradients.values())
        engine.step()
        states = [value for state in engine.optimizer.optimizer.state.values() for value in state.values()]
        left = [value for value in states if torch.is_tensor(value) and value.numel() > 1]
        steps.append(
            {
                **drive.bytes,
                "kept": kept,
                "left": sum(value.untyped_storage().nbytes() for value in left if not Handle(drive).is_pinned(value)),
                "loss": loss.item(),
            }
        )
    return {
        "groups": [int(number) for number in engine.optimizer.fp16_partitioned_groups_flat_numel],
        "buffers": sum(tensor.nbytes for tensor in drive.locked),
        "files": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "steps": steps,
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    deepspeed.init_distributed("gloo")
    print(json.dumps([trained(case) for case in json.load(sys.stdin)]))  # noqa: T201 - the answer
