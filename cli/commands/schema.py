"""`shardwright schema`: JSON Schemas of specs, their parts and plans, for editors and other programs."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import ForceOption, OutOption
from cli.output import note, print_text, write_files
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.schema.json_schemas import Draft

EXAMPLES = ("shardwright schema spec", "shardwright schema --out .", "shardwright schema plan --draft 2020-12")


class SchemaKind(StrEnum):
    """Files that have a schema; `planner.schema.json_schemas.Kind`, which loads pydantic, in the same order."""

    SPEC = "spec"
    MODEL = "model"
    CLUSTER = "cluster"
    WORKLOAD = "workload"
    PLAN = "plan"


class SchemaDraft(StrEnum):
    """Drafts of JSON Schema, as `planner.schema.json_schemas.Draft`."""

    DRAFT_07 = "draft-07"
    DRAFT_2020_12 = "2020-12"


KindArgument = Annotated[
    SchemaKind | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(SchemaKind)}.", show_default=False)
]
DraftOption = Annotated[
    SchemaDraft, typer.Option("--draft", help="The draft of JSON Schema; editors read draft-07 for YAML.")
]


def schema_name(kind: str) -> str:
    """Return what the file with the schema of a kind is called."""
    return f"shardwright-{kind}.schema.json"


def schema(
    kind: KindArgument = None,
    *,
    draft: DraftOption = SchemaDraft.DRAFT_07,
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Print the JSON Schema of a kind of file, or write all of them.

    A schema says which keys there are and what kind of value each takes; what must hold between fields only the
    commands say.
    """
    from planner.schema.json_schemas import Draft

    if kind is None and out is None:
        raise InputError("The kind of file is missing.", hint=f"Name one of {', '.join(SchemaKind)}, or --out DIR.")
    kinds = tuple(SchemaKind) if kind is None else (kind,)
    texts = {schema_name(one): _text(one, Draft(draft.value)) for one in kinds}
    if out is None:
        print_text("".join(texts.values()))
        return
    for path in write_files(out, texts, force=force):
        note(f"{path} written.")


def _text(kind: SchemaKind, draft: "Draft") -> str:
    from planner.schema.json_schemas import Kind, json_schema

    return json.dumps(json_schema(Kind(kind.value), draft), indent=2, ensure_ascii=False) + "\n"
