"""JSON Schemas of the files that users write and of plans, made from the models that read them.

Two drafts: 2020-12, which pydantic writes, and one that readers of draft-07 understand too, such as the YAML plugins
of editors. A schema says which keys there are and what kind of value each takes. What must hold between fields
(degrees against heads, a band against its step time) only the programs say.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from pydantic import BaseModel

from planner.schema.inline_model import InlineModel
from planner.schema.kinds import Draft, Kind
from planner.schema.plan_file import PlanFile
from planner.schema.serve_plan_file import ServePlanFile
from planner.schema.serve_spec import ServeSpecFile, ServeWorkloadFile
from planner.schema.spec import SCHEMA, SpecFile, WorkloadFile
from profiles.schema import ClusterEntry, MixedClusterEntry

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Schema: TypeAlias = dict[str, Json]


URIS = {
    Draft.DRAFT_07: "http://json-schema.org/draft-07/schema#",
    Draft.DRAFT_2020_12: "https://json-schema.org/draft/2020-12/schema",
}


TITLES = {
    Kind.SPEC: "shardwright spec: what to plan",
    Kind.MODEL: "shardwright model: its fields, or a Hugging Face config.json",
    Kind.CLUSTER: "shardwright cluster",
    Kind.WORKLOAD: "shardwright workload",
    Kind.PLAN: "shardwright plan",
}

VERSION: Schema = {"const": SCHEMA, "description": f"The version of these files: {SCHEMA}."}
PATH: Schema = {"type": "string", "minLength": 1}


def json_schema(kind: Kind, draft: Draft) -> Schema:
    """Return the schema of a kind of file."""
    definitions: dict[str, Json] = {}
    body = MAKERS[kind](definitions)
    schema: Schema = {"$schema": URIS[draft], "title": TITLES[kind], **body, "$defs": _named(definitions)}
    made = _without(schema, "discriminator")
    assert isinstance(made, dict)
    return _draft_07(made) if draft is Draft.DRAFT_07 else made


def _of(model: type[BaseModel], definitions: dict[str, Json]) -> Schema:
    """Return the schema of a model; what it refers to is put among the definitions."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions.update(schema.pop("$defs", {}))
    return schema


def _versioned(schema: Schema) -> Schema:
    """Return the schema of a mapping that may stand in a file of its own, with the version of that file."""
    properties = schema["properties"]
    assert isinstance(properties, dict)
    return {**schema, "properties": {"schema": VERSION, **properties}}


def _model(definitions: dict[str, Json]) -> Schema:
    own = _versioned(_of(InlineModel, definitions))
    # A config.json has many keys that say nothing of shapes; the reader knows each.
    config: Schema = {
        "description": "The config.json of a Hugging Face model.",
        "type": "object",
        "anyOf": [{"required": ["architectures"]}, {"required": ["model_type"]}],
    }
    own["not"] = {"anyOf": [{"required": ["architectures"]}, {"required": ["model_type"]}]}
    return {"anyOf": [own, config]}


def _cluster(definitions: dict[str, Json]) -> Schema:
    """Return the schema of a cluster: of fields of its own, of a preset with some replaced, or of several groups."""
    whole = _of(ClusterEntry, definitions)
    mixed = _of(MixedClusterEntry, definitions)
    nodes = _whole_or_preset(whole)
    definitions["Nodes"] = nodes
    definitions.pop("ClusterEntry", None)
    properties = mixed["properties"]
    assert isinstance(properties, dict)
    groups = properties["groups"]
    assert isinstance(groups, dict)
    properties["groups"] = {**groups, "items": {"$ref": "#/$defs/Nodes"}}
    return {"anyOf": [_versioned(nodes), _versioned(mixed)]}


def _whole_or_preset(schema: Schema) -> Schema:
    """Return the schema of nodes of one kind: a preset stands for whatever is not given beside it."""
    required = schema["required"]
    rest = {key: value for key, value in schema.items() if key != "required"}
    named: Schema = {"required": ["preset"], "properties": {"preset": {"type": "string"}}}
    return {**rest, "anyOf": [named, {"required": required}]}


