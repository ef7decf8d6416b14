"""vLLM: degrees against the GPUs, the nodes and the heads of the model."""

import re
from collections.abc import Iterator

from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework
from planner.readers.vllm_run import VllmRun
from planner.rules.rule import (
    Found,
    FoundAt,
    Rule,
    Severity,
    fast_links,
    listed,
    nearest_divisors,
    nearest_multiples,
    rule,
)

PARALLEL = "vllm/config/parallel.py: ParallelConfig"
ENGINE = "vllm/engine/arg_utils.py: EngineArgs.create_engine_config"
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
    id="VLL110",
    name="fits-the-node",
    framework=Framework.VLLM,
    prevents="ValueError: World size (...) is larger than the number of available GPUs (...) in this node.",
    found_at=FoundAt.START,
    source=f"{PARALLEL}.__post_init__",
)
def fits_the_node(run: VllmRun) -> Iterator[Found]:
    """Tp x pp is not above the GPUs of a node, unless Ray or `--nnodes` spreads it over several."""
    spread = run.nnodes > 1 or run.arguments.text("distributed_executor_backend") in {"ray", "external_launcher"}
    if not spread and run.arguments.text("data_parallel_backend") != "ray" and run.replica_size > run.gpus_per_node:
        run.require_whole()
        nodes = -(-run.replica_size // run.gpus_per_node)
        context = f" x pcp {run.pcp}" if run.pcp > 1 else ""
        yield Found(
            place=run.place("tensor_parallel_size", "pipeline_parallel_size"),
            message=f"tp {run.tp} x pp {run.pp}{context} = {run.replica_size} GPUs on a node of {run.gpus_per_node}.",
            hint=f"Start it on {nodes} nodes with --nnodes {nodes}, or with --distributed-executor-backend ray.",
        )


@rule(
    id="VLL111",
    name="tensor-parallel-in-a-node",
    framework=Framework.VLLM,
    severity=Severity.WARNING,
    prevents="an all-reduce over the network in every layer of every token",
    found_at=FoundAt.UNNOTICED,
    source="collectives of tensor parallelism: two all-reduces a layer and token",
)
def tensor_parallel_in_a_node(run: VllmRun) -> Iterator[Found]:
    """Tp stays within a node, where links are fast; pipeline or data parallelism spans nodes."""
    near, words = fast_links(run.domain_gpus, run.gpus_per_node)
    if run.tp > near:
        yield Found(
            place=run.place("tensor_parallel_size"),
            message=f"tp {run.tp} spans {words}.",
            hint=f"Use tp {near} with --pipeline-parallel-size {-(-run.tp // near)}.",
        )


@rule(
    id="VLL112",
    name="nodes-divide-the-world",
    framework=Framework.VLLM,
    prevents="ValueError: Invalid data-parallel launch options: `--nnodes ...` must evenly divide the total world size",
    found_at=FoundAt.START,
    source=ENGINE,
    since="0.28.0",
)
def nodes_divide_the_world(run: VllmRun) -> Iterator[Found]:
    """The nodes share the GPUs of all replicas evenly: `--nnodes` divides tp x pp x dp."""
    world = run.replica_size * run.dp
    if world % run.nnodes:
        yield Found(
            place=run.place("nnodes"),
            message=f"{run.nnodes} nodes do not divide tp {run.tp} x pp {run.pp} x dp {run.dp} = {world} GPUs.",
            hint=f"{listed(nearest_divisors(world, run.nnodes))} nodes would do.",
        )


@rule(
    id="VLL113",
    name="node-rank-in-range",
    framework=Framework.VLLM,
    prevents="ValueError: Invalid data-parallel launch options: `--node-rank` must be between 0 and ...",
    found_at=FoundAt.START,
    source=ENGINE,
    since="0.28.0",
)
def node_rank_in_range(run: VllmRun) -> Iterator[Found]:
    """`--node-rank` counts the nodes from 0."""
    rank = run.arguments.integer("node_rank")
    if run.nnodes > 1 and not 0 <= rank < run.nnodes:
        yield Found(
            place=run.place("node_rank"),
            message=f"--node-rank {rank} of {run.nnodes} nodes.",
            hint=f"Write 0 to {run.nnodes - 1}, a number of its own on each node.",
        )


@rule(
    id="VLL114",
    name="nodes-need-a-backend",
    framework=Framework.VLLM,
    prevents="ValueError: nnodes > 1 can only be set when distributed executor backend is mp, uni or ...",
    found_at=FoundAt.START,
    source=f"{PARALLEL}.__post_init__",
    since="0.15.0",
)
def nodes_need_a_backend(run: VllmRun) -> Iterator[Found]:
    """`--nnodes` is multiprocessing's way over several nodes; Ray finds its nodes by itself."""
    backend = run.arguments.text("distributed_executor_backend")
    data_backend = run.arguments.text("data_parallel_backend")
    if run.nnodes > 1 and (backend not in {None, "mp", "uni", "external_launcher"} or data_backend != "mp"):
        used = backend if backend not in {None, "mp", "uni", "external_launcher"} else f"data-parallel {data_backend}"
        yield Found(
            place=run.place("distributed_executor_backend", "data_parallel_backend", "nnodes"),
            message=f"--nnodes {run.nnodes} with the {used} backend.",
            hint="Use the mp backend, or leave --nnodes out.",
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
    id="VLL130",
    name="local-replicas-within-all",
    framework=Framework.VLLM,
    prevents="ValueError: data_parallel_size_local (...) must be <= data_parallel_size (...)",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
)
def local_replicas_within_all(run: VllmRun) -> Iterator[Found]:
    """The data-parallel ranks of this node are some of all."""
    local = run.arguments.optional_integer("data_parallel_size_local")
    if local is not None and local > run.dp:
        yield Found(
            place=run.place("data_parallel_size_local"),
            message=f"{local} local ranks of dp {run.dp}.",
            hint=f"Use at most {run.dp}, or raise --data-parallel-size.",
        )


@rule(
    id="VLL131",
    name="local-replicas-fit-the-node",
    framework=Framework.VLLM,
    prevents="a data-parallel rank that finds no GPU",
    found_at=FoundAt.BUILD,
    source="vllm/v1/engine/utils.py: CoreEngineProcManager, a rank's GPUs follow the ones before it",
)
def local_replicas_fit_the_node(run: VllmRun) -> Iterator[Found]:
    """The data-parallel ranks of a node have GPUs of their own: local ranks x tp x pp is not above them.

    Without `--data-parallel-size-local`, `--nnodes` or Ray, all ranks start on this node.
    """
    given = run.arguments.optional_integer("data_parallel_size_local")
    if run.nnodes > 1 or run.arguments.text("data_parallel_backend") == "ray" or run.dp == 1:
        return
    external = run.arguments.is_on("data_parallel_external_lb") or run.arguments.is_given("data_parallel_rank")
    local = 1 if external else run.dp if given is None else given
    needed = local * run.replica_size
    if run.replica_size <= run.gpus_per_node < needed:
        run.require_whole()
        fit = run.gpus_per_node // run.replica_size
        yield Found(
            place=run.place("data_parallel_size_local", "data_parallel_size"),
            message=f"{local} local data-parallel ranks of {run.replica_size} GPUs on a node of {run.gpus_per_node}.",
            hint=f"Use --data-parallel-size-local {fit} on each of {-(-run.dp // fit)} nodes.",
        )


@rule(
    id="VLL132",
    name="external-balancer-needs-ranks",
    framework=Framework.VLLM,
    prevents="ValueError: data_parallel_external_lb can only be set when data_parallel_size > 1",
    found_at=FoundAt.START,
    source=f"{PARALLEL}._validate_parallel_config",
)
def external_balancer_needs_ranks(run: VllmRun) -> Iterator[Found]:
    """An external load balancer chooses among data-parallel ranks: dp is above 1.

    `--data-parallel-rank` says that there is one, and so does `--data-parallel-start-rank` or the hybrid balancer on a
    node of one local rank.
    """
    if run.is_external and run.dp == 1:
        dests = ("data_parallel_external_lb", "data_parallel_rank", "data_parallel_start_rank")
        given = next((dest for dest in dests if run.arguments.is_given(dest)), "data_parallel_hybrid_lb")
        run.require_whole()
        yield Found(
            place=run.place(given),
            message=f"--{given.replace('_', '-')} with dp 1.",
            hint="Give --data-parallel-size, or remove it.",
        )


@rule(
    id="VLL133",
    name="one-load-balancer",
    framework=Framework.VLLM,
    prevents="ValueError: `--data-parallel-hybrid-lb` and `--data-parallel-external-lb` cannot be enabled together.",
    found_at=FoundAt.START,
    source=ENGINE,
    since="0.15.0",
)
def one_load_balancer(run: VllmRun) -> Iterator[Found]:
    """Requests are balanced by the hybrid way or by an external balancer, not both."""
    if run.arguments.is_on("data_parallel_hybrid_lb") and run.arguments.is_on("data_parallel_external_lb"):
        yield Found(
            place=run.place("data_parallel_hybrid_lb"),
            message="--data-parallel-hybrid-lb beside --data-parallel-external-lb.",
            hint="Remove one of the two.",
        )


@rule(
    id="VLL134",
    name="external-balancer-needs-a-rank",
    framework=Framework.VLLM,
    prevents="ValueError: `--data-parallel-external-lb` requires a data-parallel rank.",
    found_at=FoundAt.START,
    source=ENGINE,
)
def external_balancer_needs_a_rank(run: VllmRun) -> Iterator[Found]:
    """Behind an external balancer each process says which data-parallel rank it is, and is the only one of its node."""
    external = run.arguments.is_on("data_parallel_external_lb") and run.dp > 1
    ranked = run.arguments.is_given("data_parallel_rank")
    inferred = run.nnodes > 1 and run.nnodes % run.dp == 0
    if external and not ranked and not inferred:
        run.require_whole()
        yield Found(
            place=run.place("data_parallel_external_lb"),
            message="--data-parallel-external-lb without --data-parallel-rank.",
            hint=f"Give each process its number, 0 to {run.dp - 1}.",
        )
    local = run.arguments.optional_integer("data_parallel_size_local")
    if (external or ranked) and local not in {None, 1}:
        yield Found(
            place=run.place("data_parallel_size_local"),
            message=f"--data-parallel-size-local {local} with a data-parallel rank of one's own.",
            hint="Leave it out, or write 1.",
        )


@rule(
    id="VLL135",
    name="data-parallel-rank-in-range",
    framework=Framework.VLLM,
    prevents="ValueError: data_parallel_rank (...) must be in the range [0, ...)",
    found_at=FoundAt.START,
    source=f"{PARALLEL}.__post_init__",
)
def data_parallel_rank_in_range(run: VllmRun) -> Iterator[Found]:
    """Data-parallel ranks are counted from 0. A first rank counts where it is told how many follow on the node."""
    counts = run.arguments.is_given("data_parallel_size_local") and not run.arguments.is_given("data_parallel_rank")
    for dest in ("data_parallel_rank", *(("data_parallel_start_rank",) if counts else ())):
        rank = run.arguments.optional_integer(dest)
        if rank is not None and run.dp > 1 and not 0 <= rank < run.dp:
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} {rank} of dp {run.dp}.",
                hint=f"Write 0 to {run.dp - 1}.",
            )


