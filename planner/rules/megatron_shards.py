"""Megatron-LM: copies of the state, shards of the weights, and the order of the ranks."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import fact, on
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, GROUPS, SHARDS
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_divisors, nearest_multiples, rule


@rule(
    id="MLM113",
    name="optimizer-instances-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Data parallel size should be divisible by partial DistOpt shard factor",
    found_at=FoundAt.BUILD,
    source=GROUPS,
)
def optimizer_instances_divisible(run: MegatronRun) -> Iterator[Found]:
    """The instances of the distributed optimizer divide the ranks that hold copies of a layer: dp x cp."""
    instances = run.number("num_distributed_optimizer_instances") or 1
    copies = run.dp * run.cp
    if instances > 1 and copies % instances:
        yield Found(
            place=run.place("num_distributed_optimizer_instances"),
            message=f"{instances} optimizer instances do not divide dp {run.dp} x cp {run.cp} = {copies}.",
            hint=f"{listed(nearest_divisors(copies, instances))} would do.",
        )


@rule(
    id="MLM114",
    name="expert-optimizer-instances",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Expert data parallel size should be divisible by partial DistOpt shard factor",
    found_at=FoundAt.BUILD,
    source=GROUPS,
)
def expert_optimizer_instances(run: MegatronRun) -> Iterator[Found]:
    """The instances of the distributed optimizer divide the copies of each expert as well."""
    instances = run.number("num_distributed_optimizer_instances") or 1
    block = run.etp * run.ep * run.pp * run.expert_weight_shards
    if instances == 1 or run.world_size % block or run.dp * run.cp % instances:
        return
    copies = run.world_size // block
    if copies % instances:
        yield Found(
            place=run.place("num_distributed_optimizer_instances", "expert_model_parallel_size"),
            message=f"{instances} optimizer instances do not divide the {copies} copies of each expert.",
            hint=f"{listed(nearest_divisors(copies, instances))} would do.",
        )


@rule(
    id="MLM115",
    name="weight-shards",
    framework=Framework.MEGATRON,
    prevents="ValueError: tensor_parallel_num_weight_shards (...) must be divisible by tensor_model_parallel_size",
    found_at=FoundAt.START,
    source=SHARDS,
)
def weight_shards(run: MegatronRun) -> Iterator[Found]:
    """The shards of each weight are a multiple of the degree that splits them anyway: tp, and etp for experts."""
    pairs = (
        ("tensor_parallel_num_weight_shards", run.tp, "tp"),
        ("expert_tensor_parallel_num_weight_shards", run.etp, "etp"),
    )
    for dest, degree, name in pairs:
        shards = run.number(dest)
        if shards is not None and (shards < degree or shards % degree):
            yield Found(
                place=run.place(dest),
                message=f"{shards} weight shards are not a multiple of {name} {degree}.",
                hint=f"{listed(nearest_multiples(degree, shards))} would do.",
            )


@rule(
    id="MLM116",
    name="ranks-in-another-order",
    framework=Framework.MEGATRON,
    prevents="AssertionError: When not using pp-last rank ordering, the data parallel size of the attention and moe "
    "layers must be the same",
    found_at=FoundAt.BUILD,
    source=GROUPS,
)
def ranks_in_another_order(run: MegatronRun) -> Iterator[Found]:
    """With `--use-tp-pp-dp-mapping` and a pipeline, experts have as many copies as the other layers."""
    block = run.etp * run.ep * run.pp * run.expert_weight_shards
    if not run.arguments.is_on("use_tp_pp_dp_mapping") or run.pp == 1 or run.world_size % block:
        return
    copies = run.world_size // block
    if copies != run.dp:
        yield Found(
            place=run.place("use_tp_pp_dp_mapping"),
            message=f"--use-tp-pp-dp-mapping with dp {run.dp} and {copies} copies of each expert.",
            hint="Remove --use-tp-pp-dp-mapping, or choose etp x ep equal to tp x cp.",
        )


DEMANDS = (
    Demand(
        id="MLM117",
        name="weight-shards-alone",
        when=fact(
            "more weight shards than tp",
            lambda run: run.weight_shards > 1 or run.expert_weight_shards > 1,
            "tensor_parallel_num_weight_shards",
            "expert_tensor_parallel_num_weight_shards",
        ),
        needs=(
            fact("--ckpt-format torch or torch_dist", lambda run: run.said("ckpt_format") in {"torch", "torch_dist"}),
        ),
        excludes=(
            on("--ddp-average-in-collective"),
            fact(
                "--fp4-format without --fp4-param-gather",
                lambda run: run.said("fp4") is not None and not run.arguments.is_on("fp4_param_gather"),
                "fp4",
            ),
        ),
        error="AssertionError: GTP requires --ddp-average-in-collective off",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Weights that are split further than tp are gathered before each use, which few other features know.",
    ),
    Demand(
        id="MLM118",
        name="weight-shards-and-instances",
        when=fact(
            "more weight shards than tp",
            lambda run: run.weight_shards > 1 or run.expert_weight_shards > 1,
            "tensor_parallel_num_weight_shards",
            "expert_tensor_parallel_num_weight_shards",
        ),
        excludes=(
            fact(
                "--num-distributed-optimizer-instances above 1",
                lambda run: (run.number("num_distributed_optimizer_instances") or 1) > 1,
                "num_distributed_optimizer_instances",
            ),
        ),
        error="AssertionError: GTP_remat with num_distributed_optimizer_instances > 1 is not yet supported.",
        found_at=FoundAt.BUILD,
        source=GROUPS,
        why="The groups that the weights are split over know one instance of the optimizer only.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    optimizer_instances_divisible,
    expert_optimizer_instances,
    weight_shards,
    ranks_in_another_order,
    *rules_of_demands(DEMANDS),
)
