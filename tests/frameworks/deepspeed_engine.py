"""Runs in DeepSpeed's own environment: makes an engine of each configuration in one process, and takes two steps.

Answers when it stopped ("build", "step", or "" for never) and with which words. A model of two layers is enough: what
is asked is what DeepSpeed says of the configuration.
"""

import json
import logging
import os
import sys
from typing import Any
from unittest import mock

import deepspeed
import torch

WIDTH = 8
STEPS = 2


def answer(config: dict[str, Any]) -> dict[str, str]:
    """Return what becomes of a configuration."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    try:
        engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    except Exception as error:  # noqa: BLE001 - whatever stops it is the answer
        return {"stopped": "build", "error": f"{type(error).__name__}: {error}"}
    try:
        dtype = next(engine.module.parameters()).dtype
        for _ in range(STEPS):
            loss = engine(torch.randn(2, WIDTH, dtype=dtype)).float().pow(2).mean()
            engine.backward(loss)
            engine.step()
    except Exception as error:  # noqa: BLE001 - likewise
        return {"stopped": "step", "error": f"{type(error).__name__}: {error}"}
    return {"stopped": "", "error": ""}


def main() -> None:
    """Answer every configuration in one process of its own world."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    # Met in memory: no port is needed where there is nobody to meet.
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    accelerator = type(deepspeed.accelerator.get_accelerator())
    with mock.patch.object(accelerator, "is_fp16_supported", return_value=True):
        answers = [answer(config) for config in json.load(sys.stdin)]
    print(f"\n{json.dumps(answers)}", flush=True)  # noqa: T201 - the answer
    os._exit(0)  # threads of the groups now and then abort at the interpreter's end, which says nothing of the answers


if __name__ == "__main__":
    main()
