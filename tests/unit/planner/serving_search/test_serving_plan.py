"""Serving plans: laws, agreement with exhaustive composition, files that say the plan, reasons where there is none."""

import math

import pytest

from planner.documents import parse_document
from planner.emit.vllm import VERSION, config_name
from planner.emit.vllm_bench import BENCH_FILE
from planner.emit.vllm_start import START_FILE
from planner.readers.vllm_engine import settings_of, shape_of
from planner.readers.vllm_run import read_vllm_config
from planner.schema.serve_plan_file import serve_plan_from_document, serve_plan_to_text
from planner.serving_plans.layout import Role
from planner.serving_plans.plan import ServePlan, ServeStatus
from planner.serving_plans.request import ServeObjective
from planner.serving_search.launch import serve_files
from planner.serving_search.search import plan_serving
from tests.served import serve_inputs, served

LOADED = ("input: 1000", "requests_per_second: 20\n  input: 1000")
FEWEST = ("workload:", "objective: fewest-gpus\nworkload:")
CHEAPEST = ("workload:", "objective: cost\nworkload:")
CLOSED = ("input: 1000", "arrivals: closed-loop\n  input: 1000")
AGGREGATED = ("workload:", "constraints: {split: never}\nworkload:")
SPLIT = ("workload:", "constraints: {split: only}\nworkload:")
TWO_NODES = ("nodes: 1", "nodes: 2")

PLANS = ((), (LOADED, FEWEST), (CLOSED, AGGREGATED), (SPLIT,), (LOADED, SPLIT))


def borne(plan: ServePlan) -> float:
    """Return the requests a second that a plan bears within its targets."""
    return next(way.requests_per_second for way in plan.compositions if way.name == "the plan")


@pytest.mark.parametrize("changes", PLANS)
def test_requests_keep_their_targets(changes: tuple[tuple[str, str], ...]) -> None:
    plan = served(*changes)
    targets = plan.request.workload.targets
    assert plan.status is ServeStatus.OPTIMAL
    for deployment in plan.deployments:
        for entry in deployment.served:
            assert entry.ttft.stated <= (targets.ttft_seconds or math.inf)
            assert entry.tpot.stated <= (targets.tpot_seconds or math.inf)
            assert not entry.saturated
            assert entry.refused == 0


@pytest.mark.parametrize("changes", PLANS)
def test_engines_fit_the_gpus_and_their_memory(changes: tuple[tuple[str, str], ...]) -> None:
    plan = served(*changes)
    assert 0 < plan.num_gpus <= sum(cluster.world_size for cluster in plan.clusters)
    for entry in plan.pools:
        held = sum(item.num_bytes for item in entry.memory)
        assert held + entry.cache_bytes == entry.memory_limit_bytes
        assert entry.cache_bytes > 0
        assert entry.requests_per_second <= entry.capacity_requests_per_second * (1 + 1e-9)
        assert entry.batch <= entry.pool.settings.max_num_seqs + 1e-9


@pytest.mark.parametrize("changes", PLANS)
def test_files_say_the_plan(changes: tuple[tuple[str, str], ...]) -> None:
    plan = served(*changes)
    files = serve_files(plan)
    for entry in plan.pools:
        name = config_name(entry.pool)
        run = read_vllm_config(files[name], file=name, version=VERSION, num_gpus=None, gpus_per_node=8)
        assert shape_of(run) == entry.pool.shape
        assert settings_of(run) == entry.pool.settings
        lines = files[name].splitlines()
        assert f"max-num-seqs: {entry.pool.settings.max_num_seqs}" in lines
        assert "block-size: 16" in lines
    assert {START_FILE, BENCH_FILE} <= files.keys()


