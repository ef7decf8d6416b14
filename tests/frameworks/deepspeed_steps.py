"""Runs in DeepSpeed's own environment: trains folders of emitted files, and answers what their program printed.

The processes of one size start once and run one folder after the other, each with process groups of its own: starting
takes longer than the steps. What stays on the GPU where a part of the optimizer states is on the host is told from that
part by a second name of the CPU, which torch takes for the same device.
"""

import contextlib
import importlib
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch

Case = dict[str, Any]
ACCELERATOR = "cpu:0"
MAKE = deepspeed.initialize


def kept_elements(engine: Any) -> int:
    """Return the elements whose moments the second optimizer has: that of states which stay on the accelerator."""
    second = getattr(engine.optimizer, "backup_optimizer", None)
    return 0 if second is None else sum(state["exp_avg"].numel() for state in second.state.values())


def train(rank: int, world: int, cases: list[Case], answers: str) -> None:
    """Train every case as process `rank` of `world`."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    sys.path.insert(0, cases[0]["folder"])
    program = importlib.import_module("train_deepspeed")
    deepspeed.accelerator.get_accelerator()._name = ACCELERATOR  # stage 3 names the device by it
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
    }
    outputs = []
    for case in cases:
        folder = case["folder"]
        # Met in a file: a port that is free now need not be free when its turn comes.
        store = torch.distributed.FileStore(f"{folder}/meeting-place", world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
        files = ["--deepspeed-config", f"{folder}/ds_config.json", "--model-facts", f"{folder}/model.json"]
        sys.argv = ["train_deepspeed.py", *files, *case["arguments"]]
        output = io.StringIO()
        engines: list[Any] = []

        def initialize(*, engines: list[Any] = engines, **given: Any) -> Any:
            engines.append((made := MAKE(**given))[0])
            return made

        with contextlib.redirect_stdout(output), mock.patch.object(deepspeed, "initialize", initialize):
            program.main()
            print("kept", *map(kept_elements, engines))  # noqa: T201 - part of the answer
        outputs.append(output.getvalue())
    if rank == 0:
        Path(answers).write_text(json.dumps(outputs), encoding="utf-8")
    # All is said and the groups are gone. What their threads still hold at the interpreter's end now and then makes
    # libstdc++ abort ("terminate called without an active exception"), which says nothing of the steps.
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """Answer the outputs in the order of the cases."""
    cases: list[Case] = json.load(sys.stdin)
    outputs: dict[int, str] = {}
    for world in sorted({case["world"] for case in cases}):
        chosen = [index for index, case in enumerate(cases) if case["world"] == world]
        jobs = [cases[index] for index in chosen]
        answers = str(Path(jobs[0]["folder"]) / "outputs.json")
        torch.multiprocessing.spawn(train, (world, jobs, answers), nprocs=world)
        found = json.loads(Path(answers).read_text(encoding="utf-8"))
        outputs |= dict(zip(chosen, found, strict=True))
    print(json.dumps([outputs[index] for index in range(len(cases))]))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
