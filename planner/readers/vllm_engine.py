"""The engine that a vLLM command or configuration describes: its shape and what it is told."""

from planner.readers.arguments import NotSaidError
from planner.readers.vllm_run import VllmRun
from planner.serving_plans.layout import Draft, EngineSettings, EngineShape


def shape_of(run: VllmRun) -> EngineShape:
    """Return how the engine lies on its GPUs.

    Raises:
        NotSaidError: Only a run could tell.
    """
    return EngineShape(
        tp=run.tp,
        pp=run.pp,
        dp=run.dp,
        pcp=run.pcp,
        dcp=run.dcp,
        expert_parallel=run.arguments.is_on("enable_expert_parallel"),
    )


def settings_of(run: VllmRun) -> EngineSettings:
    """Return what the engine is told.

    Raises:
        NotSaidError: Only a run could tell, or the sizes that a plan needs are left to the engine.
    """
    arguments = run.arguments
    given_bytes = arguments.optional_integer("kv_cache_memory_bytes")
    share = arguments.number("gpu_memory_utilization") if arguments.is_given("gpu_memory_utilization") else None
    chunked = arguments.value("enable_chunked_prefill") if arguments.is_given("enable_chunked_prefill") else True
    prefix = arguments.value("enable_prefix_caching") if arguments.is_given("enable_prefix_caching") else True
    return EngineSettings(
        max_num_seqs=_needed(run, "max_num_seqs"),
        max_num_batched_tokens=_needed(run, "max_num_batched_tokens"),
        max_model_len=_needed(run, "max_model_len"),
        gpu_memory_utilization=share,
        kv_cache_memory_bytes=given_bytes,
        block_size=arguments.optional_integer("block_size"),
        kv_cache_dtype=arguments.text("kv_cache_dtype") or "auto",
        dtype=arguments.text("dtype") or "auto",
        quantization=arguments.text("quantization"),
        chunked_prefill=chunked is not False,
        prefix_caching=prefix is not False,
        redundant_experts=copies_of(run),
        draft=_draft(run),
    )


def copies_of(run: VllmRun) -> int | None:
    """Return the copies of experts beside the experts of a layer; None without a balancer."""
    copies = run.section("eplb_config").get("num_redundant_experts", 0)
    return (copies if isinstance(copies, int) else 0) if run.arguments.is_on("enable_eplb") else None


def _needed(run: VllmRun, dest: str) -> int:
    value = run.arguments.optional_integer(dest)
    if value is None:
        raise NotSaidError(dest)
    return value


def _draft(run: VllmRun) -> Draft | None:
    config = run.section("speculative_config")
    model, guesses, tp = (config.get(key) for key in ("model", "num_speculative_tokens", "draft_tensor_parallel_size"))
    if not isinstance(model, str) or not isinstance(guesses, int):
        return None
    return Draft(model=model, num_tokens=guesses, tp=tp if isinstance(tp, int) else 1)