@pytest.mark.parametrize(
    ("model", "weights", "tp", "told"),
    [("deepseek-v3", "fp8_block", 8, None), ("nemotron-h-56b", "bf16", 4, None), ("gpt-oss-120b", "mxfp4", 2, 16)],
)
def test_a_block_is_told_where_attention_takes_any(model: str, weights: str, tp: int, told: int | None) -> None:
    plan = served(
        ("workload:", f"constraints: {{split: never, tp: {tp}}}\nworkload:"),
        TWO_NODES,
        ("model: llama-3.1-8b", f"model: {model}"),
        ("output: 200", f"output: 200\n  quantization: {weights}"),
        ("{ttft_ms: 500, tpot_ms: 25}", "{tpot_ms: 200}"),
    )
    assert plan.pools
    assert {entry.pool.settings.block_size for entry in plan.pools} == {told}


@pytest.mark.parametrize("changes", PLANS)
def test_a_plan_comes_back_from_its_file(changes: tuple[tuple[str, str], ...]) -> None:
    plan = served(*changes)
    assert serve_plan_from_document(parse_document(serve_plan_to_text(plan), file="plan.json")) == plan


def test_the_same_spec_gives_the_same_bytes() -> None:
    inputs = serve_inputs()
    again = plan_serving(inputs.model, inputs.clusters, inputs.request)
    assert serve_plan_to_text(again) == serve_plan_to_text(served())


@pytest.mark.parametrize("changes", [(AGGREGATED,), (LOADED, FEWEST, AGGREGATED), (LOADED, CHEAPEST, SPLIT)])
def test_both_programmes_compose_alike(changes: tuple[tuple[str, str], ...]) -> None:
    assert served(*changes, solver="pulp").value == pytest.approx(served(*changes).value)


SMALL_NODE = ("{preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.0}", "{preset: polaris, nodes: 1}")


@pytest.mark.parametrize("changes", [(), (AGGREGATED,), (SPLIT,)])
def test_a_composition_is_the_best_of_all(changes: tuple[tuple[str, str], ...]) -> None:
    pinned = ("workload:", "workload:") if changes else ("workload:", "constraints: {pp: 1}\nworkload:")
    best = served(SMALL_NODE, *changes, pinned, solver="exhaustive")
    assert served(SMALL_NODE, *changes, pinned).value == pytest.approx(best.value)


def test_more_nodes_bear_more() -> None:
    assert borne(served(TWO_NODES)) >= borne(served())


def test_looser_targets_bear_more() -> None:
    assert borne(served(AGGREGATED, ("tpot_ms: 25", "tpot_ms: 40"))) > borne(served(AGGREGATED))
    assert borne(served(AGGREGATED, ("ttft_ms: 500", "ttft_ms: 2000"))) >= borne(served(AGGREGATED))


def test_every_way_to_compose_bears_no_more_than_the_plan() -> None:
    plan = served()
    names = [way.name for way in plan.compositions]
    assert names == ["one shape", "aggregated", "prefill/decode split", "the plan"]
    rates = [way.requests_per_second for way in plan.compositions]
    assert max(rates) == pytest.approx(rates[-1])
    assert plan.value == pytest.approx(rates[-1])


def test_a_load_is_borne_by_the_fewest_gpus() -> None:
    plan = served(LOADED, FEWEST, AGGREGATED)
    per_gpu = served(AGGREGATED)
    assert plan.requests_per_second == pytest.approx(20.0)
    assert plan.value == plan.num_gpus
    # One GPU fewer of the same kind bears less than the load.
    best = max(engine.requests_per_second / engine.num_gpus for engine in per_gpu.engines if engine.simulated)
    assert (plan.num_gpus - 1) * best < 20.0


def test_a_split_plan_has_both_roles_and_a_transfer() -> None:
    plan = served(SPLIT)
    (deployment,) = plan.deployments
    assert {entry.pool.role for entry in deployment.pools} == {Role.PREFILL, Role.DECODE}
    assert deployment.transfer is not None
    # 32 layers, 8 heads of 128 for keys and as many for values, 2 bytes each, 1,000 tokens in blocks of 16.
    assert deployment.transfer.num_bytes == 32 * 2 * 8 * 128 * 2 * 1008
    first = deployment.served[0]
    assert first.ttft.mean > deployment.transfer.seconds


