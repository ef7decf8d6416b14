"""`shardwright clusters`: the cluster presets and GPUs that a spec may name."""

from difflib import get_close_matches
from typing import Annotated

import typer

from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json
from planner.errors import InputError

EXAMPLES = ("shardwright clusters", "shardwright clusters dgx-h100", "shardwright clusters h100-sxm-80gb --format json")

NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Show one preset or GPU in full, with its sources.", show_default=False),
]


def clusters(name: NameArgument = None, format_: FormatOption = Format.TEXT) -> None:
    """List cluster presets and GPUs, or show one.

    Bandwidths are one direction, per GPU. Rates are the datasheet's, without sparsity.
    """
    from cli.render_clusters import (
        catalogue_blocks,
        catalogue_document,
        device_blocks,
        device_document,
        preset_blocks,
        preset_document,
    )
    from profiles.catalogue import device_names, load_device, preset_names

    as_json = format_ is Format.JSON
    if name is None:
        print_json(catalogue_document()) if as_json else print_blocks(catalogue_blocks())
    elif name in preset_names():
        print_json(preset_document(name)) if as_json else print_blocks(preset_blocks(name))
    elif name in device_names():
        print_json(device_document(load_device(name))) if as_json else print_blocks(device_blocks(name))
    else:
        names = (*preset_names(), *device_names())
        near = [known for known in names if name.lower() in known] or get_close_matches(name.lower(), names, n=3)
        proposal = f"Did you mean {' or '.join(near)}?\n" if near else ""
        raise InputError(
            f"There is neither a cluster preset nor a GPU named {name}.",
            hint=f"{proposal}Presets: {', '.join(preset_names())}.\nGPUs: {', '.join(device_names())}.",
        )
