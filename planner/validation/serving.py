"""The memory of a vLLM server on a cluster preset, as the rules of memory look at it.

The engine's own defaults stand for sizes that are not given. Flags whose memory the serving ledger does not count leave
the rules undecided; so does a model that is neither bundled nor a folder with a config.json.
"""

from dataclasses import replace
from pathlib import Path

from planner.inputs.running import preset_named
from planner.models.blocks import LatentAttention
from planner.models.specs import ModelSpec
from planner.readers.arguments import NotSaidError
from planner.readers.served_model import served_quantisation, served_spec
from planner.readers.vllm_engine import copies_of, shape_of
from planner.readers.vllm_run import VllmRun
from planner.rules.served_memory import ServedRun
from planner.serving.engines import engine_named
from planner.serving.formats import ServedFormats, formats_of
from planner.serving.ledger import KvLedger, kv_ledger
from planner.serving.prices import ServingPrices
from planner.serving.rank_operators import Balance
from planner.serving_plans.layout import EngineSettings, EngineShape
from planner.units import GIB
from profiles.hardware import Cluster

GRAPHS = "graphs"
"""The ledger's line that `--enforce-eager` leaves out."""

NOT_COUNTED = (
    "speculative_config",
    "enable_lora",
    "cpu_offload_gb",
    "offload_group_size",
    "num_gpu_blocks_override",
    "hf_overrides",
    "performance_mode",
    "mamba_cache_mode",
    "mamba_block_size",
    "disable_hybrid_kv_cache_manager",
    "kv_cache_dtype_skip_layers",
)
"""Flags that change the memory of an engine in ways that the ledger does not count."""

PLAIN_TYPES = frozenset({"auto", "bfloat16", "half", "float16"})
CACHE_TYPES = {"bfloat16": "bfloat16", "float16": "bfloat16", "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}


def served_run(run: VllmRun, *, preset: str | None) -> ServedRun:
    """Return a server with its memory.

    Raises:
        InputError: There is no such preset, or the quantisation is not known.
        NotSaidError: The command does not say all of it.
    """
    run.require_whole()
    if preset is None:
        raise NotSaidError("the GPUs (give --cluster with a preset; --spec prices training runs)")
    cluster, arguments = preset_named(preset).to_cluster(), run.arguments
    for dest in NOT_COUNTED:
        if arguments.is_given(dest) and arguments.value(dest):
            raise NotSaidError(f"the memory that --{dest.replace('_', '-')} takes or frees")
    model = served_spec(run.model_name, base=_base(run))
    if model is None:
        raise NotSaidError(f"the model {run.model_name} (name a bundled model, or a folder with its config.json)")
    shape, length = shape_of(run), arguments.optional_integer("max_model_len")
    is_chosen = length is not None and length < 1
    settings = _settings(run, cluster, max_model_len=length if length and length > 0 else model.max_position_embeddings)
    prices, formats = ServingPrices(model, cluster), _formats(run, model)

    def counted(shape: EngineShape) -> ServedRun:
        return ServedRun(
            start=run.start,
            length_place=run.place("max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes"),
            ledger=_ledger(run, prices, shape, formats, settings),
            memory_bytes=cluster.device.memory_bytes,
            share=settings.gpu_memory_utilization,
            cache_bytes=settings.kv_cache_memory_bytes,
            max_model_len=None if is_chosen else settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            seqs_place=run.place("max_num_seqs"),
            captures_decode=_captures_decode(run),
            fitting_tp=None,
        )

    found = counted(shape)
    heads = run.model.num_attention_heads or 1
    tp = shape.tp * 2
    while not _fits(found) and tp * shape.pp * shape.pcp * shape.dp <= cluster.gpus_per_node and heads % tp == 0:
        if _fits(counted(replace(shape, tp=tp))):
            return replace(found, fitting_tp=tp)
        tp *= 2
    return found


def _fits(run: ServedRun) -> bool:
    return run.holds_the_rest and run.needed_bytes <= run.pool_bytes


def _base(run: VllmRun) -> Path:
    return Path(run.arguments.file).parent


def _captures_decode(run: VllmRun) -> bool:
    """Return whether the engine, told nothing of graphs, captures those of steps that only decode."""
    told = any(run.arguments.is_given(dest) for dest in ("compilation_config", "optimization_level"))
    return not told and not run.arguments.is_on("enforce_eager")


def _formats(run: VllmRun, model: ModelSpec) -> ServedFormats:
    """Return what the model is held in."""
    kind, cache = (run.arguments.text(dest) or "auto" for dest in ("dtype", "kv_cache_dtype"))
    if kind not in PLAIN_TYPES:
        raise NotSaidError(f"the bytes of a model in {kind}")
    has_index = any(
        isinstance(block.mixer, LatentAttention) and block.mixer.indexer is not None for block in model.distinct_blocks
    )
    if cache not in CACHE_TYPES and (cache != "auto" or has_index):
        raise NotSaidError(f"the bytes of a cache in the format {cache}")
    word = run.arguments.text("quantization") or served_quantisation(run.model_name, base=_base(run))
    return formats_of(word, model, cache=CACHE_TYPES.get(cache, "bfloat16"))


def _settings(run: VllmRun, cluster: Cluster, *, max_model_len: int) -> EngineSettings:
    """Return what the engine is told, its own defaults where it is told nothing."""
    arguments = run.arguments
    seqs, tokens = (arguments.optional_integer(dest) for dest in ("max_num_seqs", "max_num_batched_tokens"))
    default_seqs, default_tokens = _default_sizes(cluster)
    seqs = seqs or default_seqs
    if _is_off(run, "enable_chunked_prefill"):
        default_tokens = max(default_tokens, max_model_len)
    cache_bytes = arguments.optional_integer("kv_cache_memory_bytes")
    return EngineSettings(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens or min(default_tokens, seqs * max_model_len),
        max_model_len=max_model_len,
        gpu_memory_utilization=arguments.number("gpu_memory_utilization") if cache_bytes is None else None,
        kv_cache_memory_bytes=cache_bytes,
        block_size=arguments.optional_integer("block_size"),
        prefix_caching=not _is_off(run, "enable_prefix_caching"),
    )


def _is_off(run: VllmRun, dest: str) -> bool:
    """Return whether a switch that is on unless told is switched off."""
    return run.arguments.is_given(dest) and run.arguments.value(dest) is False


def _default_sizes(cluster: Cluster) -> tuple[int, int]:
    """Return a server's sequences and tokens of a step (vllm/engine/arg_utils.py: get_batch_defaults)."""
    memory = cluster.device.memory_bytes
    if memory >= 160 * GIB:
        return 1024, 16384
    if memory >= 70 * GIB and "a100" not in cluster.device.name.lower():
        return 1024, 8192
    return 256, 2048


def _ledger(
    run: VllmRun, prices: ServingPrices, shape: EngineShape, formats: ServedFormats, settings: EngineSettings
) -> KvLedger:
    found = kv_ledger(
        rank=prices.rank(shape, formats, Balance(redundant=copies_of(run))),
        shape=shape,
        formats=formats,
        engine=engine_named("vllm"),
        settings=settings,
        cluster=prices.cluster,
        scheduled_ahead=not _is_off(run, "async_scheduling"),
    )
    if run.arguments.is_on("enforce_eager"):
        found = replace(found, lines=tuple(line for line in found.lines if line.name != GRAPHS))
    return found