def test_the_network_carries_caches_between_nodes() -> None:
    inside = served(SPLIT).deployments[0].transfer
    between = served(SPLIT, TWO_NODES).deployments[0].transfer
    assert inside is not None
    assert between is not None
    assert (inside.over, between.over) == ("links inside the node", "the network between nodes")
    assert between.seconds > inside.seconds


@pytest.mark.parametrize("concurrency", [3, 48, 61])
def test_a_fixed_number_under_way_is_shared_out(concurrency: int) -> None:
    # 61 divide among no engines alike: some take one more than others, and none takes what there is not.
    plan = served(("input: 1000", f"arrivals: closed-loop\n  concurrency: {concurrency}\n  input: 1000"))
    under_way = sum(entry.batch * entry.pool.shape.dp * entry.pool.replicas for entry in plan.pools)
    assert 0 < under_way <= concurrency
    assert all(entry.pool.role is Role.BOTH for entry in plan.pools)
    # Little's law: what is borne is what so many bring.
    (deployment,) = plan.deployments
    brought = sum(
        entry.requests_per_second * found.e2e.mean * entry.pool.replicas
        for entry, found in zip(deployment.pools, deployment.served, strict=True)
    )
    assert brought == pytest.approx(under_way, rel=0.02)


def test_an_offline_batch_has_no_targets_and_more_throughput() -> None:
    offline = served(("input: 1000", "arrivals: offline\n  input: 1000"), ("  slo: {ttft_ms: 500, tpot_ms: 25}\n", ""))
    assert borne(offline) > borne(served())


def test_a_long_prompt_alone_is_planned() -> None:
    plan = served(
        ("input: 1000", "arrivals: closed-loop\n  concurrency: 1\n  input: 100000"),
        ("{ttft_ms: 500, tpot_ms: 25}", "{ttft_ms: 60000}"),
    )
    (entry,) = plan.pools
    assert (entry.pool.replicas, entry.pool.settings.max_num_seqs) == (1, 1)
    # One request at a time is fastest on all GPUs together.
    assert entry.pool.shape.num_gpus == 8


@pytest.mark.parametrize(
    ("load", "within"),
    [
        ("arrivals: closed-loop\n  concurrency: 1", 0.01),
        ("arrivals: closed-loop\n  concurrency: 8", 0.05),
        ("requests_per_second: 0.001", 0.01),
        ("requests_per_second: 12", 0.05),
        ("requests_per_second: 18", 0.05),
    ],
)
def test_the_parts_of_a_tokens_time_are_all_of_it(load: str, within: float) -> None:
    plan = served(
        ("input: 1000", f"{load}\n  input: 4000"), ("workload:", "constraints: {tp: 1, split: never}\nworkload:")
    )
    for deployment in plan.deployments:
        for entry, found in zip(deployment.pools, deployment.served, strict=True):
            assert sum(entry.step_seconds.values()) == pytest.approx(found.tpot.mean, rel=within)


def test_where_answers_have_one_token_the_time_is_that_of_prompts() -> None:
    plan = served(("output: 200", "output: 1"), AGGREGATED)
    assert "attention of prompts" in plan.pools[0].step_seconds
    assert "attention of answers" not in plan.pools[0].step_seconds


def test_shared_beginnings_help() -> None:
    shared = served(("output: 200", "output: 200\n  prefix: {tokens: 600, hit_fraction: 1.0}"))
    assert borne(shared) > borne(served())
    assert all(entry.pool.settings.prefix_caching for entry in shared.pools)
    assert not any(entry.pool.settings.prefix_caching for entry in served().pools)


def test_bursts_bear_less_than_independent_arrivals() -> None:
    bursts = served(AGGREGATED, ("output: 200", "output: 200\n  burstiness: 0.1"))
    assert borne(bursts) < borne(served(AGGREGATED))


