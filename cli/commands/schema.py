"""`shardwright schema`: JSON Schemas of specs, their parts and plans, for editors and other programs."""

import json
from typing import Annotated

import typer

from cli.options import ForceOption, OutOption
from cli.output import note, print_text, write_files
from planner.errors import InputError
from planner.schema.kinds import Draft, Kind

EXAMPLES = ("shardwright schema spec", "shardwright schema --out .", "shardwright schema plan --draft 2020-12")


KindArgument = Annotated[Kind | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(Kind)}.", show_default=False)]
DraftOption = Annotated[
    Draft, typer.Option("--draft", help="The draft of JSON Schema; editors read draft-07 for YAML.")
]


def schema_name(kind: str) -> str:
    """Return what the file with the schema of a kind is called."""
    return f"shardwright-{kind}.schema.json"


def schema(
    kind: KindArgument = None,
    *,
    draft: DraftOption = Draft.DRAFT_07,
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Print the JSON Schema of a kind of file, or write all of them.

    A schema says which keys there are and what kind of value each takes; what must hold between fields only the
    commands say.
    """
    if kind is None and out is None:
        raise InputError("The kind of file is missing.", hint=f"Name one of {', '.join(Kind)}, or --out DIR.")
    kinds = tuple(Kind) if kind is None else (kind,)
    texts = {schema_name(one): _text(one, draft) for one in kinds}
    if out is None:
        print_text("".join(texts.values()))
        return
    for path in write_files(out, texts, force=force):
        note(f"{path} written.")


def _text(kind: Kind, draft: Draft) -> str:
    from planner.schema.json_schemas import json_schema

    return json.dumps(json_schema(kind, draft), indent=2, ensure_ascii=False) + "\n"
