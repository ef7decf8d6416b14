"""The row of a layout in a file of training measurements, as `planner.accuracy` reads it; what is measured is empty.

A row says less than a plan: uneven stages, the first layers of a stage recomputed, Ulysses have no column that
predictions of rows read. They stand in columns of their own and in the notes, beside the plan's own predictions.
"""

import csv
import io
from collections.abc import Iterable, Mapping

from planner.accuracy.machines import cluster_named
from planner.accuracy.measurements import Row
from planner.accuracy.models import model_of
from planner.accuracy.training import allocator_peak_bytes
from planner.layout import Granularity, Layout
from planner.models.blocks import DenseFeedForward, MixtureOfExperts, SelfAttention
from planner.models.parameter_counts import parameter_counts
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan
from planner.requests.workload import TrainMethod
from planner.units import GIB
from profiles.hardware import Cluster

ROWS_FILE = "runs.csv"

MODES = {TrainMethod.PRETRAIN: "pretrain", TrainMethod.FULL_FINETUNE: "sft", TrainMethod.LORA: "lora"}

MEASURED = ("step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "peak_mem_gb", "status")
"""Cells that stay empty until the run was made."""

SIZES = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "experts", "topk")

COLUMNS = (
    "id",
    "source",
    "source_group",
    "model",
    *SIZES,
    "seq_len",
    "hardware",
    "gpus_per_node",
    "num_gpus",
    "precision",
    "optimizer",
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "etp",
    "dp",
    "sequence_parallel",
    "micro_batch",
    "global_batch",
    "recompute",
    "flash_attention",
    "schedule",
    "framework",
    *MEASURED,
    "mode",
    "notes",
    "ulysses",
    "recompute_layers",
    "layers_per_stage",
    "predicted_step_time_s",
    "predicted_peak_mem_gb",
)
"""The columns of a file of training runs, then what only a plan says."""

UNSAID_MODEL = "the columns cannot say this model"


def row_of(plan: Plan, index: int, *, name: str, framework: str) -> Mapping[str, str]:
    """Return the cells of the layout at `index` of the plan.

    Args:
        plan: The plan.
        index: 0 is the best layout.
        name: Name of the run.
        framework: What runs it, with its version.
    """
    planned, workload, cluster = plan.plans[index], plan.request.workload, plan.cluster
    layout = planned.layout
    of_model, remark = _model_cells(plan.model)
    cells = {
        "id": name,
        "source": "verify",
        "source_group": "verify",
        **of_model,
        "seq_len": str(workload.seq_len),
        "hardware": _hardware(cluster),
        "gpus_per_node": str(cluster.gpus_per_node),
        "num_gpus": str(cluster.world_size),
        "precision": workload.precision.value,
        "optimizer": f"{workload.optimizer.value}, ZeRO-{layout.zero_stage}",
        **{axis: str(getattr(layout, axis)) for axis in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")},
        "sequence_parallel": str(layout.sequence_parallel),
        "micro_batch": str(layout.micro_batch_size),
        "global_batch": str(workload.global_batch_size),
        "recompute": _recompute(layout),
        "flash_attention": workload.attention_kernel.value,
        "schedule": layout.schedule.value,
        "framework": framework,
        "mode": MODES[workload.method],
        "notes": f"peak_mem_gb in GiB{remark}",
        "ulysses": str(layout.ulysses),
        "recompute_layers": str(layout.recompute.num_layers or ""),
        "layers_per_stage": " ".join(str(stage.num_layers) for stage in layout.stages),
        "predicted_step_time_s": f"{planned.step_seconds:.6g}",
        "predicted_peak_mem_gb": f"{allocator_peak_bytes(planned.memory) / GIB:.3f}",
    }
    return {column: cells.get(column, "") for column in COLUMNS}


def table_text(rows: Iterable[Mapping[str, str]]) -> str:
    """Return rows as CSV, with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _hardware(cluster: Cluster) -> str:
    """Return the cluster's name where a row of that name means its GPU, and the GPU's name otherwise."""
    try:
        named, _ = cluster_named(cluster.name, cluster.world_size)
    except ValueError:
        return cluster.device.name
    return cluster.name if named.device.name == cluster.device.name else cluster.device.name


def _recompute(layout: Layout) -> str:
    if layout.recompute.granularity is Granularity.SELECTIVE:
        return f"selective: {' '.join(layout.recompute.modules)}"
    return layout.recompute.granularity.value


def _model_cells(model: ModelSpec) -> tuple[Mapping[str, str], str]:
    """Return the cells that make a reader of rows see this model, and what to note of it.

    Sizes where they say all of it, else the name alone where that is a bundled model's, else a name that is none's.
    """
    sizes = _sizes(model)
    for cells in ({"model": model.name, **sizes}, {"model": model.name}):
        try:
            said, _ = model_of(Row(id="", line=0, cells=cells))
        except ValueError:
            continue
        if parameter_counts(said) == parameter_counts(model):
            return cells, ""
    return {"model": f"{model.name} (as planned)"}, f"; {UNSAID_MODEL}"


def _sizes(model: ModelSpec) -> Mapping[str, str]:
    """Return the cells of the model's shapes; none of a model whose layers differ, or that rows have no columns for."""
    block = model.runs[0].block
    attention, feed_forward = block.mixer, block.feed_forward
    experts = feed_forward if isinstance(feed_forward, MixtureOfExperts) else None
    dense = experts.expert if experts is not None else feed_forward
    plain = isinstance(attention, SelfAttention) and attention.window is None and attention.chunk is None
    if len(model.runs) > 1 or not plain or not isinstance(dense, DenseFeedForward):
        return {}
    assert isinstance(attention, SelfAttention)
    sizes = (
        model.num_layers,
        model.hidden_size,
        attention.num_attention_heads,
        attention.num_key_value_heads,
        dense.intermediate_size,
        model.vocab_size,
        experts.num_experts if experts is not None else "",
        experts.experts_per_token if experts is not None else "",
    )
    return {column: str(size) for column, size in zip(SIZES, sizes, strict=True)}