@pytest.mark.parametrize("split", ["allowed", "never", "only"])
@pytest.mark.parametrize("more", [(), (LOADED, FEWEST)])
def test_replicas_that_may_not_differ_are_of_one_shape_in_each_role(
    split: str, more: tuple[tuple[str, str], ...]
) -> None:
    changes = (("workload:", f"constraints: {{split: {split}, mixed: false, tp: [1, 2]}}\nworkload:"), *more)
    plan = served(*changes, TWO_NODES)
    roles = [entry.pool.role for entry in plan.pools]
    assert len(roles) == len(set(roles))
    assert (Role.BOTH in roles) == (len(roles) == 1)
    free = served((changes[0][0], changes[0][1].replace("false", "true")), *more, TWO_NODES)
    assert plan.value is not None
    assert free.value is not None
    assert (plan.value <= free.value * (1 + 1e-9)) if not more else (plan.value >= free.value)


def test_what_users_pin_is_kept() -> None:
    plan = served(("workload:", "constraints: {tp: 2, max_num_seqs: {max: 16}, split: never}\nworkload:"))
    assert {entry.pool.shape.tp for entry in plan.pools} == {2}
    assert max(entry.pool.settings.max_num_seqs for entry in plan.pools) <= 16


@pytest.mark.parametrize(("word", "is_taken"), [("bf16", False), ("fp8", False), ("int4", True)])
def test_weights_that_engines_do_not_quantise_are_taken_to_be_published_so(word: str, *, is_taken: bool) -> None:
    plan = served(AGGREGATED, ("output: 200", f"output: 200\n  quantization: {word}"))
    said = "the files of meta-llama/Llama-3.1-8B hold int4 weights; else give served_model: engines load them as is"
    assert (said in plan.assumptions) == is_taken


@pytest.mark.parametrize(
    ("constraint", "least"), [("600", 600), ("[512, 900]", 512), ("{min: 700}", 700), ("2000", 2000)]
)
@pytest.mark.parametrize("arrivals", ["poisson", "closed-loop"])
def test_a_batch_is_never_below_its_bound(constraint: str, least: int, arrivals: str) -> None:
    plan = served(
        ("workload:", f"constraints: {{tp: 2, max_num_seqs: {constraint}, split: never}}\nworkload:"),
        ("output: 200", f"output: 200\n  arrivals: {arrivals}"),
    )
    found = {entry.pool.settings.max_num_seqs for entry in plan.pools}
    assert found
    assert min(found) >= least
    if not constraint.startswith("{"):
        assert found <= {least, 900}


def test_a_pinned_batch_without_room_for_its_logits_is_no_shape_that_fits() -> None:
    # 16,384 seats: 128,256 logits of 8 bytes each, 15.7 GiB; a GPU holds that beside 15 GiB of weights, or not beside
    # a reserve that leaves 20 GiB.
    pinned = ("workload:", "constraints: {tp: 1, pp: 1, max_num_seqs: 16384, split: never}\nworkload:")
    narrow = ("schema: 1", "schema: 1\ngpu_memory_utilization: 0.35")
    assert served(pinned).deployments
    plan = served(pinned, narrow)
    assert plan.infeasible is not None
    assert plan.search.legal == 0


def test_a_hybrid_is_told_no_more_sequences_than_its_pool_has_blocks() -> None:
    # vLLM does not start with more: each sequence has a block for its states, here 20.6 MiB of some 4.2 GiB.
    def told(seats: int) -> ServePlan:
        pinned = ("workload:", f"constraints: {{tp: 1, pp: 1, dp: 1, max_num_seqs: {seats}, split: never}}\nworkload:")
        return served(("llama-3.1-8b", "qwen3.5-35b-a3b"), ("{ttft_ms: 500, tpot_ms: 25}", "{tpot_ms: 200}"), pinned)

    assert told(200).deployments
    plan = told(512)
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("do not fit, beside room for 512 at once")
    (move,) = plan.infeasible.moves
    assert move.needed is not None
    assert 4 << 30 < move.needed - move.given < 8 << 30


