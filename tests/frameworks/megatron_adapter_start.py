# ruff: noqa: PLC0415 - Megatron can be imported only after what it lacks here has been stood in for
"""Runs the `main` of the emitted adapter program up to Megatron-LM's training loop. In the framework environment only.

Reads one JSON list of cases `{"program": path, "arguments": [...], "environment": {...}, "world_size": n}`, at most
one a process, and writes what the training loop would have been called with. `pretrain_gpt.py` is not part of
megatron-core, so a module with its three functions stands in for it.
"""

import json
import os
import sys
import types
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from tests.frameworks.megatron_adapter_steps import load_program
from tests.frameworks.megatron_oracle import Job, claim_transformer_engine, prepare_imports, stand_in_for_the_device
from tests.frameworks.megatron_transformer_engine import install


def start(case: dict[str, Any]) -> dict[str, Any]:
    """Return how the program calls the training loop."""
    import megatron.training

    os.environ.update(case["environment"], WORLD_SIZE=str(case["world_size"]), RANK="0", LOCAL_RANK="0")
    stand_in_for_the_device(
        Job(arguments=[], environment={}, world_size=1, gpus_per_node=8, capability=(9, 0), pipeline_ranks=[])
    )
    stand_in = types.ModuleType("pretrain_gpt")
    for name in ("train_valid_test_datasets_provider", "forward_step", "get_embedding_ranks"):
        setattr(stand_in, name, types.SimpleNamespace(name=name))
    sys.modules["pretrain_gpt"] = stand_in
    calls: list[Any] = []
    megatron.training.pretrain = lambda *args, **keywords: calls.append((args, keywords))
    sys.argv = ["lora_gpt.py", *case["arguments"]]
    load_program(case["program"]).main()
    ((config, datasets, _, forward_step), keywords) = calls[0]
    (hook,) = config.model.pre_wrap_hooks
    return {
        "adapters": hook.keywords,
        "num_layers": config.model.num_layers,
        "datasets": [datasets.name, datasets.is_distributed],
        "forward_step": forward_step.name,
        "embedding_ranks": keywords["get_embedding_ranks"].name,
    }


def main() -> None:
    """Start the one case on standard input; Megatron's chatter goes to standard error."""
    prepare_imports()
    install()
    claim_transformer_engine()
    (case,) = json.load(sys.stdin)
    with redirect_stdout(sys.stderr), redirect_stderr(sys.stderr):
        answer = start(case)
    json.dump([answer], sys.stdout)


if __name__ == "__main__":
    main()
