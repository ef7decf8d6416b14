"""The published configs of bundled models: each says what the bundled facts say, and no field of one is ignored."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.models.bundled import load_bundled
from planner.models.specs import ModelSpec
from planner.schema.architectures import ARCHITECTURES
from planner.schema.common_keys import HARMLESS
from planner.schema.model import read_model

CASES: Mapping[str, dict[str, object]] = {
    case["bundled"]: case["config"]
    for case in map(json.loads, Path(__file__).with_name("published_configs.jsonl").read_text("utf-8").splitlines())
}

ONE_OF_A_CLASS = sorted({str(case["architectures"]): name for name, case in CASES.items()}.values())
"""One model of each class, for tests that go over every field."""

DEEP = {
    "deepseek-v3.2",
    "gemma-4-26b-a4b",
    "glm-5",
    "kimi-k2",
    "llama-3.3-nemotron-super-49b",
    "nemotron-h-56b",
    "qwen3.5-397b-a17b",
}
"""Configs of so many fields, or of fields for each layer, that every wrong value in each takes seconds."""

FieldPath = tuple[str | int, ...]

# Fields that are read and checked, and whose other values still give the same model. Each has its reason.
NEUTRAL = {
    # No layer of these models is dense, or none sees fewer tokens than it could.
    "intermediate_size": {"Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration", "NemotronHForCausalLM"},
    "intermediate_size_mlp": {"Llama4ForConditionalGeneration"},
    "sliding_window": {"MiMoForCausalLM"},
    "use_sliding_window": {"MiMoForCausalLM"},
    "max_window_layers": {"Qwen3ForCausalLM", "MiMoForCausalLM"},
    # The layers' own list says what this would.
    "full_attention_interval": {"Qwen3_5MoeForConditionalGeneration"},
    # Numbers of a rotation or a clamp that is kept as a trait only.
    "truncate": {"GptOssForCausalLM"},
    "swiglu_limit": {"GptOssForCausalLM"},
    "mrope_interleaved": {"Qwen3_5MoeForConditionalGeneration"},
    "final_logit_softcapping": {"Gemma4ForConditionalGeneration"},
    # Read for the type of the tower only; none changes a shape of it.
    "num_heads": {"Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"},
}

# Inside the tower of a multimodal model, what changes no shape.
TOWER_NEUTRAL = {
    "default_output_length",
    "global_head_dim",
    "max_position_embeddings",
    "pooling_kernel_size",
    "rms_norm_eps",
    "rope_parameters",
    "standardize",
}

WRONG: tuple[object, ...] = (None, True, -1, 0, 3.5, 10**12, "x", [], [{}], {}, {"x": 1})


def outcome(config: object) -> ModelSpec | InputError:
    try:
        document = parse_document(json.dumps(config), file="config.json")
        return read_model(document.data, document=document, path=(), base=Path())
    except InputError as error:
        return error


def fields_of(node: object, path: FieldPath = ()) -> Iterator[FieldPath]:
    """Yield the path of every field, of mappings inside mappings too, and of the first mapping of a list."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from fields_of(value, (*path, key))
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        yield from fields_of(node[0], (*path, 0))


def with_field(config: dict[str, object], path: FieldPath, value: object, *, remove: bool = False) -> object:
    """Return the config with one field replaced, or removed."""
    changed: object = deepcopy(config)
    owner = changed
    for part in path[:-1]:
        owner = owner[part]  # type: ignore[index]
    assert isinstance(owner, dict)
    if remove:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return changed


def shortened(config: dict[str, object]) -> dict[str, object]:
    """Return the config with four layers, where it describes every layer at length."""
    blocks = config.get("block_configs")
    return {**config, "num_hidden_layers": 4, "block_configs": blocks[:4]} if isinstance(blocks, list) else config


def architecture_of(config: Mapping[str, object]) -> str:
    names = config["architectures"]
    assert isinstance(names, list)
    return str(names[0])


def is_harmless(config: Mapping[str, object], path: FieldPath) -> bool:
    """Return whether the tables say that a field costs nothing."""
    if path[0] == "quantization_config":
        return path[-1] != "quant_method"
    return not (HARMLESS | ARCHITECTURES[architecture_of(config)].harmless).isdisjoint(path)


def other_value(value: object) -> object:
    """Return a value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value else 1
    return f"{value}x" if isinstance(value, str) else None


@pytest.mark.parametrize("name", CASES)
def test_a_published_config_says_what_the_bundled_model_says(name: str) -> None:
    model = outcome(CASES[name])
    assert isinstance(model, ModelSpec)
    assert replace(model, name=name) == load_bundled(name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in ONE_OF_A_CLASS]
)
def test_whatever_a_field_holds_gives_a_model_or_an_error_in_words(name: str) -> None:
    config = shortened(CASES[name])
    for path in fields_of(config):
        variants = [with_field(config, path, None, remove=True)]
        variants += [with_field(config, path, value) for value in WRONG]
        for variant in variants:
            result = outcome(variant)
            assert isinstance(result, ModelSpec | InputError), path
            if isinstance(result, InputError):
                assert result.message, path
                assert result.hint, path


@pytest.mark.parametrize("name", ONE_OF_A_CLASS)
def test_a_field_that_can_change_cost_is_never_ignored(name: str) -> None:
    config = shortened(CASES[name])
    architecture = architecture_of(config)
    original = outcome(config)
    for path in fields_of(config):
        if is_harmless(config, path):
            continue
        assert isinstance(outcome(with_field(config, path, {"x": 1})), InputError), path
        owner: object = config
        for part in path:
            owner = owner[part]  # type: ignore[index]
        changed = other_value(owner)
        if changed is None or architecture in NEUTRAL.get(str(path[-1]), ()):
            continue
        if path[0] == "vision_config" and TOWER_NEUTRAL & set(path):
            continue
        if "sliding_attention" in path:  # the base of these layers' rotation; a trait says that it differs
            continue
        assert outcome(with_field(config, path, changed)) != original, path
