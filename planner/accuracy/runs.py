"""A row of a training run -> model, cluster, workload and layout, with every assumption that filled an empty cell."""

import math
import re
from dataclasses import dataclass, replace

from planner.accuracy.machines import cluster_named, nodes_named
from planner.accuracy.measurements import Row
from planner.accuracy.models import model_of
from planner.accuracy.stacks import Stack, attention_of, stack_named
from planner.accuracy.tested_models import dropout_of
from planner.frameworks.habits import Habits
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, even_counts, stages_from_counts
from planner.models.graph import Module
from planner.models.specs import ModelSpec
from planner.requests.workload import MAX_LENGTH, AttentionKernel, DType, Lora, Precision, TrainMethod, TrainWorkload
from planner.search.space.enumeration import MAX_SCHEDULED_OPERATIONS
from profiles.hardware import Cluster
from profiles.software import Software

PRECISIONS: tuple[tuple[str, Precision | None], ...] = (
    (r"nvfp4|fp4|int8", None),
    (r"fp8.*row", None),
    (r"mxfp8|fp8.?-?mx", Precision.FP8_MXFP8),
    (r"fp8.*(block|subchannel)", Precision.FP8_BLOCKWISE),
    (r"fp8.*(cs|current|tensor|linear)", Precision.FP8_TENSORWISE),
    (r"fp8", Precision.FP8_DELAYED),
    (r"bf16|bfloat16", Precision.BF16),
    (r"fp16|float16|half", Precision.FP16),
)
"""Pattern in a row's precision, and what it is here; None has no price."""

KNOWN_WORDS: dict[str, frozenset[str]] = {
    "status": frozenset({"ok", "oom"}),
    "mode": frozenset({"pretrain", "sft", "lora", "ci-functional-test"}),
    "sequence_parallel": frozenset({"true", "false", "1", "0", "yes", "no"}),
}
"""What cells of some columns may say."""

GPUS_OF_A_NODE = 8

MOST_CHUNKS = 5
"""Virtual stages a rank that recipes of Llama 3 take (Megatron-Bridge, `recipes/llama`)."""

