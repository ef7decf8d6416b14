"""Asked in SGLang's environment: what its own code makes of arguments and of the expert location that they name.

Of SGLang only what places experts is loaded: the fields that its command line is made of, and
`sglang.srt.eplb.expert_location`. The package's own start, and the helpers of its other modules, ask for the libraries
of a GPU, so they are kept out; nothing that is asked here uses them. The published configuration is made of those
fields, with their defaults and what the arguments say, and the model says its layers and experts as `deepseek_v2` does.
"""

import argparse
import json
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

WANTED = ("ep_num_redundant_experts", "init_expert_location")


def _empty(name: str, folder: Path | None = None) -> ModuleType:
    """Return a module that stands for one of SGLang's, without what that runs when it is loaded."""
    module = ModuleType(name)
    module.__path__ = [] if folder is None else [str(folder)]
    sys.modules[name] = module
    return module


_empty("sglang", Path(sysconfig.get_paths()["purelib"]) / "sglang")
_empty("sglang.srt.utils")
# Reads the numbers of other fields' options.
_empty("sglang.srt.utils.common").human_readable_int = int  # type: ignore[attr-defined]
# Says whether ranks have joined an engine that runs.
_empty("sglang.srt.elastic_ep.elastic_ep").elastic_expanded_world_enabled = lambda: False  # type: ignore[attr-defined]

from sglang.srt import runtime_context  # type: ignore[import-not-found]  # noqa: E402
from sglang.srt.arg_groups.arg_utils import add_cli_args_from_dataclass  # type: ignore[import-not-found]  # noqa: E402
from sglang.srt.arg_groups.fields.exec_ import ExecMoe  # type: ignore[import-not-found]  # noqa: E402
from sglang.srt.arg_groups.fields.parallel import Parallel  # type: ignore[import-not-found]  # noqa: E402
from sglang.srt.eplb import expert_location  # type: ignore[import-not-found]  # noqa: E402


def main() -> None:
    """Answer every case that standard input holds."""
    json.dump([_answer(case) for case in json.load(sys.stdin)], sys.stdout)


def _answer(case: dict[str, Any]) -> dict[str, Any]:
    """Return what each rank knows of where experts stand, or what was raised."""
    said = _parsed(case["arguments"])
    # Arguments name a file beside the script that they are written for.
    os.chdir(case["folder"])
    try:
        return {"error": "", "ranks": [_metadata(case, said, rank) for rank in range(said.ep_size)]}
    except (AssertionError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "ranks": []}


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_cli_args_from_dataclass(parser, ExecMoe, fields=list(WANTED))
    add_cli_args_from_dataclass(parser, Parallel, fields=["ep_size"])
    return parser.parse_args(arguments)


def _metadata(case: dict[str, Any], said: argparse.Namespace, rank: int) -> dict[str, Any]:
    moe = {**_defaults(ExecMoe), **{name: getattr(said, name) for name in WANTED}}
    # With DeepEP each token goes to one rank, and SGLang resolves the dispatch to "static"; without, to "dynamic".
    deep = case["a2a"] == "deepep"
    moe |= {"moe_a2a_backend": case["a2a"], "ep_dispatch_algorithm": "static" if deep else "dynamic"}
    _publish(exec={"moe": moe}, device={"device": "cpu"}, parallel={**_defaults(Parallel), "ep_size": said.ep_size})
    model = expert_location.ModelConfigForExpertLocation(
        num_layers=case["num_layers"], num_logical_experts=case["num_experts"], num_groups=None
    )
    expert_location.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda _config: model)
    found = expert_location.compute_initial_expert_location_metadata(SimpleNamespace(), moe_ep_rank=rank)
    sent = found.logical_to_rank_dispatch_physical_map
    return {
        "physical_to_logical": found.physical_to_logical_map.tolist(),
        "num_local": found.num_local_physical_experts,
        "copies": [
            [found.logical_to_all_physical(layer, expert) for expert in range(found.num_logical_experts)]
            for layer in range(found.num_layers)
        ],
        "sent_to": None if sent is None else sent.tolist(),
    }


def _defaults(fields: Any) -> dict[str, Any]:
    return {name: getattr(fields(), name) for name in fields.__struct_fields__}


def _publish(**namespaces: dict[str, Any]) -> None:
    """Make the process's configuration what these namespaces say, as SGLang's start does from its arguments."""

    def bag(path: str, values: dict[str, Any]) -> Any:
        made = runtime_context._ConfigBag(path)
        for name, value in values.items():
            if isinstance(value, dict) and path == "exec":
                made._set_sub(name, bag(f"{path}.{name}", value))
            else:
                made._set(name, value)
        return made

    context = runtime_context._CONTEXT
    context._config_bags = {name: bag(name, values) for name, values in namespaces.items()}
    context.parallel._config = context._config_bags["parallel"]


if __name__ == "__main__":
    main()
