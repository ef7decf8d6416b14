"""`shardwright models`: the models that a spec may name."""

from typing import Annotated

import typer

from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json
from planner.errors import InputError

EXAMPLES = ("shardwright models", "shardwright models llama-3.1-70b --format json")

NameArgument = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Show one model in full.", show_default=False)
]


def models(name: NameArgument = None, format_: FormatOption = Format.TEXT) -> None:
    """List the bundled models, or show one.

    Parameters are counted from the shapes. A spec may also name any Hugging Face config.json that can be read.
    """
    from cli.render_models import model_blocks, model_document, model_table
    from planner.bundled import bundled_models, find_bundled, model_names, nearest_names

    if name is not None:
        model = find_bundled(name)
        if model is None:
            close = nearest_names(name)
            raise InputError(
                f"There is no bundled model named {name}.",
                hint=f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(model_names())}.",
            )
        if format_ is Format.JSON:
            print_json(model_document(model))
        else:
            print_blocks(model_blocks(model))
    elif format_ is Format.JSON:
        print_json({"models": [model_document(model) for model in bundled_models()]})
    else:
        print_blocks([model_table(bundled_models())])
