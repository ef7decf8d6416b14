"""Whatever a config holds, reading it gives a model or an `InputError`."""

import json
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.documents import parse_document
from planner.errors import InputError
from planner.models.specs import ModelSpec
from planner.schema.architectures import ARCHITECTURES
from planner.schema.model import read_model
from tests.examples import examples
from tests.unit.planner.model_inputs import INLINE, LLAMA_8B, MISTRAL, QWEN3_8B

CONFIGS: list[Mapping[str, object]] = [
    LLAMA_8B,
    QWEN3_8B,
    MISTRAL,
    INLINE,
    *(
        json.loads(line)["config"]
        for line in Path(__file__).with_name("published_configs.jsonl").read_text("utf-8").splitlines()
        if len(line) < 5000
    ),
    *(
        json.loads(line)["config"]
        for line in Path(__file__).with_name("model_parameters_of_transformers.jsonl").read_text("utf-8").splitlines()
    ),
]

KEYS = sorted({key for config in CONFIGS for key in config} | {"quantization_config", "rope_parameters", "layer_types"})

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**25])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "silu", "full_attention", "llama", *ARCHITECTURES])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=6,
)


def outcome(fields: object) -> ModelSpec | InputError:
    try:
        document = parse_document(json.dumps(fields), file="config.json")
        return read_model(document.data, document=document, path=(), base=Path())
    except InputError as error:
        return error


@settings(max_examples=examples(few=100, many=300), deadline=None)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_changed_or_missing_field_gives_a_model_or_an_input_error(
    config: Mapping[str, object], data: st.DataObject
) -> None:
    fields = dict(config)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*fields, *KEYS]) | st.text(max_size=6))
        if data.draw(st.booleans()) and len(fields) > 1:
            fields.pop(key, None)
        else:
            fields[key] = data.draw(VALUES)
    result = outcome(fields)
    assert isinstance(result, ModelSpec | InputError)
    if isinstance(result, InputError):
        assert result.message
        assert result.hint
    else:
        assert result.num_layers >= 1


@given(VALUES)
def test_any_document_gives_a_model_or_an_input_error(fields: object) -> None:
    assert isinstance(outcome(fields), ModelSpec | InputError)


@given(
    st.sampled_from(CONFIGS),
    st.from_regex(r"new_[a-z_]{1,12}", fullmatch=True),
    st.integers(-(2**53), 2**53)
    | st.booleans(),  # longer numbers are refused by the reader, before any key is looked at
)
def test_a_key_that_nobody_knows_is_never_ignored(config: Mapping[str, object], key: str, value: object) -> None:
    result = outcome({**config, key: value})
    assert isinstance(result, InputError)
    assert "is not understood for" in str(result) or "is not a known key" in str(result)
