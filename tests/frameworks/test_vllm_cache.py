"""vLLM's own arithmetic of blocks and weights against what the rules of memory count.

vLLM builds each rank's model without numbers and deals its blocks; only the peak of the profiling run and the memory of
captured graphs need a GPU, and are assumptions of the ledger, each with its source.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from planner.readers.vllm_run import read_vllm_runs
from planner.rules.served_memory import ServedRun
from planner.validation.serving import served_run
from tests.frameworks.vllm_environment import Cache, Job, ask_for_caches

pytestmark = pytest.mark.frameworks

PUBLISHED = Path(__file__).parents[1] / "unit" / "planner" / "published_configs.jsonl"

CASES: Mapping[str, tuple[str, str]] = {
    "grouped heads": ("llama-3.1-70b", "-tp 8"),
    "stages that are not alike": ("llama-3.1-70b", "-tp 2 -pp 3"),
    "an fp8 cache in larger blocks": ("llama-3.1-70b", "-tp 4 --kv-cache-dtype fp8 --block-size 32"),
    "heads in copies": ("qwen3-30b-a3b", "-tp 8"),
    "decode split over ranks": ("qwen3-30b-a3b", "-tp 8 -dcp 2 --max-model-len 40001"),
    "routed experts": ("mixtral-8x7b", "-tp 4 -dp 2 --enable-expert-parallel"),
    "windows": ("gpt-oss-120b", "-tp 4"),
    "windows, one step at a time": ("gpt-oss-120b", "-tp 2 --no-async-scheduling --max-num-batched-tokens 2048"),
    "windows over stages": ("gpt-oss-120b", "-tp 2 -pp 2"),
    "latent attention": ("deepseek-v3", "-tp 8"),
    "latent attention split over ranks": ("deepseek-v3", "-tp 8 -dcp 8"),
    "states": ("nemotron-h-56b", "-tp 8"),
    "states of short sequences": ("nemotron-h-56b", "-tp 4 --max-model-len 4128"),
    "states and experts": ("nemotron-3-nano-30b-a3b", "-tp 2"),
    "states that are not kept": ("nemotron-3-nano-30b-a3b", "-tp 4 --no-enable-prefix-caching"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What both say of one command.

    Args:
        ours: What the rules look at.
        sizes: Bytes of the cache: just enough, one less, and half.
        theirs: vLLM's answers for these.
    """

    ours: ServedRun
    sizes: tuple[int, int, int]
    theirs: Cache


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    models = {row["bundled"]: row["config"] for row in map(json.loads, PUBLISHED.read_text("utf-8").splitlines())}
    ours = {
        name: _served(words, models[model], tmp_path_factory.mktemp("model")) for name, (model, words) in CASES.items()
    }
    sizes = {name: (run.needed_bytes, run.needed_bytes - 1, run.needed_bytes // 2) for name, run in ours.items()}
    jobs = [
        (Job(arguments=("a/model", *words.split()), model=models[model]), sizes[name])
        for name, (model, words) in CASES.items()
    ]
    answers = zip(CASES, ask_for_caches(jobs), strict=True)
    return {name: Compared(ours=ours[name], sizes=sizes[name], theirs=theirs) for name, theirs in answers}


def _served(words: str, model: Mapping[str, Any], folder: Path) -> ServedRun:
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    text = f"vllm serve {folder} {words}"
    (run,) = read_vllm_runs(text, file=str(folder / "serve.sh"), version="0.32.0", num_gpus=None, gpus_per_node=8)
    return served_run(run, preset="dgx-h100")


@pytest.mark.parametrize("name", CASES)
def test_the_least_cache_is_vllms_to_the_byte(name: str, compared: Mapping[str, Compared]) -> None:
    """With what the rule asks for vLLM starts; with one byte less it refuses, in the words that the rule prevents."""
    found = compared[name]
    enough, short, _ = found.theirs.errors
    assert enough == ""
    assert short.startswith("To serve at least one request with the model's max seq len")


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_dealt_alike(name: str, compared: Mapping[str, Compared]) -> None:
    found = compared[name]
    ledger = found.ours.ledger
    assert ledger.pool is not None
    assert ledger.block_tokens == found.theirs.block_tokens * ledger.pool.ranks_of_a_sequence
    assert found.sizes[0] == found.theirs.blocks[0] * ledger.pool.block_bytes
    assert found.ours.max_model_len is not None
    assert found.theirs.blocks[0] == ledger.pool.blocks(found.ours.max_model_len) + 1


@pytest.mark.parametrize("name", CASES)
def test_the_longest_request_of_half_the_cache_is_vllms(name: str, compared: Mapping[str, Compared]) -> None:
    found = compared[name]
    half = replace(found.ours, cache_bytes=found.sizes[2])
    said = re.search(r"the estimated maximum model length is (\d+)", found.theirs.errors[2])
    assert half.longest == (int(said.group(1)) if said else 0)


@pytest.mark.parametrize("name", CASES)
def test_weights_take_what_vllm_allocates(name: str, compared: Mapping[str, Compared]) -> None:
    found = compared[name]
    (ours,) = (line.num_bytes for line in found.ours.ledger.lines if line.name == "weights")
    model, words = CASES[name]
    more = padded_bytes(words) if model == "gpt-oss-120b" else 0
    assert ours + more == pytest.approx(found.theirs.weight_bytes, rel=1e-3)


def padded_bytes(words: str) -> float:
    """Return what vLLM holds of gpt-oss-120b beside its weights, on a Hopper: the ledger does not count it.

    Experts in mxfp4 are padded to the tiles of their kernels, their width to 256 and their inner width to 128 (`vllm/
    model_executor/layers/fused_moe/oracle/mxfp4.py`), and a stage that is not the first holds an embedding too
    (`vllm/model_executor/models/gpt_oss.py`).
    """
    tp, pp = (int(found.group(1)) if (found := re.search(rf"-{name} (\d+)", words)) else 1 for name in ("tp", "pp"))
    hidden, inner, experts, layers = 2880, 2880 / tp, 128, 36 / pp
    wide, deep = -(-hidden // 256) * 256, -(-inner // 128) * 128
    numbers = 3 * (wide * deep - hidden * inner) * (1 / 2 + 1 / 32)
    biases = 2 * ((2 * deep + wide) - (2 * inner + hidden / tp))
    return experts * layers * (numbers + biases) + (201_088 / tp * hidden * 2 if pp > 1 else 0)
