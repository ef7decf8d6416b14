"""`shardwright rule`: what a rule of `validate` asks, and why."""

from typing import Annotated

import typer

from cli.completion import completing, rule_ids
from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json
from planner.errors import InputError

EXAMPLES = ("shardwright rule", "shardwright rule MLM101")

MOST_NEAR = 5
"""Rules that are proposed where there is none of a name."""

IdArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]",
        help="The rule; without it all are listed.",
        show_default=False,
        autocompletion=completing(rule_ids),
    ),
]


def rule(id_: IdArgument = None, *, format_: FormatOption = Format.TEXT) -> None:
    """Explain a rule of `validate`, or list them all."""
    from cli.render_rules import rule_blocks, rule_document, rule_tables
    from planner.rules.registry import all_rules, rules_by_subject

    if id_ is None:
        if format_ is Format.JSON:
            print_json({"rules": [rule_document(one) for one in all_rules().values()]})
        else:
            print_blocks(rule_tables(rules_by_subject()))
        return
    found = all_rules().get(id_.upper())
    if found is None:
        near = [name for name in all_rules() if id_.upper() in name]
        proposal = f"Did you mean {', '.join(near[:MOST_NEAR])}? " if near else ""
        raise InputError(f"There is no rule {id_}.", hint=f"{proposal}`shardwright rule` lists them.")
    if format_ is Format.JSON:
        print_json(rule_document(found))
    else:
        print_blocks(rule_blocks(found))
