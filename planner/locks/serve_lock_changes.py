"""What changed between two serving plans, as their locks tell: inputs, settings, figures, and what that means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from planner.locks.lock_changes import LEVELS, About, Level, Remark
from planner.locks.serve_lock import ServeLock

Value = TypeVar("Value", str, float)

SAME_LOAD = 0.02
"""Part of the requests within which two plans bear as many: what an engine bears is searched as finely as that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLockChanges:
    """What changed.

    Args:
        old: The plan before.
        new: The plan after.
        inputs: Parts of the input that changed, with their names before and after.
        settings: Settings of pools that changed, before and after; of a pool that came or went one side is empty.
        terms: Terms of the time of a token, before and after, in seconds, largest change first.
        times: Times of requests that changed, before and after.
        files: Files whose text changed, came or went.
        remarks: What it means, the worst first.
    """

    old: ServeLock
    new: ServeLock
    inputs: Mapping[str, tuple[str, str]]
    settings: Mapping[str, tuple[str, str]]
    terms: Mapping[str, tuple[float, float]]
    times: Mapping[str, tuple[float, float]]
    files: tuple[str, ...]
    remarks: tuple[Remark, ...]

    @property
    def is_bad(self) -> bool:
        """Return whether a remark says that something got worse."""
        return any(remark.level is Level.BAD for remark in self.remarks)


def serve_changes(old: ServeLock, new: ServeLock) -> ServeLockChanges:
    """Return what changed from one plan to another."""
    terms = _moved(old.seconds_by_term, new.seconds_by_term, missing=0.0)
    order = list(LEVELS)
    names = {
        part: (old.inputs[part][0] if part in old.inputs else "", new.inputs[part][0] if part in new.inputs else "")
        for part in {**old.inputs, **new.inputs}
        if old.inputs.get(part) != new.inputs.get(part)
    }
    return ServeLockChanges(
        old=old,
        new=new,
        inputs=names,
        settings=_moved(old.settings, new.settings, missing=""),
        terms=dict(sorted(terms.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0]))),
        times=_moved(old.times, new.times, missing=0.0),
        files=tuple(sorted(_moved(old.files, new.files, missing=""))),
        remarks=tuple(sorted(_remarks(old, new), key=lambda remark: order.index(remark.about))),
    )


def _moved(old: Mapping[str, Value], new: Mapping[str, Value], *, missing: Value) -> dict[str, tuple[Value, Value]]:
    return {
        name: (old.get(name, missing), new.get(name, missing))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def _remarks(old: ServeLock, new: ServeLock) -> Iterator[Remark]:
    asked = [part for part in ("workload", "wanted") if old.inputs.get(part) != new.inputs.get(part)]
    if asked:
        yield Remark(
            about=About.OTHER_WORKLOAD, text=f"Other {' and '.join(asked)}: the figures answer other questions."
        )
    else:
        yield from _load(old, new)
    if old.status == "optimal" and new.status != "optimal":
        yield Remark(about=About.PROVEN_LESS, text="A better composition is not ruled out, before it was.")
    if old.planner != new.planner:
        text = f"Planned by {new.planner}, before by {old.planner}: its prices may differ."
        yield Remark(about=About.OTHER_PLANNER, text=text)


def _load(old: ServeLock, new: ServeLock) -> Iterator[Remark]:
    """Yield what became of requests, GPUs and price."""
    ratio = new.requests_per_second / old.requests_per_second
    figure = f"It bears {abs(ratio - 1):.1%} {'more' if ratio > 1 else 'fewer'} requests"
    if ratio < 1 - SAME_LOAD:
        yield Remark(about=About.SLOWER, text=f"{figure}.")
    elif ratio < 1:
        text = f"{figure}, within the {SAME_LOAD:.0%} to which the most that engines bear is found."
        yield Remark(about=About.SLOWER_WITHIN_BAND, text=text)
    elif ratio > 1:
        yield Remark(about=About.FASTER, text=f"{figure}.")
    if new.num_gpus > old.num_gpus and ratio <= 1:
        text = f"It takes {new.num_gpus} GPUs, before {old.num_gpus}, for no more requests."
        yield Remark(about=About.DEARER, text=text)