def test_more_sequences_than_any_budget_has_tokens_are_what_is_in_the_way() -> None:
    plan = served(("workload:", "constraints: {tp: 8, max_num_seqs: 20000, split: never}\nworkload:"))
    assert plan.infeasible is not None
    assert plan.infeasible.binding == ("no number of sequences that is allowed goes with a budget of tokens that is")
    assert plan.infeasible.moves == ()


def test_the_front_rises_as_users_wait_longer() -> None:
    front = served().pareto
    users = [point.tokens_per_second_per_user for point in front]
    gpus = [point.tokens_per_second_per_gpu for point in front]
    assert len(front) >= 5
    assert users == sorted(users, reverse=True)
    assert gpus == sorted(gpus)
    assert any(point.split for point in front)
    assert not any(point.split for point in served(AGGREGATED).pareto)


def test_targets_that_no_engine_keeps_say_how_far_they_are() -> None:
    plan = served(("{ttft_ms: 500, tpot_ms: 25}", "{ttft_ms: 5, tpot_ms: 25}"))
    assert plan.status is ServeStatus.INFEASIBLE
    assert plan.infeasible is not None
    assert plan.infeasible.binding.startswith("ttft: no engine comes below ")
    moves = {move.target: move for move in plan.infeasible.moves}
    assert moves["ttft"].needed is not None
    assert moves["ttft"].needed > 0.005
    assert moves["tpot"].needed is None
    # What is said to do does.
    kept = served(("{ttft_ms: 500, tpot_ms: 25}", f"{{ttft_ms: {moves['ttft'].needed * 1.05e3:.3f}, tpot_ms: 25}}"))
    assert kept.status is ServeStatus.OPTIMAL


def test_targets_that_each_need_the_other_move_together() -> None:
    plan = served(("{ttft_ms: 500, tpot_ms: 25}", "{ttft_ms: 5, tpot_ms: 0.5}"))
    assert plan.infeasible is not None
    assert [move.needed for move in plan.infeasible.moves] == [None, None]
    for move in plan.infeasible.moves:
        assert move.together == pytest.approx(plan.infeasible.nearest_values[move.target])
        assert move.together > move.given


@pytest.mark.parametrize(
    ("change", "binding"),
    [
        (
            ("constraints: {split: only}", "constraints: {split: only, pp: 2}"),
            "the decode part of one: pipeline stages in decode, which no connector of vLLM writes into",
        ),
        (
            ("constraints: {split: only}", "constraints: {split: only, dcp: 2, tp: 8}"),
            "a part of one: decode context parallelism of heads: NixlConnector takes that of latent attention",
        ),
    ],
)
def test_a_split_that_cannot_be_is_what_is_in_the_way(change: tuple[str, str], binding: str) -> None:
    plan = served(
        SPLIT,
        change,
        ("model: llama-3.1-8b", "model: qwen3-30b-a3b"),
        ("ttft_ms: 500, tpot_ms: 25", "ttft_ms: 5000, tpot_ms: 100"),
    )
    assert plan.infeasible is not None
    assert plan.infeasible.binding == f"split: no engine can be {binding}"
    assert plan.infeasible.nearest == "engines that do everything, with constraints.split: allowed"


def test_targets_that_only_a_split_misses_are_told_from_those_that_all_miss() -> None:
    between = served(SPLIT, ("ttft_ms: 500", "ttft_ms: 95"))
    assert between.infeasible is not None
    assert between.infeasible.binding.startswith("split: a prompt, the transfer of its cache")
    never = served(SPLIT, ("ttft_ms: 500", "ttft_ms: 5"))
    assert never.infeasible is not None
    assert never.infeasible.binding.startswith("ttft: no engine comes below")


