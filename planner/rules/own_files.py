"""Our own files: specs that `plan` would refuse, and plans that nothing would use.

They are read by `planner.inputs.load` and `planner.schema.plan`; here each kind of mistake has its rule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from planner.errors import InputError, Location
from planner.rules.rule import Found, FoundAt, Rule, rule


class OwnKind(StrEnum):
    """Files of our own."""

    SPEC = "spec"
    PLAN = "plan"
    SERVING_LAYOUT = "serving layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFile:
    """What is wrong with a file of our own.

    Args:
        kind: What it is.
        file: What messages call it.
        damage: Fields that are missing, unknown, of a wrong kind or out of bounds, and files that are not there.
        contradictions: Of a spec: what each field says is fine, and together they cannot be.
        broken: Of a plan: rules that its layouts break.
        refused: Of a serving layout: what its engine would refuse of a pool.
        not_said: Of a serving layout: values that its engine's rules need, and that only a run could tell.
    """

    kind: OwnKind
    file: str
    damage: tuple[InputError, ...] = ()
    contradictions: tuple[InputError, ...] = ()
    broken: tuple[InputError, ...] = ()
    refused: tuple[InputError, ...] = ()
    not_said: tuple[str, ...] = ()


def _found(errors: Sequence[InputError], file: str) -> Iterator[Found]:
    for error in errors:
        yield Found(place=error.location or Location(file=file), message=error.message, hint=error.hint)


@rule(
    id="SW001",
    name="spec-that-cannot-be-read",
    framework=(),
    prevents="`shardwright plan` ends with 2",
    found_at=FoundAt.PARSE,
    source="planner/inputs/load.py, planner/schema/spec.py",
)
def damaged_spec(own: OwnFile) -> Iterator[Found]:
    """A spec names a model, a cluster and a workload, each field as the schema has it.

    Unknown fields, values of a wrong kind or outside their bounds, and names of models, clusters and files that are not
    there are refused, each where it stands.
    """
    if own.kind is OwnKind.SPEC:
        yield from _found(own.damage, own.file)


@rule(
    id="SW002",
    name="spec-that-contradicts-itself",
    framework=(),
    prevents="`shardwright plan` ends with 2",
    found_at=FoundAt.START,
    source="planner/inputs/contradictions.py",
)
def contradicting_spec(own: OwnFile) -> Iterator[Found]:
    """What a spec demands can hold together: pinned degrees fit the cluster, the model and the batch."""
    yield from _found(own.contradictions, own.file)


@rule(
    id="SW101",
    name="plan-that-cannot-be-read",
    framework=(),
    prevents="`shardwright emit`, `explain` and `evaluate` end with 2",
    found_at=FoundAt.PARSE,
    source="planner/schema/plan.py",
)
def damaged_plan(own: OwnFile) -> Iterator[Found]:
    """A plan file is what `shardwright plan` wrote; it is not edited by hand."""
    if own.kind is OwnKind.PLAN:
        yield from _found(own.damage, own.file)


@rule(
    id="SW102",
    name="plan-with-a-layout-that-cannot-be",
    framework=(),
    prevents="`shardwright emit`, `explain` and `evaluate` end with 2",
    found_at=FoundAt.START,
    source="planner/evaluation/validate.py",
)
def impossible_plan(own: OwnFile) -> Iterator[Found]:
    """Every layout of a plan fits its model and cluster, and its numbers are those that its degrees make."""
    yield from _found(own.broken, own.file)


@rule(
    id="SW201",
    name="serving-layout-that-cannot-be-read",
    framework=(),
    prevents="`shardwright emit` ends with 2",
    found_at=FoundAt.PARSE,
    source="planner/schema/serving_layout.py, planner/serving_plans/layout.py",
)
def damaged_serving_layout(own: OwnFile) -> Iterator[Found]:
    """A serving layout has pools that can work together, each with engines that its nodes hold.

    Unknown and missing fields and values outside their bounds are refused where they stand.
    """
    if own.kind is OwnKind.SERVING_LAYOUT:
        yield from _found(own.damage, own.file)


@rule(
    id="SW202",
    name="serving-layout-that-its-engine-refuses",
    framework=(),
    prevents="an engine that ends as it starts, with the error that the rule in the message explains",
    found_at=FoundAt.START,
    source="planner/serving/files.py; the rules of vLLM on the files that `shardwright emit` would write",
)
def refused_serving_layout(own: OwnFile) -> Iterator[Found]:
    """What would be written for each pool breaks no rule of its engine."""
    yield from _found(own.refused, own.file)


RULES: tuple[Rule[OwnFile], ...] = (
    damaged_spec,
    contradicting_spec,
    damaged_plan,
    impossible_plan,
    damaged_serving_layout,
    refused_serving_layout,
)
