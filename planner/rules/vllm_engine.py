"""vLLM: what the engine's own sizes must be to one another and to the model."""

import re
from collections.abc import Iterator

from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework
from planner.readers.vllm_run import VllmRun
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, rule

SCHEDULER = "vllm/config/scheduler.py: SchedulerConfig.verify_max_model_len"

AT_LEAST = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "prefill_context_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "data_parallel_size": 1,
    "data_parallel_size_local": 0,
    "data_parallel_rank": 0,
    "data_parallel_rpc_port": 1,
    "dp_sync_interval": 1,
    "max_parallel_loading_workers": 1,
    "elastic_ep_max_dp_size": 1,
    "ubatch_size": 0,
    "dbo_decode_token_threshold": 0,
    "dbo_prefill_token_threshold": 0,
    "nnodes": 1,
    "node_rank": 0,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_num_scheduled_tokens": 1,
    "max_num_active_seqs": 1,
    "max_num_queued_reqs": 0,
    "max_num_queued_tokens": 0,
    "prefill_schedule_interval": 1,
    "stream_interval": 1,
    "long_prefill_token_threshold": 0,
    "max_model_len": -1,
    "max_logprobs": -1,
    "block_size": 1,
    "prefix_match_unit": 1,
    "prefix_cache_retention_interval": 0,
    "mamba_block_size": 1,
    "replayssm_buffer_len": 1,
    "offload_group_size": 0,
    "offload_num_in_group": 1,
    "offload_prefetch_step": 0,
    "safetensors_prefetch_num_threads": 1,
    "safetensors_prefetch_block_size": 1,
    "shutdown_timeout": 0,
}
"""Least values of whole numbers (`Field(ge=...)` and `gt` in vllm/config; each for versions that have the flag)."""


def _given_length(run: VllmRun) -> int | None:
    """Return `--max-model-len` where it is given as a number."""
    length = run.arguments.optional_integer("max_model_len")
    return None if length is None or length < 1 else length


def _length(run: VllmRun) -> int:
    """Return the longest sequence: what is given, or the model's own."""
    given = _given_length(run)
    return run.model.max_positions if given is None else given


@rule(
    id="VLL801",
    name="least-value",
    framework=Framework.VLLM,
    prevents="pydantic ValidationError: Input should be greater than or equal to ...",
    found_at=FoundAt.START,
    source="vllm/config/parallel.py, scheduler.py, cache.py: Field(ge=...)",
)
def least_value(run: VllmRun) -> Iterator[Found]:
    """Degrees and sizes are positive; ranks are counted from 0."""
    for dest, least in AT_LEAST.items():
        if dest not in run.arguments.table.defaults or not run.arguments.is_given(dest):
            continue
        value = run.arguments.optional_integer(dest)
        is_no_length = dest == "max_model_len" and value == 0
        if value is not None and (value < least or is_no_length):
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} is {value}.",
                hint="Write 1 or more, or auto." if dest == "max_model_len" else f"Write {least} or more.",
            )


@rule(
    id="VLL802",
    name="memory-share",
    framework=Framework.VLLM,
    prevents="pydantic ValidationError: gpu_memory_utilization: Input should be less than or equal to 1",
    found_at=FoundAt.START,
    source="vllm/config/cache.py: CacheConfig.gpu_memory_utilization",
)
def memory_share(run: VllmRun) -> Iterator[Found]:
    """`--gpu-memory-utilization` is a share of the GPU's memory, above 0 and at most 1.

    Raise it when the server does not start for want of KV cache; lower it when a running server runs out of memory.
    """
    share = run.arguments.number("gpu_memory_utilization")
    if share is not None and not 0 < share <= 1:
        fix = None
        use = run.arguments.use("gpu_memory_utilization")
        if use is not None and 1 < share <= 100 and len(use.texts) == 1:
            fix = Fix(location=use.value_location, old=use.texts[0], new=f"{share / 100:g}")
        yield Found(
            place=run.place("gpu_memory_utilization"),
            message=f"--gpu-memory-utilization is {share:g}.",
            hint="Write a share such as 0.9.",
            fix=fix,
        )


