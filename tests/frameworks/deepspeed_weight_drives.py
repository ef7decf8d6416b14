"""Runs in DeepSpeed's own environment: trains planned models whose weights are on a drive, and answers what went there.

The model is the one of the emitted training program, DeepSpeed's swapper is its own, and what reads and writes beneath
it is that of `tests.frameworks.deepspeed_drives`. On the CPU, in one process.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper

from tests.frameworks.deepspeed_drives import Drive, Handle

sys.path.insert(0, str(files("planner").joinpath("data", "deepspeed")))

PROGRAM = import_module("planned_model")

STEPS = 3
"""The first runs untraced, the second is recorded, and in the third reads go ahead."""

TOKENS = 16


class Held:
    """The most buffers that weights had at once, of all swappers that are made."""

    def __init__(self) -> None:
        self.most = 0

    def watch(self) -> None:
        """Look at every swapper whenever it gives away buffers."""
        given = AsyncPartitionedParameterSwapper._allocate_and_return_buffers_for_swap_in

        def counted(swapper: Any, params: Any) -> Any:
            found = given(swapper, params)
            self.most = max(self.most, swapper.param_buffer_count - swapper.available_swap_in_buffers())
            return found

        AsyncPartitionedParameterSwapper._allocate_and_return_buffers_for_swap_in = counted


def trained(case: Mapping[str, Any], held: Held) -> dict[str, object]:
    """Return what a run did, or the words of the assertion that ended it."""
    drive = Drive()
    held.most = 0
    AsyncIOBuilder.load = lambda *_, **__: SimpleNamespace(aio_handle=lambda **_: Handle(drive))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _steps(case, drive, held, Path(folder))
        except AssertionError as error:
            return {"error": str(error)}


def _config(case: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the emitted configuration, with an optimizer for the CPU and the drive's folder."""
    zero = dict(case["config"]["zero_optimization"])
    for section in ("offload_optimizer", "offload_param"):
        if section in zero:
            zero[section] = {**zero[section], "pin_memory": False}
            if zero[section]["device"] == "nvme":
                zero[section]["nvme_path"] = str(folder)
    return {
        **case["config"],
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }


def _steps(case: Mapping[str, Any], drive: Drive, held: Held, folder: Path) -> dict[str, object]:
    config = _config(case, folder)
    checkpoint = None
    if case["recompute"]:
        deepspeed.checkpointing.configure(None)
        checkpoint = deepspeed.checkpointing.checkpoint
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = PROGRAM.Decoder(
            case["facts"], case["facts"]["vocab_size"], PROGRAM.Context(attention="unfused"), checkpoint, 1234
        )
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    tokens = torch.randint(case["facts"]["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(0))
    steps = []
    for _ in range(STEPS):
        parts = []
        for part in ("forward", "backward", "step"):
            drive.bytes = {"read": 0, "written": 0}
            if part == "forward":
                loss = engine(tokens, tokens)
            elif part == "backward":
                engine.backward(loss)
            else:
                engine.step()
            parts.append({"part": part, **drive.bytes})
        steps.append({"loss": loss.item(), "parts": parts})
    shares = [parameter.ds_tensor for parameter in engine.module.parameters()]
    on_drives = [share.ds_numel for share in shares if share.final_location == "nvme"]
    return {
        "tensors": len(on_drives),
        "elements": sum(on_drives),
        "kept": sum(share.ds_numel for share in shares) - sum(on_drives),
        "held": held.most,
        "locked": sum(tensor.nbytes for tensor in drive.locked),
        "files": {
            kind: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and kind in str(path))
            for kind in ("params", "optimizer")
        },
        "groups": [int(number) for number in getattr(engine.optimizer, "fp16_partitioned_groups_flat_numel", ())],
        "steps": steps,
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    deepspeed.init_distributed("gloo")
    watched = Held()
    watched.watch()
    print(json.dumps([trained(case, watched) for case in json.load(sys.stdin)]))  # noqa: T201 - the answer
