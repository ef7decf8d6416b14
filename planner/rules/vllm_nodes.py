"""vLLM: GPUs, nodes and the data-parallel ranks that are spread over them."""

from collections.abc import Iterator

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


RULES: tuple[Rule[VllmRun], ...] = (
    fits_the_node,
    tensor_parallel_in_a_node,
    nodes_divide_the_world,
    node_rank_in_range,
    nodes_need_a_backend,
    local_replicas_within_all,
    local_replicas_fit_the_node,
    external_balancer_needs_ranks,
    one_load_balancer,
    external_balancer_needs_a_rank,
    data_parallel_rank_in_range,
    hybrid_balancer_needs_local_ranks,
    node_groups_divide,
)
