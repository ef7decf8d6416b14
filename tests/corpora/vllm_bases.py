"""`vllm serve` commands that are sound: what the corpus of mutations starts from."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.documents import load_document, parse_document
from planner.emit.vllm import config_name
from planner.schema.serving_layout import serving_layout_from_document
from planner.serving.files import serving_files

ROOT = Path(__file__).parents[2]
LAYOUT_FILE = "serving.yaml"
PUBLISHED = {"deepseek-ai/DeepSeek-V3": "deepseek-v3", "meta-llama/Llama-3.1-70B-Instruct": "llama-3.1-70b"}
"""Bundled models by the names that the examples give them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A sound command.

    Args:
        name: What it is.
        model: The bundled model that it serves.
        flags: Each flag with its values, in order; of a configuration file those of its keys.
        command: Words of the command beside a configuration file; None without such a file.
    """

    name: str
    model: str
    flags: Mapping[str, tuple[str, ...]]
    command: tuple[str, ...] | None = None


def _flags(text: str) -> Mapping[str, tuple[str, ...]]:
    """Return each flag of an argument list with its values."""
    flags: dict[str, tuple[str, ...]] = {}
    flag = ""
    for word in shlex.split(text):
        if word.startswith("-"):
            flag = word
            flags[flag] = ()
        else:
            flags[flag] = (*flags[flag], word)
    return flags


COMMANDS: Mapping[str, tuple[str, str]] = {
    "dense": (
        "llama-3.1-70b",
        (
            "--tensor-parallel-size 8 --max-model-len 32768 --max-num-seqs 256 --max-num-batched-tokens 8192"
            " --gpu-memory-utilization 0.9"
        ),
    ),
    "pipeline": (
        "qwen3-8b",
        "-tp 4 -pp 2 --max-model-len 16384 --kv-cache-dtype fp8 --block-size 32 --dtype bfloat16 --quantization fp8",
    ),
    "two nodes": (
        "llama-3.1-405b",
        (
            "--tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2 --node-rank 1 --master-addr 10.0.0.1"
            " --master-port 29501 --max-model-len 16k --max-num-seqs 64"
        ),
    ),
    "prompts in one step": (
        "qwen3-32b",
        (
            "--tensor-parallel-size 2 --no-enable-chunked-prefill --max-model-len 8192 --max-num-batched-tokens 8192"
            " --max-num-seqs 64 --no-enable-prefix-caching"
        ),
    ),
    "experts": (
        "qwen3-235b-a22b",
        "--tensor-parallel-size 4 --data-parallel-size 2 --enable-expert-parallel --max-num-seqs 128",
    ),
    "balanced experts": (
        "qwen3-30b-a3b",
        (
            "--tensor-parallel-size 2 --data-parallel-size 4 --enable-expert-parallel --enable-eplb"
            """ --eplb-config '{"num_redundant_experts": 16, "window_size": 1000, "step_interval": 3000}'"""
        ),
    ),
    "external balancer": (
        "qwen3-30b-a3b",
        (
            "--tensor-parallel-size 2 --data-parallel-size 4 --enable-expert-parallel --data-parallel-external-lb"
            " --data-parallel-rank 1 --data-parallel-address 10.0.0.1 --data-parallel-rpc-port 13345"
        ),
    ),
    "hybrid balancer": (
        "deepseek-v3",
        (
            "--tensor-parallel-size 1 --data-parallel-size 16 --data-parallel-size-local 8 --data-parallel-start-rank 8"
            " --data-parallel-hybrid-lb --enable-expert-parallel --data-parallel-address 10.0.0.1"
        ),
    ),
    "decode context, latent": (
        "deepseek-v3",
        "--tensor-parallel-size 8 --decode-context-parallel-size 8 --max-model-len 65536 --enable-expert-parallel",
    ),
    "decode context, grouped": (
        "qwen3-235b-a22b",
        "--tensor-parallel-size 8 --decode-context-parallel-size 2 --max-model-len 32768",
    ),
    "prefill context": (
        "mixtral-8x7b",
        "--tensor-parallel-size 4 --prefill-context-parallel-size 2 --max-num-seqs 32 --max-model-len 16384",
    ),
    "cache passed on": (
        "llama-3.1-70b",
        (
            "--tensor-parallel-size 8 --kv-transfer-config"
            """ '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}' --max-num-seqs 64"""
        ),
    ),
    "drafts": (
        "llama-3.1-70b",
        (
            "--tensor-parallel-size 8 --max-num-seqs 64 --speculative-config"
            """ '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'"""
        ),
    ),
}


def bases() -> tuple[Base, ...]:
    """Return the commands above, and the configuration of each pool of the examples."""
    commands = [Base(name=name, model=model, flags=_flags(words)) for name, (model, words) in COMMANDS.items()]
    return (*commands, *(base for file in sorted(ROOT.glob(f"examples/*/{LAYOUT_FILE}")) for base in _emitted(file)))


def _emitted(file: Path) -> tuple[Base, ...]:
    """Return what is emitted for the first node of each pool."""
    layout = serving_layout_from_document(load_document(file))
    files = serving_files(layout)
    found: list[Base] = []
    for pool in layout.pools:
        mapping = _mapping(files[config_name(pool)])
        flags = {f"--{key}": _texts(value) for key, value in mapping.items() if key != "model"}
        command: tuple[str, ...] = ()
        if pool.shape.num_gpus > pool.gpus_per_node:
            local = pool.gpus_per_node // (pool.shape.tp * pool.shape.pp)
            command = ("--data-parallel-size-local", str(local), "--data-parallel-address", "10.0.0.1")
        name = f"{file.parent.name}, {pool.name}"
        found.append(Base(name=name, model=PUBLISHED[layout.model], flags=flags, command=command))
    return tuple(found)


def _mapping(text: str) -> Mapping[str, object]:
    """Return the mapping that a YAML text holds."""
    content = parse_document(text, file="serve.yaml").root.data()
    assert isinstance(content, dict)
    return content


def _texts(value: object) -> tuple[str, ...]:
    """Return what stands behind a key of the file, as JSON where it is no plain word."""
    return (value if isinstance(value, str) else json.dumps(value),)