LORA = Lora(rank=32, alpha=32.0, target_modules=("qkv",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a row describes.

    Args:
        model: The model.
        cluster: The cluster.
        workload: The workload.
        layout: The layout.
        stack: The training framework.
        software: What runs the kernels: the stack's, as the row changes it.
        compiled: Blocks are compiled.
        keeps_products: The stack's selective checkpointing of operations.
        fuses_loss: The row's test is of Megatron-LM's fused loss.
        recompute_said: The row says what is recomputed; nothing, or "selective" alone, leaves it to what fits.
        assumptions: What filled empty cells.
    """

    model: ModelSpec
    cluster: Cluster
    workload: TrainWorkload
    layout: Layout
    stack: Stack
    software: Software
    compiled: bool
    keeps_products: bool
    recompute_said: bool
    fuses_loss: bool
    assumptions: tuple[str, ...]

    @property
    def habits(self) -> Habits:
        """Return what the stack keeps, as the row changes it."""
        loss = self.stack.compiled_loss if self.compiled else None
        if self.fuses_loss:
            return replace(self.stack.habits, loss=None)
        return self.stack.habits if loss is None else replace(self.stack.habits, loss=loss)


def run_of(row: Row) -> Run:
    """Return the run of a row.

    Raises:
        ValueError: The row leaves open what nothing usual fills, or contradicts itself.
    """
    model, assumed = model_of(row)
    assumed += _unknown_words(row)
    cluster = _cluster(row, assumed)
    stack = stack_named(row.text("framework"), year=_year(row))
    assumed.append(f"stack: {stack.title}")
    workload = _workload(row, model, cluster, stack, assumed)
    layout = _layout(row, model, workload, stack, assumed)
    return Run(
        model=model,
        cluster=cluster,
        workload=workload,
        layout=layout,
        stack=stack,
        software=_software(row, stack),
        compiled=_is_compiled(row),
        keeps_products=stack.keeps_products and row.text("recompute").lower() in ("selective", "selective:op"),
        recompute_said=row.text("recompute").lower() not in ("", "selective") or stack.keeps_products,
        fuses_loss="cross_entropy_loss_fusion" in row.text("model"),
        assumptions=tuple(assumed),
    )


def _cluster(row: Row, assumed: list[str]) -> Cluster:
    """Return the cluster that a row names, in nodes as large as it says."""
    name, num_gpus, per_node = row.text("hardware"), row.needed("num_gpus"), row.count("gpus_per_node")
    cluster, of_cluster = cluster_named(name, num_gpus)
    assumed += [of_cluster] if of_cluster else []
    if per_node is None or per_node in (cluster.gpus_per_node, cluster.fast_domain_size, num_gpus):
        return cluster
    if per_node > cluster.gpus_per_node or num_gpus % per_node:
        assumed.append(f"network: nodes of {cluster.gpus_per_node}, not of {per_node}")
        return cluster
    resized = nodes_named(name, num_gpus=num_gpus, num_nodes=num_gpus // per_node)
    if resized.gpus_per_node == per_node:
        assumed.append(f"network: of a GPU in nodes of {per_node} as in nodes of {cluster.gpus_per_node}")
    return resized


def _unknown_words(row: Row) -> list[str]:
    """Return what cells say that says nothing here, as assumptions."""
    return [
        f"{column}: {row.quoted(column)} is not understood, and read as nothing"
        for column, known in KNOWN_WORDS.items()
        if row.text(column) and row.text(column).lower() not in known
    ]


def _layout(row: Row, model: ModelSpec, workload: TrainWorkload, stack: Stack, assumed: list[str]) -> Layout:
    num_gpus = row.needed("num_gpus")
    degrees = {axis: row.count(axis) or 1 for axis in ("tp", "pp", "cp", "ep")}
    if stack.experts_over_a_node and model.has_experts and not row.text("ep"):
        degrees["ep"] = math.gcd(GPUS_OF_A_NODE, num_gpus // (degrees["tp"] * degrees["pp"]))
        assumed.append(f"ep: {degrees['ep']}")
    replica = degrees["tp"] * degrees["pp"] * degrees["cp"]
    if num_gpus % replica:
        raise ValueError(f"tp pp cp = {replica} does not divide num_gpus = {num_gpus}")
    dp = num_gpus // replica
    micro_batch = row.count("micro_batch")
    if micro_batch is None:
        micro_batch = 1
        assumed.append("micro_batch: 1")
    vpp = 1 if degrees["pp"] == 1 else row.count("vpp")
    if vpp is None:
        vpp = _recipe_vpp(model, degrees["pp"]) if stack.interleaves else 1
        assumed.append(f"vpp: {vpp}")
    num_microbatches = _num_microbatches(workload, dp * micro_batch, stages=degrees["pp"] * vpp, model=model)
    zero_stage = _zero_stage(row, stack)
    several = dp * degrees["cp"] > 1
    schedule = Schedule.NO_PIPELINE
    if degrees["pp"] > 1:
        schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    return Layout(
        tp=degrees["tp"],
        sequence_parallel=degrees["tp"] > 1 and _sequence_parallel(row, stack),
        pp=degrees["pp"],
        vpp=vpp,
        dp=dp,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch,
        num_microbatches=num_microbatches,
        schedule=schedule,
        recompute=_recompute(row, assumed, keeps_products=stack.keeps_products),
        overlap=Overlap(
            grad_reduce=several and stack.overlaps,
            param_gather=several and stack.overlaps and zero_stage >= 1,
            p2p=vpp > 1,
        ),
        stages=stages_from_counts(_layers_per_stage(row, model.num_layers, degrees["pp"] * vpp)),
        cp=degrees["cp"],
        ulysses=row.count("ulysses") or 1,
        ep=degrees["ep"],
        etp=row.count("etp") or 1,
    )


def _recipe_vpp(model: ModelSpec, pp: int) -> int:
    """Return the chunks a rank that NeMo's recipes take: the most, up to `MOST_CHUNKS`, that leave equal stages."""
    return next(vpp for vpp in range(MOST_CHUNKS, 0, -1) if vpp == 1 or model.num_layers % (pp * vpp) == 0)


def _layers_per_stage(row: Row, num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Return the layers of each virtual stage: the row's own, with spaces between them, or even ones."""
    text = row.text("layers_per_stage")
    if not text:
        return tuple(even_counts(num_layers, num_stages))
    counts = tuple(int(word) for word in text.split() if word.isascii() and word.isdigit())
    if len(counts) != num_stages or sum(counts) != num_layers:
        raise ValueError(f"layers_per_stage = {row.quoted('layers_per_stage')} is no split of {num_layers} layers")
    return counts


def _num_microbatches(workload: TrainWorkload, together: int, *, stages: int, model: ModelSpec) -> int:
    """Return the micro-batches of a step of which `together` sequences run at once, through `stages` stages."""
    global_batch = workload.global_batch_size
    if global_batch % together:
        raise ValueError(f"micro_batch dp = {together} does not divide global_batch = {global_batch}")
    if model.num_layers < stages:
        raise ValueError(f"{model.num_layers} layers for pp vpp = {stages} stages")
    num_microbatches = global_batch // together
    if 2 * num_microbatches * stages > MAX_SCHEDULED_OPERATIONS:
        raise ValueError(f"{num_microbatches} micro-batches over pp vpp = {stages} are too many to simulate")
    return num_microbatches


def _workload(row: Row, model: ModelSpec, cluster: Cluster, stack: Stack, assumed: list[str]) -> TrainWorkload:
    seq_len = row.count("seq_len")
    if seq_len is None:
        seq_len = min(4096, model.max_position_embeddings)
        assumed.append(f"seq_len: {seq_len}")
    if seq_len > MAX_LENGTH:
        raise ValueError(f"seq_len = {seq_len} is more than {MAX_LENGTH:,}")
    precision = _precision(row, cluster, stack, assumed)
    mode = row.text("mode").lower()
    method = {"sft": TrainMethod.FULL_FINETUNE, "lora": TrainMethod.LORA}.get(mode, TrainMethod.PRETRAIN)
    if method is TrainMethod.LORA:
        assumed.append(f"adapters: rank {LORA.rank} on {', '.join(LORA.target_modules)}")
    kernels = attention_of(row.text("flash_attention"))
    scores = stack.keeps_scores if kernels is None else kernels.keeps_scores
    scores |= "transformer-impl=local" in row.text("notes")
    global_batch = row.count("global_batch")
    if global_batch is None:
        replica = (row.count("tp") or 1) * (row.count("pp") or 1) * (row.count("cp") or 1)
        global_batch = (row.count("micro_batch") or 1) * max(row.needed("num_gpus") // replica, 1)
        assumed.append(f"global_batch: {global_batch}, one micro-batch a replica")
    half = stack.half_gradients and precision is not Precision.FP16
    return TrainWorkload(
        seq_len=seq_len,
        global_batch_size=global_batch,
        precision=precision,
        gradient_dtype=DType.BF16 if half else DType.FP32,
        attention_kernel=AttentionKernel.UNFUSED if scores else AttentionKernel.FLASH,
        method=method,
        lora=LORA if method is TrainMethod.LORA else None,
        routing_skew=1.0,
        hidden_dropout=dropout_of(row),
        attention_dropout=dropout_of(row),
    )


def _precision(row: Row, cluster: Cluster, stack: Stack, assumed: list[str]) -> Precision:
    text = row.text("precision").lower()
    if not text:
        fp8 = stack.fp8_recipes and "fp8" in cluster.device.dense_flops_per_second
        usual = Precision.FP8_DELAYED if fp8 else Precision.BF16
        assumed.append(f"precision: {usual}")
        return usual
    for pattern, precision in PRECISIONS:
        if re.search(pattern, text):
            if precision is None:
                break
            if precision.is_fp8 and "fp8" not in cluster.device.dense_flops_per_second:
                raise ValueError(f"precision {row.quoted('precision')}: {cluster.device.name} has no fp8")
            return precision
    raise ValueError(f"precision {row.quoted('precision')} has no price")


def _software(row: Row, stack: Stack) -> Software:
    software = stack.software
    kernels = attention_of(row.text("flash_attention"))
    if kernels is not None and kernels.keeps_scores:
        software = replace(software, scores=kernels)
    elif kernels is not None:
        software = replace(software, attention=kernels)
    if "rmsnorm" in row.text("flash_attention").lower():
        software = replace(software, fused_norms=True)
    return software


def _is_compiled(row: Row) -> bool:
    notes = row.text("notes")
    return re.search(r"torch\.compile|; compile|^compile", notes) is not None and "no compile" not in notes


def _year(row: Row) -> str:
    """Return the year that a row's source is dated to, as in `..._202412_...`, or nothing."""
    found = re.search(r"(?<!\d)(20[12]\d)-?(0[1-9]|1[0-2])(?!\d)", row.text("source"))
    return found.group(1) if found else ""


def _sequence_parallel(row: Row, stack: Stack) -> bool:
    said = row.text("sequence_parallel").lower()
    return stack.sequence_parallel if not said else said in ("true", "1", "yes")


def _zero_stage(row: Row, stack: Stack) -> int:
    text = row.text("optimizer").lower()
    named = re.search(r"zero-?([0-3])", text)
    if named:
        return int(named.group(1))
    if "fsdp" in text or "full_shard" in text or "hsdp" in text:
        return 3
    if "dist" in text:
        return 1
    return stack.zero_stage


def _recompute(row: Row, assumed: list[str], *, keeps_products: bool) -> Recompute:
    """Return what a row says is recomputed; the frameworks' recipes recompute nothing while it fits."""
    text = row.text("recompute").lower()
    if text.startswith("full"):
        return Recompute(granularity=Granularity.FULL, num_layers=row.count("recompute_layers"))
    known = {module.value for module in Module}
    modules = tuple(name for name in re.findall(r"[a-z_]+", text.partition(":")[2]) if name in known)
    if modules:
        return Recompute(granularity=Granularity.SELECTIVE, modules=modules)
    if not text:
        assumed.append("recompute: none")
    elif text.startswith("selective") and keeps_products:
        assumed.append("recompute: every second product is kept, in memory; what runs again is not priced")
    elif text.startswith("selective"):
        assumed.append("recompute: selective as of fused attention, which recomputes nothing that counts")
    return Recompute(granularity=Granularity.NONE)