def test_a_load_that_is_too_high_says_what_is_missing() -> None:
    plan = served(("input: 1000", "requests_per_second: 1000\n  input: 1000"))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.startswith("GPUs: 8 bear ")
    moves = {move.target: move for move in plan.infeasible.moves}
    most, gpus = moves["requests_per_second"].needed, moves["num_gpus"].needed
    assert most == pytest.approx(borne(served()))
    assert gpus is not None
    assert gpus == pytest.approx(8 * 1000 / (most or 1), rel=0.15)


def test_a_model_that_does_not_fit_says_what_a_gpu_lacks() -> None:
    plan = served(("llama-3.1-8b", "llama-3.1-405b"))
    assert plan.infeasible is not None
    assert plan.infeasible.binding == "memory: the weights, a step and a sequence of 1,200 tokens do not fit"
    (move,) = plan.infeasible.moves
    assert move.target == "memory"
    assert move.needed is not None
    # 405 billion weights of 2 bytes over 8 GPUs are 94 GiB each.
    assert move.needed > 94 * 2**30


TWO_KINDS = (
    "cluster: {preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.0}",
    (
        "clusters: [{preset: dgx-h100, nodes: 1, price_per_gpu_hour: 4.0, watts_per_gpu: 1000},"
        " {preset: dgx-a100, nodes: 1, price_per_gpu_hour: 1.0, watts_per_gpu: 500}]"
    ),
)


def test_the_cheaper_kind_of_gpu_serves_where_it_is_fast_enough() -> None:
    plan = served(TWO_KINDS, LOADED, CHEAPEST, ("tpot_ms: 25", "tpot_ms: 60"))
    assert plan.objective is ServeObjective.COST
    assert {entry.pool.gpu for entry in plan.pools} == {"a100-sxm-80gb"}
    assert plan.price_per_hour == pytest.approx(plan.value)


def test_prompts_and_answers_go_to_different_kinds_of_gpu() -> None:
    plan = served(TWO_KINDS, SPLIT, ("input: 1000", "input: 4000"))
    kinds = {
        role: {entry.pool.gpu for entry in plan.pools if entry.pool.role is role}
        for role in (Role.PREFILL, Role.DECODE)
    }
    # The faster kind has the prompts, some answers are left to the other, and the network carries their caches.
    assert "h100-sxm-80gb" in kinds[Role.PREFILL]
    assert kinds[Role.DECODE] == {"a100-sxm-80gb"}
    assert plan.deployments[0].transfer is not None
    assert plan.deployments[0].transfer.over == "the network between nodes"
    alone = served(SPLIT, ("input: 1000", "input: 4000"))
    assert borne(plan) > borne(alone)


@pytest.mark.parametrize(
    ("bound", "used"),
    [("max_price_per_hour: 9.0", "price"), ("max_watts: 2500.0", "watts")],
)
def test_price_and_power_are_kept(bound: str, used: str) -> None:
    plan = served(TWO_KINDS, ("workload:", f"constraints: {{{bound}}}\nworkload:"))
    gpus = dict.fromkeys(("h100-sxm-80gb", "a100-sxm-80gb"), 0)
    for entry in plan.pools:
        gpus[entry.pool.gpu] += entry.pool.num_gpus
    each = {"price": (4.0, 1.0, 9.0), "watts": (1000.0, 500.0, 2500.0)}[used]
    spent = gpus["h100-sxm-80gb"] * each[0] + gpus["a100-sxm-80gb"] * each[1]
    assert 0 < spent <= each[2]


def test_no_gpu_is_idle_that_a_smaller_engine_can_use() -> None:
    # Nodes of six: an engine over two and one over one divide them, and one over four would leave two.
    six = (
        "{preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.0}",
        "{gpu: h100-sxm-80gb, gpus_per_node: 6, nodes: 1, nvlink_domain: 6, host_ram: 1TiB}",
    )
    plan = served(
        six, ("llama-3.1-8b", "qwen3-32b"), ("workload:", "constraints: {split: never, tp: [1, 2, 4]}\nworkload:")
    )
    assert plan.num_gpus == 6