@rule(
    id="VLL136",
    name="hybrid-balancer-needs-local-ranks",
    framework=Framework.VLLM,
    prevents="ValueError: `--data-parallel-hybrid-lb` requires `--data-parallel-size-local`.",
    found_at=FoundAt.START,
    source=ENGINE,
)
def hybrid_balancer_needs_local_ranks(run: VllmRun) -> Iterator[Found]:
    """The hybrid balancer of a node must know how many of the data-parallel ranks are its own."""
    arguments = run.arguments
    known = arguments.is_given("data_parallel_size_local") or run.nnodes > 1
    if arguments.is_on("data_parallel_hybrid_lb") and not arguments.is_on("data_parallel_external_lb") and not known:
        run.require_whole()
        yield Found(
            place=run.place("data_parallel_hybrid_lb"),
            message="--data-parallel-hybrid-lb without --data-parallel-size-local.",
            hint="Say how many data-parallel ranks this node has.",
        )


@rule(
    id="VLL137",
    name="node-groups-divide",
    framework=Framework.VLLM,
    prevents="ValueError: Invalid data parallel configuration: nnodes (...) must be divisible by the number of data "
    "parallel node groups",
    found_at=FoundAt.START,
    source=f"{PARALLEL}.nnodes_within_dp",
    since="0.32.0",
)
def node_groups_divide(run: VllmRun) -> Iterator[Found]:
    """The nodes fall into groups of dp / local ranks: that divides `--nnodes`."""
    local = run.arguments.optional_integer("data_parallel_size_local")
    if run.nnodes == 1 or not local or local > run.dp:
        return
    groups = run.dp // local
    if run.nnodes % groups:
        yield Found(
            place=run.place("data_parallel_size_local", "nnodes"),
            message=f"{run.nnodes} nodes in {groups} groups (dp {run.dp} / {local} local).",
            hint=f"{listed(nearest_multiples(groups, run.nnodes))} nodes would do.",
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
    fits_the_node,
    tensor_parallel_in_a_node,
    nodes_divide_the_world,
    node_rank_in_range,
    nodes_need_a_backend,
    decode_context_divides_tp,
    decode_context_beside_prefill_context,
    decode_context_within_copies,
    local_replicas_within_all,
    local_replicas_fit_the_node,
    external_balancer_needs_ranks,
    one_load_balancer,
    external_balancer_needs_a_rank,
    data_parallel_rank_in_range,
    hybrid_balancer_needs_local_ranks,
    node_groups_divide,
    stages_hold_all_layers,
    stages_not_above_layers,
)
