"""vLLM: degrees against the heads and layers of the model, and against each other."""

import re
from collections.abc import Iterator

from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework
from planner.readers.vllm_run import VllmRun
from planner.rules.rule import Found, FoundAt, Rule, Severity, listed, nearest_divisors, rule

PARALLEL = "vllm/config/parallel.py: ParallelConfig"
MODEL = "vllm/config/model.py: ModelConfig.verify_with_parallel_config"


def _heads(run: VllmRun) -> tuple[int, int]:
    """Return the query and key/value heads."""
    heads, groups = run.model.num_attention_heads, run.model.num_key_value_heads
    if heads is None or groups is None:
        raise NotSaidError(f"attention heads of {run.model.name}")
    return heads, groups


@rule(
    id="VLL101",
    name="heads-divisible",
    framework=Framework.VLLM,
    prevents="ValueError: Total number of attention heads (...) must be divisible by tensor parallel size (...)",
    found_at=FoundAt.START,
    source=MODEL,
)
def heads_divisible(run: VllmRun) -> Iterator[Found]:
    """Tp divides the model's attention heads: each rank holds whole ones."""
    heads, _ = _heads(run)
    if heads % run.tp:
        yield Found(
            place=run.place("tensor_parallel_size"),
            message=f"tp {run.tp} does not divide the {heads} attention heads of {run.model.name}.",
            hint=f"tp {listed(nearest_divisors(heads, run.tp))} would do.",
        )


@rule(
    id="VLL102",
    name="key-value-heads-replicated",
    framework=Framework.VLLM,
    severity=Severity.WARNING,
    prevents="a KV cache of several times the size, with fewer requests in it",
    found_at=FoundAt.UNNOTICED,
    source="vllm/config/model.py: ModelConfig.get_num_kv_heads",
)
def key_value_heads_replicated(run: VllmRun) -> Iterator[Found]:
    """Tp is not above the model's key/value heads, unless decode context parallelism shares the cache out.

    Where there are fewer key/value heads than ranks, several ranks keep the same heads. Multi-head latent attention
    keeps its one latent on every rank of tp. Data parallelism of the attention, or decode context parallelism, holds
    each token once.
    """
    _, groups = _heads(run)
    copies = run.tp // groups
    if run.tp > groups and run.dcp < copies:
        what = "the latent" if run.model.is_latent else f"each of the {groups} key/value heads"
        yield Found(
            place=run.place("tensor_parallel_size"),
            message=f"With tp {run.tp} {what} lies on {copies // run.dcp} ranks: every token is cached as often.",
            hint=f"Use --decode-context-parallel-size {copies}, or data parallelism with tp {groups}.",
        )


@rule(
    id="VLL103",
    name="key-value-heads-divisible",
    framework=Framework.VLLM,
    prevents="AssertionError: ... is not divisible by ..., when the attention layers are built",
    found_at=FoundAt.BUILD,
    source="vllm/model_executor/layers/linear.py: QKVParallelLinear",
)
def key_value_heads_divisible(run: VllmRun) -> Iterator[Found]:
    """Tp divides the model's key/value heads, or is a multiple of them."""
    heads, groups = _heads(run)
    if not run.model.is_latent and heads % run.tp == 0 and groups % run.tp and run.tp % groups:
        fitting = tuple(d for d in nearest_divisors(heads, run.tp, most=8) if groups % d == 0 or d % groups == 0)
        yield Found(
            place=run.place("tensor_parallel_size"),
            message=f"tp {run.tp} neither divides the {groups} key/value heads of {run.model.name} nor is a multiple.",
            hint=f"tp {listed(fitting[:3])} would do.",
        )


@rule(
    id="VLL120",
    name="decode-context-divides-tp",
    framework=Framework.VLLM,
    prevents="ValueError: tp_size=... must be divisible by dcp_size=...",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
)
def decode_context_divides_tp(run: VllmRun) -> Iterator[Found]:
    """Decode context parallelism splits the cache over ranks of tp: dcp divides tp."""
    if run.pcp == 1 and run.tp % run.dcp:
        yield Found(
            place=run.place("decode_context_parallel_size"),
            message=f"dcp {run.dcp} does not divide tp {run.tp}.",
            hint=f"dcp {listed(nearest_divisors(run.tp, run.dcp))} would do.",
        )


