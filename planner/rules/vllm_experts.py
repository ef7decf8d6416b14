"""vLLM: expert parallelism, its load balancer, and overlapped batches."""

import json
import re
from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.vllm_run import VllmRun
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_multiples, rule

PARALLEL = "vllm/config/parallel.py: ParallelConfig"


def _redundant(run: VllmRun) -> int:
    """Return the redundant experts that are asked for."""
    return whole_number(run.section("eplb_config").get("num_redundant_experts", 0)) or 0


@rule(
    id="VLL301",
    name="balancer-needs-expert-parallel",
    framework=Framework.VLLM,
    prevents="ValueError: enable_expert_parallel must be True to use EPLB.",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
)
def balancer_needs_expert_parallel(run: VllmRun) -> Iterator[Found]:
    """The expert load balancer moves experts between ranks: it needs `--enable-expert-parallel`."""
    if run.arguments.is_on("enable_eplb") and not run.arguments.is_on("enable_expert_parallel"):
        yield Found(
            place=run.place("enable_eplb"),
            message="--enable-eplb without --enable-expert-parallel.",
            hint="Add --enable-expert-parallel, or remove it.",
        )


@rule(
    id="VLL302",
    name="balancer-needs-ranks",
    framework=Framework.VLLM,
    prevents="ValueError: EPLB requires tensor, prefill-context, or data parallelism",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
)
def balancer_needs_ranks(run: VllmRun) -> Iterator[Found]:
    """The expert load balancer needs more than one rank of tp x pcp x dp to balance."""
    arguments = run.arguments
    both = arguments.is_on("enable_eplb") and arguments.is_on("enable_expert_parallel")
    if both and run.tp * run.pcp * run.dp == 1:
        yield Found(
            place=run.place("enable_eplb"),
            message="--enable-eplb on one rank.",
            hint="Raise --tensor-parallel-size or --data-parallel-size, or remove it.",
        )


@rule(
    id="VLL303",
    name="redundant-experts-need-the-balancer",
    framework=Framework.VLLM,
    prevents="ValueError: num_redundant_experts is set to ... but EPLB is not enabled.",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
)
def redundant_experts_need_the_balancer(run: VllmRun) -> Iterator[Found]:
    """Copies of experts are made by the expert load balancer: `num_redundant_experts` needs `--enable-eplb`."""
    if _redundant(run) and not run.arguments.is_on("enable_eplb"):
        yield Found(
            place=run.place("eplb_config"),
            message=f"{_redundant(run)} redundant experts without --enable-eplb.",
            hint="Add --enable-eplb, or remove num_redundant_experts.",
        )


@rule(
    id="VLL304",
    name="expert-parallel-needs-experts",
    framework=Framework.VLLM,
    prevents="ValueError: Number of experts in the model must be greater than 0 when expert parallelism is enabled.",
    found_at=FoundAt.START,
    source="vllm/config/model.py: ModelConfig._verify_with_expert_parallelism",
)
def expert_parallel_needs_experts(run: VllmRun) -> Iterator[Found]:
    """`--enable-expert-parallel` is for models with routed experts."""
    if run.arguments.is_on("enable_expert_parallel") and run.model.num_experts is None:
        yield Found(
            place=run.place("enable_expert_parallel"),
            message=f"--enable-expert-parallel for {run.model.name}, which has no experts.",
            hint="Remove it.",
        )


@rule(
    id="VLL305",
    name="experts-divisible",
    framework=Framework.VLLM,
    prevents="AssertionError or ranks with unequal numbers of experts, when the layers are built",
    found_at=FoundAt.BUILD,
    source="vllm/model_executor/layers/fused_moe/layer.py, vllm/distributed/eplb: equal slots a rank",
)
def experts_divisible(run: VllmRun) -> Iterator[Found]:
    """With the load balancer every rank has as many expert slots: experts and copies divide over tp x pcp x dp."""
    arguments = run.arguments
    if not (arguments.is_on("enable_eplb") and arguments.is_on("enable_expert_parallel")):
        return
    experts, ranks = run.model.num_experts, run.tp * run.pcp * run.dp
    if experts is None:
        return
    slots = experts + _redundant(run)
    if slots % ranks:
        fitting = tuple(count - experts for count in nearest_multiples(ranks, max(slots, experts)) if count >= experts)
        yield Found(
            place=run.place("eplb_config", "enable_eplb"),
            message=f"{experts} experts and {_redundant(run)} copies do not divide over {ranks} ranks.",
            hint=f"num_redundant_experts {listed(fitting)} would do.",
        )


@rule(
    id="VLL306",
    name="external-balancer-needs-experts",
    framework=Framework.VLLM,
    prevents="ValueError: Non-MoE models do not support external data parallel mode.",
    found_at=FoundAt.START,
    source="vllm/engine/arg_utils.py: EngineArgs.create_engine_config",
    since="0.28.0",
)
def external_balancer_needs_experts(run: VllmRun) -> Iterator[Found]:
    """Data-parallel ranks of a dense model have nothing to do with one another: start servers of their own."""
    arguments = run.arguments
    external = arguments.is_on("data_parallel_external_lb") or arguments.is_given("data_parallel_rank")
    if external and run.dp > 1 and run.model.num_experts is None:
        yield Found(
            place=run.place("data_parallel_external_lb", "data_parallel_rank"),
            message=f"An external balancer over data-parallel ranks of {run.model.name}, which has no experts.",
            hint="Start independent servers without --data-parallel flags behind the balancer.",
        )


