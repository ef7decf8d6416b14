"""Whatever is done to a valid spec, it is planned or refused with a message: no traceback, no hang."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from planner.documents import Data, parse_document
from planner.documents.document import format_path
from planner.errors import InputError
from planner.inputs.load import Inputs, load_inputs
from planner.requests.workload import AttentionKernel
from planner.schema.plan import plan_from_document, plan_to_text
from planner.schema.spec import read_request
from tests.builders import tiny_dense_model, tiny_plan, tiny_planned_layout
from tests.examples import examples
from tests.strategies import junk, spec_data, spec_texts
from tests.unit.planner.model_kinds import expert_model, hybrid_model, latent_model

FUZZ = settings(
    max_examples=examples(few=40, many=100), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

FULL_SPEC: dict[str, Data] = {
    "schema": 1,
    "model": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 4096,
        },
    },
    "cluster": {
        "name": "mine",
        "gpu": "h100-sxm-80gb",
        "gpus_per_node": 8,
        "nodes": 2,
        "nvlink_domain": 8,
        "nics": {"count": 8, "bandwidth": "400Gb/s"},
        "host_ram": "2TiB",
        "nvme": {"count": 4, "capacity": "3.84TB", "bandwidth": "6GB/s"},
        "price_per_gpu_hour": 2.5,
        "watts_per_gpu": 1200.0,
    },
    "workload": {
        "kind": "train",
        "seq_len": 4096,
        "global_batch_size": 64,
        "precision": "fp8-blockwise",
        "master_dtype": "fp32",
        "gradient_dtype": "bf16",
        "moment_dtype": "bf16",
        "optimizer": "adam",
        "attention_kernel": "flash",
        "method": "lora",
        "lora": {"rank": 8, "alpha": 16.0, "target_modules": ["qkv", "fc1"]},
        "tokens_to_train": "1.5T",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.0,
        "data_path": ["corpus"],
        "tokenizer_model": "tokenizer.model",
        "documents": {"packing": "packed", "histogram": {"512": 0.5, "4096": 1.5}},
        "routing_skew": 1.5,
    },
    "constraints": {
        "tp": 8,
        "pp": [1, 2],
        "vpp": {"min": 1, "max": 4},
        "dp": {"max": 8},
        "cp": [1, 2],
        "cp_kind": ["ring", "ulysses"],
        "ep": 1,
        "etp": {"max": 4},
        "zero_stage": 1,
        "micro_batch_size": 1,
        "num_microbatches": {"min": 1},
        "recompute": ["none", "selective"],
        "sequence_parallel": True,
    },
    "memory_headroom": 0.1,
    "target": "megatron",
    "objective": "cost",
    "deadline_days": 90.0,
    "node_counts": {"min": 1, "max": 2},
}

NASTY: tuple[Data, ...] = (
    None,
    True,
    0,
    -1,
    1,
    3,
    2**24,
    2**31,
    10**29,
    -(10**29),
    0.5,
    -0.0,
    1e308,
    5e-324,
    "",
    " ",
    "x",
    "0",
    "-1GiB",
    "ÿ\u202e中",
    "a\nb",
    "../../../../nowhere",
    "/dev/zero",
    "x" * 10_000,
    [],
    [[]],
    [None] * 1000,
    {},
    {"": {"": {"": []}}},
    {"min": None},
    {"preset": "dgx-h100"},
)

FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")
"""What no message may hold: it would change how a terminal shows the rest."""

Paths = Iterator[tuple[str | int, ...]]


def paths_below(value: Data, path: tuple[str | int, ...] = ()) -> Paths:
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths_below(child, (*path, key))


FIELDS = list(paths_below(FULL_SPEC))

DOCUMENTS: tuple[dict[str, Data], ...] = (
    {"packing": "padded", "distribution": "lognormal", "mean": 1200.0, "sigma": 1.1},
    {"packing": "packed", "distribution": "uniform", "min": 100, "max": 4000},
    {"packing": "packed", "file": "lengths.csv"},
)


def changed(data: Data, path: tuple[str | int, ...], value: Data) -> Data:
    """Return a copy with the value at `path` replaced."""
    copy: Data = json.loads(json.dumps(data))
    parent = copy
    for part in path[:-1]:
        parent = parent[part]  # type: ignore[index]
    parent[path[-1]] = value  # type: ignore[index]
    return copy


def without(data: Data, path: tuple[str | int, ...]) -> Data:
    """Return a copy without the value at `path`."""
    copy: Data = json.loads(json.dumps(data))
    parent = copy
    for part in path[:-1]:
        parent = parent[part]  # type: ignore[index]
    del parent[path[-1]]  # type: ignore[union-attr, arg-type]
    return copy


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds nothing which a spec could name but itself."""
    return tmp_path_factory.mktemp("empty")


def planned_or_refused(text: str, base: Path, *, file: str = "spec.json") -> Inputs | None:
    """Return the inputs, or None for a refusal that says something; anything else that is raised fails the test."""
    path = base / file
    path.write_bytes(text.encode())
    try:
        inputs = load_inputs(path)
    except InputError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert not FORBIDDEN.search(message)
        assert len(message) < 20_000
        return None
    return inputs


def test_the_full_spec_is_valid(tmp_path: Path) -> None:
    inputs = planned_or_refused(json.dumps(FULL_SPEC), tmp_path)
    assert inputs is not None
    assert inputs.request.workload.attention_kernel is AttentionKernel.FLASH