@rule(
    id="VLL810",
    name="tokens-below-sequences",
    framework=Framework.VLLM,
    prevents="ValueError: max_num_batched_tokens (...) must be greater than or equal to max_num_seqs (...).",
    found_at=FoundAt.START,
    source=SCHEDULER,
)
def tokens_below_sequences(run: VllmRun) -> Iterator[Found]:
    """Every running sequence takes a token of the step's budget: `--max-num-batched-tokens` >= `--max-num-seqs`."""
    tokens = run.arguments.optional_integer("max_num_batched_tokens")
    sequences = run.arguments.optional_integer("max_num_seqs")
    if tokens is not None and sequences is not None and 0 < tokens < sequences:
        yield Found(
            place=run.place("max_num_batched_tokens"),
            message=f"A budget of {tokens} tokens a step for {sequences} sequences.",
            hint=f"Raise it to {sequences} or more, or lower --max-num-seqs.",
        )


@rule(
    id="VLL811",
    name="tokens-below-length",
    framework=Framework.VLLM,
    prevents="ValueError: max_num_batched_tokens (...) is smaller than max_model_len (...).",
    found_at=FoundAt.START,
    source=SCHEDULER,
)
def tokens_below_length(run: VllmRun) -> Iterator[Found]:
    """Without chunked prefill a prompt is one step: `--max-num-batched-tokens` >= `--max-model-len`."""
    tokens = run.arguments.optional_integer("max_num_batched_tokens")
    chunked = (
        run.arguments.value("enable_chunked_prefill") if run.arguments.is_given("enable_chunked_prefill") else True
    )
    if chunked is False and tokens is not None and tokens < _length(run):
        yield Found(
            place=run.place("max_num_batched_tokens", "enable_chunked_prefill"),
            message=f"A budget of {tokens} tokens a step for prompts of up to {_length(run)} in one piece.",
            hint=f"Raise it to {_length(run)}, lower --max-model-len, or allow chunked prefill.",
        )


@rule(
    id="VLL812",
    name="active-above-sequences",
    framework=Framework.VLLM,
    prevents="ValueError: max_num_active_seqs (...) cannot be greater than max_num_seqs (...).",
    found_at=FoundAt.START,
    source=SCHEDULER,
)
def active_above_sequences(run: VllmRun) -> Iterator[Found]:
    """`--max-num-active-seqs` are some of `--max-num-seqs`."""
    if "max_num_active_seqs" not in run.arguments.table.defaults:
        return
    active = run.arguments.optional_integer("max_num_active_seqs")
    sequences = run.arguments.optional_integer("max_num_seqs")
    if active is not None and sequences is not None and active > sequences:
        yield Found(
            place=run.place("max_num_active_seqs"),
            message=f"{active} active of {sequences} sequences.",
            hint=f"At most {sequences}.",
        )


@rule(
    id="VLL813",
    name="long-prompts-above-length",
    framework=Framework.VLLM,
    prevents="ValueError: long_prefill_token_threshold (...) cannot be greater than the max_model_len (...).",
    found_at=FoundAt.START,
    source=SCHEDULER,
)
def long_prompts_above_length(run: VllmRun) -> Iterator[Found]:
    """A prompt counts as long within the longest sequence: the threshold is not above `--max-model-len`."""
    if not run.arguments.is_given("long_prefill_token_threshold"):
        return
    threshold = run.arguments.integer("long_prefill_token_threshold")
    if threshold > _length(run):
        yield Found(
            place=run.place("long_prefill_token_threshold"),
            message=f"Prompts count as long from {threshold} tokens on, and sequences end at {_length(run)}.",
            hint=f"At most {_length(run)}.",
        )


@rule(
    id="VLL814",
    name="more-tokens-than-sequences-hold",
    framework=Framework.VLLM,
    severity=Severity.WARNING,
    prevents="memory for a budget that no step can fill",
    found_at=FoundAt.UNNOTICED,
    source=SCHEDULER,
)
def more_tokens_than_sequences_hold(run: VllmRun) -> Iterator[Found]:
    """A step's token budget is not above all sequences at their longest."""
    tokens = run.arguments.optional_integer("max_num_batched_tokens")
    sequences = run.arguments.optional_integer("max_num_seqs")
    if tokens is None or sequences is None or sequences < 1:
        return
    if tokens > sequences * _length(run):
        yield Found(
            place=run.place("max_num_batched_tokens"),
            message=f"A budget of {tokens} tokens for {sequences} sequences of at most {_length(run)}.",
            hint=f"At most {sequences * _length(run)} are ever used.",
        )