@rule(
    id="VLL310",
    name="elastic-experts-need-the-balancer",
    framework=Framework.VLLM,
    prevents="ValueError: Elastic EP is only supported with enable_eplb=True.",
    found_at=FoundAt.START,
    source=f"{PARALLEL}.__post_init__",
    since="0.20.0",
)
def elastic_experts_need_the_balancer(run: VllmRun) -> Iterator[Found]:
    """Elastic expert parallelism moves experts with the load balancer, within one pipeline stage and one server."""
    arguments = run.arguments
    if not arguments.is_on("enable_elastic_ep"):
        return
    problems = {
        "without --enable-eplb": not arguments.is_on("enable_eplb"),
        f"with pp {run.pp}": run.pp > 1,
        "with an external or hybrid balancer": arguments.is_on("data_parallel_external_lb")
        or arguments.is_on("data_parallel_hybrid_lb"),
    }
    for problem, broken in problems.items():
        if broken:
            yield Found(
                place=run.place("enable_elastic_ep"),
                message=f"--enable-elastic-ep {problem}.",
                hint="Use it with --enable-eplb, pp 1 and the internal balancer.",
            )


@rule(
    id="VLL311",
    name="asynchronous-balancer",
    framework=Framework.VLLM,
    prevents="ValueError: Async EPLB is only supported with the default policy, or: communicator is incompatible",
    found_at=FoundAt.START,
    source="vllm/config/parallel.py: EPLBConfig._validate_eplb_config",
    since="0.15.0",
)
def asynchronous_balancer(run: VllmRun) -> Iterator[Found]:
    """A balancer that works beside the model uses the default policy and no NCCL communicator."""
    config = run.section("eplb_config")
    if config.get("use_async") is not True:
        return
    if config.get("policy", "default") != "default" or config.get("communicator") in {"torch_nccl", "pynccl"}:
        yield Found(
            place=run.place("eplb_config"),
            message=f"use_async with policy {config.get('policy', 'default')} and communicator "
            f"{config.get('communicator', 'chosen by vLLM')}.",
            hint="Use the default policy with torch_gloo or nixl, or leave communicator out.",
        )


BALANCER_LEAST = {"window_size": 1, "step_interval": 1, "num_redundant_experts": 0, "log_balancedness_interval": 1}
"""Least values of the balancer's whole numbers (`Field(ge=...)` and `gt` of EPLBConfig)."""


@rule(
    id="VLL312",
    name="balancer-sizes",
    framework=Framework.VLLM,
    prevents="error: argument --eplb-config: ... Input should be greater than or equal to 0, or: a valid integer",
    found_at=FoundAt.PARSE,
    source="vllm/config/parallel.py: EPLBConfig",
)
def balancer_sizes(run: VllmRun) -> Iterator[Found]:
    """The sizes of `--eplb-config` are whole numbers: at least 1, and at least 0 redundant experts."""
    for key, value in run.section("eplb_config").items():
        least = BALANCER_LEAST.get(key)
        if least is None or isinstance(value, bool):
            continue
        number = whole_number(value)
        if number is None or number < least:
            yield Found(
                place=run.place("eplb_config"),
                message=f"{key} of --eplb-config is {json.dumps(value)}.",
                hint=f"Write a whole number of {least} or more.",
            )


def whole_number(value: object) -> int | None:
    """Return the whole number that pydantic makes of a JSON value, a text among them; None where it refuses it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
        return int(value)
    return value if isinstance(value, int) else None


OVERLAPPING = ("deepep_low_latency", "deepep_high_throughput", "nixl_ep")


def _batches(run: VllmRun) -> int:
    """Return the batches that a step is split into; 0 or 1 where it is not."""
    if run.arguments.is_on("enable_dbo"):
        return 2
    return (run.arguments.optional_integer("ubatch_size") or 0) if run.arguments.is_given("ubatch_size") else 0


@rule(
    id="VLL320",
    name="overlapped-batches-need-a-backend",
    framework=Framework.VLLM,
    prevents="AssertionError: Microbatching currently only supports the deepep_low_latency, deepep_high_throughput, "
    "and nixl_ep all2all backends.",
    found_at=FoundAt.START,
    source="vllm/config/vllm.py: VllmConfig.__post_init__",
    since="0.15.0",
)
def overlapped_batches_need_a_backend(run: VllmRun) -> Iterator[Found]:
    """`--enable-dbo` and `--ubatch-size` overlap the exchange of tokens with experts, on backends that can do so."""
    backend = run.arguments.text("all2all_backend")
    if _batches(run) > 1 and backend not in OVERLAPPING:
        yield Found(
            place=run.place("enable_dbo", "ubatch_size"),
            message=f"Overlapped batches with --all2all-backend {backend}.",
            hint=f"Use one of {', '.join(OVERLAPPING)}, with its kernels installed.",
        )


@rule(
    id="VLL321",
    name="overlapped-batches-of-a-token",
    framework=Framework.VLLM,
    prevents="ValueError: dbo_decode_token_threshold and dbo_prefill_token_threshold must be at least the number of "
    "microbatches",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._verify_args",
    since="0.30.0",
)
def overlapped_batches_of_a_token(run: VllmRun) -> Iterator[Found]:
    """A step is split only where each part has a token: the thresholds are not below the number of parts."""
    batches = _batches(run)
    for dest in ("dbo_decode_token_threshold", "dbo_prefill_token_threshold"):
        least = run.arguments.integer(dest)
        if batches > 1 and least < batches:
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} {least} with {batches} overlapped batches.",
                hint=f"Write {batches} or more.",
            )


RULES: tuple[Rule[VllmRun], ...] = (
    balancer_needs_expert_parallel,
    balancer_needs_ranks,
    redundant_experts_need_the_balancer,
    expert_parallel_needs_experts,
    experts_divisible,
    external_balancer_needs_experts,
    elastic_experts_need_the_balancer,
    asynchronous_balancer,
    balancer_sizes,
    overlapped_batches_need_a_backend,
    overlapped_batches_of_a_token,
)
