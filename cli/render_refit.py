"""Fits of the constants of training as tables and as JSON."""

from collections.abc import Mapping, Sequence

from cli.render import Block, Table, columns, count, section
from cli.render_accuracy import error_cells, or_none
from planner.accuracy.fit import SCALE_RUNS, LeftOut, error_after_one_scale
from planner.accuracy.scores import step_errors
from planner.accuracy.training import Prediction
from profiles.constants import Constant


def refit_document(constants: Mapping[str, Constant], fitted: Mapping[str, float]) -> dict[str, object]:
    """Return present and fitted values of constants as JSON."""
    return {name: {"value": constant.value, "fitted": fitted[name]} for name, constant in constants.items()}


def refit_blocks(constants: Mapping[str, Constant], fitted: Mapping[str, float]) -> tuple[Block, ...]:
    """Return present and fitted values of constants."""
    rows = tuple(
        (name, f"{constant.value:.4g}", f"{fitted[name]:.4g}", f"{constant.low:g} to {constant.high:g}")
        for name, constant in constants.items()
    )
    names = columns("name", ">value", ">fitted to these runs", "range")
    return section("Constants of training", Table(columns=names, rows=rows))


def without_document(without: Sequence[LeftOut]) -> dict[str, object]:
    """Return how fits predict the groups that they left out as JSON."""
    every = [entry for group in without for entry in group.predictions]

    def errors(entries: Sequence[Prediction]) -> dict[str, object]:
        return {
            "errors": or_none(step_errors(entries)),
            "median_absolute_after_one_scale": error_after_one_scale(entries),
        }

    return {
        "groups": [
            {"group": group.group, **errors(group.predictions), "constants": dict(group.values)} for group in without
        ],
        "all": errors(every),
        "dense": errors([entry for entry in every if not entry.has_experts]),
        "experts": errors([entry for entry in every if entry.has_experts]),
    }


def without_blocks(without: Sequence[LeftOut]) -> tuple[Block, ...]:
    """Return how fits predict the groups that they left out."""
    every = [entry for group in without for entry in group.predictions]
    kinds = (
        *((group.group, group.predictions) for group in without),
        ("all dense", [entry for entry in every if not entry.has_experts]),
        ("all mixtures", [entry for entry in every if entry.has_experts]),
        ("all", every),
    )
    rows = tuple(
        (
            name,
            count(errors.count),
            *error_cells(errors),
            f"{100 * errors.four_of_five:.1f} %",
            "" if scaled is None else f"{100 * scaled:.1f} %",
        )
        for name, errors, scaled in ((name, step_errors(runs), error_after_one_scale(runs)) for name, runs in kinds)
        if errors is not None
    )
    names = [
        "without",
        ">runs",
        ">median error",
        ">mean error",
        ">bias",
        ">four of five",
        f">after one scale of {SCALE_RUNS} runs",
    ]
    return section("Predicted by constants that were fitted to the others", Table(columns=columns(*names), rows=rows))
