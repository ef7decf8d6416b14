"""Megatron-LM: reinforcement learning."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, fact, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_divisors, nearest_multiples, rule

RL = on("--perform-rl-step")


@rule(
    id="MLM832",
    name="reinforcement-batches",
    framework=Framework.MEGATRON,
    prevents="AssertionError: grpo_group_size * grpo_prompts_per_step * grpo_iterations should be divisible by "
    "global_batch_size",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def reinforcement_batches(run: MegatronRun) -> Iterator[Found]:
    """What is generated at a time makes whole batches, and intervals are whole numbers of generations."""
    if not run.arguments.is_on("perform_rl_step") or run.global_batch_size < 1:
        return
    sizes = [run.number(f"grpo_{name}") or 0 for name in ("group_size", "prompts_per_step", "iterations")]
    samples = sizes[0] * sizes[1] * sizes[2]
    if samples % run.global_batch_size:
        yield Found(
            place=run.place("global_batch_size", "grpo_group_size"),
            message=f"{samples} generated samples are not a multiple of the global batch of {run.global_batch_size}.",
            hint=f"A global batch of {listed(nearest_divisors(max(samples, 1), run.global_batch_size))} would do.",
        )
        return
    steps = samples // run.global_batch_size
    for dest in ("exit_interval", "save_interval"):
        interval = run.number(dest)
        if steps and interval is not None and interval % steps:
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} {interval} is not a multiple of the {steps} batches of a "
                f"generation.",
                hint=f"{listed(nearest_multiples(steps, interval))} would do.",
            )


DEMANDS = (
    Demand(
        id="MLM827",
        name="reinforcement-graphs",
        when=RL & (on("--rl-persist-cuda-graphs") | on("--rl-training-cuda-graphs")),
        needs=(
            fact(
                "--cuda-graph-impl other than none",
                lambda run: run.value("cuda_graph_impl") != "none",
                "cuda_graph_impl",
            ),
        ),
        error="AssertionError: --rl-persist-cuda-graphs is set but no CUDA graphs are being built.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="--cuda-graph-impl says which graphs there are.",
    ),
    Demand(
        id="MLM828",
        name="reinforcement-cache",
        mends=False,
        when=RL & one_of("--rl-kv-cache-management-mode", "offload"),
        needs=(on("--rl-persist-cuda-graphs"),),
        excludes=(above("--inference-dynamic-batching-unified-memory-level", 0),),
        error="AssertionError: --rl-kv-cache-management-mode=offload requires --rl-persist-cuda-graphs",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Graphs that are captured again would run over the cache that was put away.",
    ),
    Demand(
        id="MLM829",
        name="reinforcement-rollouts",
        when=RL & (above("--rl-generation-lag", 0) | one_of("--rl-submission-granularity", "R")),
        needs=(on("--rl-partial-rollouts"),),
        error="AssertionError: --rl-generation-lag requires --rl-partial-rollouts.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Rollouts that are behind are not finished in their step.",
    ),
    Demand(
        id="MLM830",
        name="reinforcement-granularity",
        when=RL,
        excludes=(
            one_of("--rl-consumption-granularity", "R"),
            one_of("--rl-submission-granularity", "B") & one_of("--rl-consumption-granularity", "G"),
        ),
        error="AssertionError: --rl-consumption-granularity R is not currently supported.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="What is submitted as a batch is consumed as one.",
    ),
    Demand(
        id="MLM831",
        name="reinforcement-packing",
        when=RL & on("--rl-use-sequence-packing"),
        needs=(one_of("--micro-batch-size", 1),),
        error="AssertionError: micro_batch_size must be 1 when using sequence packing.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="A packed sequence holds several.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    reinforcement_batches,
    *rules_of_demands(DEMANDS),
)