@rule(
    id="VLL815",
    name="longer-than-the-model",
    framework=Framework.VLLM,
    prevents="ValueError: User-specified max_model_len (...) is greater than the derived max_model_len (...).",
    found_at=FoundAt.START,
    source="vllm/config/model.py: _get_and_verify_max_len",
)
def longer_than_the_model(run: VllmRun) -> Iterator[Found]:
    """`--max-model-len` is not above what the model's config.json says it takes.

    `VLLM_ALLOW_LONG_MAX_MODEL_LEN=1` lifts it, at the price of garbage or NaN where the positions end.
    """
    given = _given_length(run)
    if given is None or run.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1":
        return
    if run.arguments.is_given("hf_overrides"):
        raise NotSaidError("what --hf-overrides makes of the model")
    if given > run.model.max_positions:
        yield Found(
            place=run.place("max_model_len"),
            message=f"--max-model-len {given} is above the {run.model.max_positions} positions of {run.model.name}.",
            hint=f"At most {run.model.max_positions}, or stretch its positions with --hf-overrides.",
        )


@rule(
    id="VLL816",
    name="drafts-above-tokens",
    framework=Framework.VLLM,
    prevents="ValueError: Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens",
    found_at=FoundAt.START,
    source="vllm/engine/arg_utils.py: EngineArgs.create_engine_config",
)
def drafts_above_tokens(run: VllmRun) -> Iterator[Found]:
    """With a draft and adapters every sequence takes its guesses and one more of the step's token budget."""
    if not run.arguments.is_on("enable_lora"):
        return
    drafted = run.section("speculative_config").get("num_speculative_tokens")
    tokens = run.arguments.optional_integer("max_num_batched_tokens")
    sequences = run.arguments.optional_integer("max_num_seqs")
    if not isinstance(drafted, int) or tokens is None or sequences is None or tokens < sequences:
        return
    if tokens < sequences * (drafted + 1):
        yield Found(
            place=run.place("max_num_batched_tokens"),
            message=f"A budget of {tokens} tokens for {sequences} sequences of {drafted} guesses and one.",
            hint=f"Raise it to {sequences * (drafted + 1)}, or lower --max-num-seqs to {tokens // (drafted + 1)}.",
        )


@rule(
    id="VLL820",
    name="model-by-flag",
    framework=Framework.VLLM,
    severity=Severity.WARNING,
    prevents="error: unrecognized arguments: --model, in a later version",
    found_at=FoundAt.LATER,
    source="vllm/utils/argparse_utils.py: FlexibleArgumentParser.parse_args",
)
def model_by_flag(run: VllmRun) -> Iterator[Found]:
    """`vllm serve` takes the model as its first word; `--model` still works and will go."""
    use = run.arguments.use("model")
    if use is None or use.location.line is None or use.location == use.value_location:
        return
    if not re.search(r"\.ya?ml$", use.location.file) and run.is_serve:
        yield Found(
            place=use.location,
            message="The model is given by --model.",
            hint=f"Write it first: vllm serve {' '.join(use.texts)}.",
        )


@rule(
    id="VLL821",
    name="no-model",
    framework=Framework.VLLM,
    severity=Severity.WARNING,
    prevents="a server of vLLM's default model, a small one",
    found_at=FoundAt.NEVER,
    source="vllm/config/model.py: ModelConfig.model",
)
def no_model(run: VllmRun) -> Iterator[Found]:
    """A server is told its model."""
    if not any(run.arguments.is_given(dest) for dest in ("model", "model_tag")):
        yield Found(
            place=run.start,
            message=f"No model is named; vLLM serves {run.arguments.table.defaults.get('model')}.",
            hint="Write it behind `vllm serve`, or `model:` into the configuration.",
        )


RULES: tuple[Rule[VllmRun], ...] = (
    least_value,
    memory_share,
    tokens_below_sequences,
    tokens_below_length,
    active_above_sequences,
    long_prompts_above_length,
    more_tokens_than_sequences_hold,
    longer_than_the_model,
    drafts_above_tokens,
    model_by_flag,
    no_model,
)