def test_more_requests_under_way_than_the_gpus_keep_up_with() -> None:
    plan = served(("input: 1000", "arrivals: closed-loop\n  concurrency: 20000\n  input: 1000"))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.startswith("requests under way: the GPUs keep the targets with ")
    (move,) = plan.infeasible.moves
    most = round(move.needed or 0)
    assert 100 < most < 20000
    # Somewhat fewer, as the closed form says more of some engines than the simulation.
    fewer = served(("input: 1000", f"arrivals: closed-loop\n  concurrency: {most * 8 // 10}\n  input: 1000"))
    assert fewer.status is ServeStatus.OPTIMAL


@pytest.mark.parametrize(
    ("bound", "least"), [("max_price_per_hour: 1.5", 2.0), ("max_watts: 300.0", 1275.0)], ids=["price", "power"]
)
def test_a_bound_below_any_engine_says_what_one_takes(bound: str, least: float) -> None:
    plan = served(("workload:", f"constraints: {{{bound}}}\nworkload:"))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("pay for no engine that keeps the targets")
    (move,) = plan.infeasible.moves
    # One GPU holds the model: its price, or its share of the 10.2 kW of its node.
    assert move.needed == least


@pytest.mark.parametrize(("bound", "step"), [("max_price_per_hour", 2.0), ("max_watts", 1275.0)])
def test_a_bound_too_low_for_the_load_says_what_the_load_takes(bound: str, step: float) -> None:
    load = ("input: 1000", "requests_per_second: 100\n  input: 1000")

    def bounded(by: float) -> ServePlan:
        return served(load, CHEAPEST, ("workload:", f"constraints: {{{bound}: {by}, split: never}}\nworkload:"))

    plan = bounded(2 * step)
    assert plan.infeasible is not None
    moves = {move.target: move for move in plan.infeasible.moves}
    needed = moves[bound].needed
    assert needed is not None
    assert needed > 2 * step
    # More GPUs cost more than may be spent.
    assert moves["num_gpus"].needed is None
    # What is said to do does, though the closed form says less of the engines; and a GPU less does not.
    assert bounded(needed).status is ServeStatus.OPTIMAL
    assert bounded(needed - step).status is ServeStatus.INFEASIBLE


def test_no_load_is_too_high_to_say_what_it_takes() -> None:
    plan = served(("input: 1000", "requests_per_second: 1000000\n  input: 1000"))
    assert plan.infeasible is not None
    moves = {move.target: move for move in plan.infeasible.moves}
    bears = moves["requests_per_second"].needed
    assert bears is not None
    assert moves["num_gpus"].needed == pytest.approx(8 * 1_000_000 / bears, rel=0.15)


@pytest.mark.parametrize("tokens", [64, 256])
def test_a_pinned_budget_of_tokens_is_what_engines_are_told(tokens: int) -> None:
    plan = served(("workload:", f"constraints: {{max_num_batched_tokens: {tokens}, split: never, tp: 2}}\nworkload:"))
    for entry in plan.pools:
        assert entry.pool.settings.max_num_batched_tokens == tokens
        assert entry.pool.settings.max_num_seqs <= tokens


@pytest.mark.parametrize(
    ("pinned", "why"),
    [
        (
            "tp: 3",
            "no engine has the pinned degrees, with so many GPUs as pack into a node (on h100-sxm-80gb 1, 2, 4, 8)",
        ),
        ("dp: 2", "data parallelism of a dense model: replicas do the same"),
    ],
)
def test_where_no_shape_is_left_the_rule_against_it_is_named(pinned: str, why: str) -> None:
    plan = served(("workload:", f"constraints: {{{pinned}}}\nworkload:"))
    assert plan.infeasible is not None
    said, _, reason = plan.infeasible.binding.partition(": ")
    assert said == "no shape of an engine keeps the constraints and the rules of the target"
    assert reason.startswith(why)
