"""Types of single fields in a plan spec: what users may write, and what it becomes."""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StrictInt, StrictStr, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from planner.layout import OFFLOADABLE, ContextKind
from planner.requests.request import ANY_MODULES, MAX_DEGREE, OFFLOADED_LAYERS, Bounds, Target
from planner.requests.workload import MAX_LENGTH, DType, Precision
from planner.schema.translate import complaint, shown, suggestion

MAX_TOKENS = 10**18
"""Largest token budget: below 2**63, and far above any run; 10**14 would be a large one."""

DIMENSIONS = (
    *("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "zero_stage", "micro_batch_size", "num_microbatches"),
    OFFLOADED_LAYERS,
)
"""Dimensions of a layout that can be pinned or bounded by numbers."""

NO_MODULES = "none"
RECOMPUTE = ("none", "selective", "full", "per-layer")
CONTEXT_KINDS = tuple(kind.value for kind in ContextKind)
LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")
PEFT_TARGETS = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "proj",
    "gate_proj": "fc1",
    "up_proj": "fc1",
    "down_proj": "fc2",
}
"""What PEFT calls the parts of these modules in a Llama; Megatron-LM's hold several of them in one."""

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_TOKENS = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,12})?) ?([KMBT]?)", re.IGNORECASE)


def _bounds(value: object) -> Bounds:
    """Return the bounds that an integer, a list of integers or `{min, max}` gives."""
    hint = "Give a whole number, a list such as [1, 2, 4], or a range such as {min: 1, max: 8}."
    if isinstance(value, dict):
        ends = {name: end for name, end in value.items() if _is_degree(end)}
        if not ends or len(ends) < len(value) or set(ends) - {"min", "max"}:
            raise complaint(f"{shown(value)} is not a range of whole numbers.", hint)
        if len(ends) == 2 and ends["min"] > ends["max"]:
            raise complaint(f"The range {shown(value)} is empty.", "Give a min that is not above max.")
        return Bounds(minimum=ends.get("min"), maximum=ends.get("max"))
    values = _listed(value)
    if not values:
        raise complaint("The list of allowed values is empty.", hint)
    allowed = {item for item in values if _is_degree(item)}
    if not all(_is_degree(item) for item in values):
        raise complaint(f"{shown(value)} is not a whole number from 0 to {MAX_DEGREE:,}.", hint)
    return Bounds(allowed=tuple(sorted(allowed)))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _is_degree(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_DEGREE


def _named(bounds: Bounds) -> tuple[int, ...]:
    """Return every number that the user wrote."""
    ends = (bounds.minimum, bounds.maximum)
    return (*(bounds.allowed or ()), *(end for end in ends if end is not None))


def _positive(bounds: Bounds) -> Bounds:
    if min(_named(bounds)) < 1:
        raise complaint("There is no degree below 1.", "Degrees start at 1.")
    return bounds


def _zero_stage(bounds: Bounds) -> Bounds:
    if max(_named(bounds)) > 3:
        raise complaint(f"There is no ZeRO stage {max(_named(bounds))}.", "Stages are 0, 1, 2 and 3.")
    return bounds


def _recompute(value: object) -> tuple[str, ...]:
    return _some_of(value, RECOMPUTE, what="a recompute granularity")


def _context_kinds(value: object) -> tuple[str, ...]:
    return _some_of(value, CONTEXT_KINDS, what="a kind of context parallelism")


def _offloaded(value: object) -> tuple[float, ...]:
    """Return the parts, in whole percent, that a number from 0 to 1 or a list of them gives."""
    values = _listed(value)
    if not values or not all(_is_fraction(item) for item in values):
        raise complaint(
            f"{shown(value)} is not a part of the optimizer's states.",
            "Give a number from 0 (nothing on the host) to 1, in hundredths, such as 0.5, or a list of these.",
        )
    return tuple(sorted({float(item) for item in values if _is_fraction(item)}))


def _offloaded_modules(value: object) -> tuple[str, ...]:
    """Return the modules that a list of them or one of them names, none, or that any may be."""
    if value == NO_MODULES:
        return ()
    if value == ANY_MODULES[0]:
        return ANY_MODULES
    what = f"a module that can go to the host, `{NO_MODULES}` or `{ANY_MODULES[0]}`"
    return _some_of(value, OFFLOADABLE, what=what)


def _is_fraction(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return False
    return math.isclose(100 * value, round(100 * value), abs_tol=1e-9)


def _some_of(value: object, known: Sequence[str], *, what: str) -> tuple[str, ...]:
    """Return the known words that one word or a list of them names, in the order of `known`."""
    values = _listed(value)
    if not values or not all(isinstance(item, str) and item in known for item in values):
        raise complaint(f"{shown(value)} is not {what}.", f"Allowed: {', '.join(known)}, or a list of these.")
    return _in_order(values, known)


def _lora_targets(value: object) -> tuple[str, ...]:
    values = _listed(value)
    wrong = next((item for item in values if not isinstance(item, str) or item not in LORA_TARGETS), None)
    if wrong is not None or not values:
        meant = PEFT_TARGETS.get(str(wrong))
        proposal = f"It is part of `{meant}`. " if meant else suggestion(str(wrong), LORA_TARGETS)
        raise complaint(
            f"{shown(wrong if values else value)} is not a module that takes an adapter.",
            f"{proposal}Allowed: {', '.join(LORA_TARGETS)}, or a list of these.",
        )
    return _in_order(values, LORA_TARGETS)


def _in_order(values: Sequence[object], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in order if name in values)


def _tokens(value: object) -> int:
    """Return the tokens that a number or a text such as "1.5T" gives."""
    amount = Decimal(0)
    if isinstance(value, str) and (match := _TOKENS.fullmatch(value.strip())):
        amount = Decimal(match.group(1)) * _SUFFIXES[match.group(2).upper()]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        amount = Decimal(value)
    if amount != amount.to_integral_value() or not 1 <= amount <= MAX_TOKENS:
        raise complaint(
            f"{shown(value)} is not a number of tokens.",
            "Give a whole number, or one such as 300B or 1.5T (K, M, B, T are powers of 1000), of at most 1e18.",
        )
    return int(amount)


def _precision(value: object) -> object:
    if value == "fp8":
        recipes = ", ".join(precision.value for precision in Precision if precision.is_fp8)
        raise complaint(
            "`precision` = fp8 does not say which recipe; they differ in memory, hardware and numerics.",
            f"Allowed: {recipes}.",
        )
    return value


def _state_dtype(value: DType) -> DType:
    if value is DType.FP8:
        raise complaint("fp8 is no format for master weights or gradients.", "Allowed: fp32, bf16, fp16.")
    return value


def _target(value: object) -> object:
    if value == Target.VLLM.value:
        raise complaint(
            "`target` = vllm cannot run this workload: vLLM serves models and trains none.",
            "Allowed: megatron, deepspeed, any.",
        )
    return value


def _one_line(value: str) -> str:
    if "\n" in value or not value.strip():
        raise complaint(f"{shown(value)} is not a name on one line.", "Give text without line ends.")
    return value


def _texts(value: object) -> object:
    """Return a list of texts; in Megatron-LM's blends, `[0.3, /a, 0.7, /b]`, weights may be written as numbers."""
    if not isinstance(value, list):
        return [value] if isinstance(value, str) else value
    numbers = [
        index for index, item in enumerate(value) if isinstance(item, int | float) and not isinstance(item, bool)
    ]
    if not numbers:
        return value
    alternating = len(value) % 2 == 0 and all(isinstance(item, str) for item in value[1::2])
    if not alternating or any(value[index] <= 0 for index in numbers):
        raise complaint(
            f"{shown(value)} is not a blend: numbers are the weights of the paths behind them.",
            "Give paths alone, or a positive weight before every path, as in [0.3, /data/a, 0.7, /data/b].",
        )
    return [item if isinstance(item, str) else repr(item) for item in value]


def _written_bounds(least: int, most: int) -> JsonSchemaValue:
    """Return how bounds are written: a number, some numbers or a range."""
    number: JsonSchemaValue = {"type": "integer", "minimum": least, "maximum": most}
    ends = {"min": number, "max": number}
    return {
        "anyOf": [
            number,
            {"type": "array", "items": number, "minItems": 1},
            {"type": "object", "properties": ends, "additionalProperties": False, "minProperties": 1},
        ]
    }


def _written_words(words: Sequence[str]) -> JsonSchemaValue:
    """Return how a choice is written: one word or some."""
    word: JsonSchemaValue = {"enum": list(words)}
    return {"anyOf": [word, {"type": "array", "items": word, "minItems": 1}]}


_WRITTEN_TOKENS: JsonSchemaValue = {
    "anyOf": [
        {"type": "number", "minimum": 1, "maximum": MAX_TOKENS},
        {"type": "string", "pattern": r"^\s*[0-9]{1,18}(\.[0-9]{1,12})? ?[KMBTkmbt]?\s*$"},
    ]
}

_SHARE: JsonSchemaValue = {"type": "number", "minimum": 0, "maximum": 1}
_WRITTEN_SHARES: JsonSchemaValue = {"anyOf": [_SHARE, {"type": "array", "items": _SHARE, "minItems": 1}]}

Degree = Annotated[
    Bounds, PlainValidator(_bounds), AfterValidator(_positive), WithJsonSchema(_written_bounds(1, MAX_DEGREE))
]
"""An integer from 1, a list of them, or `{min, max}`."""

ZeroStage = Annotated[
    Bounds, PlainValidator(_bounds), AfterValidator(_zero_stage), WithJsonSchema(_written_bounds(0, 3))
]
LayerCount = Annotated[Bounds, PlainValidator(_bounds), WithJsonSchema(_written_bounds(0, MAX_DEGREE))]
"""An integer from 0, a list of them, or `{min, max}`."""

RecomputeChoice = Annotated[tuple[str, ...], PlainValidator(_recompute), WithJsonSchema(_written_words(RECOMPUTE))]
OffloadChoice = Annotated[tuple[float, ...], PlainValidator(_offloaded), WithJsonSchema(_WRITTEN_SHARES)]
OffloadedModules = Annotated[
    tuple[str, ...],
    PlainValidator(_offloaded_modules),
    WithJsonSchema(_written_words((NO_MODULES, *ANY_MODULES, *OFFLOADABLE))),
]
ContextKinds = Annotated[tuple[str, ...], PlainValidator(_context_kinds), WithJsonSchema(_written_words(CONTEXT_KINDS))]
LoraTargets = Annotated[tuple[str, ...], PlainValidator(_lora_targets), WithJsonSchema(_written_words(LORA_TARGETS))]
Tokens = Annotated[int, PlainValidator(_tokens), WithJsonSchema(_WRITTEN_TOKENS)]
Length = Annotated[StrictInt, Field(ge=1, le=MAX_LENGTH)]
RoutingSkew = Annotated[float, Field(strict=True, ge=1, le=1024)]
"""Load of the busiest rank over the mean; 1024 is beyond any, with as many ranks."""

Probability = Annotated[float, Field(strict=True, ge=0, lt=1)]
PrecisionChoice = Annotated[Precision, BeforeValidator(_precision)]
StateDType = Annotated[DType, AfterValidator(_state_dtype)]
TargetChoice = Annotated[Target, BeforeValidator(_target)]
Text = Annotated[StrictStr, Field(max_length=4096), AfterValidator(_one_line)]
Texts = Annotated[list[Text], Field(max_length=1024), BeforeValidator(_texts)]
