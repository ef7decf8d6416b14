"""The memory of one layout that the user named."""

from cli.model_words import parameters_in_words
from cli.render import Blank, Block, Facts, Line, Style, counted, gib
from cli.render_memory import heaviest_in_words, memory_blocks, memory_document
from planner.models.parameter_counts import total_parameters
from planner.models.specs import ModelSpec
from planner.plans.layout_words import layout_in_words, layout_settings, stages_in_words
from planner.plans.rank_memory import heaviest_rank, memory_by_rank
from planner.plans.workload_words import experts_in_words
from planner.requests.workload import TrainWorkload
from planner.search.mem import MemoryTable
from profiles.hardware import Device


def mem_blocks(model: ModelSpec, device: Device, workload: TrainWorkload, table: MemoryTable) -> tuple[Block, ...]:
    """Return what `mem` prints."""
    heaviest = heaviest_rank(memory_by_rank(table.lines, limit_bytes=table.limit_bytes))
    peak = heaviest_in_words(heaviest)
    experts = (("routed experts", experts_in_words(table.layout, workload)),) if model.has_experts else ()
    if table.fits:
        verdict = Line(f"Fits: {peak}, {gib(heaviest.left_bytes)} left.", Style.GOOD)
    else:
        verdict = Line(f"Does not fit: {peak}, {gib(-heaviest.left_bytes)} too much.", Style.BAD)
    return (
        Line(f"{model.name}, {parameters_in_words(model)}, on {device.name}", Style.HEADING),
        Line(f"  {layout_in_words(table.layout)}"),
        Facts(
            pairs=(
                ("layers per stage", stages_in_words(table.layout.stages)),
                *experts,
                ("sequences", f"{counted(workload.seq_len, 'token')}, {workload.precision.value}"),
                ("usable memory", f"{gib(table.limit_bytes)} of {gib(device.memory_bytes)} a GPU"),
            )
        ),
        Blank(),
        verdict,
        *memory_blocks(table.lines, limit_bytes=table.limit_bytes),
    )


def mem_document(model: ModelSpec, device: Device, workload: TrainWorkload, table: MemoryTable) -> dict[str, object]:
    """Return the same as JSON, in bytes."""
    return {
        "model": model.name,
        "parameters": total_parameters(model),
        "gpu": device.name,
        "memory_bytes": device.memory_bytes,
        "seq_len": workload.seq_len,
        "precision": workload.precision.value,
        "settings": dict(layout_settings(table.layout)),
        "fits": table.fits,
        "memory": memory_document(table.lines, limit_bytes=table.limit_bytes),
    }
