"""Launch files for Megatron-LM: a torchrun script and a Slurm batch script, each with the full argument list.

Both start unedited: with mock data and a null tokenizer, unless the workload names data. Models whose layers are single
sub-blocks (Mamba-2 hybrids) run in `pretrain_hybrid.py`, all others in `pretrain_gpt.py`, which has no adapters, so a
LoRA plan comes with a program that adds them to the same model and takes the same arguments. Checked against
megatron-core 0.19.2, whose argument parser, configuration objects and models accept what is written here
(`tests/frameworks`).
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files

from planner.emit.host_threads import thread_lines
from planner.emit.megatron_arguments import argument_groups
from planner.emit.megatron_expert_order import order_files, order_note
from planner.emit.megatron_limits import require_layout, require_model, require_workload
from planner.emit.megatron_parts import Form, Parts, parts_of
from planner.emit.megatron_position_limits import written_model
from planner.emit.megatron_refusal import FIRST_BLACKWELL_CAPABILITY, capability_major, refuse
from planner.emit.megatron_words import Group
from planner.emit.shell import array, comment, quote
from planner.emit.torchrun import (
    batch_directives,
    launch_rendezvous,
    master_lines,
    slurm_rendezvous,
    srun_lines,
    torchrun_lines,
)
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan
from planner.requests.workload import Packing, TrainMethod, TrainWorkload
from profiles.hardware import Cluster

LAUNCH_SCRIPT = "launch.sh"
BATCH_SCRIPT = "job.sbatch"
ARGUMENTS = "MEGATRON_ARGS"
LORA_PROGRAM = "lora_gpt.py"

PROGRAMS = {
    Form.GPT: "pretrain_gpt.py",
    Form.HETEROGENEOUS: "pretrain_gpt.py",
    Form.HYBRID: "pretrain_hybrid.py",
}

TARGET_NOTE = "Target: Megatron-LM at megatron-core 0.19.2 (tag core_v0.19.2), with Transformer Engine and APEX."

CONTAINER_NOTES = {
    "nvidia": "NVIDIA's PyTorch containers hold both.",
    "amd": "On AMD GPUs take ROCm builds of both; these files were checked against the upstream release only.",
}

FUSION_NOTE = "Without APEX add --no-gradient-accumulation-fusion, which takes more memory than planned."

MOCK_DATA_NOTE = (
    "Data: mock tokens and a null tokenizer. For real data, tokenise it with Megatron-LM's tools/preprocess_data.py,",
    "set workload.data_path and workload.tokenizer_model in the spec, and plan again.",
)

DOCUMENT_NOTES = {
    Packing.PACKED: (
        "Documents: several in a sequence; --dataloader-inter-document-masking keeps them apart in attention and",
        "positions, with the fused kernels.",
    ),
    Packing.PADDED: ("Documents: one in a sequence; whoever tokenises the data pads them to --seq-length.",),
}

BASE_NOTE = (
    "Base model: append --load DIR; without it the weights start at random. A run that resumes from its own",
    "checkpoints goes without --finetune.",
)

OFFLOAD_NOTE = "Activations on the host: as planned with Transformer Engine 2.12 and later."

UNSCALED_NOTE = (
    "Positions: without the model's rope scaling, which this version cannot say and which these sequences do not need;",
    "extend the context in a later run.",
)

LONG_NOTE = (
    "Positions: the sequences are longer than the model was made for, and its rotation stands as it was. Set the base",
    "or the scaling that your recipe for long context uses, such as --rotary-base N; no cost changes.",
)

LORA_NOTE = (
    "Adapters: lora_gpt.py beside this script adds them to the model of pretrain_gpt.py, which has none. Submit from",
    "the folder that holds both.",
)


def emit_megatron(plan: Plan, index: int = 0) -> Mapping[str, str]:
    """Return the files that start the layout at `index` of the plan: file name to text.

    Args:
        plan: A plan with at least `index + 1` layouts.
        index: 0 is the best layout, 1 the first runner-up.
    """
    layout = plan.plans[index].layout
    model, workload, cluster = plan.model, plan.request.workload, plan.cluster
    require_expressible(model, workload, layout, cluster)
    groups = argument_groups(written_model(model, workload), workload, layout)
    scripts = {
        LAUNCH_SCRIPT: _launch_script(model, workload, layout, cluster, groups),
        BATCH_SCRIPT: _batch_script(model, workload, layout, cluster, groups),
        **order_files(model, workload, layout),
    }
    if workload.lora is None:
        return scripts
    program = files("planner").joinpath("data", "megatron", LORA_PROGRAM).read_text(encoding="utf-8")
    return {**scripts, LORA_PROGRAM: program}


def require_expressible(model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster) -> None:
    """Raise `NotExpressibleError` for what Megatron-LM cannot say."""
    model = written_model(model, workload)
    require_model(model)
    for device, _ in cluster.device_counts:
        require_workload(workload, device)
    require_layout(layout, model, workload)
    if layout.world_size != cluster.world_size:
        refuse(
            f"a layout of {layout.world_size} GPUs on a cluster of {cluster.world_size}.",
            "torchrun starts one process on every GPU of every node; plan for the GPUs that take part.",
        )


def environment(workload: TrainWorkload, layout: Layout, cluster: Cluster) -> Mapping[str, str | None]:
    """Return the variables that the training program reads; None means that it must not be set.

    Before Blackwell, `validate_args` asserts CUDA_DEVICE_MAX_CONNECTIONS=1 with tensor or context parallelism, so that
    communication is launched before the computation it hides behind; Megatron-FSDP asserts the opposite. With
    NVTE_CPU_OFFLOAD_V1 Transformer Engine moves activations in an older way, which keeps other layers for longer; with
    modules on the host `validate_args` wants it, so that weights stay.
    """
    variables: dict[str, str | None] = {}
    majors = [capability_major(device) for device, _ in cluster.device_counts]
    before_blackwell = any(major is None or major < FIRST_BLACKWELL_CAPABILITY for major in majors)
    if layout.zero_stage >= 2:
        variables["CUDA_DEVICE_MAX_CONNECTIONS"] = None
    elif before_blackwell and (layout.tp > 1 or layout.cp > 1):
        variables["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if layout.offloaded_layers:
        variables["NVTE_CPU_OFFLOAD_V1"] = None
    elif layout.offloaded_modules:
        variables["NVTE_CPU_OFFLOAD_V1"] = "1"
    if workload.lora is not None:
        variables["LORA_RANK"] = str(workload.lora.rank)
        variables["LORA_ALPHA"] = repr(workload.lora.alpha)
        variables["LORA_TARGETS"] = ",".join(workload.lora.target_modules)
    return variables


def _launch_script(
    model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster, groups: Sequence[Group]
) -> str:
    program = _program(model, workload, folder='$(dirname "${BASH_SOURCE[0]}")')
    found = launch_rendezvous(layout, cluster)
    lines = [
        "#!/usr/bin/env bash",
        *_header(model, workload, layout, cluster),
        *(comment(line) for line in found.note),
        "",
        "set -euo pipefail",
        "",
        *_program_directory(model),
        *found.lines,
        *_exports(workload, layout, cluster),
        *_arguments(groups),
        "",
        *torchrun_lines(cluster, found),
        f'    "{program}" "${{{ARGUMENTS}[@]}}" "$@"',
    ]
    return "\n".join(lines) + "\n"


def _batch_script(
    model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster, groups: Sequence[Group]
) -> str:
    program = _program(model, workload, folder="$SLURM_SUBMIT_DIR")
    found = slurm_rendezvous(layout, cluster)
    lines = [
        "#!/usr/bin/env bash",
        *batch_directives(model.name, cluster, found),
        *_header(model, workload, layout, cluster),
        comment("Submit: sbatch job.sbatch, with --partition, --account and --time as your site wants them."),
        *(comment(line) for line in found.note),
        "",
        "set -euo pipefail",
        "",
        *_program_directory(model),
        *master_lines(found),
        *_exports(workload, layout, cluster),
        *_arguments(groups),
        "",
        *srun_lines(cluster, found),
        f'    torchrun "{program}" "${{{ARGUMENTS}[@]}}" "$@"',
    ]
    return "\n".join(lines) + "\n"


def _header(model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster) -> list[str]:
    gpus = f"{cluster.nodes_in_words}"
    what = {
        TrainMethod.PRETRAIN: "pretraining",
        TrainMethod.FULL_FINETUNE: "fine-tuning",
        TrainMethod.LORA: "low-rank adaptation",
    }[workload.method]
    start = BASE_NOTE if workload.method is not TrainMethod.PRETRAIN else ()
    if workload.lora is not None:
        start = (*start, *LORA_NOTE)
    vendor = cluster.device.vendor
    data = MOCK_DATA_NOTE if not workload.data_path else ("Data: the tokenised prefixes behind --data-path.",)
    parts = parts_of(model)
    return [
        comment(line)
        for line in (
            f"{model.name} on {cluster.name} ({gpus}): {what}. Written by shardwright.",
            "",
            TARGET_NOTE,
            *((CONTAINER_NOTES[vendor],) if vendor in CONTAINER_NOTES else ()),
            *((FUSION_NOTE,) if layout.zero_stage < 2 else ()),
            *_kernel_notes(parts),
            f"MEGATRON_LM_DIR: a checkout of that tag; it holds {PROGRAMS[parts.form]}.",
            *data,
            *_document_note(workload),
            *(UNSCALED_NOTE if written_model(model, workload) is not model else ()),
            *((OFFLOAD_NOTE,) if layout.offloaded_layers else ()),
            *(LONG_NOTE if workload.seq_len > model.max_position_embeddings else ()),
            *order_note(workload, layout),
            *start,
            "Any further Megatron-LM flag can be appended: --save DIR --save-interval 500 --load DIR",
            "",
        )
    ]


def _kernel_notes(parts: Parts) -> tuple[str, ...]:
    """Return the packages that these layers need beside Transformer Engine."""
    needed: list[str] = []
    if parts.state_space is not None:
        needed += ["mamba-ssm", "causal-conv1d"]
    if parts.linear is not None:
        needed += ["flash-linear-attention", "causal-conv1d"]
    if parts.latent is not None and parts.latent.indexer is not None:
        needed.append("tilelang")
    return (f"Its layers also need {', '.join(dict.fromkeys(needed))}.",) if needed else ()


def _document_note(workload: TrainWorkload) -> tuple[str, ...]:
    if workload.documents is None:
        return ()
    return DOCUMENT_NOTES[workload.documents.packing]


def _program(model: ModelSpec, workload: TrainWorkload, *, folder: str) -> str:
    """Return the training program, which for adapters lies beside the script."""
    if workload.lora is not None:
        return f"{folder}/{LORA_PROGRAM}"
    return f"$MEGATRON_LM_DIR/{PROGRAMS[parts_of(model).form]}"


def _program_directory(model: ModelSpec) -> list[str]:
    program = PROGRAMS[parts_of(model).form]
    return [
        f': "${{MEGATRON_LM_DIR:?set it to a checkout of Megatron-LM core_v0.19.2, which holds {program}}}"',
        'export PYTHONPATH="$MEGATRON_LM_DIR${PYTHONPATH:+:$PYTHONPATH}"',
        "",
    ]


def _exports(workload: TrainWorkload, layout: Layout, cluster: Cluster) -> list[str]:
    variables = environment(workload, layout, cluster)
    lines = [
        f"unset {name}" if value is None else f"export {name}={quote(value, what=name)}"
        for name, value in variables.items()
    ]
    return [*lines, *([""] if lines else []), *thread_lines(layout, cluster.gpus_per_node)]


def _arguments(groups: Sequence[Group]) -> list[str]:
    return array(ARGUMENTS, [(group.title, group.flags) for group in groups if group.flags])
