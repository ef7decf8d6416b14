"""Launch files for DeepSpeed: its configuration, a training program, and the scripts that start it.

DeepSpeed has no program of its own. The one that is written beside its configuration builds the planned model from
`model.json`, or any Hugging Face model, and runs with torch and DeepSpeed alone. Checked against deepspeed 0.19.8,
which reads the configuration and takes the program's steps (`tests/frameworks`).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

from planner.emit.deepspeed_config import configuration
from planner.emit.deepspeed_limits import (
    needs_flash_attention_package,
    require_layout,
    require_model,
    require_workload,
)
from planner.emit.host_threads import thread_lines
from planner.emit.node_order import HOSTFILE, hostfile
from planner.emit.shell import array, comment
from planner.emit.torchrun import (
    batch_directives,
    launch_rendezvous,
    master_lines,
    slurm_rendezvous,
    srun_lines,
    torchrun_lines,
)
from planner.frameworks.capabilities import DEEPSPEED
from planner.layout import DRIVE_WEIGHTS, ON_HOSTS, Granularity, Layout
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.offloading.drive_weights import DriveWeights, drive_weights
from planner.offloading.states import is_parted
from planner.plans.plan import Plan
from planner.ranks.placement import place
from planner.ranks.sharding import padded_vocab_size
from planner.requests.workload import TrainMethod, TrainWorkload
from profiles.hardware import Cluster

LAUNCH_SCRIPT = "launch.sh"
BATCH_SCRIPT = "job.sbatch"
CONFIG_FILE = "ds_config.json"
MODEL_FILE = "model.json"
PROGRAM = "train_deepspeed.py"
MODEL_PROGRAM = "planned_model.py"
FILES = (LAUNCH_SCRIPT, BATCH_SCRIPT, CONFIG_FILE, MODEL_FILE, PROGRAM, MODEL_PROGRAM)

ARGUMENTS = "TRAIN_ARGS"

MODEL_FACTS = (
    "hidden_size",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
    "norm",
    "norm_epsilon",
    "position_embedding",
    "position_offset",
    "rope_theta",
    "rotary_fraction",
    "rope_scaling",
    "lm_head_bias",
    "embedding_norm",
    "traits",
    "runs",
)
"""Fields of a model that the training program builds it from."""

DEFAULT_STEPS = 100
"""Steps of a run whose token budget is not given."""

LARGEST_16_BIT_VOCABULARY = 1 << 16

TARGET_NOTE = "Target: DeepSpeed 0.19.8, checked with torch 2.13.0."

MOCK_DATA_NOTE = (
    "Data: mock tokens. For real data append --data FILE, a file of token numbers as --data-type says, or set",
    "workload.data_path in the spec and plan again.",
)

TOKEN_FILE_NOTE = "Data: the files behind --data hold token numbers as --data-type says, and nothing else."

RECIPE_NOTE = (
    f"Training: the learning rate in {CONFIG_FILE} is constant, a placeholder; sequences are read in the order of the",
    "files. Both are yours to change, and no plan depends on them.",
)

BASE_NOTE = (
    "Base model: append --model DIR, a Hugging Face model of these sizes (needs transformers), or --load DIR, a",
    "checkpoint of this program; without either the weights start at random.",
)

OFFLOAD_NOTE = "Optimizer on the host: DeepSpeed builds its Adam for CPUs at the first start, with a C++ compiler."

PARTED_NOTE = (
    f"Optimizer in parts: sub_group_size and ratio in {CONFIG_FILE} belong together. What stays on the GPU is updated",
    "by an optimizer of its own that no scheduler of learning rates is told of: it keeps the rate of the start.",
)

DRIVES_NOTE = (
    f"on drives: nvme_path in {CONFIG_FILE} is a folder on the drives of each node, joined into one volume",
    "(RAID 0), where every rank writes its own files; set it to yours. DeepSpeed reads and writes with libaio, and its",
    "ds_nvme_tune finds the best numbers for `aio`; what is written there is DeepSpeed's default.",
)

FLASH_NOTE = "Sliding windows: --attention flash needs the flash-attn package; --attention fused takes masks instead."


def emit_deepspeed(plan: Plan, index: int = 0) -> Mapping[str, str]:
    """Return the files that start the layout at `index` of the plan: file name to text.

    Args:
        plan: A plan with at least `index + 1` layouts.
        index: 0 is the best layout, 1 the first runner-up.
    """
    layout = plan.plans[index].layout
    model, workload, cluster = plan.model, plan.request.workload, plan.cluster
    require_model(model)
    require_workload(workload)
    require_layout(layout, model, workload, cluster)
    rows = argument_rows(model, workload, layout)
    facts = dataclasses.asdict(model)
    programs = files("planner").joinpath("data", "deepspeed")
    hosts = hostfile(layout, cluster)
    return {
        LAUNCH_SCRIPT: _launch_script(model, workload, layout, cluster, rows),
        BATCH_SCRIPT: _batch_script(model, workload, layout, cluster, rows),
        CONFIG_FILE: _json(configuration(model, workload, layout, _weights_on_drives(model, workload, layout))),
        MODEL_FILE: _json({name: facts[name] for name in MODEL_FACTS}),
        **{name: programs.joinpath(name).read_text(encoding="utf-8") for name in (PROGRAM, MODEL_PROGRAM)},
        **({} if hosts is None else {HOSTFILE: hosts}),
    }


def _weights_on_drives(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> DriveWeights | None:
    """Return what weights on drives need; None where they are elsewhere."""
    if layout.parameter_offload != DRIVE_WEIGHTS:
        return None
    graph = build_graph(model, workload, eager=DEEPSPEED.eager)
    return drive_weights(place(model, graph, layout, workload, DEEPSPEED))


def file_names(cluster: Cluster) -> tuple[str, ...]:
    """Return the names of the files that start a run on a cluster."""
    has_names = cluster.unequal is not None and bool(cluster.unequal.names)
    return (*FILES, HOSTFILE) if has_names else FILES


Rows = Sequence[tuple[str, Sequence[tuple[str, ...]]]]


def argument_rows(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> Rows:
    """Return what the training program is told on its command line: what DeepSpeed's own JSON cannot say."""
    full = layout.recompute.granularity is Granularity.FULL
    padded = padded_vocab_size(model.vocab_size, layout.tp, divisor=DEEPSPEED.vocab_divisor)
    wide = model.vocab_size > LARGEST_16_BIT_VOCABULARY
    data: list[tuple[str, ...]] = []
    if workload.data_path:
        data.append(("--data", *(_not_an_option(path) for path in workload.data_path)))
    data.append(("--data-type", "uint32" if wide else "uint16"))
    return (
        (
            "Layout",
            (
                ("--layers-per-stage", ",".join(str(stage.num_layers) for stage in layout.stages)),
                ("--recompute", "full" if full else "none"),
            ),
        ),
        (
            "Model",
            (
                ("--seq-len", str(workload.seq_len)),
                ("--padded-vocab-size", str(padded)),
                ("--attention", workload.attention_kernel.value),
                ("--attention-dropout", repr(workload.attention_dropout)),
                ("--hidden-dropout", repr(workload.hidden_dropout)),
            ),
        ),
        ("Run", (*data, ("--steps", str(workload.steps_to_train or DEFAULT_STEPS)), ("--seed", "1234"))),
    )