@rule(
    id="VLL121",
    name="decode-context-beside-prefill-context",
    framework=Framework.VLLM,
    prevents="ValueError: When PCP is enabled, DCP must be disabled, span the PCP axis, or span ...",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
    since="0.28.0",
)
def decode_context_beside_prefill_context(run: VllmRun) -> Iterator[Found]:
    """With prefill context parallelism, dcp is 1, pcp or tp x pcp."""
    if run.pcp > 1 and run.dcp not in {1, run.pcp, run.tp * run.pcp}:
        yield Found(
            place=run.place("decode_context_parallel_size", "prefill_context_parallel_size"),
            message=f"dcp {run.dcp} with pcp {run.pcp} and tp {run.tp}.",
            hint=f"Use {listed(tuple(sorted({1, run.pcp, run.tp * run.pcp})))}.",
        )


@rule(
    id="VLL122",
    name="decode-context-within-copies",
    framework=Framework.VLLM,
    prevents="ValueError: `--decode-context-parallel-size` (...) exceeds the maximum supported value (...)",
    found_at=FoundAt.START,
    source=MODEL,
)
def decode_context_within_copies(run: VllmRun) -> Iterator[Found]:
    """Dcp is not above the ranks that hold the same key/value head, tp / key/value heads.

    Decode context parallelism shares out among ranks what they would otherwise hold in copies. Multi-head latent
    attention has one latent, so any dcp up to tp will do.
    """
    heads, groups = _heads(run)
    if run.dcp == 1 or run.model.is_latent:
        return
    most = run.tp // groups
    if run.dcp > most or (heads // groups) % run.dcp:
        yield Found(
            place=run.place("decode_context_parallel_size"),
            message=f"dcp {run.dcp} with tp {run.tp}, {groups} key/value heads and {heads} attention heads.",
            hint="Remove it."
            if most < 2
            else f"At most {most}, a divisor of {heads // groups} heads a key/value head.",
        )


@rule(
    id="VLL140",
    name="stages-hold-all-layers",
    framework=Framework.VLLM,
    prevents="ValueError: sum(partitions)=... does not match num_hidden_layers=...",
    found_at=FoundAt.BUILD,
    source="vllm/distributed/utils.py: get_pp_indices",
)
def stages_hold_all_layers(run: VllmRun) -> Iterator[Found]:
    """`VLLM_PP_LAYER_PARTITION` names pp numbers that add up to the model's layers."""
    text = run.environment.get("VLLM_PP_LAYER_PARTITION")
    if text is None:
        return
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*\d{1,9}\s*", part) for part in parts):
        raise NotSaidError("VLLM_PP_LAYER_PARTITION")
    counts = [int(part) for part in parts]
    if len(counts) != run.pp:
        yield Found(
            place=run.place("pipeline_parallel_size"),
            message=f"VLLM_PP_LAYER_PARTITION names {len(counts)} stages, pp is {run.pp}.",
            hint="Name one number for each stage.",
        )
    elif sum(counts) != run.model.num_layers:
        yield Found(
            place=run.place("pipeline_parallel_size"),
            message=f"VLLM_PP_LAYER_PARTITION places {sum(counts)} of {run.model.num_layers} layers.",
            hint="Place every layer once.",
        )


@rule(
    id="VLL141",
    name="stages-not-above-layers",
    framework=Framework.VLLM,
    prevents="a pipeline stage without a layer",
    found_at=FoundAt.BUILD,
    source="vllm/distributed/utils.py: get_pp_indices",
)
def stages_not_above_layers(run: VllmRun) -> Iterator[Found]:
    """Pp is not above the model's layers."""
    if run.pp > 1 and run.pp > run.model.num_layers:
        yield Found(
            place=run.place("pipeline_parallel_size"),
            message=f"pp {run.pp} for {run.model.num_layers} layers.",
            hint=f"At most {run.model.num_layers}.",
        )


RULES: tuple[Rule[VllmRun], ...] = (
    heads_divisible,
    key_value_heads_replicated,
    key_value_heads_divisible,
    decode_context_divides_tp,
    decode_context_beside_prefill_context,
    decode_context_within_copies,
    stages_hold_all_layers,
    stages_not_above_layers,
)
