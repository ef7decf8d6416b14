"""The flags that describe a layout: degrees, stages, sharding and recompute."""

from itertools import groupby

from planner.emit.megatron_layout_limits import RANK_ORDERS
from planner.emit.megatron_parts import Form, Parts
from planner.emit.megatron_words import Flags, Group, when
from planner.layout import ContextKind, Granularity, Layout, Stage
from planner.models.specs import ModelSpec
from planner.requests.workload import TrainWorkload

CONTEXT_COMMUNICATION = {
    ContextKind.RING: "p2p",
    ContextKind.ULYSSES: "a2a",
    ContextKind.ULYSSES_RING: "a2a+p2p",
}

FSDP_STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}

LONGEST_SPELLED_RUN = 2
"""Runs of more equal stages than this are written `(...|)*n` in a pipeline layout."""


def parallelism(layout: Layout, model: ModelSpec, parts: Parts) -> Group:
    """Return degrees, stages, context communication and rank order."""
    degrees = f"tp {layout.tp}, pp {layout.pp}, vpp {layout.vpp}, cp {layout.cp}, dp {layout.dp}"
    grid = f"; experts: etp {layout.etp}, ep {layout.ep}, edp {layout.edp}" if parts.experts is not None else ""
    return Group(
        title=f"Parallelism: {degrees}{grid}",
        flags=(
            ("--tensor-model-parallel-size", str(layout.tp)),
            *when(layout.sequence_parallel, "--sequence-parallel"),
            ("--pipeline-model-parallel-size", str(layout.pp)),
            *_stages(layout, model, parts),
            *when(layout.vpp > 1 and not layout.overlap.p2p, "--no-overlap-p2p-communication"),
            ("--context-parallel-size", str(layout.cp)),
            *_context(layout),
            *when(parts.experts, "--expert-model-parallel-size", str(layout.ep)),
            *when(parts.experts, "--expert-tensor-parallel-size", str(layout.etp)),
            *when(RANK_ORDERS[layout.rank_order], *RANK_ORDERS[layout.rank_order]),
        ),
    )


def _context(layout: Layout) -> Flags:
    """Return how attention crosses cp; of the two sizes the first is that of neighbours, which exchange heads.

    `parallel_state.create_hierarchical_groups` gives the first size to neighbouring ranks, and Transformer Engine runs
    the all-to-all in the first group and the ring in the second.
    """
    kind = layout.cp_kind
    if kind is None:
        return ()
    sizes = (str(layout.ulysses), str(layout.ring))
    both = kind is ContextKind.ULYSSES_RING
    return (
        ("--cp-comm-type", CONTEXT_COMMUNICATION[kind]),
        *when(both, "--hierarchical-context-parallel-sizes", *sizes),
    )


def _stages(layout: Layout, model: ModelSpec, parts: Parts) -> Flags:
    """Return nothing for an even pipeline, the number of chunks for an even interleaved one, else the layout.

    A hybrid's stages stand in its pattern.
    """
    if parts.form is Form.HYBRID:
        return ()
    even = model.num_layers / len(layout.stages)
    if all(stage.num_layers == even for stage in layout.stages):
        return when(layout.vpp > 1, "--num-virtual-stages-per-pipeline-rank", str(layout.vpp))
    modules = model.mtp.num_modules if model.mtp else 0
    return (("--pipeline-model-parallel-layout", pipeline_layout(layout.stages, num_modules=modules)),)


def pipeline_layout(stages: tuple[Stage, ...], *, num_modules: int = 0) -> str:
    """Return the stages in the notation of `--pipeline-model-parallel-layout`.

    E is the embedding, t a layer, m a prediction module, L the head, and | stands between stages. Repeats are written
    `t*8` and `(t*8|)*14`, as `PipelineParallelLayerLayout.parse_str_to_list` reads them.
    """
    texts = [_stage_text(stage, num_modules) for stage in stages]
    closed = [f"{text}|" for text in texts[:-1]]
    parts: list[str] = []
    for text, run in groupby(closed):
        count = len(tuple(run))
        parts.append(f"({text})*{count}" if count > LONGEST_SPELLED_RUN else text * count)
    return "".join([*parts, texts[-1]])


def _stage_text(stage: Stage, num_modules: int) -> str:
    modules = _repeated("m", num_modules) if stage.has_head else ""
    layers = _repeated("t", stage.num_layers)
    return f"{'E' if stage.has_embedding else ''}{layers}{modules}{'L' if stage.has_head else ''}"


def _repeated(letter: str, count: int) -> str:
    return f"{letter}*{count}" if count > 1 else letter * count


def sharding(layout: Layout, workload: TrainWorkload) -> Group:
    """Return what is split over the data-parallel ranks, and what of its communication is overlapped."""
    fsdp = layout.zero_stage in FSDP_STRATEGIES
    gradients = workload.gradient_dtype.value
    replicas = layout.state_replicas
    return Group(
        title="Data parallelism",
        flags=(
            *when(layout.zero_stage >= 1, "--use-distributed-optimizer"),
            *when(replicas > 1, "--num-distributed-optimizer-instances", str(replicas)),
            *when(fsdp, "--use-megatron-fsdp"),
            *when(fsdp, "--data-parallel-sharding-strategy", FSDP_STRATEGIES.get(layout.zero_stage, "")),
            *when(fsdp, "--megatron-fsdp-main-grads-dtype", gradients),
            *when(fsdp, "--megatron-fsdp-grad-comm-dtype", gradients),
            *when(fsdp, "--no-gradient-accumulation-fusion"),
            *when(layout.overlap.grad_reduce, "--overlap-grad-reduce"),
            *when(layout.overlap.param_gather, "--overlap-param-gather"),
        ),
    )


def recompute(layout: Layout) -> Group:
    """Return the recompute flags; `block` counts layers from the first of each virtual stage."""
    chosen = layout.recompute
    flags: Flags = ()
    if chosen.granularity is Granularity.SELECTIVE:
        flags = (("--recompute-granularity", "selective"), ("--recompute-modules", *chosen.modules))
    elif chosen.granularity is Granularity.FULL:
        method = "uniform" if chosen.num_layers is None else "block"
        flags = (
            ("--recompute-granularity", "full"),
            ("--recompute-method", method),
            ("--recompute-num-layers", str(chosen.num_layers or 1)),
        )
    return Group(title=f"Recompute: {chosen.granularity}", flags=flags)