def _not_an_option(path: str) -> str:
    """Return a path that no parser takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def _json(data: object) -> str:
    return json.dumps(data, indent=2) + "\n"


def _launch_script(model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster, rows: Rows) -> str:
    found = launch_rendezvous(layout, cluster)
    run_note = found.note
    folder = '$(dirname "${BASH_SOURCE[0]}")'
    prepared = [*found.lines, *array(ARGUMENTS, rows), ""]
    if HOSTFILE in file_names(cluster):
        run_note = (
            *run_note,
            "Or run it on one of them without NODE_RANK, in a folder that all of them share: deepspeed then starts all",
            f"over ssh (needs pdsh), by {HOSTFILE}, which holds them in the order of their places.",
        )
        prepared = [*array(ARGUMENTS, rows), "", *_from_one_node(folder), *found.lines]
    lines = [
        "#!/usr/bin/env bash",
        *_header(model, workload, layout, cluster),
        *(comment(line) for line in run_note),
        "",
        "set -euo pipefail",
        "",
        *thread_lines(layout, cluster.gpus_per_node),
        *prepared,
        *torchrun_lines(cluster, found),
        f'    "{folder}/{PROGRAM}" \\',
        *_program_words(folder),
    ]
    return "\n".join(lines) + "\n"


def _batch_script(model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster, rows: Rows) -> str:
    folder = "$SLURM_SUBMIT_DIR"
    found = slurm_rendezvous(layout, cluster)
    lines = [
        "#!/usr/bin/env bash",
        *batch_directives(model.name, cluster, found),
        *_header(model, workload, layout, cluster),
        comment("Submit from the folder that holds these files: sbatch job.sbatch, with --partition, --account and"),
        comment("--time as your site wants them."),
        *(comment(line) for line in found.note),
        "",
        "set -euo pipefail",
        "",
        *master_lines(found),
        "",
        *thread_lines(layout, cluster.gpus_per_node),
        *array(ARGUMENTS, rows),
        "",
        *srun_lines(cluster, found),
        f'    torchrun "{folder}/{PROGRAM}" \\',
        *_program_words(folder),
    ]
    return "\n".join(lines) + "\n"


def _from_one_node(folder: str) -> list[str]:
    """Return bash that starts all nodes from this one, unless each is started by itself."""
    return [
        'if [[ -z "${NODE_RANK:-}" ]]; then',
        "    exec deepspeed \\",
        f'        --hostfile "{folder}/{HOSTFILE}" \\',
        "        --no_local_rank \\",
        '        --master_port "${MASTER_PORT:-29500}" \\',
        f'        "{folder}/{PROGRAM}" \\',
        *(f"    {line}" for line in _program_words(folder)),
        "fi",
        "",
    ]


def _program_words(folder: str) -> tuple[str, ...]:
    return (
        f'    --deepspeed-config "{folder}/{CONFIG_FILE}" \\',
        f'    --model-facts "{folder}/{MODEL_FILE}" \\',
        f'    "${{{ARGUMENTS}[@]}}" "$@"',
    )


def _drives_note(layout: Layout) -> tuple[str, ...]:
    """Return what is to be known of drives; nothing where none are used."""
    if not layout.uses_drives:
        return ()
    states, weights = layout.drive_offload != ON_HOSTS, layout.parameter_offload == DRIVE_WEIGHTS
    what = "Optimizer and weights" if states and weights else "Optimizer" if states else "Weights"
    first, *others = DRIVES_NOTE
    return f"{what} {first}", *others


def _header(model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster) -> list[str]:
    gpus = f"{cluster.nodes_in_words}"
    pretraining = workload.method is TrainMethod.PRETRAIN
    what = "pretraining" if pretraining else "fine-tuning"
    return [
        comment(line)
        for line in (
            f"{model.name} on {cluster.name} ({gpus}): {what}. Written by shardwright.",
            "",
            TARGET_NOTE,
            f"{CONFIG_FILE} is DeepSpeed's part of the plan; what it cannot say is told to {PROGRAM} below.",
            *((FLASH_NOTE,) if needs_flash_attention_package(model, workload) else ()),
            *((OFFLOAD_NOTE,) if layout.offload is not None else ()),
            *(PARTED_NOTE if is_parted(layout) else ()),
            *_drives_note(layout),
            *((TOKEN_FILE_NOTE,) if workload.data_path else MOCK_DATA_NOTE),
            *(() if pretraining else BASE_NOTE),
            *RECIPE_NOTE,
            f"Any further argument of {PROGRAM} can be appended: --save DIR --save-interval 500 --load DIR",
            "",
        )
    ]