def _where(condition: Schema, then: Schema, otherwise: Schema) -> Schema:
    """Return the schema of a mapping that is of one kind or another; complaints stay where the mistake is."""
    return {"type": "object", "if": condition, "then": then, "else": otherwise}


SERVES: Schema = {"required": ["kind"], "properties": {"kind": {"const": "serve"}}}


def _workload(definitions: dict[str, Json]) -> Schema:
    serving = _versioned(_of(ServeWorkloadFile, definitions))
    return _where(SERVES, serving, _versioned(_of(WorkloadFile, definitions)))


def _spec(definitions: dict[str, Json]) -> Schema:
    definitions["Model"] = _model(definitions)
    definitions["Cluster"] = _cluster(definitions)
    training = _spec_of(SpecFile, definitions, parts={"workload": "WorkloadFile", "constraints": "ConstraintsFile"})
    parts = {"workload": "ServeWorkloadFile", "constraints": "ServeConstraintsFile"}
    serving = _spec_of(ServeSpecFile, definitions, parts=parts)
    condition: Schema = {"required": ["workload"], "properties": {"workload": {"type": "object", **SERVES}}}
    return _where(condition, serving, training)


def _spec_of(model: type[BaseModel], definitions: dict[str, Json], *, parts: Mapping[str, str]) -> Schema:
    """Return the schema of a spec; each part may be the path of its file, a model and a cluster also a bundled name."""
    schema = _of(model, definitions)
    properties = schema["properties"]
    assert isinstance(properties, dict)
    properties["schema"] = VERSION
    properties["model"] = {"anyOf": [PATH, {"$ref": "#/$defs/Model"}]}
    properties["cluster"] = {"anyOf": [PATH, {"$ref": "#/$defs/Cluster"}]}
    if "clusters" in properties:
        properties["clusters"] = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Cluster"}}
    for part, name in parts.items():
        properties[part] = {"anyOf": [PATH, {"$ref": f"#/$defs/{name}"}]}
    return schema


def _plan(definitions: dict[str, Json]) -> Schema:
    return _where(SERVES, _of(ServePlanFile, definitions), _of(PlanFile, definitions))


MAKERS: Mapping[Kind, Callable[[dict[str, Json]], Schema]] = {
    Kind.SPEC: _spec,
    Kind.MODEL: _model,
    Kind.CLUSTER: _cluster,
    Kind.WORKLOAD: _workload,
    Kind.PLAN: _plan,
}


def _named(definitions: Mapping[str, Json]) -> dict[str, Json]:
    """Return the definitions in the order of their names, so that equal models give equal text."""
    return {name: definitions[name] for name in sorted(definitions)}


def _without(value: Json, keyword: str) -> Json:
    """Return a schema without a keyword that is of OpenAPI."""
    if isinstance(value, list):
        return [_without(item, keyword) for item in value]
    if isinstance(value, dict):
        return {key: _without(item, keyword) for key, item in value.items() if key != keyword}
    return value


def _draft_07(schema: Schema) -> Schema:
    """Return a schema of 2020-12 as readers of draft-07 take it."""
    definitions = schema["$defs"]
    rest = {key: value for key, value in schema.items() if key != "$defs"}
    made = _older({**rest, "definitions": definitions})
    assert isinstance(made, dict)
    return made


def _older(value: Json) -> Json:
    """Return a part of a schema in the words of draft-07."""
    if isinstance(value, list):
        return [_older(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _older(item) for key, item in value.items()}
    reference = made.get("$ref")
    if isinstance(reference, str):
        made["$ref"] = re.sub(r"^#/\$defs/", "#/definitions/", reference)
        if len(made) > 1:
            # What stands beside a reference does not count in draft-07.
            beside = {key: item for key, item in made.items() if key != "$ref"}
            made = {"allOf": [{"$ref": made["$ref"]}], **beside}
    if "prefixItems" in made:
        rest = made.pop("items", None)
        made["items"] = made.pop("prefixItems")
        if rest is not None:
            made["additionalItems"] = rest
    return made
