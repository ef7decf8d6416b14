"""The size of an engine's cache, told as a share of the memory or in bytes: same plans, judged as they are told."""

import pytest

from planner.emit.vllm import VERSION
from planner.errors import InputError
from planner.readers.vllm_engine import settings_of
from planner.readers.vllm_run import VllmRun, read_vllm_config
from planner.serving_search.launch import serve_files
from planner.validation.judge import judge
from planner.validation.pricing import Machine
from planner.validation.source import Asked
from tests.served import SMALL, serve_inputs, served

ALONE = ("workload:", "constraints: {split: never, tp: 1, pp: 1}\nworkload:")
BYTES = ("schema: 1", "schema: 1\ncache_size: bytes")


def read_back(config: str) -> VllmRun:
    return read_vllm_config(config, file="server.yaml", version=VERSION, num_gpus=None, gpus_per_node=8)


def test_bytes_plan_what_the_share_plans() -> None:
    share, told = served(ALONE), served(ALONE, BYTES)
    assert told.value == share.value
    (one,), (other,) = share.pools, told.pools
    assert one.pool.settings.kv_cache_memory_bytes is None
    assert other.pool.settings.gpu_memory_utilization is None
    assert other.pool.settings.kv_cache_memory_bytes == other.cache_bytes == one.cache_bytes
    held = sum(item.num_bytes for item in other.memory)
    assert held + other.cache_bytes == other.memory_limit_bytes == one.memory_limit_bytes
    assert other.cache_tokens == one.cache_tokens


def test_files_say_the_bytes_and_are_read_back() -> None:
    plan = served(ALONE, BYTES)
    (entry,) = plan.pools
    config = serve_files(plan)["server.yaml"]
    assert f"kv-cache-memory-bytes: {entry.cache_bytes}" in config.splitlines()
    assert "gpu-memory-utilization" not in config
    run = read_back(config)
    assert settings_of(run) == entry.pool.settings


def test_validate_judges_the_bytes_that_are_told() -> None:
    plan = served(ALONE, BYTES)
    (entry,) = plan.pools
    told = entry.pool.settings
    free = plan.clusters[0].device.memory_bytes - entry.memory_limit_bytes
    tried: tuple[tuple[int, list[str]], ...] = ((0, []), (free * 2, ["MEM101"]), (1 - entry.cache_bytes, ["MEM102"]))
    for more, broken in tried:
        words = (
            f"vllm serve llama-3.1-8b --max-num-seqs {told.max_num_seqs} --max-model-len {told.max_model_len}"
            f" --max-num-batched-tokens {told.max_num_batched_tokens} --no-enable-prefix-caching"
            f" --kv-cache-memory-bytes {entry.cache_bytes + more}"
        )
        machine = Machine(cluster="dgx-h100", spec=None, advice=False)
        found = judge([], Asked(versions={}, gpus_per_node=8), command=words, machine=machine)
        assert [finding.rule_id for finding in found.findings] == broken
        assert not found.undecided


@pytest.mark.parametrize(("share", "by_bytes"), [("0.95", False), ("0.995", True)])
def test_a_share_that_is_never_free_is_told_in_bytes(share: str, by_bytes: bool) -> None:
    plan = served(ALONE, ("schema: 1", f"schema: 1\ngpu_memory_utilization: {share}"))
    (entry,) = plan.pools
    assert (entry.pool.settings.kv_cache_memory_bytes is not None) == by_bytes
    assert entry.memory_limit_bytes == pytest.approx(float(share) * plan.clusters[0].device.memory_bytes, abs=2)


def test_another_word_is_refused() -> None:
    with pytest.raises(InputError, match="cache_size"):
        serve_inputs(SMALL, ("schema: 1", "schema: 1\ncache_size: blocks"))
