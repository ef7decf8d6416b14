"""`shardwright models`: the models that a spec may name."""

from enum import StrEnum
from typing import Annotated

import typer

from cli.named_model import read_named_model
from cli.output import print_blocks, print_json, print_text
from planner.errors import InputError

EXAMPLES = (
    "shardwright models",
    "shardwright models my-model/config.json",
    "shardwright models llama-3.1-70b --format yaml > mine.yaml",
)

NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Show one model in full: a bundled name, or the path of a config.json or its directory.",
        show_default=False,
    ),
]


class ModelsFormat(StrEnum):
    """Forms of what `models` prints."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


FormatOption = Annotated[
    ModelsFormat,
    typer.Option(
        "--format",
        envvar="SHARDWRIGHT_FORMAT",
        help="Tables for people, one JSON document, or a bundled model as the YAML file that a spec can name.",
    ),
]


def models(name: NameArgument = None, format_: FormatOption = ModelsFormat.TEXT) -> None:
    """List the bundled models, or show one.

    Parameters are counted from the shapes. A spec may also name any Hugging Face config.json that can be read.
    """
    from cli.render_models import bundled_document, model_blocks, model_document, model_table, model_yaml
    from planner.models.bundled import bundled_models, find_bundled

    bundled = None if name is None else find_bundled(name)
    if format_ is ModelsFormat.YAML:
        if bundled is None:
            raise InputError(
                "--format yaml prints a bundled model.", hint="Name one: shardwright models llama-3.1-70b --format yaml"
            )
        print_text(model_yaml(bundled))
    elif name is None:
        if format_ is ModelsFormat.JSON:
            print_json({"models": [bundled_document(model) for model in bundled_models()]})
        else:
            print_blocks([model_table(bundled_models())])
    elif bundled is not None:
        if format_ is ModelsFormat.JSON:
            print_json(bundled_document(bundled))
        else:
            names = ", ".join(bundled.aliases) or "nothing else"
            print_blocks(model_blocks(bundled.decoder.spec(), ("also named", names), ("source", bundled.source)))
    else:
        model = read_named_model(name, where="MODEL")
        if format_ is ModelsFormat.JSON:
            print_json(model_document(model))
        else:
            print_blocks(model_blocks(model, ("read from", name)))
