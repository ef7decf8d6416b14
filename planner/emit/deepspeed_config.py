"""DeepSpeed's JSON configuration of one planned layout.

Keys and what they do: `deepspeed/runtime/config.py`, `deepspeed/runtime/zero/config.py` and
`deepspeed/runtime/tensor_parallel/config.py` of deepspeed 0.19.8. Everything that decides the plan is written out,
defaults included.
"""

from collections.abc import Mapping
from typing import TypeAlias

from planner.frameworks.capabilities import DEEPSPEED
from planner.layout import HOST_WEIGHTS, ON_HOSTS, PIPELINED, Granularity, Layout
from planner.models.specs import ModelSpec
from planner.offloading.drive_step import BLOCK_BYTES, DRIVE_PATH, buffer_count
from planner.offloading.drive_weights import DriveWeights
from planner.offloading.states import PREFETCH_BUCKET_ELEMENTS, is_parted, sub_group_elements
from planner.offloading.sub_groups import planned_dealing, tensor_elements
from planner.requests.workload import Precision, TrainMethod, TrainWorkload

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

LEARNING_RATES = {TrainMethod.PRETRAIN: 3e-4, TrainMethod.FULL_FINETUNE: 1e-5}
"""Placeholders, not advice; no cost depends on them."""

REDUCE_BUCKET_ELEMENTS = DEEPSPEED.queued_gradients // 2
"""Two buckets are alive at once where reduction overlaps (`stage_1_and_2.py: setup_buckets`)."""

ALLGATHER_BUCKET_ELEMENTS = 500_000_000
PERSISTENCE_THRESHOLD_ELEMENTS = 100_000
"""DeepSpeed's own defaults, written out."""

AIO: Mapping[str, Json] = {
    "block_size": BLOCK_BYTES,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}
"""DeepSpeed's own defaults (`runtime/swap_tensor/constants.py`), written out; its `ds_nvme_tune` measures others."""

COLUMN_PARALLEL = r".*\.(q|k|v|kv_b|gate|up)_proj\.weight$"
ROW_PARALLEL = r".*\.(o|down)_proj\.weight$"
HEAD_NORMS = r".*\.(q|k)_norm\.(weight|bias)$"
"""Linear layers that AutoTP splits, and the norms inside the split, by their names in the training program."""


def configuration(
    model: ModelSpec, workload: TrainWorkload, layout: Layout, weights: DriveWeights | None
) -> dict[str, Json]:
    """Return the configuration of a plan that DeepSpeed can express.

    Args:
        model: The model.
        workload: The training run.
        layout: The layout.
        weights: What weights on drives need; None where they are elsewhere.
    """
    config: dict[str, Json] = {
        "train_batch_size": layout.global_batch_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.num_microbatches,
        "gradient_clipping": 1.0,
        **_number_formats(workload, layout),
        "optimizer": _optimizer(workload),
        "zero_optimization": _zero(model, layout, weights),
        "activation_checkpointing": {
            "partition_activations": False,
            "cpu_checkpointing": False,
            "contiguous_memory_optimization": False,
        },
    }
    if layout.uses_drives:
        config["aio"] = dict(AIO)
    if layout.tp > 1:
        config["tensor_parallel"] = _tensor_parallel(layout)
    if layout.cp > 1:
        config["sequence_parallel_size"] = layout.cp
    if layout.pp > 1:
        every_layer = layout.recompute.granularity is Granularity.FULL
        config["pipeline"] = {"activation_checkpoint_interval": 1 if every_layer else 0}
    return config


def _number_formats(workload: TrainWorkload, layout: Layout) -> dict[str, Json]:
    """Return the formats of weights, and of gradients while they are accumulated and while they are reduced."""
    sections: dict[str, Json] = {}
    if workload.precision is Precision.FP16:
        sections["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    else:
        sections["bf16"] = {"enabled": True, "immediate_grad_update": False}
    gradients = workload.gradient_dtype.value
    sections["data_types"] = {"grad_accum_dtype": gradients}
    sections["communication_data_type"] = gradients
    if layout.cp > 1:
        sections["seq_parallel_communication_data_type"] = gradients
    return sections


def _optimizer(workload: TrainWorkload) -> Json:
    rate = LEARNING_RATES[workload.method]
    return {"type": "AdamW", "params": {"lr": rate, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}}


def _zero(model: ModelSpec, layout: Layout, weights: DriveWeights | None) -> Json:
    section: dict[str, Json] = {
        "stage": layout.zero_stage,
        "overlap_comm": layout.overlap.grad_reduce,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
    }
    if layout.zero_stage < 3:
        return {**section, "allgather_partitions": True, "allgather_bucket_size": ALLGATHER_BUCKET_ELEMENTS}
    if layout.offload is not None:
        section["offload_optimizer"] = _offloaded_states(layout)
    if layout.parameter_offload == HOST_WEIGHTS:
        section["offload_param"] = {"device": "cpu", "pin_memory": True}
    if weights is not None:
        section["offload_param"] = _weights_on_drives(weights)
    return {
        **section,
        "sub_group_size": _sub_group_size(model, layout),
        "stage3_prefetch_bucket_size": PREFETCH_BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD_ELEMENTS,
        "stage3_max_live_parameters": DEEPSPEED.prefetched_weights,
        "stage3_max_reuse_distance": DEEPSPEED.prefetched_weights if weights is None else weights.reuse_elements,
        "stage3_gather_16bit_weights_on_model_save": False,
        "zero_hpz_partition_size": layout.secondary_shard,
    }


def _sub_group_size(model: ModelSpec, layout: Layout) -> int:
    """Return the elements that are updated at once; where `ratio` deals them, as many as deal them best."""
    if not is_parted(layout):
        return sub_group_elements(layout)
    ranks = layout.dp * layout.cp
    return planned_dealing(tensor_elements(model), ranks=ranks, fraction=layout.offloaded_fraction).sub_group_size


def _offloaded_states(layout: Layout) -> Json:
    """Return where optimizer states lie: in page-locked memory, or all on drives with buffers there."""
    if layout.drive_offload == ON_HOSTS:
        return {"device": "cpu", "pin_memory": True, "ratio": layout.offloaded_fraction}
    pipelined = layout.drive_offload == PIPELINED
    return {
        "device": "nvme",
        "nvme_path": DRIVE_PATH,
        "pin_memory": True,
        "ratio": 1.0,
        "buffer_count": buffer_count(pipelined=pipelined),
        "pipeline_read": pipelined,
        "pipeline_write": pipelined,
    }


def _weights_on_drives(weights: DriveWeights) -> Json:
    """Return where all weights lie: on drives, with buffers in page-locked memory for those that a pass needs."""
    return {
        "device": "nvme",
        "nvme_path": DRIVE_PATH,
        "pin_memory": True,
        "buffer_count": weights.num_buffers,
        "buffer_size": weights.buffer_elements,
        "max_in_cpu": 0,
    }


def _tensor_parallel(layout: Layout) -> Json:
    """Return AutoTP's section: which linear layers are split how, and the LM head by rows of the vocabulary.

    A norm inside the split sees only its rank's heads, so its gradients are summed over the tensor-parallel ranks.
    """
    return {
        "autotp_size": layout.tp,
        "vocab_parallel_lm_head": True,
        "partition_config": {
            "use_default_specs": False,
            "layer_specs": [
                {"patterns": [COLUMN_PARALLEL], "partition_type": "column"},
                {"patterns": [ROW_PARALLEL], "partition_type": "row"},
                {"patterns": [HEAD_NORMS], "partition_type": "skip", "grad_allreduce": True},
            ],
        },
    }
