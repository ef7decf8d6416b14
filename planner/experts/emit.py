"""A placement in the words of serving engines and of Megatron-LM: file names to text.

SGLang 0.5.23 (sglang/srt/eplb/expert_location.py, compute_initial_expert_location_metadata and init_by_mapping) reads
the expert on every slot of every layer of the model from `--init-expert-location FILE.json`, an object with
`physical_to_logical_map` and nothing else; slots of one rank are neighbours, and `--ep-num-redundant-experts` says how
many there are beside the experts. Layers without experts have rows too. Its code takes what is written here
(`tests/frameworks/test_sglang.py`); where tokens are sent to ranks, a copy on their own GPU or node is taken first.

vLLM 0.32.0 (vllm/config/parallel.py, EPLBConfig) takes no placement: its balancer places the copies itself, by loads of
the last `window_size` steps, every `step_interval` steps. What it is told is how many copies there are.

Megatron-LM 0.19.2 has no copies: rank r of the expert-parallel group has experts r E / EP to (r + 1) E / EP - 1. A
placement without copies is an order of experts (`planner.requests.expert_orders`), in which a checkpoint's experts and
its router's rows are written: no flag of 0.19.2 or of commit d98e8a6 of August 2026 names one.
"""

import json
from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from planner.errors import InputError, Location, NotExpressibleError
from planner.experts.histogram import Ints
from planner.requests.expert_orders import order_error

MAP = "physical_to_logical_map"
SGLANG_FILE = "expert-location.json"
VLLM_FILE = "vllm.yaml"
MEGATRON_FILE = "expert-order.json"
ORDER = "order"
WINDOW_STEPS, INTERVAL_STEPS = 1000, 3000
"""vLLM's own defaults of `window_size` and `step_interval`."""


class Target(StrEnum):
    """Who reads the placement."""

    SGLANG = "sglang"
    VLLM = "vllm"
    MEGATRON = "megatron"


def emit_placement(target: Target, expert_LGS: Ints, *, num_groups: int = 1) -> Mapping[str, str]:
    """Return the files of a placement.

    Args:
        target: Who reads it.
        expert_LGS: Expert on each slot of each GPU, of all layers that the target counts.
        num_groups: Groups of experts, of which a token chooses some; 1 where it may take any experts.

    Raises:
        NotExpressibleError: The target has no words for it.
    """
    num_layers, num_gpus, slots = expert_LGS.shape
    num_experts = int(expert_LGS.max()) + 1
    redundant = num_gpus * slots - num_experts
    match target:
        case Target.SGLANG:
            return {
                SGLANG_FILE: location_text(expert_LGS),
                "sglang-arguments.txt": f"--ep-size {num_gpus} --ep-num-redundant-experts {redundant} "
                f"--init-expert-location {SGLANG_FILE}\n",
            }
        case Target.VLLM:
            return {VLLM_FILE: _vllm(redundant)}
        case Target.MEGATRON:
            if redundant:
                raise NotExpressibleError(
                    "There are no copies of experts.", target="megatron", hint="Place with --redundant 0."
                )
            _require_groups(expert_LGS.reshape(num_layers, -1), num_experts=num_experts, num_groups=num_groups)
            return {
                MEGATRON_FILE: order_text(expert_LGS.reshape(num_layers, -1)),
                "megatron-arguments.txt": f"--num-experts {num_experts} --expert-model-parallel-size {num_gpus}\n",
            }


def _require_groups(order_LE: Ints, *, num_experts: int, num_groups: int) -> None:
    """Raise `NotExpressibleError` where the router would choose other experts in this order."""
    for layer, row in enumerate(order_LE.tolist()):
        wrong = order_error(tuple(row), num_experts=num_experts, num_groups=num_groups)
        if wrong:
            raise NotExpressibleError(
                f"The order of layer {layer} {wrong}, and a token chooses among groups first: it would get others.",
                target="megatron",
                hint="Plan the run with `routing: {histogram: ...}`: its order keeps groups together.",
            )


def location_text(expert_LGS: Ints) -> str:
    """Return the file that SGLang reads a placement from."""
    return _rows(MAP, expert_LGS.reshape(expert_LGS.shape[0], -1))


def order_text(order_LE: Ints) -> str:
    """Return the file that says which of a checkpoint's experts stands at each position of each layer of the model."""
    return _rows(ORDER, order_LE)


def read_order(text: str, *, file: str, num_layers: int, num_experts: int, num_groups: int = 1) -> Ints:
    """Return the expert at each position of each layer of the model, as such a file says it.

    Args:
        text: The file's text.
        file: Its name.
        num_layers: Layers of the model.
        num_experts: Experts of a layer.
        num_groups: Groups of experts, of which a token chooses some; 1 where it may take any experts.

    Raises:
        InputError: It is no such file, or a row is no order of the experts that keeps their groups.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"This is no JSON: {error}.", location=Location(file=file)) from error
    rows = found.get(ORDER) if isinstance(found, dict) else None
    if not isinstance(rows, list) or len(rows) != num_layers:
        raise InputError(
            f"There is no {ORDER} of {num_layers} layers here.",
            location=Location(file=file),
            hint="Plan again; the file holds a row for each layer of the model.",
        )
    for layer, row in enumerate(rows):
        is_row = isinstance(row, list) and all(type(expert) is int for expert in row)
        wrong = "is no list of whole numbers"
        if is_row:
            wrong = order_error(tuple(row), num_experts=num_experts, num_groups=num_groups)
        if wrong:
            raise InputError(
                f"Layer {layer} {wrong}.",
                location=Location(file=file, path=f"{ORDER}[{layer}]"),
                hint="Plan again; the file is not edited by hand.",
            )
    return np.array(rows, dtype=np.int64)


def _rows(name: str, expert_LP: Ints) -> str:
    """Return an object with one row a line."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in expert_LP.tolist())
    return f'{{"{name}": [\n{rows}\n]}}\n'


def _vllm(redundant: int) -> str:
    config = {
        "num_redundant_experts": redundant,
        "window_size": WINDOW_STEPS,
        "step_interval": INTERVAL_STEPS,
    }
    return (
        "# For vllm serve --config, beside the sizes of the engine. vLLM places the copies itself, by the loads that\n"
        "# it sees; window_size and step_interval are its own defaults.\n"
        f"enable-expert-parallel: true\nenable-eplb: true\neplb-config: {json.dumps(config)}\n"
    )


def placed_in_model(expert_LGS: Ints, sparse_layers: tuple[int, ...], num_layers: int) -> Ints:
    """Return a placement with a row for each layer of the model, of which some have no experts.

    Args:
        expert_LGS: Expert on each slot of the layers that have experts, or of all layers.
        sparse_layers: Which layers of the model have experts.
        num_layers: Layers of the model.

    Raises:
        InputError: The placement has neither number of layers.
    """
    if expert_LGS.shape[0] == num_layers:
        return expert_LGS
    if expert_LGS.shape[0] != len(sparse_layers):
        raise InputError(
            f"{expert_LGS.shape[0]} layers were counted; the model has {num_layers}, {len(sparse_layers)} of them with "
            "experts."
        )
    num_experts = int(expert_LGS.max()) + 1
    in_order = (np.arange(expert_LGS[0].size) % num_experts).reshape(expert_LGS.shape[1:])
    whole: Ints = np.broadcast_to(in_order, (num_layers, *in_order.shape)).copy()
    whole[list(sparse_layers)] = expert_LGS
    return whole