@pytest.mark.parametrize("path", FIELDS, ids=format_path)
def test_a_spec_with_one_field_mutated_is_planned_or_refused(path: tuple[str | int, ...], tmp_path: Path) -> None:
    # Half of the values for each field, so that neighbours see the other half.
    for value in NASTY[FIELDS.index(path) % 2 :: 2]:
        planned_or_refused(json.dumps(changed(FULL_SPEC, path, value)), tmp_path)
    planned_or_refused(json.dumps(without(FULL_SPEC, path)), tmp_path)
    if isinstance(path[-1], str):
        renamed = changed(without(FULL_SPEC, path), (*path[:-1], f"{path[-1]}_"), 1)
        assert planned_or_refused(json.dumps(renamed), tmp_path) is None


@FUZZ
@given(path=st.sampled_from(FIELDS), value=junk())
def test_a_spec_with_junk_in_one_field_is_planned_or_refused(
    path: tuple[str | int, ...], value: Data, empty: Path
) -> None:
    planned_or_refused(json.dumps(changed(FULL_SPEC, path, value)), empty)


@pytest.mark.parametrize("documents", DOCUMENTS, ids=("lognormal", "uniform", "file"))
def test_documents_with_one_field_mutated_are_planned_or_refused(documents: dict[str, Data], tmp_path: Path) -> None:
    (tmp_path / "lengths.csv").write_text("512\n64,3\n")
    spec = changed(FULL_SPEC, ("workload", "documents"), documents)
    inputs = planned_or_refused(json.dumps(spec), tmp_path)
    assert inputs is not None
    assert inputs.request.workload.documents is not None
    for name in documents:
        path = ("workload", "documents", name)
        planned_or_refused(json.dumps(without(spec, path)), tmp_path)
        for value in NASTY:
            planned_or_refused(json.dumps(changed(spec, path, value)), tmp_path)


@FUZZ
@given(raw=st.binary(max_size=60), cut=st.integers(0, 12))
def test_a_file_of_lengths_with_foreign_bytes_is_planned_or_refused(
    raw: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = b"length,count\n512,3\n64,1\n"
    (folder / "lengths.csv").write_bytes(text[:cut] + raw + text[cut:])
    spec = changed(FULL_SPEC, ("workload", "documents"), {"file": "lengths.csv"})
    document = parse_document(json.dumps(spec), file="spec.json")
    with suppress(InputError):
        read_request(document, base=folder)


@FUZZ
@given(value=junk())
def test_a_spec_of_junk_is_refused(value: Data, empty: Path) -> None:
    assert planned_or_refused(json.dumps(value), empty) is None


@settings(FUZZ, max_examples=40)
@given(data=spec_data())
def test_every_legal_spec_is_taken(data: dict[str, Data], empty: Path) -> None:
    inputs = planned_or_refused(json.dumps(data), empty)
    assert inputs is not None
    workload = data["workload"]
    assert isinstance(workload, dict)
    assert inputs.request.workload.global_batch_size == workload["global_batch_size"]
    assert inputs.request.workload.seq_len == workload["seq_len"]


@FUZZ
@given(text=spec_texts(), start=st.integers(0, 400), length=st.integers(0, 8), insert=st.text(max_size=6))
def test_a_spec_with_damaged_text_is_planned_or_refused(
    text: str, start: int, length: int, insert: str, empty: Path
) -> None:
    planned_or_refused(text[:start] + insert + text[start + length :], empty, file="spec.yaml")


@FUZZ
@given(text=st.text(alphabet="ab:{}[],&*!|>'\"%@`#-?\n\t \\<~0.1_é\x00\x85\u2028", max_size=60))
@example(text="a: &a [*a]")
@example(text='"\\UFFFFFFFF"')
@example(text="%YAML 9.9\n--- x")
@example(text="%TAG ! tag:x,2000:\n--- !y z")
@example(text="? - a\n: b")
def test_text_that_looks_like_yaml_is_planned_or_refused(text: str, empty: Path) -> None:
    planned_or_refused(text, empty, file="spec.yaml")


@FUZZ
@given(raw=st.binary(max_size=80), cut=st.integers(0, 300))
def test_a_file_with_foreign_bytes_is_planned_or_refused(
    raw: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = json.dumps(FULL_SPEC, indent=1).encode()
    for name in ("spec.yaml", "spec.json"):
        file = tmp_path_factory.getbasetemp() / name
        file.write_bytes(text[:cut] + raw + text[cut:])
        with suppress(InputError):
            load_inputs(file)


@FUZZ
@given(name=st.text(max_size=12), path=st.sampled_from(FIELDS), value=st.text(max_size=12))
def test_any_override_is_taken_or_refused(name: str, path: tuple[str | int, ...], value: str, empty: Path) -> None:
    file = empty / "overridden.json"
    file.write_text(json.dumps(FULL_SPEC))
    for text in (f"{name}={value}", f"{format_path(path)}={value}", f"{format_path(path)}.{name}={value}"):
        with suppress(InputError):
            load_inputs(file, [text])


PLANS = [
    json.loads(plan_to_text(replace(tiny_plan(), model=model, plans=(tiny_planned_layout(),), baseline=None)))
    for model in (tiny_dense_model(), expert_model(), latent_model(), hybrid_model())
]
PLAN_FIELDS = [(index, path) for index, plan in enumerate(PLANS) for path in paths_below(plan)]


@settings(FUZZ, max_examples=examples(few=100, many=300))
@given(field=st.sampled_from(PLAN_FIELDS), value=junk())
def test_a_plan_file_with_junk_in_one_field_is_read_or_refused(
    field: tuple[int, tuple[str | int, ...]], value: Data
) -> None:
    index, path = field
    with suppress(InputError):
        plan_from_document(parse_document(json.dumps(changed(PLANS[index], path, value)), file="plan.json"))
